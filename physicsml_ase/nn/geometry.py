"""What a structure's edges are to a model whose radial functions enter linearly: constants, computed once.

Shapes: E edges, R rows of J slots, M = (lmax + 1)^2 harmonics, K radial functions.
"""

import math
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from physicsml_ase.nn.constants import Constants
from physicsml_ase.nn.features import lengths_and_directions
from physicsml_ase.nn.slots import Slots
from physicsml_ase.nn.sphere import SphericalHarmonics, degree_of_rows

ENVELOPE = 5
"""Power p of the polynomial envelope."""


class Geometry(NamedTuple):
    """Harmonics and radial functions of edges in their slots."""

    harmonics: Tensor  # (R, J, M)
    radial: Tensor  # (R, J, K)
    slope: Tensor  # (R, J, K), derivative of the radial functions
    direction: Tensor  # (R, J, 3)
    inverse: Tensor  # (R, J, 1), one over the distance; 0 for an edge to itself


class EdgeGeometry(Constants):
    """Harmonics, and Bessel functions in a stretched coordinate.

    B_k = sqrt(2) sin(k pi s) / s f(x), with x = d / cutoff, f the envelope of DimeNet (arXiv:2003.03123, eq. 8), and
    s = x (1 + a) / (x + a), a = scale / cutoff: waves are shorter at short distance, where
    energies change fastest.
    """

    orders: Tensor

    def __init__(self, lmax: int, num_radial: int, cutoff: float, scale: float) -> None:
        super().__init__()
        self.cutoff, self.stretch, self.num_radial = cutoff, scale / cutoff, num_radial
        self.sphere = SphericalHarmonics(lmax)
        rows = degree_of_rows(lmax)
        self.spans = [(rows.index(degree), rows.index(degree) + 2 * degree + 1) for degree in range(lmax + 1)]
        self.widths = [len(rows), num_radial, num_radial, 3, 1]
        self.constant("orders", math.pi * np.arange(1.0, num_radial + 1))

    @property
    def width(self) -> int:
        """Numbers of each edge."""
        return sum(self.widths)

    def forward(self, r_ij: Tensor) -> Tensor:
        """All that the model needs to know of each edge, (E, 3) -> (E, F), the fields of `Geometry` side by side."""
        d, u = lengths_and_directions(r_ij)
        itself = d == 0
        radial, slope = self.radial(d, itself)
        inverse = torch.where(itself, 0.0, 1 / torch.where(itself, 1.0, d))
        return torch.cat([self.sphere(u), radial, slope, u, inverse], dim=1)

    def radial(self, d: Tensor, itself: Tensor) -> tuple[Tensor, Tensor]:
        """Radial functions and their derivatives, (E, 1) -> (E, K) each."""
        x, p, a = (d / self.cutoff).clamp(max=1.0), ENVELOPE, self.stretch
        power = x ** (p - 1)
        envelope = 1 - power * x * ((p + 1) * (p + 2) / 2 - p * (p + 2) * x + p * (p + 1) / 2 * x * x)
        falling = -p * (p + 1) * (p + 2) / (2 * self.cutoff) * power * (1 - x).square()
        over = 1 / (x + a)
        s = x * (1 + a) * over
        ds = (1 + a) * a * over * over / self.cutoff
        apart = torch.where(itself, 1.0, s)
        phase = self.orders * apart
        # at s = 0, an atom's edge to itself, sin(k pi s) / s is k pi, and a force has nowhere to point
        wave = torch.where(itself, self.orders, torch.sin(phase) / apart)
        change = torch.where(itself, 0.0, (torch.cos(phase) * self.orders - wave) / apart * ds)
        root = math.sqrt(2)
        return root * wave * envelope, root * (change * envelope + wave * falling)

    def in_slots(self, edges: Tensor, slots: Slots) -> Geometry:
        """What `forward` returned, in slots."""
        return Geometry(*slots.fill(edges).split(self.widths, dim=-1))

    def gradient(self, geometry: Geometry, g_harmonics: Tensor, g_radial: Tensor) -> Tensor:
        """Gradient to pair vectors, (R J, 3), from those to harmonics (R, J, M) and radial functions (R, J, K)."""
        flat = Geometry(*(part.flatten(0, 1) for part in geometry))
        along = (g_radial.flatten(0, 1) * flat.slope).sum(-1, keepdim=True)
        across = self.sphere.tangent(flat.direction, flat.harmonics, g_harmonics.flatten(0, 1))
        return torch.addcmul(along * flat.direction, across, flat.inverse)
