"""Sums of outer products of what edges have: G_g,m,k = sum over e with g(e) = g of a_e,m b_e,k.

As torch operators of their own, which go through the edges in blocks that stay in the cache. The derivatives of the
sum are products of G with a or b, and those of these products are such sums again. Shapes: E edges, G groups of them.
"""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from physicsml_ase.nn.features import segment_sum
from physicsml_ase.nn.operators import differentiated, operator

BLOCK, BLOCK_OF_GPU = 1 << 18, 1 << 26
"""Numbers at a time: what stays in a CPU's cache, and what keeps a GPU busy."""


def at_a_time(device: torch.device) -> int:
    """How many numbers are computed at a time."""
    return BLOCK if device.type == "cpu" else BLOCK_OF_GPU


def blocks(size: int, width: int, device: torch.device) -> Iterator[slice]:
    """Slices of edges of so many numbers each."""
    step = max(32, at_a_time(device) // width)
    return (slice(start, min(start + step, size)) for start in range(0, size, step))


def outer_sum(a: Tensor, b: Tensor, group: Tensor, num_groups: int) -> Tensor:
    """(E, M) and (E, K) summed to (G, M, K)."""
    if a.shape[0] * a.shape[1] * b.shape[1] <= at_a_time(a.device):  # all of them stay in the cache
        return segment_sum(a[:, :, None] * b[:, None, :], group, num_groups)
    return _outer_sum(a, b, group, num_groups)


@operator(
    "outer_sum(Tensor a, Tensor b, Tensor group, SymInt num_groups) -> Tensor",
    fake=lambda a, b, group, num_groups: a.new_empty(num_groups, a.shape[1], b.shape[1]),
)
def _outer_sum(a: Tensor, b: Tensor, group: Tensor, num_groups: int) -> Tensor:
    """(E, M) and (E, K) summed to (G, M, K)."""
    out = a.new_zeros(num_groups, a.shape[1], b.shape[1])
    for block in blocks(a.shape[0], a.shape[1] * b.shape[1], a.device):
        out.index_add_(0, group[block], a[block, :, None] * b[block, None, :])
    return out


@operator(
    "outer_left(Tensor g, Tensor b, Tensor group) -> Tensor",
    fake=lambda g, b, group: b.new_empty(b.shape[0], g.shape[1]),
)
def outer_left(g: Tensor, b: Tensor, group: Tensor) -> Tensor:
    """Matrices (G, M, K) of the edges' groups times vectors (E, K), (E, M)."""
    out = b.new_empty(b.shape[0], g.shape[1])
    for block in blocks(b.shape[0], g.shape[1] * g.shape[2], g.device):
        out[block] = (g.index_select(0, group[block]) @ b[block, :, None])[:, :, 0]
    return out


@operator(
    "outer_right(Tensor g, Tensor a, Tensor group) -> Tensor",
    fake=lambda g, a, group: a.new_empty(a.shape[0], g.shape[2]),
)
def outer_right(g: Tensor, a: Tensor, group: Tensor) -> Tensor:
    """Vectors (E, M) times matrices (G, M, K) of the edges' groups, (E, K)."""
    out = a.new_empty(a.shape[0], g.shape[2])
    for block in blocks(a.shape[0], g.shape[1] * g.shape[2], g.device):
        out[block] = (a[block, None, :] @ g.index_select(0, group[block]))[:, 0]
    return out


def _of_sum(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
    a, b, group = ctx.saved_tensors
    to_a, to_b, *_ = ctx.needs_input_grad
    return (outer_left(g, b, group) if to_a else None, outer_right(g, a, group) if to_b else None, None, None)


def _of_left(ctx: Any, h: Tensor) -> tuple[Tensor | None, ...]:
    g, b, group = ctx.saved_tensors
    to_g, to_b, *_ = ctx.needs_input_grad
    return (
        _outer_sum(h, b, group, g.shape[0]) if to_g else None,
        outer_right(g, h, group) if to_b else None,
        None,
    )


def _of_right(ctx: Any, h: Tensor) -> tuple[Tensor | None, ...]:
    g, a, group = ctx.saved_tensors
    to_g, to_a, *_ = ctx.needs_input_grad
    return (
        _outer_sum(a, h, group, g.shape[0]) if to_g else None,
        outer_left(g, h, group) if to_a else None,
        None,
    )


differentiated("outer_sum", _of_sum, 3)
differentiated("outer_left", _of_left, 3)
differentiated("outer_right", _of_right, 3)
