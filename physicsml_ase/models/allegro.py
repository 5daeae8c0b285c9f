"""Allegro: strictly local equivariant energies of edges.

Musaelian et al., Nat. Commun. 14, 579 (2023), arXiv:2204.05249, as `nequip-allegro` 0.8 computes it. Shapes: N atoms,
E edges, P pairs, R rows of J slots, M = (lmax + 1)^2, L = lmax + 1, F scalar and U tensor channels.
"""

from typing import Annotated, ClassVar, Literal

import torch
from pydantic import Field, NonNegativeInt, PositiveFloat, PositiveInt
from torch import Tensor, nn

from physicsml_ase.config import config, register_model
from physicsml_ase.domain import Domain
from physicsml_ase.graph import Graph
from physicsml_ase.nn.bessel import NumberedBessel
from physicsml_ase.nn.convolution import bias_free
from physicsml_ase.nn.elements import ElementIndex
from physicsml_ase.nn.features import Features, NodeEmbedding, lengths_and_directions
from physicsml_ase.nn.harmonics import EdgeHarmonics
from physicsml_ase.nn.nuclear import nuclear_repulsion
from physicsml_ase.nn.pair_rows import PairRows, make_pair_rows
from physicsml_ase.nn.strictly_local import Surroundings, products


@config
class AllegroConfig:
    """Allegro (arXiv:2204.05249): energies of edges; information travels no farther than the cut-off."""

    name: Literal["allegro"] = "allegro"
    """Architecture."""
    num_layers: PositiveInt = 2
    """Products with the surroundings: energies of one layer are of body order 3."""
    max_ell: Annotated[int, Field(ge=0, le=4)] = 1
    """Largest degree of tensors and spherical harmonics: 1 is quick, 2 more accurate."""
    parity: bool = True
    """Whether there are tensors of both parities in each degree, where there are two layers or more."""
    num_scalar_features: PositiveInt = 64
    """Scalar channels of each edge, F."""
    num_tensor_features: PositiveInt = 16
    """Tensor channels of each edge and of the surroundings, U."""
    num_bessel: PositiveInt = 8
    """Bessel functions of each distance."""
    bessel_basis_trainable: bool = False
    """Whether their wave numbers are learned."""
    num_polynomial_cutoff: Annotated[int, Field(ge=2)] = 6
    """Power p of the envelope that ends them at the cut-off."""
    embedding_features: Annotated[int, Field(ge=2, multiple_of=2)] | None = None
    """Numbers that stand for the two elements and the distance of an edge. none: as many as scalar channels."""
    two_body_layers: NonNegativeInt = 1
    """Hidden layers of the network of these."""
    two_body_neurons: PositiveInt = 64
    """Width of each of them."""
    latent_layers: NonNegativeInt = 1
    """Hidden layers of the network in each layer."""
    latent_neurons: PositiveInt = 64
    """Width of each of them."""
    readout_layers: NonNegativeInt = 1
    """Hidden layers of the energy's readout."""
    readout_neurons: PositiveInt = 32
    """Width of each of them."""
    path_channel_coupling: bool = True
    """Whether each tensor channel has weights of its own for the paths of a product."""
    avg_num_neighbours: PositiveFloat | None = None
    """Sums over neighbours are divided by its square root. none: the mean of the training data."""
    zbl: bool = False
    """Whether the screened repulsion of nuclei (ZBL) is added, at all distances within the cut-off."""
    trainable_scales: bool = False
    """Whether each element's scale of the energy is learned."""
    trainable_shifts: bool = True
    """Whether each element's energy, beyond its reference, is learned."""

    only_in_training: ClassVar = ("trainable_scales", "trainable_shifts")
    """What changes no figures of a trained model."""


@register_model(AllegroConfig)
class Allegro(nn.Module):
    """Energies of the atoms, each the sum of its edges'."""

    gives_energy = True
    takes_rows = True

    def __init__(self, config: AllegroConfig, domain: Domain) -> None:
        super().__init__()
        f, u, self.lmax = config.num_scalar_features, config.num_tensor_features, config.max_ell
        d = config.embedding_features or f + f % 2
        self.index = ElementIndex(domain.elements)
        self.centre, self.neighbor = NodeEmbedding(d // 2, domain), NodeEmbedding(d // 2, domain)
        self.harmonics = EdgeHarmonics(self.lmax)
        self.cutoff = domain.cutoff
        self.basis = NumberedBessel(
            config.num_bessel, self.cutoff, config.num_polynomial_cutoff, config.bessel_basis_trainable
        )
        self.spread = bias_free(config.num_bessel, d)
        self.two_body = bias_free(d, *[config.two_body_neurons] * config.two_body_layers, f)
        weights = u * (self.lmax + 1)  # of harmonics, by degree and channel
        self.widths = [f, weights, weights]  # scalars, the first surroundings, the edge's own tensor
        self.first = bias_free(f, sum(self.widths))
        steps = products(config.num_layers, self.lmax, config.parity)
        coupled = config.path_channel_coupling
        self.surroundings = nn.ModuleList(Surroundings(step, self.lmax, u, coupled) for step in steps)
        self.latents = nn.ModuleList()
        for k in range(config.num_layers):
            more = weights if k < config.num_layers - 1 else 0
            hidden = [config.latent_neurons] * config.latent_layers
            self.latents.append(bias_free((k + 1) * f + u, *hidden, f + more))
        neurons = [config.readout_neurons] * config.readout_layers
        self.readout = bias_free((config.num_layers + 1) * f, *neurons, 1)
        self.scale = (config.avg_num_neighbours or domain.avg_num_neighbors) ** -0.5
        ones, shift = torch.ones(self.index.num, 1), domain.energy_shift / domain.energy_scale
        self.scales = nn.Parameter(ones, requires_grad=config.trainable_scales)
        self.shifts = nn.Parameter(ones * shift, requires_grad=config.trainable_shifts)
        self.repulsion = 1 / domain.energy_scale if config.zbl else None
        self.num_node_scalars, self.num_node_vectors = f, u if self.lmax else 0
        self.num_edge_scalars = f

    def forward(self, graph: Graph, r_ij: Tensor, rows: PairRows | None = None) -> Features:
        """Of edges r_ij (E, 3); `rows` are theirs, where they are known."""
        f, rows = self.widths[0], make_pair_rows(graph) if rows is None else rows
        n = graph.atomic_numbers.shape[0]
        d_ij, u_ij = lengths_and_directions(r_ij)
        harmonics = rows.fill(self.harmonics(u_ij))  # (R, J, M)
        scalars, env_weights, own = self.first(self._two_body(graph, rows, d_ij)).split(self.widths, dim=1)
        known, env, tensors = [scalars], env_weights, None
        for surroundings, latent in zip(self.surroundings, self.latents):
            sums = self._sums(rows, harmonics, env, n)  # (N, M, U)
            matrix = surroundings(sums)  # (U, N, K, K')
            tensors = matrix if tensors is None else tensors @ matrix  # (U, N, M, K')
            known.append(self._scalars(rows, harmonics, own, tensors[..., 0]))
            latents = latent(torch.cat(known, dim=1))
            known[-1], env = latents[:, :f], latents[:, f:]
        edges = self.readout(torch.cat(known, dim=1))  # (E, 1)
        last = torch.cat([edges * 0.5**0.5, known[-1]], dim=1)
        energy, s = (rows.neighbor_sum(last, n) * self.scale).split([1, f], dim=1)
        elements = self.index(graph.atomic_numbers, r_ij.dtype)
        energy = (energy * elements.pick(self.scales) + elements.pick(self.shifts))[:, 0]
        if self.repulsion is not None:
            energy = energy + nuclear_repulsion(graph, d_ij, self.cutoff) * self.repulsion
        return Features(s, sums[:, 1:4] if self.lmax else None, known[-1], energy)

    def _two_body(self, graph: Graph, rows: PairRows, d_ij: Tensor) -> Tensor:
        """What is known of an edge from its elements and its distance, (E, F)."""
        i, j = graph.edge_index
        elements = [self.centre(graph).index_select(0, i), self.neighbor(graph).index_select(0, j)]
        distance = self.spread(self.basis(rows.of_pairs(d_ij))).index_select(0, rows.pair_of_edge)
        return self.two_body(torch.cat(elements, dim=1) * distance)

    def _sums(self, rows: PairRows, harmonics: Tensor, weights: Tensor, n: int) -> Tensor:
        """Surroundings: sums over neighbours of weights (E, L U) times harmonics (R, J, M), (N, M, U)."""
        sums = rows.slots.per_atom(harmonics.mT @ rows.fill(weights), n).unflatten(2, (self.lmax + 1, -1))
        parts = [sums[:, l * l : (l + 1) ** 2, l] for l in range(self.lmax + 1)]
        return torch.cat(parts, dim=1) * self.scale

    def _scalars(self, rows: PairRows, harmonics: Tensor, own: Tensor, column: Tensor) -> Tensor:
        """Scalars that an edge's tensor, weights (E, L U) times harmonics, has with a column (U, N, M), (E, U)."""
        column = rows.slots.per_row(column.permute(1, 2, 0))  # (R, M, U)
        out = None
        for l, weights in enumerate(own.chunk(self.lmax + 1, dim=1)):
            span = slice(l * l, (l + 1) ** 2)
            part = weights * rows.of_edges(harmonics[..., span] @ column[:, span])
            out = part if out is None else out + part
        assert out is not None
        return out
