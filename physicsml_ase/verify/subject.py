"""The potential that is verified, and the structures that it is verified on.

N atoms of one structure, A numbers of `graph_attrs`.
"""

import copy
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import torch
from ase import Atoms
from ase.data import covalent_radii
from ase.geometry import cellpar_to_cell
from numpy.typing import NDArray
from torch import Tensor

from physicsml_ase.atoms import EDGES_PER_BATCH, build_graph, graph_attrs
from physicsml_ase.conventions import Level
from physicsml_ase.domain import Domain
from physicsml_ase.evaluate.frames import levels_of
from physicsml_ase.graph import Graph, collate, split
from physicsml_ase.neighbors import neighbor_list
from physicsml_ase.potential import Potential

Floats = NDArray[np.float64]
Results = dict[str, Floats]
"""By name: of the structure (...), or of its atoms (N, ...)."""


class Structure(NamedTuple):
    """Atoms, as the potential sees them, and what else it takes."""

    atoms: Atoms  # with the domain's cell and pbc, where it has such
    attrs: Tensor | None = None  # (1, A)

    def changed(self, positions: Floats | None = None, cell: Floats | None = None) -> "Structure":
        """The same with other positions (N, 3) or another cell (3, 3), rows."""
        atoms = self.atoms.copy()
        if cell is not None:
            atoms.set_cell(cell, scale_atoms=False)
        if positions is not None:
            atoms.positions[:] = positions
        return self._replace(atoms=atoms)

    def taken(self, order: NDArray[np.int64]) -> "Structure":
        """The same with its atoms in another order (N,)."""
        return self._replace(atoms=self.atoms[order])

    @property
    def is_periodic(self) -> bool:
        """Whether it has a full cell and is periodic, so that it has a stress."""
        return bool(self.atoms.pbc.any()) and self.atoms.cell.rank == 3


class Subject:
    """A potential in one number type, for structures one by one or many at once."""

    def __init__(self, potential: Potential, dtype: torch.dtype | None = None) -> None:
        in_use = potential.training or any(weight.requires_grad for weight in potential.parameters())
        if in_use or dtype not in (None, potential.dtype):  # it is somebody's, and stays as it is
            potential = copy.deepcopy(potential).to(dtype).requires_grad_(False).eval()
        self.potential = potential
        self.domain: Domain = potential.domain
        self.device = potential.references.table.device
        self.levels: dict[str, Level] = levels_of(potential.labels)

    def graph(self, structure: Structure) -> Graph:
        """The graph of a structure with a neighbour list of its own."""
        atoms, domain = structure.atoms, self.domain
        x, cell, pbc = atoms.positions, atoms.cell.array, atoms.pbc
        neighbors = neighbor_list(x, cell, pbc, domain.cutoff, domain.self_interaction)
        inputs = {} if structure.attrs is None else {"graph_attrs": structure.attrs}
        return build_graph(atoms.numbers, x, cell, pbc, neighbors, inputs, {})

    def results(self, structures: Sequence[Structure], derivatives: bool = True) -> list[Results]:
        """What the potential says of each structure; `energy` without the atoms' reference energies."""
        found: list[Results] = []
        for graph in _batches([self.graph(s) for s in structures], EDGES_PER_BATCH[self.device.type]):
            found += self.of_graph(graph, derivatives)
        return found

    def of_graph(self, graph: Graph, derivatives: bool = True) -> list[Results]:
        """The same of a batch."""
        return self.parts(graph, self.potential(graph.to(self.device), derivatives))

    def parts(self, graph: Graph, out: Mapping[str, Tensor]) -> list[Results]:
        """Outputs of a potential or a backend on a batch, by structure."""
        out = {name: value.detach().cpu().double() for name, value in out.items()}
        if "energies" in out:  # of 1e5 eV of reference energies, the digits that matter are the last
            references = self.potential.references(graph.atomic_numbers.to(self.device)).cpu()
            total = torch.zeros(len(graph.num_atoms), dtype=torch.float64)
            out["energies"] = out["energies"] - references
            out["energy"] = out["energy"] - total.index_add(0, graph.batch.cpu(), references)
        levels = {name: self.levels.get(name, "structure") for name in out}
        found: list[Results] = []
        for part in split(graph.to("cpu")._replace(inputs={}, targets=out), levels):
            named = {name: value.numpy() for name, value in part.targets.items() if levels[name] != "edge"}
            found.append({name: x if levels[name] == "atom" else x[0] for name, x in named.items()})
        return found

    def energies(self, structures: Sequence[Structure]) -> Floats:
        """Learned energy of each structure (S,) [eV]."""
        return np.array([found["energy"] for found in self.results(structures, derivatives=False)])


def of_graph(graph: Graph) -> Structure:
    """The structure of a batch of one."""
    atoms = Atoms(
        graph.atomic_numbers.numpy(),
        graph.positions.numpy(),
        cell=graph.cell[0].numpy(),
        pbc=graph.pbc[0].numpy(),
    )
    return Structure(atoms, graph.inputs.get("graph_attrs"))


def of_atoms(atoms: Atoms, domain: Domain) -> Structure:
    """A user's structure, with what the potential overrides."""
    plain = Atoms(atoms.numbers, atoms.positions, cell=atoms.cell, pbc=atoms.pbc)
    if domain.cell is not None:
        plain.cell = domain.cell
    if domain.pbc is not None:
        plain.pbc = domain.pbc
    attrs = graph_attrs(atoms, domain.attrs, len(domain.attr_shifts)) if domain.attrs else None
    return Structure(plain, None if attrs is None else torch.from_numpy(attrs))


def made_up(domain: Domain, periodic: bool) -> Structure:
    """A structure of a potential's elements, a little longer apart than the shortest distances it has seen."""
    numbers = [domain.elements[k % len(domain.elements)] for k in range(8)]
    near = list(domain.shortest_distances.values()) or [2 * covalent_radii[z] for z in domain.elements]
    apart = min(1.2 * float(np.max(near)), 0.8 * domain.cutoff)
    cell = cellpar_to_cell([2 * apart] * 3 + [88, 91, 93])
    places = np.stack(np.meshgrid(*[np.arange(2) / 2] * 3), axis=-1).reshape(8, 3) @ cell
    atoms = Atoms(numbers, places)
    atoms.rattle(0.05 * apart, seed=1)
    if domain.cell is not None or domain.pbc is not None:
        atoms.cell, atoms.pbc = domain.cell or atoms.cell, domain.pbc or False
    elif periodic:
        atoms.cell, atoms.pbc = cell, True
    attrs = torch.tensor([domain.attr_shifts], dtype=torch.float64) if domain.attrs else None
    return Structure(atoms, attrs)


def with_info(structure: Structure, domain: Domain) -> Atoms:
    """Atoms that a calculator takes: all the attributes are under the first of their keys."""
    atoms = structure.atoms.copy()
    if structure.attrs is not None:
        values = [structure.attrs.numpy().ravel()] + [np.zeros(0)] * (len(domain.attrs) - 1)
        atoms.info.update(zip(domain.attrs, values))
    return atoms


def in_words(structures: Sequence[Structure]) -> str:
    """'3 structures of 8 to 64 atoms'"""
    sizes = sorted({len(s.atoms) for s in structures})
    one = len(structures) == 1
    span = f"{sizes[0]}" if len(sizes) == 1 else f"{sizes[0]} to {sizes[-1]}"
    return f"{len(structures)} structure{'' if one else 's'} of {span} atom{'' if sizes == [1] else 's'}"


def _batches(graphs: Sequence[Graph], max_edges: int) -> Iterator[Graph]:
    batch, edges = list[Graph](), 0
    for graph in graphs:
        if batch and edges + len(graph.reverse) > max_edges:
            yield collate(batch)
            batch, edges = [], 0
        batch.append(graph)
        edges += len(graph.reverse)
    if batch:
        yield collate(batch)
