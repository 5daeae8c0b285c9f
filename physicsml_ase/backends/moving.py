"""The graph of a structure that is most likely the last one, moved a little.

What did not change since the last step is the same tensor as before, so that a backend knows it by identity.
"""

from typing import NamedTuple

import numpy as np
import torch
from ase import Atoms
from numpy.typing import NDArray
from torch import Tensor

from physicsml_ase.atoms import build_graph
from physicsml_ase.domain import Domain
from physicsml_ase.graph import Graph
from physicsml_ase.neighbors import Neighbors, Origin, VerletList


class Last(NamedTuple):
    """What the last graph was made of, besides positions."""

    graph: Graph
    neighbors: Neighbors
    numbers: NDArray[np.int64]
    cell: NDArray[np.float64]
    pbc: NDArray[np.bool_]
    origin: Origin | None = None  # of the list, for positions in this cell; found when it is needed


class MovingGraph:
    """Graphs of one structure after another on a device; the neighbour list is kept within its skin [Å]."""

    def __init__(self, domain: Domain, skin: float, device: torch.device) -> None:
        self.domain, self.device = domain, device
        self.verlet = VerletList(domain.cutoff, skin, domain.self_interaction)
        self._last: Last | None = None

    def same_elements(self, numbers: NDArray[np.int64]) -> bool:
        """Whether the last graph had just these atoms."""
        return self._last is not None and equal(numbers, self._last.numbers)

    def next(self, atoms: Atoms, inputs: dict[str, Tensor], whole_lists: int) -> Graph:
        """The graph of a structure; lists with the skin of up to `whole_lists` edges are taken as they are."""
        domain, numbers = self.domain, atoms.numbers
        cell = atoms.cell.array if domain.cell is None else np.array(domain.cell)
        pbc = atoms.pbc if domain.pbc is None else np.array(domain.pbc)
        neighbors = self.verlet.update(atoms.positions, cell, pbc, whole=whole_lists)
        last = self._last
        if last is None or neighbors is not last.neighbors or not equal(numbers, last.numbers):
            graph = build_graph(numbers, atoms.positions, cell, pbc, neighbors, inputs, {}).to(self.device)
            self._last = Last(graph, neighbors, numbers.copy(), cell.copy(), pbc.copy())
            return graph
        graph = last.graph._replace(positions=self._positions(atoms), inputs=inputs)
        if not equal(cell, last.cell):
            graph = graph._replace(cell=torch.from_numpy(np.array(cell, np.float64))[None].to(self.device))
            self._last = last._replace(graph=graph, cell=cell.copy(), origin=None)
        return graph

    def moved(self, atoms: Atoms) -> tuple[Graph, Origin] | None:
        """The last graph with its atoms elsewhere, where nothing else changed, and what they are to be compared with.

        Whether its list is still good is not looked at.
        """
        last = self._last
        if last is None or self.domain.attrs:
            return None
        if not equal(atoms.numbers, last.numbers):
            return None
        if self.domain.cell is None and not equal(atoms.cell.array, last.cell):
            return None
        if self.domain.pbc is None and not equal(atoms.pbc, last.pbc):
            return None
        if last.origin is None:
            last = self._last = last._replace(origin=self.verlet.origin(last.neighbors, last.cell))
        if last.origin is None:
            return None
        return last.graph._replace(positions=self._positions(atoms)), last.origin

    def _positions(self, atoms: Atoms) -> Tensor:
        return torch.from_numpy(np.array(atoms.positions, np.float64, order="C")).to(self.device)


def equal(a: NDArray[np.generic], b: NDArray[np.generic]) -> bool:
    """Whether two arrays of one kind are the same, to the bit; for the few numbers of a molecule, quickly."""
    if a.size > 1000:
        return np.array_equal(a, b)
    return a.shape == b.shape and a.tobytes() == b.tobytes()
