"""Messages of matrices: sums over neighbours of x_j times factors that a pair has for each of their three parts.

    y_i,c,f = sum_j F_ij,p(c),f x_j,c,f

As torch operators of their own, which go through the edges in blocks that stay in the cache: what an edge sends, 9F
numbers, is never all in memory. Since F_ij = F_ji, the gradient to x is the same sum, and that to F a product of the
values of a pair's atoms, whose gradients are sums again: two operators are each other's derivatives, of any order.

Shapes: N atoms, E edges, P pairs (`nn.pairs`), F channels; matrices are (N, 9, F), factors (P, 3, F).
"""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from physicsml_ase.graph import Graph
from physicsml_ase.nn.matrices import PARTS
from physicsml_ase.nn.operators import differentiated, operator
from physicsml_ase.nn.pairs import Pairs

BLOCK, BLOCK_OF_GPU = 1 << 18, 1 << 26
"""Numbers at a time: what stays in a CPU's cache, and what keeps a GPU busy."""


def messages(factors: Tensor, x: Tensor, graph: Graph, pairs: Pairs) -> Tensor:
    """Sums over neighbours, (P, 3, F) and (N, 9, F) -> (N, 9, F)."""
    i, j = graph.edge_index
    return gather(factors.contiguous(), x.contiguous(), i, j, pairs.of_edge, pairs.edge)


def blocks(size: int, channels: int, device: torch.device) -> Iterator[slice]:
    """Slices of edges or pairs."""
    step = max(32, (BLOCK if device.type == "cpu" else BLOCK_OF_GPU) // (12 * channels))
    return (slice(start, min(start + step, size)) for start in range(0, size, step))


@operator(
    "gather_matrices(Tensor f, Tensor x, Tensor i, Tensor j, Tensor of_edge, Tensor edge) -> Tensor",
    fake=lambda f, x, i, j, of_edge, edge: torch.empty_like(x),
)
def gather(f: Tensor, x: Tensor, i: Tensor, j: Tensor, of_edge: Tensor, edge: Tensor) -> Tensor:
    """The sums over neighbours."""
    out = torch.zeros_like(x)
    for block in blocks(i.shape[0], x.shape[2], x.device):
        sent, factors = x.index_select(0, j[block]), f.index_select(0, of_edge[block])
        for k, part in enumerate(PARTS):
            sent[:, part] *= factors[:, k : k + 1]
        out.index_add_(0, i[block], sent)
    return out


@operator(
    "correlate_matrices(Tensor y, Tensor x, Tensor i, Tensor j, Tensor of_edge, Tensor edge) -> Tensor",
    fake=lambda y, x, i, j, of_edge, edge: x.new_empty(edge.shape[0] + 1, 3, x.shape[2]),
)
def correlate(y: Tensor, x: Tensor, i: Tensor, j: Tensor, of_edge: Tensor, edge: Tensor) -> Tensor:
    """Sums of y_i x_j over both edges of a pair and over the components of a part, (P, 3, F)."""
    out = x.new_zeros(edge.shape[0] + 1, 3, x.shape[2])
    itself = (of_edge == edge.shape[0]).nonzero()[:, 0]  # atoms' edges to themselves, which are seldom there
    used = (of_edge.shape[0] - itself.shape[0]) // 2
    for block in blocks(used, 2 * x.shape[2], x.device):
        a, b = i.index_select(0, edge[block]), j.index_select(0, edge[block])
        product = y.index_select(0, a).mul_(x.index_select(0, b))
        product.addcmul_(y.index_select(0, b), x.index_select(0, a))
        for k, part in enumerate(PARTS):
            torch.sum(product[:, part], 1, out=out[block, k])
    if itself.shape[0]:
        own = i.index_select(0, itself)
        product = (y.index_select(0, own) * x.index_select(0, own)).sum(0)  # (9, F)
        out[-1] = torch.stack([product[part].sum(0) for part in PARTS])
    return out


def _of_gather(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
    f, x, *edges = ctx.saved_tensors
    g, (to_f, to_x, *_) = g.contiguous(), ctx.needs_input_grad
    return (
        correlate(g, x, *edges) if to_f else None,
        gather(f, g, *edges) if to_x else None,
        *[None] * 4,
    )


def _of_correlate(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
    y, x, *edges = ctx.saved_tensors
    g, (to_y, to_x, *_) = g.contiguous(), ctx.needs_input_grad
    return (
        gather(g, x, *edges) if to_y else None,
        gather(g, y, *edges) if to_x else None,
        *[None] * 4,
    )


differentiated("gather_matrices", _of_gather, 6)
differentiated("correlate_matrices", _of_correlate, 6)
