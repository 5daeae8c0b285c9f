"""Structures that are far from all others: an energy in another unit, a force from a failed calculation.

They are named, not left out: `datamodule.max_force` does that. What is far is decided by the training set,
robustly, and holds for all sets. S structures.
"""

import logging
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from physicsml_ase.data.survey import Floats, Survey

log = logging.getLogger("physicsml_ase")

Mask = NDArray[np.bool_]

ENERGY_DEVIATIONS, LEAST_ENERGY = 20.0, 1.0
"""An energy is far from the median by this many median absolute deviations, and at least this [eV/atom]."""
FORCE_FACTOR, LEAST_FORCE = 50.0, 30.0
"""A force is extreme at this many times the RMS that 90 % of the structures keep below, and at least [eV/Å]."""
NAMED = 5


class Limits(NamedTuple):
    """What is still ordinary."""

    energy: float  # middle of the energies less their references [eV/atom]
    deviation: float  # from it [eV/atom]
    force: float  # [eV/Å]


class Outliers(NamedTuple):
    """Which structures are not ordinary, (S,)."""

    energy: Mask
    force: Mask


def residual_energy(survey: Survey, atomic_energies: Mapping[int, float]) -> Floats:
    """Energy less the reference energies [eV/atom], (S,); NaN where there is none and for isolated atoms."""
    shifts = np.array([atomic_energies.get(z, 0.0) for z in survey.elements])
    residual = (survey.column("energy") - survey.counts @ shifts) / survey.column("num_atoms")
    return np.where(survey.isolated, np.nan, residual)


def energy_limits(per_atom: Floats) -> tuple[float, float]:
    """Middle and largest ordinary distance from it of energies per atom [eV], (S,)."""
    known = per_atom[np.isfinite(per_atom)]
    if not len(known):
        return 0.0, np.inf
    middle = float(np.median(known))
    return middle, max(ENERGY_DEVIATIONS * float(np.median(np.abs(known - middle))), LEAST_ENERGY)


def find_limits(survey: Survey, residual: Floats) -> Limits:
    """What is ordinary among the surveyed structures."""
    square = survey.column("force_square")
    square = square[~survey.isolated & np.isfinite(square)]
    usual = float(np.sqrt(np.quantile(square, 0.9, method="lower"))) if len(square) else np.inf
    return Limits(*energy_limits(residual), max(FORCE_FACTOR * usual, LEAST_FORCE))


def find_outliers(survey: Survey, residual: Floats, limits: Limits) -> Outliers:
    """Structures beyond the limits, named aloud with their values, the worst first."""
    deviation = np.nan_to_num(residual - limits.energy)
    largest = np.nan_to_num(survey.column("force_max"))
    found = Outliers(np.abs(deviation) > limits.deviation, largest > limits.force)
    _warn(
        survey,
        found.energy,
        deviation,
        "an energy far from the others (another unit?)",
        "{:+.4g} eV/atom off",
    )
    _warn(survey, found.force, largest, "an extreme force (max_force leaves them out)", "{:.4g} eV/Å")
    return found


def _warn(survey: Survey, which: Mask, values: Floats, what: str, form: str) -> None:
    found = np.flatnonzero(which)
    if len(found):
        worst = found[np.argsort(-np.abs(values[found]), kind="stable")][:NAMED].tolist()
        named = "; ".join(f"{survey.where(k)}: {form.format(values[k])}" for k in worst)
        more = f"; and {len(found) - NAMED} more" if len(found) > NAMED else ""
        log.warning("%d with %s: %s%s", len(found), what, named, more)
