"""Whether two ways to compute a training step have the same gradients: compilers have bugs, and kernels may too."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

FLOOR = 1e-3
"""Gradients of a weight below this part of the largest weight's are compared with the largest."""


def gradient_error(
    weights: Sequence[Tensor], plain: Mapping[str, Tensor], fast: Mapping[str, Tensor]
) -> float:
    """The largest relative difference of weights' gradients, of a loss of all outputs; frees their graphs."""
    found = [torch.autograd.grad(_loss(out), weights, allow_unused=True) for out in (plain, fast)]
    norms = [0.0 if g is None else g.norm().item() for g in found[0]]
    least = max(FLOOR * max(norms, default=0.0), 1e-12)
    errors = [0.0]
    for norm, a, b in zip(norms, *found):
        if a is not None or b is not None:  # one may have zeros for what the other knows to be none
            difference = (0.0 if a is None else a) - (0.0 if b is None else b)
            assert isinstance(difference, Tensor)
            errors.append(difference.norm().item() / max(norm, least))
    return max(errors, key=lambda error: error if error == error else float("inf"))  # not a number is worst


def _loss(outputs: Mapping[str, Tensor]) -> Tensor:
    """Of energies as they are, which may be large, and of the rest squared; what is no number counts for nothing."""
    terms = []
    for name, value in outputs.items():
        if value.requires_grad and name != "energies":
            value = value.nan_to_num()
            terms.append(1e-3 * value.sum() if name == "energy" else value.square().mean())
    return torch.stack([term.double() for term in terms]).sum()
