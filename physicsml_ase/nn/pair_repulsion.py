"""The pair repulsion inside MACE's energy: Ziegler, Biersack & Littmark's, with the constants of mace-torch.

It ends at the sum of the covalent radii. (`nn.wall` is what every model has below distances it has not seen.)
Shapes: N atoms, E edges.
"""

import numpy as np
import torch
from ase.data import covalent_radii
from torch import Tensor

from physicsml_ase.graph import Graph
from physicsml_ase.nn.constants import Constants
from physicsml_ase.nn.features import segment_sum
from physicsml_ase.nn.radial import envelope

FACTORS = (0.1818, 0.5099, 0.2802, 0.02817)
RATES = (3.2, 0.9423, 0.4028, 0.2016)
SCALE, POWER = 0.4543 * 0.529, 0.300
COULOMB = 14.3996


class PairRepulsion(Constants):
    """Half of each pair's repulsion at either atom."""

    radii: Tensor

    def __init__(self, p: int) -> None:
        super().__init__()
        self.p = p
        self.constant("radii", np.array(covalent_radii))

    def forward(self, graph: Graph, r_ij: Tensor) -> Tensor:
        """Energies of the atoms, (N,) [eV]."""
        i, j = graph.edge_index
        z = graph.atomic_numbers
        squared = r_ij.square().sum(1)
        itself = squared == 0
        d = torch.where(itself, 1.0, squared).sqrt()
        zi, zj = (z.index_select(0, k) for k in (i, j))
        outer = self.radii.index_select(0, zi) + self.radii.index_select(0, zj)
        zi, zj = zi.to(d), zj.to(d)
        a = SCALE / (zi**POWER + zj**POWER)
        screening = sum(f * torch.exp(-rate * d / a) for f, rate in zip(FACTORS, RATES))
        energy = COULOMB / 2 * zi * zj / d * screening * envelope(d / outer, self.p)
        return segment_sum(torch.where(itself, 0.0, energy), i, z.shape[0])
