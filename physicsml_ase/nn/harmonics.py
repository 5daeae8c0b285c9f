"""Real spherical harmonics of e3nn's convention (Geiger & Smidt, arXiv:2207.09453), polynomials of the coordinates.

Degrees follow each other, in each the orders m = -l .. l, with y as the polar axis, so that degree 1 is x, y, z. They
are component-normalised: the sum over m of Y_lm^2 is 2l + 1 on the unit sphere. Shapes: E edges, M = (lmax + 1)^2.
"""

import math
from functools import cache

import numpy as np
from torch import Tensor, cat

from physicsml_ase.nn.constants import Constants

Polynomial = dict[tuple[int, int, int], float]
"""Coefficients of x^a y^b z^c by (a, b, c)."""


def _times(p: Polynomial, q: Polynomial) -> Polynomial:
    out: Polynomial = {}
    for (a, b, c), u in p.items():
        for (d, e, f), v in q.items():
            key = (a + d, b + e, c + f)
            out[key] = out.get(key, 0.0) + u * v
    return out


def _sum(*terms: tuple[float, Polynomial]) -> Polynomial:
    out: Polynomial = {}
    for factor, p in terms:
        for key, value in p.items():
            out[key] = out.get(key, 0.0) + factor * value
    return out


X: Polynomial = {(1, 0, 0): 1.0}
Y: Polynomial = {(0, 1, 0): 1.0}
Z: Polynomial = {(0, 0, 1): 1.0}
SQUARED: Polynomial = {(2, 0, 0): 1.0, (0, 2, 0): 1.0, (0, 0, 2): 1.0}


@cache
def _legendre(degree: int, m: int) -> Polynomial:
    """r^(l-m) times the m-th derivative of P_l at y / r, by the recurrence of Legendre functions in l."""
    if degree == m:
        return {(0, 0, 0): float(math.prod(range(1, 2 * m, 2)))}
    first = (2 * degree - 1.0, _times(Y, _legendre(degree - 1, m)))
    if degree == m + 1:
        return _sum(first)
    second = (1.0 - degree - m, _times(SQUARED, _legendre(degree - 2, m)))
    return {k: v / (degree - m) for k, v in _sum(first, second).items()}


def harmonic(degree: int, m: int) -> Polynomial:
    """r^l Y_lm as a polynomial."""
    cos, sin = {(0, 0, 0): 1.0}, {}  # type: tuple[Polynomial, Polynomial]
    for _ in range(abs(m)):  # (z + i x)^|m|
        cos, sin = (
            _sum((1.0, _times(Z, cos)), (-1.0, _times(X, sin))),
            _sum((1.0, _times(Z, sin)), (1.0, _times(X, cos))),
        )
    ratio = math.factorial(degree - abs(m)) / math.factorial(degree + abs(m))
    norm = math.sqrt((2 * degree + 1) * ratio * (2 if m else 1))
    return _sum((norm, _times(sin if m < 0 else cos, _legendre(degree, abs(m)))))


@cache
def monomials(degree: int) -> list[tuple[int, int, int]]:
    """Exponents of all monomials of a degree: first those that x divides, then those in y and z alone."""
    return [(a, b, degree - a - b) for a in range(degree, -1, -1) for b in range(degree - a, -1, -1)]


class EdgeHarmonics(Constants):
    """Harmonics of unit vectors up to degree lmax; a zero vector has those of degree 0 only.

    Polynomials are not normalised inside: r Y_1m(u) is what a vector r u has in degree 1.
    """

    def __init__(self, lmax: int) -> None:
        super().__init__()
        self.lmax = lmax
        for degree in range(2, lmax + 1):
            rows = {term: k for k, term in enumerate(monomials(degree))}
            table = np.zeros((len(rows), 2 * degree + 1))
            for m in range(-degree, degree + 1):
                for term, value in harmonic(degree, m).items():
                    table[rows[term], m + degree] = value
            self.constant(f"table_{degree}", table)

    def forward(self, u_ij: Tensor) -> Tensor:
        """Harmonics of unit vectors, (E, 3) -> (E, M)."""
        x, y, z = u_ij.split(1, dim=1)
        parts = [u_ij.new_ones(u_ij.shape[0], 1), math.sqrt(3) * u_ij]
        powers = u_ij[:, :0] if self.lmax < 2 else u_ij
        for degree in range(2, self.lmax + 1):
            # in this order, those without x are y times those of a degree less without x, and z^l
            without = powers[:, -degree:]
            powers = cat([x * powers, y * without, z * without[:, -1:]], dim=1)
            parts.append(powers @ getattr(self, f"table_{degree}"))
        return cat(parts[: self.lmax + 1], dim=1)


@cache
def _exact(lmax: int) -> EdgeHarmonics:
    return EdgeHarmonics(lmax).double()


def spherical_harmonics(u_ij: Tensor, lmax: int) -> Tensor:
    """Harmonics of unit vectors, (E, 3) -> (E, M) in float64, for tests; Models have an `EdgeHarmonics`."""
    return _exact(lmax)(u_ij.double())
