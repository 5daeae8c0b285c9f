"""PaiNN: equivariant message passing with scalars and vectors.

Schütt, Unke & Gastegger, ICML 2021, arXiv:2102.03150, whose equations are cited below. Shapes: N atoms,
E edges, F channels, K radial functions; vectors are kept as (N, 3, F), so that channels are contiguous.
"""

from typing import Literal

from pydantic import PositiveInt
from torch import Tensor, cat, nn

from physicsml_ase.config import config, register_model
from physicsml_ase.domain import Domain
from physicsml_ase.graph import Graph
from physicsml_ase.nn.features import Features, NodeEmbedding, lengths_and_directions, mlp, segment_sum
from physicsml_ase.nn.radial import BesselBasis


@config
class PaiNNConfig:
    """PaiNN (arXiv:2102.03150): light, with one vector channel for every scalar channel."""

    name: Literal["painn"] = "painn"
    """Architecture."""
    channels: PositiveInt = 64
    """Scalar and vector channels of each atom, F."""
    layers: PositiveInt = 3
    """Message and update blocks; information travels this many cut-offs."""
    num_radial: PositiveInt = 20
    """Bessel functions of each distance, K."""


class Message(nn.Module):
    """Continuous-filter convolution over neighbours (eq. 7 and 8)."""

    def __init__(self, channels: int, num_radial: int, avg_num_neighbors: float) -> None:
        super().__init__()
        self.phi = mlp(channels, channels, 3 * channels)
        # without bias, so that a filter ends at the cut-off with its radial functions
        self.filter = nn.Linear(num_radial, 3 * channels, bias=False)
        self.scale = avg_num_neighbors**-0.5

    def forward(
        self, s: Tensor, v: Tensor, radial: Tensor, u_ij: Tensor, i: Tensor, j: Tensor
    ) -> tuple[Tensor, Tensor]:
        """What neighbours add to s (N, F) and v (N, 3, F); of radial functions (E, K) and directions (E, 3)."""
        filters = self.filter(radial * self.scale)  # (E, 3F)
        to_scalar, along, onward = (self.phi(s).index_select(0, j) * filters).chunk(3, dim=-1)  # (E, F) each
        to_vector = u_ij[:, :, None] * along[:, None, :] + v.index_select(0, j) * onward[:, None, :]
        return segment_sum(to_scalar, i, s.shape[0]), segment_sum(to_vector, i, s.shape[0])


class Update(nn.Module):
    """Mixing of an atom's own scalars and vectors (eq. 9 and 10)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.mix = nn.Linear(channels, 2 * channels, bias=False)
        self.gate = mlp(2 * channels, channels, 3 * channels)

    def forward(self, s: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """What an atom's own s (N, F) and v (N, 3, F) add to themselves."""
        u, w = self.mix(v).chunk(2, dim=-1)  # (N, 3, F) each
        # |w|, but smooth where w = 0, which is every symmetric site: the paper's norm has a cusp there, so that
        # a crystal's force constants would be infinite
        norm = (w.square().sum(1) + 1.0).sqrt() - 1.0
        own, product, scale = self.gate(cat([s, norm], dim=-1)).chunk(3, dim=-1)  # (N, F) each
        return own + product * (u * w).sum(1), scale[:, None, :] * u


@register_model(PaiNNConfig)
class PaiNN(nn.Module):
    """Scalars and vectors of each atom from its neighbourhood."""

    takes_slots = True

    def __init__(self, config: PaiNNConfig, domain: Domain) -> None:
        super().__init__()
        f, k = config.channels, config.num_radial
        self.num_node_scalars = self.num_node_vectors = f
        self.embed = NodeEmbedding(f, domain)
        self.radial = BesselBasis(k, domain.cutoff)
        self.messages = nn.ModuleList(Message(f, k, domain.avg_num_neighbors) for _ in range(config.layers))
        self.updates = nn.ModuleList(Update(f) for _ in range(config.layers))

    def forward(self, graph: Graph, r_ij: Tensor) -> Features:
        """Scalars (N, F) and vectors (N, 3, F), from r_ij (E, 3) [Å]."""
        i, j = graph.edge_index
        d_ij, u_ij = lengths_and_directions(r_ij)
        radial = self.radial(d_ij)  # (E, K)
        s = self.embed(graph)  # (N, F)
        v = s.new_zeros(s.shape[0], 3, s.shape[1])
        for message, update in zip(self.messages, self.updates):
            ds, dv = message(s, v, radial, u_ij, i, j)
            s, v = s + ds, v + dv
            ds, dv = update(s, v)
            s, v = s + ds, v + dv
        return Features(node_scalars=s, node_vectors=v)
