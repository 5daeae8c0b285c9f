"""Several models as one: the mean of what they say, and how far they are apart.

The standard deviation is that of one member (with M - 1). Where members tell a standard deviation of their own, of
noise that they have learned (`<label>_std`), the variances add up (Lakshminarayanan et al., arXiv:1612.01474).
"""

import itertools
import logging
from collections.abc import Mapping, Sequence
from typing import cast

import torch
from torch import Tensor, nn

from physicsml_ase.conventions import InputError, Label
from physicsml_ase.domain import Domain
from physicsml_ase.graph import Graph
from physicsml_ase.potential import Potential, ReferenceEnergies

log = logging.getLogger("physicsml_ase")

STD = "_std"
SAME = ("cutoff", "elements", "attrs", "self_interaction", "pbc", "cell")
"""What the members of a committee must have in common: they see the same graph."""


class MeanPotential(nn.Module):
    """A committee that is called as a `Potential` is."""

    def __init__(self, potentials: Sequence[Potential], names: Sequence[str]) -> None:
        super().__init__()
        if len(potentials) < 2:
            raise InputError("a committee has two members or more")
        check_agreement(potentials, names)
        self.members = nn.ModuleList(potentials)
        self.labels: tuple[Label, ...] = potentials[0].labels
        self.domain: Domain = potentials[0].domain
        self.references: ReferenceEnergies = potentials[0].references

    @property
    def first(self) -> Potential:
        """The member that structures are compared with its training data by."""
        return cast(Potential, self.members[0])

    def forward(self, graph: Graph) -> dict[str, Tensor]:
        """Means under the labels' names and standard deviations as `<label>_std`."""
        return combined([member(graph) for member in self.members])


def combined(outs: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """Mean and standard deviation of what the members say."""
    found: dict[str, Tensor] = {}
    for name in outs[0]:
        if name.endswith(STD) and name.removesuffix(STD) in outs[0]:
            continue
        values = torch.stack([out[name] for out in outs])
        found[name] = values.mean(0)
        variance = values.var(0)
        if name + STD in outs[0]:
            variance = variance + torch.stack([out[name + STD] for out in outs]).square().mean(0)
        found[name + STD] = variance.sqrt()
    return found


def check_agreement(potentials: Sequence[Potential], names: Sequence[str]) -> None:
    """Raise `InputError` where members see or tell different things; warn where two are one."""
    first = potentials[0]
    for name, other in zip(names[1:], potentials[1:]):
        for key in SAME:
            mine, its = getattr(first.domain, key), getattr(other.domain, key)
            if mine != its:
                raise InputError(
                    f"{name}: its {key} is {its}, and the first model's {mine}: the members of a committee must "
                    "be trained with the same"
                )
        if set(first.outputs) != set(other.outputs):
            raise InputError(
                f"{name}: it predicts {', '.join(other.outputs)}, and the first model {', '.join(first.outputs)}: "
                "the members of a committee must be trained on the same labels"
            )
    for (a, one), (b, two) in itertools.combinations(zip(names, potentials), 2):
        if _same_weights(one, two):
            log.warning("%s and %s have the same weights: that they agree says nothing", a, b)


def _same_weights(a: Potential, b: Potential) -> bool:
    mine, others = list(a.parameters()), list(b.parameters())
    return len(mine) == len(others) and all(
        x.shape == y.shape and x.device == y.device and torch.equal(x, y.to(x.dtype))
        for x, y in zip(mine, others)
    )
