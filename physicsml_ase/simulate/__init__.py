"""Molecular dynamics and geometry optimisation by ASE, watched, logged and restartable."""

from physicsml_ase.simulate.dynamics import MDResult, md
from physicsml_ase.simulate.guard import Unstable
from physicsml_ase.simulate.relaxation import RelaxResult, relax

__all__ = ["MDResult", "RelaxResult", "Unstable", "md", "relax"]
