"""A layer of MACE (arXiv:2206.07697): sums over neighbours, their powers, and what stays of the atom itself.

Weights are of order one and are scaled where they are used, as mace-torch's are, so that learning rates mean the
same. Shapes: N atoms, R rows of J slots of edges, C channels; a block has Z elements of n atoms each.
"""

from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import _disable_current_modes

from physicsml_ase.nn.blocks import Block, Piece
from physicsml_ase.nn.contraction import SymmetricContraction
from physicsml_ase.nn.pair_rows import PairRows
from physicsml_ase.nn.pieces import InPieces
from physicsml_ase.nn.tensor_messages import TensorMessages

MOST_KEPT = 8
"""Sets of elements whose weights are kept as they are used."""
SILU = 1.6791767923989418
"""Factor of SiLU, after which a standard normal variable's second moment is one, as e3nn has it."""

Kind = Literal[
    "RealAgnosticInteractionBlock",
    "RealAgnosticResidualInteractionBlock",
    "RealAgnosticDensityInteractionBlock",
    "RealAgnosticDensityResidualInteractionBlock",
]


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
        self._kept: tuple[tuple[Any, ...], dict[tuple[int, ...], Any]] = ((), {})

    def forward(
        self, x: Tensor, radial: Tensor, y: Tensor, rows: PairRows, pieces: Sequence[Piece]
    ) -> Tensor:
        """x (N, (l_in + 1)^2, C), radial functions of pairs (P, K), harmonics (R, J, M)."""
        h = by_degree(x, self.up * self.channels**-0.5, self.l_in).flatten(1)  # (N, (l_in + 1)^2 C)
        if len(pieces) == 1:
            functions, densities = self.functions(radial)  # of the two edges of each pair at once
            densities = None if densities is None else rows.of_slots(densities)
            return self.of_piece(pieces[0], rows.of_neighbors(h), rows.of_slots(functions), densities, y, x)
        cuts = [(p.slots, p.slots, p.rows, p.atoms) for p in pieces]

        def function(k: int, h_j: Tensor, radial: Tensor, y: Tensor, x: Tensor) -> Tensor:
            return self.of_piece(pieces[k], h_j, *self.functions(radial), y, x)

        return InPieces.apply(function, cuts, rows.neighbor, h, radial.index_select(0, rows.pair), y, x)

    def functions(self, radial: Tensor) -> tuple[Tensor, Tensor | None]:
        """Radial functions of each path (P, paths C), and what a neighbour adds to the density (P, 1)."""
        *weights, last = self.common().radial
        hidden = radial
        for weight in weights:
            hidden = nn.functional.silu(hidden @ weight)
        if self.density is None:
            return hidden @ last, None
        return hidden @ last, torch.tanh((radial @ self.density * radial.shape[1] ** -0.5).square())

    def of_piece(
        self, piece: Piece, h_j: Tensor, functions: Tensor, densities: Tensor | None, y: Tensor, x: Tensor
    ) -> Tensor:
        """Features after the layer of a piece's atoms, of which `functions` (R J, paths C) and so on."""
        common, rows = self.common(), y.shape[:2]
        sums = piece.per_atom(self.messages(functions.view(*rows, -1), h_j.view(*rows, -1), y))  # (N, X, C)
        if densities is not None:
            sums = sums / (piece.per_atom(densities.view(rows).sum(1)) + 1)[:, None, None]
        parts = []
        for block in piece.blocks.blocks:
            own = piece.blocks.sort(block, x) if self.residual else None
            parts.append(self.of_block(block, piece.blocks.sort(block, sums), own, common.product))
        return piece.blocks.unsort(parts)

    def of_block(self, block: Block, sums: Tensor, x: Tensor | None, product: Tensor) -> Tensor:
        """Features after the layer, (Z n, (l_out + 1)^2, C), of atoms sorted by element."""
        z, c, weights = block.elements.shape[0], self.channels, self.of_elements(block)
        n = sums.shape[0] // z
        a = []
        for l, (part, matrix) in enumerate(zip(self.messages.couple(sums), weights.linear)):
            a.append((part.reshape(z, n * (2 * l + 1), -1) @ matrix).view(z, n, 2 * l + 1, c))
        features = torch.cat(a, dim=2).permute(2, 0, 3, 1).reshape(-1, z * c, n)  # (M, Z C, n)
        b = self.contraction(features, weights.tensors)
        b = b.view(-1, z, c, n).permute(1, 3, 0, 2).reshape(z * n, -1, c)
        b = by_degree(b, product, self.l_out)
        if x is None:
            return b
        degrees = x.split([2 * l + 1 for l in range(self.l_in + 1)], dim=1)
        own = [
            (x_l.reshape(z, n * (2 * l + 1), c) @ w).view(z * n, 2 * l + 1, c)
            for l, (x_l, w) in enumerate(zip(degrees, weights.skip))
        ]
        kept = torch.cat(own, dim=1) if len(own) > 1 else own[0]
        missing = b.shape[1] - kept.shape[1]
        return b + (nn.functional.pad(kept, (0, 0, 0, missing)) if missing else kept)

    def common(self) -> "Common":
        """Weights as they are used; of a model that is not trained, they are computed once."""
        return self.kept((), self._common)

    def of_elements(self, block: Block) -> "OfElements":
        key = block.key
        if key is not None:  # a block's own tensor may be one of a trace
            return self.kept(key, lambda: self._of_elements(torch.tensor(key, device=self.skip.device)))
        num = self.skip.shape[1]
        return self.kept(tuple(range(num)), self._of_all_elements).of(block.elements, num)

    def kept(self, key: tuple[int, ...], make: Callable[[], Any]) -> Any:
        """What `make` gives, kept until a weight changes."""
        weights = list(self.parameters())
        if self.training or any(w.requires_grad or w.is_inference() for w in weights):
            return make()
        state = tuple((w.data_ptr(), w._version, w.dtype) for w in weights)
        if self._kept[0] != state:
            self._kept = (state, {})
        found = self._kept[1]
        if key not in found:
            if len(found) > MOST_KEPT:
                del found[next(k for k in found if k)]
            with torch.no_grad(), _disable_current_modes():  # for a trace these are constants
                found[key] = make()
        return found[key]

    def _common(self) -> "Common":
        scales = [w.shape[0] ** -0.5 * (SILU if k else 1.0) for k, w in enumerate(self.radial)]
        return Common([w * s for w, s in zip(self.radial, scales)], self.product * self.channels**-0.5)

    def _of_all_elements(self) -> "OfElements":
        return self._of_elements(torch.arange(self.skip.shape[1], device=self.skip.device))

    def _of_elements(self, elements: Tensor) -> "OfElements":
        skip = (self.skip.index_select(1, elements) * (self.skip.shape[1] * self.channels) ** -0.5).unbind()
        linear = []
        for l, weight in enumerate(self.linear):
            weight = weight * (weight.shape[0] ** -0.5 / self.neighbours)
            linear.append(weight if self.residual else weight @ skip[l])
        return OfElements(linear, skip, self.contraction.tensors(elements))


class Common(NamedTuple):
    """Scaled weights of all elements."""

    radial: list[Tensor]
    product: Tensor  # (l_out + 1, C, C)


class OfElements(NamedTuple):
    """Scaled weights of Z elements."""

    linear: list[Tensor]  # by degree, (paths C, C); where it is not residual, with the skip, (Z, paths C, C)
    skip: tuple[Tensor, ...]  # by degree, (Z, C, C)
    tensors: list[Tensor | None]  # of the contraction, (Z C, rows, terms)

    def of(self, elements: Tensor, num: int) -> "OfElements":
        """Those of some of the `num` elements, or of some of them more than once."""
        linear = [w if w.ndim == 2 else w.index_select(0, elements) for w in self.linear]
        skip = tuple(w.index_select(0, elements) for w in self.skip)
        tensors = [
            None if t is None else t.unflatten(0, (num, -1)).index_select(0, elements).flatten(0, 1)
            for t in self.tensors
        ]
        return OfElements(linear, skip, tensors)


def by_degree(x: Tensor, weight: Tensor, degree: int) -> Tensor:
    """A map of channels for each degree up to `degree`, (N, (L + 1)^2, C) with (L + 1, C, C)."""
    degrees = x.split([2 * l + 1 for l in range(degree + 1)], dim=1)
    parts = [x_l @ w for x_l, w in zip(degrees, weight)]
    return torch.cat(parts, dim=1) if len(parts) > 1 else parts[0]
