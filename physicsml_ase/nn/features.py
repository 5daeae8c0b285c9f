"""What every architecture returns, and the sums over edges and atoms that all of them share."""

from typing import NamedTuple

import torch
from torch import Tensor, nn

from physicsml_ase.domain import Domain
from physicsml_ase.graph import Graph

NUM_ELEMENTS = 119  # tables are indexed by atomic number, so that a fine-tuned model may meet new elements


class Features(NamedTuple):
    """What a model makes of a batch; the heads turn it into properties."""

    node_scalars: Tensor  # (N, F) invariant
    node_vectors: Tensor | None = None  # (N, 3, F) equivariant, odd under inversion
    edge_scalars: Tensor | None = None  # (E, F) invariant
    node_energy: Tensor | None = (
        None  # (N,) in units of the energy scale, of a model that has its own readout
    )
    edge_gradient: Tensor | None = None  # (E, 3) of the sum of `node_energy` to r_ij, of one that gives it


def segment_sum(src: Tensor, index: Tensor, size: int) -> Tensor:
    """Sum rows of src (K, ...) into (size, ...) at index (K,)."""
    return src.new_zeros(size, *src.shape[1:]).index_add(0, index, src)


def lengths_and_directions(r_ij: Tensor) -> tuple[Tensor, Tensor]:
    """d_ij (E, 1) and u_ij = r_ij / d_ij (E, 3); an atom's edge to itself has d = 0, u = 0."""
    squared = r_ij.square().sum(-1, keepdim=True)  # (E, 1)
    itself = squared == 0
    # the square root has no gradient at zero, so that edge never goes through it
    d_ij = torch.where(itself, 1.0, squared).sqrt()
    return torch.where(itself, 0.0, d_ij), r_ij / d_ij


def mlp(*widths: int) -> nn.Sequential:
    """Linear layers with SiLU between them."""
    layers: list[nn.Module] = []
    for a, b in zip(widths, widths[1:]):
        layers += [nn.Linear(a, b), nn.SiLU()]
    return nn.Sequential(*layers[:-1])


class NodeEmbedding(nn.Module):
    """First features of each atom: from its element and, where the model has them, the graph's attributes."""

    attr_shifts: Tensor
    attr_scales: Tensor

    def __init__(self, channels: int, domain: Domain) -> None:
        super().__init__()
        self.elements = nn.Embedding(NUM_ELEMENTS, channels)
        num_attrs = len(domain.attr_shifts)
        self.attrs = nn.Linear(num_attrs, channels) if num_attrs else None
        self.register_buffer("attr_shifts", torch.tensor(domain.attr_shifts), persistent=False)
        self.register_buffer("attr_scales", torch.tensor(domain.attr_scales), persistent=False)

    def forward(self, graph: Graph) -> Tensor:  # -> (N, F)
        s = self.elements(graph.atomic_numbers)
        if self.attrs is not None:
            attrs = (graph.inputs["graph_attrs"].to(s.dtype) - self.attr_shifts) / self.attr_scales  # (S, A)
            s = s + self.attrs(attrs).index_select(0, graph.batch)
        return s
