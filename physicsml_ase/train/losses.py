"""Losses: one weighted term for each label, missing labels masked.

A term is a sum over the values that have a label, divided by their number in the whole batch, over all
ranks: a batch without any contributes zero, and two processes see the loss that one would.
"""

import math
from collections.abc import Callable, Mapping
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor, nn

from physicsml_ase.config import config, did_you_mean
from physicsml_ase.conventions import InputError
from physicsml_ase.graph import Graph


class L2NormLoss(nn.Module):
    """Length of the error vector: of a force, of a stress matrix; of a number, its absolute value.

    Linear in large errors, so that a few outliers do not rule, and rotation-invariant, unlike the L1 loss.
    """

    def forward(self, prediction: Tensor, target: Tensor) -> Tensor:  # (K, ...) -> (K,)
        error = (prediction - target).flatten(1) if prediction.ndim > 1 else (prediction - target)[:, None]
        # the offset keeps the gradient finite where a prediction is exact
        return (error.square().sum(-1) + 1e-16).sqrt()


OWN: dict[str, type[nn.Module]] = {"L2NormLoss": L2NormLoss}
"""This package's own losses, besides torch.nn's."""
MOST = {"energy": 1.0, "forces": 30.0}
"""What one value counts for at most when validation chooses the best weights [eV/atom, eV/Å]: a structure in another
unit, or of a failed calculation, must not decide."""
ELEMENTWISE = ("L1Loss", "MSELoss", "HuberLoss", "SmoothL1Loss", "SoftMarginLoss", "PoissonNLLLoss")
"""The classes of torch.nn that compare a prediction with a target of its shape."""


@config
class LossTerm:
    """The loss of one label."""

    name: str = "HuberLoss"
    """A loss of torch.nn (L1Loss, MSELoss, HuberLoss, SmoothL1Loss, ...) or this package's own (L2NormLoss)."""
    weight: Annotated[float, Field(ge=0)] = 1.0
    """Weight of the term in the total."""
    per_atom: bool = False
    """Compare a structure's label divided by its number of atoms."""
    config: dict[str, float] = Field(default_factory=dict)
    """Keyword arguments of the loss class, such as delta."""


class Term(nn.Module):
    """One label's loss as a sum and the number of values in it."""

    def __init__(self, label: str, settings: LossTerm) -> None:
        super().__init__()
        known = {**{name: getattr(nn, name) for name in ELEMENTWISE}, **OWN}
        if settings.name not in known:
            raise InputError(f"loss.{label}.name: {settings.name!r}: {did_you_mean(settings.name, known)}")
        arguments: dict[str, object] = dict(settings.config)
        if settings.name not in OWN:
            arguments["reduction"] = "none"
        try:
            self.compare: Callable[[Tensor, Tensor], Tensor] = known[settings.name](**arguments)
        except TypeError as error:
            raise InputError(f"loss.{label}.config: {error}") from None
        self.label, self.weight, self.per_atom = label, settings.weight, settings.per_atom
        linear = settings.name == "L2NormLoss" and (settings.per_atom or label != "energy")
        self.most = MOST.get(label, math.inf) if linear else math.inf

    def forward(
        self, prediction: Tensor, target: Tensor, graph: Graph, capped: bool = False
    ) -> tuple[Tensor, Tensor]:
        """Sum of the loss over labelled values, and their number, both float64 scalars."""
        present = torch.isfinite(target)
        if prediction.ndim > 1:  # a vector or matrix counts when it is whole
            present = present.flatten(1).all(1)  # (K,)
        whole = present.view(-1, *[1] * (prediction.ndim - 1))
        prediction = torch.where(whole, prediction.double(), 0.0)
        target = torch.where(whole, target, 0.0)
        if self.per_atom:
            n = graph.num_atoms.view(-1, *[1] * (prediction.ndim - 1))
            prediction, target = prediction / n, target / n
        loss = self.compare(prediction, target)
        loss = loss.flatten(1).mean(1) if loss.ndim > 1 else loss  # (K,)
        if capped:
            loss = loss.clamp(max=self.most)
        return (loss * present).sum(), present.sum().double()


class Loss(nn.Module):
    """All terms of a run's loss."""

    def __init__(self, terms: Mapping[str, LossTerm]) -> None:
        super().__init__()
        self.labels = tuple(terms)
        self.weights = tuple(term.weight for term in terms.values())
        self.terms = nn.ModuleList(Term(label, settings) for label, settings in terms.items())

    def forward(
        self, predictions: Mapping[str, Tensor], graph: Graph, capped: bool = False
    ) -> tuple[Tensor, Tensor]:
        """Sums (T,) and counts (T,) of the terms, in their order; `capped` where weights are compared by them."""
        parts = [
            term(predictions[name], graph.targets[name], graph, capped)
            for name, term in zip(self.labels, self.terms)
        ]
        sums, counts = zip(*parts)
        return torch.stack(sums), torch.stack(counts)

    def total(self, means: Tensor) -> Tensor:
        """The weighted sum of the terms' means (T,)."""
        return (means * means.new_tensor(self.weights)).sum()


def default_loss(labels: Mapping[str, str]) -> dict[str, LossTerm]:
    """The recipe's loss for labels {name: level}: robust, and right without tuning for most data.

    Energies per atom and force vectors by the length of their error; measured in `benchmarks/recipe.md`.
    """
    weights = {"energy": 1.0, "forces": 1.0, "stress": 2.0}
    return {
        name: LossTerm(name="L2NormLoss", weight=weights.get(name, 1.0), per_atom=name == "energy")
        for name in labels
    }
