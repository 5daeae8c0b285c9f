"""A potential computed by the kernel in C++ (`kernel`), structure by structure.

N atoms, S structures.
"""

import os
import sys
import threading
import time
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from physicsml_ase.backends.compiled import KEPT, NO_VOLUME, same_tensors, volume
from physicsml_ase.backends.crew import Pace, usable_cores
from physicsml_ase.backends.kernel import Edges, Kernel, SkinList, kernel_reason
from physicsml_ase.graph import Graph, split
from physicsml_ase.neighbors import Neighbors, Origin
from physicsml_ase.nn.features import NUM_ELEMENTS
from physicsml_ase.potential import Potential

OF_LIST = ("atomic_numbers", "edge_index", "edge_shift")
"""What a list and its reference energies are of."""
MANY_ATOMS = 200
"""Structures of fewer atoms are computed by one thread, which a second one would only keep waiting."""


def not_native(potential: Potential) -> str | None:
    """Why the kernel can not compute a potential, None where it can; compiles the kernel where need be."""
    if potential.headed:
        return f"it does not compute {', '.join(potential.headed)}"
    if not potential.has_energy:
        return "the model has no energy"
    return kernel_reason(potential.model)


class Step(NamedTuple):
    """What is computed of one structure."""

    energy: float  # [eV]
    energies: NDArray[np.float64]  # (N,) [eV]
    forces: NDArray[np.float64]  # (N, 3) [eV/Å]
    stress: NDArray[np.float64] | None  # (3, 3) [eV/Å³], where there is a full cell


class Listed(NamedTuple):
    """A graph, and what serves for all that differ from it in positions alone."""

    graph: Graph
    edges: SkinList
    references: NDArray[np.float64]  # (N,) [eV]
    pace: Pace
    volume: float


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
        self._last: Listed | None = None
        self._lock = threading.Lock()  # the kernel's memory and the list's are used again
        self._process = os.getpid()

    def __call__(self, graph: Graph) -> dict[str, Tensor]:
        """What `Potential.forward` returns."""
        if self._process != os.getpid():  # a fork has no threads but one, and perhaps another's lock
            self._process, self._lock, self.threads = os.getpid(), threading.Lock(), 1
            self._last = None
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

    def follow(self, graph: Graph, origin: Origin) -> Step | None:
        """The last graph again with its atoms elsewhere, without tensors, which take longer than a molecule does.

        `origin` is that of its list. None where the list is out of date, or anything else calls for more than the
        kernel; a call will do it.
        """
        last = self._last
        if last is None or self._process != os.getpid() or not same_tensors(graph, last.graph, KEPT):
            return None
        edges, positions = last.edges, graph.positions.numpy()
        with self._lock:
            return self._step(last, lambda threads: edges.follow(positions, *origin, threads))

    def _of_one(self, graph: Graph) -> dict[str, Tensor]:
        listed, cutoff = self._list_of(graph), self.potential.domain.cutoff
        edges, positions, cell = listed.edges, graph.positions.numpy(), graph.cell[0].numpy()
        step = self._step(listed, lambda threads: edges.within(positions, cell, cutoff, threads))
        if step is None:  # seldom; the wall is the potential's business
            return self.potential(graph)
        stress = np.full((3, 3), np.nan) if step.stress is None else step.stress
        return {
            "forces": torch.from_numpy(step.forces),
            "stress": torch.from_numpy(stress)[None],
            "energy": torch.tensor([step.energy], dtype=torch.float64),
            "energies": torch.from_numpy(step.energies),
        }

    def _step(self, listed: Listed, find: Callable[[int], Edges | None]) -> Step | None:
        """None where the edges can not be had of `find`, given a number of threads, or atoms are within the wall."""
        pace, began = listed.pace, time.perf_counter()
        threads, self.features = pace.threads, None
        found = find(threads)
        self.close = found is not None and found.near > 0
        self.by_itself = not self.close
        if found is None or self.close:
            return None
        out = self.kernel(found, threads, self.keep_features)
        if out.features is not None:
            self.features = torch.from_numpy(out.features)
        pace.took(threads, (time.perf_counter() - began) / len(listed.references))
        scale = self.potential.domain.energy_scale
        energies = np.multiply(out.energies, scale, dtype=np.float64)  # numpy 1 would stay with float32
        energies += listed.references
        stress = None
        if listed.volume > NO_VOLUME:
            stress = (out.virial + out.virial.T) * (scale / (2 * listed.volume))
        return Step(float(energies.sum()), energies, out.forces * scale, stress)

    def _list_of(self, graph: Graph) -> Listed:
        """What is made of the graph; the last one's where only positions and cell differ."""
        last = self._last
        if last is not None and same_tensors(graph, last.graph, KEPT):
            return last
        size = volume(graph.cell[0])
        if last is not None and same_tensors(graph, last.graph, OF_LIST):
            self._last = last._replace(graph=graph, volume=size)
            return self._last
        neighbors = Neighbors(graph.edge_index.numpy(), graph.edge_shift.numpy(), graph.reverse.numpy())
        elements = self._places.take(graph.atomic_numbers.numpy())
        edges = SkinList(neighbors, elements, self._outer())
        references = self.potential.references(graph.atomic_numbers).numpy()
        n = len(elements)
        kind = n >= MANY_ATOMS, n.bit_length()
        if kind not in self._pace:
            self._pace[kind] = Pace(numbers_of_threads(self.threads, n))
        self._last = Listed(graph, edges, references, self._pace[kind], size)
        return self._last

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
