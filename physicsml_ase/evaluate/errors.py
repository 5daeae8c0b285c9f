"""Errors of one quantity, summed as batches come: in all, by element and by group of structures.

Missing values are NaN in the reference and are not counted. R rows (structures, atoms or edges) of C
components, S structures, N atoms.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from ase.data import chemical_symbols
from numpy.typing import NDArray

from physicsml_ase.conventions import Level

Array = NDArray[np.float64]
Ints = NDArray[np.int64]
KEPT = 20_000
"""Pairs of numbers that are kept for the plots, at most twice as many."""


class Owners(NamedTuple):
    """Whose the rows of a batch are."""

    structure: Ints  # (R,) within the batch
    element: Ints | None  # (R,) atomic numbers, where the rows are atoms


class Quantity:
    """Running MAE and RMSE of one quantity, and a fair sample of pairs for its parity plot."""

    def __init__(self, name: str, level: Level, unit: str) -> None:
        self.name, self.level, self.unit = name, level, unit
        self.total = np.zeros(3)  # number of values, sum of |error|, sum of error^2
        self.elements = np.zeros((len(chemical_symbols), 3))
        self.groups: dict[str, Array] = {}
        self.structures = 0
        """Structures with at least one value."""
        self.missing = 0
        """Structures without any."""
        self.sample = Sample()

    def add(
        self,
        prediction: Array,
        reference: Array,
        owners: Owners,
        groups: Sequence[str],
        shift: Array | None = None,
    ) -> None:
        """Count a batch in: both (R, C), and the group of each structure (S,), "" for none.

        `shift` (R,) is taken from both sides of the pairs that are kept for the plot.
        """
        error = prediction - reference
        present = np.isfinite(error)
        error = np.where(present, error, 0.0)
        rows = np.stack([present.sum(1), np.abs(error).sum(1), np.square(error).sum(1)], axis=1)  # (R, 3)
        self.total += rows.sum(0)
        by_structure = np.zeros((len(groups), 3))
        np.add.at(by_structure, owners.structure, rows)
        here = by_structure[:, 0] > 0
        self.structures += int(here.sum())
        self.missing += int((~here).sum())
        for group in sorted({g for g, has in zip(groups, here) if g and has}):
            chosen = np.array([g == group for g in groups])
            self.groups[group] = self.groups.get(group, np.zeros(3)) + by_structure[chosen].sum(0)
        if owners.element is not None:
            np.add.at(self.elements, owners.element, rows)
        moved = np.zeros(len(error)) if shift is None else shift
        self.sample.add(
            (reference - moved[:, None])[present],
            (prediction - moved[:, None])[present],
            np.repeat(np.array(groups, dtype=object)[owners.structure], present.sum(1)),
        )

    def errors(self) -> dict[str, float]:
        """{"<name>_rmse", "<name>_mae"}, empty where there was nothing to compare with."""
        return in_words(self.name, self.total)

    def by_element(self) -> dict[str, dict[str, float]]:
        """Errors of each element's atoms, by symbol."""
        present = np.flatnonzero(self.elements[:, 0])
        return {chemical_symbols[z]: in_words(self.name, self.elements[z]) for z in present}

    def by_group(self) -> dict[str, dict[str, float]]:
        """Errors of each group of structures."""
        return {group: in_words(self.name, sums) for group, sums in sorted(self.groups.items())}


def in_words(name: str, sums: Array) -> dict[str, float]:
    """Errors from a number of values, a sum of |error| and a sum of error^2."""
    count, absolute, square = sums.tolist()
    if not count:
        return {}
    return {f"{name}_rmse": (square / count) ** 0.5, f"{name}_mae": absolute / count}


class Sample:
    """Every pair while they are few, then every second, fourth, ...: bounded, and fair to the whole set."""

    def __init__(self) -> None:
        self.stride = 1
        self.seen = 0
        self.parts: list[tuple[Array, Array, NDArray[np.object_]]] = []
        self.kept = 0

    def add(self, reference: Array, prediction: Array, group: NDArray[np.object_]) -> None:
        """Add pairs (K,) and the group of each."""
        chosen = slice(-self.seen % self.stride, None, self.stride)
        self.seen += len(reference)
        self.parts.append((reference[chosen], prediction[chosen], group[chosen]))
        self.kept += len(self.parts[-1][0])
        while self.kept > 2 * KEPT:
            reference, prediction, group = self.pairs()
            # places 0, stride, 2 stride, ... are held: every second of them is a multiple of the new stride
            self.parts = [(reference[::2], prediction[::2], group[::2])]
            self.kept = len(self.parts[0][0])
            self.stride *= 2

    def pairs(self) -> tuple[Array, Array, NDArray[np.object_]]:
        """Reference, prediction and group of every pair that was kept."""
        if not self.parts:
            return np.zeros(0), np.zeros(0), np.zeros(0, dtype=object)
        reference, prediction, group = (np.concatenate(column) for column in zip(*self.parts))
        return reference, prediction, group
