"""Errors against the uncertainties that were predicted for them, one panel for each label."""

from collections.abc import Mapping
from typing import Protocol

import numpy as np
from matplotlib.figure import Figure

from physicsml_ase.plots.style import COLOURS, FAINT, INK, PANEL, Array, dress, literal, new_figure

MOST = 4000
"""Points drawn."""


class Calibrated(Protocol):
    """Errors of one label with their uncertainties."""

    name: str
    unit: str

    @property
    def errors(self) -> Array:
        """(K,)"""

    @property
    def sigmas(self) -> Array:
        """(K,)"""

    def bins(self) -> tuple[Array, Array]:
        """RMS of sigmas and of errors, in bins by sigma."""

    def numbers(self) -> dict[str, float]:
        """Figures of merit."""

    def __len__(self) -> int: ...


def calibration_figure(calibrations: Mapping[str, Calibrated]) -> Figure:
    """Absolute errors, and their RMS in bins, against the predicted standard deviation; on the line where right."""
    shown = [one for one in calibrations.values() if len(one)]
    figure = new_figure(PANEL * len(shown), PANEL)
    for k, one in enumerate(shown):
        axes = figure.add_subplot(1, len(shown), k + 1)
        step = -(-len(one) // MOST)
        sigma, error = one.sigmas[::step], np.abs(one.errors[::step])
        x, y = one.bins()
        axes.loglog(sigma, error, ".", color=FAINT, markersize=2, alpha=0.4, rasterized=True)
        ends = [float(sigma.min()), float(sigma.max())]
        axes.loglog(ends, ends, "-", color=INK, linewidth=0.8)
        axes.loglog(x, y, "o-", color=COLOURS[0], markersize=4, linewidth=1)
        axes.set_ylim(
            max(float(np.quantile(error, 0.01)), 1e-3 * float(y.max())), 2 * float(error.max()) + 1e-12
        )
        area = one.numbers()["miscalibration"]
        axes.set(
            title=f"{literal(one.name)}: miscalibration {area:.3f}",
            xlabel=f"predicted standard deviation, {one.unit}",
            ylabel=f"error, {one.unit}",
        )
        dress(axes)
    return figure
