"""One pass over the training data: a few numbers of every structure, from which all statistics follow.

A structure costs 48 bytes and 2 for each element while the pass lasts. S structures, Z elements.
"""

from collections import defaultdict
from collections.abc import Callable
from functools import cached_property

import numpy as np
import torch
from ase.data import chemical_symbols
from numpy.typing import NDArray
from torch import Tensor

from physicsml_ase.conventions import Label
from physicsml_ase.data.flat import Flat
from physicsml_ase.data.sources import Source
from physicsml_ase.graph import edge_vectors

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
NUM_ELEMENTS = 119


class Moments:
    """Number, mean and mean square deviation of what has been added, column by column."""

    def __init__(self) -> None:
        self.count, self.mean, self.deviation = 0, np.zeros(1), np.zeros(1)

    def add(self, values: Floats) -> None:
        """More values, (n, columns); combined as in Chan et al. 1983, which loses no digits of a large mean."""
        if not len(values):
            return
        count = self.count + len(values)
        mean = values.mean(0)
        shift = mean - self.mean
        within = (self.deviation * self.count + ((values - mean) ** 2).sum(0)) / count
        self.deviation = within + shift**2 * self.count * len(values) / count**2
        self.mean = self.mean + shift * len(values) / count
        self.count = count


class Survey:
    """What has been seen of the training structures; see `statistics.resolve_domain`."""

    def __init__(self, labels: tuple[Label, ...], self_interaction: bool = False) -> None:
        self.labels, self.self_interaction = labels, self_interaction
        self.sources: list[Source] = []
        self.present = {label.name: 0 for label in labels}
        """Structures that have each label, at least in part."""
        self.moments: dict[str, Moments] = defaultdict(Moments)
        """Of each label's components, and of "graph_attrs"."""
        self._closest = torch.full((NUM_ELEMENTS * NUM_ELEMENTS,), torch.inf, dtype=torch.float64)
        self._fewest = torch.full((NUM_ELEMENTS,), torch.iinfo(torch.int64).max)
        self._most = torch.full((NUM_ELEMENTS,), -1)
        self._columns: dict[str, list[Floats]] = defaultdict(list)
        self._compositions: list[tuple[Ints, NDArray[np.uint16 | np.uint32]]] = []

    def watch(self, source: Source) -> Callable[[Flat], None]:
        """What takes the chunks of a source."""
        self.sources.append(source)
        number = len(self.sources) - 1
        return lambda flat: self._add(flat, number)

    def column(self, name: str) -> Floats:
        """A number of every structure, (S,): source, frame, num_atoms, num_neighbors, energy, force_square (mean
        over components), force_max; NaN where there is none."""
        return np.concatenate(self._columns[name]).astype(np.float64)

    @cached_property
    def elements(self) -> tuple[int, ...]:
        """Atomic numbers that occur, ascending."""
        return tuple(np.unique(np.concatenate([z for z, _ in self._compositions])).tolist())

    @property
    def counts(self) -> Floats:
        """Atoms of each element in each structure, (S, Z)."""
        parts = [np.zeros((len(counts), len(self.elements))) for _, counts in self._compositions]
        for part, (z, counts) in zip(parts, self._compositions):
            part[:, np.searchsorted(self.elements, z)] = counts
        return np.concatenate(parts)

    @property
    def shortest_distances(self) -> dict[str, float]:
        """Shortest distance of each pair of elements that are neighbours somewhere [Å], by symbols: {"H-O": 0.93}."""
        table = self._closest.view(NUM_ELEMENTS, NUM_ELEMENTS)
        pairs = torch.isfinite(table).triu().nonzero().tolist()
        return {f"{chemical_symbols[a]}-{chemical_symbols[b]}": float(table[a, b]) for a, b in pairs}

    @property
    def neighbor_counts(self) -> dict[str, tuple[int, int]]:
        """Fewest and most neighbours of an atom of each element, by symbols: {"H": (3, 17)}."""
        return {
            chemical_symbols[z]: (int(self._fewest[z]), int(self._most[z]))
            for z in (self._most >= 0).nonzero()[:, 0].tolist()
        }

    @property
    def isolated(self) -> NDArray[np.bool_]:
        """Which structures are a single atom without neighbours, (S,)."""
        return (self.column("num_atoms") == 1) & (self.column("num_neighbors") == 0)

    def where(self, k: int) -> str:
        """Structure k in the user's words."""
        return self.sources[int(self.column("source")[k])].where(int(self.column("frame")[k]))

    def _add(self, flat: Flat, source: int) -> None:
        of, atoms, size = flat.arrays["structure"], flat.arrays["atom"], len(flat)
        batch = torch.arange(size).repeat_interleave(of["num_atoms"])
        pairs = batch * NUM_ELEMENTS + atoms["atomic_numbers"].long()
        counts = torch.bincount(pairs, minlength=size * NUM_ELEMENTS).view(size, NUM_ELEMENTS).numpy()
        there = np.flatnonzero(counts.any(0))
        kind = np.uint16 if counts.max() < 2**16 else np.uint32
        self._compositions.append((there, counts[:, there].astype(kind)))
        neighbors = of["num_edges"] - (of["num_atoms"] if self.self_interaction else 0)
        energy = of.get("targets.energy", torch.full((size,), torch.nan))
        square, largest = _force_sizes(atoms.get("targets.forces"), batch, size)
        rows = {
            "frame": of["frame"],
            "num_atoms": of["num_atoms"],
            "num_neighbors": neighbors,
            "energy": energy,
        }
        for name, values in (rows | {"force_square": square, "force_max": largest}).items():
            self._columns[name].append(values.numpy())
        self._columns["source"].append(np.full(size, source, dtype=np.uint32))
        self._add_neighbors(flat)
        for label in self.labels:
            target = flat.arrays[label.level][f"targets.{label.name}"]
            has = ~target.isnan().flatten(1).all(1) if label.shape else ~target.isnan()
            owner = {"structure": torch.arange(size), "atom": batch}.get(label.level)
            if owner is None:
                owner = torch.arange(size).repeat_interleave(of["num_edges"])
            self.present[label.name] += len(owner[has].unique())
            finite = target[has].flatten().numpy()
            self.moments[label.name].add(finite[np.isfinite(finite)][:, None])
            if label.level == "structure" and label.shape == ():
                each = (target / of["num_atoms"]).numpy()
                self.moments[f"{label.name} per atom"].add(each[np.isfinite(each)][:, None])
        if "inputs.graph_attrs" in of:
            self.moments["graph_attrs"].add(of["inputs.graph_attrs"].numpy())

    def _add_neighbors(self, flat: Flat) -> None:
        graph = flat.to_graph()
        d = edge_vectors(graph).square().sum(1).sqrt()
        i, j = graph.atomic_numbers[graph.edge_index]
        apart = d > 0  # an atom is no neighbour of itself
        pairs = (i * NUM_ELEMENTS + j)[apart]
        self._closest = self._closest.scatter_reduce(0, pairs, d[apart], "amin")
        count = torch.bincount(graph.edge_index[0][apart], minlength=len(graph.atomic_numbers))
        self._fewest = self._fewest.scatter_reduce(0, graph.atomic_numbers, count, "amin")
        self._most = self._most.scatter_reduce(0, graph.atomic_numbers, count, "amax")


def _force_sizes(forces: Tensor | None, batch: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """Mean square component and largest length of each structure's forces, NaN without any; both (S,)."""
    nothing = torch.full((size,), torch.nan, dtype=torch.float64)
    if forces is None:
        return nothing, nothing
    square = forces.square()
    known = ~square.isnan()
    zero = torch.zeros(size, dtype=torch.float64)
    total = zero.index_add(0, batch, square.nan_to_num(0.0).sum(1))
    number = zero.index_add(0, batch, known.sum(1).double())
    largest = zero.scatter_reduce(0, batch, square.nan_to_num(0.0).sum(1), "amax").sqrt()
    return total / number, torch.where(number > 0, largest, torch.nan)
