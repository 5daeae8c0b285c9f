"""Reference energies: what an atom of each element contributes to the energy before anything is learned.

Isolated atoms in the data decide for their elements; for the others, least squares over compositions does. It
is robust (least absolute deviations, then least squares over the inliers), so that a frame in another unit
does not shift everything; where compositions do not tell elements apart, the elements stay as near to their
common mean as they can.
S structures, Z elements.
"""

import logging
from collections.abc import Iterable, Mapping
from typing import Literal, NamedTuple

import numpy as np
from ase.data import atomic_numbers, chemical_symbols
from numpy.typing import NDArray

from physicsml_ase.conventions import InputError
from physicsml_ase.data.outliers import energy_limits

log = logging.getLogger("physicsml_ase")

Floats = NDArray[np.float64]
Mask = NDArray[np.bool_]
Wanted = Mapping[str, float] | Literal["isolated_atoms", "least_squares"] | None
"""Energies by symbol [eV], or where to take them from."""

ENOUGH = 50_000
"""Of more structures than this, every second, third, ... is fitted."""
DEGENERATE = 1e-6
"""Directions of composition space with a smaller relative singular value are not fitted."""


class References(NamedTuple):
    """Reference energies [eV] by atomic number, and how they were found."""

    energies: dict[int, float]
    how: str


def reference_energies(
    elements: tuple[int, ...],
    counts: Floats,
    energy: Floats,
    isolated: Mask,
    wanted: Wanted = None,
) -> References:
    """References as `wanted`; by default from isolated atoms in the data, of other elements by least squares.

    `counts` (S, Z) are atoms of each element, `energy` (S,) [eV] is NaN where missing, `isolated` (S,) are
    single atoms without neighbours.
    """
    if wanted is not None and not isinstance(wanted, str):
        return References(_given(elements, wanted), "as given")
    known = np.isfinite(energy)
    single = isolated_energies(elements, counts, energy, isolated)
    if wanted == "isolated_atoms" and (lacking := set(elements) - set(single)):
        raise InputError(
            "reference_energies=isolated_atoms: the training data have no isolated "
            f"{_symbols(lacking)} with an energy"
        )
    fitted = known & ~isolated
    if wanted == "least_squares":  # but for elements that only isolated atoms have
        single = {z: e for z, e in single.items() if not counts[fitted, elements.index(z)].any()}
    others = [k for k, z in enumerate(elements) if z not in single]
    if not others:
        return References(single, "from isolated atoms in the data")
    of_single = counts @ np.array([single.get(z, 0.0) for z in elements])
    chosen = np.flatnonzero(fitted & (counts[:, others].sum(1) > 0))
    chosen = chosen[:: max(1, -(-len(chosen) // ENOUGH))]
    of_others, rest = counts[chosen][:, others], (energy - of_single)[chosen]
    how = _by_fit(of_others)
    solution = robust_fit(of_others, rest) if len(chosen) else np.zeros(len(others))
    energies = single | dict(zip([elements[k] for k in others], solution.tolist()))
    if single:
        how = f"of {_symbols(single)} from isolated atoms in the data, of the others {how}"
    return References({z: energies[z] for z in elements}, how)


def isolated_energies(
    elements: tuple[int, ...], counts: Floats, energy: Floats, isolated: Mask
) -> dict[int, float]:
    """Energies of isolated atoms [eV] by atomic number, of those elements that have them."""
    known = np.isfinite(energy) & isolated
    return {
        z: float(np.median(energy[rows]))
        for k, z in enumerate(elements)
        if (rows := known & (counts[:, k] > 0)).any()
    }


def in_words(energies: Mapping[int, float]) -> str:
    """'H -13.6 eV, O -2041.4 eV'"""
    return ", ".join(f"{chemical_symbols[z]} {energy:.6g} eV" for z, energy in energies.items())


def _given(elements: tuple[int, ...], given: Mapping[str, float]) -> dict[int, float]:
    by_number = {}
    for name, energy in given.items():
        number = int(name) if str(name).isdigit() else atomic_numbers.get(name)
        if number is None:
            raise InputError(f"reference_energies: {name!r} is no chemical element; write H, C, O, ...")
        by_number[number] = float(energy)
    lacking = [chemical_symbols[z] for z in elements if z not in by_number]
    if lacking:
        raise InputError(
            f"reference_energies: no energy is given for {', '.join(lacking)}, which the data contain"
        )
    return {z: by_number[z] for z in elements}


def _symbols(elements: Iterable[int]) -> str:
    return ", ".join(chemical_symbols[z] for z in sorted(elements))


def _by_fit(counts: Floats) -> str:
    """How energies are fitted to compositions (S, Z), with a warning where these do not determine them."""
    if not len(counts):
        return "zero, for want of energies"
    how = f"by least squares over {len(counts)} structures"
    fractions = counts / counts.sum(1, keepdims=True)
    sizes = np.linalg.svd(fractions, compute_uv=False)
    if (sizes > DEGENERATE * sizes[0]).sum() == counts.shape[1]:
        return how
    log.warning(
        "the compositions do not tell the elements' energies apart: energies are comparable only within these "
        "compositions; give reference_energies"
    )
    return f"{how}, whose compositions do not tell the elements' energies apart"


def robust_fit(counts: Floats, energy: Floats) -> Floats:
    """Energy of each element, (Z,), from compositions (S, Z) and energies (S,)."""
    sizes = counts.sum(1)
    fractions, per_atom = counts / sizes[:, None], energy / sizes
    weights = np.ones(len(energy))
    solution = _least_squares(fractions, per_atom, weights)
    for _ in range(50):
        residual = np.abs(per_atom - fractions @ solution)
        floor = max(1e-3 * float(np.median(residual)), 1e-9)
        weights = 1 / np.maximum(residual, floor)
        weights /= weights.max()
        before, solution = solution, _least_squares(fractions, per_atom, weights)
        if np.abs(solution - before).max() < 1e-6:
            break
    residual = per_atom - fractions @ solution
    middle, limit = energy_limits(residual)
    return _least_squares(fractions, per_atom, (np.abs(residual - middle) <= limit).astype(np.float64))


def _least_squares(fractions: Floats, per_atom: Floats, weights: Floats) -> Floats:
    """The weighted solution nearest to the same energy for every element."""
    mean = float(np.average(per_atom, weights=weights))
    root = np.sqrt(weights)
    deviation = np.linalg.lstsq(fractions * root[:, None], (per_atom - mean) * root, rcond=DEGENERATE)[0]
    return np.asarray(mean + deviation, dtype=np.float64)
