"""Numbers that stand where nothing was computed: stresses of zero, and one energy for unlike structures."""

from collections import defaultdict

import numpy as np

from physicsml_ase.check.findings import Finding, Places
from physicsml_ase.check.frame import Frame

MOVING = 0.01
"""Force [eV/Å] above which a structure is not at rest, and has neither the energy of another nor no stress at all."""
FEW = 5
"""Structures of one composition that may have the same energy."""


class Placeholders:
    """Stresses and energies that no calculation gives."""

    def __init__(self) -> None:
        self.no_stress = Places()
        self.energies: dict[str, tuple[float, float]] = {}
        """Lowest and highest energy of each composition [eV]."""
        self.frames: dict[str, Places] = defaultdict(Places)
        self.kinds: dict[str, set[float]] = defaultdict(set)
        """Sizes of their forces: copies of one frame have its energy."""

    def see(self, frame: Frame) -> None:
        """One more frame."""
        if (
            frame.pairs is None
            or frame.forces is None
            or not len(frame.forces)
            or np.abs(frame.forces).max() < MOVING
        ):
            return
        if frame.stress is not None and frame.atoms.pbc.any() and not frame.stress.any():
            self.no_stress.add(frame)
        if np.isfinite(frame.energy):
            formula = frame.atoms.get_chemical_formula()
            low, high = self.energies.get(formula, (np.inf, -np.inf))
            self.energies[formula] = low, high = min(low, frame.energy), max(high, frame.energy)
            if low == high:
                self.frames[formula].add(frame)
                if len(self.kinds[formula]) < FEW:
                    self.kinds[formula].add(round(float(np.square(frame.forces).sum()), 6))

    def findings(self) -> list[Finding]:
        """What was found."""
        found = self.no_stress.finding(
            "warning",
            "zero-stress",
            "{n} with a stress of exactly zero, though atoms feel forces",
            "a stress that was not computed is to be left out: zero is learned as it is",
        )
        for formula, (low, high) in self.energies.items():
            if low == high and len(self.kinds[formula]) >= FEW:
                found += self.frames[formula].finding(
                    "warning",
                    "constant-energy",
                    f"{{n}} of {formula} with the same energy, {low:g} eV, though atoms feel forces",
                    "an energy that was not computed is to be left out: one number is learned as it is",
                )
        return found
