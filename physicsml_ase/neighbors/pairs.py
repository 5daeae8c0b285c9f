"""The search for pairs of atoms, by vesin, and what keeps vesin from harm.

vesin is fast, but version 0.6.2 hangs on strongly sheared and on very thin cells and on partly periodic
structures with an atom far from the others, and dies of SIGFPE when a structure is much longer than wide.
So it is given an equivalent system that is compact and fully periodic. N atoms, M pairs.
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


class Pairs(NamedTuple):
    """Every edge once; the mirror image is understood."""

    i: Ints  # (M,)
    j: Ints  # (M,)
    shift: Floats  # (M, 3)
    distance: Floats  # (M,)

    def some(self, which: Ints | slice) -> "Pairs":
        """Those at some places, (K,) or a slice."""
        return Pairs(self.i[which], self.j[which], self.shift[which], self.distance[which])


def checked(
    positions: ArrayLike, cell: ArrayLike, pbc: ArrayLike
) -> tuple[Floats, Floats, NDArray[np.bool_]]:
    """Positions (N, 3), cell (3, 3) and periodicity (3,) as arrays, if they can be searched."""
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


def find_pairs(positions: Floats, cell: Floats, pbc: NDArray[np.bool_], cutoff: float) -> Pairs:
    """Every pair of atoms and images nearer than `cutoff`, once."""
    if not len(positions):
        nobody = np.empty(0, np.int64)
        return Pairs(nobody, nobody, np.empty((0, 3)), np.empty(0))
    points, box, back = _friendly(positions, cell, pbc, cutoff)
    # the half list costs half, and its mirror image gives the reverse edges for nothing
    search = vesin.NeighborList(cutoff=cutoff, full_list=False, n_threads=1)
    ij, shift, distance = search.compute(points=points, box=box, periodic=True, quantities="PSd", copy=False)
    i, j = ij.T.astype(np.int64)
    shift = shift.astype(np.float64)
    pairs = Pairs(i, j, shift if back is None else shift @ back, distance.copy())
    refuse_coincident(pairs, np.arange(len(i)), pairs.distance)
    return pairs


def all_pairs(positions: Floats) -> Pairs:
    """Every pair of atoms that have no images, however far apart."""
    i, j = np.triu_indices(len(positions), 1)
    distance = np.linalg.norm(positions.take(j, 0) - positions.take(i, 0), axis=1)
    pairs = Pairs(i, j, np.zeros((len(i), 3)), distance)
    refuse_coincident(pairs, np.arange(len(i)), distance)
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
        extent = ", ".join(f"{f:.3g}" for f in faces)
        raise InputError(f"the structure is too long and thin ({extent} Å): is the cell right?")
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


def refuse_coincident(pairs: Pairs, of: Ints, distance: Floats) -> None:
    """Raise if one of the pairs `of`, `distance` (len(of),) [Å] apart, is no distance apart."""
    if distance.min(initial=np.inf) < COINCIDENT:
        k = of[distance.argmin()]
        image = " (its image across the periodic boundary)" if pairs.shift[k].any() else ""
        raise InputError(
            f"atoms {pairs.i[k]} and {pairs.j[k]}{image} coincide (distance {distance.min():.3f} Å)"
        )
