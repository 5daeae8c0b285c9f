"""Torch operators of our own, which compilers take as they are and autograd differentiates as they say.

(`torch.library.custom_op` does the same, but its first call imports torch's compiler, for more than a second.)
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

Function = Callable[..., Tensor]
Gradients = Callable[..., tuple[Tensor | None, ...]]


def operator(schema: str, fake: Function) -> Callable[[Function], Function]:
    """Make a function of tensors an operator whose shape `fake` tells; the schema as "name(Tensor a) -> Tensor"."""
    name, arguments = schema.split("(", 1)

    def register(function: Function) -> Function:
        torch.library.define(f"physicsml_ase::{name}", f"({arguments}")
        torch.library.impl(f"physicsml_ase::{name}", "CompositeExplicitAutograd", function)
        torch.library.register_fake(f"physicsml_ase::{name}", fake)
        made: Function = getattr(torch.ops.physicsml_ase, name).default
        return made

    return register


def differentiated(name: str, gradients: Gradients, num_tensors: int) -> None:
    """`gradients(ctx, g)` of an operator, with its first so many arguments in `ctx.saved_tensors`."""

    def keep(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.save_for_backward(*inputs[:num_tensors])

    torch.library.register_autograd(f"physicsml_ase::{name}", gradients, setup_context=keep)
