"""Features of the probe: pairs, and products of densities of neighbours up to l = 2; their derivatives by hand.

A pair of elements has Gaussians of the distance, spaced in proportion to it; an atom has products of the
densities rho, v, T (sums over neighbours of g, g r^, g r^ r^) of its neighbours' elements, which with l = 2
hold angles as in Stillinger and Weber 1985. N atoms, E directed edges, P features, S frames.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_matrix

from physicsml_ase.check.frame import Floats, Frame, Ints, vectors
from physicsml_ase.conventions import VOIGT

REACH = 5.0
"""Of the features [Å], or the pairs' own cut-off where that is less."""
RADIAL, SHELLS, ANGULAR = 10, 2, 3
MOST_FEATURES = 420
"""With more, neighbours are not told apart by element, and rare pairs of elements share their features."""


Singles = NDArray[np.float32]


class Layout(NamedTuple):
    """Which columns belong to what, from the elements and pairs that occur."""

    elements: Ints  # (Z,)
    pair_of: Ints  # (Z, Z), number of the pair of elements
    shortest: Floats  # (number of pairs,)
    kinds: int  # of neighbours that densities tell apart: Z, 1, or 0 for no densities
    reach: float

    @property
    def num_pairs(self) -> int:
        return len(self.shortest)

    @property
    def products(self) -> int:
        """Products of densities at an atom."""
        return self.kinds * (self.kinds + 1) // 2

    @property
    def size(self) -> int:
        """P."""
        return self.num_pairs * RADIAL + len(self.elements) * self.products * SHELLS * ANGULAR


class Design(NamedTuple):
    """A frame's features and their derivatives, linear in the coefficients."""

    energy: Floats  # (P,)
    forces: Singles  # (3N, P)
    virial: Floats  # dE/dstrain, (6, P): xx yy zz yz xz xy


def layout(frames: Sequence[Frame], cutoff: float) -> Layout:
    """Columns for these frames."""
    reach = min(cutoff, REACH)
    elements = np.unique(np.concatenate([frame.atoms.numbers for frame in frames]))
    z = len(elements)
    closest = np.full((z, z), np.inf)
    counts = np.zeros((z, z))
    for frame in frames:
        assert frame.pairs is not None
        kind = np.searchsorted(elements, frame.atoms.numbers)
        a, b = np.sort([kind[frame.pairs.i], kind[frame.pairs.j]], axis=0)
        np.minimum.at(closest, (a, b), frame.pairs.distance)
        np.add.at(counts, (a, b), 1)
    there = [(a, b) for a in range(z) for b in range(a, z) if closest[a, b] < reach]
    most = max(1, MOST_FEATURES // 2 // RADIAL)
    own = sorted(there, key=lambda ab: -counts[ab])[:most]
    pair_of = np.full((z, z), len(own) if len(there) > most else -1)
    shortest = [closest[ab] for ab in own]
    if len(there) > most:
        shortest.append(min(closest[ab] for ab in there if ab not in own))
    for number, (a, b) in enumerate(own):
        pair_of[a, b] = pair_of[b, a] = number
    for kinds in (z, 1, 0):
        found = Layout(elements, pair_of, np.array(shortest), kinds, reach)
        if found.size <= MOST_FEATURES:
            break
    return found


BATCH = 1500
"""Atoms whose features are computed together."""


def designs(frames: Sequence[Frame], columns: Layout) -> list[Design]:
    """Features of frames, (S,)."""
    found, batch, atoms = list[Design](), list[Frame](), 0
    for frame in frames:
        batch.append(frame)
        atoms += len(frame.atoms)
        if atoms >= BATCH:
            found += _design(batch, columns)
            batch, atoms = [], 0
    return found + (_design(batch, columns) if batch else [])


class _Edges(NamedTuple):
    """Both directions of all pairs within reach."""

    i: Ints  # (E,)
    j: Ints  # (E,)
    r: Floats  # (E, 3)
    unit: Floats  # (E, 3)
    d: Floats  # (E, 1)
    frame: Ints  # (E,)


def _design(frames: list[Frame], columns: Layout) -> list[Design]:
    sizes = np.array([len(frame.atoms) for frame in frames])
    starts = np.concatenate([[0], np.cumsum(sizes)])
    edges = _edges(frames, starts, columns.reach)
    kind = np.searchsorted(columns.elements, np.concatenate([frame.atoms.numbers for frame in frames]))
    frame_of = np.repeat(np.arange(len(frames)), sizes)
    i, j = edges.i, edges.j
    sums = _Sums(len(frames), len(kind), columns.size)
    pair = columns.pair_of[kind[i], kind[j]]
    for number in np.unique(pair[pair >= 0]).tolist():
        e = np.flatnonzero(pair == number)
        value, slope = _radial(edges.d[e], columns.shortest[number], columns.reach)
        block = slice(number * RADIAL, (number + 1) * RADIAL)
        np.add.at(sums.energy[:, block], edges.frame[e], 0.5 * value)
        sums.put(block, 0.5 * slope[:, :, None] * edges.unit[e, None, :], edges, e)
    if columns.kinds:
        densities = _densities(columns, edges, kind, len(kind))
        first, width = columns.num_pairs * RADIAL, SHELLS * ANGULAR
        told = kind if columns.kinds > 1 else np.zeros_like(kind)
        for z in np.unique(kind[i]).tolist():
            offset = first + z * columns.products * width
            atoms = np.flatnonzero(kind == z)
            near = {k: np.flatnonzero((kind[i] == z) & (told[j] == k)) for k in range(columns.kinds)}
            for number, (a, b) in enumerate(_products(columns.kinds)):
                block = slice(offset + number * width, offset + (number + 1) * width)
                np.add.at(sums.energy[:, block], frame_of[atoms], _product(densities, atoms, a, b))
                for own, other in {(a, b), (b, a)}:
                    e = near[own]
                    if len(e):
                        slope = _slopes(densities, i[e], other, edges.unit[e], edges.d[e], columns.reach)
                        sums.put(block, slope * (2.0 if a == b else 1.0), edges, e)
    forces = [sums.forces[a:b].reshape(3 * (b - a), columns.size) for a, b in zip(starts[:-1], starts[1:])]
    return [Design(e, f, v) for e, f, v in zip(sums.energy, forces, sums.virial)]


def _edges(frames: list[Frame], starts: Ints, reach: float) -> _Edges:
    parts: list[list[np.ndarray]] = [[], [], [], [], []]
    for k, frame in enumerate(frames):
        assert frame.pairs is not None
        near = frame.pairs.distance < reach
        columns = (frame.pairs.i + starts[k], frame.pairs.j + starts[k], vectors(frame), frame.pairs.distance)
        for part, column in zip(parts, columns):
            part.append(column[near])
        parts[4].append(np.full(int(near.sum()), k))
    i, j, r, d, frame_of = (np.concatenate(part) for part in parts)
    r, d = np.concatenate([r, -r]), np.tile(d, 2)[:, None]
    return _Edges(np.concatenate([i, j]), np.concatenate([j, i]), r, r / d, d, np.tile(frame_of, 2))


class _Sums:
    """Features and derivatives of a batch, added up over edges."""

    def __init__(self, frames: int, atoms: int, size: int) -> None:
        self.energy = np.zeros((frames, size))
        self.forces = np.zeros((atoms, 3, size), dtype=np.float32)
        self.virial = np.zeros((frames, 6, size))

    def put(self, block: slice, slope: Floats, edges: _Edges, e: Ints) -> None:
        """Add dE/dr_ij of the edges `e`, (len(e), p, 3), to forces and virial of the columns in `block`."""
        number, p = len(e), slope.shape[1]
        flat = slope.reshape(number, p * 3)
        one, at = np.ones(number), np.arange(number)
        rows = np.concatenate([edges.i[e], edges.j[e]])
        spread = csr_matrix((np.concatenate([one, -one]), (rows, np.tile(at, 2))), (len(self.forces), number))
        self.forces[:, :, block] += (spread @ flat).reshape(-1, p, 3).transpose(0, 2, 1)
        rows, which = edges.r[e], csr_matrix((one, (edges.frame[e], at)), (len(self.energy), number))
        whole = np.stack([which @ (rows[:, a : a + 1] * slope[:, :, b]) for a, b in VOIGT], axis=1)
        self.virial[:, :, block] += whole


class _Densities(NamedTuple):
    rho: Floats  # (N, kinds, SHELLS)
    v: Floats  # (N, kinds, SHELLS, 3)
    t: Floats  # (N, kinds, SHELLS, 3, 3)


def _densities(columns: Layout, edges: _Edges, kind: Ints, n: int) -> _Densities:
    near = kind[edges.j] if columns.kinds > 1 else np.zeros_like(edges.j)
    g, _ = _shell(edges.d, columns.reach)
    number, unit = len(edges.i), edges.unit
    squares = (unit[:, :, None] * unit[:, None, :]).reshape(-1, 9)
    parts = np.concatenate([np.ones((number, 1)), unit, squares], axis=1)
    places = edges.i * columns.kinds + near
    spread = csr_matrix((np.ones(number), (places, np.arange(number))), (n * columns.kinds, number))
    sums = spread @ (g[:, :, None] * parts[:, None, :]).reshape(number, SHELLS * 13)
    sums = sums.reshape(n, columns.kinds, SHELLS, 13)
    return _Densities(sums[..., 0], sums[..., 1:4], sums[..., 4:].reshape(n, columns.kinds, SHELLS, 3, 3))


def _product(of: _Densities, atoms: Ints, a: int, b: int) -> Floats:
    """Products for each atom, (len(atoms), SHELLS * ANGULAR)."""
    rho = of.rho[atoms, a] * of.rho[atoms, b]
    v = (of.v[atoms, a] * of.v[atoms, b]).sum(-1)
    t = (of.t[atoms, a] * of.t[atoms, b]).sum((-1, -2))
    return np.stack([rho, v, t], axis=-1).reshape(len(atoms), SHELLS * ANGULAR)


def _slopes(of: _Densities, i: Ints, other: int, unit: Floats, d: Floats, reach: float) -> Floats:
    """d(product)/dr_ij for edges, (E, SHELLS * ANGULAR, 3)."""
    g, dg = _shell(d, reach)
    u = unit[:, None, :]
    rho = (dg * of.rho[i, other])[..., None] * u
    v = of.v[i, other]
    along = (v * u).sum(-1)
    vector = ((dg - g / d) * along)[..., None] * u + (g / d)[..., None] * v
    m = of.t[i, other] @ u[..., None]
    m = m[..., 0]
    twice = (m * u).sum(-1)
    tensor = ((dg - 2 * g / d) * twice)[..., None] * u + (2 * g / d)[..., None] * m
    return np.stack([rho, vector, tensor], axis=2).reshape(len(i), SHELLS * ANGULAR, 3)


def _products(kinds: int) -> list[tuple[int, int]]:
    return [(a, b) for a in range(kinds) for b in range(a, kinds)]


def _fade(d: Floats, reach: float) -> tuple[Floats, Floats]:
    """(1 - (r/reach)^2)^2 and its slope."""
    x = 1 - (d / reach) ** 2
    return x**2, -4 * x * d / reach**2


def _radial(d: Floats, shortest: float, reach: float) -> tuple[Floats, Floats]:
    """Gaussians of a distance, (E, 1) -> (E, RADIAL), and their slopes."""
    ratio = (reach / shortest) ** (1 / RADIAL)
    centre = shortest * ratio ** np.arange(RADIAL)
    width = centre * max(ratio - 1, 0.02)
    fade, dfade = _fade(d, reach)
    x = (d - centre) / width
    g = np.exp(-0.5 * x**2)
    return g * fade, g * dfade - x / width * g * fade


def _shell(d: Floats, reach: float) -> tuple[Floats, Floats]:
    """The densities' weights, short and long, (E, 1) -> (E, SHELLS), and their slopes."""
    decay = np.array([1.2, 0.4])
    fade, dfade = _fade(d, reach)
    g = np.exp(-decay * d)
    return g * fade, g * dfade - decay * g * fade
