"""Neighbours in rows of equal length: what a compiled step reads of a structure beside its positions.

It stays while the neighbour list and the cell stay, for many steps of MD. Shapes: N atoms, rows of J slots.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from physicsml_ase.graph import Graph

PADDED = 2.0
"""Rows that hold this many times as many slots as there are edges are not worth while."""
ALWAYS = 4096
"""Slots that are worth while however few of them are filled."""


ROUNDED, WIDTHS = {"cuda"}, 4
"""Devices on which sizes are rounded up, so that a step recorded with one neighbour list (`graphed`) serves the
next, and what rows are a multiple of there."""


def rounded(size: int, step: int, device: torch.device) -> int:
    """The next multiple of a step, where sizes are rounded up."""
    return -(-size // step) * step if device.type in ROUNDED else size


class Rows(NamedTuple):
    """Each atom's neighbours. What is left of a row holds the atom itself, beyond the cut-off, its own reverse."""

    neighbor: Tensor  # (N, J) int64
    reverse: Tensor  # (N, J) int64, slot (of all N J) of the reverse edge; an involution
    shift: Tensor  # (N, J, 3) float64 [Å]: r_ij = x_j + shift - x_i


def make_rows(graph: Graph, cutoff: float) -> Rows | None:
    """Rows of a batch; None for a lone atom, and where a few atoms have many more neighbours than the others."""
    i, j = graph.edge_index
    n, num_edges, device = graph.atomic_numbers.shape[0], i.shape[0], i.device
    counts = torch.bincount(i, minlength=n)  # (N,)
    width = max(int(counts.max()), 2)  # compiled code takes no sizes of 1
    width = rounded(width, WIDTHS, device)
    if n < 2 or n * width > max(PADDED * num_edges, ALWAYS):
        return None
    place = torch.arange(num_edges, device=device) - (counts.cumsum(0) - counts).index_select(0, i)
    slot = i * width + place  # (E,)
    neighbor = torch.arange(n, device=device).repeat_interleave(width)  # (N J,)
    neighbor[slot] = j
    reverse = torch.arange(n * width, device=device)
    reverse[slot] = slot.index_select(0, graph.reverse)
    shift = graph.positions.new_tensor([2 * cutoff, 0.0, 0.0]).repeat(n * width, 1)  # (N J, 3)
    shift[slot] = _shifts(graph)
    return Rows(neighbor.view(n, width), reverse.view(n, width), shift.view(n, width, 3))


def _shifts(graph: Graph) -> Tensor:
    """Shift of each edge (E, 3) [Å]."""
    if graph.cell.shape[0] == 1:
        return graph.edge_shift @ graph.cell[0]
    cells = graph.cell.repeat_interleave(graph.num_edges, dim=0)  # (E, 3, 3)
    return (graph.edge_shift[:, :, None] * cells).sum(1)
