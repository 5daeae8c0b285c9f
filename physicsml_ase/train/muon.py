"""Muon for matrices, Adam for everything else, in one optimizer.

Muon (Jordan et al., 2024, kellerjordan.github.io/posts/muon) replaces a matrix's averaged gradient by the nearest
orthogonal matrix, found by five Newton-Schulz steps, so that all directions are learned equally fast. Here stacks of
matrices, such as one for each degree of harmonics, are orthogonalised together, and the step is scaled to the size of
Adam's (Liu et al., arXiv:2502.16982). What is not a matrix, or a table by element (`is_matrix`), takes Adam's steps
(arXiv:1412.6980) at `adam_ratio` times the learning rate.

Where some rows of a matrix are expected to be smaller than others (`MuonAdam.expect`), steps are those of the matrix
with these sizes taken out, and then have them too.
"""

from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)
"""Coefficients of Jordan's iteration, X <- a X + (b A + c A A) X with A = X X^T."""
STEPS = 5
TABLES = ("bias", "table", "embed", "channels", "elements", "shifts", "scales")
"""Words in the names of weights that hold one row for each element, or that are added."""


def is_matrix(name: str, parameter: nn.Parameter) -> bool:
    """Whether a weight maps features to features: only then its singular vectors mean something."""
    return parameter.ndim >= 2 and not any(word in name for word in TABLES)


class MuonAdam(Optimizer):
    """Muon for the groups with `orthogonal`, Adam for the others."""

    def __init__(
        self,
        params: Iterable[dict[str, Any]] | Iterable[nn.Parameter],
        lr: float = 0.01,
        momentum: float = 0.95,
        weight_decay: float = 0.0,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        adam_ratio: float = 0.5,
    ) -> None:
        if not lr > 0:
            raise ValueError(f"lr is {lr}; must be above 0")
        if not 0 <= momentum < 1:
            raise ValueError(f"momentum is {momentum}; must be from 0 to below 1")
        defaults = {
            "lr": lr,
            "momentum": momentum,
            "weight_decay": weight_decay,
            "betas": tuple(betas),
            "eps": eps,
            "adam_ratio": adam_ratio,
            "orthogonal": False,
        }
        super().__init__(params, defaults)

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        """One step; `closure`, which Lightning gives, computes loss and gradients first."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            params = [p for p in group["params"] if p.grad is not None]
            if params:
                (self._muon if group["orthogonal"] else self._adam)(params, group)
        return loss

    def expect(self, sizes: Iterable[tuple[Tensor, Tensor]]) -> None:
        """Train matrices as if they were divided by these sizes, which may be broadcast: in steps like them."""
        matrices = {p for group in self.param_groups if group["orthogonal"] for p in group["params"]}
        for p, size in sizes:
            if p in matrices:
                self.state[p]["size"] = size.to(p).expand_as(p).contiguous()

    def _muon(self, params: list[Tensor], group: dict[str, Any]) -> None:
        expected = [self.state[p].get("size") for p in params]
        grads = [p.grad if e is None else p.grad * e for p, e in zip(params, expected) if p.grad is not None]
        averages = [self._state(p, "momentum") for p in params]
        torch._foreach_lerp_(averages, grads, 1 - group["momentum"])
        looking_ahead = torch._foreach_lerp(grads, averages, group["momentum"])
        if group["weight_decay"]:
            torch._foreach_mul_(params, 1 - group["lr"] * group["weight_decay"])
        for shape, places in by_shape(params):
            stack = torch.cat([wide(looking_ahead[k]).reshape(-1, *shape) for k in places])
            counts = [params[k].numel() // (shape[0] * shape[1]) for k in places]
            rate = -0.2 * shape[1] ** 0.5 * group["lr"]
            for k, step in zip(places, orthogonalised(stack).split(counts)):
                p, size = params[k], expected[k]
                step = (step.mT if tall(p) else step).reshape(p.shape)
                if size is None:
                    p.add_(step, alpha=rate)
                else:
                    p.addcmul_(step, size, value=rate)

    def _adam(self, params: list[Tensor], group: dict[str, Any]) -> None:
        grads = [p.grad for p in params if p.grad is not None]
        means = [self._state(p, "mean") for p in params]
        squares = [self._state(p, "square") for p in params]
        count = group["steps"] = group.get("steps", 0) + 1
        beta, beta2 = group["betas"]
        torch._foreach_lerp_(means, grads, 1 - beta)
        torch._foreach_mul_(squares, beta2)
        torch._foreach_addcmul_(squares, grads, grads, value=1 - beta2)
        size = torch._foreach_sqrt(squares)
        torch._foreach_mul_(size, (1 - beta2**count) ** -0.5)
        torch._foreach_add_(size, group["eps"])
        rate = group["lr"] * group["adam_ratio"]
        torch._foreach_addcdiv_(params, means, size, value=-rate / (1 - beta**count))

    def _state(self, p: Tensor, name: str) -> Tensor:
        state = self.state[p]
        if name not in state:
            state[name] = torch.zeros_like(p, memory_format=torch.contiguous_format)
        return state[name]


def tall(x: Tensor) -> bool:
    """Whether matrices (..., rows, columns) have more rows than columns."""
    return x.shape[-2] > x.shape[-1]


def wide(x: Tensor) -> Tensor:
    """Matrices with at least as many columns as rows."""
    return x.mT if tall(x) else x


def by_shape(params: list[Tensor]) -> Iterator[tuple[tuple[int, int], list[int]]]:
    """Places of the weights whose matrices, made wide, have the same shape."""
    places: dict[tuple[int, int], list[int]] = {}
    for k, p in enumerate(params):
        rows, columns = p.shape[-2:]
        places.setdefault((min(rows, columns), max(rows, columns)), []).append(k)
    yield from places.items()


def orthogonalised(x: Tensor) -> Tensor:
    """The nearest matrices with all singular values near 1, (B, rows, columns) with rows <= columns."""
    a, b, c = NEWTON_SCHULZ
    x = x / x.norm(dim=(-2, -1), keepdim=True).clamp_min(1e-12)
    for _ in range(STEPS):
        gram = torch.bmm(x, x.mT)
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x
