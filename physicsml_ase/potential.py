"""A potential: a model, its heads, reference energies and the energy's derivatives.

The energy depends on atoms only through the pair vectors r_ij, so that one gradient g = dE/dr_ij gives
forces, F_i = sum_j (g_ij - g_ji), and stress, sigma = sum_ij r_ij (x) g_ij / |V|, for every architecture,
molecule, slab or crystal alike. Shapes: N atoms, E edges, S structures.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from physicsml_ase.config import MODELS
from physicsml_ase.conventions import Label
from physicsml_ase.domain import Domain
from physicsml_ase.graph import Graph, edge_vectors
from physicsml_ase.nn.features import NUM_ELEMENTS, Features, mlp, segment_sum
from physicsml_ase.nn.heads import DERIVED, HeadConfig, LabelHead, StdHead, Widths
from physicsml_ase.nn.wall import Near, Wall

Trust = dict[str, dict[str, Tensor]]
"""What is known of the training set in a model's own features, by name: see `physicsml_ase.trust`."""


class Potential(nn.Module):
    """Energy, its derivatives and every other label, from a batch of structures.

    `model` is the config of a registered architecture, `domain` what it is told about its data, `labels`
    what it was or will be trained on, `heads` how labels are read off where that is not the default.
    """

    def __init__(
        self,
        model: Any,
        domain: Domain,
        labels: tuple[Label, ...],
        heads: Mapping[str, HeadConfig] | None = None,
    ) -> None:
        super().__init__()
        self.config, self.domain, self.labels, self.heads = model, domain, labels, dict(heads or {})
        self.model = MODELS[model.name].module(model, domain)
        widths = Widths.of(self.model)
        settings = {label.name: self.heads.get(label.name, HeadConfig()) for label in labels}
        own = [label for label in labels if label.name not in DERIVED or settings[label.name].direct]
        uncertain = [label for label in labels if settings[label.name].variance]
        # a list, since a label may have a name that no module can have
        self.label_heads = nn.ModuleList(
            kind(label, settings[label.name], domain, widths)
            for kind, of in ((LabelHead, own), (StdHead, uncertain))
            for label in of
        )
        self.headed = (*(label.name for label in own), *(f"{label.name}_std" for label in uncertain))
        """What has a head of its own, in the order of `label_heads`: labels, and their standard deviations."""
        self.has_energy = not labels or any(x.name in DERIVED and x.name not in self.headed for x in labels)
        self.explicit = getattr(self.model, "gives_gradient", False)
        """Whether the model returns its energy's gradient itself, so that nothing is differentiated for forces."""
        headless = self.explicit or getattr(self.model, "gives_energy", False)
        learns = self.has_energy and not headless
        self.energy_head = mlp(widths.node_scalars, widths.node_scalars, 1) if learns else None
        if self.energy_head is not None:
            last = self.energy_head[-1]
            assert isinstance(last, nn.Linear)
            last.bias.data.add_(domain.energy_shift / domain.energy_scale)
        self.wall = self._make_wall()
        self.references = ReferenceEnergies(domain.atomic_energies)
        self.trust: Trust = {}
        """What tells how far a structure is from the training data; empty where it was not measured."""

    def _make_wall(self) -> Wall | None:
        domain = self.domain
        if not self.has_energy or domain.short_range != "zbl" or not domain.shortest_distances:
            return None
        return Wall(domain.shortest_distances, domain.elements, domain.cutoff, domain.walls)

    def settle_walls(self, walls: Mapping[str, tuple[float, float]]) -> None:
        """Let the repulsion of pairs "H-O" begin elsewhere [Å], and with another stiffness [eV]."""
        self.domain = dataclasses.replace(self.domain, walls=dict(walls))
        wall = self._make_wall()
        self.wall = None if wall is None else wall.to(self.references.table.device)

    @property
    def outputs(self) -> tuple[str, ...]:
        """Names of everything that `forward` returns."""
        derived = DERIVED if self.has_energy else ()
        return tuple(dict.fromkeys([*derived, *self.headed]))

    @property
    def dtype(self) -> torch.dtype:
        """Number type of the weights, in which the model computes."""
        return next(self.parameters()).dtype

    def forward(self, graph: Graph, derivatives: bool = True) -> dict[str, Tensor]:
        """Predict energy (S,) and energies (N,) [eV], forces (N, 3) [eV/Å], stress (S, 3, 3) [eV/Å³].

        Stress is NaN for a structure without a full cell. Other labels come under their own names. The
        energies are float64, whatever the model computes in. In training mode the derivatives can be
        differentiated again.
        """
        derivatives = derivatives and self.has_energy
        if self.explicit:
            return self._forward_explicit(graph, derivatives)
        # the derivatives need autograd whatever the caller switched off: Lightning validates without it
        with torch.inference_mode(False), torch.set_grad_enabled(derivatives or torch.is_grad_enabled()):
            graph = graph.map(lambda t: t.clone() if t.is_inference() else t)
            r_ij = edge_vectors(graph).requires_grad_(derivatives)  # (E, 3) float64
            near = self._near(graph, r_ij)
            out = self._predict(graph, r_ij if near is None else near.seen(r_ij))
            g = None
            if derivatives:
                (g,) = torch.autograd.grad(out["energy"].sum(), r_ij, create_graph=self.training)
            with torch.set_grad_enabled(self.training):
                out = self._with_wall(graph, r_ij.detach(), out, g, near)
        return out if self.training else {name: value.detach() for name, value in out.items()}

    def features(self, graph: Graph, r_ij: Tensor | None = None) -> Features:
        """What the model makes of a batch, without derivatives; of given r_ij (E, 3) float64, to be derived from."""
        r_ij = edge_vectors(graph) if r_ij is None else r_ij
        near = self._near(graph, r_ij)
        seen = (r_ij if near is None else near.seen(r_ij)).to(self.dtype)
        # what was computed of the edges beforehand may be in another precision
        graph = graph._replace(inputs={k: v for k, v in graph.inputs.items() if k == "graph_attrs"})
        return self.model(graph, seen, False) if self.explicit else self.model(graph, seen)

    def _forward_explicit(self, graph: Graph, derivatives: bool) -> dict[str, Tensor]:
        """As `forward`, of a model that gives the gradient beside the energy."""
        with torch.set_grad_enabled(self.training and torch.is_grad_enabled()):
            r_ij = edge_vectors(graph)
            near = self._near(graph, r_ij)
            seen = (r_ij if near is None else near.seen(r_ij)).to(self.dtype)
            if near is not None:  # what was computed of the edges beforehand was of what they are
                graph = graph._replace(inputs={k: v for k, v in graph.inputs.items() if k == "graph_attrs"})
            features = self.model(graph, seen, derivatives)
            out = self._outputs(graph, seen, features)
            g = None
            if derivatives:
                g = features.edge_gradient.double() * self.domain.energy_scale
                g = g if near is None else near.gradient(r_ij, g)
            return self._with_wall(graph, r_ij, out, g, near)

    def _near(self, graph: Graph, r_ij: Tensor) -> Near | None:
        return None if self.wall is None else self.wall.near(graph, r_ij)

    def _with_wall(
        self, graph: Graph, r_ij: Tensor, out: dict[str, Tensor], g: Tensor | None, near: Near | None
    ) -> dict[str, Tensor]:
        """The outputs with the wall, and the derivatives where the learned energy's gradient g is given."""
        if near is not None and self.wall is not None:
            energies, g_wall = self.wall(near, r_ij, graph.atomic_numbers.shape[0])
            energy = out["energy"] + segment_sum(energies, graph.batch, graph.num_atoms.shape[0])
            out = out | {"energy": energy, "energies": out["energies"] + energies}
            g = None if g is None else g + g_wall
        return out if g is None else forces_and_stress(graph, r_ij, g) | out

    def _predict(self, graph: Graph, r_ij: Tensor) -> dict[str, Tensor]:
        """Everything but the energy's derivatives."""
        r_ij = r_ij.to(self.dtype)
        return self._outputs(graph, r_ij, self.model(graph, r_ij))

    def _outputs(self, graph: Graph, r_ij: Tensor, features: Features) -> dict[str, Tensor]:
        out = {name: head(graph, features, r_ij) for name, head in zip(self.headed, self.label_heads)}
        if self.has_energy:
            learned = features.node_energy
            if self.energy_head is not None:
                learned = self.energy_head(features.node_scalars)[:, 0]
            assert learned is not None
            learned = learned.double() * self.domain.energy_scale
            energies = learned + self.references(graph.atomic_numbers)  # (N,) float64
            energy = segment_sum(energies, graph.batch, graph.num_atoms.shape[0])
            out = {"energy": energy, "energies": energies} | out
        return out


class ReferenceEnergies(nn.Module):
    """Energy of each atom by its element [eV], float64 whatever the model computes in."""

    table: Tensor

    def __init__(self, atomic_energies: Mapping[int, float]) -> None:
        super().__init__()
        table = torch.zeros(NUM_ELEMENTS, dtype=torch.float64)
        for number, energy in atomic_energies.items():
            table[number] = energy
        self.register_buffer("table", table, persistent=False)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> nn.Module:
        exact = self.table
        super()._apply(fn, recurse)
        # `.to(float32)` and `.half()` are for the weights: a total energy would lose its meV
        self.table = exact.to(self.table.device)
        return self

    def forward(self, atomic_numbers: Tensor) -> Tensor:  # (N,) -> (N,)
        return self.table.index_select(0, atomic_numbers)


def forces_and_stress(graph: Graph, r_ij: Tensor, g: Tensor) -> dict[str, Tensor]:
    """Forces (N, 3) and stress (S, 3, 3) from r_ij and g = dE/dr_ij, both (E, 3)."""
    i = graph.edge_index[0]
    forces = segment_sum(g - g.index_select(0, graph.reverse), i, graph.positions.shape[0])
    if graph.cell.shape[0] == 1:
        virial = (r_ij.mT @ g)[None]
    else:
        of_edges = r_ij[:, :, None] * g[:, None, :]
        virial = segment_sum(of_edges, graph.batch.index_select(0, i), graph.cell.shape[0])
    # absolute: a left-handed cell has the same volume; without a full cell there is none, and no stress
    a, b, c = graph.cell.unbind(1)
    volume = (torch.linalg.cross(a, b) * c).sum(-1).abs()
    full = (volume > 1e-9)[:, None, None]
    stress = (virial + virial.mT) / (2 * torch.where(full, volume[:, None, None], 1.0))
    # NaN is put in last: a division by it would send NaN back to the weights, whatever a loss masks
    return {"forces": forces, "stress": torch.where(full, stress, torch.nan)}
