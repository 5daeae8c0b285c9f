"""Atomic environment vectors of ANI: sums of two- and three-body terms over neighbours, by their elements.

Smith, Isayev & Roitberg, Chem. Sci. 8, 3192 (2017), arXiv:1610.02431, eq. 2 to 4, with the factors 1/4 and 2 and the
angles' factor 0.95 of the authors' program. With cos(theta - s) = cos theta cos s + sin theta sin s no angle is
computed, and the outer products of radial and angular terms are summed without being stored (`nn.outer_sums`).

Shapes: N atoms, E edges, T triplets (a centre and two neighbours), Z elements, R and A shifts, Q sections.
"""

import math

import numpy as np
import torch
from pydantic import PositiveFloat, PositiveInt
from torch import Tensor, nn

from physicsml_ase.config import config
from physicsml_ase.nn.elements import one_hot
from physicsml_ase.nn.features import segment_sum
from physicsml_ase.nn.outer_sums import outer_sum
from physicsml_ase.nn.smearing import Cutoff, CutoffKind

NARROWER = 0.95
"""Factor of cos theta, so that the derivative of the angle is finite."""


@config
class AEVConfig:
    """Terms of atomic environment vectors. The defaults are ANI-1x's, at its cut-offs of 5.2 and 3.5 Å."""

    angular_cutoff: PositiveFloat = 3.5
    """Cut-off of triplets [Å], at most that of pairs."""
    radial_start: PositiveFloat = 0.9
    """First shift of pairs [Å]; the others follow in equal steps up to the cut-off."""
    radial_eta: PositiveFloat = 16.0
    """Exponent of pairs' Gaussians [1/Å^2]."""
    num_radial: PositiveInt = 16
    """Shifts of pairs, R."""
    angular_start: PositiveFloat = 0.9
    """First shift of triplets [Å]."""
    angular_eta: PositiveFloat = 8.0
    """Exponent of triplets' Gaussians [1/Å^2]."""
    num_angular: PositiveInt = 4
    """Shifts of triplets, A."""
    zeta: PositiveFloat = 32.0
    """Exponent of angles: the larger, the narrower."""
    num_sections: PositiveInt = 8
    """Angles on which terms are centred, Q."""


class AEV(nn.Module):
    """Environment vectors (N, F): the radial terms of each element, then the angular ones of each pair of elements.

    Constants are in the checkpoint, since imported ones may be rounded.
    """

    pair_of: Tensor
    radial_eta: Tensor
    radial_shifts: Tensor
    angular_eta: Tensor
    angular_shifts: Tensor
    zeta: Tensor
    sections: Tensor

    def __init__(self, config: AEVConfig, num_elements: int, cutoff: float, kind: CutoffKind) -> None:
        super().__init__()
        self.num_elements, self.num_pairs = num_elements, num_elements * (num_elements + 1) // 2
        self.angular_cutoff = min(config.angular_cutoff, cutoff)
        self.cutoff, self.inner = Cutoff(kind, cutoff), Cutoff(kind, self.angular_cutoff)
        pair_of = np.zeros((num_elements, num_elements), np.int64)
        a, b = np.triu_indices(num_elements)
        pair_of[a, b] = pair_of[b, a] = np.arange(self.num_pairs)
        self.register_buffer("pair_of", torch.from_numpy(pair_of.ravel()), persistent=False)
        half = math.pi / config.num_sections / 2
        constants = {
            "radial_eta": [config.radial_eta],
            "radial_shifts": steps(config.radial_start, cutoff, config.num_radial),
            "angular_eta": [config.angular_eta],
            "angular_shifts": steps(config.angular_start, self.angular_cutoff, config.num_angular),
            "zeta": [config.zeta],
            "sections": steps(half, math.pi + half, config.num_sections),
        }
        for name, values in constants.items():
            self.register_buffer(name, torch.tensor(values))
        self.width = num_elements * config.num_radial
        self.width += self.num_pairs * config.num_angular * config.num_sections

    def forward(self, i: Tensor, element: Tensor, of_neighbor: Tensor, r_ij: Tensor, d_ij: Tensor) -> Tensor:
        """From centres (E,) ascending, elements of atoms (N,) and of neighbours (E,), and r_ij (E, 3) > 0."""
        num_atoms = element.shape[0]
        pairs = self.radial(d_ij)
        pairs = segment_sum(pairs, i * self.num_elements + of_neighbor, num_atoms * self.num_elements)
        near = (d_ij[:, 0] < self.angular_cutoff).nonzero()[:, 0]
        i, of_neighbor = i.index_select(0, near), of_neighbor.index_select(0, near)
        r_ij, d_ij = r_ij.index_select(0, near), d_ij.index_select(0, near)
        first, second = triplets(i, num_atoms)
        radial, angular = self.angular(r_ij, d_ij, first, second)
        kind = of_neighbor.index_select(0, first) * self.num_elements + of_neighbor.index_select(0, second)
        group = i.index_select(0, first) * self.num_pairs + self.pair_of.index_select(0, kind)
        threes = outer_sum(radial, angular, group, num_atoms * self.num_pairs)  # (N pairs, A, Q)
        return torch.cat([pairs.view(num_atoms, -1), threes.view(num_atoms, -1)], dim=1)

    def of_rows(self, element: Tensor, neighbor: Tensor, r_ij: Tensor) -> Tensor:
        """The same from edges in rows, one of J slots for each atom: of neighbours (N J,) and r_ij (N J, 3).

        All pairs of slots are computed, of which most may be beyond the cut-off: for compiled code, and where
        nothing may depend on how many there are. What is beyond the cut-offs, or an atom itself, counts for nothing.
        """
        n, z = element.shape[0], self.num_elements
        squared = r_ij.square().sum(1, keepdim=True)
        there = (squared > 0) & (squared < self.cutoff.cutoff**2)  # (N J, 1)
        d_ij = torch.where(there, squared, self.cutoff.cutoff**2).sqrt()
        of_neighbor = element.index_select(0, neighbor)
        chosen = one_hot(of_neighbor, z, r_ij.dtype).view(n, -1, z)  # (N, J, Z)
        pairs = chosen.mT @ torch.where(there, self.radial(d_ij), 0.0).view(
            n, -1, self.radial_shifts.shape[0]
        )
        u = (torch.where(there, r_ij, 0.0) / d_ij).view(n, -1, 3)
        d, near = d_ij.view(n, -1), there & (d_ij < self.angular_cutoff)
        ending = torch.where(near, self.inner(d_ij), 0.0).view(n, -1)  # (N, J)
        apart = 1 - torch.eye(d.shape[1], dtype=d.dtype, device=d.device)
        # of both orders of two neighbours, so half of each
        both = ending[:, :, None] * ending[:, None, :] * apart  # (N, J, J)
        distance = (d[:, :, None] + d[:, None, :]) / 2
        gauss = torch.exp(-self.angular_eta * (distance[..., None] - self.angular_shifts).square())
        radial = (both[..., None] * gauss).flatten(1, 2)  # (N, J J, A)
        angular = self.angles(NARROWER * (u @ u.mT)[..., None]).flatten(1, 2)  # (N, J J, Q)
        of_slots = of_neighbor.view(n, -1)
        kind = self.pair_of[of_slots[:, :, None] * z + of_slots[:, None, :]].flatten()
        kinds = one_hot(kind, self.num_pairs, r_ij.dtype).view(n, -1, self.num_pairs, 1)
        threes = (kinds * radial[:, :, None, :]).flatten(2).mT @ angular  # (N, pairs A, Q)
        return torch.cat([pairs.flatten(1), threes.flatten(1)], dim=1)

    def angles(self, cosine: Tensor) -> Tensor:
        """Terms of angles by their cosines, (..., 1) -> (..., Q)."""
        circle = torch.cat([cosine, (1 - cosine.square()).sqrt()], dim=-1)  # (..., 2)
        deviation = circle @ torch.stack([self.sections.cos(), self.sections.sin()])
        return ((1 + deviation) / 2) ** self.zeta

    def radial(self, d_ij: Tensor) -> Tensor:
        """Terms of pairs, (E, 1) -> (E, R)."""
        gauss = torch.exp(-self.radial_eta * (d_ij - self.radial_shifts).square())
        return (0.25 * self.cutoff(d_ij)) * gauss

    def angular(self, r_ij: Tensor, d_ij: Tensor, first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
        """Factors of triplets whose outer product is their term, (T, A) and (T, Q)."""
        of_edges = torch.cat([r_ij / d_ij, d_ij, self.inner(d_ij)], dim=1)  # (E, 5)
        one, two = of_edges.index_select(0, first), of_edges.index_select(0, second)
        distance = (one[:, 3:4] + two[:, 3:4]) / 2
        ending = 2 * one[:, 4:] * two[:, 4:]
        radial = ending * torch.exp(-self.angular_eta * (distance - self.angular_shifts).square())
        return radial, self.angles(NARROWER * (one[:, :3] * two[:, :3]).sum(1, keepdim=True))


def steps(start: float, end: float, number: int) -> list[float]:
    """Values from `start` in equal steps; the next one would be `end`."""
    return [start + (end - start) / number * k for k in range(number)]


def triplets(i: Tensor, num_atoms: int) -> tuple[Tensor, Tensor]:
    """Places in an ascending list of centres (E,) of the two edges of each triplet, (T,) each."""
    counts = torch.bincount(i, minlength=num_atoms)
    place = torch.arange(i.shape[0], device=i.device)
    later = counts.cumsum(0).index_select(0, i) - 1 - place  # edges of the same centre behind this one
    first = torch.repeat_interleave(later)
    start = later.cumsum(0) - later
    second = torch.arange(first.shape[0], device=i.device) - start.index_select(0, first) + first + 1
    return first, second
