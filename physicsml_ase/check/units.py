"""Units and signs of energies and forces against each other, from slopes that should be one."""

from typing import NamedTuple

import numpy as np
from ase.units import Bohr, Hartree, Rydberg, kcal, kJ, mol
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components

from physicsml_ase.check.energy_line import FEW, energy_line
from physicsml_ase.check.findings import Finding, Grade
from physicsml_ase.check.frame import Ints
from physicsml_ase.check.probe import Probe
from physicsml_ase.check.slopes import NOTHING, Slope, slope
from physicsml_ase.check.work import SAME_CELL, Guess, works

ORDINARY = 1.55
"""Slopes up to this factor from one are the fit's own error..."""
ORDINARY_BY_FIT = 1.75
"""The same where the fit is all there is, of crystals and of unlike molecules: it says little of what an even strain
does, or another composition..."""
FITTED, FITTED_UNLIKE = 0.6, 0.8
"""... and must correlate with the forces by this, of like molecules and of others."""
CLEAR = 1.35
"""... and both bounds of another must lie beyond this one."""
TOLERANCE = 1.3
"""A known ratio explains a slope within this factor."""
SURE, STRONG = 0.8, 0.95
"""Correlations from which a slope is believed, and from which it is beyond doubt."""
LINE = 0.97
"""Correlation of a line, to which the method that assumes the least is preferred."""
ERRORS, UNSURE = 3.0, 0.2
"""A slope is away from one by so many of its standard errors; one of the other sign has a smaller error than this."""
FREE, FREE_OF_RULE = 12, 8
"""Independent frames from which a fit to them, or none, is believed to tell of two of them."""
MANY = 30
UNRELATED, RELATED = 0.35, 0.9
"""Correlations below which energies have nothing to do with the forces, and from which on, by any line, they have."""
ENOUGH_PAIRS, ENOUGH_MOLECULES, ENOUGH_CELLS = 30, 20, 50
"""Pairs of near frames, or frames of a fit that follows the forces by GOOD_FIT, from which that is told, ..."""
GOOD_FIT = 0.9
LEAST = 1e-3
"""... of energies that differ by so much [eV/atom]."""
NEAREST = 300
"""Pairs of frames that are used, those with the least displacement."""
EXTREME = 5.0
"""A slope so far from one is nobody's physics."""

RATIOS: tuple[tuple[float, str], ...] = (
    (1 / Hartree, "energies in Hartree"),
    (1 / Rydberg, "energies in Rydberg"),
    (mol / kcal, "energies in kcal/mol"),
    (mol / kJ, "energies in kJ/mol"),
    (1 / Bohr, "forces in eV/Bohr, or energies in Hartree with forces in Hartree/Bohr"),
    (Bohr, "positions in Bohr"),
    (Hartree / Bohr, "forces in Hartree/Bohr"),
    (Rydberg / Bohr, "forces in Rydberg/Bohr"),
    (kcal / mol, "forces in kcal/mol/Å"),
    (kJ / mol, "forces in kJ/mol/Å"),
    (kJ / mol / 10, "forces in kJ/mol/nm"),
    (1e3, "energies in meV"),
    (1e-3, "forces in meV/Å"),
)
"""Change of the energy for one eV of the forces' work, and what makes it so."""


class Evidence(NamedTuple):
    """Slopes of labelled energies against what the labelled forces say, by how they were found."""

    by_pairs: Slope
    by_rule: Slope
    by_fit: Slope

    @property
    def best(self) -> tuple[Slope, str]:
        """The slope to believe, and how it was found: the nearest to a line, or the first that is one."""
        hows = (
            (self.by_pairs, "{} pairs of like frames"),
            (self.by_rule, "{} pairs of near frames"),
            (self.by_fit, "a fit to the forces of {} frames"),
        )
        good = [row for row in hows if row[0].points >= FEW and abs(row[0].correlation) >= SURE]
        if not good:
            return NOTHING, ""
        lines = [row for row in good if abs(row[0].correlation) >= LINE]
        found, how = lines[0] if lines else max(good, key=lambda row: abs(row[0].correlation))
        return found, how.format(found.points)


def energy_against_forces(fit: Probe) -> Evidence:
    """The slopes, each one where units and signs agree."""
    guesses = {f.index: Guess(e, forces) for f, e, forces in zip(fit.frames, fit.energy, fit.forces)}
    work = works(fit.frames, guesses)
    slopes = []
    for found in (work.forces, work.rule):
        same = np.flatnonzero((work.strain <= SAME_CELL) & np.isfinite(found))
        near = same[np.argsort(work.moved[same], kind="stable")][:NEAREST]
        free = _independent(work.frames[near])
        if free < (FREE if found is work.forces else FREE_OF_RULE):
            near = near[:0]
        slopes.append(slope(found[near] / work.size[near], work.energy[near] / work.size[near], True, free))
    return Evidence(slopes[0], slopes[1], energy_line(fit.rows).slope)


def judge(evidence: Evidence, fit: Probe) -> list[Finding]:
    """What the slopes say about energies and forces of the frames."""
    sizes = [len(frame.atoms) for frame in fit.frames]
    found, how = evidence.best
    ordinary, clear, own = ORDINARY, CLEAR, 0.0
    if found is evidence.by_fit:
        if fit.correlation < FITTED:
            return []
        if any(f.atoms.pbc.any() for f in fit.frames) or len({row.kind for row in fit.rows}) > 1:
            if found.free < FREE or fit.correlation < FITTED_UNLIKE:
                return []
            ordinary, own = ORDINARY_BY_FIT, float(np.sqrt(1 - fit.correlation**2)) / fit.correlation
    others = [s for s in evidence if s.points >= FEW and abs(s.correlation) >= SURE]
    middle = found.middle
    if not found.points:
        return []
    bounds = sorted((abs(found.low), abs(found.high)))
    if middle > 0 and bounds[0] < clear and bounds[1] > 1 / clear:
        return []
    if middle < 0 and found.error > UNSURE:
        return []
    unsure = np.linalg.norm([np.log(ordinary), ERRORS * found.error, own])
    if middle > 0 and abs(np.log(middle)) < unsure:
        return []
    if any(np.sign(s.middle) != np.sign(middle) for s in others):
        return []
    agree = sum(1 / ORDINARY < s.middle / middle < ORDINARY for s in others)
    certain = (
        (middle < 0 or not 1 / EXTREME < middle < EXTREME)
        and agree >= 2
        and agree == len(others)
        and abs(found.correlation) >= STRONG
        and found.points >= MANY
    )
    grade: Grade = "error" if certain else "warning"
    names = explanations(abs(middle), sizes)
    sign = "forces or energies have the wrong sign" if middle < 0 else ""
    if middle < 0 and 1 / ORDINARY < -middle < ORDINARY:
        names = []
    as_if = "; ".join(filter(None, [sign, *(f"as if {name}" for name in names[:3])]))
    return [
        Finding(
            grade,
            "forces-sign" if middle < 0 and not names else "energy-force-units",
            f"energies change by {middle:.3g} eV for each eV of work of the forces (r {found.correlation:.2f}, {how})"
            + (f": {as_if}" if as_if else ": energies and forces do not belong together"),
            "labels are in eV and eV/Å, forces are minus the gradient: correct the label that is wrong",
            evidence={"slope": middle, "low": bounds[0], "high": bounds[1], "correlation": found.correlation},
        )
    ]


def unrelated(evidence: Evidence, fit: Probe) -> list[Finding]:
    """What is said where energies do not follow the forces at all: by pairs of near frames, or else by the fit."""
    rule, by_fit = evidence.by_rule, evidence.by_fit
    enough = ENOUGH_CELLS if any(f.atoms.pbc.any() for f in fit.frames) else ENOUGH_MOLECULES
    found, how = NOTHING, ""
    if rule.points >= ENOUGH_PAIRS:
        found, how = rule, f"{rule.points} pairs of near frames"
    elif by_fit.points >= enough and fit.correlation >= GOOD_FIT:
        found, how = by_fit, f"a fit to the forces of {by_fit.points} frames"
    if any(line.points >= FEW and abs(line.correlation) >= RELATED for line in evidence):
        return []
    if not how or abs(found.correlation) >= UNRELATED or found.spread < LEAST:
        return []
    return [
        Finding(
            "warning",
            "energies-follow-nothing",
            f"energies do not follow from the forces (r {found.correlation:.2f}, {how})",
            "as if of other frames, or of states that positions do not tell (charge, spin, settings): compare them "
            "with the calculation's output",
            evidence={"correlation": found.correlation},
        )
    ]


def explanations(ratio: float, sizes: list[int]) -> list[str]:
    """What makes such a ratio, the nearest first."""
    known = list(RATIOS)
    if sizes and max(sizes) < 1.5 * min(sizes):
        known.append((1 / float(np.median(sizes)), "energies per atom"))
    away = [(abs(float(np.log(ratio / r))), name) for r, name in known]
    return [name for distance, name in sorted(away) if distance < np.log(TOLERANCE)]


def _independent(pairs: Ints) -> int:
    """Of pairs of frames (P, 2): the frames, but for one of each group that the pairs connect."""
    frames, of = np.unique(pairs, return_inverse=True)
    of = of.reshape(-1, 2)
    links = coo_matrix((np.ones(len(of)), of.T), (len(frames), len(frames)))
    return len(frames) - int(connected_components(links)[0]) if len(frames) else 0
