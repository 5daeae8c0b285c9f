"""One page with all there is to show of a model."""

from pathlib import Path

from matplotlib.figure import Figure

from physicsml_ase.plots.learning import draw_learning, panels_of, read_curves
from physicsml_ase.plots.parity import Comparison, compared, draw_parity
from physicsml_ase.plots.style import INK, PANEL, new_figure
from physicsml_ase.plots.traces import draw_md, draw_relaxation


def demo_figure(
    evaluation: Comparison | None = None,
    metrics_csv: str | Path | None = None,
    md_log: str | Path | None = None,
    relax_log: str | Path | None = None,
    title: str = "",
) -> Figure:
    """All there is to show of a model on one page: parity, learning curves, and the traces of MD and a
    relaxation from their log files. What is not given is left out."""
    shown = compared(evaluation)[:3] if evaluation is not None else []
    curves = read_curves(metrics_csv) if metrics_csv is not None else {}
    learning = panels_of(curves)
    traces = [log for log in (md_log, relax_log) if log is not None]
    rows = [row for row in (shown, learning, traces) if row]
    width = max([len(row) for row in rows] + [1])
    heights = [1.0 if row is not traces else 0.72 for row in rows] or [1.0]
    figure = new_figure(PANEL * max(width, 2), PANEL * sum(heights) + (0.4 if title else 0.0))
    if title:
        figure.suptitle(title, fontsize=13, fontweight="bold", color=INK)
    grid = figure.add_gridspec(len(rows) or 1, 1, height_ratios=heights)
    for r, row in enumerate(rows):
        within = grid[r].subgridspec(1, len(row))
        for k, item in enumerate(row):
            if row is shown:
                assert evaluation is not None
                draw_parity(figure, within[k], shown[k], evaluation.energies_are_relative)
            elif row is learning:
                draw_learning(figure.add_subplot(within[k]), learning[k], curves)
            elif item is md_log and md_log is not None:
                draw_md(figure.add_subplot(within[k]), md_log)
            elif relax_log is not None:
                draw_relaxation(figure.add_subplot(within[k]), relax_log)
    return figure
