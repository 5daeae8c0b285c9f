"""Whether the forces belong to the atoms: all of them, or those of some frames, against a fit to the rest."""

from collections.abc import Sequence

import numpy as np

from physicsml_ase.check.findings import Finding, Places
from physicsml_ase.check.probe import Probe, Row

NONE = 0.2
"""Correlation of all labelled forces with those of a fit below which they follow nothing."""
FRAMES = 8
"""Frames from which on a fit tells anything of forces."""
ENOUGH = 600
"""Force components from which a lack of correlation means something."""
GOOD, BAD = 0.8, 0.3
"""Correlations of a frame's forces that follow from the positions, and of those that do not..."""
SOME = 0.25
"""... which is said where at least this part of the frames follow."""
FACTOR = 6.0
"""Forces of a frame are in another unit at so many times what the other frames let expect."""
FEWEST = 8
"""Atoms of a frame that is judged by itself; in smaller ones symmetry leaves too few free components."""
SIZABLE = 0.3
"""Part of the median RMS from which the direction of a frame's forces is judged."""
UNLIKE, UNKNOWN = 2.0, 0.5
"""Of a frame that the fit knows less of than of others by this factor, or by so much, nothing is said."""
LEAST_FORCE = 0.1
"""RMS component [eV/Å] of forces that a fit is able to follow."""


def follow_nothing(fit: Probe) -> list[Finding]:
    """What is said where forces and positions have nothing to do with each other."""
    typical = float(np.median([row.rms for row in fit.rows]))
    components = 3 * sum(row.atoms for row in fit.rows)
    if fit.correlation >= NONE or typical < LEAST_FORCE or len(fit.rows) < FRAMES or components < ENOUGH:
        return []
    return [
        Finding(
            "warning",
            "forces-follow-nothing",
            f"forces do not follow from the positions (r {fit.correlation:.2f} for a fit to {len(fit.rows)} frames)",
            "as if in another order of the atoms or of the frames: compare them with the calculation's output",
            evidence={"correlation": fit.correlation},
        )
    ]


def strange(rows: Sequence[Row]) -> list[Finding]:
    """Single frames whose forces are of another size than the fit says, or point elsewhere."""
    typical = float(np.median([row.rms for row in rows])) if rows else 0.0
    judged = [row for row in rows if row.atoms >= FEWEST and row.rms > 1e-3]
    if typical < LEAST_FORCE or len(judged) < FRAMES:
        return []
    return _scaled([row for row in judged if row.follow > GOOD]) + _elsewhere(
        [row for row in judged if row.rms > max(SIZABLE * typical, LEAST_FORCE)]
    )


def _scaled(rows: list[Row]) -> list[Finding]:
    """Frames whose forces point where they should, but are of another size."""
    if len(rows) < 6:
        return []
    usual = float(np.quantile([row.scale for row in rows], 0.4))
    places = Places()
    for row in rows:
        if not usual / FACTOR < row.scale < usual * FACTOR:
            places.put(row.set_, row.index, row.where, f"{row.scale / usual:.3g} times")
    return places.finding(
        "warning",
        "forces-of-another-size",
        "{n} with forces of another size than in like frames",
        "of another unit or a failed calculation: look at them",
    )


def _elsewhere(rows: list[Row]) -> list[Finding]:
    """Frames whose forces follow nothing, where others' do."""
    good = [row.doubt for row in rows if row.follow > GOOD]
    if len(good) < max(3, SOME * len(rows)):
        return []
    most = min(UNLIKE * float(np.median(good)), UNKNOWN)
    places = Places()
    for row in sorted(rows, key=lambda row: row.follow):
        if row.follow < BAD and row.doubt < most:
            places.put(row.set_, row.index, row.where, f"r {row.follow:.2f}")
    return places.finding(
        "warning",
        "forces-of-other-atoms",
        "{n} with forces that do not follow from the positions, as the others' do",
        "rows of other atoms or frames, the wrong sign, or a failed calculation: look at them",
    )
