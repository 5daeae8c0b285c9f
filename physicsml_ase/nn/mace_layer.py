"""A layer of MACE (arXiv:2206.07697): sums over neighbours, their powers, and what stays of the atom itself.

Weights are of order one and are scaled where they are used, as mace-torch's are, so that learning rates mean the
same. Shapes: N atoms, R rows of J slots of edges, C channels; a block has Z elements of n atoms each.
"""

from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn

from physicsml_ase.nn.contraction import SymmetricContraction
from physicsml_ase.nn.slots import Slots
from physicsml_ase.nn.tensor_messages import TensorMessages

SILU = 1.6791767923989418
"""Factor of SiLU, after which a standard normal variable's second moment is one, as e3nn has it."""

Kind = Literal[
    "RealAgnosticInteractionBlock",
    "RealAgnosticResidualInteractionBlock",
    "RealAgnosticDensityInteractionBlock",
    "RealAgnosticDensityResidualInteractionBlock",
]


class Block(NamedTuple):
    """Atoms, grouped by element: Z elements with n places each, of which some may be filled with any atom."""

    elements: Tensor  # (Z,) places of the elements among the model's
    atoms: Tensor | None  # (Z n,), None where it is all atoms in order


class Blocks(NamedTuple):
    """All atoms in one or more blocks."""

    blocks: list[Block]
    back: Tensor | None  # (N,) place of each atom in the blocks, one after the other


PADDED = 2.0
"""Elements share a block, padded to the most frequent one, up to this many times the number of atoms."""


def by_element(place: Tensor, num: int) -> Blocks:
    """Blocks of atoms whose elements are `place` (N,) among `num`."""
    if num == 1:
        return Blocks([Block(place.new_zeros(1), None)], None)
    counts = torch.bincount(place, minlength=num)
    present = counts.nonzero()[:, 0]
    if present.shape[0] == 1:
        return Blocks([Block(present, None)], None)
    order = place.argsort(stable=True)
    sizes = counts.index_select(0, present)
    n, total = int(sizes.max()), place.shape[0]
    back = torch.empty_like(order)
    if present.shape[0] * n <= PADDED * total:
        starts = torch.arange(present.shape[0], device=place.device) * n - (sizes.cumsum(0) - sizes)
        slot = torch.arange(total, device=place.device) + starts.repeat_interleave(sizes)
        atoms = order[:1].repeat(present.shape[0] * n)
        atoms[slot] = order
        back[order] = slot
        return Blocks([Block(present, atoms)], back)
    back[order] = torch.arange(total, device=place.device)
    pairs = zip(present.split(1), order.split(sizes.tolist()))
    return Blocks([Block(element, atoms) for element, atoms in pairs], back)


class Interaction(nn.Module):
    """Features (N, (l_in + 1)^2, C) to (N, (l_out + 1)^2, C)."""

    def __init__(
        self,
        kind: Kind,
        l_in: int,
        l_edge: int,
        l_out: int,
        order: int,
        channels: int,
        num_elements: int,
        radial: tuple[int, ...],
        neighbours: float,
    ) -> None:
        super().__init__()
        c, z = channels, num_elements
        self.l_in, self.l_edge, self.l_out, self.channels = l_in, l_edge, l_out, c
        self.residual, density = "Residual" in kind, "Density" in kind
        self.neighbours = 1.0 if density else neighbours
        self.messages = TensorMessages(l_in, l_edge)
        self.up = nn.Parameter(torch.randn(l_in + 1, c, c))
        widths = (*radial, len(self.messages.paths) * c)
        self.radial = nn.ParameterList(torch.randn(a, b) for a, b in zip(widths, widths[1:]))
        self.density = nn.Parameter(torch.randn(radial[0], 1)) if density else None
        self.linear = nn.ParameterList(torch.randn(p * c, c) for p in self.messages.num_out)
        degrees = min(l_in, l_out) + 1 if self.residual else l_edge + 1
        self.skip = nn.Parameter(torch.randn(degrees, z, c, c))
        self.contraction = SymmetricContraction(l_edge, l_out, order, c, z)
        self.product = nn.Parameter(torch.randn(l_out + 1, c, c))

    def forward(
        self, x: Tensor, radial: Tensor, y: Tensor, j: Tensor, slots: Slots, blocks: Blocks
    ) -> Tensor:
        num_atoms, c = x.shape[0], self.channels
        h = by_degree(x, self.up * c**-0.5, self.l_in).flatten(1)  # (N, (l_in + 1)^2 C)
        h_j = h.index_select(0, j).view(*y.shape[:2], -1)
        functions = radial
        for k, weight in enumerate(self.radial):
            functions = functions @ (weight * (weight.shape[0] ** -0.5 * (SILU if k else 1.0)))
            if k < len(self.radial) - 1:
                functions = nn.functional.silu(functions)
        sums = self.messages(functions.view(*y.shape[:2], -1), h_j, y)
        sums = slots.per_atom(sums, num_atoms)  # (N, X, C)
        if self.density is not None:
            of_edges = torch.tanh((radial @ self.density * radial.shape[1] ** -0.5).square())
            density = slots.per_atom(of_edges.view(y.shape[0], y.shape[1]).sum(1), num_atoms)
            sums = sums / (density + 1)[:, None, None]
        parts = [self.of_block(block, sums, x) for block in blocks.blocks]
        out = torch.cat(parts) if len(parts) > 1 else parts[0]
        return out if blocks.back is None else out.index_select(0, blocks.back)

    def of_block(self, block: Block, sums: Tensor, x: Tensor) -> Tensor:
        """Features after the layer, (Z n, (l_out + 1)^2, C)."""
        z, c = block.elements.shape[0], self.channels
        if block.atoms is not None:
            sums, x = sums.index_select(0, block.atoms), x.index_select(0, block.atoms)
        n = sums.shape[0] // z
        skip = self.skip.index_select(1, block.elements) * (self.skip.shape[1] * c) ** -0.5  # (l, Z, C, C)
        a = []
        for l, (part, weight) in enumerate(zip(self.messages.couple(sums), self.linear)):
            weight = weight * (weight.shape[0] ** -0.5 / self.neighbours)
            matrix = weight.expand(z, -1, -1) if self.residual else weight @ skip[l]
            a.append((part.reshape(z, n * (2 * l + 1), -1) @ matrix).view(z, n, 2 * l + 1, c))
        features = torch.cat(a, dim=2).permute(2, 0, 3, 1).reshape(-1, z * c, n)  # (M, Z C, n)
        b = self.contraction(features, self.contraction.tensors(block.elements))
        b = b.view(-1, z, c, n).permute(1, 3, 0, 2).reshape(z * n, -1, c)
        b = by_degree(b, self.product * c**-0.5, self.l_out)
        if not self.residual:
            return b
        rows = (skip.shape[0]) ** 2
        own = [
            (x[:, l * l : (l + 1) ** 2].reshape(z, n * (2 * l + 1), c) @ skip[l]).view(z * n, 2 * l + 1, c)
            for l in range(skip.shape[0])
        ]
        kept = torch.cat(own, dim=1) if len(own) > 1 else own[0]
        if rows < b.shape[1]:
            kept = nn.functional.pad(kept, (0, 0, 0, b.shape[1] - rows))
        return b + kept


def by_degree(x: Tensor, weight: Tensor, degree: int) -> Tensor:
    """A map of channels for each degree up to `degree`, (N, (L + 1)^2, C) with (L + 1, C, C)."""
    parts = [x[:, l * l : (l + 1) ** 2] @ weight[l] for l in range(degree + 1)]
    return torch.cat(parts, dim=1) if len(parts) > 1 else parts[0]
