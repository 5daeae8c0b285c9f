"""Exponential moving average of the weights: what is validated, selected and deployed."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Annotated, Any

import torch
from pydantic import Field
from torch import Tensor, nn

from physicsml_ase.config import config


@config
class EmaConfig:
    """Exponential moving average of the weights."""

    decay: Annotated[float, Field(ge=0, lt=1)] = 0.995
    """Share of the average that each step keeps; 0 switches averaging off. Early on it is smaller,
    (1 + steps) / (10 + steps), so that random initial weights are soon forgotten."""


class Ema:
    """The averaged weights of a module, and their place in it while they are looked at."""

    def __init__(self, module: nn.Module, decay: float) -> None:
        self.decay, self.steps = decay, 0
        self.module = module
        self.weights = {name: p.detach().clone() for name, p in module.named_parameters()}
        self._followed: list[Tensor] = list(module.parameters())
        self._own: dict[str, Tensor] | None = None  # the module's own weights while it wears the average

    @torch.no_grad()
    def update(self) -> None:
        """Count the module's present weights in."""
        self.steps += 1
        decay = min(self.decay, (1 + self.steps) / (10 + self.steps))
        torch._foreach_lerp_(list(self.weights.values()), self._followed, 1 - decay)

    @torch.no_grad()
    def put_on(self) -> None:
        """Give the module the averaged weights, until `take_off`."""
        if self._own is None:
            self._own = {name: p.detach().clone() for name, p in self.module.named_parameters()}
            self._set(self.weights)

    @torch.no_grad()
    def take_off(self) -> None:
        """Give the module its own weights back."""
        if self._own is not None:
            self._set(self._own)
            self._own = None

    @contextmanager
    def worn(self) -> Iterator[None]:
        """The module with the averaged weights."""
        self.put_on()
        try:
            yield
        finally:
            self.take_off()

    @property
    def own_weights(self) -> Mapping[str, Tensor]:
        """The module's own weights, also while it wears the average."""
        return self._own if self._own is not None else dict(self.module.named_parameters())

    def follow(self) -> None:
        """Move the average to the module's device and number type."""
        self._followed = list(self.module.parameters())
        self.weights = {name: self.weights[name].to(p) for name, p in self.module.named_parameters()}

    def state_dict(self) -> dict[str, Any]:
        """Plain data that `load_state_dict` takes."""
        return {"steps": self.steps, "weights": {k: v.clone() for k, v in self.weights.items()}}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from a saved average."""
        self.steps = state["steps"]
        self.weights = {name: state["weights"][name].clone() for name in self.weights}

    def _set(self, weights: Mapping[str, Tensor]) -> None:
        for name, p in self.module.named_parameters():
            p.copy_(weights[name])
