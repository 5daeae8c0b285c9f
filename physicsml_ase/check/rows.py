"""Whether the forces belong to the atoms: all of them, or those of some frames, against a fit to the rest."""

import numpy as np

from physicsml_ase.check.findings import Finding, Places
from physicsml_ase.check.probe import Probe

NONE, SOME = 0.2, 0.5
"""Correlations of labelled forces with those of a fit: below the first they follow nothing, above the second most
frames do, and single ones can be told."""
ENOUGH = 600
"""Force components from which a lack of correlation means something."""
FACTOR = 6.0
"""Forces of a frame are in another unit at so many times what the other frames let expect."""
FEWEST = 8
"""Atoms of a frame that is judged by itself; in smaller ones symmetry leaves too few free components."""
LEAST_FORCE = 0.1
"""RMS component [eV/Å] of forces that a fit is able to follow."""


def follows(fit: Probe) -> list[Finding]:
    """Findings of the fit's forces against the labels."""
    sizes = np.array([3 * len(f.atoms) for f in fit.frames])
    rms = np.sqrt(fit.label_square / sizes)
    typical = float(np.median(rms))
    if typical < LEAST_FORCE or len(rms) < 6:
        return []
    if fit.correlation < NONE:
        if sizes.sum() < ENOUGH:
            return []
        return [
            Finding(
                "warning",
                "forces-follow-nothing",
                f"forces do not follow from the positions (r {fit.correlation:.2f} for a fit to {len(rms)} frames)",
                "as if in another order of the atoms or of the frames: compare them with the calculation's output",
                evidence={"correlation": fit.correlation},
            )
        ]
    if fit.correlation < SOME:
        return []
    return _scaled(fit, rms) + _strange(fit, rms, typical)


def _scaled(fit: Probe, rms: np.ndarray) -> list[Finding]:
    """Frames whose forces point where they should, but are of another size."""
    follow = fit.overlap / np.sqrt(fit.predicted_square * fit.label_square + 1e-300)
    scale = fit.overlap / (fit.predicted_square + 1e-300)
    judged = (follow > 0.8) & (rms > 1e-3) & _large(fit)
    if judged.sum() < 6:
        return []
    usual = float(np.quantile(scale[judged], 0.4))
    places = Places()
    for k in np.flatnonzero(judged & ((scale > FACTOR * usual) | (scale < usual / FACTOR))).tolist():
        frame = fit.frames[k]
        places.add(frame, f"{scale[k] / usual:.3g} times")
    return places.finding(
        "warning",
        "forces-of-another-size",
        "{n} with forces of another size than in like frames",
        "of another unit or a failed calculation: look at them",
    )


def _strange(fit: Probe, rms: np.ndarray, typical: float) -> list[Finding]:
    """Frames whose forces follow nothing, where the other frames' do."""
    follow = fit.overlap / np.sqrt(fit.predicted_square * fit.label_square + 1e-300)
    if np.quantile(follow, 0.6) < 0.8:
        return []
    places = Places()
    for k in np.flatnonzero((follow < 0.3) & (rms > 0.7 * typical) & _large(fit)).tolist():
        places.add(fit.frames[k], f"r {follow[k]:.2f}")
    return places.finding(
        "warning",
        "forces-of-other-atoms",
        "{n} with forces that do not follow from the positions, as the others' do",
        "rows of other atoms or frames, the wrong sign, or a failed calculation: look at them",
    )


def _large(fit: Probe) -> np.ndarray:
    """Frames of enough atoms."""
    return np.array([len(f.atoms) >= FEWEST for f in fit.frames])
