"""Products of matrices that are given as nine coefficients of an orthonormal basis (`nn.matrices`).

One function for autograd, whose derivatives are such products again: written in plain operators, a product of small
systems costs some forty nodes of the graph, most of them to take rows and columns apart. Shapes: N atoms, F channels.
"""

from typing import Any

import torch
from torch import Tensor


def product(a: Tensor, b: Tensor, basis: Tensor) -> Tensor:
    """Coefficients of A B, (9, N, F) each; the basis is (9, 9)."""
    out: Tensor = _Product.apply(a, b, basis, False, False, False)
    return out


def anticommutator(a: Tensor, b: Tensor, basis: Tensor) -> Tensor:
    """Coefficients of A B + B A, (9, N, F) each; the basis is (9, 9)."""
    out: Tensor = _Product.apply(a, b, basis, True, False, False)
    return out


class _Product(torch.autograd.Function):
    """A B, or A B + B A, of matrices that are transposed before where the last two arguments say so."""

    @staticmethod
    def forward(
        ctx: Any, a: Tensor, b: Tensor, basis: Tensor, both: bool, transpose_a: bool, transpose_b: bool
    ) -> Tensor:
        """Coefficients of the product, (9, N, F)."""
        ctx.save_for_backward(a, b, basis)
        ctx.how = both, transpose_a, transpose_b
        left = _whole(a, basis, transpose_a)
        right = left if a is b and transpose_a == transpose_b else _whole(b, basis, transpose_b)
        out = left[:, 0, None] * right[None, 0]
        for k in (1, 2):
            out.addcmul_(left[:, k, None], right[None, k])
        if both:
            for k in range(3):
                out.addcmul_(right[:, k, None], left[None, k])
        return (basis @ out.flatten(0, 1).flatten(1)).view(a.shape)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        """From g (9, N, F) the gradients to a and b, by products of the same kind: they can be differentiated too."""
        a, b, basis = ctx.saved_tensors
        both, ta, tb = ctx.how
        to_a, to_b, *_ = ctx.needs_input_grad
        # of C = A B: G B^T to A and A^T G to B, and their transposes where those of A and B were taken
        first = (g, b, basis, both, False, not tb) if not ta else (b, g, basis, both, tb, True)
        second = (a, g, basis, both, not ta, False) if not tb else (g, a, basis, both, True, ta)
        return (
            _Product.apply(*first) if to_a else None,
            _Product.apply(*second) if to_b else None,
            *[None] * 4,
        )


def _whole(x: Tensor, basis: Tensor, transpose: bool) -> Tensor:
    """Matrices from coefficients, (9, N, F) -> (3, 3, N, F)."""
    whole = (basis.T @ x.flatten(1)).view(3, 3, *x.shape[1:])
    return whole.transpose(0, 1) if transpose else whole
