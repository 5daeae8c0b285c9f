"""Rows of a tensor by a fixed index, differentiated without scattering. Shapes: S rows, of which Q are picked."""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from physicsml_ase.nn.constants import Constants


class Pick(Constants):
    """Rows of a tensor by a fixed index; backwards a product with ones and zeros, quicker than to scatter."""

    index: Tensor
    chosen: Tensor

    def __init__(self, index: NDArray[np.int64], size: int) -> None:
        super().__init__()
        self.constant("index", index)
        self.constant("chosen", np.equal.outer(range(size), index).astype(float))

    def forward(self, x: Tensor) -> Tensor:
        return Picked.apply(x, self.index, self.chosen)

    def transposed(self, g: Tensor) -> Tensor:
        return Summed.apply(g, self.index, self.chosen)


class Picked(torch.autograd.Function):
    """(S, ...) -> (Q, ...)."""

    @staticmethod
    def forward(ctx, x: Tensor, index: Tensor, chosen: Tensor) -> Tensor:  # type: ignore[no-untyped-def, override]
        ctx.save_for_backward(index, chosen)
        return x.index_select(0, index)

    @staticmethod
    def backward(ctx, g: Tensor):  # type: ignore[no-untyped-def, override]
        index, chosen = ctx.saved_tensors
        return Summed.apply(g, index, chosen), None, None


class Summed(torch.autograd.Function):
    """The transpose of `Picked`."""

    @staticmethod
    def forward(ctx, g: Tensor, index: Tensor, chosen: Tensor) -> Tensor:  # type: ignore[no-untyped-def, override]
        ctx.save_for_backward(index, chosen)
        return (chosen @ g.flatten(1)).unflatten(1, g.shape[1:])

    @staticmethod
    def backward(ctx, x: Tensor):  # type: ignore[no-untyped-def, override]
        index, chosen = ctx.saved_tensors
        return Picked.apply(x, index, chosen), None, None
