"""Structures laid end to end in flat, compact arrays: the form in which stores keep graphs.

Neighbours are numbered within their structure (int32), shifts are int16, elements uint8, geometry stays
float64; a directed edge takes 18 bytes. A batch is gathered from the arrays by vectorised slicing and
expanded into a `Graph`. Shapes: S structures, N atoms, E edges, K chosen structures.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cached_property

import torch
from torch import Tensor

from physicsml_ase.conventions import Label, Level
from physicsml_ase.graph import Graph

LEVELS: tuple[Level, ...] = ("structure", "atom", "edge")
Arrays = Mapping[Level, Mapping[str, Tensor]]
MAX_SHIFT = torch.iinfo(torch.int16).max
"""Shifts of edges are no larger than this."""


class Flat:
    """S structures as `arrays[level][name]`, each with S, N or E rows.

    Labels and inputs are named "targets.energy", "inputs.graph_attrs"; `structure.frame` is the place of
    each structure in its source.
    """

    def __init__(self, arrays: Arrays) -> None:
        self.arrays = arrays

    def __len__(self) -> int:
        return len(self.arrays["structure"]["num_atoms"])

    @property
    def sizes(self) -> dict[Level, Tensor]:
        """Rows of each structure at each level, (S,) int64."""
        of = self.arrays["structure"]
        return {
            "structure": torch.ones_like(of["num_atoms"]),
            "atom": of["num_atoms"],
            "edge": of["num_edges"],
        }

    @cached_property
    def starts(self) -> dict[Level, Tensor]:
        """First row of each structure at each level, and the end, (S + 1,) int64."""
        zero = torch.zeros(1, dtype=torch.int64)
        return {level: torch.cat([zero, size.cumsum(0)]) for level, size in self.sizes.items()}

    @property
    def nbytes(self) -> int:
        """Memory of the arrays."""
        return sum(array.nbytes for _, _, array in self.items())

    def items(self) -> Iterator[tuple[Level, str, Tensor]]:
        """Every array with its level and name."""
        return ((level, name, array) for level in LEVELS for name, array in self.arrays[level].items())

    def take(self, indices: Tensor) -> "Flat":
        """The structures at `indices` (K,) int64, in that order."""
        if len(indices) and bool((indices.diff() == 1).all()):
            first, last = int(indices[0]), int(indices[-1])
            bounds = {level: (int(s[first]), int(s[last + 1])) for level, s in self.starts.items()}
            return self._map(lambda level, array: array[slice(*bounds[level])])
        rows = {
            level: spans(starts.index_select(0, indices), self.sizes[level].index_select(0, indices))
            for level, starts in self.starts.items()
        }
        return self._map(lambda level, array: array.index_select(0, rows[level]))

    def to_graph(self) -> Graph:
        """All of it as one batch."""
        s, a, e = (self.arrays[level] for level in LEVELS)
        num_atoms, num_edges = s["num_atoms"], s["num_edges"]
        first_atom = self.starts["atom"][:-1].repeat_interleave(num_edges)
        first_edge = self.starts["edge"][:-1].repeat_interleave(num_edges)

        def named(prefix: str) -> dict[str, Tensor]:
            pairs = ((name.partition("."), array) for _, name, array in self.items())
            return {name: array for (kind, _, name), array in pairs if kind == prefix}

        return Graph(
            atomic_numbers=a["atomic_numbers"].long(),
            positions=a["positions"],
            batch=torch.arange(len(self)).repeat_interleave(num_atoms),
            num_atoms=num_atoms,
            cell=s["cell"],
            pbc=s["pbc"],
            edge_index=torch.stack([e["centre"] + first_atom, e["neighbor"] + first_atom]),
            edge_shift=e["shift"].double(),
            reverse=e["reverse"] + first_edge,
            num_edges=num_edges,
            inputs=named("inputs"),
            targets=named("targets"),
        )

    def _map(self, change: Callable[[Level, Tensor], Tensor]) -> "Flat":
        return Flat({k: {name: change(k, x) for name, x in of.items()} for k, of in self.arrays.items()})


def flatten(graphs: Sequence[Graph], labels: Sequence[Label], frames: Sequence[int]) -> Flat:
    """Graphs of one structure each; `frames` are their places in the source."""

    def cat(name: str, dtype: torch.dtype | None = None) -> Tensor:
        whole = torch.cat([getattr(g, name) for g in graphs])
        return whole if dtype is None else whole.to(dtype)

    edge_index = torch.cat([g.edge_index for g in graphs], dim=1).int()
    arrays: dict[Level, dict[str, Tensor]] = {
        "structure": {name: cat(name) for name in ("num_atoms", "num_edges", "cell", "pbc")},
        "atom": {"atomic_numbers": cat("atomic_numbers", torch.uint8), "positions": cat("positions")},
        "edge": {
            "centre": edge_index[0],
            "neighbor": edge_index[1],
            "shift": cat("edge_shift", torch.int16),
            "reverse": cat("reverse", torch.int32),
        },
    }
    arrays["structure"]["frame"] = torch.tensor(frames)
    for name in graphs[0].inputs:
        arrays["structure"][f"inputs.{name}"] = torch.cat([g.inputs[name] for g in graphs])
    for label in labels:
        arrays[label.level][f"targets.{label.name}"] = torch.cat([g.targets[label.name] for g in graphs])
    return Flat(arrays)


def concat(parts: Sequence[Flat]) -> Flat:
    """One after the other."""
    if len(parts) == 1:
        return parts[0]
    first = parts[0].arrays
    return Flat({k: {n: torch.cat([p.arrays[k][n] for p in parts]) for n in of} for k, of in first.items()})


def spans(starts: Tensor, counts: Tensor) -> Tensor:
    """The numbers start, start + 1, ... of each of K spans, end to end, (sum of counts,) int64."""
    ends = counts.cumsum(0)
    total = int(ends[-1]) if len(ends) else 0
    return torch.arange(total) + (starts - ends + counts).repeat_interleave(counts, output_size=total)
