"""What a structure's edges are to a model whose radial functions enter linearly: constants, computed once.

Shapes: E edges, R rows of J slots, M = (lmax + 1)^2 harmonics, K radial functions.
"""

import math
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from physicsml_ase.nn.constants import Constants
from physicsml_ase.nn.slots import Slots
from physicsml_ase.nn.sphere import SphericalHarmonics, degree_of_rows

ENVELOPE = 5
"""Power p of the polynomial envelope."""
NOTHING = 1e-12
"""Distance [Å] at which functions of an atom's edge to itself, which has no direction, have their values at zero."""


class Geometry(NamedTuple):
    """Harmonics and radial functions of edges in their slots."""

    harmonics: Tensor  # (R, J, M)
    radial: Tensor  # (R, J, K)
    slope: Tensor  # (R J, K), derivative of the radial functions
    direction: Tensor  # (R J, 3)
    inverse: Tensor  # (R J, 1), one over the distance; 0 for an edge to itself


class EdgeGeometry(Constants):
    """Harmonics, and Bessel functions in a stretched coordinate.

    B_k = sqrt(2) sin(k pi s) / s f(x), with x = d / cutoff, f the envelope of DimeNet (arXiv:2003.03123, eq. 8), and
    s = x (1 + a) / (x + a), a = scale / cutoff: waves are shorter at short distance, where
    energies change fastest.
    """

    orders: Tensor
    one: Tensor
    ends: Tensor

    def __init__(self, lmax: int, num_radial: int, cutoff: float, scale: float) -> None:
        super().__init__()
        self.cutoff, self.stretch, self.num_radial = cutoff, scale / cutoff, num_radial
        self.sphere = SphericalHarmonics(lmax)
        rows = degree_of_rows(lmax)
        self.spans = [(rows.index(degree), rows.index(degree) + 2 * degree + 1) for degree in range(lmax + 1)]
        self.widths = [len(rows), num_radial, num_radial, 3, 1]
        self.constant("orders", math.pi * np.arange(1.0, num_radial + 1))
        self.constant("one", np.array(1.0))
        self.constant("ends", np.array((ENVELOPE + 1) * (ENVELOPE + 2) / 2))

    @property
    def width(self) -> int:
        """Numbers of each edge."""
        return sum(self.widths)

    def forward(self, r_ij: Tensor) -> Tensor:
        """All that the model needs to know of each edge, (E, 3) -> (E, F), the fields of `Geometry` side by side."""
        return torch.cat(self.fields(r_ij), dim=1)

    def fields(self, r_ij: Tensor) -> Geometry:
        """Those of edges in no order, (E, 3) -> (E, ..)."""
        squared = r_ij.square().sum(-1, keepdim=True)
        d = squared.clamp(min=NOTHING**2).sqrt()
        inverse = d.reciprocal()
        u = r_ij * inverse
        return Geometry(self.sphere(u), *self.radial(d), u, inverse * (squared > 0))

    def radial(self, d: Tensor) -> tuple[Tensor, Tensor]:
        """Radial functions and their derivatives (E, K) at d (E, 1) > 0."""
        x, p, a = (d / self.cutoff).clamp(max=1.0), ENVELOPE, self.stretch
        squared = x * x
        power = squared * squared  # x^(p - 1)
        inner = torch.addcmul(self.ends, x, p * (p + 1) / 2 * x - p * (p + 2))
        envelope = torch.addcmul(self.one, power * x, inner, value=-1)
        falling = power * (x - 1).square()
        over = (x + a).reciprocal()
        s = x * over * (1 + a)
        phase, size = self.orders * s, math.sqrt(2) * s.reciprocal()
        sine, height = torch.sin(phase), size * envelope
        rising = height * over * over * ((1 + a) * a / self.cutoff)  # times ds/dd
        change = torch.addcmul(rising / s, size, falling, value=p * (p + 1) * (p + 2) / (2 * self.cutoff))
        return sine * height, torch.addcmul(torch.cos(phase) * (self.orders * rising), sine, change, value=-1)

    def in_slots(self, edges: Tensor, slots: Slots) -> Geometry:
        """What `forward` returned, in slots."""
        harmonics, radial, *rest = slots.fill(edges).split(self.widths, dim=-1)
        return Geometry(harmonics, radial, *(field.flatten(0, 1) for field in rest))

    def of_slots(self, r_ij: Tensor, slots: Slots) -> Geometry:
        """The same of edges (E, 3), computed in their slots: what fills the rest of a row is beyond the cut-off."""
        return self.in_rows(slots.fill(r_ij, 2 * self.cutoff))

    def in_rows(self, r_ij: Tensor) -> Geometry:
        """The same of pair vectors that are in slots, (R, J, 3)."""
        harmonics, radial, *rest = self.fields(r_ij.flatten(0, 1))
        rows = r_ij.shape[:2]
        return Geometry(harmonics.view(*rows, -1), radial.view(*rows, -1), *rest)

    def gradient(self, geometry: Geometry, g_harmonics: Tensor, g_radial: Tensor) -> Tensor:
        """Gradient to pair vectors, (R J, 3), from those to harmonics (R, J, M) and radial functions (R, J, K)."""
        harmonics, _, slope, direction, inverse = geometry
        along = (g_radial.flatten(0, 1) * slope).sum(-1, keepdim=True)
        across = self.sphere.gradient(harmonics.flatten(0, 1), g_harmonics.flatten(0, 1)) * inverse
        # harmonics change on the sphere, radial functions along the pair
        return torch.addcmul(across, along - (across * direction).sum(-1, keepdim=True), direction)
