"""What all figures share: colours, sizes, and how one is made without pyplot or rcParams."""

import os
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from numpy.typing import NDArray

from physicsml_ase.data.sources.files import naming

Array = NDArray[np.float64]

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#F0E442")
"""Okabe and Ito's, which people with any colour vision can tell apart."""
INK, FAINT = "#222222", "#9a9a9a"
PANEL = 3.7  # inches


def new_figure(width: float, height: float) -> Figure:
    """An empty figure [inches] that draws without a display."""
    layout = ConstrainedLayoutEngine(w_pad=0.08, h_pad=0.08)
    figure = Figure(figsize=(width, height), layout=layout, facecolor="white")
    FigureCanvasAgg(figure)
    return figure


def literal(text: str, length: int = 18) -> str:
    """A name from somebody's data, as it stands and not as mathematics, cut to a length."""
    text = "".join(letter for letter in text if letter.isprintable())
    text = text if len(text) <= length else f"{text[: length - 1]}…"
    text = text.replace("$", r"\$")
    return f" {text}" if text.startswith("_") else text  # which keeps a name out of legends


def dress(axes: Axes) -> None:
    """Give axes the common look; call it last."""
    axes.title.set(fontsize=10.5, color=INK)
    for label in (axes.xaxis.label, axes.yaxis.label):
        label.set_fontsize(9)
    axes.tick_params(labelsize=8, colors=INK, which="major")
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)


def save(figure: Figure, path: str | Path) -> None:
    """Write a figure as PNG, beside its place and then renamed."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with naming(path):
            figure.savefig(beside, format="png", dpi=150)
        os.replace(beside, path)
    finally:
        beside.unlink(missing_ok=True)
