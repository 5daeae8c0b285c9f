"""Losses and validation errors over a training, from the `metrics.csv` of Lightning's CSVLogger."""

import csv
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogFormatter, MaxNLocator, NullFormatter

from physicsml_ase.plots.style import COLOURS, PANEL, Array, dress, new_figure

Curve = tuple[Array, Array]
"""Epochs, from 1, and values."""
ERROR_UNITS = {"energy": "meV/atom", "forces": "meV/Å", "stress": "meV/Å³"}


def learning_curves_figure(metrics_csv: str | Path) -> Figure:
    """Losses and validation errors over the training, from a CSVLogger's `metrics.csv`."""
    curves = read_curves(metrics_csv)
    panels = panels_of(curves)
    figure = new_figure(PANEL * max(len(panels), 1), PANEL)
    grid = figure.add_gridspec(1, max(len(panels), 1))
    for k, panel in enumerate(panels):
        draw_learning(figure.add_subplot(grid[0, k]), panel, curves)
    return figure


def read_curves(metrics_csv: str | Path) -> dict[str, Curve]:
    """{column: (epochs, values)} of a CSVLogger's file, whose rows fill different columns."""
    points: dict[str, list[tuple[float, float]]] = defaultdict(list)
    with Path(metrics_csv).open(newline="", encoding="utf-8") as stream:
        for row in csv.DictReader(stream):
            epoch = row.get("epoch") or row.get("step") or ""
            for name, text in row.items():
                if text and epoch and name not in ("epoch", "step"):
                    points[name].append((float(epoch) + 1, float(text)))
    curves = {name: np.array(pairs) for name, pairs in points.items()}
    return {name: (pairs[:, 0], pairs[:, 1]) for name, pairs in curves.items()}


def panels_of(curves: Mapping[str, Curve]) -> list[str]:
    """ "loss", then every label with validation errors, at most three of them."""
    labels = [name.split("/")[1] for name in curves if name.startswith("val/") and name.endswith("/rmse")]
    loss = [name for name in curves if name.endswith("total/loss")]
    order = {"energy": 0, "forces": 1, "stress": 2}
    return (["loss"] if loss else []) + sorted(set(labels), key=lambda x: (order.get(x, 3), x))[:3]


def draw_learning(axes: Axes, panel: str, curves: Mapping[str, Curve]) -> None:
    """A panel with the losses, or with the validation errors of one label."""
    if panel == "loss":
        wanted = {"train/total/loss": "train", "val/total/loss": "validation"}
    else:
        wanted = {f"val/{panel}/rmse": "RMSE", f"val/{panel}/mae": "MAE"}
    found = {name: curves[name] for name in wanted if name in curves}
    for name, colour in zip(wanted, COLOURS):
        if name in found:
            epochs, values = found[name]
            usable = np.isfinite(values) & (values > 0)
            axes.plot(
                epochs[usable],
                values[usable],
                color=colour,
                linewidth=1.6,
                marker="o" if usable.sum() < 25 else None,
                markersize=3,
                label=wanted[name],
            )
    longest = max((epochs.max() for epochs, _ in found.values()), default=1.0)
    axes.set_yscale("log")
    if longest >= 20:
        axes.set_xscale("log")
        axes.xaxis.set_major_formatter(Plain())
        axes.xaxis.set_minor_formatter(NullFormatter())
    else:
        axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
    readable_log(axes)
    unit = ERROR_UNITS.get(panel)
    axes.set_xlabel("epoch")
    axes.set_ylabel("loss" if panel == "loss" else f"error [{unit}]" if unit else "error")
    axes.set_title("loss" if panel == "loss" else f"validation, {panel.replace('_', ' ')}")
    axes.legend(fontsize=8, frameon=False, loc="best")
    axes.grid(which="both", color="#ececec", linewidth=0.6)
    axes.set_axisbelow(True)
    dress(axes)


class Plain(LogFormatter):
    """0.5 and 200 instead of 5e-01 and 2e+02."""

    def __call__(self, x: float, pos: int | None = None) -> str:
        return f"{x:g}" if super().__call__(x, pos) else ""


def readable_log(axes: Axes) -> None:
    """Numbers beside a logarithmic axis also where it spans less than a decade."""
    formatter = Plain(labelOnlyBase=False, minor_thresholds=(2, 0.5))
    axes.yaxis.set_major_formatter(formatter)
    axes.yaxis.set_minor_formatter(formatter)
    axes.tick_params(axis="y", which="minor", labelsize=7)
