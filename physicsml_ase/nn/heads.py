"""From a model's features to labels: one head for each label that is not a derivative of the energy.

Level and shape of the label decide the head. Each learns its label in units of the training data's RMS,
scalars about their mean (`Domain.label_scales`, `label_shifts`). Shapes: N atoms, E edges, S structures,
F channels.
"""

from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from physicsml_ase.config import config
from physicsml_ase.conventions import PROPERTIES, InputError, Label
from physicsml_ase.domain import Domain
from physicsml_ase.graph import Graph
from physicsml_ase.nn.features import Features, lengths_and_directions, mlp, segment_sum

DERIVED = ("energy", "energies", "forces", "stress")
"""Labels that come from the energy; they have a head only where the user asks for a direct one."""

SMALLEST_VARIANCE = 1e-10
"""In units of the label's scale squared."""


@config
class HeadConfig:
    """How one label is read off the atoms."""

    pool: Literal["sum", "mean"] | None = None
    """Structure labels: sum or mean over atoms. None: sum for the known extensive ones (dipole), else mean."""
    direct: bool = False
    """forces and stress: a head of their own instead of the energy's derivative. Such forces are not the
    gradient of any energy, and MD with them heats or cools."""
    variance: bool = False
    """Scalar labels: also tell a standard deviation, `<label>_std`. The loss GaussianNLLLoss, which teaches it, sets
    this by itself."""


class Widths(NamedTuple):
    """How many channels a model's `Features` have of each kind."""

    node_scalars: int
    node_vectors: int
    edge_scalars: int = 0

    @classmethod
    def of(cls, model: Any) -> "Widths":
        """Those of an architecture; without `num_edge_scalars`, its edges have no features."""
        return cls(model.num_node_scalars, model.num_node_vectors, getattr(model, "num_edge_scalars", 0))


class ScalarHead(nn.Module):
    """One invariant number for each atom."""

    def __init__(self, widths: Widths) -> None:
        super().__init__()
        self.read = mlp(widths.node_scalars, widths.node_scalars, 1)

    def forward(self, graph: Graph, features: Features, r_ij: Tensor) -> Tensor:  # -> (N,)
        return self.read(features.node_scalars)[:, 0]


class VectorHead(nn.Module):
    """One vector for each atom: its vector channels, weighed by its scalars."""

    def __init__(self, widths: Widths) -> None:
        super().__init__()
        num_scalars, num_vectors = widths.node_scalars, widths.node_vectors
        self.gate = mlp(num_scalars, num_scalars, num_vectors)

    def forward(self, graph: Graph, features: Features, r_ij: Tensor) -> Tensor:  # -> (N, 3)
        assert features.node_vectors is not None
        return (features.node_vectors * self.gate(features.node_scalars)[:, None, :]).sum(-1)


class DipoleHead(nn.Module):
    """Atomic dipoles, and for molecules latent charges at their places, (N, 3).

    The charges add to zero in each structure, so that the origin does not matter. A periodic structure
    has none: its dipole would depend on how atoms are wrapped.
    """

    def __init__(self, widths: Widths) -> None:
        super().__init__()
        self.local = VectorHead(widths)
        self.charge = mlp(widths.node_scalars, widths.node_scalars, 1)

    def forward(self, graph: Graph, features: Features, r_ij: Tensor) -> Tensor:
        """Dipoles of the atoms, (N, 3), in units of the label's scale."""
        q, num_atoms = self.charge(features.node_scalars), graph.num_atoms[:, None]  # (N, 1), (S, 1)
        net = segment_sum(q, graph.batch, num_atoms.shape[0]) / num_atoms
        centre = segment_sum(graph.positions, graph.batch, num_atoms.shape[0]) / num_atoms  # (S, 3) float64
        place = (graph.positions - centre.index_select(0, graph.batch)).to(q.dtype)
        molecule = ~graph.pbc.any(-1, keepdim=True).index_select(0, graph.batch)  # (N, 1)
        q = torch.where(molecule, q - net.index_select(0, graph.batch), 0.0)
        return self.local(graph, features, r_ij) + q * place


class TensorHead(nn.Module):
    """One symmetric matrix for each atom: isotropic, and products of its vector channels."""

    def __init__(self, widths: Widths) -> None:
        super().__init__()
        num_scalars, num_vectors = widths.node_scalars, widths.node_vectors
        self.gate = mlp(num_scalars, num_scalars, num_vectors + 1)
        self.mix = nn.Linear(num_vectors, num_vectors, bias=False)

    def forward(self, graph: Graph, features: Features, r_ij: Tensor) -> Tensor:
        """Matrices of the atoms, (N, 3, 3), in units of the label's scale."""
        v = features.node_vectors
        assert v is not None
        gate = self.gate(features.node_scalars)  # (N, F + 1)
        product = torch.einsum("naf,nf,nbf->nab", v, gate[:, 1:], self.mix(v))
        identity = torch.eye(3, dtype=v.dtype, device=v.device)
        return (product + product.mT) / 2 + gate[:, :1, None] * identity


class EdgeHead(nn.Module):
    """One invariant number for each edge, from both of its atoms, its length and, where it has any, its features."""

    def __init__(self, widths: Widths) -> None:
        super().__init__()
        self.has_features = widths.edge_scalars > 0
        self.read = mlp(2 * widths.node_scalars + 1 + widths.edge_scalars, widths.node_scalars, 1)

    def _load_from_state_dict(self, state_dict: Any, prefix: str, *args: Any) -> None:
        """Weights from before edges' features were read fit a head that does not read them."""
        known, present = state_dict.get(f"{prefix}read.0.weight"), next(self.parameters())
        f = present.shape[0]
        if self.has_features and known is not None and known.shape == (f, 2 * f + 1):
            self.has_features, self.read = False, mlp(2 * f + 1, f, 1).to(present)
        super()._load_from_state_dict(state_dict, prefix, *args)

    def forward(self, graph: Graph, features: Features, r_ij: Tensor) -> Tensor:
        """Numbers of the edges (E,), in units of the label's scale, of r_ij (E, 3) [Å]."""
        i, j = graph.edge_index
        s = features.node_scalars
        centre, neighbor = s.index_select(0, i), s.index_select(0, j)
        d_ij, _ = lengths_and_directions(r_ij)
        told = [centre, neighbor, d_ij]
        if self.has_features:
            assert features.edge_scalars is not None
            told.append(features.edge_scalars)
        return self.read(torch.cat(told, dim=-1))[:, 0]


class EdgeVectorHead(EdgeHead):
    """One vector for each edge, along it."""

    def forward(self, graph: Graph, features: Features, r_ij: Tensor) -> Tensor:  # -> (E, 3)
        return super().forward(graph, features, r_ij)[:, None] * lengths_and_directions(r_ij)[1]


class LabelHead(nn.Module):
    """The head of one label, pooled to its level and in its units."""

    def __init__(self, label: Label, settings: HeadConfig, domain: Domain, widths: Widths) -> None:
        super().__init__()
        vectors = label.shape != ()
        if vectors and not widths.node_vectors and label.level != "edge":
            raise InputError(f"label {label.name!r} has directions, but this architecture has no vectors")
        kinds: dict[tuple[bool, tuple[int, ...]], type[nn.Module]] = {
            (False, ()): ScalarHead,
            (False, (3,)): DipoleHead if label.name == "dipole" else VectorHead,
            (False, (3, 3)): TensorHead,
            (True, ()): EdgeHead,
            (True, (3,)): EdgeVectorHead,
        }
        kind = kinds.get((label.level == "edge", label.shape))
        if kind is None:
            raise InputError(
                f"label {label.name!r}: there is no head for shape {label.shape} per {label.level}"
            )
        self.label, self.head = label, kind(widths)
        known = PROPERTIES.get(label.name)
        self.pool = settings.pool or ("sum" if known is not None and known.extensive else "mean")
        self.scale = domain.label_scales.get(label.name, 1.0)
        self.shift = domain.label_shifts.get(label.name, 0.0) if label.shape == () else 0.0
        self.shift_per_atom = None
        if self.pool == "sum" and label.level == "structure" and label.shape == ():
            self.shift_per_atom = domain.label_shifts_per_atom.get(
                label.name
            )  # those of earlier versions have none

    def forward(self, graph: Graph, features: Features, r_ij: Tensor) -> Tensor:
        """The label in its own units: (N, ...), (E, ...) or (S, ...), by its level."""
        value = self.head(graph, features, r_ij)
        if self.label.level == "structure":
            size = graph.num_atoms.shape[0]
            value = segment_sum(value, graph.batch, size)
            if self.pool == "mean":
                value = value / graph.num_atoms.view(size, *[1] * len(self.label.shape))
        if self.shift_per_atom is not None:
            return value * self.scale + self.shift_per_atom * graph.num_atoms.to(value.dtype)
        return value * self.scale + self.shift


class StdHead(nn.Module):
    """Standard deviation of one scalar label, in its units, beside the head or the derivation of its value.

    Of a sum over atoms the atoms' variances add up; of a mean they are averaged.
    """

    def __init__(self, label: Label, settings: HeadConfig, domain: Domain, widths: Widths) -> None:
        super().__init__()
        if label.shape != ():
            raise InputError(
                f"label {label.name!r}: a variance is learned of labels that are one number, and this has shape "
                f"{label.shape}"
            )
        self.label = label
        self.read = (EdgeHead if label.level == "edge" else ScalarHead)(widths)
        known = PROPERTIES.get(label.name)
        self.pool = settings.pool or ("sum" if known is not None and known.extensive else "mean")
        derived = label.name in DERIVED and not settings.direct
        self.scale = domain.energy_scale if derived else domain.label_scales.get(label.name, 1.0)

    def forward(self, graph: Graph, features: Features, r_ij: Tensor) -> Tensor:
        """The standard deviation in the label's units: (N,), (E,) or (S,), by its level."""
        variance = nn.functional.softplus(self.read(graph, features, r_ij))
        if self.label.level == "structure":
            variance = segment_sum(variance, graph.batch, graph.num_atoms.shape[0])
            if self.pool == "mean":
                variance = variance / graph.num_atoms
        # the root has no slope at zero
        return (variance + SMALLEST_VARIANCE).sqrt() * self.scale
