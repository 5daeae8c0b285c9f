"""Equivariant polynomials of features up to degree lmax, of which MACE's contraction (arXiv:2206.07697) is made.

A polynomial of order nu is a tensor T (2L + 1, M, ..., M), symmetric in its nu last indices, with
f_m(A) = sum T_m,k,... A_k ..., M = (lmax + 1)^2, of which f has degree L and natural parity, as A has. All are made
by coupling one A after the other, and what depends linearly on those before is left out: always in the same order, so
that weights mean the same everywhere.
"""

from functools import cache
from itertools import combinations_with_replacement, permutations

import numpy as np
from numpy.typing import NDArray

from physicsml_ase.nn.couplings import clebsch_gordan

Floats = NDArray[np.float64]


@cache
def monomials(size: int, order: int) -> list[tuple[int, ...]]:
    """Products of `order` of `size` variables, each by the variables in it, ascending."""
    return list(combinations_with_replacement(range(size), order))


@cache
def coupled(lmax: int, order: int, degree: int) -> list[Floats]:
    """All couplings of `order` features to a degree, (2L + 1, M, ..., M), of either parity."""
    if order == 1:
        if degree > lmax:
            return []
        return [np.eye((lmax + 1) ** 2)[degree**2 : (degree + 1) ** 2]]
    out = []
    for before in range(lmax * (order - 1) + 1):
        for tensor in coupled(lmax, order - 1, before):
            for l in range(abs(before - degree), min(before + degree, lmax) + 1):
                grown = np.zeros((2 * degree + 1, *tensor.shape[1:], (lmax + 1) ** 2))
                c = clebsch_gordan(before, l, degree)
                grown[..., l * l : (l + 1) ** 2] = np.einsum("b...,bld->d...l", tensor, c)
                out.append(grown)
    return out


@cache
def symmetric_basis(lmax: int, order: int, degree: int) -> Floats:
    """A basis of the polynomials, (K, 2L + 1, number of monomials): coefficients of the monomials.

    Each has a mean square of about one for features of unit variance: the tensors' norm squared is (2L + 1) / nu!.
    """
    size = (lmax + 1) ** 2
    parity = np.array([(-1) ** l for l in range(lmax + 1) for _ in range(2 * l + 1)])
    terms = monomials(size, order)
    index = np.array(terms).T  # (order, P)
    natural = parity[index].prod(0) == (-1) ** degree
    counts = np.array([len(set(permutations(term))) for term in terms], float)
    basis: list[Floats] = []
    for tensor in coupled(lmax, order, degree):
        orders = list(permutations(range(order)))
        part = sum(tensor[(slice(None), *index[list(p)])] for p in orders) / len(orders)
        vector = (part * natural * np.sqrt(counts)).ravel()
        scale = np.linalg.norm(vector)
        if scale < 1e-9:
            continue
        vector /= scale
        for _ in range(2):  # twice, so that the basis is orthonormal to the last digit
            for known in basis:
                vector = vector - known * (known @ vector)
        left = np.linalg.norm(vector)
        if left > 1e-6:
            basis.append(vector / left)
    norm = np.sqrt((2 * degree + 1) / len(list(permutations(range(order)))))
    out = norm * np.array(basis).reshape(len(basis), 2 * degree + 1, len(terms)) * np.sqrt(counts)
    return np.where(np.abs(out) > 1e-13, out, 0.0)
