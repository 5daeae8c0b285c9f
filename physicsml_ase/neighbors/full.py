"""The full neighbour list: both directions of every pair, sorted by centre, with the reverse of every edge.

N atoms, E directed edges, M undirected pairs.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from physicsml_ase.neighbors.pairs import Floats, Ints, Pairs, checked, find_pairs


class Neighbors(NamedTuple):
    """Directed edges i -> j with r_ij = positions[j] + edge_shift @ cell - positions[i]."""

    edge_index: Ints  # (2, E), centre i (ascending) and neighbour j
    edge_shift: Floats  # (E, 3), whole numbers, in lattice vectors
    reverse: Ints  # (E,), the edge j -> i with the opposite shift; an involution


def neighbor_list(
    positions: ArrayLike, cell: ArrayLike, pbc: ArrayLike, cutoff: float, self_interaction: bool = False
) -> Neighbors:
    """All edges shorter than `cutoff` [Å] of atoms (N, 3) [Å] in a cell (3, 3) with periodicity (3,).

    Atoms need not be wrapped; lattice vectors of non-periodic directions are ignored. `self_interaction`
    adds the edge of zero length from every atom to itself. Periodic images of an atom are always there.
    """
    positions, cell, pbc = checked(positions, cell, pbc)
    pairs = find_pairs(positions, cell, pbc, cutoff)
    return mirrored(pairs, len(positions), self_interaction)[0]


def mirrored(pairs: Pairs, n: int, self_interaction: bool) -> tuple[Neighbors, Ints]:
    """Both directions of every pair, sorted by centre, and the pair that each edge belongs to, (E,)."""
    m = len(pairs.i)
    itself = np.arange(n if self_interaction else 0)
    centre = np.concatenate([pairs.i, pairs.j, itself])
    neighbor = np.concatenate([pairs.j, pairs.i, itself])
    shift = np.concatenate([pairs.shift, 0.0 - pairs.shift, np.zeros((len(itself), 3))])  # no negative zeros
    key = centre.astype(np.uint16) if n <= 65536 else centre  # numpy sorts 16 bits by radix
    order = np.argsort(key, kind="stable")
    place = np.empty_like(order)
    place[order] = np.arange(len(order))
    pair = np.concatenate([np.arange(m), np.arange(m + len(itself))])
    mirror = np.concatenate([place[m : 2 * m], place[:m], place[2 * m :]])
    edge_index = np.empty((2, len(order)), np.int64)
    centre.take(order, out=edge_index[0])
    neighbor.take(order, out=edge_index[1])
    return Neighbors(edge_index, shift.take(order, 0), mirror.take(order)), pair.take(order)
