"""From Atoms to the graphs that a model computes, and what is kept from one step to the next."""

from collections.abc import Iterable, Iterator

import numpy as np
import torch
from ase import Atoms
from ase.data import chemical_symbols
from numpy.typing import NDArray

from physicsml_ase.atoms import graph_attrs, refuse_no_element, to_graph
from physicsml_ase.backends.moving import MovingGraph, equal
from physicsml_ase.conventions import InputError
from physicsml_ase.domain import Domain
from physicsml_ase.graph import Graph


class Inputs:
    """What structures are to a model: refused, or graphs with the neighbour list of the last step where it serves."""

    def __init__(self, domain: Domain, skin: float, device: torch.device) -> None:
        self.domain, self.device = domain, device
        self.moving = MovingGraph(domain, skin, device)
        self._copy: Atoms | None = None  # ours, to be written over
        self._known = np.zeros(len(chemical_symbols) + 1, bool)
        self._known[list(domain.elements)] = True
        self._attrs = np.zeros((1, 0))  # of the last calculation

    def next(self, atoms: Atoms, whole_lists: int) -> Graph:
        """The graph of a structure that is most likely the last one, moved a little."""
        if not len(atoms):
            raise InputError("the structure has no atoms")
        inputs = {}
        if self.domain.attrs:
            self._attrs = self._graph_attrs(atoms)
            inputs["graph_attrs"] = torch.from_numpy(self._attrs).to(self.device)
        if not self.moving.same_elements(atoms.numbers):
            self._refuse_unknown(atoms.numbers)
        return self.moving.next(atoms, inputs, whole_lists)

    def graphs(self, structures: Iterable[Atoms]) -> Iterator[Graph]:
        """Graphs of structures that have nothing to do with each other, on the CPU."""
        domain = self.domain
        for k, atoms in enumerate(structures):
            self._refuse_unknown(atoms.numbers, f"structure {k}: ")
            yield to_graph(
                atoms,
                domain.cutoff,
                attrs=domain.attrs,
                self_interaction=domain.self_interaction,
                pbc=domain.pbc,
                cell=domain.cell,
                num_attrs=len(domain.attr_shifts),
                where=f"structure {k}",
            )

    def changes(self, old: Atoms, atoms: Atoms) -> list[str]:
        """What of a structure is not as in `old`, which `next` saw last."""
        arrays = ("positions", "numbers")
        changes = [name for name in arrays if not equal(atoms.arrays[name], old.arrays[name])]
        if not equal(atoms.cell.array, old.cell.array):
            changes.append("cell")
        if not equal(atoms.pbc, old.pbc):
            changes.append("pbc")
        if self.domain.attrs and not self._same_attrs(atoms):
            changes.append("info")
        return changes

    def _same_attrs(self, atoms: Atoms) -> bool:
        try:
            return np.array_equal(self._graph_attrs(atoms), self._attrs)
        except InputError:  # for a calculation to say
            return False

    def copied(self, atoms: Atoms) -> Atoms:
        """A copy of the structure; into the last copy where only positions and cell can be others."""
        old = self._copy
        if (
            old is None
            or self.domain.attrs  # which are in `info`
            or not equal(old.arrays["numbers"], atoms.arrays["numbers"])
        ):
            self._copy = atoms.copy()
            return self._copy
        old.arrays["positions"][:] = atoms.arrays["positions"]
        old.cell.array[:] = atoms.cell.array
        old.pbc[:] = atoms.pbc
        return old

    def _graph_attrs(self, atoms: Atoms) -> NDArray[np.float64]:
        return graph_attrs(atoms, self.domain.attrs, len(self.domain.attr_shifts))

    def _refuse_unknown(self, numbers: NDArray[np.int64], where: str = "") -> None:
        known = self._known.take(numbers, mode="clip")  # a table: np.isin takes a tenth of a millisecond
        if not known.all() or numbers.min(initial=0) < 0:
            atom = int((known & (numbers >= 0)).argmin())
            refuse_no_element(numbers, where)
            symbols = ", ".join(sorted(chemical_symbols[z] for z in self.domain.elements))
            raise InputError(
                f"{where}element {chemical_symbols[numbers[atom]]} (atom {atom}) is not in the model "
                f"({symbols}); train with structures that contain it"
            )
