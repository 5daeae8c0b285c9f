"""What a model is told about its data, the `Domain`, from a survey of the training set.

Isolated atoms teach the reference energies; scales and the mean number of neighbours are those of the other
structures. A structure in the wrong unit must not change them. S structures.
"""

import logging
from typing import NamedTuple

import numpy as np
from ase.data import chemical_symbols

from physicsml_ase.conventions import InputError
from physicsml_ase.data.frames import Recipe
from physicsml_ase.data.isolated import doubtful_atoms
from physicsml_ase.data.outliers import Limits, find_limits, find_outliers, residual_energy
from physicsml_ase.data.references import Wanted, in_words, isolated_energies, reference_energies
from physicsml_ase.data.survey import Floats, Survey
from physicsml_ase.domain import Domain

log = logging.getLogger("physicsml_ase")

ROUNDING = 1e-9
"""Of the mean: smaller deviations are those of a constant."""
SMALLEST_SCALE = 1e-4
"""Scales below this [eV] say nothing: all forces are zero, or there is only one structure."""


USUAL_NEIGHBORS = (8, 80)
"""Mean numbers of neighbours between which a cut-off needs no remark."""
ALL = 0.9
"""Part of the other atoms of its structure that are nearly all, as neighbours of an atom."""


class Statistics(NamedTuple):
    """A domain and how it came about."""

    domain: Domain
    reference_method: str
    limits: Limits
    """Beyond which a structure of any set is an outlier."""


def resolve_domain(survey: Survey, recipe: Recipe, references_wanted: Wanted = None) -> Statistics:
    """The domain of surveyed training data, said aloud.

    Raises `InputError` where there is nothing to learn from.
    """
    isolated = survey.isolated
    if isolated.all():
        raise InputError(
            f"nothing to learn from {survey.sources[0].name}: no atom has a neighbour within "
            f"{recipe.cutoff:g} Å, there are only isolated atoms; add molecules or crystals"
        )
    num_atoms = survey.column("num_atoms")[~isolated]
    neighbors = float(survey.column("num_neighbors")[~isolated].sum() / num_atoms.sum())
    if not neighbors:
        log.warning(
            "no atom has a neighbour within %g Å: only reference energies can be learned", recipe.cutoff
        )
    references = reference_energies(
        survey.elements, survey.counts, survey.column("energy"), isolated, references_wanted
    )
    if references_wanted in (None, "isolated_atoms"):
        _doubt_isolated_atoms(survey)
    residual = residual_energy(survey, references.energies)
    limits = find_limits(survey, residual)
    outliers = find_outliers(survey, residual, limits)
    force_square = survey.column("force_square")[~isolated & ~outliers.force]
    scale = _scale(force_square, residual[~isolated & ~outliers.energy])
    if {"energy", "forces", "stress"} & set(survey.present):
        log.info("reference energies %s: %s", references.how, in_words(references.energies))
    symbols = ", ".join(chemical_symbols[z] for z in survey.elements)
    log.info(
        "elements %s; %.3g neighbours within %g Å; energy scale %.3g eV",
        symbols,
        neighbors,
        recipe.cutoff,
        scale,
    )
    _suggest_cutoff(neighbors, recipe.cutoff, survey.counts[~isolated].sum(1))
    attrs = survey.moments["graph_attrs"] if recipe.attrs else None
    domain = Domain(
        cutoff=recipe.cutoff,
        elements=survey.elements,
        avg_num_neighbors=neighbors or 1.0,
        atomic_energies=references.energies,
        energy_scale=scale,
        energy_shift=_middle(residual[~isolated & ~outliers.energy]),
        shortest_distances=survey.shortest_distances,
        neighbor_counts=survey.neighbor_counts,
        label_shifts={x.name: float(survey.moments[x.name].mean[0]) for x in survey.labels if x.shape == ()},
        label_shifts_per_atom={
            x.name: float(survey.moments[f"{x.name} per atom"].mean[0])
            for x in survey.labels
            if x.shape == () and x.level == "structure"
        },
        label_scales=_label_scales(survey, force_square),
        attrs=recipe.attrs,
        attr_shifts=tuple(attrs.mean.tolist()) if attrs else (),
        attr_scales=tuple(_spread(np.sqrt(attrs.deviation), attrs.mean).tolist()) if attrs else (),
        self_interaction=recipe.self_interaction,
        pbc=recipe.pbc,
        cell=recipe.cell,
    )
    return Statistics(domain, references.how, limits)


def _doubt_isolated_atoms(survey: Survey) -> None:
    """Warn of isolated atoms from whose energies the structures can not have been bound."""
    isolated, energy, counts = survey.isolated, survey.column("energy"), survey.counts
    single = isolated_energies(survey.elements, counts, energy, isolated)
    rows = ~isolated & np.isfinite(energy)
    for elements, cohesion in doubtful_atoms(survey.elements, counts[rows], energy[rows], single):
        of_them = counts[:, [survey.elements.index(z) for z in elements]].any(1)
        where = survey.where(int(np.flatnonzero(isolated & np.isfinite(energy) & of_them)[0]))
        log.warning(
            "isolated atoms (%s; %s): in structures each such atom has %+.4g eV beyond that, which is no bonding; if "
            "they are of another unit or method, remove them, or set reference_energies=least_squares",
            in_words({z: single[z] for z in elements}),
            where if len(elements) == 1 else f"{where}, ...",
            cohesion,
        )


def _suggest_cutoff(neighbors: float, cutoff: float, sizes: Floats) -> None:
    """Say where another cut-off is likely to do better: on molecules, elements and oxides 10 to 60 neighbours did.

    `sizes` (S,) are the structures' numbers of atoms: in small molecules nearly all are neighbours already.
    """
    few, many = USUAL_NEIGHBORS
    others = float((sizes * (sizes - 1)).sum() / max(sizes.sum(), 1))
    if 0 < neighbors < min(few, ALL * others) or neighbors > many:
        wanted = few if neighbors < few else many
        other = cutoff * (wanted / neighbors) ** (1 / 3)  # as at an even density
        why = "sees little of its surroundings" if neighbors < few else "costs much time and memory"
        log.info(
            "%.3g neighbours is %s: an atom %s; datamodule.cut_off=%.1f would give it about %d",
            *(neighbors, "few" if neighbors < few else "many", why, other, wanted),
        )


def _scale(force_square: Floats, residual: Floats) -> float:
    """Energy of one atom that is typical of the data [eV]: the larger of the RMS force component times 1 Å and
    the robust spread of energies per atom, which rules where structures are relaxed and forces tiny."""
    residual = residual[np.isfinite(residual)]
    spread = 1.4826 * float(np.median(np.abs(residual - np.median(residual)))) if len(residual) else 0.0
    largest = max(_rms(force_square), spread)
    return largest if largest > SMALLEST_SCALE else 1.0


def _middle(residual: Floats) -> float:
    known = residual[np.isfinite(residual)]
    return float(np.median(known)) if len(known) else 0.0


def _rms(squares: Floats) -> float:
    known = squares[np.isfinite(squares)]
    return float(np.sqrt(known.mean())) if len(known) else 0.0


def _label_scales(survey: Survey, force_square: Floats) -> dict[str, float]:
    """RMS of each label's components, of scalars about their mean."""
    scales = {}
    for label in survey.labels:
        moments = survey.moments[label.name]
        square = moments.deviation[0] + (0.0 if label.shape == () else moments.mean[0] ** 2)
        rms = _rms(force_square) if label.name == "forces" else float(np.sqrt(square))
        mean = moments.mean[0] if label.shape == () else 0.0
        scales[label.name] = float(_spread(np.array(rms), np.array(mean)))
    return scales


def _spread(deviation: Floats, mean: Floats) -> Floats:
    """Standard deviations, and 1 for what is constant but for rounding."""
    return np.where(deviation > ROUNDING * np.abs(mean), deviation, 1.0)
