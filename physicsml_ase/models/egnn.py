"""EGNN: messages of squared distances, and atoms that move along the vectors to their neighbours.

Satorras, Hoogeboom & Welling, ICML 2021, arXiv:2102.09844, whose equations are cited below:

    m_ij = phi_e(h_i, h_j, |x_i - x_j|^2, a_ij)                        (3)
    x_i <- x_i + C sum_j (x_i - x_j) phi_x(m_ij)                       (4)
    h_i <- h_i + phi_h(h_i, sum_j m_ij)                                (5, 6, with a residual connection)

Places x_i are never seen, only vectors to neighbours: where atoms move by u_i, r_ij becomes r_ij + u_j - u_i, so that
crystals are what they are. Of the paper's equations three things are changed: messages and moves are multiplied by an
envelope of the distance before all moves, since without one energies would jump where neighbours come and go; squared
distances are in units of the cut-off; sums are divided by the square root of the mean number of neighbours, and
C is one over that number.

Shapes: N atoms, E edges, F channels, K radial functions, L layers.
"""

from typing import Literal

import torch
from pydantic import NonNegativeInt, PositiveInt
from torch import Tensor, nn

from physicsml_ase.config import config, register_model
from physicsml_ase.domain import Domain
from physicsml_ase.graph import Graph
from physicsml_ase.nn.features import Features, NodeEmbedding, lengths_and_directions, mlp, segment_sum
from physicsml_ase.nn.radial import BesselBasis, envelope


@config
class EGNNConfig:
    """EGNN (arXiv:2102.09844): light; directions enter only where atoms move."""

    name: Literal["egnn"] = "egnn"
    """Architecture."""
    hidden_dim: PositiveInt = 64
    """Channels of atoms and messages, F."""
    num_layers: PositiveInt = 4
    """Layers, L; information travels this many cut-offs."""
    num_radial: NonNegativeInt = 16
    """Bessel functions of the distance beside its square, K; the paper's messages have none."""
    attention: bool = True
    """Whether messages are weighed by a number between 0 and 1 that they tell themselves (eq. 8)."""
    residual: bool = True
    """Whether layers add to the features of atoms, or replace them."""
    coordinate_updates: bool = True
    """Whether atoms move. Otherwise there are no vectors, and no labels with directions."""
    edge_updates: bool = False
    """Whether edges have features a_ij, to which every layer adds."""


class Layer(nn.Module):
    """One layer (eq. 3 to 6)."""

    def __init__(self, config: EGNNConfig, avg_num_neighbors: float) -> None:
        super().__init__()
        f = config.hidden_dim
        self.residual, self.scale = config.residual, avg_num_neighbors**-0.5
        # the first layer of phi_e, in parts: what atoms add to it is computed once for each atom
        self.of_atoms = nn.Linear(f, 2 * f, bias=False)
        self.of_edges = nn.Linear(1 + config.num_radial + (f if config.edge_updates else 0), f)
        self.message = nn.Linear(f, f)
        self.attention = nn.Linear(f, 1) if config.attention else None
        self.move = mlp(f, f, 1) if config.coordinate_updates else None
        if self.move is not None:
            last = self.move[-1]
            assert isinstance(last, nn.Linear)
            nn.init.uniform_(last.weight, -0.03, 0.03)  # atoms move little at first
            nn.init.zeros_(last.bias)
        self.edge = nn.Linear(f, f) if config.edge_updates else None
        self.update = mlp(2 * f, f, f)

    def forward(
        self, h: Tensor, a: Tensor | None, r: Tensor, fixed: Tensor, ending: Tensor, i: Tensor, j: Tensor
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """Features of atoms (N, F) and edges (E, F), and moves (N, 3) in units of the cut-off.

        Of r (E, 3) in these units, `fixed` (E, K) and the envelope (E, 1).
        """
        n = h.shape[0]
        centre, neighbor = self.of_atoms(h).chunk(2, dim=1)
        told = [r.square().sum(1, keepdim=True), fixed] + ([] if a is None else [a])
        m = self.of_edges(torch.cat(told, dim=1)) + centre.index_select(0, i) + neighbor.index_select(0, j)
        m = nn.functional.silu(self.message(nn.functional.silu(m)))
        if self.attention is not None:
            m = m * torch.sigmoid(self.attention(m))
        moves = None
        if self.move is not None:
            moves = segment_sum(-r * (self.move(m) * ending), i, n) * self.scale**2
        if self.edge is not None and a is not None:
            a = a + self.edge(m)
        update = self.update(torch.cat([h, segment_sum(m * ending, i, n) * self.scale], dim=1))
        return h + update if self.residual else update, a, moves


@register_model(EGNNConfig)
class EGNN(nn.Module):
    """Scalars of each atom, and as its vectors how far it moved in each layer."""

    takes_slots = True

    def __init__(self, config: EGNNConfig, domain: Domain) -> None:
        super().__init__()
        f = config.hidden_dim
        self.num_node_scalars = f
        self.num_node_vectors = config.num_layers if config.coordinate_updates else 0
        self.num_edge_scalars = f if config.edge_updates else 0
        self.cutoff = domain.cutoff
        self.embed = NodeEmbedding(f, domain)
        self.radial = BesselBasis(config.num_radial, domain.cutoff)
        self.layers = nn.ModuleList(Layer(config, domain.avg_num_neighbors) for _ in range(config.num_layers))

    def forward(self, graph: Graph, r_ij: Tensor) -> Features:
        """Scalars (N, F), moves (N, 3, L) [Å] and features of edges (E, F), as configured, from r_ij (E, 3) [Å]."""
        i, j = graph.edge_index
        d_ij, _ = lengths_and_directions(r_ij)
        radial, ending = self.radial(d_ij), envelope(d_ij / self.cutoff)  # (E, K), (E, 1)
        h, r = self.embed(graph), r_ij / self.cutoff
        a = r.new_zeros(r.shape[0], self.num_edge_scalars) if self.num_edge_scalars else None
        moved = []
        for layer in self.layers:
            h, a, moves = layer(h, a, r, radial, ending, i, j)
            if moves is not None:
                r = r + moves.index_select(0, j) - moves.index_select(0, i)
                moved.append(moves)
        vectors = torch.stack(moved, dim=2) * self.cutoff if moved else None  # (N, 3, L) [Å]
        return Features(node_scalars=h, node_vectors=vectors, edge_scalars=a)
