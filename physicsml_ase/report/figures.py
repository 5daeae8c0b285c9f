"""The figures of a report, one panel each, so that they stand beside or below each other as the page is wide."""

from collections.abc import Callable
from pathlib import Path

import numpy as np

from physicsml_ase.evaluate import Evaluation
from physicsml_ase.plots.dimers import draw_dimer
from physicsml_ase.plots.errors import draw_by_size, draw_conservation, draw_distribution, draw_groups
from physicsml_ase.plots.learning import draw_learning, panels_of, read_curves
from physicsml_ase.plots.parity import MILLI, compared, draw_parity
from physicsml_ase.plots.structure import draw_structure
from physicsml_ase.plots.style import new_figure
from physicsml_ase.report.frames import Errors, FrameErrors
from physicsml_ase.report.svg import Picture, drawn
from physicsml_ase.verify import Verification

WIDTH, HEIGHT = 4.0, 3.1  # inches, which keep text readable on a phone
MOST_DIMERS = 12
MOST_POINTS = 4000
THOUSANDTHS = {"energy": (1e3, "meV/atom"), "forces": (1e3, "meV/Å"), "stress": (1e3, "meV/Å³")}
UNITS = {"dipole": "e·Å", "charges": "e", "magmom": "μB", "magmoms": "μB"}


def learning(metrics: Path) -> list[Picture]:
    """Losses and validation errors over the epochs."""
    curves = read_curves(metrics)
    return [
        _panel(f"learning-{k}", f"learning curve: {panel}", draw_learning, panel, curves)
        for k, panel in enumerate(panels_of(curves))
    ]


def parity(evaluation: Evaluation) -> list[Picture]:
    """Predicted against reference, of each property."""
    found = []
    for quantity in compared(evaluation):
        figure = new_figure(HEIGHT + 0.5, HEIGHT + 0.5)
        place = figure.add_gridspec(1, 1)[0]
        draw_parity(figure, place, quantity, evaluation.energies_are_relative)
        for collection in figure.axes[0].collections:
            collection.set_rasterized(True)  # thousands of hexagons
        for line in figure.axes[0].lines:
            line.set_rasterized(len(np.atleast_1d(line.get_xdata())) > 500)
        name = quantity.name.replace("_", " ")
        found.append(drawn(f"parity-{quantity.name}", figure, f"{name}: predicted against reference"))
    return found


def distributions(errors: Errors) -> list[Picture]:
    """How the errors of each property are distributed."""
    found = []
    for name, values in errors.by_quantity.items():
        factor, unit = THOUSANDTHS.get(name, (1.0, UNITS.get(name, "")))
        title = "energy per atom" if name == "energy" else name
        alt = f"distribution of the errors of {title}"
        found.append(_panel(f"errors-{name}", alt, draw_distribution, values * factor, title, unit))
    if len(errors.force_error):
        some = slice(None, None, -(-len(errors.force_error) // MOST_POINTS))
        size, error = errors.force_size[some], np.maximum(errors.force_error[some] * 1e3, 1e-3)
        alt = "errors of forces against the size of the force"
        found.append(
            _panel("errors-by-force", alt, draw_by_size, size, error, "force", "eV/Å", MILLI["forces"])
        )
    return found


def groups(errors: Errors) -> list[Picture]:
    """Errors by element and by config_type, where there are several."""
    found = []
    for name, values, title, unit in (
        ("forces-by-element", errors.force_by_element, "forces, by element", MILLI["forces"]),
        (
            "energy-by-group",
            errors.energy_by_group,
            "energy per atom, by config_type",
            MILLI["energy_per_atom"],
        ),
        ("forces-by-group", errors.force_by_group, "forces, by config_type", MILLI["forces"]),
    ):
        if len(values) > (0 if "element" in name else 1):
            milli = {group: 1e3 * of for group, of in values.items()}
            high = max(1.6, 1.2 + 0.22 * min(len(values), 14))
            found.append(_panel(name, f"errors: {title}", draw_groups, milli, title, unit, height=high))
    return found


def worst(errors: Errors) -> list[Picture]:
    """The structures with the largest errors."""
    found = []
    for k, frame in enumerate(errors.worst):
        alt = f"structure with large errors: {frame.where}"
        picture = _panel(f"worst-{k + 1}", alt, draw_structure, frame.atoms, frame.atom, height=2.7)
        found.append(picture._replace(caption=_in_words(frame)))
    return found


def dimers(checks: Verification) -> list[Picture]:
    """Energies of pairs of atoms."""
    return [
        _panel(f"dimer-{c.name}", f"energy of the pair {c.name} against its distance", draw_dimer, c)
        for c in checks.curves[:MOST_DIMERS]
    ]


def conservation(checks: Verification) -> list[Picture]:
    """The total energy of a short run."""
    trace = checks.trace
    if trace is None:
        return []
    alt = "total energy in a short run at constant energy"
    picture = _panel("nve", alt, draw_conservation, trace.time, trace.total, trace.num_atoms)
    return [picture._replace(caption=checks["NVE"].what)]


def _in_words(frame: FrameErrors) -> str:
    parts = [f"{frame.where}: {frame.atoms.get_chemical_formula(empirical=False)}"]
    if frame.group != "none":
        parts.append(f"config_type {frame.group}")
    if np.isfinite(frame.energy):
        parts.append(f"energy off by {1e3 * frame.energy:+.3g} meV/atom")
    if frame.atom is not None:
        symbol = frame.atoms.get_chemical_symbols()[frame.atom]
        parts.append(f"force of atom {frame.atom} ({symbol}, ringed) by {1e3 * frame.force:.3g} meV/Å")
    return "; ".join(parts)


def _panel(
    name: str, alt: str, draw: Callable[..., None], *values: object, height: float = HEIGHT
) -> Picture:
    """A figure of one panel, drawn by `draw(axes, *values)`."""
    figure = new_figure(WIDTH, height)
    draw(figure.add_subplot(), *values)
    return drawn(name, figure, alt)
