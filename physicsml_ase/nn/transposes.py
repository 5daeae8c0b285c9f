"""Linear maps of tensors that are differentiated by the transpose that they come with.

Where rows are picked by an index, autograd's transpose scatters; where the index is known to be a permutation, or
each row's readers are known, it is a gather too, which compilers make one loop of with what is around it.
"""

from collections.abc import Callable

import torch
from torch import Tensor

Map = Callable[[Tensor], Tensor]


def linear_map(x: Tensor, f: Map, transpose: Map) -> Tensor:
    """f(x), of a linear f."""
    out: Tensor = _Linear.apply(x, f, transpose)
    return out


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: Tensor, f: Map, transpose: Map) -> Tensor:  # type: ignore[no-untyped-def, override]
        ctx.maps = transpose, f
        return f(x)

    @staticmethod
    def backward(ctx, g: Tensor):  # type: ignore[no-untyped-def, override]
        return _Linear.apply(g, *ctx.maps), None, None


def in_memory(x: Tensor) -> Tensor:
    """x, which a compiler is to compute once, and not again for each of those who read it."""
    return linear_map(x, _strided, _strided)


def _strided(x: Tensor) -> Tensor:
    x = x.contiguous()
    return x.as_strided(x.shape, x.stride())  # of what has strides, there must be a tensor


def apart(index: Tensor) -> Tensor:
    """An index whose numbers do not follow each other in memory, (K,).

    Of a sum over neighbours of values that are looked up in rows, inductor's loops for CPUs then make vectors of the
    rows, and not of the neighbours, whose values are far from each other.
    """
    return _strided(torch.stack([index, index], dim=1))[:, 0]
