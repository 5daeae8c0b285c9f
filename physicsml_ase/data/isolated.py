"""Whether isolated atoms go with the structures: those of another unit or method do not.

S structures, Z elements.
"""

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from physicsml_ase.data.references import DEGENERATE, Floats, robust_fit

COHESION = (-15.0, 3.0)
"""Energies of an atom in a structure beyond that of the isolated atom [eV] which occur, ..."""
OF_HYDROGEN = -9.0
"""... and the lowest of hydrogen, which has one electron to bind with."""
BEYOND_COMPOSITION = 0.3
"""By how much energies of structures differ at least from a sum over elements [eV/atom], and how many ..."""
ERRORS = 2.0
"""... standard errors of such a sum's terms are allowed for."""
JUDGED_BY = 5000
"""Structures at most by which isolated atoms are judged."""


class Doubt(NamedTuple):
    """Isolated atoms whose energies do not go with those of structures."""

    elements: tuple[int, ...]
    """One, where the compositions tell it apart from the others; else all that have isolated atoms."""
    cohesion: float
    """Energy of such an atom in structures beyond that of the isolated one [eV], on average."""


def doubtful_atoms(
    elements: tuple[int, ...], counts: Floats, energy: Floats, single: Mapping[int, float]
) -> list[Doubt]:
    """Which energies of isolated atoms, `single`, are none that atoms could bind from in these structures.

    `counts` (S, Z) and `energy` (S,) are of structures that are no isolated atoms, all with an energy. Each
    element is judged by itself, by a sum over elements fitted to the structures, as far as that determines it;
    where it finds none, all together.
    """
    step = max(1, -(-len(energy) // JUDGED_BY))
    counts, energy = counts[::step], energy[::step]
    there = np.flatnonzero((counts > 0).any(0))
    elements, counts = tuple(elements[k] for k in there), counts[:, there]
    if not set(elements) & set(single):
        return []
    fractions, per_atom = counts / counts.sum(1, keepdims=True), energy / counts.sum(1)
    fitted = robust_fit(counts, energy)
    spread = 1.4826 * float(np.median(np.abs(per_atom - fractions @ fitted)))
    errors = max(spread, BEYOND_COMPOSITION) * _leverage(fractions)
    lowest = np.array([OF_HYDROGEN if z == 1 else COHESION[0] for z in elements])
    doubts = [
        Doubt((z,), cohesion)
        for z, solution, low, error in zip(elements, fitted.tolist(), lowest, errors)
        if z in single
        and not low - ERRORS * error <= (cohesion := solution - single[z]) <= COHESION[1] + ERRORS * error
    ]
    alone = np.array([single.get(z, np.nan) for z in elements])
    whole = ~counts[:, np.isnan(alone)].any(1)  # of elements alone that have isolated atoms
    if doubts or not whole.any():
        return doubts
    beyond = per_atom[whole] - fractions[whole] @ np.nan_to_num(alone)
    cohesion = float(np.median(beyond))
    if float(np.median(fractions[whole] @ lowest)) <= cohesion <= COHESION[1]:
        return []
    return [Doubt(tuple(z for z, n in zip(elements, counts[whole].sum(0)) if n), cohesion)]


def _leverage(fractions: Floats) -> Floats:
    """Standard error of each element's fitted energy, (Z,), for one of 1 in the mean of each composition.

    Infinite for elements that the compositions, the rows of (S, Z), do not tell apart.
    """
    _, sizes, directions = np.linalg.svd(np.unique(fractions.round(9), axis=0), full_matrices=False)
    fitted = sizes > DEGENERATE * sizes[0]
    sizes, directions = sizes[fitted], directions[fitted]
    told = 1 - (directions**2).sum(0) < DEGENERATE
    return np.where(told, np.sqrt(((directions / sizes[:, None]) ** 2).sum(0)), np.inf)
