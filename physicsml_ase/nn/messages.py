"""Messages between neighbours, with their reverse pass: what each sends to the atom in each of its slots.

    S_i,lm,c = sum_j Y_lm(r_ij) sum_l' R_l',c(d_ij) (Y_l'(r_ji) . h_j,l',c)

A message is computed where it is sent, and heard by one permutation to the reverse edges. Shapes: N atoms,
R rows of J slots (`nn.slots`), M = (lmax + 1)^2 harmonics, K radial functions, C channels, degrees up to L.
"""

from collections.abc import Iterable
from typing import NamedTuple

import torch
from torch import Tensor, nn

from physicsml_ase.nn.geometry import EdgeGeometry, Geometry
from physicsml_ase.nn.pieces import joined, small_pieces
from physicsml_ase.nn.slots import Slots, swap
from physicsml_ase.nn.sphere import ATOMS_IN_CACHE, degrees


class Told(NamedTuple):
    """What some rows tell, and what its reverse pass needs."""

    sent: Tensor  # (R, J, C)
    of_waves: Tensor  # (R, K, C), what of degree 0 is told in each radial function
    radial: list[Tensor]  # R_l (R, J, C) of the other degrees
    along: list[Tensor]  # Y_l . h_l (R, J, C)
    directed: list[Tensor]  # h_l (R, 2l + 1, C)


class Sent(NamedTuple):
    """What the reverse pass of `Message` needs."""

    told: list[Told]  # piece by piece
    heard: Tensor  # (R, J, C)


class Message(nn.Module):
    """What an atom hears from its neighbours: S of the module docstring, and its gradient.

    For inference on a CPU rows are computed a few at a time, so that what a piece holds stays in the cache.
    """

    def __init__(self, channels: int, num_radial: int, ell: int, geometry: EdgeGeometry) -> None:
        super().__init__()
        self.radial = nn.Parameter(torch.randn(num_radial, (ell + 1) * channels) * num_radial**-0.5)
        self.degrees = degrees(ell)  # in the order of h's rows
        self.sizes = [2 * degree + 1 for degree in self.degrees]
        self.spans = [geometry.spans[degree] for degree in self.degrees]

    def forward(self, h: Tensor, geometry: Geometry, slots: Slots) -> tuple[Tensor, Sent]:
        """From h ((L + 1)^2, N, C) to S (M, N, C)."""
        n = h.shape[1]
        h = slots.per_row(h, dim=1).transpose(0, 1)  # (R, (L + 1)^2, C)
        small = small_pieces(h) and h.shape[0] > ATOMS_IN_CACHE
        told = [self._tell(*piece) for piece in pieces(small, h, geometry.harmonics, geometry.radial)]
        heard = swap(joined([piece.sent for piece in told]), slots.reverse)
        s = slots.per_atom(torch.bmm(geometry.harmonics.mT, heard), n).transpose(0, 1)
        return s, Sent(told, heard)

    def _tell(self, h: Tensor, harmonics: Tensor, basis: Tensor) -> Told:
        weights = self.radial.chunk(len(self.sizes), dim=1)
        isotropic, *directed = h.split_with_sizes(self.sizes, dim=1)
        of_waves = weights[0] * isotropic
        sent = torch.bmm(basis, of_waves)  # Y_00 = 1
        radial = [basis @ weight for weight in weights[1:]]
        along = [
            torch.bmm(harmonics[..., first:end], h_l) for (first, end), h_l in zip(self.spans[1:], directed)
        ]
        for r_l, q_l in zip(radial, along):
            sent = torch.addcmul(sent, r_l, q_l)
        return Told(sent, of_waves, radial, along, directed)

    def reverse(
        self, sent: Sent, g: Tensor, geometry: Geometry, slots: Slots
    ) -> tuple[Tensor, Tensor, Tensor]:
        """From the gradient to S (M, N, C) those to h, to harmonics (R, J, M) and to radial functions (R, J, K)."""
        n = g.shape[1]
        g_rows = slots.per_row(g.transpose(0, 1))  # (R, M, C)
        g_sent = swap(torch.bmm(geometry.harmonics, g_rows), slots.reverse)  # (R, J, C)
        g_heard = torch.bmm(sent.heard, g_rows.mT)  # (R, J, M)
        whole = g_sent, geometry.harmonics, geometry.radial, g_heard
        parts = zip(sent.told, pieces(len(sent.told) > 1, *whole))
        g_h, g_harmonics, g_basis = zip(*(self._reverse(told, *piece) for told, piece in parts))
        return slots.per_atom(joined(g_h), n).transpose(0, 1), joined(g_harmonics), joined(g_basis)

    def _reverse(
        self, told: Told, g: Tensor, harmonics: Tensor, basis: Tensor, g_harmonics: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        weights = self.radial.chunk(len(self.sizes), dim=1)
        g_h = [(torch.bmm(basis.mT, g) * weights[0]).sum(1, keepdim=True)]
        g_basis = torch.bmm(g, told.of_waves.mT)
        parts = zip(weights[1:], self.spans[1:], told.radial, told.along, told.directed)
        for weight, (first, end), r_l, q_l, h_l in parts:
            g_along = g * r_l
            g_h.append(torch.bmm(harmonics[..., first:end].mT, g_along))
            g_basis = g_basis + (g * q_l) @ weight.T
            g_harmonics.narrow(-1, first, end - first).add_(torch.bmm(g_along, h_l.mT))
        return torch.cat(g_h, dim=1), g_harmonics, g_basis


def pieces(small: bool, *whole: Tensor) -> Iterable[tuple[Tensor, ...]]:
    """A few rows of each tensor at a time, or all of them at once."""
    return zip(*(x.split(ATOMS_IN_CACHE) for x in whole)) if small else [whole]
