"""Edges in rows of equal length, so that sums over neighbours are batched matrix products.

An atom's edges fill the slots of its row; what is left of the row is padding, which counts for nothing. Where a
few atoms have many more neighbours than the mean, rows are shorter than the longest list, and such atoms have
several: one crowded atom costs its own edges, not everybody's. Shapes: N atoms, E edges, R rows of J slots.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from physicsml_ase.graph import Graph

CROWDED = 1.5
"""Rows are at most this many times as long as the mean number of neighbours."""


class Slots(NamedTuple):
    """Where each edge lies, and which slot holds its reverse."""

    slot: Tensor  # (E,) int64
    reverse: Tensor  # (R J,) int64, an involution; padding is its own reverse
    row_atom: Tensor | None  # (R,) int64, atom of each row; None where each atom has one row
    width: int  # J

    def fill(self, edges: Tensor, padding: float = 0.0) -> Tensor:
        """Values of edges in their slots, and one value in padding, (E, F) -> (R, J, F)."""
        filled = edges.new_full((self.reverse.shape[0], edges.shape[1]), padding)
        return filled.index_copy(0, self.slot, edges).view(-1, self.width, edges.shape[1])

    def per_row(self, of_atoms: Tensor, dim: int = 0) -> Tensor:
        """Values of atoms (N along `dim`) for each of their rows (R)."""
        return of_atoms if self.row_atom is None else of_atoms.index_select(dim, self.row_atom)

    def per_atom(self, of_rows: Tensor, num_atoms: int) -> Tensor:
        """Sums (N, ...) over each atom's rows (R, ...)."""
        if self.row_atom is None:
            return of_rows
        return of_rows.new_zeros(num_atoms, *of_rows.shape[1:]).index_add(0, self.row_atom, of_rows)


def make_slots(graph: Graph) -> Slots:
    """Slots for a graph's edges, which are sorted by centre."""
    i = graph.edge_index[0]
    num_atoms, num_edges = graph.atomic_numbers.shape[0], i.shape[0]
    counts = torch.bincount(i, minlength=num_atoms)  # (N,)
    longest = int(counts.max()) if num_edges else 0
    width = max(min(longest, int(CROWDED * num_edges / num_atoms) + 1), 1)
    place = torch.arange(num_edges, device=i.device) - (counts.cumsum(0) - counts).index_select(0, i)
    if longest <= width:
        row_atom, first_row = None, torch.arange(num_atoms, device=i.device)
        num_rows = num_atoms
    else:
        rows = ((counts + width - 1) // width).clamp_min(1)  # of each atom
        first_row = rows.cumsum(0) - rows
        row_atom = torch.repeat_interleave(rows)
        num_rows = row_atom.shape[0]
    # rows of one atom lie one after the other, so its slots do
    slot = first_row.index_select(0, i) * width + place
    reverse = torch.arange(num_rows * width, device=i.device)
    reverse[slot] = slot.index_select(0, graph.reverse)
    return Slots(slot, reverse, row_atom, width)


class Swap(torch.autograd.Function):
    """Values of slots at the reverse slots, (R, J, F) -> (R, J, F): the permutation is its own transpose."""

    @staticmethod
    def forward(x: Tensor, reverse: Tensor) -> Tensor:
        return x.reshape(-1, x.shape[-1]).index_select(0, reverse).view(x.shape)

    @staticmethod
    def setup_context(ctx, inputs, output) -> None:  # type: ignore[no-untyped-def]
        ctx.save_for_backward(inputs[1])

    @staticmethod
    def backward(ctx, grad: Tensor):  # type: ignore[no-untyped-def, override]
        (reverse,) = ctx.saved_tensors
        return Swap.apply(grad, reverse), None


def swap(x: Tensor, reverse: Tensor) -> Tensor:
    """What the reverse edge holds, (R, J, F) -> (R, J, F)."""
    if torch.is_grad_enabled() and x.requires_grad:
        return Swap.apply(x, reverse)
    return x.reshape(-1, x.shape[-1]).index_select(0, reverse).view(x.shape)
