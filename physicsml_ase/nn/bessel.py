"""Bessel functions of the distance with wave numbers that may be learned, as NequIP and Allegro have them.

    B_k(d) = (2 pi / c^2) sin(w_k pi d / c) / (pi d / c) f_p(d / c),  w_k = k at first, cut-off c

Batzner et al., arXiv:2101.03164, eq. 8, with the factor that `nequip` keeps; f_p is the envelope of DimeNet.
"""

import math

import torch
from torch import Tensor, nn


class NumberedBessel(nn.Module):
    """K functions of distances (P, 1), zero with two derivatives at the cut-off."""

    numbers: Tensor

    def __init__(self, num: int, cutoff: float, p: int, trainable: bool, factor: float = 1.0) -> None:
        super().__init__()
        self.cutoff, self.p, self.factor = cutoff, p, factor
        numbers = torch.arange(1.0, num + 1)
        if trainable:
            self.numbers = nn.Parameter(numbers)
        else:
            self.register_buffer("numbers", numbers)

    def forward(self, d: Tensor) -> Tensor:
        """Distances [Å], (P, 1) -> (P, K)."""
        x = (d / self.cutoff).clamp(max=1.0)
        # at x = 0, an atom's edge to itself, sin(w pi x) / (pi x) is w
        itself = x == 0
        phase = math.pi * torch.where(itself, 1.0, x)
        waves = torch.where(itself, self.numbers, torch.sin(self.numbers * phase) / phase)
        return waves * self._envelope(x)

    def _envelope(self, x: Tensor) -> Tensor:
        p, f = self.p, self.factor
        inner = (x * (p * (p + 1) / 2 * f) - p * (p + 2) * f) * x + (p + 1) * (p + 2) / 2 * f
        return f - x**p * inner
