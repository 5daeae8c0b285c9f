"""Real spherical harmonics of unit vectors, their gradient, and products of functions on the sphere.

Harmonics are component-normalised (the mean of each square over the sphere is 1) and ordered by parity: first
the even degrees, then the odd ones, and x, y, z within degree 1. Products are taken pointwise on a quadrature
grid: a Gaunt product (Luo, Chen & Krishnapriyan, arXiv:2401.10216) of any order by one rule of quadrature, here
Lebedev's (Lebedev & Laikov, Dokl. Math. 59, 477, 1999), exact up to its degree, so that nothing of the symmetry is
lost. The grid has a point's antipode with the point, and there an even function is the same and an odd one
opposite: half of the points do. Shapes: lm-major (M, N, C), with M = (lmax + 1)^2.
"""

import math
from functools import cache
from itertools import combinations_with_replacement
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.integrate import lebedev_rule
from scipy.special import lpmv
from torch import Tensor

from physicsml_ase.nn.constants import Constants

Floats = NDArray[np.float64]


def degrees(lmax: int) -> list[int]:
    """Degrees in the order in which they are kept: even ones first."""
    return [*range(0, lmax + 1, 2), *range(1, lmax + 1, 2)]


def degree_of_rows(lmax: int) -> list[int]:
    """Degree of each of the (lmax + 1)^2 harmonics, in order."""
    return [degree for degree in degrees(lmax) for _ in range(2 * degree + 1)]


def rows_up_to(degree: int, lmax: int) -> list[int]:
    """Rows, among the harmonics up to lmax, of those up to `degree`, in order."""
    return [row for row, its in enumerate(degree_of_rows(lmax)) if its <= degree]


def num_even(lmax: int) -> int:
    """How many of the harmonics up to lmax are even."""
    return sum(2 * degree + 1 for degree in range(0, lmax + 1, 2))


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

    polynomials: Tensor
    derivative: Tensor
    row_degrees: Tensor
    lower: Tensor

    def __init__(self, lmax: int) -> None:
        super().__init__()
        self.lmax = lmax
        polynomials = _polynomials(lmax)
        self.constant("polynomials", polynomials)
        self.constant("derivative", _derivative(lmax, polynomials))
        self.constant("row_degrees", np.array(degree_of_rows(lmax), float))
        self.constant("lower", np.array(rows_up_to(lmax - 1, lmax)))
        for degree in range(2, lmax + 1):  # each monomial is one of a degree less times a coordinate
            places = {term: k for k, term in enumerate(_monomials(degree - 1))}
            self.constant(f"shorter_{degree}", np.array([places[term[:-1]] for term in _monomials(degree)]))
            self.constant(f"axis_{degree}", np.array([term[-1] for term in _monomials(degree)]))

    def forward(self, u: Tensor) -> Tensor:
        """Harmonics of unit vectors, (E, 3) -> (E, M). A zero vector has those of degree 0 only."""
        terms = [torch.ones_like(u[:, :1]), u]
        for degree in range(2, self.lmax + 1):
            shorter, axis = getattr(self, f"shorter_{degree}"), getattr(self, f"axis_{degree}")
            terms.append(terms[-1].index_select(1, shorter) * u.index_select(1, axis))
        return torch.cat(terms, dim=1) @ self.polynomials

    def tangent(self, u: Tensor, y: Tensor, g: Tensor) -> Tensor:
        """Gradient over the unit sphere of sum_lm g_lm Y_lm; u (E, 3), its harmonics y and g (E, M) -> (E, 3).

        It is the gradient of the homogeneous polynomials without its part along u, which is l Y_lm.
        """
        lower = y.index_select(1, self.lower)  # (E, lmax^2)
        gradient = ((g @ self.derivative).unflatten(1, (3, -1)) * lower[:, None, :]).sum(-1)  # (E, 3)
        return gradient - (g * y * self.row_degrees).sum(-1, keepdim=True) * u


class OnGrid(NamedTuple):
    """A function at half of the grid's points, for the reverse pass: its even and its odd part, (G, N C) each."""

    even: Tensor
    odd: Tensor


class SphereProduct(Constants):
    """Powers f, f^2, ..., f^nu of a function on the sphere, as harmonics up to degree L.

    The rule is exact for the product's degree nu lmax + L, so that the result turns with the function to
    round-off. With e and o the even and odd part of a function, (e, o)(e', o') = (ee' + oo', eo' + oe').
    """

    to_even: Tensor
    to_odd: Tensor
    from_even: Tensor
    from_odd: Tensor

    def __init__(self, lmax: int, nu: int, L: int) -> None:
        super().__init__()
        self.nu, self.num_even, self.even_out = nu, num_even(lmax), num_even(L)
        self.odd_out = (L + 1) ** 2 - self.even_out
        points, weights = quadrature(nu * lmax + L)
        # f has unit variance where all its coefficients have
        inward = harmonics(points, lmax) / (lmax + 1)
        outward = harmonics(points, L) * (2 * weights[:, None])
        self.constant("to_even", inward[:, : self.num_even])
        self.constant("to_odd", inward[:, self.num_even :])
        self.constant("from_even", outward[:, : self.even_out].T)
        self.constant("from_odd", outward[:, self.even_out :].T)

    def forward(self, a: Tensor) -> tuple[Tensor, OnGrid]:
        """Coefficients (M, N, C) to those of all powers, side by side, ((L + 1)^2, N, nu C)."""
        _, n, c = a.shape
        e = self.to_even @ a[: self.num_even].reshape(self.num_even, n * c)  # (G, N C)
        o = self.to_odd @ a[self.num_even :].reshape(-1, n * c)
        even_out = [a[: self.even_out]]
        odd_out = [a[self.num_even : self.num_even + self.odd_out]]
        even, odd = e, o
        for power in range(2, self.nu + 1):
            odd_wanted = self.odd_out > 0 or power < self.nu
            even, odd = even * e + odd * o, even * o + odd * e if odd_wanted else odd
            even_out.append((self.from_even @ even).view(-1, n, c))
            if self.odd_out:
                odd_out.append((self.from_odd @ odd).view(-1, n, c))
        out = torch.cat(even_out, dim=-1)
        if self.odd_out:
            out = torch.cat([out, torch.cat(odd_out, dim=-1)])
        return out, OnGrid(e, o)

    def reverse(self, on_grid: OnGrid, g: Tensor) -> Tensor:
        """Gradient to the coefficients, (M, N, C), from that to the powers, ((L + 1)^2, N, nu C)."""
        e, o = on_grid
        n, c = g.shape[1], g.shape[2] // self.nu
        direct, *of_powers = g.split(c, dim=-1)
        # sum_k k f^(k-1) v_k by Horner's rule, in even and odd parts
        even = odd = None
        for power in range(self.nu, 1, -1):
            v = of_powers[power - 2]
            v_even = (power * self.from_even.T) @ v[: self.even_out].reshape(self.even_out, n * c)
            v_odd = None
            if self.odd_out:
                v_odd = (power * self.from_odd.T) @ v[self.even_out :].reshape(self.odd_out, n * c)
            if even is not None:
                v_even = v_even + even
                v_odd = odd if v_odd is None else v_odd + odd
            even, odd = v_even * e, v_even * o
            if v_odd is not None:
                even, odd = even + v_odd * o, odd + v_odd * e
        if even is None or odd is None:  # nu = 1
            even, odd = torch.zeros_like(e), torch.zeros_like(o)
        even = (self.to_even.T @ even).view(-1, n, c)
        odd = (self.to_odd.T @ odd).view(-1, n, c)
        parts = [even[: self.even_out] + direct[: self.even_out], even[self.even_out :]]
        if self.odd_out:
            parts += [odd[: self.odd_out] + direct[self.even_out :]]
        return torch.cat([*parts, odd[self.odd_out :]])
