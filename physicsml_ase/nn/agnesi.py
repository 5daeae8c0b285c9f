"""The Agnesi transform of distances (ACEpotentials.jl, arXiv:2309.03161), with the constants of mace-torch.

    t = 1 / (1 + a x^q / (1 + x^(q - p))),  x = d / r0,

with r0 the mean of the two covalent radii: elements' distances become alike, and close ones are told apart.
"""

import numpy as np
import torch
from ase.data import covalent_radii
from torch import Tensor

from physicsml_ase.nn.constants import Constants

Q, P, A = 0.9183, 4.5791, 1.0805


class AgnesiTransform(Constants):
    """Distances (K, 1) of atoms with atomic numbers (K,) to t (K, 1)."""

    radii: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.constant("radii", np.array(covalent_radii))

    def forward(self, d: Tensor, z_i: Tensor, z_j: Tensor) -> Tensor:
        r0 = (self.radii.index_select(0, z_i) + self.radii.index_select(0, z_j))[:, None] / 2
        x = torch.where(d == 0, 1.0, d) / r0  # an atom's edge to itself has no finite power
        return 1 / (1 + A * x**Q / (1 + x ** (Q - P)))
