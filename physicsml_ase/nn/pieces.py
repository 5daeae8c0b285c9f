"""A function of atoms and their neighbours computed a few atoms at a time, so that what it makes on its way is small.

Only for inference: the derivative is computed piece by piece too, from the input, and can not be differentiated
again.
Large temporary tensors cost more to allocate than to fill: each comes as fresh pages from the system.
Shapes: N atoms of P pieces, J slots of edges, F features.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

Cut = tuple[slice, ...]
"""What a piece takes of each tensor that is cut."""


def small_pieces(x: Tensor) -> bool:
    """Whether what is computed of x had better be computed a piece at a time, in pieces that stay in a CPU's cache:
    for inference without a compiler, which sees to that itself."""
    return x.is_cpu and not torch.is_grad_enabled() and not torch.compiler.is_compiling()


def joined(parts: Sequence[Tensor], dim: int = 0) -> Tensor:
    """The pieces as one; a single one as it is."""
    return parts[0] if len(parts) == 1 else torch.cat(list(parts), dim=dim)


class InPieces(torch.autograd.Function):
    """function(k, h_j, *parts) of all pieces k, one after the other, (N, ...).

    Pieces take their part `cuts[k]` of the neighbours' indices (J,) first, of which h (N, F) gives h_j, and of the
    tensors `whole` then; the parts of all pieces cover each of them in order.
    """

    @staticmethod
    def forward(  # type: ignore[no-untyped-def, override]
        ctx, function: Callable[..., Tensor], cuts: Sequence[Cut], j: Tensor, h: Tensor, *whole: Tensor
    ) -> Tensor:
        """The function's values of all pieces, (N, ...)."""
        ctx.function, ctx.cuts = function, cuts
        ctx.save_for_backward(j, h, *whole)
        with torch.no_grad():
            parts = [
                function(k, h.index_select(0, j[of_j]), *(x[at] for x, at in zip(whole, cut)))
                for k, (of_j, *cut) in enumerate(cuts)
            ]
        ctx.sizes = [part.shape[0] for part in parts]
        return torch.cat(parts)

    @staticmethod
    def backward(ctx, g: Tensor):  # type: ignore[no-untyped-def, override]
        """From g, of the shape of the values, the gradients to h (N, F) and to each tensor of `whole`."""
        if torch.is_grad_enabled():
            raise RuntimeError("what was computed in pieces can not be differentiated twice")
        j, h, *whole = (t.detach() for t in ctx.saved_tensors)
        needed = ctx.needs_input_grad[3:]
        g_h = torch.zeros_like(h) if needed[0] else None
        g_whole = [torch.empty_like(x) if need else None for x, need in zip(whole, needed[1:])]
        for k, ((of_j, *cut), g_part) in enumerate(zip(ctx.cuts, g.split(ctx.sizes))):
            given = [h.index_select(0, j[of_j]), *(x[at].detach() for x, at in zip(whole, cut))]
            for x, need in zip(given, needed):
                x.requires_grad_(need)
            with torch.enable_grad():
                out = ctx.function(k, *given)
            wanted = [x for x, need in zip(given, needed) if need]
            # a first layer may not use the atoms' own features
            found = iter(torch.autograd.grad(out, wanted, g_part, allow_unused=True, materialize_grads=True))
            if g_h is not None:
                g_h.index_add_(0, j[of_j], next(found))
            for g_x, at in zip(g_whole, cut):
                if g_x is not None:
                    g_x[at] = next(found)
        return None, None, None, g_h, *g_whole
