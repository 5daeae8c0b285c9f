"""Figures as pieces of an HTML page: text stays text, and colours are the page's, light or dark."""

import io
import os
import re
from pathlib import Path
from typing import NamedTuple

import matplotlib as mpl
from matplotlib.figure import Figure

from physicsml_ase.plots.style import FAINT, INK, save

COLOURS = {
    "#000000": "var(--ink)",
    INK: "var(--ink)",
    "#262626": "var(--ink)",
    FAINT: "var(--faint)",
    "#ececec": "var(--grid)",
    "#b0b0b0": "var(--grid)",
    "#ffffff": "var(--paper)",
    "#0072b2": "var(--blue)",
    "#d55e00": "var(--orange)",
    "#009e73": "var(--green)",
    "#cc79a7": "var(--pink)",
    "#e69f00": "var(--amber)",
    "#56b4e9": "var(--sky)",
}
"""What is drawn in these colours changes with the page's."""


class Picture(NamedTuple):
    """A figure as drawn, its file name, and what it shows for those who do not see it."""

    name: str
    figure: Figure
    svg: str
    alt: str
    caption: str = ""


def drawn(name: str, figure: Figure, alt: str) -> Picture:
    """A figure, drawn once for page and file."""
    stream = io.StringIO()
    # the salt keeps the names of clip paths apart on one page, and files alike from run to run
    with mpl.rc_context({"svg.fonttype": "none", "svg.hashsalt": name}):
        figure.savefig(stream, format="svg", transparent=True, dpi=150, metadata={"Date": None})
    figure.set_layout_engine("none")  # it is laid out, which takes the longest
    return Picture(name, figure, stream.getvalue(), alt)


def as_svg(picture: Picture) -> str:
    """The figure as an <svg> element without size, for a page."""
    text = picture.svg[picture.svg.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.S)
    head, rest = text.split(">", 1)
    head = re.sub(r'\s(width|height)="[^"]*"', "", head)
    for colour, variable in COLOURS.items():
        rest = re.sub(f"(fill|stroke): {colour}\\b", f"\\1: {variable}", rest, flags=re.I)
    return f'{head} role="img">{rest}'


def write_picture(picture: Picture, folder: Path) -> None:
    """The figure as PNG and SVG, for a light page."""
    save(picture.figure, folder / f"{picture.name}.png")
    beside = folder / f".{picture.name}.svg.{os.getpid()}"
    beside.write_text(picture.svg, encoding="utf-8")
    os.replace(beside, folder / f"{picture.name}.svg")
