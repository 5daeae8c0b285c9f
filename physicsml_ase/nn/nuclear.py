"""Screened nuclear repulsion of each pair of atoms, as nequip and LAMMPS have it.

    V = k Z Z' / d phi((Z^0.23 + Z'^0.23) d / 0.4685 Å) f_6(d / c)

Ziegler, Biersack & Littmark, The Stopping and Range of Ions in Matter, 1985; f_6 is the envelope of DimeNet, c the
cut-off. Shapes: N atoms, E edges.
"""

import torch
from torch import Tensor

from physicsml_ase.graph import Graph
from physicsml_ase.nn.features import segment_sum
from physicsml_ase.nn.radial import envelope

COULOMB = 14.399645
"""e^2 / (4 pi epsilon0) [eV Å], to the digits of LAMMPS."""
LENGTH = 0.46850
"""Unit of screening [Å]."""
FACTORS = (0.02817, 0.28022, 0.50986, 0.18175)
RATES = (0.20162, 0.40290, 0.94229, 3.19980)


def nuclear_repulsion(graph: Graph, d_ij: Tensor, cutoff: float) -> Tensor:
    """Energy of each atom, half of all its pairs', (N,) [eV]; an atom's edge to itself, d = 0, has none."""
    i, j = graph.edge_index
    z = graph.atomic_numbers.to(d_ij.dtype)
    zi, zj = z.index_select(0, i)[:, None], z.index_select(0, j)[:, None]
    itself = d_ij == 0
    d = torch.where(itself, 1.0, d_ij)
    x = (zi**0.23 + zj**0.23) * d / LENGTH
    screening = sum((f * torch.exp(-rate * x) for f, rate in zip(FACTORS, RATES)), torch.zeros_like(d))
    energy = torch.where(itself, 0.0, COULOMB / 2 * zi * zj / d * screening * envelope(d / cutoff))
    return segment_sum(energy[:, 0], i, z.shape[0])
