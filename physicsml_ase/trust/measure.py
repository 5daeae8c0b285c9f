"""What a trained potential makes of its training set, for later comparison."""

import copy
from collections.abc import Iterable

import torch

from physicsml_ase.graph import Graph
from physicsml_ase.potential import Potential, Trust
from physicsml_ase.trust.cloud import fit_cloud
from physicsml_ase.trust.last_layer import fit_last_layer


def measure(potential: Potential, train: Iterable[Graph], validation: Iterable[Graph] = ()) -> Trust:
    """The cloud of the training atoms in the model's features, and its last layer's covariance, in plain tensors.

    `train` and `validation` are batches with labels, a sample of each set; without validation structures the
    uncertainties are calibrated on training structures, and are then too small.
    """
    exact = copy.deepcopy(potential).double().eval().requires_grad_(False)
    device = potential.references.table.device
    train = [_bare(graph).to(device) for graph in train]
    held = [_bare(graph).to(device) for graph in validation]
    if not train:
        return {}
    numbers, scalars, energies = _atoms(exact, train)
    held_numbers, held_scalars, held_energies = _atoms(exact, held) if held else _nothing(scalars)
    scale = potential.domain.energy_scale
    trust = {
        "cloud": fit_cloud(
            numbers, scalars, held_numbers, held_scalars, torch.cat([energies, held_energies]), scale
        )
    }
    if potential.has_energy:
        last_layer = fit_last_layer(exact, train, held or train)
        if last_layer:
            trust["last_layer"] = last_layer
    return trust


def _bare(graph: Graph) -> Graph:
    """Without what a model computed of the edges in advance, in another precision."""
    return graph._replace(inputs={k: v for k, v in graph.inputs.items() if k == "graph_attrs"})


def _atoms(potential: Potential, graphs: list[Graph]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Atomic numbers (N,), features (N, F) and energies (N,) of all atoms, on the CPU."""
    parts = []
    with torch.no_grad():
        for graph in graphs:
            scalars = potential.features(graph).node_scalars
            energies = scalars.new_zeros(len(scalars))
            if potential.has_energy:
                energies = potential(graph, derivatives=False)["energies"]
            parts.append((graph.atomic_numbers.cpu(), scalars.cpu(), energies.cpu()))
    numbers, features, values = (torch.cat(of) for of in zip(*parts))
    return numbers, features, values


def _nothing(scalars: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    return torch.zeros(0, dtype=torch.int64), scalars[:0], scalars[:0, 0]
