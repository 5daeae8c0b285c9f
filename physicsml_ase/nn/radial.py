"""Functions of the distance: the Bessel basis of DimeNet and the envelope that ends it at the cut-off.

Gasteiger, Groß & Günnemann, ICLR 2020, arXiv:2003.03123.
"""

import math

import torch
from torch import Tensor, nn


def envelope(x: Tensor, p: int = 6) -> Tensor:
    """Polynomial of x = d/cutoff, 1 at x = 0, zero with two zero derivatives from x = 1 on (eq. 8)."""
    inside = 1 - x**p * ((p + 1) * (p + 2) / 2 - p * (p + 2) * x + p * (p + 1) / 2 * x.square())
    return torch.where(x < 1, inside, 0.0)


class BesselBasis(nn.Module):
    """Spherical Bessel functions of order 0 that vanish at the cut-off, enveloped (eq. 7)."""

    orders: Tensor

    def __init__(self, num_radial: int, cutoff: float, p: int = 6) -> None:
        super().__init__()
        self.cutoff, self.p = cutoff, p
        self.register_buffer("orders", torch.arange(1.0, num_radial + 1), persistent=False)

    def forward(self, d_ij: Tensor, t_ij: Tensor | None = None) -> Tensor:  # (E, 1) -> (E, K)
        """Functions of the distance or, where it is given, of what it was transformed to, in the same unit."""
        x = (d_ij if t_ij is None else t_ij) / self.cutoff
        # at x = 0, an atom's edge to itself, sin(k pi x) / (pi x) is k; torch.sinc has no second derivative there
        itself = x == 0
        apart = torch.where(itself, 1.0, x)
        waves = torch.where(itself, self.orders, torch.sin(math.pi * self.orders * apart) / (math.pi * apart))
        return envelope(d_ij / self.cutoff if t_ij is not None else x, self.p) * (math.sqrt(2) * waves)
