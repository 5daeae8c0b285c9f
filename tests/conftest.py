"""Structures and small models that many tests use."""

from pathlib import Path

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import bulk, fcc111, molecule

from physicsml_ase.domain import Domain

DOMAIN = Domain(
    cutoff=4.0,
    elements=(1, 6, 8, 29, 79),
    avg_num_neighbors=12.0,
    atomic_energies={1: -13.6, 6: -1030.0, 8: -2040.0, 29: -3.7, 79: -3.2},
    energy_scale=1.3,
)
"""Of a model of `structures()`."""
SHARED = Path(__file__).parents[2] / "shared"

torch.set_num_threads(1)


def rattled(atoms: Atoms, stdev: float = 0.08, seed: int = 3) -> Atoms:
    """A copy with every atom moved a little, so that no force vanishes by symmetry."""
    atoms = atoms.copy()
    atoms.rattle(stdev, seed=seed)
    return atoms


def alloy(atoms: Atoms, seed: int = 0) -> Atoms:
    """A copy with about half of the atoms turned to gold."""
    atoms = atoms.copy()
    atoms.numbers[np.random.default_rng(seed).random(len(atoms)) < 0.5] = 79
    return atoms


def structures() -> dict[str, Atoms]:
    """One of each kind: molecule, crystals of every cell, slabs, a wire, far and lone atoms."""
    crystal = alloy(rattled(bulk("Cu", cubic=True)))
    triclinic = alloy(rattled(bulk("Cu").repeat((2, 2, 1))))
    triclinic.set_cell(
        triclinic.cell.array @ (np.eye(3) + 0.07 * np.arange(9).reshape(3, 3) / 8), scale_atoms=True
    )
    left = triclinic.copy()
    left.set_cell(triclinic.cell.array[[1, 0, 2]])
    slab = alloy(rattled(fcc111("Cu", (2, 2, 2), vacuum=6.0)))
    slab.pbc = (True, True, False)
    flat = slab.copy()
    flat.cell[2] = 0.0
    wire = alloy(rattled(bulk("Cu", cubic=True).repeat((1, 1, 2))))
    wire.set_cell([20.0, 20.0, wire.cell[2, 2]])
    wire.pbc = (False, False, True)
    unwrapped = crystal.copy()
    unwrapped.positions += np.array([[3, 0, 0], [0, -2, 0], [0, 0, 1], [5, 5, -5]]) @ crystal.cell.array
    return {
        "molecule": rattled(molecule("CH3CH2OH")),
        "crystal": crystal,
        "triclinic": triclinic,
        "left_handed": left,
        "tiny": alloy(rattled(bulk("Cu", "bcc", a=2.9, cubic=True)), seed=4),
        "unwrapped": unwrapped,
        "slab": slab,
        "slab_without_c": flat,
        "wire": wire,
        "far_apart": Atoms("CO", [[0, 0, 0], [30.0, 0, 0]]),
        "lone_atom": Atoms("H"),
    }


@pytest.fixture
def shared() -> Path:
    """The folder of real data beside the checkout; tests skip where there is none."""
    if not SHARED.is_dir():
        pytest.skip("needs the folder of real data beside the checkout")
    return SHARED
