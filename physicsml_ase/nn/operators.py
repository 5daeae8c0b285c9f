"""Torch operators of our own, which compilers take as they are and autograd differentiates as they say.

(`torch.library.custom_op` does the same, but its first call imports torch's compiler, for more than a second.)
Where nothing traces what is computed, the functions are called without torch's dispatcher, which costs a small system
more than the sums themselves.
"""

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import _get_current_dispatch_mode

Function = Callable[..., Tensor]
Gradients = Callable[..., tuple[Tensor | None, ...]]
FUNCTIONS: dict[str, Function] = {}
"""What each operator computes."""
EAGER: dict[str, type[torch.autograd.Function]] = {}
"""Each operator that can be differentiated, without the dispatcher."""


def operator(schema: str, fake: Function) -> Callable[[Function], Function]:
    """Make a function of tensors an operator whose shape `fake` tells; the schema as "name(Tensor a) -> Tensor"."""
    name, arguments = schema.split("(", 1)

    def register(function: Function) -> Function:
        """The operator that computes by this function."""
        torch.library.define(f"physicsml_ase::{name}", f"({arguments}")
        torch.library.impl(f"physicsml_ase::{name}", "CompositeExplicitAutograd", function)
        torch.library.register_fake(f"physicsml_ase::{name}", fake)
        traced: Function = getattr(torch.ops.physicsml_ase, name).default
        FUNCTIONS[name] = function

        @functools.wraps(function)
        def made(*inputs: Any) -> Tensor:
            if name not in EAGER or torch.compiler.is_compiling() or _get_current_dispatch_mode() is not None:
                return traced(*inputs)
            out: Tensor = EAGER[name].apply(*inputs)
            return out

        return made

    return register


def differentiated(name: str, gradients: Gradients, num_tensors: int) -> None:
    """`gradients(ctx, g)` of an operator, with its first so many arguments in `ctx.saved_tensors`."""

    def keep(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.save_for_backward(*inputs[:num_tensors])

    torch.library.register_autograd(f"physicsml_ase::{name}", gradients, setup_context=keep)

    class Eager(torch.autograd.Function):
        """The same for autograd alone."""

        @staticmethod
        def forward(ctx: Any, *inputs: Any) -> Tensor:
            keep(ctx, inputs, inputs[0])
            return FUNCTIONS[name](*inputs)

        backward = staticmethod(gradients)

    EAGER[name] = Eager
