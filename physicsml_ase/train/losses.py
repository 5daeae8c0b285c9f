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


class GaussianNLLLoss(nn.Module):
    """Negative log-likelihood of a Gaussian of which both are predicted, the value and its standard deviation: how
    far off the value tends to be is learned as well (Nix & Weigend 1994). It can fall below zero.

    With `beta` each value's loss is weighed by its variance to that power, taken as constant: what is predicted badly
    at first is then not given up (Seitzer et al., arXiv:2203.09168).
    """

    def __init__(self, beta: float = 0.0) -> None:
        super().__init__()
        if not 0 <= beta <= 1:
            raise TypeError(f"beta is {beta}: give 0 to 1")
        self.beta = beta

    def forward(self, prediction: Tensor, target: Tensor, std: Tensor) -> Tensor:  # (K,) each -> (K,)
        variance = std.square()
        loss = 0.5 * (variance.log() + (prediction - target).square() / variance)
        return loss * variance.detach() ** self.beta if self.beta else loss


OWN: dict[str, type[nn.Module]] = {"L2NormLoss": L2NormLoss, "GaussianNLLLoss": GaussianNLLLoss}
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
    """A loss of torch.nn (L1Loss, MSELoss, HuberLoss, SmoothL1Loss, ...) or this package's own (L2NormLoss). With
    GaussianNLLLoss the model learns a mean and a variance: predictions of a label have `<label>_std` beside them."""
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
            self.compare: Callable[..., Tensor] = known[settings.name](**arguments)
        except TypeError as error:
            raise InputError(f"loss.{label}.config: {error}") from None
        self.label, self.weight, self.per_atom = label, settings.weight, settings.per_atom
        self.spread = settings.name == "GaussianNLLLoss"
        """Whether the loss is also of the predicted standard deviation."""
        linear = settings.name == "L2NormLoss" and (settings.per_atom or label != "energy")
        self.most = MOST.get(label, math.inf) if linear else math.inf

    def forward(
        self,
        prediction: Tensor,
        target: Tensor,
        graph: Graph,
        capped: bool = False,
        std: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Sum of the loss over labelled values, and their number, both float64 scalars; `std` for losses of it."""
        present = torch.isfinite(target)
        if prediction.ndim > 1:  # a vector or matrix counts when it is whole
            present = present.flatten(1).all(1)  # (K,)
        whole = present.view(-1, *[1] * (prediction.ndim - 1))
        prediction = torch.where(whole, prediction.double(), 0.0)
        target = torch.where(whole, target, 0.0)
        if self.per_atom:
            n = graph.num_atoms.view(-1, *[1] * (prediction.ndim - 1))
            prediction, target = prediction / n, target / n
            std = None if std is None else std / n
        loss = self.compare(prediction, target, *(() if std is None else (std.double(),)))
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
            term(
                predictions[name],
                graph.targets[name],
                graph,
                capped,
                predictions[f"{name}_std"] if term.spread else None,
            )
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
