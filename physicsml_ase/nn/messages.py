"""Messages between neighbours, with their reverse pass: what each sends to the atom in each of its slots.

    S_i,lm,c = sum_j Y_lm(r_ij) sum_l' R_l',c(d_ij) (Y_l'(r_ji) . h_j,l',c)

A message is computed where it is sent, and heard by one permutation to the reverse edges. Shapes: N atoms,
R rows of J slots (`nn.slots`), M = (lmax + 1)^2 harmonics, K radial functions, C channels, degrees up to L.
"""

from typing import NamedTuple

import torch
from torch import Tensor, nn

from physicsml_ase.nn.geometry import EdgeGeometry, Geometry
from physicsml_ase.nn.slots import Slots, swap
from physicsml_ase.nn.sphere import degrees


class Sent(NamedTuple):
    """What the reverse pass of `Message` needs."""

    radial: tuple[Tensor, ...]  # R_l (R, J, C)
    along: list[Tensor]  # Y_l . h_l (R, J, C), (R, 1, C) for degree 0
    directed: list[Tensor]  # h_l (R, 2l + 1, C)
    heard: Tensor  # (R, J, C)


class Message(nn.Module):
    """What an atom hears from its neighbours: S of the module docstring, and its gradient."""

    def __init__(self, channels: int, num_radial: int, ell: int, geometry: EdgeGeometry) -> None:
        super().__init__()
        self.radial = nn.Parameter(torch.randn(num_radial, (ell + 1) * channels) * num_radial**-0.5)
        self.degrees = degrees(ell)  # in the order of h's rows
        self.sizes = [2 * degree + 1 for degree in self.degrees]
        self.spans = [geometry.spans[degree] for degree in self.degrees]

    def forward(self, h: Tensor, geometry: Geometry, slots: Slots) -> tuple[Tensor, Sent]:
        """From h ((L + 1)^2, N, C) to S (M, N, C)."""
        n, c = h.shape[1:]
        radial = (geometry.radial @ self.radial).split(c, dim=-1)
        directed = [part.transpose(0, 1) for part in slots.per_row(h, dim=1).split(self.sizes)]
        along = [directed[0]]  # Y_00 = 1
        for (first, end), h_l in zip(self.spans[1:], directed[1:]):
            along.append(torch.bmm(geometry.harmonics[..., first:end], h_l))
        sent = radial[0] * along[0]
        for r_l, q_l in zip(radial[1:], along[1:]):
            sent = torch.addcmul(sent, r_l, q_l)
        heard = swap(sent, slots.reverse)
        s = slots.per_atom(torch.bmm(geometry.harmonics.mT, heard), n).transpose(0, 1)
        return s, Sent(radial, along, directed, heard)

    def reverse(
        self, sent: Sent, g: Tensor, geometry: Geometry, slots: Slots
    ) -> tuple[Tensor, Tensor, Tensor]:
        """From the gradient to S (M, N, C) those to h, to harmonics (R, J, M) and to radial functions (R, J, K)."""
        n = g.shape[1]
        g_rows = slots.per_row(g.transpose(0, 1))  # (R, M, C)
        g_sent = swap(torch.bmm(geometry.harmonics, g_rows), slots.reverse)  # (R, J, C)
        g_h = [(g_sent * sent.radial[0]).sum(1, keepdim=True)]
        g_radial = [g_sent * sent.along[0]]
        extra = {}
        for k in range(1, len(self.degrees)):
            first, end = self.spans[k]
            g_along = g_sent * sent.radial[k]
            g_h.append(torch.bmm(geometry.harmonics[..., first:end].mT, g_along))
            g_radial.append(g_sent * sent.along[k])
            extra[self.spans[k]] = torch.bmm(g_along, sent.directed[k].mT)
        g_harmonics = add_spans(torch.bmm(sent.heard, g_rows.mT), extra)
        g_h_atoms = slots.per_atom(torch.cat(g_h, dim=1), n).transpose(0, 1)
        weights = self.radial.T.split(g_sent.shape[-1])
        g_basis = g_radial[0] @ weights[0]
        for g_l, weight in zip(g_radial[1:], weights[1:]):
            g_basis = g_basis + g_l @ weight
        return g_h_atoms, g_harmonics, g_basis


def add_spans(x: Tensor, extra: dict[tuple[int, int], Tensor]) -> Tensor:
    """x (R, J, M) plus what is given for some spans of its last dimension."""
    padded = [nn.functional.pad(part, (first, x.shape[-1] - end)) for (first, end), part in extra.items()]
    return sum(padded, x)
