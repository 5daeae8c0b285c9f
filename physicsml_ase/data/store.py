"""Stores: graphs of a source, kept or made when asked for, given as batches.

`LiveStore` makes graphs anew from the frames each time, `MemoryStore` keeps them in flat arrays;
`disk.DiskStore` keeps the same arrays in a file. All pickle, so that worker processes can read from them.
Shapes: S structures.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import NamedTuple, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from physicsml_ase.data.flat import Arrays, Flat
from physicsml_ase.data.frames import CHUNK, Recipe
from physicsml_ase.data.sources import Source
from physicsml_ase.graph import Graph, collate

Ints = NDArray[np.int64]
Watch = Callable[[Flat], None]


class Store(Protocol):
    """S structures, read in batches."""

    frames: Ints
    """Place of each structure in its source, (S,)."""
    num_atoms: Ints
    num_edges: Ints
    """Sizes of each structure, (S,)."""
    block: int
    """Structures that are quickly read together; 1 where all orders are alike."""

    def __len__(self) -> int: ...

    def read(self, indices: Ints) -> Graph:
        """The structures at `indices` as one batch, in that order."""


class EdgeConstants(NamedTuple):
    """Numbers of each edge that a model computes from its pair vector alone, and needs in every epoch."""

    name: str
    """Under which a graph's inputs hold them."""
    compute: Callable[[Graph], Tensor]
    """All edges' numbers, (E, F)."""
    width: int
    """F, as float32."""


class LiveStore:
    """Makes its graphs from the source's frames whenever they are read."""

    block = 1

    def __init__(
        self, source: Source, recipe: Recipe, parts: Iterable[Flat] | None, watch: Watch | None = None
    ) -> None:
        """`parts` is one pass over the source, which finds the usable frames and their sizes.

        None: all frames are used, and their sizes are not known (zero).
        """
        self.source, self.recipe = source, recipe
        if parts is None:
            self.frames = np.arange(len(source))
            self.num_atoms = self.num_edges = np.zeros_like(self.frames)
            return
        columns: dict[str, list[torch.Tensor]] = {"frame": [], "num_atoms": [], "num_edges": []}
        for part in parts:
            for name, column in columns.items():
                column.append(part.arrays["structure"][name])
            if watch is not None:
                watch(part)
        self.frames, self.num_atoms, self.num_edges = (torch.cat(c).numpy() for c in columns.values())

    def __len__(self) -> int:
        return len(self.frames)

    def read(self, indices: Ints) -> Graph:
        places = self.frames[indices].tolist()
        return collate([self.recipe.graph(self.source[i], self.source.where(i)) for i in places])


class MemoryStore:
    """Keeps its graphs as flat arrays."""

    block = 1

    def __init__(self, parts: Iterable[Flat], watch: Watch | None = None) -> None:
        kept = [part.arrays for part in parts]
        self.flat = Flat(_joined(kept))
        columns = self.flat.arrays["structure"]
        # copies: torch frees the memory under a NumPy view when it moves a tensor to a worker
        self.frames, self.num_atoms, self.num_edges = (
            columns[name].numpy().copy() for name in ("frame", "num_atoms", "num_edges")
        )
        if watch is not None:
            for part in pieces(self.flat):
                watch(part)

    def __len__(self) -> int:
        return len(self.flat)

    def extended(self, more: Sequence[Flat]) -> "MemoryStore":
        """These structures and others, without what was kept beside the edges of these."""
        own = {
            level: {name: self.flat.arrays[level][name] for name in of}
            for level, of in more[0].arrays.items()
        }
        return MemoryStore([Flat(own), *more])

    def keep_constants(self, constants: EdgeConstants) -> None:
        """Compute these once and keep them beside the edges: 4 F bytes each."""
        whole = torch.empty(int(self.flat.starts["edge"][-1]), constants.width)
        start = 0
        for part in pieces(self.flat):
            values = constants.compute(part.to_graph())
            whole[start : start + len(values)] = values
            start += len(values)
        edges = {**self.flat.arrays["edge"], f"inputs.{constants.name}": whole}
        self.flat = Flat({**self.flat.arrays, "edge": edges})

    def read(self, indices: Ints) -> Graph:
        return self.flat.take(torch.as_tensor(indices)).to_graph()


def pieces(flat: Flat) -> Iterator[Flat]:
    """Views of consecutive structures, as a pass over frames would give them."""
    for start in range(0, len(flat), CHUNK):
        yield flat.take(torch.arange(start, min(start + CHUNK, len(flat))))


def _joined(parts: list[Arrays]) -> Arrays:
    """One after the other; the parts' arrays are let go of one by one, so that not all are there twice."""
    owned = [{level: dict(of) for level, of in part.items()} for part in parts]
    parts.clear()
    names = [(level, name) for level, of in owned[0].items() for name in of]
    whole: dict = {level: {} for level in owned[0]}
    for level, name in names:
        whole[level][name] = torch.cat([part[level].pop(name) for part in owned])
    return whole
