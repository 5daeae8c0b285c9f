"""Energies of pairs of atoms against their distance."""

from collections.abc import Sequence
from typing import Protocol

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from physicsml_ase.plots.style import COLOURS, FAINT, PANEL, Array, dress, new_figure

MOST = 12
"""Pairs that are drawn."""


class Curve(Protocol):
    """A dimer's energy [eV], less that of its atoms, against their distance [Å], (D,) each."""

    @property
    def name(self) -> str: ...
    @property
    def shortest(self) -> float:
        """Shortest distance in the training data [Å]."""

    @property
    def seen(self) -> bool:
        """Whether the pair was in the training data at all."""

    @property
    def distance(self) -> Array: ...
    @property
    def energy(self) -> Array: ...


def dimer_figure(curves: Sequence[Curve]) -> Figure:
    """A panel for each pair of elements, the first of them."""
    shown = curves[:MOST]
    columns = min(max(len(shown), 1), 3)
    rows = -(-len(shown) // columns) or 1
    figure = new_figure(PANEL * columns, 0.8 * PANEL * rows)
    for k, curve in enumerate(shown):
        draw_dimer(figure.add_subplot(rows, columns, k + 1), curve)
    return figure


def draw_dimer(axes: Axes, curve: Curve) -> None:
    """A pair; to the right of the dotted line is what the training data had."""
    d, energy = curve.distance, curve.energy
    axes.axhline(0, color=FAINT, linewidth=0.8)
    axes.axvline(curve.shortest, color=FAINT, linestyle=":", linewidth=1.2)
    axes.plot(d, energy, color=COLOURS[0], linewidth=1.6)
    well = float(np.nanmin(energy[d >= 0.7 * curve.shortest]))
    depth = max(-well, 0.5)
    low = float(np.nanmin(energy))
    axes.set_ylim(min(-1.25 * depth, 1.1 * low if low < -2 * depth else -1.25 * depth), 2.5 * depth)
    axes.set_xlim(float(d[0]), float(d[-1]))
    axes.set_title(curve.name if curve.seen else f"{curve.name}, not in the training data")
    axes.set_xlabel("distance [Å]")
    axes.set_ylabel("energy [eV]")
    axes.xaxis.set_major_locator(MaxNLocator(6))
    dress(axes)
