"""Radial functions of SchNet and PhysNet, and what ends them at the cut-off."""

import math
from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor, nn

from physicsml_ase.nn.radial import BesselBasis, envelope

RadialKind = Literal["expnorm", "gauss", "bessel"]
CutoffKind = Literal["smooth", "cosine"]


class Cutoff(nn.Module):
    """A polynomial that ends with two derivatives (`envelope`), or half a cosine, whose curvature jumps."""

    def __init__(self, kind: CutoffKind, cutoff: float) -> None:
        super().__init__()
        self.kind, self.cutoff = kind, cutoff

    def forward(self, d_ij: Tensor) -> Tensor:  # (E, 1) -> (E, 1)
        x = d_ij / self.cutoff
        if self.kind == "smooth":
            return envelope(x)
        return torch.where(x < 1, 0.5 * torch.cos(math.pi * x) + 0.5, 0.0)


class ExpNormalBasis(nn.Module):
    """exp(-beta (exp(-5 d / cutoff) - mu)^2), times the cut-off function (PhysNet, Unke & Meuwly 2019, eq. 7)."""

    means: Tensor
    betas: Tensor

    def __init__(self, num_radial: int, cutoff: Cutoff, trainable: bool) -> None:
        super().__init__()
        self.cutoff = cutoff
        start = math.exp(-cutoff.cutoff)
        _make(self, "means", torch.linspace(start, 1, num_radial), trainable)
        width = 2 / num_radial * (1 - start)
        _make(self, "betas", torch.full((num_radial,), width**-2), trainable)

    def forward(self, d_ij: Tensor) -> Tensor:  # (E, 1) -> (E, K)
        short = torch.exp(-5 / self.cutoff.cutoff * d_ij)
        return self.cutoff(d_ij) * torch.exp(-self.betas * (short - self.means).square())


class GaussianBasis(nn.Module):
    """exp(-c (d - mu)^2), the width being the distance between neighbours (SchNet, arXiv:1706.08566)."""

    offset: Tensor
    coeff: Tensor

    def __init__(self, num_radial: int, cutoff: Cutoff, trainable: bool) -> None:
        super().__init__()
        _make(self, "offset", torch.linspace(0, cutoff.cutoff, num_radial), trainable)
        spacing = cutoff.cutoff / max(num_radial - 1, 1)
        _make(self, "coeff", torch.tensor(-0.5 / spacing**2), trainable)

    def forward(self, d_ij: Tensor) -> Tensor:  # (E, 1) -> (E, K)
        return torch.exp(self.coeff * (d_ij - self.offset).square())


def cutoff_function(kind: CutoffKind, cutoff: float) -> Cutoff:
    """What ends messages at `cutoff` [Å]."""
    return Cutoff(kind, cutoff)


def radial_basis(kind: RadialKind, num_radial: int, cutoff: Cutoff, trainable: bool) -> nn.Module:
    """K functions of distances, (E, 1) -> (E, K)."""
    bases: dict[str, Callable[[], nn.Module]] = {
        "expnorm": lambda: ExpNormalBasis(num_radial, cutoff, trainable),
        "gauss": lambda: GaussianBasis(num_radial, cutoff, trainable),
        "bessel": lambda: BesselBasis(num_radial, cutoff.cutoff),
    }
    return bases[kind]()


def _make(module: nn.Module, name: str, value: Tensor, trainable: bool) -> None:
    if trainable:
        module.register_parameter(name, nn.Parameter(value))
    else:  # in the checkpoint: imported ones may be rounded in another way
        module.register_buffer(name, value)
