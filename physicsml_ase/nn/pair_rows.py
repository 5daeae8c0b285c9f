"""Edges in rows of slots (`nn.slots`), with what each slot reads of its pair (`nn.pairs`) and of its neighbour.

Networks of the distance are evaluated once for each pair and gathered into slots; sums over neighbours are batched
matrix products. Shapes: N atoms, E edges, P pairs, R rows of J slots, S = R J, M = (lmax + 1)^2 harmonics.
"""

from typing import NamedTuple

import torch
from torch import Tensor
from torch.fx.experimental.proxy_tensor import get_proxy_mode

from physicsml_ase.graph import Graph
from physicsml_ase.nn.blocks import Blocks
from physicsml_ase.nn.pairs import make_pairs
from physicsml_ase.nn.slots import Slots, make_slots
from physicsml_ase.nn.transposes import apart, in_memory, linear_map


class PairRows(NamedTuple):
    """What is in each slot. Padding holds the pair of an atom and itself; harmonics of zero make it harmless."""

    slots: Slots
    edge: Tensor  # (P - 1,) int64, one edge of each pair; the last pair is that of an atom and itself
    pair_of_edge: Tensor  # (E,) int64
    pair: Tensor  # (S,) int64, pair of each slot
    neighbor: Tensor  # (S,) int64, atom of each slot
    blocks: Blocks | None = None  # atoms by element, where these have to be given to compiled code

    def of_pairs(self, d_ij: Tensor) -> Tensor:
        """Distances of pairs, (E, 1) -> (P, 1)."""
        return torch.cat([d_ij.index_select(0, self.edge), d_ij.new_zeros(1, 1)])

    def of_slots(self, pairs: Tensor) -> Tensor:
        """Values of pairs in each slot, (P, F) -> (S, F), which in padding must count for nothing."""
        if get_proxy_mode() is None:
            return pairs.index_select(0, self.pair)
        one, other, weight = self._slots_of_pairs()

        def transpose(g: Tensor) -> Tensor:
            both = (g.index_select(0, one) + g.index_select(0, other)) * weight.to(g.dtype)[:, None]
            return torch.cat([both, torch.zeros_like(both[:1])])

        return linear_map(in_memory(pairs), lambda x: x.index_select(0, self.pair), transpose)

    def of_neighbors(self, x: Tensor) -> Tensor:
        """Values of the neighbour in each slot, (N, F) -> (S, F), which in padding must count for nothing."""
        if get_proxy_mode() is None:
            return x.index_select(0, self.neighbor)
        num_atoms, width = x.shape[0], self.slots.width

        def transpose(g: Tensor) -> Tensor:
            # slots that hold an atom as neighbour are the reverse ones of its own
            back = in_memory(g).index_select(0, apart(self.slots.reverse)).unflatten(0, (-1, width))
            return self.slots.per_atom(back.sum(1), num_atoms)

        return linear_map(in_memory(x), lambda x: x.index_select(0, self.neighbor), transpose)

    def _slots_of_pairs(self) -> tuple[Tensor, Tensor, Tensor]:
        """Slots of both edges of each pair but the last, and what each counts."""
        one = self.edge if self.full() else self.slots.slot.index_select(0, self.edge)
        other = self.slots.reverse.index_select(0, one)
        return one, other, self.weights()

    def weights(self) -> Tensor:
        """What each of a pair's two edges counts (P - 1,): half if they are one, nothing if there is none."""
        ranks = torch.arange(self.edge.shape[0], device=self.edge.device)
        none = self.pair_of_edge.index_select(0, self.edge) != ranks
        one = self.edge if self.full() else self.slots.slot.index_select(0, self.edge)
        once = self.slots.reverse.index_select(0, one) == one
        return torch.where(none, 0.0, torch.where(once, 0.5, 1.0))

    def fill(self, edges: Tensor) -> Tensor:
        """Values of edges in rows, zero in padding, (E, F) -> (R, J, F)."""
        if self.full():
            return edges.reshape(-1, self.slots.width, edges.shape[1])
        return self.slots.fill(edges)

    def of_edges(self, x: Tensor) -> Tensor:
        """The inverse of `fill`, (R, J, F) -> (E, F)."""
        flat = x.flatten(0, 1)
        return flat if self.full() else flat.index_select(0, self.slots.slot)

    def full(self) -> bool:
        """Whether slots are the edges, in order."""
        return self.pair.shape[0] == self.pair_of_edge.shape[0]

    def neighbor_sum(self, x: Tensor, num_atoms: int) -> Tensor:
        """Sums over neighbours, (E, F) -> (N, F)."""
        return self.slots.per_atom(self.fill(x).sum(1), num_atoms)

    def sums(self, harmonics: Tensor, x: Tensor, num_atoms: int) -> Tensor:
        """Sums over neighbours of Y_m x, from harmonics (R, M, J) and x (S, F) to (N, M, F)."""
        rows, _, width = harmonics.shape
        return self.slots.per_atom(harmonics @ x.view(rows, width, -1), num_atoms)


def make_pair_rows(graph: Graph) -> PairRows:
    """Rows of a graph's edges, which are sorted by centre."""
    pairs, j = make_pairs(graph), graph.edge_index[1]
    if (
        get_proxy_mode() is not None
    ):  # traced for a compiler, sizes must not depend on values: each edge is a row
        slots = Slots(torch.arange(j.shape[0], device=j.device), graph.reverse, graph.edge_index[0], 1)
        return PairRows(slots, pairs.edge, pairs.of_edge, pairs.of_edge, j)
    slots = make_slots(graph)
    num_slots = slots.reverse.shape[0]
    if num_slots == j.shape[0]:  # no padding
        return PairRows(slots, pairs.edge, pairs.of_edge, pairs.of_edge, j)
    pair = j.new_full((num_slots,), pairs.edge.shape[0]).index_copy(0, slots.slot, pairs.of_edge)
    neighbor = j.new_zeros(num_slots).index_copy(0, slots.slot, j)
    return PairRows(slots, pairs.edge, pairs.of_edge, pair, neighbor)
