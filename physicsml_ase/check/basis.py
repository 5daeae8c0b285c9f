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


def design(frame: Frame, columns: Layout) -> Design:
    """Features of one frame."""
    assert frame.pairs is not None
    n, size = len(frame.atoms), columns.size
    near = frame.pairs.distance < columns.reach
    r = vectors(frame)[near]
    d = frame.pairs.distance[near][:, None]
    i, j = frame.pairs.i[near], frame.pairs.j[near]
    i, j, r, d = np.concatenate([i, j]), np.concatenate([j, i]), np.concatenate([r, -r]), np.tile(d, (2, 1))
    unit = r / d
    kind = np.searchsorted(columns.elements, frame.atoms.numbers)
    energy, virial = np.zeros(size), np.zeros((6, size))
    forces = np.zeros((n, 3, size), dtype=np.float32)
    densities = _densities(columns, i, kind[j], unit, d, n) if columns.kinds else None
    pair = columns.pair_of[kind[i], kind[j]]
    for number in np.unique(pair[pair >= 0]).tolist():
        e = np.flatnonzero(pair == number)
        value, slope = _radial(d[e], columns.shortest[number], columns.reach)
        block = slice(number * RADIAL, (number + 1) * RADIAL)
        energy[block] += 0.5 * value.sum(0)
        _put(forces, virial, block, 0.5 * slope[:, :, None] * unit[e, None, :], i[e], j[e], r[e])
    if densities is not None:
        first = columns.num_pairs * RADIAL
        width = SHELLS * ANGULAR
        told = kind if columns.kinds > 1 else np.zeros_like(kind)
        for z in np.unique(kind[i]).tolist():
            offset = first + z * columns.products * width
            atoms = np.flatnonzero(kind == z)
            for number, (a, b) in enumerate(_products(columns.kinds)):
                block = slice(offset + number * width, offset + (number + 1) * width)
                energy[block] += sum(_product(densities, atoms, a, b))
                for near_kind, other in {(a, b), (b, a)}:
                    e = np.flatnonzero((kind[i] == z) & (told[j] == near_kind))
                    if len(e):
                        factor = 2.0 if a == b else 1.0
                        slope = factor * _slopes(densities, i[e], other, unit[e], d[e], columns.reach)
                        _put(forces, virial, block, slope, i[e], j[e], r[e])
    return Design(energy, forces.reshape(3 * n, size), virial)


class _Densities(NamedTuple):
    rho: Floats  # (N, kinds, SHELLS)
    v: Floats  # (N, kinds, SHELLS, 3)
    t: Floats  # (N, kinds, SHELLS, 3, 3)


def _densities(columns: Layout, i: Ints, kind: Ints, unit: Floats, d: Floats, n: int) -> _Densities:
    if columns.kinds == 1:
        kind = np.zeros_like(kind)
    g, _ = _shell(d, columns.reach)
    vectors_ = np.concatenate(
        [np.ones((len(d), 1)), unit, (unit[:, :, None] * unit[:, None, :]).reshape(-1, 9)], 1
    )
    rows = csr_matrix(
        (np.ones(len(i)), (i * columns.kinds + kind, np.arange(len(i)))), (n * columns.kinds, len(i))
    )
    sums = rows @ (g[:, :, None] * vectors_[:, None, :]).reshape(len(i), SHELLS * 13)
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


def _put(forces: Singles, virial: Floats, block: slice, slope: Floats, i: Ints, j: Ints, r: Floats) -> None:
    """Add dE/dr_ij of edges, (E, p, 3), to forces and virial of the columns in `block`."""
    edges, p = len(i), slope.shape[1]
    flat = slope.reshape(edges, p * 3)
    one, at = np.ones(edges), np.arange(edges)
    spread = csr_matrix(
        (np.concatenate([one, -one]), (np.concatenate([i, j]), np.tile(at, 2))), (len(forces), edges)
    )
    forces[:, :, block] += (spread @ flat).reshape(len(forces), p, 3).transpose(0, 2, 1)
    whole = (r.T @ flat).reshape(3, p, 3)
    virial[:, block] += np.stack(
        [whole[a, :, b] for a, b in ((0, 0), (1, 1), (2, 2), (1, 2), (0, 2), (0, 1))]
    )


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
