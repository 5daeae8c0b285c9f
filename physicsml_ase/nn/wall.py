"""A repulsive wall between atoms that are closer than any of their kind in the training data.

There a model has learned nothing and may have deep holes, into which an atom of a hot simulation falls. The wall is
the screened nuclear repulsion of Ziegler, Biersack & Littmark (The Stopping and Range of Ions in Matter, 1985),
    V = k Z Z' / d phi(d / a), a = 0.8854 a0 / (Z^0.23 + Z'^0.23),
which is right where cores overlap, times an envelope that ends at d0, nine tenths of the pair's shortest distance,
and a spring K (1 - d / d0)^3 / 3, which also holds light atoms that were never near each other. From d0 on it is
zero, with two zero derivatives: what the data teach, and what is a little beyond, is not changed. Holes of high
powers of the density are deeper than any wall is high, so the model itself is not asked there: below d0 the distance
that it is shown comes to rest at 0.97 d0, and only the wall goes on. d0 and K of each pair are settled when a model
is trained (`trust.walls`), so that the wall begins before a hole does and goes on as steeply as the model.
Shapes: N atoms, E edges.
"""

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
import torch
from ase.data import atomic_numbers, covalent_radii
from ase.units import Bohr, Hartree
from torch import Tensor

from physicsml_ase.graph import Graph
from physicsml_ase.nn.constants import Constants
from physicsml_ase.nn.features import NUM_ELEMENTS, segment_sum

HELD = 0.06
"""Over this part of d0 the distance that the model is shown comes to rest, at 0.97 d0."""
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
    No wall begins beyond `cutoff` [Å], where there are no edges: its energy would jump there.
    """

    outer: Tensor
    stiffness: Tensor

    def __init__(
        self,
        shortest_distances: Mapping[str, float],
        elements: tuple[int, ...] = (),
        cutoff: float = np.inf,
        settled: Mapping[str, tuple[float, float]] | None = None,
    ) -> None:
        """`settled` has d0 [Å] and K [eV] of the pairs for which they are not the usual ones."""
        super().__init__()
        outer = np.zeros((NUM_ELEMENTS, NUM_ELEMENTS))
        known = list(elements)
        outer[np.ix_(known, known)] = MARGIN * np.add.outer(covalent_radii[known], covalent_radii[known])
        for pair, distance in shortest_distances.items():
            a, b = (atomic_numbers[symbol] for symbol in pair.split("-"))
            outer[a, b] = outer[b, a] = MARGIN * distance
        stiffness = np.full_like(outer, STIFFNESS)
        for pair, (begin, k) in (settled or {}).items():
            a, b = (atomic_numbers[symbol] for symbol in pair.split("-"))
            outer[a, b] = outer[b, a] = begin
            stiffness[a, b] = stiffness[b, a] = k
        self.constant("outer", np.minimum(outer, cutoff).ravel())
        self.reach = 1.000001 * float(np.minimum(outer, cutoff).max())  # tables are rounded
        """Where the first wall begins [Å]."""
        self.constant("stiffness", stiffness.ravel())

    def near(self, graph: Graph, r_ij: Tensor) -> "Near | None":
        """The edges (E, 3) that are within the wall, None where there are none."""
        i, j = graph.edge_index
        z = graph.atomic_numbers
        squared = r_ij.detach().square().sum(1)
        if not bool((squared < self.reach**2).any()):
            return None
        pairs = z.index_select(0, i) * NUM_ELEMENTS + z.index_select(0, j)
        outer = self.outer.double().index_select(0, pairs)
        index = ((squared < outer.square()) & (squared > 0)).nonzero()[:, 0]
        if not index.shape[0]:
            return None
        za, zb = (z.index_select(0, of.index_select(0, index)).double() for of in (i, j))
        stiffness = self.stiffness.double().index_select(0, pairs.index_select(0, index))
        return Near(index, outer.index_select(0, index), stiffness, i.index_select(0, index), za, zb)

    def forward(self, near: "Near", r_ij: Tensor, num_atoms: int) -> tuple[Tensor, Tensor]:
        """Energies of the atoms (N,) [eV] and their sum's gradient to r_ij (E, 3), float64."""
        r = r_ij.index_select(0, near.edge)
        d = r.norm(dim=1)
        energy, slope = repulsion(d, near.outer, near.za, near.zb, near.stiffness)
        # each pair has two edges, which share its energy
        energies = segment_sum(energy / 2, near.centre, num_atoms)
        g = torch.zeros_like(r_ij).index_copy(0, near.edge, (slope / (2 * d))[:, None] * r)
        return energies, g


class Near(NamedTuple):
    """Edges within the wall, K of them."""

    edge: Tensor  # (K,) int64
    outer: Tensor  # (K,) where their wall begins [Å]
    stiffness: Tensor  # (K,) of their spring [eV]
    centre: Tensor  # (K,) int64
    za: Tensor  # (K,) atomic numbers, float64
    zb: Tensor

    def seen(self, r_ij: Tensor) -> Tensor:
        """Pair vectors (E, 3) as the model is shown them: no shorter than what it has learned something of."""
        r = r_ij.index_select(0, self.edge)
        d = r.norm(dim=1)
        shown, _ = held(d, self.outer)
        return r_ij.index_copy(0, self.edge, (shown / d)[:, None] * r)

    def gradient(self, r_ij: Tensor, g: Tensor) -> Tensor:
        """The gradient to r_ij (E, 3), from that to what `seen` makes of it."""
        r, g_near = r_ij.index_select(0, self.edge), g.index_select(0, self.edge)
        d = r.norm(dim=1)
        shown, slope = held(d, self.outer)
        u = r / d[:, None]
        along = (g_near * u).sum(1, keepdim=True) * u
        pulled = slope[:, None] * along + (shown / d)[:, None] * (g_near - along)
        return g.index_copy(0, self.edge, pulled)


def held(d: Tensor, outer: Tensor) -> tuple[Tensor, Tensor]:
    """A distance below `outer` that comes to rest at 0.97 of it, and its derivative; (K,) each."""
    t = ((1 - d / outer) / HELD).clamp(max=1.0)
    return outer * (1 - HELD * (t - t**3 + t**4 / 2)), 1 - 3 * t**2 + 2 * t**3


def repulsion(
    d: Tensor, outer: Tensor, za: Tensor, zb: Tensor, stiffness: Tensor | float = STIFFNESS
) -> tuple[Tensor, Tensor]:
    """Energy of each pair [eV] and its derivative [eV/Å], at d < outer [Å]; all (K,) float64."""
    a = 0.8854 * Bohr / (za**0.23 + zb**0.23)
    terms = [(f * torch.exp(-rate * d / a), rate / a) for f, rate in zip(FACTORS, RATES)]
    screening = sum((term for term, _ in terms), torch.zeros_like(d))
    falling = -sum((term * rate for term, rate in terms), torch.zeros_like(d))
    bare = COULOMB * za * zb / d
    zbl, zbl_slope = bare * screening, bare * (falling - screening / d)
    x = d / outer
    envelope, envelope_slope = (1 - x) ** 3 * (1 + 3 * x + 6 * x * x), -30 * (x * (1 - x)) ** 2 / outer
    spring, spring_slope = stiffness / 3 * (1 - x) ** 3, -stiffness * (1 - x) ** 2 / outer
    return zbl * envelope + spring, zbl_slope * envelope + zbl * envelope_slope + spring_slope
