"""Convolutions of equivariant features over neighbours, as in NequIP (arXiv:2101.03164, eq. 6 and 9).

    L_i,lm,c = n^(-1/2) sum_j sum_paths R_path,c(d_ij) sum_m1,m2 C_m1,m2,m h_j,l1 m1,c Y_l2 m2(r_ij)

A path is a triple l1, l2 -> l with parities. Neighbours are summed first, as batched matrix products of harmonics
with R h, and coupled afterwards, at the atoms, of which there are many fewer than edges. Features are kept by irrep,
channels last, (N, 2l + 1, C). Shapes: N atoms, P pairs, S slots (`nn.pair_rows`), M = (lmax + 1)^2, C channels.
"""

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from physicsml_ase.nn.constants import Constants
from physicsml_ase.nn.couplings import Irrep, MulIrrep, clebsch_gordan
from physicsml_ase.nn.pair_rows import PairRows

Irreps = tuple[MulIrrep, ...]


class Edges(NamedTuple):
    """What a convolution reads of the edges."""

    harmonics: Tensor  # (R, M, J), zero in padding
    basis: Tensor  # (P, K)
    rows: PairRows


class Path(NamedTuple):
    """Features of irrep `source` times harmonics of degree `degree` to irrep `target`."""

    source: Irrep
    degree: int
    target: Irrep


def harmonic(degree: int) -> Irrep:
    """The irrep of spherical harmonics of a degree."""
    return Irrep(degree, (-1) ** degree)


def paths(features: Irreps, lmax: int, targets: set[Irrep]) -> list[Path]:
    """All paths to `targets`, in e3nn's order: by source, degree, target."""
    return [
        Path(ir, degree, target)
        for _, ir in features
        for degree in range(lmax + 1)
        for target in ir.times(harmonic(degree))
        if target in targets
    ]


def bias_free(*widths: int, last_gain: float = 2.0) -> nn.Sequential:
    """Linear layers without bias and SiLU between them, which begin with outputs of about the variance of inputs."""
    layers: list[nn.Module] = []
    for k, (a, b) in enumerate(zip(widths, widths[1:])):
        linear = nn.Linear(a, b, bias=False)
        bound = (3 * (last_gain if k else 1.0) / a) ** 0.5
        nn.init.uniform_(linear.weight, -bound, bound)
        layers += [linear, nn.SiLU()]
    return nn.Sequential(*layers[:-1])


def mixing(inputs: int, outputs: int) -> nn.Parameter:
    """Weights that keep the variance, (inputs, outputs)."""
    return nn.Parameter(torch.randn(inputs, outputs) * inputs**-0.5)


class Convolution(Constants):
    """From features of neighbours to one feature of each irrep of `targets`, linearly mixed."""

    def __init__(self, features: Irreps, targets: Irreps, lmax: int, radial: tuple[int, ...]) -> None:
        """`radial` are the widths of the radial network but the last: basis, hidden layers."""
        super().__init__()
        self.paths = paths(features, lmax, {ir for _, ir in targets})
        used = {path.source for path in self.paths}
        self.features = tuple((k, mul, ir) for k, (mul, ir) in enumerate(features) if ir in used)
        self.of_source = [[p for p in self.paths if p.source == ir] for _, _, ir in self.features]
        self.widths = [mul * len(own) for (_, mul, _), own in zip(self.features, self.of_source)]
        self.send = nn.ParameterList(mixing(mul, mul) for _, mul, _ in self.features)
        self.radial = bias_free(*radial, sum(self.widths))
        self.targets = tuple(ir for _, ir in targets)
        muls = {ir: mul for mul, ir in features}
        incoming = [sum(muls[p.source] for p in self.paths if p.target == ir) for _, ir in targets]
        self.receive = nn.ParameterList(mixing(n, mul) for n, (mul, _) in zip(incoming, targets))
        for source, own in enumerate(self.of_source):
            for degree in {p.degree for p in own if p.source.l and p.degree}:
                self.constant(f"coupling_{source}_{degree}", coupling([p for p in own if p.degree == degree]))

    def forward(self, x: list[Tensor], edges: Edges) -> list[Tensor]:
        """From x (N, 2l + 1, C) of all irreps to the targets'."""
        n = x[0].shape[0]
        harmonics, basis, rows = edges
        weights = rows.of_slots(self.radial(basis)).split(self.widths, dim=1)
        sent = torch.cat([(x[k] @ w).flatten(1) for (k, _, _), w in zip(self.features, self.send)], dim=1)
        heard = rows.of_neighbors(sent).split([mul * ir.dim for _, mul, ir in self.features], dim=1)
        parts: dict[Irrep, list[Tensor]] = {ir: [] for ir in self.targets}
        for source, (_, mul, ir) in enumerate(self.features):
            product = weights[source].unflatten(1, (-1, 1, mul)) * heard[source].unflatten(
                1, (1, ir.dim, mul)
            )
            sums = rows.sums(harmonics, product.flatten(1), n)  # (N, M, paths (2 l1 + 1) C)
            self._couple(source, sums.unflatten(2, (-1, ir.dim, mul)), parts)
        mixed = zip(self.targets, self.receive)
        return [(p[0] if len(p := parts[ir]) == 1 else torch.cat(p, dim=-1)) @ w for ir, w in mixed]

    def _couple(self, source: int, sums: Tensor, parts: dict[Irrep, list[Tensor]]) -> None:
        """Add what each path of a source makes of the sums (N, M, paths, 2 l1 + 1, C) to `parts`."""
        own = self.of_source[source]
        l1, mul = own[0].source.l, sums.shape[-1]
        for degree in sorted({p.degree for p in own}):
            here = [k for k, p in enumerate(own) if p.degree == degree]
            block = sums[:, degree**2 : (degree + 1) ** 2, here[0] : here[-1] + 1]
            if not (l1 and degree):  # a scalar times something is that
                parts[own[here[0]].target].append(block.reshape(block.shape[0], -1, mul))
                continue
            out = getattr(self, f"coupling_{source}_{degree}") @ block.reshape(block.shape[0], -1, mul)
            for k, part in zip(here, out.split([own[k].target.dim for k in here], dim=1)):
                parts[own[k].target].append(part)


def coupling(own: list[Path]) -> np.ndarray:
    """Coefficients from (m2, path, m1) to (path, m) of paths that share source and degree, a matrix."""
    l1, l2 = own[0].source.l, own[0].degree
    blocks = np.zeros((sum(p.target.dim for p in own), 2 * l2 + 1, len(own), 2 * l1 + 1))
    row = 0
    for k, path in enumerate(own):
        dim = path.target.dim
        blocks[row : row + dim, :, k] = dim**0.5 * clebsch_gordan(l1, l2, path.target.l).transpose(2, 1, 0)
        row += dim
    return blocks.reshape(len(blocks), -1)


class SelfConnection(nn.Module):
    """Linear maps of an atom's own features that depend on its attributes, to those targets that have a source.

    `attrs` (N, V) may be one-hot vectors of elements, for which the V embeddings (V, T) are given, or the T numbers
    of each atom themselves.
    """

    def __init__(self, features: Irreps, targets: Irreps, num_attrs: int) -> None:
        super().__init__()
        sources = {ir: k for k, (_, ir) in enumerate(features)}
        self.sources = tuple(sources.get(ir) for _, ir in targets)
        self.irreps = tuple(ir for _, ir in targets if ir in sources)
        weights = []
        for source, (mul, _) in zip(self.sources, targets):
            if source is not None:
                inputs = features[source].mul
                weights.append(
                    nn.Parameter(torch.randn(num_attrs, inputs, mul) * (inputs * num_attrs) ** -0.5)
                )
        self.weights = nn.ParameterList(weights)

    def forward(self, x: list[Tensor], attrs: Tensor | None, table: Tensor | None) -> list[Tensor | None]:
        """From x (N, 2l + 1, C) to what is added to each target; attrs None stands for a single element."""
        out: list[Tensor | None] = []
        weights = iter(self.weights)
        for source in self.sources:
            if source is None:
                out.append(None)
                continue
            w = next(weights)
            if table is not None:
                w = (table @ w.flatten(1)).unflatten(1, w.shape[1:])  # (V, C, C')
            y = x[source]
            if attrs is not None:
                y = (attrs[:, None, :, None] * y[:, :, None, :]).flatten(2)  # (N, 2l + 1, V C)
            out.append(y @ w.flatten(0, 1))
        return out
