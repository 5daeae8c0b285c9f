"""What a student learns from: copies of the training structures with their atoms moved, and the mean of its teachers.

Copies have the data's own forces and not more: in a molecule, random displacements that a crystal would take lightly
are structures that nobody will ask for, and learning them costs accuracy.
"""

import logging
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from physicsml_ase.atoms import build_graph
from physicsml_ase.backends.choose import choose
from physicsml_ase.checkpoint import load_potential
from physicsml_ase.conventions import Level
from physicsml_ase.data.datamodule import DataModule
from physicsml_ase.data.flat import Arrays, Flat, flatten
from physicsml_ase.data.sample import BATCH_ATOMS
from physicsml_ase.data.store import MemoryStore
from physicsml_ase.domain import Domain
from physicsml_ase.graph import Graph, collate, edge_vectors, split
from physicsml_ase.neighbors import neighbor_list
from physicsml_ase.nn.wall import Wall
from physicsml_ase.potential import Potential
from physicsml_ase.train.fused import FusedPotential, fused_reason

log = logging.getLogger("physicsml_ase")
COPIES, MOST_COPIES = 4, 32
"""Moved structures for each one of the training data, and where a student has long to learn."""
EPOCHS = 20
"""Of the data with their copies, after which more copies teach more than more epochs."""
MOST_EDGES = 20_000_000
"""Of all copies, by which memory is limited where more than the first number are made."""
MOVED, STRAINED = 0.08, 0.02
"""Standard deviations of what is added to positions, at most [Å], and to the cells' strains. Positions less where
bonds are stiff: until forces have changed by as much as they are in the data."""
TAUGHT = "taught.pt"
"""File that keeps the copies until their student has learned."""
LEAST_MOVED, LITTLE, SOME = 0.01, 0.02, 20
"""At least so much, and how stiff bonds are is found by moving the atoms of so many structures by so little [Å]."""


def copies_for(epochs: float, num_edges: int) -> int:
    """How many of each structure, by the epochs of the bare data in a student's steps, and the edges of these."""
    wanted = min(int(epochs / EPOCHS) - 1, MOST_COPIES, MOST_EDGES // max(num_edges, 1))
    return max(wanted, COPIES)


def teach(
    datamodule: DataModule, teachers: Sequence[Path], seed: int, kept: Path, epochs: float = 0.0
) -> None:
    """Add to the training structures copies whose atoms and cells are moved, with the teachers' mean as labels.

    They are kept in a file, for who continues. Their number goes by `epochs`, how often the steps that follow would
    go through the data alone.
    """
    if kept.exists():
        taught = torch.load(kept, weights_only=True)
    else:
        stores = datamodule.resolve().stores["train"].values()
        copies = copies_for(epochs, sum(int(store.num_edges.sum()) for store in stores))
        taught = _taught(datamodule, teachers, seed, copies)
        beside = kept.with_name(f".{kept.name}.part")
        torch.save(taught, beside)
        os.replace(beside, kept)
    for name, parts in taught.items():
        datamodule.extend(name, [Flat(arrays) for arrays in parts])


def _taught(
    datamodule: DataModule, teachers: Sequence[Path], seed: int, copies: int
) -> dict[str, list[Arrays]]:
    """Structures for each source, in parts."""
    on_gpu = torch.cuda.is_available()
    potentials = [load_potential(path).to("cuda" if on_gpu else "cpu").eval() for path in teachers]
    engines = [_engine(potential, on_gpu) for potential in potentials]
    device = potentials[0].references.table.device
    labels, walls = datamodule.labels, [x.wall for x in potentials if x.wall is not None]
    levels: dict[str, Level] = {x.name: x.level for x in labels} | {"graph_attrs": "structure"}
    taught: dict[str, list[Arrays]] = {}
    for name, store in datamodule.resolve().stores["train"].items():
        assert isinstance(store, MemoryStore)
        random = np.random.default_rng(seed)
        moved = MOVED
        if potentials[0].has_energy:
            moved = as_stiff(store, datamodule.domain, engines[0], device, random)
        log.info(
            "student's copies of %s: %d of each structure, atoms moved by up to %.3f Å", name, copies, moved
        )
        for places, graphs in _moved(store, datamodule.domain, copies, moved, random):
            batch = collate(graphs).to(device)
            with torch.no_grad():
                outputs = [engine(batch) for engine in engines]
            means = {x.name: _mean([out[x.name] for out in outputs]) for x in labels}
            parts = split(batch._replace(targets=means).to("cpu"), levels)
            # closer than any atoms of the data nobody knows anything
            known = [k for k, graph in enumerate(graphs) if not any(_near(wall, graph) for wall in walls)]
            if known:
                frames = [int(store.frames[places[k]]) for k in known]
                flat = flatten([parts[k] for k in known], labels, frames)
                taught.setdefault(name, []).append({level: dict(of) for level, of in flat.arrays.items()})
    return taught


def _engine(potential: Potential, on_gpu: bool) -> Callable[[Graph], dict[str, Tensor]]:
    """What computes labels: the training kernel where there is one, which was compiled for its training."""
    if on_gpu:
        return choose("eager", potential)  # structures of many sizes would each be recorded anew
    return (
        FusedPotential(potential).evaluate if fused_reason(potential) is None else choose("auto", potential)
    )


def as_stiff(
    store: MemoryStore,
    domain: Domain,
    engine: Callable[[Graph], dict[str, Tensor]],
    device: torch.device,
    random: np.random.Generator,
) -> float:
    """By how much atoms may move [Å] until forces change by as much as they are."""
    squares = torch.zeros(2, dtype=torch.float64)
    for k in random.permutation(len(store))[:SOME].tolist():
        graph = store.read(np.array([k]))
        at, near = (_copy(graph, domain, by, 0.0, random).to(device) for by in (0.0, LITTLE))
        forces, changed = engine(at)["forces"], engine(near)["forces"]
        squares += torch.stack([x.double().square().mean().cpu() for x in (forces, changed - forces)])
    forces, change = squares.sqrt().tolist()
    return min(max(LITTLE * forces / max(change, 1e-9), LEAST_MOVED), MOVED)


def _near(wall: Wall, graph: Graph) -> bool:
    device = next(wall.buffers()).device
    return wall.near(graph.to(device), edge_vectors(graph).to(device)) is not None


def _mean(values: Sequence[Tensor]) -> Tensor:
    return torch.stack([value.detach().double() for value in values]).mean(0)


def _moved(
    store: MemoryStore, domain: Domain, copies: int, moved: float, random: np.random.Generator
) -> Iterator[tuple[list[int], list[Graph]]]:
    """Each structure so many times, in batches, with their places in the store."""
    places: list[int] = []
    graphs: list[Graph] = []
    for k in np.repeat(np.arange(len(store)), copies).tolist():
        graph = store.read(np.array([k]))
        places.append(k)
        graphs.append(_copy(graph, domain, moved * random.uniform(), STRAINED, random))
        if sum(len(g.positions) for g in graphs) >= BATCH_ATOMS:
            yield places, graphs
            places, graphs = [], []
    if graphs:
        yield places, graphs


def _copy(graph: Graph, domain: Domain, moved: float, strained: float, random: np.random.Generator) -> Graph:
    """The structure with its atoms moved [Å] and, where it is periodic in all directions, its cell strained."""
    numbers, pbc = graph.atomic_numbers.numpy(), graph.pbc[0].numpy()
    positions, cell = graph.positions.numpy(), graph.cell[0].numpy()
    if pbc.all():
        strain = strained * random.normal(size=(3, 3))
        deformation = np.eye(3) + (strain + strain.T) / 2
        positions, cell = positions @ deformation, cell @ deformation
    positions = positions + moved * random.normal(size=positions.shape)
    neighbors = neighbor_list(positions, cell, pbc, domain.cutoff, domain.self_interaction)
    attrs = {name: x for name, x in graph.inputs.items() if name == "graph_attrs"}
    return build_graph(numbers, positions, cell, pbc, neighbors, attrs, {})
