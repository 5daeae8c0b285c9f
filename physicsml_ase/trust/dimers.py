"""Pairs of atoms alone in space, D of them as one batch of 2 D atoms."""

import numpy as np
import torch
from ase.data import chemical_symbols
from numpy.typing import NDArray

from physicsml_ase.domain import Domain
from physicsml_ase.graph import Graph
from physicsml_ase.potential import Potential

Floats = NDArray[np.float64]

DIMERS_AT_ONCE = 4096


def name_of(elements: tuple[int, int]) -> str:
    """ "H-O" """
    return "-".join(chemical_symbols[z] for z in elements)


def dimers(
    potential: Potential, elements: tuple[int, int], distance: Floats, derivatives: bool = True
) -> tuple[Floats, Floats]:
    """Energies [eV], less those of the atoms alone, and forces [eV/Å], positive apart, of dimers; (D,) each."""
    device = potential.references.table.device
    far = np.array([2 * potential.domain.cutoff + 1.0])
    energies, forces = [], []
    parts = np.array_split(np.append(distance, far), -(-(len(distance) + 1) // DIMERS_AT_ONCE))
    for part in parts:
        graph = _graph(potential.domain, elements, part).to(device)
        out = {k: v.detach().cpu().double() for k, v in potential(graph, derivatives).items()}
        references = potential.references(graph.atomic_numbers).cpu().view(-1, 2).sum(1)
        energies.append((out["energy"] - references).numpy())
        if derivatives:
            forces.append(out["forces"].view(-1, 2, 3)[:, 1, 2].numpy())
    energy = np.concatenate(energies)
    force = np.concatenate(forces)[:-1] if derivatives else np.zeros(0)
    return energy[:-1] - energy[-1], force


def _graph(domain: Domain, elements: tuple[int, int], distance: Floats) -> Graph:
    """D dimers along z as one batch; what is beyond the cut-off has no edge."""
    d = len(distance)
    positions = np.zeros((d, 2, 3))
    positions[:, 1, 2] = distance
    first = 2 * np.arange(d)
    near = distance < domain.cutoff
    # every atom's edges in order of its neighbours: itself where the potential wants that, and the other one
    pairs = np.stack([first, first + 1, first + 1, first], axis=1).reshape(d, 2, 2)[near].reshape(-1, 2)
    mirror = np.arange(len(pairs)) ^ 1
    if domain.self_interaction:
        itself = np.repeat(np.arange(2 * d)[:, None], 2, axis=1)
        edges = np.concatenate([pairs, itself])
        back = np.concatenate([mirror, len(pairs) + np.arange(2 * d)])
        order = np.lexsort((edges[:, 1], edges[:, 0]))
        place = np.argsort(order)
        pairs, mirror = edges[order], place[back[order]]
    count = 2 * near + 2 * domain.self_interaction * np.ones(d, int)
    inputs = {}
    if domain.attrs:
        inputs["graph_attrs"] = torch.tensor([domain.attr_shifts], dtype=torch.float64).repeat(d, 1)
    return Graph(
        atomic_numbers=torch.tensor(elements).repeat(d),
        positions=torch.from_numpy(positions.reshape(-1, 3)),
        batch=torch.arange(d).repeat_interleave(2),
        num_atoms=torch.full((d,), 2),
        cell=torch.zeros(d, 3, 3, dtype=torch.float64),
        pbc=torch.zeros(d, 3, dtype=torch.bool),
        edge_index=torch.from_numpy(np.ascontiguousarray(pairs.T)),
        edge_shift=torch.zeros(len(pairs), 3, dtype=torch.float64),
        reverse=torch.from_numpy(mirror),
        num_edges=torch.from_numpy(count.astype(np.int64)),
        inputs=inputs,
        targets={},
    )
