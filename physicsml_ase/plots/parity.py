"""Predicted against reference, one panel for each property."""

from collections.abc import Mapping
from typing import Protocol

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.gridspec import SubplotSpec
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from physicsml_ase.plots.style import COLOURS, FAINT, INK, PANEL, Array, dress, literal, new_figure

DENSE = 3000
"""From this many points on, colour shows how many there are."""
MILLI = {"energy_per_atom": "meV/atom", "forces": "meV/Å", "stress": "meV/Å³"}


class Pairs(Protocol):
    """Values that were compared, or a fair sample of them."""

    def pairs(self) -> tuple[Array, Array, NDArray[np.object_]]:
        """Reference, prediction and group of each, (K,)."""


class Compared(Protocol):
    """One property of which predictions were compared with a reference."""

    name: str
    unit: str
    structures: int

    @property
    def sample(self) -> Pairs:
        """Some of the values, for the plot."""

    def errors(self) -> dict[str, float]:
        """{"<name>_rmse", "<name>_mae"} in `unit`."""


class Comparison(Protocol):
    """What an evaluation has that figures need."""

    @property
    def quantities(self) -> Mapping[str, Compared]:
        """By name; energies as `energy_per_atom` too."""

    @property
    def energies_are_relative(self) -> bool:
        """The energies are relative to the model's atomic energies."""


def parity_figure(evaluation: Comparison) -> Figure:
    """Predicted against reference, one panel for each property that the data has."""
    shown = compared(evaluation)
    columns = min(max(len(shown), 1), 3)
    rows = -(-len(shown) // columns) or 1
    figure = new_figure(PANEL * columns, PANEL * rows)
    grid = figure.add_gridspec(rows, columns)
    for k, quantity in enumerate(shown):
        draw_parity(figure, grid[divmod(k, columns)], quantity, evaluation.energies_are_relative)
    return figure


def compared(evaluation: Comparison) -> list[Compared]:
    """What has a panel: everything with values, energies by atom only."""
    return [q for name, q in evaluation.quantities.items() if q.structures and name != "energy"]


def draw_parity(figure: Figure, place: SubplotSpec, quantity: Compared, relative: bool) -> None:
    """A panel; `relative` says that the energies are relative to the model's atomic energies."""
    axes = figure.add_subplot(place)
    reference, prediction, group = quantity.sample.pairs()
    low, high = float(min(reference.min(), prediction.min())), float(max(reference.max(), prediction.max()))
    margin = 0.05 * (high - low) or 0.05 * abs(high) or 1.0
    limits = (low - margin, high + margin)
    axes.plot(limits, limits, color=FAINT, linewidth=1, zorder=1)
    is_energy = quantity.name == "energy_per_atom"
    _draw_points(axes, reference, prediction, group if is_energy else None, limits)
    _write_errors(axes, quantity)
    axes.set(xlim=limits, ylim=limits, aspect="equal")
    less = " − atomic energies" if is_energy and relative else ""
    unit = f" [{quantity.unit}]" if quantity.unit else ""
    axes.set_xlabel(f"reference{less}{unit}")
    axes.set_ylabel(f"predicted{less}{unit}")
    axes.set_title(quantity.name.replace("_", " "))
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_locator(MaxNLocator(5))
    dress(axes)


def _draw_points(
    axes: Axes,
    reference: Array,
    prediction: Array,
    group: NDArray[np.object_] | None,
    limits: tuple[float, float],
) -> None:
    """Points in the colours of their groups, if there are a few; their density, if there are many."""
    names = [] if group is None else sorted(set(group.tolist()))
    if 1 < len(names) <= len(COLOURS):
        for colour, name in zip(COLOURS, names):
            chosen = group == name
            axes.plot(
                reference[chosen],
                prediction[chosen],
                "o",
                color=colour,
                markersize=3.5,
                alpha=0.7,
                markeredgewidth=0,
                label=literal(name) or "other",
            )
        axes.legend(loc="lower right", fontsize=7.5, frameon=False, handletextpad=0.2, borderaxespad=0.2)
    elif len(reference) >= DENSE:
        axes.hexbin(
            reference,
            prediction,
            gridsize=70,
            extent=(*limits, *limits),
            bins="log",
            mincnt=1,
            cmap="viridis",
            linewidths=0.1,
            zorder=2,
        )
    else:
        axes.plot(
            reference,
            prediction,
            "o",
            color=COLOURS[0],
            markersize=3.5,
            alpha=0.5,
            markeredgewidth=0,
            zorder=2,
        )


def _write_errors(axes: Axes, quantity: Compared) -> None:
    """RMSE and MAE in a corner."""
    errors = quantity.errors()
    factor, unit = (1e3, MILLI[quantity.name]) if quantity.name in MILLI else (1.0, quantity.unit)
    words = "\n".join(
        f"{kind.upper()} {errors[f'{quantity.name}_{kind}'] * factor:.4g} {unit}" for kind in ("rmse", "mae")
    )
    axes.text(
        0.04,
        0.96,
        words,
        transform=axes.transAxes,
        va="top",
        ha="left",
        fontsize=9,
        color=INK,
        zorder=5,
        bbox={"facecolor": "white", "edgecolor": "none", "alpha": 0.75, "pad": 1.5},
    )
