"""A repulsive wall between atoms that are closer than any of their kind in the training data.

There a model has learned nothing and may have deep holes, into which an atom of a hot simulation falls. The wall is
the screened nuclear repulsion of Ziegler, Biersack & Littmark (The Stopping and Range of Ions in Matter, 1985),
    V = k Z Z' / d phi(d / a), a = 0.8854 a0 / (Z^0.23 + Z'^0.23),
which is right where cores overlap, times an envelope that ends at d0, nine tenths of the pair's shortest distance,
and a spring K (1 - d / d0)^3 / 3, which also holds light atoms that were never near each other. From d0 on it is
zero, with two zero derivatives: what the data teach, and what is a little beyond, is not changed.
Shapes: N atoms, E edges.
"""

from collections.abc import Mapping

import numpy as np
import torch
from ase.data import atomic_numbers, covalent_radii
from ase.units import Bohr, Hartree
from torch import Tensor

from physicsml_ase.graph import Graph
from physicsml_ase.nn.constants import Constants
from physicsml_ase.nn.features import NUM_ELEMENTS, segment_sum

COULOMB = Hartree * Bohr
"""e^2 / (4 pi epsilon0) [eV Å]."""
FACTORS = (0.18175, 0.50986, 0.28022, 0.02817)
RATES = (3.19980, 0.94229, 0.40290, 0.20162)
"""The universal screening function, sum of factor exp(-rate d / a)."""
MARGIN = 0.9
"""d0 as a part of the shortest distance: what is only a little hotter than the training data is still the model's."""
STIFFNESS = 1000.0
"""K [eV]: 0.3 eV at 0.9 d0, 2.7 eV at 0.8 d0, 42 eV at half."""


class Wall(Constants):
    """Repulsion below the shortest distance of each pair of elements, symbols "H-O" to Å.

    Pairs of `elements` without one, which were never neighbours, have the sum of their covalent radii in its place.
    """

    outer: Tensor

    def __init__(self, shortest_distances: Mapping[str, float], elements: tuple[int, ...] = ()) -> None:
        super().__init__()
        outer = np.zeros((NUM_ELEMENTS, NUM_ELEMENTS))
        known = list(elements)
        outer[np.ix_(known, known)] = MARGIN * np.add.outer(covalent_radii[known], covalent_radii[known])
        for pair, distance in shortest_distances.items():
            a, b = (atomic_numbers[symbol] for symbol in pair.split("-"))
            outer[a, b] = outer[b, a] = MARGIN * distance
        self.constant("outer", outer.ravel())

    def forward(self, graph: Graph, r_ij: Tensor) -> tuple[Tensor, Tensor] | None:
        """Energies of the atoms (N,) [eV] and their sum's gradient to r_ij (E, 3), float64; None where it is zero."""
        i, j = graph.edge_index
        z = graph.atomic_numbers
        squared = r_ij.square().sum(1)
        outer = self.outer.double().index_select(
            0, z.index_select(0, i) * NUM_ELEMENTS + z.index_select(0, j)
        )
        near = ((squared < outer.square()) & (squared > 0)).nonzero()[:, 0]
        if not near.shape[0]:
            return None
        r, outer = r_ij.index_select(0, near), outer.index_select(0, near)
        d = squared.index_select(0, near).sqrt()
        centre = i.index_select(0, near)
        za, zb = (z.index_select(0, of.index_select(0, near)).double() for of in (i, j))
        energy, slope = repulsion(d, outer, za, zb)
        # each pair has two edges, which share its energy
        energies = segment_sum(energy / 2, centre, z.shape[0])
        g = torch.zeros_like(r_ij).index_copy(0, near, (slope / (2 * d))[:, None] * r)
        return energies, g


def repulsion(d: Tensor, outer: Tensor, za: Tensor, zb: Tensor) -> tuple[Tensor, Tensor]:
    """Energy of each pair [eV] and its derivative [eV/Å], at d < outer [Å]; all (K,) float64."""
    a = 0.8854 * Bohr / (za**0.23 + zb**0.23)
    terms = [(f * torch.exp(-rate * d / a), rate / a) for f, rate in zip(FACTORS, RATES)]
    screening = sum((term for term, _ in terms), torch.zeros_like(d))
    falling = -sum((term * rate for term, rate in terms), torch.zeros_like(d))
    bare = COULOMB * za * zb / d
    zbl, zbl_slope = bare * screening, bare * (falling - screening / d)
    x = d / outer
    envelope, envelope_slope = (1 - x) ** 3 * (1 + 3 * x + 6 * x * x), -30 * (x * (1 - x)) ** 2 / outer
    spring, spring_slope = STIFFNESS / 3 * (1 - x) ** 3, -STIFFNESS * (1 - x) ** 2 / outer
    return zbl * envelope + spring, zbl_slope * envelope + zbl * envelope_slope + spring_slope
