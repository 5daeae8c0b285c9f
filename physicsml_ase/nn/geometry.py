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
        return torch.cat(self.fields(r_ij), dim=1)

    def fields(self, r_ij: Tensor) -> Geometry:
        """Those of edges in no order, (E, 3) -> (E, ..)."""
        squared = r_ij.square().sum(-1, keepdim=True)
        itself = (squared == 0).to(r_ij.dtype)
        d = (squared + itself).sqrt()  # the root has no gradient at zero
        inverse = d.reciprocal()
        u = r_ij * inverse
        return Geometry(self.sphere(u), *self.radial(d - itself, itself), u, inverse - itself)

    def radial(self, d: Tensor, itself: Tensor) -> tuple[Tensor, Tensor]:
        """Radial functions and their derivatives (E, K) at d (E, 1); `itself` (E, 1) is 1 where d is 0, else 0."""
        x, p, a = (d / self.cutoff).clamp(max=1.0), ENVELOPE, self.stretch
        power = x.square().square()  # x^(p - 1)
        inner = (p * (p + 1) / 2 * x - p * (p + 2)) * x + (p + 1) * (p + 2) / 2
        envelope = power * x * -inner + 1
        falling = -p * (p + 1) * (p + 2) / (2 * self.cutoff) * power * (x - 1).square()
        over = (x + a).reciprocal()
        # at s = 0, an atom's edge to itself, sin(k pi s) / s is k pi, and a force has nowhere to point
        s = x * (1 + a) * over + itself
        ds = (1 + a) * -a / self.cutoff * over * over * (itself - 1)
        phase, size = self.orders * s, math.sqrt(2) * s.reciprocal()
        sine, height = torch.sin(phase), size * envelope
        radial = torch.addcmul(sine * height, self.orders, math.sqrt(2) * itself)
        change = size * (falling - envelope * ds / s)
        return radial, torch.addcmul(sine * change, torch.cos(phase) * self.orders, height * ds)

    def in_slots(self, edges: Tensor, slots: Slots) -> Geometry:
        """What `forward` returned, in slots."""
        return Geometry(*slots.fill(edges).split(self.widths, dim=-1))

    def of_slots(self, r_ij: Tensor, slots: Slots) -> Geometry:
        """The same of edges (E, 3), computed in their slots: what fills the rest of a row is beyond the cut-off."""
        return self.in_rows(slots.fill(r_ij, 2 * self.cutoff))

    def in_rows(self, r_ij: Tensor) -> Geometry:
        """The same of pair vectors that are in slots, (R, J, 3)."""
        fields = self.fields(r_ij.flatten(0, 1))
        return Geometry(*(field.view(*r_ij.shape[:2], -1) for field in fields))

    def gradient(self, geometry: Geometry, g_harmonics: Tensor, g_radial: Tensor) -> Tensor:
        """Gradient to pair vectors, (R J, 3), from those to harmonics (R, J, M) and radial functions (R, J, K)."""
        flat = Geometry(*(part.flatten(0, 1) for part in geometry))
        along = (g_radial.flatten(0, 1) * flat.slope).sum(-1, keepdim=True)
        across = self.sphere.gradient(flat.harmonics, g_harmonics.flatten(0, 1)) * flat.inverse
        # harmonics change on the sphere, radial functions along the pair
        return torch.addcmul(across, along - (across * flat.direction).sum(-1, keepdim=True), flat.direction)
