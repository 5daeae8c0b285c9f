"""Stops a simulation that left what its model can describe, before it fills a disk with nonsense."""

import math

import numpy as np
from ase import Atoms

from physicsml_ase.conventions import InputError

VOLUME_FACTOR = 5.0
ADVICE = "relax the structure first, take a shorter time step, or train the model on such structures"


class Unstable(InputError):
    """A simulation was stopped: its energies, forces, temperature or positions became unphysical."""


class Guard:
    """What a structure may do, judged from its start."""

    def __init__(self, atoms: Atoms, hottest_K: float = np.inf) -> None:
        self.hottest_K = hottest_K
        self.periodic = atoms.cell.array[atoms.pbc]
        self.radius = self._radius(atoms)
        self.volume = atoms.cell.volume

    def complaint(self, atoms: Atoms, energy: float, temperature_K: float = 0.0) -> str | None:
        """What is wrong with the structure now, of this potential energy [eV]; None where nothing is.

        Its results must be up to date. It is asked at each step of dynamics, so what is quick comes first.
        """
        if not math.isfinite(energy):
            return f"the energy is {energy}"
        forces = atoms.get_forces(apply_constraint=False)
        if not math.isfinite(float(forces.sum())):
            bad = ~np.isfinite(forces).all(axis=1)
            if bad.any():
                return f"the force on atom {np.argmax(bad)} is not finite"
        if not temperature_K <= self.hottest_K:
            return f"the temperature is {temperature_K:.3g} K, above {self.hottest_K:.0f} K"
        radius = self._radius(atoms)
        if not radius <= 3 * self.radius + 50:
            return f"atoms fly apart: one is {radius:.3g} Å from the centre"
        if self.volume > 0:
            volume = atoms.cell.volume
            if not 1 / VOLUME_FACTOR <= volume / self.volume <= VOLUME_FACTOR:
                return f"the volume went from {self.volume:.4g} to {volume:.4g} Å³"
        return None

    def _radius(self, atoms: Atoms) -> float:
        """Largest distance from the centre of the atoms, across the periodic directions [Å]."""
        if len(self.periodic) == 3:
            return 0.0
        away = atoms.positions - atoms.positions.mean(0)
        if len(self.periodic):
            rows = np.linalg.svd(self.periodic)[2]
            away = away @ rows[len(self.periodic) :].T
        return float(np.einsum("ij,ij->i", away, away).max()) ** 0.5
