"""A potential computed by the kernel in C++ (`kernel`), structure by structure.

N atoms, S structures.
"""

import os
import sys
import threading
import time

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from physicsml_ase.backends.compiled import outputs
from physicsml_ase.backends.crew import Pace, usable_cores
from physicsml_ase.backends.kernel import Kernel, SkinList, kernel_reason
from physicsml_ase.graph import Graph, split
from physicsml_ase.neighbors import Neighbors
from physicsml_ase.nn.features import NUM_ELEMENTS
from physicsml_ase.potential import Potential

MANY_ATOMS = 200
"""Structures of fewer atoms are computed by one thread, which a second one would only keep waiting."""


def not_native(potential: Potential) -> str | None:
    """Why the kernel can not compute a potential, None where it can; compiles the kernel where need be."""
    if potential.headed:
        return f"it does not compute {', '.join(potential.headed)}"
    if not potential.has_energy:
        return "the model has no energy"
    return kernel_reason(potential.model)


class OnKernel:
    """A potential whose step is computed by the kernel. Later changes of its weights are not seen."""

    whole_lists = sys.maxsize
    """The kernel takes the neighbours within the cut-off out of any list itself."""

    def __init__(self, potential: Potential, threads: int | None = None) -> None:
        self.potential, self.threads = potential, threads
        self.kernel = Kernel(potential.model)  # type: ignore[arg-type]
        self.keep_features = False
        """Whether `features` are kept at every step."""
        self.features: Tensor | None = None
        """The model's scalars of each atom (N, F) in the last batch computed; None where the kernel did not."""
        self.close = False
        """Whether atoms of the last structure were within a wall."""
        self.by_itself = True
        """Whether the last structures were computed here, and not by the potential."""
        self._places = potential.model.index.places.numpy().astype(np.int32)
        self._pace = dict[tuple[bool, int], Pace]()
        self._last: tuple[Graph, SkinList, Tensor] | None = None
        self._lock = threading.Lock()  # the kernel's memory and the list's are used again
        self._process = os.getpid()

    def __call__(self, graph: Graph) -> dict[str, Tensor]:
        """What `Potential.forward` returns."""
        if self._process != os.getpid():  # a fork has no threads but one, and perhaps another's lock
            self._process, self._lock, self.threads = os.getpid(), threading.Lock(), 1
            self._pace.clear()
        if graph.cell.shape[0] > 1:
            parts, features, by_itself = [], list[Tensor | None](), True
            for part in split(graph._replace(inputs={}, targets={}), {}):
                parts.append(self(part))
                features.append(self.features)
                by_itself &= self.by_itself
            self.by_itself = by_itself
            kept = [x for x in features if x is not None]
            self.features = torch.cat(kept) if len(kept) == len(parts) else None
            return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
        with self._lock:
            return self._of_one(graph)

    def _of_one(self, graph: Graph) -> dict[str, Tensor]:
        n, domain = graph.positions.shape[0], self.potential.domain
        edges, references = self._list_of(graph)
        self.features = None
        size = n >= MANY_ATOMS, n.bit_length()
        pace = self._pace.setdefault(size, Pace(numbers_of_threads(self.threads, n)))
        threads, began = pace.threads, time.perf_counter()
        found = edges.within(graph.positions.numpy(), graph.cell[0].numpy(), domain.cutoff, threads)
        self.close = bool(found.near)
        self.by_itself = not self.close
        if found.near:  # seldom; the wall is the potential's business
            return self.potential(graph)
        out = self.kernel(edges.elements, found, threads, self.keep_features)
        if out.features is not None:
            self.features = torch.from_numpy(out.features)
        pace.took(threads, (time.perf_counter() - began) / n)
        scale = domain.energy_scale
        energies = torch.from_numpy(out.energies * np.float64(scale)) + references
        forces, virial = torch.from_numpy(out.forces * scale), torch.from_numpy(out.virial * scale)
        return outputs(self.potential, graph, energies, forces, virial[None])

    def _list_of(self, graph: Graph) -> tuple[SkinList, Tensor]:
        """The list and the reference energies of a graph; those of the last one where only positions differ."""
        if self._last is not None:
            last, edges, references = self._last
            if (
                graph.edge_index is last.edge_index
                and graph.edge_shift is last.edge_shift
                and graph.atomic_numbers is last.atomic_numbers
            ):
                return edges, references
        neighbors = Neighbors(graph.edge_index.numpy(), graph.edge_shift.numpy(), graph.reverse.numpy())
        elements = self._places.take(graph.atomic_numbers.numpy())
        edges = SkinList(neighbors, elements, self._outer())
        references = self.potential.references(graph.atomic_numbers)
        self._last = graph, edges, references
        return edges, references

    def _outer(self) -> NDArray[np.float64] | None:
        """Where the wall begins for each pair of elements (Z, Z) [Å]."""
        if self.potential.wall is None:
            return None
        outer = self.potential.wall.outer.double().numpy().reshape(NUM_ELEMENTS, NUM_ELEMENTS)
        elements = list(self.potential.domain.elements)
        return outer[np.ix_(elements, elements)]


def numbers_of_threads(given: int | None, num_atoms: int) -> tuple[int, ...]:
    """Those to try for structures of about one size."""
    if given:
        return (given,)
    most = min(torch.get_num_threads(), usable_cores())
    return (1, most) if num_atoms >= MANY_ATOMS and most > 1 else (1,)
