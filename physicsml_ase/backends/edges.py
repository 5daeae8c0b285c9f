"""The edges within the cut-off, taken at each step out of a list with a skin by `edges.cpp`. N atoms, E edges."""

import ctypes
import math
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from physicsml_ase.backends.build import build
from physicsml_ase.backends.weights import MOST_THREADS, POINTER, Floats, address
from physicsml_ase.neighbors import COINCIDENT, Neighbors

FEW_SHIFTS = 1000
"""Of so many shifts at most all are listed, which is quicker than to find those that occur."""
EXACT = 2.0**53
"""Whole numbers are exact up to here."""


class Edges(NamedTuple):
    """Edges within the cut-off, sorted by centre."""

    elements: NDArray[np.int32]  # (N,), places among the model's elements
    start: NDArray[np.int64]  # (N + 1,), atom i's are start[i] to start[i + 1]
    neighbor: NDArray[np.int32]  # (E,)
    r_ij: NDArray[np.float32]  # (E, 3) [Å]
    at: tuple[int, int, int, int]
    """Where these four lie: to ask arrays for that takes as long as a small calculation."""
    shortest: float = 0.0
    """Shortest distance between two atoms or images [Å]; infinite where there are no edges."""
    near: int = 0
    """How many edges are shorter than what `SkinList` was told of their elements."""


class SkinList:
    """The edges of a list with a skin, from which those within the cut-off are taken at each step.

    `elements` (N,) are places among the model's elements, `outer` (Z, Z) [Å] the distances of elements below
    which edges are counted in `Edges.near`. Not for several threads at once.
    """

    def __init__(
        self, neighbors: Neighbors, elements: NDArray[np.int32], outer: Floats | None = None
    ) -> None:
        n = elements.shape[0]
        i, j = neighbors.edge_index
        shift = neighbors.edge_shift
        if (elements != elements[:1]).any():  # neighbours of one element side by side are quicker
            order = np.lexsort((elements.take(j), i))
            i, j, shift = i.take(order), j.take(order), shift.take(order, 0)
        self.elements = np.ascontiguousarray(elements, np.int32)
        self._start = np.searchsorted(i, np.arange(n + 1)).astype(np.int64)
        self._neighbor = j.astype(np.int32)
        self._shifts, self._place, no_shift = _few(shift)
        num = int(elements.max(initial=0)) + 1
        self._outer = np.zeros((num, num)) if outer is None else np.square(outer, dtype=np.float64)
        at = (address(self._start), address(self._neighbor), address(self._place), address(self.elements))
        self._list = _List(n, *at, no_shift, len(self._outer))
        self._found = (
            np.empty(n + 1, np.int64),
            np.empty(len(j), np.int32),
            np.empty((len(j), 3), np.float32),
        )
        self._near, self._shortest = ctypes.c_int64(), ctypes.c_double()
        start, neighbor, r_ij = map(address, self._found)
        self._at = start, neighbor, address(self.elements), r_ij
        self._to = start, neighbor, r_ij, ctypes.addressof(self._near), ctypes.addressof(self._shortest)
        self._at_list, self._at_outer = ctypes.addressof(self._list), address(self._outer)
        self._offsets = self._origin = np.empty((0, 3))
        self._at_offsets, self._at_origin, self._cutoff = 0, 0, 0.0
        self._within = build("edges.cpp").within
        numbers = [ctypes.c_double, ctypes.c_double]
        self._within.argtypes = [*[POINTER] * 4, *numbers, POINTER, ctypes.c_int, *[POINTER] * 5]
        self._within.restype = ctypes.c_int64

    def within(self, positions: Floats, cell: Floats, cutoff: float, threads: int = 1) -> Edges:
        """Edges shorter than `cutoff` [Å] of atoms (N, 3) in a cell (3, 3); valid until the next call."""
        self._offsets = self._shifts @ cell
        self._at_offsets, self._cutoff = address(self._offsets), cutoff
        positions = np.ascontiguousarray(positions, np.float64)
        return self._edges(self._search(address(positions), None, 0.0, threads))

    def follow(self, positions: Floats, origin: Floats, room: float, threads: int = 1) -> Edges | None:
        """The same as the last time, of atoms that have moved since.

        None where the list may lack some: it was made when the atoms were at `origin` (N, 3), with a skin of
        `room` [Å]. Nor where atoms coincide, which is for `VerletList` to refuse.
        """
        if origin is not self._origin:
            self._origin, self._at_origin = origin, address(origin)
        count = self._search(address(positions), self._at_origin, room, threads)
        edges = self._edges(count) if count >= 0 else None
        return None if edges is None or edges.shortest < COINCIDENT else edges

    def _search(self, positions: int, origin: int | None, room: float, threads: int) -> int:
        threads = min(max(threads, 1), MOST_THREADS, len(self.elements) // 256 + 1)
        there = self._at_list, self._at_offsets, positions, origin
        count: int = self._within(*there, room, self._cutoff, self._at_outer, threads, *self._to)
        return count

    def _edges(self, count: int) -> Edges:
        start, neighbor, r_ij = self._found
        shortest = math.sqrt(self._shortest.value) if count else math.inf
        near = self._near.value
        return Edges(self.elements, start, neighbor[:count], r_ij[:count], self._at, shortest, near)


def _few(shift: Floats) -> tuple[Floats, NDArray[np.int32], int]:
    """The shifts that occur among those of edges (E, 3), each edge's place among them, and that of no shift."""
    low = shift.min(0, initial=0.0)
    sizes = shift.max(0, initial=0.0) - low + 1
    every = np.concatenate([shift, np.zeros((1, 3))])
    if sizes.prod() < EXACT:
        codes = ((every - low) @ np.array([sizes[1] * sizes[2], sizes[2], 1.0])).astype(np.int64)
        if sizes.prod() <= FEW_SHIFTS:
            box = np.indices(sizes.astype(int)).reshape(3, -1).T + low
            return box, codes[:-1].astype(np.int32), int(codes[-1])
        # an atom that has left its cell far behind: the box of all shifts is large, and nearly empty
        _, first, place = np.unique(codes, return_index=True, return_inverse=True)
        shifts = every[first]
    else:  # so far that no number tells the places in the box apart
        shifts, place = np.unique(every, axis=0, return_inverse=True)
        place = place.reshape(-1)
    return shifts, place[:-1].astype(np.int32), int(place[-1])


class _List(ctypes.Structure):
    _fields_ = [
        ("num_atoms", ctypes.c_int64),
        *((name, POINTER) for name in ("start", "neighbor", "shift", "element")),
        ("no_shift", ctypes.c_int64),
        ("num_elements", ctypes.c_int64),
    ]
