"""Energy differences against the work of the labels' own forces and stresses: no model, only the trapezoid rule.

Between two frames of the same atoms, E2 - E1 is nearly -1/2 sum (F1 + F2).dx + 1/2 (V1 s1 + V2 s2):strain, an
error of third order in the displacement; the slope of one against the other is the ratio of their units.
Molecules are turned onto each other first (Kabsch 1976). N atoms, P pairs of frames.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from physicsml_ase.check.frame import Floats, Frame, Ints

SAME_CELL = 1e-3
"""Cells are one if no lattice vector's component changes by more than this part."""
MOST_STRAIN = 0.06
MOST_DISPLACED = 0.6
"""Largest displacement of an atom [Å] over which the trapezoid rule is trusted."""
MOST_DISPLACED_GUESSED = 2.0
"""The same with the help of a fit."""
GROUP = 24
"""Later frames of its kind that a frame is compared with."""


class Guess(NamedTuple):
    """A fit's energy and forces (N, 3) of a frame, in the unit of the forces' labels."""

    energy: float
    forces: Floats
    known: bool = True


NO_GUESS = Guess(0.0, np.zeros((1, 3)), known=False)


class Work(NamedTuple):
    """Of P pairs of frames, per pair."""

    energy: Floats  # E2 - E1, (P,)
    forces: Floats  # work against the forces, with the help of a fit where there is one, (P,)
    rule: Floats  # the same without help, NaN where the frames are too far from each other, (P,)
    stress: Floats  # work against the stress per component, (P, 6), NaN without one
    strain: Floats  # largest component, (P,)
    moved: Floats  # largest displacement of an atom [Å], (P,)
    size: Floats  # atoms, (P,)
    frames: Ints  # numbers of the two in their set, (P, 2)


def works(frames: Sequence[Frame], guessed: Mapping[int, Guess] | None = None) -> Work:
    """All pairs of comparable frames, near ones only.

    With a fit's guesses by frame number, the rule is needed for the difference between labels and fit only,
    which reaches much further.
    """
    rows = [row for group in _groups(frames) for row in _pairs(group, guessed)]
    table = np.array(rows) if rows else np.empty((0, 14))
    energy, helped, rule = table.T[:3]
    two = table[:, 12:].astype(np.int64)
    return Work(energy, helped, rule, table[:, 3:9], table[:, 9], table[:, 10], table[:, 11], two)


def _groups(frames: Sequence[Frame]) -> Iterator[list[Frame]]:
    """Frames of the same atoms in the same order, with energy and forces."""
    found: dict[bytes, list[Frame]] = {}
    for frame in frames:
        if frame.forces is not None and np.isfinite(frame.energy) and len(frame.atoms) > 1:
            key = frame.atoms.numbers.tobytes() + frame.atoms.pbc.tobytes()
            found.setdefault(key, []).append(frame)
    return (group for group in found.values() if len(group) > 1)


def _pairs(group: list[Frame], guessed: Mapping[int, Guess] | None) -> Iterator[list[float]]:
    for a, first in enumerate(group):
        for second in group[a + 1 : a + 1 + GROUP]:
            if guessed is None:
                row = _pair(first, second, NO_GUESS, NO_GUESS)
            else:
                row = _pair(first, second, guessed[first.index], guessed[second.index])
            if row is not None:
                yield [*row, first.index, second.index]


def _pair(first: Frame, second: Frame, guess1: Guess, guess2: Guess) -> list[float] | None:
    """One row of `works`, None where the frames are far from each other."""
    assert first.forces is not None
    assert second.forces is not None
    x1, x2 = first.atoms.positions, second.atoms.positions
    f1, f2 = first.forces, second.forces
    g1, g2 = guess1.forces, guess2.forces
    strain, stress_work = np.zeros((3, 3)), np.zeros(6)
    pbc = first.atoms.pbc
    if pbc.any():
        h1, h2 = first.atoms.cell.array, second.atoms.cell.array
        if np.abs(h1 - h2).max() > 2 * MOST_STRAIN * np.abs(h1).max() or np.linalg.matrix_rank(h1) < 3:
            return None
        deformation = np.linalg.solve(h1, h2)
        strain = (deformation + deformation.T) / 2 - np.eye(3)
        if np.abs(strain).max() > MOST_STRAIN:
            return None
        ds = np.linalg.solve(h2.T, x2.T).T - np.linalg.solve(h1.T, x1.T).T
        ds[:, pbc] -= np.round(ds[:, pbc])
        drift = ds - ds[:1]
        drift[:, pbc] -= np.round(drift[:, pbc])
        ds = drift - drift.mean(0)  # a translation of all does no work
        dx = ds @ (h1 + h2) / 2
        known = guess1.known or (first.stress is not None and second.stress is not None)
        if np.abs(strain).max() > SAME_CELL and not known:
            return None
        if first.stress is not None and second.stress is not None:
            v1, v2 = abs(np.linalg.det(h1)), abs(np.linalg.det(h2))
            voigt = [(0, 0), (1, 1), (2, 2), (1, 2), (0, 2), (0, 1)]
            mean = (v1 * first.stress + v2 * second.stress) / 2
            stress_work = np.array([mean[i, j] * strain[i, j] * (1 if i == j else 2) for i, j in voigt])
    else:
        x1, x2 = x1 - x1.mean(0), x2 - x2.mean(0)
        u, _, vt = np.linalg.svd(x2.T @ x1)
        turn = u @ np.diag([1, 1, np.sign(np.linalg.det(u @ vt))]) @ vt
        dx, f2, g2 = x2 @ turn - x1, f2 @ turn, g2 @ turn
    moved = float(np.linalg.norm(dx, axis=1).max())
    if moved > (MOST_DISPLACED_GUESSED if guess1.known else MOST_DISPLACED):
        return None
    by_rule = -0.5 * float(((f1 + f2) * dx).sum())
    helped = by_rule + 0.5 * float(((g1 + g2) * dx).sum()) + guess2.energy - guess1.energy
    energy = second.energy - first.energy
    by_rule = by_rule if moved <= MOST_DISPLACED else float("nan")
    return [energy, helped, by_rule, *stress_work, float(np.abs(strain).max()), moved, float(len(x1))]
