"""What happened in a simulation, from the log files of `simulate`."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from physicsml_ase.plots.style import COLOURS, Array, dress


def draw_md(axes: Axes, log: str | Path) -> None:
    """Potential energy and temperature over time, from `simulate.md`'s log."""
    names, values = _read_log(log)
    time, potential, kelvin = (values[:, names.index(x)] for x in ("time[ps]", "epot[eV]", "T[K]"))
    axes.plot(time, potential - potential[0], color=COLOURS[0], linewidth=1.2)
    axes.set_xlabel("time [ps]")
    axes.set_ylabel("energy, from the start [eV]", color=COLOURS[0])
    axes.set_title("molecular dynamics")
    axes.xaxis.set_major_locator(MaxNLocator(6))
    dress(axes)
    other = axes.twinx()
    other.plot(time, kelvin, color=COLOURS[1], linewidth=1.0, alpha=0.8)
    other.set_ylabel("temperature [K]", color=COLOURS[1], fontsize=9)
    other.set_ylim(bottom=0)
    dress(other)
    other.spines["right"].set_visible(True)


def draw_relaxation(axes: Axes, log: str | Path) -> None:
    """Largest force and energy over the steps, from `simulate.relax`'s log."""
    names, values = _read_log(log)
    step, energy, force = (values[:, names.index(x)] for x in ("step", "energy[eV]", "fmax[eV/Å]"))
    axes.plot(step, energy - energy[-1], color=COLOURS[0], linewidth=1.4)
    axes.set_xlabel("step")
    axes.set_ylabel("energy, from the end [eV]", color=COLOURS[0])
    axes.set_title("geometry optimisation")
    axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
    dress(axes)
    other = axes.twinx()
    other.plot(step, force, color=COLOURS[1], linewidth=1.2)
    other.set_yscale("log")
    other.set_ylabel("largest force [eV/Å]", color=COLOURS[1], fontsize=9)
    dress(other)
    other.spines["right"].set_visible(True)


def _read_log(log: str | Path) -> tuple[Sequence[str], Array]:
    """Names of the columns and their values (lines, columns)."""
    with Path(log).open(encoding="utf-8") as stream:
        names = stream.readline().lstrip("#").split()
        return names, np.loadtxt(stream, ndmin=2)
