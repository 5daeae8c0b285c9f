"""Products of an atom's surroundings, as in Allegro (arXiv:2204.05249, eq. 10 to 14), without tensors of edges.

Allegro multiplies a tensor of each edge, w_l Y_l at first, layer by layer with the surroundings of its centre. Only
scalars of the results are used, and each product is linear in the edge's tensor, so that the layers' products are
matrices of the atom, T = B_1 B_2 .. B_k, and an edge reads w_l Y_l . T. Shapes: N atoms, U channels,
M = (lmax + 1)^2 numbers of the first tensor and of the surroundings, K and K' of a layer's input and output.
"""

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from physicsml_ase.nn.constants import Constants
from physicsml_ase.nn.couplings import Irrep, clebsch_gordan

SCALAR = Irrep(0, 1)


class Product(NamedTuple):
    """Irreps of one layer's input and output, and which of the surroundings couple them: (in, env, out)."""

    inputs: tuple[Irrep, ...]
    outputs: tuple[Irrep, ...]
    paths: tuple[tuple[int, int, int], ...]


def harmonics(lmax: int) -> tuple[Irrep, ...]:
    """Irreps of spherical harmonics."""
    return tuple(Irrep(l, (-1) ** l) for l in range(lmax + 1))


def products(num_layers: int, lmax: int, parity: bool) -> list[Product]:
    """What the layers multiply: all that can be reached, and from which a scalar can still be reached."""
    env = harmonics(lmax)
    allowed = tuple(Irrep(l, p) for l in range(lmax + 1) for p in (1, -1)) if parity else env
    stages = [env]
    for layer in range(num_layers):
        reached = {out for a in stages[-1] for b in env for out in a.times(b)}
        wanted = (SCALAR,) if layer == num_layers - 1 else allowed
        stages.append(tuple(ir for ir in wanted if ir in reached))
    for k in range(num_layers - 1, -1, -1):
        useful = [ir for ir in stages[k] if any(out in stages[k + 1] for b in env for out in ir.times(b))]
        stages[k] = tuple(useful)
    return [_product(a, b, env) for a, b in zip(stages, stages[1:])]


def _product(inputs: tuple[Irrep, ...], outputs: tuple[Irrep, ...], env: tuple[Irrep, ...]) -> Product:
    paths = [
        (a, b, c)
        for c, out in enumerate(outputs)
        for a, one in enumerate(inputs)
        for b, two in enumerate(env)
        if out in one.times(two)
    ]
    return Product(inputs, outputs, tuple(paths))


class Surroundings(Constants):
    """The matrices B (U, N, K, K') of one layer, from surroundings (N, M, U)."""

    couplings: Tensor

    def __init__(self, product: Product, lmax: int, channels: int, coupled: bool) -> None:
        """`coupled`: each channel has weights of its own for the paths."""
        super().__init__()
        self.sizes = [sum(ir.dim for ir in irreps) for irreps in (product.inputs, product.outputs)]
        num = len(product.paths)
        self.paths = nn.Parameter(torch.empty(channels if coupled else 1, num).uniform_(-(3**0.5), 3**0.5))
        self.channels = channels
        self.constant("couplings", couplings(product, lmax).reshape(num, -1))

    def forward(self, env: Tensor) -> Tensor:
        """(N, M, U) -> (U, N, K, K')."""
        weights = (self.paths @ self.couplings).view(self.paths.shape[0], env.shape[1], -1)  # (U, M, K K')
        weights = weights.expand(self.channels, -1, -1)
        return (env.permute(2, 0, 1) @ weights).unflatten(2, self.sizes)


def couplings(product: Product, lmax: int) -> np.ndarray:
    """Coefficients of each path (paths, M, K, K')."""
    env = harmonics(lmax)
    first = [np.cumsum([0, *(ir.dim for ir in irreps)]) for irreps in (product.inputs, env, product.outputs)]
    out = np.zeros((len(product.paths), first[1][-1], first[0][-1], first[2][-1]))
    for p, (a, b, c) in enumerate(product.paths):
        one, two, result = product.inputs[a], env[b], product.outputs[c]
        block = result.dim**0.5 * clebsch_gordan(one.l, two.l, result.l).transpose(1, 0, 2)
        spans = [slice(f[k], f[k + 1]) for f, k in ((first[1], b), (first[0], a), (first[2], c))]
        out[p][tuple(spans)] = block
    return out
