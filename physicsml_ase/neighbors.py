"""Neighbour lists: full, sorted by centre, with the reverse of every edge; and a list kept within a skin.

vesin searches the pairs. It is fast, but version 0.6.2 hangs on strongly sheared and on very thin cells and
on partly periodic structures with an atom far from the others, and dies of SIGFPE when a structure is much
longer than wide; `_friendly` keeps these from it.
N atoms, E directed edges, M undirected pairs.
"""

from typing import NamedTuple

import numpy as np
import vesin
from ase.geometry import minkowski_reduce
from numpy.typing import ArrayLike, NDArray

from physicsml_ase.conventions import InputError

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

COINCIDENT = 1e-3
"""Atoms nearer than this are an error [Å]."""
MAX_NEIGHBORS = 10_000
"""More neighbours per atom than this come from a wrong cell, and would exhaust the memory."""
FARTHEST = 1e7
"""Coordinates beyond this have lost their digits, and overflow vesin's integers [Å]."""


class Neighbors(NamedTuple):
    """Directed edges i -> j with r_ij = positions[j] + edge_shift @ cell - positions[i]."""

    edge_index: Ints  # (2, E), centre i (ascending) and neighbour j
    edge_shift: Floats  # (E, 3), whole numbers, in lattice vectors
    reverse: Ints  # (E,), the edge j -> i with the opposite shift; an involution


class _Pairs(NamedTuple):
    """Every edge once; the mirror image is understood."""

    i: Ints  # (M,)
    j: Ints  # (M,)
    shift: Floats  # (M, 3)
    distance: Floats  # (M,)


def neighbor_list(
    positions: ArrayLike, cell: ArrayLike, pbc: ArrayLike, cutoff: float, self_interaction: bool = False
) -> Neighbors:
    """All edges shorter than `cutoff` [Å] of atoms (N, 3) [Å] in a cell (3, 3) with periodicity (3,).

    Atoms need not be wrapped; lattice vectors of non-periodic directions are ignored. `self_interaction`
    adds the edge of zero length from every atom to itself. Periodic images of an atom are always there.
    """
    positions, cell, pbc = _checked(positions, cell, pbc)
    pairs = _pairs(positions, cell, pbc, cutoff)
    return _mirrored(pairs, len(positions), self_interaction)[0]


class VerletList:
    """A neighbour list for a moving system: rebuilt when the atoms have left the skin, exact at every step.

    Not for use by several threads at once.
    """

    def __init__(self, cutoff: float, skin: float, self_interaction: bool = False) -> None:
        self.cutoff, self.skin, self.self_interaction = cutoff, skin, self_interaction
        self.rebuilds = 0
        self._positions: Floats | None = None  # at the last rebuild
        self._kept: NDArray[np.bool_] | None = None  # (M,), the pairs in `_selected`

    def update(self, positions: ArrayLike, cell: ArrayLike, pbc: ArrayLike) -> Neighbors:
        """The same edges as `neighbor_list` gives, whatever has changed since the last call."""
        positions, cell, pbc = _checked(positions, cell, pbc)
        if self.skin <= 0:
            self.rebuilds += 1
            return _mirrored(
                _pairs(positions, cell, pbc, self.cutoff), len(positions), self.self_interaction
            )[0]
        low, high, moved = self._bounds(positions, cell, pbc)
        if low * (self.cutoff + self.skin) - moved < self.cutoff:
            self._rebuild(positions, cell, pbc)
            low, high, moved = 1.0, 1.0, 0.0
        return self._select(positions, cell, low, high, moved)

    def _rebuild(self, positions: Floats, cell: Floats, pbc: NDArray[np.bool_]) -> None:
        self._positions = None  # nothing is kept of a list that could not be built
        self._pairs = _pairs(positions, cell, pbc, self.cutoff + self.skin)
        self._edges, self._pair_of_edge = _mirrored(self._pairs, len(positions), self.self_interaction)
        self._nearest = self._pairs.distance.min(initial=np.inf)
        self._kept = None
        self._cell, self._pbc = cell.copy(), pbc.copy()
        self._inverse = np.linalg.pinv(cell[pbc]) if pbc.any() else np.zeros((3, 0))  # (3, periodic)
        self._positions = positions.copy()
        self.rebuilds += 1

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
            deformation = np.eye(3) + self._inverse @ (cell - self._cell)[pbc]
            high, _, low = np.linalg.svd(deformation, compute_uv=False).tolist()
            u = positions - self._positions @ deformation
        u -= u.mean(0)
        return low, high, 2 * float(np.einsum("nx,nx->n", u, u).max()) ** 0.5

    def _select(self, positions: Floats, cell: Floats, low: float, high: float, moved: float) -> Neighbors:
        pairs, d0 = self._pairs, self._pairs.distance
        slack = 1e-9 * self.cutoff  # rounding; only pairs that are not certain are measured
        inside = d0 < (self.cutoff - moved - slack) / high
        unsure = np.flatnonzero((d0 < (self.cutoff + moved + slack) / low) & ~inside)
        inside[unsure] = self._distances(positions, cell, unsure) < self.cutoff
        if low * self._nearest - moved < COINCIDENT:
            close = np.flatnonzero(low * d0 - moved < COINCIDENT)
            _refuse_coincident(pairs, close, self._distances(positions, cell, close))
        if self._kept is None or (inside != self._kept).any():
            self._kept, self._selected = inside, self._filtered(inside, len(positions))
        return self._selected

    def _distances(self, positions: Floats, cell: Floats, some: Ints) -> Floats:
        pairs = self._pairs
        r = positions.take(pairs.j.take(some), 0)
        r -= positions.take(pairs.i.take(some), 0)
        if self._pbc.any():
            r += pairs.shift.take(some, 0) @ cell
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


def _checked(
    positions: ArrayLike, cell: ArrayLike, pbc: ArrayLike
) -> tuple[Floats, Floats, NDArray[np.bool_]]:
    x = np.asarray(positions, dtype=np.float64).reshape(-1, 3)
    h = np.asarray(cell, dtype=np.float64).reshape(3, 3)
    periodic = np.asarray(pbc, dtype=bool).reshape(3)
    if not np.abs(x).max(initial=0.0) < FARTHEST:  # also where it is NaN
        atom = int(np.flatnonzero(~(np.abs(x) < FARTHEST).all(1))[0])
        why = "is too far from the origin" if np.isfinite(x[atom]).all() else "is not finite"
        raise InputError(f"the position of atom {atom} {why}: {x[atom].tolist()} Å")
    if not np.isfinite(h[periodic]).all():
        raise InputError(f"the cell is not finite: {h.tolist()} Å")
    return x, h, periodic


def _pairs(positions: Floats, cell: Floats, pbc: NDArray[np.bool_], cutoff: float) -> _Pairs:
    """Every pair of atoms and images nearer than `cutoff`, once."""
    if not len(positions):
        nobody = np.empty(0, np.int64)
        return _Pairs(nobody, nobody, np.empty((0, 3)), np.empty(0))
    points, box, back = _friendly(positions, cell, pbc, cutoff)
    # the half list costs half, and its mirror image gives the reverse edges for nothing
    search = vesin.NeighborList(cutoff=cutoff, full_list=False, n_threads=1)
    ij, shift, distance = search.compute(points=points, box=box, periodic=True, quantities="PSd", copy=False)
    i, j = ij.T.astype(np.int64)
    shift = shift.astype(np.float64)
    pairs = _Pairs(i, j, shift if back is None else shift @ back, distance.copy())
    _refuse_coincident(pairs, np.arange(len(i)), pairs.distance)
    return pairs


def _friendly(
    positions: Floats, cell: Floats, pbc: NDArray[np.bool_], cutoff: float
) -> tuple[Floats, Floats, Floats | None]:
    """The same pairs as a fully periodic, compact system: points, box, and the map of shifts back.

    A non-periodic direction becomes a periodic one, across the others and so long that no image is within
    the cut-off; vacuum wider than the cut-off is squeezed out of it; a strongly sheared cell is reduced.
    """
    back = None
    box, volume = _completed(cell, pbc)
    edges = np.linalg.norm(box, axis=1).prod()
    if volume <= 0.1 * edges:
        if volume <= 1e-12 * edges:
            raise InputError(
                f"cell is singular along its periodic directions: {cell[pbc].tolist()} Å; "
                "give the lattice vectors or switch off pbc"
            )
        box, operation = minkowski_reduce(box, pbc)
        back = operation.astype(np.float64)  # box = operation @ cell, so shift @ operation is in `cell`
    if not pbc.all():
        across = np.flatnonzero(~pbc)
        height = positions @ box[across].T  # (N, non-periodic); these rows are orthonormal
        low, span = height.min(0), np.ptp(height, axis=0)
        points = positions - low @ box[across]
        for k in np.flatnonzero(span > 20 * cutoff):
            moved = _squeezed(height[:, k] - low[k], 1.01 * cutoff)
            points += (moved - height[:, k] + low[k])[:, None] * box[across[k]]
            span[k] = moved.max()
        box = box.copy()
        box[across] *= (span + 1.01 * cutoff)[:, None]
    else:
        points = positions
    faces = 1 / np.linalg.norm(np.linalg.inv(box), axis=0)  # distances between opposite faces
    images = 2 * cutoff / faces
    if len(positions) * np.where(pbc, images, np.minimum(images, 1)).prod() > MAX_NEIGHBORS:
        raise InputError(
            f"too many neighbours within {cutoff:g} Å ({len(positions)} atoms, faces of the cell "
            f"{', '.join(f'{f:.3g}' for f in faces[pbc])} Å apart): is the cell right?"
        )
    mesh = np.maximum(faces // cutoff, 1)
    if mesh.prod() > 1e5 and mesh.min() * (1e5 / mesh.prod()) ** (1 / 3) < 1.01:
        # vesin scales its mesh to 1e5 cells, to zero along the shortest edge, and divides by it
        raise InputError(f"the structure is too elongated: {', '.join(f'{f:.3g}' for f in faces)} Å")
    return np.ascontiguousarray(points), np.ascontiguousarray(box), back


def _completed(cell: Floats, pbc: NDArray[np.bool_]) -> tuple[Floats, float]:
    """The cell with orthonormal vectors across the periodic ones in place of the others, and its volume."""
    if pbc.all():
        return cell, abs(float(np.linalg.det(cell)))
    box, k = np.eye(3), int(pbc.sum())
    volume = 1.0
    if k:
        q, r = np.linalg.qr(cell[pbc].T, mode="complete")  # first k columns span the periodic vectors
        box[pbc], box[~pbc] = cell[pbc], q[:, k:].T
        volume = abs(float(np.diagonal(r).prod()))
    return box, volume


def _squeezed(height: Floats, gap: float) -> Floats:
    """Coordinates (N,) from zero with every empty interval wider than `gap` made as wide as `gap`."""
    order = np.argsort(height)
    moved = np.empty_like(height)
    moved[order] = np.cumsum(np.minimum(np.diff(height[order], prepend=0.0), gap))
    return moved


def _refuse_coincident(pairs: _Pairs, of: Ints, distance: Floats) -> None:
    if distance.min(initial=np.inf) < COINCIDENT:
        k = of[distance.argmin()]
        image = " (its image across the periodic boundary)" if pairs.shift[k].any() else ""
        raise InputError(
            f"atoms {pairs.i[k]} and {pairs.j[k]}{image} coincide (distance {distance.min():.3f} Å)"
        )


def _mirrored(pairs: _Pairs, n: int, self_interaction: bool) -> tuple[Neighbors, Ints]:
    """Both directions of every pair, sorted by centre, and the pair that each edge belongs to, (E,)."""
    m = len(pairs.i)
    itself = np.arange(n if self_interaction else 0)
    centre = np.concatenate([pairs.i, pairs.j, itself])
    neighbor = np.concatenate([pairs.j, pairs.i, itself])
    shift = np.concatenate([pairs.shift, 0.0 - pairs.shift, np.zeros((len(itself), 3))])  # no negative zeros
    key = centre.astype(np.uint16) if n <= 65536 else centre  # numpy sorts 16 bits by radix
    order = np.argsort(key, kind="stable")
    place = np.empty_like(order)
    place[order] = np.arange(len(order))
    pair = np.concatenate([np.arange(m), np.arange(m + len(itself))])
    mirror = np.concatenate([place[m : 2 * m], place[:m], place[2 * m :]])
    edge_index = np.empty((2, len(order)), np.int64)
    centre.take(order, out=edge_index[0])
    neighbor.take(order, out=edge_index[1])
    return Neighbors(edge_index, shift.take(order, 0), mirror.take(order)), pair.take(order)
