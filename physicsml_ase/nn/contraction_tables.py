"""Coefficients of MACE's symmetric contraction, in the blocks of its eight classes (`nn.contraction`).

Shapes: M = (lmax + 1)^2 features, m components of an output, K couplings, Q monomials.
"""

from collections.abc import Sequence

import numpy as np

from physicsml_ase.nn.harmonics import harmonic
from physicsml_ase.nn.polynomials import Floats, monomials

CLASSES = 8


def reflections(lmax: int) -> list[int]:
    """Class of each harmonic: a bit for each axis whose reflection changes its sign."""
    exponents = [next(iter(harmonic(l, m))) for l in range(lmax + 1) for m in range(-l, l + 1)]
    return [sum((power % 2) << axis for axis, power in enumerate(term)) for term in exponents]


def counts_of(classes: Sequence[int]) -> list[int]:
    """How many there are of each class."""
    return np.bincount(np.array(classes, int), minlength=CLASSES).tolist()


def full_tables(basis: Floats, size: int, order: int, places: dict[tuple[int, ...], int]) -> Floats:
    """T as V needs it, (K, m, M, Q): each monomial is shared by the variables in it, one of which is A_k."""
    out = np.zeros((*basis.shape[:2], size, len(places)))
    for p, term in enumerate(monomials(size, order)):
        for k in set(term):
            rest = list(term)
            rest.remove(k)
            out[:, :, k, places[tuple(rest)]] += basis[:, :, p] * term.count(k) / order
    return out


def class_blocks(
    full: Floats, rows: Sequence[tuple[int, int]], counts: Sequence[int], terms: Sequence[int]
) -> Floats:
    """The blocks of each class of T (K, m, M, Q), one after the other: for its `counts` of the rows (m, k) and of
    the terms, (K, rows x terms of all classes)."""
    blocks, row, term = [], 0, 0
    for num_rows, num_terms in zip(counts, terms):
        ms, ks = np.array(rows[row : row + num_rows], int).reshape(-1, 2).T
        blocks.append(full[:, ms, ks, term : term + num_terms].reshape(len(full), -1))
        row, term = row + num_rows, term + num_terms
    return np.concatenate(blocks, axis=1)
