"""The two directions of a pair of atoms share what depends on their distance alone. Shapes: N atoms, E edges."""

from typing import NamedTuple

import torch
from torch import Tensor

from physicsml_ase.graph import Graph


class Pairs(NamedTuple):
    """P - 1 = E / 2 pairs, and after them one more at distance 0: that of an atom and itself."""

    edge: Tensor  # (P - 1,) int64, one edge of each pair
    of_edge: Tensor  # (E,) int64, pair of each edge; an atom's edge to itself has the last one


def make_pairs(graph: Graph) -> Pairs:
    """Pairs of a graph's edges; none of the shapes depends on values, so that this compiles."""
    reverse = graph.reverse
    num_edges = reverse.shape[0]
    edges = torch.arange(num_edges, device=reverse.device)
    first = edges < reverse
    rank = first.cumsum(0) - 1
    last = torch.full_like(edges, num_edges // 2)
    pair = torch.where(first, rank, torch.where(edges == reverse, last, rank.index_select(0, reverse)))
    # where atoms have edges to themselves some pairs are left over, which no edge asks for
    edge = reverse.new_zeros(num_edges // 2 + 1).index_copy(0, pair, torch.minimum(edges, reverse))
    return Pairs(edge[:-1], pair)
