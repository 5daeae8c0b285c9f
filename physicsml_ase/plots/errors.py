"""How errors are distributed: all of a property's, and by group or element. K values."""

from collections.abc import Mapping

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from physicsml_ase.plots.learning import Plain, readable_log
from physicsml_ase.plots.style import COLOURS, FAINT, INK, Array, dress, literal

MOST_GROUPS = 14


def draw_distribution(axes: Axes, errors: Array, name: str, unit: str) -> None:
    """Numbers of errors (K,), predicted less reference, on a logarithmic scale, and a normal one of their spread."""
    errors = errors[np.isfinite(errors)]
    wide = float(np.abs(errors).max()) or 1.0
    counts, edges = np.histogram(errors, bins=min(61, 2 * int(len(errors) ** 0.5) + 5), range=(-wide, wide))
    middle, width = (edges[1:] + edges[:-1]) / 2, edges[1] - edges[0]
    axes.bar(middle, counts, width=width * 0.94, color=COLOURS[0], linewidth=0)
    spread = float(errors.std())
    if spread > 0:
        grid = np.linspace(-wide, wide, 201)
        normal = len(errors) * width * np.exp(-0.5 * ((grid - errors.mean()) / spread) ** 2)
        normal /= spread * np.sqrt(2 * np.pi)
        axes.plot(grid, np.maximum(normal, 0.1), color=COLOURS[1], linewidth=1.2, label="normal, same spread")
        axes.legend(fontsize=7.5, frameon=False, loc="upper right")
    axes.set_yscale("log")
    axes.set_ylim(0.7, 4 * max(counts.max(), 1))
    readable_log(axes)
    axes.set_title(f"{name}: errors")
    axes.set_xlabel(f"predicted − reference [{unit}]" if unit else "predicted − reference")
    axes.set_ylabel("number")
    axes.xaxis.set_major_locator(MaxNLocator(5))
    dress(axes)


def draw_groups(axes: Axes, groups: Mapping[str, Array], title: str, unit: str) -> None:
    """Sizes of the errors of each group (K,): where 90 % and where half of them are, and the median.

    The groups with the largest medians, at most `MOST_GROUPS`.
    """
    sizes = {name: np.abs(values[np.isfinite(values)]) for name, values in groups.items()}
    sizes = {name: values for name, values in sizes.items() if len(values)}
    shown = sorted(sizes, key=lambda name: -float(np.median(sizes[name])))[:MOST_GROUPS][::-1]
    least = min((float(v[v > 0].min()) for v in sizes.values() if (v > 0).any()), default=1e-6)
    for row, name in enumerate(shown):
        low, quarter, middle, most, high = np.maximum(np.percentile(sizes[name], [5, 25, 50, 75, 95]), least)
        axes.plot([low, high], [row, row], color=COLOURS[0], linewidth=1.2, solid_capstyle="butt")
        axes.plot([quarter, most], [row, row], color=COLOURS[0], linewidth=6, solid_capstyle="butt")
        axes.plot([middle], [row], "o", color=COLOURS[1], markersize=4.5)
    axes.set_xscale("log")
    axes.xaxis.set_major_formatter(Plain())
    axes.xaxis.set_minor_formatter(Plain(labelOnlyBase=False, minor_thresholds=(1.2, 0.4)))
    axes.tick_params(axis="x", which="minor", labelsize=7)
    axes.set_yticks(range(len(shown)), [f"{literal(n, 20)} ({len(sizes[n])})" for n in shown])
    axes.set_ylim(-0.7, len(shown) - 0.3)
    axes.set_title(title)
    axes.set_xlabel(f"|error| [{unit}]: 5, 25, 50, 75, 95 %")
    axes.grid(axis="x", color="#ececec", linewidth=0.6)
    axes.set_axisbelow(True)
    dress(axes)


def draw_by_size(axes: Axes, size: Array, error: Array, what: str, unit: str, error_unit: str) -> None:
    """Errors (K,) against the size of what was predicted (K,)."""
    axes.plot(
        size, error, "o", color=COLOURS[0], markersize=2.5, alpha=0.35, markeredgewidth=0, rasterized=True
    )
    parts = [part for part in np.array_split(np.argsort(size), 8) if len(part)]
    middle, means = ([float(of[part].mean()) for part in parts] for of in (size, error))
    axes.plot(middle, means, "o-", color=COLOURS[1], linewidth=1.4, markersize=4, label="mean of an eighth")
    axes.legend(fontsize=7.5, frameon=False, loc="lower right")
    axes.set_yscale("log")
    readable_log(axes)
    axes.set_title(f"errors by the size of the {what}")
    axes.set_xlabel(f"{what}, reference [{unit}]")
    axes.set_ylabel(f"|error| [{error_unit}]")
    axes.axhline(float(np.median(error)), color=FAINT, linewidth=0.8)
    axes.tick_params(colors=INK)
    dress(axes)


def draw_conservation(axes: Axes, time_ps: Array, total: Array, num_atoms: int) -> None:
    """Departure of the total energy (T,) [eV] from its start, over time (T,) [ps]."""
    axes.axhline(0, color=FAINT, linewidth=0.8)
    axes.plot(1000 * time_ps, 1000 * (total - total[0]) / num_atoms, color=COLOURS[0], linewidth=1.4)
    axes.set_title("total energy at constant energy (NVE)")
    axes.set_xlabel("time [fs]")
    axes.set_ylabel("departure [meV/atom]")
    axes.xaxis.set_major_locator(MaxNLocator(5))
    axes.yaxis.set_major_locator(MaxNLocator(5))
    dress(axes)
