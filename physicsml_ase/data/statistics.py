"""What a model is told about its data (`Domain`), and what is wrong with them, from a survey of the training set.

Isolated atoms teach the reference energies; scales and the mean number of neighbours are those of the
other structures. One structure in the wrong unit must neither pass unseen nor change the scales.
S structures.
"""

import logging
from dataclasses import dataclass

import numpy as np
from ase.data import chemical_symbols
from numpy.typing import NDArray

from physicsml_ase.conventions import InputError
from physicsml_ase.data.frames import Recipe
from physicsml_ase.data.references import Wanted, in_words, outlying, reference_energies
from physicsml_ase.data.survey import Floats, Survey
from physicsml_ase.domain import Domain

log = logging.getLogger("physicsml_ase")

OUTLYING_FORCE = 50.0
"""A force this many times the RMS that 90 % of the structures keep below makes an outlier."""
SMALLEST_SCALE = 1e-4
"""Scales below this [eV] say nothing: all forces are zero, or there is only one structure."""
NAMED = 5


@dataclass(frozen=True)
class Statistics:
    """A domain and how it came about."""

    domain: Domain
    reference_method: str
    outliers: NDArray[np.int64]
    """Structures of the survey with an extreme energy or force."""


def resolve_domain(survey: Survey, recipe: Recipe, references_wanted: Wanted = None) -> Statistics:
    """The domain of surveyed training data, said aloud, with a warning for each outlying structure.

    Raises `InputError` where there is nothing to learn from.
    """
    isolated = survey.isolated
    if isolated.all():
        raise InputError(
            f"nothing to learn from {survey.sources[0].name}: no atom has a neighbour within "
            f"{recipe.cutoff:g} Å, there are only isolated atoms; add molecules or crystals"
        )
    used = ~isolated
    num_atoms, energy = survey.column("num_atoms"), survey.column("energy")
    neighbors = float(survey.column("num_neighbors")[used].sum() / num_atoms[used].sum())
    if not neighbors:
        log.warning(
            "no atom has a neighbour within %g Å: only reference energies can be learned", recipe.cutoff
        )
    counts = survey.counts
    references = reference_energies(survey.elements, counts, energy, isolated, references_wanted)
    shifts = np.array([references.energies[z] for z in survey.elements])
    residual = np.where(used, (energy - counts @ shifts) / num_atoms, np.nan)  # (S,) eV/atom
    strange = outlying(residual)
    violent = _violent(survey.column("force_max"), survey.column("force_square"), used)
    _warn(survey, residual, strange, violent)
    force_square = survey.column("force_square")[used & ~violent]
    scale = _scale(force_square, residual[used & ~strange])
    for name, present in survey.present.items():
        log.info("%s in %d of %d structures", name, present, len(energy))
    if "energy" in survey.present or "forces" in survey.present:
        log.info("reference energies %s: %s", references.how, in_words(references.energies))
    symbols = ", ".join(chemical_symbols[z] for z in survey.elements)
    log.info(
        "elements %s; %.3g neighbours within %g Å; energy scale %.3g eV",
        symbols,
        neighbors,
        recipe.cutoff,
        scale,
    )
    attrs = survey.moments.get("graph_attrs")
    domain = Domain(
        cutoff=recipe.cutoff,
        elements=survey.elements,
        avg_num_neighbors=neighbors or 1.0,
        atomic_energies=references.energies,
        energy_scale=scale,
        label_shifts={x.name: float(survey.moments[x.name].mean[0]) for x in survey.labels if x.shape == ()},
        label_scales=_label_scales(survey, force_square),
        attrs=recipe.attrs,
        attr_shifts=tuple(attrs.mean.tolist()) if attrs else (),
        attr_scales=tuple(_positive(np.sqrt(attrs.deviation)).tolist()) if attrs else (),
        self_interaction=recipe.self_interaction,
        pbc=recipe.pbc,
        cell=recipe.cell,
    )
    return Statistics(domain, references.how, np.flatnonzero(strange | violent))


def _violent(largest: Floats, square: Floats, used: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Structures with a force far beyond what nearly all others have, (S,)."""
    known = used & np.isfinite(square)
    if not known.any():
        return known
    usual = float(np.sqrt(np.quantile(square[known], 0.9, method="lower")))
    return known & (np.nan_to_num(largest) > OUTLYING_FORCE * max(usual, SMALLEST_SCALE))


def _scale(force_square: Floats, residual: Floats) -> float:
    """Energy of one atom's typical displacement [eV]: RMS force component times 1 Å, else spread of energies."""
    residual = residual[np.isfinite(residual)]
    spread = float(residual.std()) if len(residual) else 0.0
    return next((s for s in (_rms(force_square), spread) if s > SMALLEST_SCALE), 1.0)


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
        scales[label.name] = rms if rms > 0 else 1.0
    return scales


def _positive(scales: Floats) -> Floats:
    return np.where(scales > 0, scales, 1.0)


def _warn(survey: Survey, residual: Floats, strange: NDArray[np.bool_], violent: NDArray[np.bool_]) -> None:
    middle = float(np.nanmedian(residual)) if np.isfinite(residual).any() else 0.0
    largest = survey.column("force_max")
    kinds = {
        "energies far from the others (another unit?)": (strange, residual - middle, "{:+.4g} eV/atom off"),
        "extreme forces (datamodule.max_force leaves them out)": (violent, largest, "{:.4g} eV/Å"),
    }
    for what, (which, values, form) in kinds.items():
        worst = np.flatnonzero(which)
        if len(worst):
            worst = worst[np.argsort(-np.abs(values[worst]), kind="stable")]
            named = "; ".join(f"{survey.where(k)}: {form.format(values[k])}" for k in worst[:NAMED].tolist())
            more = f"; and {len(worst) - NAMED} more" if len(worst) > NAMED else ""
            log.warning("%d structures with %s: %s%s", len(worst), what, named, more)
