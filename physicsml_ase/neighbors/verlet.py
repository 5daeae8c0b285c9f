"""A neighbour list that follows a moving system, searched anew only when the atoms have left its skin.

N atoms, E directed edges, M undirected pairs.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from physicsml_ase.neighbors.full import Neighbors, mirrored
from physicsml_ase.neighbors.pairs import (
    COINCIDENT,
    Floats,
    Ints,
    Pairs,
    all_pairs,
    checked,
    find_pairs,
    refuse_coincident,
)

FEW = 50
"""The list of so few atoms without periodicity has all pairs of them, and serves for good."""


NEARBY = 100.0
"""Whoever has drifted further since the list was made [Å] may be too far away for one."""


class Origin(NamedTuple):
    """A list is good while no atom is further from here than half the room, beside the common motion of all."""

    positions: Floats  # (N, 3) [Å]
    room: float  # [Å]


class VerletList:
    """A neighbour list for a moving system: rebuilt when the atoms have left the skin, exact at every step.

    Not for use by several threads at once.
    """

    def __init__(self, cutoff: float, skin: float, self_interaction: bool = False) -> None:
        self.cutoff, self.skin, self.self_interaction = cutoff, skin, self_interaction
        self.rebuilds = 0
        self._room = skin
        self._positions: Floats | None = None  # at the last rebuild
        self._by_distance: tuple[Ints, Pairs] | None = None  # the order (M,), and the pairs in it
        self._kept: NDArray[np.bool_] | None = None  # (M,), those of them in `_selected`

    def update(self, positions: ArrayLike, cell: ArrayLike, pbc: ArrayLike, whole: int = 0) -> Neighbors:
        """The same edges as `neighbor_list` gives, whatever has changed since the last call.

        A kept list of up to `whole` edges is given as it is, those of its skin among them: the same object
        until the next rebuild.
        """
        positions, cell, pbc = np.asarray(positions, float), np.asarray(cell, float), np.asarray(pbc, bool)
        low, high, moved = 1.0, 1.0, self._moved(positions, cell, pbc)
        if not moved <= self._room or self._nearest - moved < COINCIDENT:
            positions, cell, pbc = checked(positions, cell, pbc)
            if self.skin <= 0:
                self.rebuilds += 1
                pairs = find_pairs(positions, cell, pbc, self.cutoff)
                return mirrored(pairs, len(positions), self.self_interaction)[0]
            low, high, moved = self._bounds(positions, cell, pbc)
        if not low * (self.cutoff + self._room) - moved >= self.cutoff:
            self._rebuild(positions, cell, pbc, whole)
            low, high, moved = 1.0, 1.0, 0.0
        self._refuse_coincident(positions, cell, low, moved)
        if len(self._edges.reverse) <= whole:
            return self._edges
        return self._select(positions, cell, low, high, moved)

    def origin(self, neighbors: Neighbors, cell: Floats) -> Origin | None:
        """What is to be compared with positions in a cell to know whether `neighbors` still serve.

        None where they are not the list that is kept. See `_bounds`.
        """
        if self._positions is None or neighbors is not self._edges:
            return None
        if np.array_equal(cell, self._cell):
            return Origin(self._positions, self._room)
        deformation, low, _ = self._deformed(cell)
        room = low * (self.cutoff + self._room) - self.cutoff
        return Origin(self._positions @ deformation, room) if room > 0 else None

    def _rebuild(self, positions: Floats, cell: Floats, pbc: NDArray[np.bool_], whole: int) -> None:
        self._positions = None  # nothing is kept of a list that could not be built
        n = len(positions)
        if n <= FEW and n * n <= whole and not pbc.any():
            self._pairs, self._room = all_pairs(positions), np.inf
        else:
            self._pairs, self._room = find_pairs(positions, cell, pbc, self.cutoff + self.skin), self.skin
        self._edges, self._pair_of_edge = mirrored(self._pairs, len(positions), self.self_interaction)
        self._nearest = self._pairs.distance.min(initial=np.inf)
        self._by_distance = self._kept = None
        self._cell, self._pbc = cell.copy(), pbc.copy()
        self._inverse = np.linalg.pinv(cell[pbc]) if pbc.any() else np.zeros((3, 0))  # (3, periodic)
        self._positions = positions.copy()
        self.rebuilds += 1

    def _moved(self, positions: Floats, cell: Floats, pbc: NDArray[np.bool_]) -> float:
        """The last number of `_bounds`, quickly, where nothing but positions changed; NaN where more may have."""
        last = self._positions
        if last is None or not len(last) or positions.shape != last.shape:
            return np.nan
        if cell.tobytes() != self._cell.tobytes() or pbc.tobytes() != self._pbc.tobytes():
            return np.nan
        u = positions - last
        return _farthest(u) if np.abs(u[0]).max() < NEARBY else np.nan

    def _bounds(self, positions: Floats, cell: Floats, pbc: NDArray[np.bool_]) -> tuple[float, float, float]:
        """Numbers with low * d0 - moved <= d <= high * d0 + moved for every pair and image, then and now.

        Let F map the old lattice vectors onto the new ones, the identity across them. Every separation is
        then r = r0 F + u_j - u_i, where u = x - x0 F is what each atom did besides; a common part of u
        cancels. The singular values of F bound |r0 F|, and 2 max|u| bounds the rest. So no pair that the
        list left out, d0 >= cutoff + skin, can be within the cut-off while low * d0 - moved >= cutoff.
        """
        if (
            self._positions is None
            or len(positions) != len(self._positions)
            or (pbc != self._pbc).any()
            or not len(positions)
        ):
            return 0.0, np.inf, np.inf
        low = high = 1.0
        if (cell[pbc] == self._cell[pbc]).all():
            u = positions - self._positions
        else:
            deformation, low, high = self._deformed(cell)
            u = positions - self._positions @ deformation
        return low, high, _farthest(u)

    def _deformed(self, cell: Floats) -> tuple[Floats, float, float]:
        """F, and the least and the largest of its singular values."""
        deformation = np.eye(3) + self._inverse @ (cell - self._cell)[self._pbc]
        high, _, low = np.linalg.svd(deformation, compute_uv=False).tolist()
        return deformation, low, high

    def _select(self, positions: Floats, cell: Floats, low: float, high: float, moved: float) -> Neighbors:
        if self._by_distance is None:
            order = self._pairs.distance.argsort()
            self._by_distance = order, self._pairs.some(order)
        order, pairs = self._by_distance
        slack = 1e-9 * self.cutoff  # rounding; only pairs that are not certain are measured
        certain, possible = (self.cutoff - moved - slack) / high, (self.cutoff + moved + slack) / low
        first, end = pairs.distance.searchsorted((certain, possible)).tolist()
        inside = np.zeros(len(order), bool)
        inside[:first] = True
        unsure = slice(first, end)
        inside[unsure] = self._distances(positions, cell, pairs.some(unsure)) < self.cutoff
        if self._kept is None or (inside != self._kept).any():
            self._kept, placed = inside, np.empty_like(inside)
            placed[order] = inside
            self._selected = self._filtered(placed, len(positions))
        return self._selected

    def _refuse_coincident(self, positions: Floats, cell: Floats, low: float, moved: float) -> None:
        if low * self._nearest - moved < COINCIDENT:
            close = np.flatnonzero(low * self._pairs.distance - moved < COINCIDENT)
            refuse_coincident(self._pairs, close, self._distances(positions, cell, self._pairs.some(close)))

    def _distances(self, positions: Floats, cell: Floats, pairs: Pairs) -> Floats:
        r = positions.take(pairs.j, 0)
        r -= positions.take(pairs.i, 0)
        if self._pbc.any():
            r += pairs.shift @ cell
        return np.sqrt(np.einsum("mx,mx->m", r, r))

    def _filtered(self, inside: NDArray[np.bool_], n: int) -> Neighbors:
        if self.self_interaction:
            inside = np.concatenate([inside, np.ones(n, bool)])
        mask = inside.take(self._pair_of_edge)  # (E,); both edges of a pair go together
        kept = np.flatnonzero(mask)
        new = np.cumsum(mask) - 1
        return Neighbors(
            self._edges.edge_index.take(kept, 1),
            self._edges.edge_shift.take(kept, 0),
            new.take(self._edges.reverse.take(kept)),
        )


def _farthest(u: Floats) -> float:
    """Twice the longest of some displacements (N, 3), which are changed, beside what is common to all."""
    u -= u.mean(0)
    return 2 * float(np.einsum("nx,nx->n", u, u).max()) ** 0.5
