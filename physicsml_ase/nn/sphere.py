"""Real spherical harmonics of unit vectors, their gradient, and products of functions on the sphere.

Harmonics are component-normalised (the mean of each square over the sphere is 1) and ordered by parity: first
the even degrees, then the odd ones, and x, y, z within degree 1. Products are taken pointwise on a quadrature
grid: a Gaunt product (Luo, Chen & Krishnapriyan, arXiv:2401.10216) of any order by one rule of quadrature, here
Lebedev's (Lebedev & Laikov, Dokl. Math. 59, 477, 1999), exact up to its degree, so that nothing of the symmetry is
lost. Shapes: lm-major (M, N, C), with M = (lmax + 1)^2.
"""

import math
from collections.abc import Iterable
from functools import cache
from itertools import combinations_with_replacement

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.integrate import lebedev_rule
from scipy.special import lpmv
from torch import Tensor

from physicsml_ase.graph import Graph, edge_vectors
from physicsml_ase.nn.constants import Constants
from physicsml_ase.nn.features import lengths_and_directions, segment_sum
from physicsml_ase.nn.pieces import joined, small_pieces

Floats = NDArray[np.float64]
ATOMS_IN_CACHE = 64
"""So many atoms at a time, of 32 channels, are about half a megabyte on a grid."""


def degrees(lmax: int) -> list[int]:
    """Degrees in the order in which they are kept: even ones first."""
    return [*range(0, lmax + 1, 2), *range(1, lmax + 1, 2)]


def degree_of_rows(lmax: int) -> list[int]:
    """Degree of each of the (lmax + 1)^2 harmonics, in order."""
    return [degree for degree in degrees(lmax) for _ in range(2 * degree + 1)]


def rows_up_to(degree: int, lmax: int) -> list[int]:
    """Rows, among the harmonics up to lmax, of those up to `degree`, in order."""
    return [row for row, its in enumerate(degree_of_rows(lmax)) if its <= degree]


def harmonics(directions: Floats, lmax: int) -> Floats:
    """Harmonics of unit vectors, (P, 3) -> (P, M), from associated Legendre functions."""
    x, y, z = directions.T
    phi = np.arctan2(y, x)
    columns = []
    for degree in degrees(lmax):
        for m in range(degree, 0, -1):
            ratio = math.factorial(degree - m) / math.factorial(degree + m)
            # lpmv has the Condon-Shortley phase, which is taken out, so that degree 1 is x, y, z
            radial = math.sqrt(2 * (2 * degree + 1) * ratio) * (-1) ** m * lpmv(m, degree, z)
            columns += [radial * np.cos(m * phi), radial * np.sin(m * phi)]
        columns.append(math.sqrt(2 * degree + 1) * lpmv(0, degree, z))
    return np.stack(columns, axis=1)


def quadrature(degree: int) -> tuple[Floats, Floats]:
    """Half of Lebedev's points (G, 3), and their weights (G,) which sum to 1/2.

    With the antipodes, the mean over the sphere of every polynomial up to `degree` is exact.
    """
    for order in range(degree, 132):  # rules exist for most odd orders only
        try:
            points, weights = lebedev_rule(order)
        except (ValueError, NotImplementedError):
            continue
        points = points.T
        # the first non-zero coordinate decides which of two antipodes stays
        sign = np.sign(np.where(np.abs(points) > 1e-12, points, 0.0))
        first = np.where(sign[:, 0] != 0, sign[:, 0], np.where(sign[:, 1] != 0, sign[:, 1], sign[:, 2]))
        return points[first > 0], weights[first > 0] / weights.sum()
    raise ValueError(f"there is no Lebedev rule of degree {degree}")


@cache
def _monomials(degree: int) -> list[tuple[int, ...]]:
    """Products of `degree` coordinates, each by the axes in it."""
    return list(combinations_with_replacement(range(3), degree))


def _polynomials(lmax: int) -> Floats:
    """Harmonics (columns) as coefficients of all monomials up to lmax (rows), for unit vectors."""
    points = np.random.default_rng(0).normal(size=(8 * (lmax + 1) ** 2, 3))
    points /= np.linalg.norm(points, axis=1, keepdims=True)
    values, rows = harmonics(points, lmax), np.array(degree_of_rows(lmax))
    blocks = []
    for degree in range(lmax + 1):
        powers = np.stack([points[:, list(term)].prod(axis=1) for term in _monomials(degree)], axis=1)
        fit, *_ = np.linalg.lstsq(powers, np.where(rows == degree, values, 0.0), rcond=None)
        blocks.append(np.where(np.abs(fit) > 1e-12, fit, 0.0))
    return np.concatenate(blocks)


def _derivative(lmax: int, polynomials: Floats) -> Floats:
    """d(r^l Y_lm)/d(x, y, z), which has degree l - 1, in the harmonics below lmax: a matrix (M, 3 lmax^2)."""
    points, weights = quadrature(2 * lmax)
    points, weights = np.concatenate([points, -points]), np.concatenate([weights, weights])
    terms = [term for degree in range(lmax + 1) for term in _monomials(degree)]
    below = harmonics(points, lmax - 1) * weights[:, None]
    blocks = []
    for axis in range(3):
        slopes = np.zeros((len(points), len(terms)))
        for k, term in enumerate(terms):
            if axis in term:
                rest = list(term)
                rest.remove(axis)
                slopes[:, k] = term.count(axis) * points[:, rest].prod(axis=1)
        blocks.append((slopes @ polynomials).T @ below)
    matrix = np.stack(blocks, axis=1)  # (M, 3, lmax^2)
    return np.where(np.abs(matrix) > 1e-12, matrix, 0.0).reshape(len(matrix), -1)


class SphericalHarmonics(Constants):
    """Harmonics of unit vectors as polynomials of their coordinates, and their gradient."""

    mean: Tensor  # (M,), the only part of degree 0
    polynomials: Tensor
    derivative: Tensor
    lower: Tensor
    axes: Tensor  # (3 lmax^2, 3), which sums over what belongs to each axis

    def __init__(self, lmax: int) -> None:
        super().__init__()
        self.lmax = lmax
        polynomials = _polynomials(lmax)
        self.constant("mean", polynomials[0])
        self.constant("polynomials", polynomials[1:])
        self.constant("derivative", _derivative(lmax, polynomials))
        self.constant("lower", np.array(rows_up_to(lmax - 1, lmax)))
        self.constant("axes", np.eye(3).repeat(lmax**2, axis=0))
        for degree in range(2, lmax + 1):  # each monomial is one of a degree less times a coordinate
            places = {term: k for k, term in enumerate(_monomials(degree - 1))}
            self.constant(f"shorter_{degree}", np.array([places[term[:-1]] for term in _monomials(degree)]))
            self.constant(f"axis_{degree}", np.array([term[-1] for term in _monomials(degree)]))

    def forward(self, u: Tensor) -> Tensor:
        """Harmonics of unit vectors, (E, 3) -> (E, M). A zero vector has those of degree 0 only."""
        u = u.T.contiguous()  # rows of numbers, one for each edge, are quicker to pick than columns
        terms = [u]
        for degree in range(2, self.lmax + 1):
            shorter, axis = getattr(self, f"shorter_{degree}"), getattr(self, f"axis_{degree}")
            terms.append(terms[-1].index_select(0, shorter) * u.index_select(0, axis))
        return torch.addmm(self.mean, torch.cat(terms).T, self.polynomials)

    def gradient(self, y: Tensor, g: Tensor) -> Tensor:
        """Gradient at unit vectors of sum_lm g_lm r^l Y_lm, from harmonics y and g (E, M) there, (E, 3).

        Its part along the unit vector is sum_lm l g_lm Y_lm; the rest is the gradient over the sphere.
        """
        lower = y.T.index_select(0, self.lower)  # (lmax^2, E)
        of_axes = (self.derivative.T @ g.T).unflatten(0, (3, -1)) * lower
        return of_axes.flatten(0, 1).T @ self.axes  # a sum over so few numbers takes longer


def angular_power(batches: Iterable[Graph], cutoff: float, lmax: int) -> Tensor:
    """Mean squares of the components of each degree 1..lmax of the density of neighbours, (lmax,) float64.

    Neighbours count by a cosine that falls to zero at the cut-off [Å]; each atom's squares are divided by degree 0's.
    """
    sphere, of_row = SphericalHarmonics(lmax).double(), torch.tensor(degree_of_rows(lmax))
    total = torch.zeros(lmax + 1, dtype=torch.float64)
    for graph in batches:
        r_ij = edge_vectors(graph).double()
        d, u = lengths_and_directions(r_ij)
        near = 0.5 * (1 + torch.cos(math.pi * (d / cutoff).clamp(max=1.0))) * (d > 0)
        density = segment_sum(near * sphere(u), graph.edge_index[0], graph.positions.shape[0])  # (N, M)
        power = segment_sum(density.square().T, of_row, lmax + 1)  # (lmax + 1, N)
        total += (power / power[0].clamp_min(1e-12)).sum(1)
    return (total / (2 * torch.arange(lmax + 1) + 1))[1:]


class SphereProduct(Constants):
    """Powers f, f^2, ..., f^nu of a function on the sphere, as harmonics up to degree L.

    The rule is exact for the product's degree nu lmax + L, so that the result turns with the function to round-off.
    G points.
    """

    inward: Tensor  # (G, M), harmonics of f at the points
    outward: Tensor  # (G, (L + 1)^2), those of the products
    weighted_inward: Tensor  # (M, G)
    weighted_outward: Tensor  # ((L + 1)^2, G)
    kept: Tensor  # rows of f up to degree L
    into_kept: Tensor  # (M, (L + 1)^2), a one for each of them

    def __init__(self, lmax: int, nu: int, L: int) -> None:
        super().__init__()
        self.nu, self.L = nu, L
        half, weights = quadrature(nu * lmax + L)
        points, weights = np.concatenate([half, -half]), np.concatenate([weights, weights])
        # f has unit variance where all its coefficients have
        inward, outward = harmonics(points, lmax) / (lmax + 1), harmonics(points, L)
        self.constant("inward", inward)
        self.constant("outward", outward)
        self.constant("weighted_inward", (inward * weights[:, None]).T)
        self.constant("weighted_outward", (outward * weights[:, None]).T)
        kept = np.array(rows_up_to(L, lmax))
        self.constant("kept", kept)
        self.constant("into_kept", np.eye((lmax + 1) ** 2)[:, kept])

    def forward(self, a: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Coefficients (M, N, C) to those of all powers, side by side, ((L + 1)^2, N, nu C), and f on the grid.

        The grid's values are (G, n C) for n atoms at a time: all of them, but for inference on a CPU few enough to
        stay in its cache.
        """
        small = small_pieces(a) and a.shape[1] > ATOMS_IN_CACHE
        pieces = a.split(ATOMS_IN_CACHE, dim=1) if small else [a]
        powers, on_grid = zip(*map(self._powers, pieces))
        return joined(powers, dim=1), list(on_grid)

    def _powers(self, a: Tensor) -> tuple[Tensor, Tensor]:
        rows, n, c = a.shape
        power = f = self.inward @ a.reshape(rows, n * c)
        powers = [a[:1] if self.L == 0 else a.index_select(0, self.kept)]
        for _ in range(2, self.nu + 1):
            power = power * f
            powers.append((self.weighted_outward @ power).view(-1, n, c))
        return torch.cat(powers, dim=-1), f

    def reverse(self, on_grid: list[Tensor], g: Tensor) -> Tensor:
        """Gradient to the coefficients, (M, N, C), from that to the powers, ((L + 1)^2, N, nu C)."""
        pieces = g.split(ATOMS_IN_CACHE, dim=1) if len(on_grid) > 1 else [g]
        return joined([self._reverse(f, piece) for f, piece in zip(on_grid, pieces)], dim=1)

    def _reverse(self, f: Tensor, g: Tensor) -> Tensor:
        outs, n, c = g.shape[0], g.shape[1], g.shape[2] // self.nu
        direct, *of_powers = (of_power.reshape(outs, n * c) for of_power in g.chunk(self.nu, dim=-1))
        if not of_powers:
            return (self.into_kept @ direct).to(g.dtype).view(-1, n, c)  # autocast may have made another type
        slope = self._on_grid(of_powers[-1])  # sum_k k f^(k-1) v_k by Horner's rule, half of it over f
        for power in range(self.nu - 1, 1, -1):
            v = self._on_grid(of_powers[power - 2])
            slope = torch.addcmul(v, slope, f, value=(power + 1) / power)
        g_a = torch.addmm(self.into_kept @ direct, self.weighted_inward, slope * f, alpha=2)
        return g_a.to(g.dtype).view(-1, n, c)

    def _on_grid(self, v: Tensor) -> Tensor:
        """Values at the points of coefficients up to degree L, (.., n C); one for all points where L = 0."""
        return v if self.L == 0 else self.outward @ v  # Y_00 = 1
