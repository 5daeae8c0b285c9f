"""TensorNet: messages that are 3x3 matrices of each channel.

Simeon & de Fabritiis, NeurIPS 2023, arXiv:2306.06482. A matrix is the sum of a multiple of one, an antisymmetric and
a symmetric traceless part, 1 + 3 + 5 numbers, here coefficients of an orthonormal basis, so that their squares add up
to the Frobenius norm; whole matrices exist only where two of them are multiplied. Factors of messages depend on the
distance alone: they are computed once for the two directions of a pair. Under O(3) the antisymmetric part is a polar
vector, which is what labels with directions are read off.

As in the authors' code (and unlike the paper) every atom is its own neighbour, at distance 0. The paper's cosine
cut-off ends with a curvature that jumps, and forces with a kink; the default here is smooth, `cosine` is for imported
weights.

Shapes: N atoms, E edges, P pairs, F channels, K radial functions, Z elements; matrices are (9, N, F) in the basis.
"""

from typing import Literal

import torch
from pydantic import NonNegativeInt, PositiveInt
from torch import Tensor, nn

from physicsml_ase.config import config, register_model
from physicsml_ase.domain import Domain
from physicsml_ase.graph import Graph
from physicsml_ase.nn.elements import FEW, ElementIndex, one_hot
from physicsml_ase.nn.features import Features, NodeEmbedding, lengths_and_directions
from physicsml_ase.nn.matrices import PARTS, SIZES, Matrices
from physicsml_ase.nn.matrix_messages import messages
from physicsml_ase.nn.matrix_products import anticommutator, product
from physicsml_ase.nn.matrix_rows import Ends, ends, row_messages, row_outer_sum
from physicsml_ase.nn.outer_sums import outer_sum
from physicsml_ase.nn.pair_rows import PairRows
from physicsml_ase.nn.pairs import Pairs, make_pairs
from physicsml_ase.nn.smearing import CutoffKind, RadialKind, cutoff_function, radial_basis

Group = Literal["O(3)", "SO(3)"]


@config
class TensorNetConfig:
    """TensorNet (arXiv:2306.06482): accurate on molecules, with matrices in place of spherical harmonics."""

    name: Literal["tensor_net"] = "tensor_net"
    """Architecture."""
    hidden_channels: PositiveInt = 64
    """Channels of each atom, F."""
    num_layers: NonNegativeInt = 2
    """Interaction layers; information travels one cut-off more."""
    num_radial: PositiveInt = 32
    """Radial functions of each distance, K."""
    radial_basis: RadialKind = "expnorm"
    """Radial functions: Gaussians of exp(-d), Gaussians of d, or Bessel functions."""
    trainable_radial: bool = False
    """Whether places and widths of the radial functions are learned (not those of bessel)."""
    equivariance_group: Group = "O(3)"
    """SO(3) also tells mirror images apart."""
    cutoff_function: CutoffKind = "smooth"
    """What ends messages at the cut-off. cosine: the paper's, whose forces have a kink there."""


class Embedding(nn.Module):
    """Matrices of each atom from its neighbours' elements, distances and directions (eq. 5 to 9)."""

    elements: Tensor

    def __init__(self, config: TensorNetConfig, domain: Domain) -> None:
        super().__init__()
        f, k = config.hidden_channels, config.num_radial
        self.register_buffer("elements", torch.tensor(domain.elements), persistent=False)  # (Z,)
        self.index = ElementIndex(domain.elements)
        self.embed = NodeEmbedding(f, domain)
        self.pair = nn.Linear(2 * f, f)
        self.distance = nn.Linear(k, 3 * f)
        self.norm = nn.LayerNorm(f)
        self.scalars = nn.ModuleList([nn.Linear(f, 2 * f), nn.Linear(2 * f, 3 * f)])
        self.mix = nn.ModuleList(nn.Linear(f, f, bias=False) for _ in PARTS)

    def forward(
        self, graph: Graph, edges: Pairs | Ends, matrices: Matrices, u_ij: Tensor, radial: Tensor
    ) -> Tensor:
        """(9, N, F) from directions (E, 3) and, with the cut-off beside them, radial functions (P, K + 1)."""
        density = self._density(graph, edges, matrices, u_ij, radial).permute(2, 0, 1, 3)  # (9, N, Z, K + 1)
        centre, neighbor = self._of_elements(graph)
        weights = torch.cat([self.distance.weight, self.distance.bias[:, None]], dim=1)  # (3F, K + 1)
        weights = weights.unflatten(0, (3, -1)).mT  # (3, K + 1, F)
        by_pair = (neighbor[:, None, :] * weights[:, None]).flatten(1, 2)  # (3, Z (K + 1), F)
        x = torch.bmm(density.sum(2), matrices.for_all(weights)) * centre
        x = x + torch.bmm(density.flatten(2), matrices.for_all(by_pair))
        mixed = linears(self.mix, x, matrices)
        s = self.norm(x.square().sum(0))
        for linear in self.scalars:
            s = nn.functional.silu(linear(s))
        return mixed * matrices.for_all(s.unflatten(1, (3, -1)).transpose(0, 1))

    def _density(
        self, graph: Graph, edges: Pairs | Ends, matrices: Matrices, u_ij: Tensor, radial: Tensor
    ) -> Tensor:
        """Sums over neighbours of each element, and the atom itself, of directions times radial functions."""
        i, j = graph.edge_index
        n, num = graph.atomic_numbers.shape[0], self.index.num
        place = self.index.places.index_select(0, graph.atomic_numbers)
        if isinstance(edges, Ends) and num <= FEW:
            directions = matrices.of_directions(u_ij)
            density = row_outer_sum(directions, radial, place, num, edges)
            one = torch.zeros_like(directions[:1]).index_fill(1, j.new_zeros(1), 3**0.5)  # of no direction
            own = one_hot(place, num, radial.dtype)[:, :, None] * one  # (N, Z, 9)
            return density + own[..., None] * radial[-1]
        atoms = torch.arange(n, device=i.device)  # edges of the atoms to themselves, of no direction
        i, j = torch.cat([i, atoms]), torch.cat([j, atoms])
        of_edge = edges.rows.pair_of_edge if isinstance(edges, Ends) else edges.of_edge
        of_edge = nn.functional.pad(of_edge, (0, n), value=radial.shape[0] - 1)
        group = i if num == 1 else i * num + place.index_select(0, j)
        directions = matrices.of_directions(nn.functional.pad(u_ij, (0, 0, 0, n)))
        density = outer_sum(directions, radial.index_select(0, of_edge), group, n * num)
        return density.view(n, num, 9, -1)

    def _of_elements(self, graph: Graph) -> tuple[Tensor, Tensor]:
        """What a pair's features are the sum of: of the centre (N, F), and of the neighbour's element (Z, F)."""
        of_centre, of_neighbor = self.pair.weight.chunk(2, dim=1)
        table = self.embed.elements.weight
        elements = table.index_select(0, self.elements)  # (Z, F)
        z = self.embed(graph)  # (N, F)
        centre = z @ of_centre.T + self.pair.bias
        if self.embed.attrs is not None:  # which are the same for both atoms of a pair
            centre = centre + (z - table.index_select(0, graph.atomic_numbers)) @ of_neighbor.T
        return centre, elements @ of_neighbor.T


class Interaction(nn.Module):
    """Messages of neighbours, and matrix products with them (eq. 10 to 13)."""

    def __init__(self, config: TensorNetConfig) -> None:
        super().__init__()
        f = config.hidden_channels
        self.proper = config.equivariance_group == "SO(3)"
        widths = [config.num_radial, f, 2 * f, 3 * f]
        self.scalars = nn.ModuleList(nn.Linear(a, b) for a, b in zip(widths, widths[1:]))
        self.before = nn.ModuleList(nn.Linear(f, f, bias=False) for _ in PARTS)
        self.after = nn.ModuleList(nn.Linear(f, f, bias=False) for _ in PARTS)

    def forward(
        self, x: Tensor, graph: Graph, edges: Pairs | Ends, matrices: Matrices, radial: Tensor, cutoff: Tensor
    ) -> Tensor:
        """(9, N, F) -> (9, N, F); radial functions (P, K) and cut-off (P, 1), the last of an atom and itself."""
        factors = radial
        for linear in self.scalars:
            factors = nn.functional.silu(linear(factors))
        factors = (factors * cutoff).unflatten(1, (3, -1))  # (P, 3, F)
        x = x / (x.square().sum(0) + 1)
        y = linears(self.before, x, matrices)
        sent = y.transpose(0, 1)
        if isinstance(edges, Ends):
            message = row_messages(factors, sent, edges).transpose(0, 1)
        else:
            message = messages(factors, sent, graph, edges).transpose(0, 1)
        message = message + y * matrices.for_all(factors[-1][:, None])  # of the atom itself
        basis = matrices.basis
        mixed = 2 * product(y, message, basis) if self.proper else anticommutator(y, message, basis)
        change = linears(self.after, mixed / (mixed.square().sum(0) + 1), matrices)
        return x + change + product(change, change, basis)


def linears(layers: nn.ModuleList, x: Tensor, matrices: Matrices) -> Tensor:
    """A linear layer without bias for each part, (9, N, F) -> (9, N, F)."""
    weights = torch.stack([layer.weight for layer in layers])  # type: ignore[misc]
    return torch.bmm(x, matrices.for_all(weights).mT)


@register_model(TensorNetConfig)
class TensorNet(nn.Module):
    """Scalars of each atom from the norms of its matrices, and vectors from their antisymmetric parts."""

    takes_rows = True

    def __init__(self, config: TensorNetConfig, domain: Domain) -> None:
        super().__init__()
        f = config.hidden_channels
        self.num_node_scalars = self.num_node_vectors = f
        self.matrices = Matrices()
        self.cutoff = cutoff_function(config.cutoff_function, domain.cutoff)
        self.radial = radial_basis(
            config.radial_basis, config.num_radial, self.cutoff, config.trainable_radial
        )
        self.embedding = Embedding(config, domain)
        self.layers = nn.ModuleList(Interaction(config) for _ in range(config.num_layers))
        self.norm = nn.LayerNorm(3 * f)
        self.out = nn.Linear(3 * f, f)

    def forward(self, graph: Graph, r_ij: Tensor, rows: PairRows | None = None) -> Features:
        """Of edges r_ij (E, 3); of compiled code these are the slots of `rows`."""
        pairs = make_pairs(graph) if rows is None else rows
        edges = pairs if isinstance(pairs, Pairs) else ends(graph, pairs)
        d_ij, u_ij = lengths_and_directions(r_ij)
        d = torch.cat([d_ij.index_select(0, pairs.edge), d_ij.new_zeros(1, 1)])  # (P, 1)
        radial, cutoff = self.radial(d), self.cutoff(d)
        ending = torch.cat([radial, torch.ones_like(cutoff)], dim=1) * cutoff  # (P, K + 1)
        x = self.embedding(graph, edges, self.matrices, u_ij, ending)
        for layer in self.layers:
            x = layer(x, graph, edges, self.matrices, radial, cutoff)
        squares = x.square().split(SIZES)
        norms = torch.cat([part.sum(0) for part in squares], dim=1)  # (N, 3F)
        s = nn.functional.silu(self.out(self.norm(norms)))
        return Features(node_scalars=s, node_vectors=x[PARTS[1]].transpose(0, 1))
