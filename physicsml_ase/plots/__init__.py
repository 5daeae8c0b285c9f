"""Figures: parity, learning curves, and a page with both and the traces of simulations.

Drawn without pyplot, so that no global state of matplotlib is read or changed.
"""

from physicsml_ase.plots.demo import demo_figure
from physicsml_ase.plots.learning import learning_curves_figure, read_curves
from physicsml_ase.plots.parity import parity_figure
from physicsml_ase.plots.style import save

__all__ = ["demo_figure", "learning_curves_figure", "parity_figure", "read_curves", "save"]
