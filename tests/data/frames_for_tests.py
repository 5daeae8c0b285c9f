"""Labelled frames of every kind, and ways to compare graphs."""

import numpy as np
import torch
from ase import Atoms
from ase.build import molecule
from ase.calculators.singlepoint import SinglePointCalculator
from conftest import structures

from physicsml_ase.conventions import PROPERTIES, Label
from physicsml_ase.data.frames import Recipe
from physicsml_ase.data.sources import Source, open_source
from physicsml_ase.graph import Graph

LABELS = tuple(Label(n, PROPERTIES[n].level, PROPERTIES[n].shape, n) for n in ("energy", "forces", "stress"))
RECIPE = Recipe(cutoff=4.0, labels=LABELS)


def with_labels(atoms: Atoms, **results: object) -> Atoms:
    """A copy with results attached, as a file's reader would."""
    atoms = atoms.copy()
    atoms.calc = SinglePointCalculator(atoms, **results)
    return atoms


def every_kind() -> list[Atoms]:
    """One structure of each kind with labels made up; some without forces, some without energy."""
    rng = np.random.default_rng(0)
    frames = []
    for k, atoms in enumerate(structures().values()):
        results: dict[str, object] = {"energy": rng.normal(), "forces": rng.normal(size=(len(atoms), 3))}
        if k % 4 == 1:
            del results["energy"]
        if k % 4 == 2:
            del results["forces"]
        if atoms.pbc.all():
            results["stress"] = rng.normal(size=6)
        frames.append(with_labels(atoms, **results))
    return frames


def molecules(count: int, seed: int = 0) -> list[Atoms]:
    """Rattled molecules of several sizes; the energy is the frame's number, so that batches tell what is in them."""
    rng = np.random.default_rng(seed)
    names = ["H2O", "CH4", "C2H6", "CH3OH", "NH3"]
    frames = []
    for k in range(count):
        atoms = molecule(names[k % len(names)])
        atoms.positions += 0.05 * rng.normal(size=atoms.positions.shape)
        frames.append(with_labels(atoms, energy=float(k), forces=rng.normal(size=(len(atoms), 3))))
    return frames


def source_of(frames: list[Atoms]) -> Source:
    """The frames as a source."""
    return open_source(frames)


def numbers_in(graph: Graph) -> list[int]:
    """Which of `molecules` are in a batch."""
    return graph.targets["energy"].int().tolist()


def assert_same(a: Graph, b: Graph) -> None:
    """Bit for bit, NaN equal to NaN, and of the same types."""
    for name, x, y in zip(a._fields, a, b):
        pairs = [(x[k], y[k]) for k in x] if isinstance(x, dict) else [(x, y)]
        assert not isinstance(x, dict) or x.keys() == y.keys()
        for left, right in pairs:
            assert left.dtype == right.dtype, name
            assert torch.equal(left.nan_to_num(7e77), right.nan_to_num(7e77)), name
