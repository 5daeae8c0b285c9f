"""Energies of the labels against those of a fit to the forces: of all frames, and of those that are far from it.

What compositions explain is taken out of both first, and of crystals what the density does: forces say little of
what an even strain does. S frames, Z elements.
"""

from collections.abc import Collection, Sequence
from typing import NamedTuple

import numpy as np

from physicsml_ase.check.findings import Finding, Places
from physicsml_ase.check.frame import Floats
from physicsml_ase.check.probe import Row
from physicsml_ase.check.slopes import NOTHING, Slope, slope

FEW = 8
"""Points that make a line."""
SURE, ENOUGH = 0.9, 40
"""Correlation and number of frames from which single ones are judged."""
DEVIATIONS, SPREADS, LEAST = 30.0, 5.0, 0.05
"""An energy is far from the line by so many median distances from it, so many times the energies' own spread, and at
least by this [eV/atom]..."""
UNLIKE, FOLLOWS, STRONGER = 2.0, 0.8, 3.0
"""... where the fit knows of the frame no less than of others by this factor, and where its forces are like theirs:
they correlate with the fit's by this, and are less than so many times the usual. Of a bond that is pulled far no fit
knows the energy."""
FEWEST = 8
"""Atoms of a frame that is judged among unlike ones: forces of fewer are like the fit's too easily."""
MOST = 0.2
"""Part of the frames that may be far: of more, something else is wrong."""


class Line(NamedTuple):
    """Energies per atom of the frames that have one, without what compositions explain."""

    rows: list[Row]  # (S,)
    label: Floats  # (S,)
    predicted: Floats  # (S,)
    slope: Slope


def energy_line(rows: Sequence[Row]) -> Line:
    """Labelled against predicted energies, where the compositions leave something to compare."""
    known = [row for row in rows if np.isfinite(row.per_atom.label)]
    if not known or len(known) < FEW + len(known[0].per_atom.fractions):
        return Line([], np.zeros(0), np.zeros(0), NOTHING)
    x = np.array([row.per_atom.fractions for row in known])
    if all(row.per_atom.periodic for row in rows):
        density = np.array([[*row.per_atom.near, row.per_atom.volume] for row in known])
        density = (density - density.mean(0)) / (density.std(0) + 1e-9)
        x = np.concatenate([x, density, density[:, -1:] ** 2], axis=1)
    label = _unexplained(np.array([row.per_atom.label for row in known]), x)
    predicted = _unexplained(np.array([row.per_atom.predicted for row in known]), x)
    free = len(x) - int(np.linalg.matrix_rank(x, tol=1e-6 * len(x)))
    return Line(known, label, predicted, slope(predicted, label, free=free))


def _unexplained(values: Floats, x: Floats) -> Floats:
    """What the best sum over the columns of `x` leaves of the values (S,)."""
    weights = np.ones(len(x))
    for _ in range(8):  # towards least absolute deviations: a wrong frame must not tilt it
        root = np.sqrt(weights)
        middle = float(np.average(values, weights=weights))
        solution = np.linalg.lstsq(x * root[:, None], (values - middle) * root, rcond=1e-6)[0]
        rest = values - middle - x @ solution
        weights = 1 / np.maximum(np.abs(rest), 1e-3 * np.median(np.abs(rest)) + 1e-12)
        weights /= weights.max()
    return np.asarray(rest)


def stray_energies(rows: Sequence[Row], named: Collection[int]) -> list[Finding]:
    """Single frames, of others than those `named` already, whose energy is not what their forces let expect."""
    line = energy_line(rows)
    if len(line.rows) < ENOUGH or line.slope.correlation < SURE:
        return []
    x, y = line.predicted - np.median(line.predicted), line.label - np.median(line.label)
    away = y - line.slope.middle * x
    away -= np.median(away)
    limit = max(DEVIATIONS * float(np.median(np.abs(away))), SPREADS * line.slope.spread, LEAST)
    far = np.flatnonzero(np.abs(away) > limit)
    most = UNLIKE * float(np.median([row.doubt for row in line.rows]))
    usual = float(np.median([row.rms for row in line.rows]))
    of_one_kind = len({row.kind for row in line.rows}) == 1
    places = Places()
    for k in far[np.argsort(-np.abs(away[far]), kind="stable")].tolist():
        row = line.rows[k]
        alike = row.doubt < most and row.follow > FOLLOWS and row.rms < STRONGER * usual
        if alike and (of_one_kind or row.atoms >= FEWEST) and row.index not in named:
            places.put(row.set_, row.index, row.where, f"{away[k]:+.3g} eV/atom")
    if len(far) > MOST * len(away):
        return []
    return places.finding(
        "warning",
        "stray-energies",
        "{n} with an energy that does not follow from the forces, as the others' do",
        "failed or unconverged calculations, another method or state: look at them",
        limit=limit,
    )
