"""NequIP: equivariant convolutions over neighbours, gated.

Batzner et al., Nat. Commun. 13, 2453 (2022), arXiv:2101.03164, as `nequip` 0.19 computes it. Shapes: N atoms,
P pairs, K radial functions, C channels; features are kept by irrep, (N, 2l + 1, C).
"""

import math
from typing import Annotated, ClassVar, Literal

import torch
from pydantic import Field, NonNegativeInt, PositiveFloat, PositiveInt
from torch import Tensor, nn
from torch.nn.functional import silu

from physicsml_ase.config import config, register_model
from physicsml_ase.conventions import InputError
from physicsml_ase.domain import Domain
from physicsml_ase.graph import Graph
from physicsml_ase.nn.bessel import NumberedBessel
from physicsml_ase.nn.convolution import Convolution, Edges, Irreps, SelfConnection, bias_free, harmonic
from physicsml_ase.nn.couplings import Irrep, MulIrrep
from physicsml_ase.nn.elements import FEW, ElementIndex
from physicsml_ase.nn.features import Features, NodeEmbedding, lengths_and_directions
from physicsml_ase.nn.harmonics import EdgeHarmonics
from physicsml_ase.nn.nuclear import nuclear_repulsion
from physicsml_ase.nn.pair_rows import PairRows, make_pair_rows

SILU, TANH = 1.6791767923989418, 1.5937334472592695
"""What brings SiLU and tanh of normal numbers to a second moment of 1, as e3nn has it."""
EVEN, ODD, VECTOR = Irrep(0, 1), Irrep(0, -1), Irrep(1, -1)


@config
class NequIPConfig:
    """NequIP (arXiv:2101.03164): equivariant convolutions, accurate and dear."""

    name: Literal["nequip"] = "nequip"
    """Architecture."""
    num_layers: PositiveInt = 3
    """Convolutions; information travels this many cut-offs."""
    max_ell: Annotated[int, Field(ge=0, le=4)] = 1
    """Largest degree of features and spherical harmonics: 1 is quick, 2 more accurate."""
    parity: bool = True
    """Whether there are features of both parities in each degree; without, half as many."""
    num_features: PositiveInt | tuple[PositiveInt, ...] = 32
    """Channels of each irrep, or one number for each degree."""
    num_bessel: PositiveInt = 8
    """Bessel functions of each distance, K."""
    bessel_basis_trainable: bool = False
    """Whether their wave numbers are learned."""
    num_polynomial_cutoff: Annotated[int, Field(ge=2)] = 6
    """Power p of the envelope that ends them at the cut-off."""
    invariant_layers: PositiveInt = 2
    """Hidden layers of the radial networks."""
    invariant_neurons: PositiveInt = 64
    """Width of each of them."""
    self_connection: bool = True
    """Whether an atom's own features are added, by weights that depend on its element, from the second layer on."""
    resnet: bool = False
    """Whether a layer is added to its input, where they are of the same irreps."""
    avg_num_neighbours: PositiveFloat | None = None
    """Sums over neighbours are divided by its square root. none: the mean of the training data."""
    embedding_features: PositiveInt | None = None
    """Numbers that stand for an atom's element. none: as many as scalar channels."""
    readout_layers: NonNegativeInt = 0
    """Hidden layers of the energy's readout."""
    readout_neurons: PositiveInt | None = None
    """Width of each of them. none: as many as scalar channels."""
    zbl: bool = False
    """Whether the screened repulsion of nuclei (ZBL) is added, at all distances within the cut-off."""
    trainable_scales: bool = False
    """Whether each element's scale of the energy is learned."""
    trainable_shifts: bool = True
    """Whether each element's energy, beyond its reference, is learned."""

    only_in_training: ClassVar = ("trainable_scales", "trainable_shifts")
    """What changes no figures of a trained model."""


class Gate(nn.Module):
    """Scalars through SiLU (even) or tanh (odd), the rest times SiLU of scalars of their own."""

    def __init__(self, features: Irreps) -> None:
        super().__init__()
        self.features = features
        gates = sum(mul for mul, ir in features if ir.l)
        self.inputs = tuple(MulIrrep(mul + gates if ir == EVEN else mul, ir) for mul, ir in features)
        self.widths = [mul for mul, ir in features if ir == EVEN or ir.l]

    def forward(self, x: list[Tensor]) -> list[Tensor]:
        """x (N, 2l + 1, C), where the even scalars are followed by the gates."""
        gates = (silu(x[0]) * SILU).split(self.widths, dim=-1)
        out, gate = [gates[0]], iter(gates[1:])
        for (_, ir), y in zip(self.features[1:], x[1:]):
            out.append(torch.tanh(y) * TANH if ir == ODD else y * next(gate))
        return out


class Layer(nn.Module):
    """One convolution with its self-connection and gate."""

    def __init__(
        self,
        settings: NequIPConfig,
        features: Irreps,
        wanted: Irreps,
        num_attrs: int,
        connect: bool,
        residual: bool,
    ) -> None:
        super().__init__()
        lmax = settings.max_ell
        reached = {ir for _, f in features for d in range(lmax + 1) for ir in f.times(harmonic(d))}
        self.features: Irreps = tuple(term for term in wanted if term.ir in reached)
        self.gate = Gate(self.features)
        hidden = (settings.invariant_neurons,) * settings.invariant_layers
        self.conv = Convolution(features, self.gate.inputs, lmax, (settings.num_bessel, *hidden))
        self.connection = SelfConnection(features, self.gate.inputs, num_attrs) if connect else None
        self.residual = residual and self.features == features

    def forward(
        self,
        x: list[Tensor],
        edges: Edges,
        attrs: Tensor | None,
        table: Tensor | None,
    ) -> list[Tensor]:
        """x (N, 2l + 1, C) by irrep; for the rest see `SelfConnection`."""
        y = self.conv(x, edges)
        if self.connection is not None:
            own = self.connection(x, attrs, table)
            y = [a if b is None else a + b for a, b in zip(y, own)]
        y = self.gate(y)
        return [a + b for a, b in zip(x, y)] if self.residual else y


@register_model(NequIPConfig)
class NequIP(nn.Module):
    """Energies of the atoms from gated convolutions."""

    gives_energy = True
    takes_rows = True

    def __init__(self, config: NequIPConfig, domain: Domain) -> None:
        super().__init__()
        muls = channels(config)
        num_attrs = config.embedding_features or muls[0]
        self.index = ElementIndex(domain.elements)
        self.embed = NodeEmbedding(num_attrs, domain)
        self.register_buffer("elements", torch.tensor(domain.elements), persistent=False)
        self.by_element = self.embed.attrs is None and self.index.num <= FEW
        self.harmonics = EdgeHarmonics(config.max_ell)
        cutoff, k, p = domain.cutoff, config.num_bessel, config.num_polynomial_cutoff
        factor = 2 * math.pi / cutoff**2
        self.basis = NumberedBessel(k, cutoff, p, config.bessel_basis_trainable, factor)
        self.scale = (config.avg_num_neighbours or domain.avg_num_neighbors) ** -0.5
        features: list[Irreps] = [(MulIrrep(num_attrs, EVEN),)]  # of the input and of each layer
        self.layers = nn.ModuleList()
        for k in range(config.num_layers):
            wanted = hidden(muls, config.parity) if k < config.num_layers - 1 else (MulIrrep(muls[0], EVEN),)
            connect, residual = k > 0 and config.self_connection, k > 0 and config.resnet
            layer = Layer(config, features[-1], wanted, num_attrs, connect, residual)
            features.append(layer.features)
            self.layers.append(layer)
        self.readout = bias_free(muls[0], *[config.readout_neurons or muls[0]] * config.readout_layers, 1)
        ones, shift = torch.ones(self.index.num, 1), domain.energy_shift / domain.energy_scale
        self.scales = nn.Parameter(ones, requires_grad=config.trainable_scales)
        self.shifts = nn.Parameter(ones * shift, requires_grad=config.trainable_shifts)
        self.cutoff, self.repulsion = cutoff, 1 / domain.energy_scale if config.zbl else None
        self.num_node_scalars = muls[0]
        # the last layer has only scalars: vectors are those that it reads
        self.vectors = next((k for k, (_, ir) in enumerate(features[-2]) if ir == VECTOR), None)
        self.num_node_vectors = 0 if self.vectors is None else features[-2][self.vectors].mul

    def forward(self, graph: Graph, r_ij: Tensor, rows: PairRows | None = None) -> Features:
        """Of edges r_ij (E, 3); `rows` are theirs, where they are known."""
        elements = self.index(graph.atomic_numbers, r_ij.dtype)
        attrs = self.embed(graph)  # (N, T)
        x = read = [attrs[:, None, :]]
        table = None
        if self.by_element:
            table = self.embed.elements(self.elements)
            attrs = elements.one_hot if self.index.num > 1 else None
        d_ij, u_ij = lengths_and_directions(r_ij)
        rows = make_pair_rows(graph) if rows is None else rows
        harmonics = rows.fill(self.harmonics(u_ij) * self.scale).mT  # (R, M, J)
        edges = Edges(harmonics, self.basis(rows.of_pairs(d_ij)), rows)
        for layer in self.layers:
            x, read = layer(x, edges, attrs, table), x
        s = x[0][:, 0]  # (N, C)
        scales, shifts = (elements.pick(t)[:, 0] for t in (self.scales, self.shifts))
        energy = self.readout(s)[:, 0] * scales + shifts
        if self.repulsion is not None:
            energy = energy + nuclear_repulsion(graph, d_ij, self.cutoff) * self.repulsion
        return Features(s, None if self.vectors is None else read[self.vectors], node_energy=energy)


def channels(config: NequIPConfig) -> tuple[int, ...]:
    """Channels of the irreps of each degree."""
    muls = config.num_features
    if isinstance(muls, int):
        return (muls,) * (config.max_ell + 1)
    if len(muls) != config.max_ell + 1:
        raise InputError(
            f"model.num_features: {len(muls)} numbers, but max_ell = {config.max_ell} makes "
            f"{config.max_ell + 1} degrees"
        )
    return muls


def hidden(muls: tuple[int, ...], parity: bool) -> Irreps:
    """The irreps of all layers but the last, in the order of `nequip`."""
    parities = [(1, -1) if parity else ((-1) ** degree,) for degree in range(len(muls))]
    return tuple(MulIrrep(mul, Irrep(l, p)) for l, mul in enumerate(muls) for p in parities[l])
