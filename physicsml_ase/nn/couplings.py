"""How irreducible representations of O(3) couple: Clebsch-Gordan tensors of e3nn's convention, and irreps as text.

A tensor C of `clebsch_gordan(l1, l2, l3)` is invariant under rotations of all three indices, has norm 1, and the sign
and order of e3nn's `wigner_3j` (Geiger & Smidt, arXiv:2207.09453), which is needed to read weights of models that
were trained with it: Racah's formula, brought to real harmonics. Up to its version 0.4 the signs were others, which
`clebsch_gordan_0_4` has: MACE is still trained with those.
"""

import math
import re
from functools import cache
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from physicsml_ase.conventions import InputError


class Irrep(NamedTuple):
    """One irreducible representation, such as 1o: degree and parity."""

    l: int
    p: int  # 1 or -1

    @property
    def dim(self) -> int:
        return 2 * self.l + 1

    def __str__(self) -> str:
        return f"{self.l}{'e' if self.p == 1 else 'o'}"

    def times(self, other: "Irrep") -> list["Irrep"]:
        """What the product of the two contains, by degree."""
        return [Irrep(l, self.p * other.p) for l in range(abs(self.l - other.l), self.l + other.l + 1)]


class MulIrrep(NamedTuple):
    """So many channels of one irrep."""

    mul: int
    ir: Irrep


def parse_irreps(text: str) -> tuple[MulIrrep, ...]:
    """The terms of "32x0e + 32x1o", in order; "1o" is one channel."""
    terms = []
    for term in text.split("+"):
        match = re.fullmatch(r"\s*(?:(\d+)\s*x\s*)?(\d+)\s*([eo])\s*", term)
        if match is None:
            raise InputError(f"irreps {text!r}: {term.strip()!r} is not like 32x0e or 32x1o")
        mul, l, p = match.groups()
        terms.append(MulIrrep(int(mul or 1), Irrep(int(l), 1 if p == "e" else -1)))
    return tuple(terms)


def irreps_text(irreps: tuple[MulIrrep, ...]) -> str:
    """The inverse of `parse_irreps`."""
    return "+".join(f"{mul}x{ir}" for mul, ir in irreps)


@cache
def clebsch_gordan(l1: int, l2: int, l3: int) -> NDArray[np.float64]:
    """The invariant tensor of three degrees, (2 l1 + 1, 2 l2 + 1, 2 l3 + 1), norm 1. Not to be written to."""
    if not abs(l1 - l2) <= l3 <= l1 + l2:
        raise ValueError(f"degrees {l1}, {l2} do not couple to {l3}")
    standard = np.zeros((2 * l1 + 1, 2 * l2 + 1, 2 * l3 + 1))
    for m1 in range(-l1, l1 + 1):
        for m2 in range(max(-l2, -l3 - m1), min(l2, l3 - m1) + 1):
            standard[l1 + m1, l2 + m2, l3 + m1 + m2] = _racah(l1, m1, l2, m2, l3, m1 + m2)
    q1, q2, q3 = map(_to_complex, (l1, l2, l3))
    real = np.einsum("ij,kl,nm,ikn->jlm", q1, q2, q3.conj(), standard).real
    real[np.abs(real) < 1e-14] = 0.0
    real /= np.linalg.norm(real)
    real.setflags(write=False)
    return real


@cache
def clebsch_gordan_0_4(l1: int, l2: int, l3: int) -> NDArray[np.float64]:
    """As `clebsch_gordan`, with the sign of e3nn 0.4: by the first entry of the tensor with ascending degrees."""
    ls = (l1, l2, l3)
    order = sorted(range(3), key=lambda k: ls[k])
    ascending = clebsch_gordan(*(ls[k] for k in order))
    decides = ascending[tuple(ls[k] for k in order)]  # all orders m = 0
    if decides == 0:
        decides = ascending[ascending != 0][0]
    odd = [(0, 2, 1), (1, 0, 2), (2, 1, 0)]
    sign = np.sign(decides) * (-1 if tuple(order) in odd and sum(ls) % 2 else 1)
    out = sign * ascending.transpose(np.argsort(order))
    out.setflags(write=False)
    return out


def _racah(j1: int, m1: int, j2: int, m2: int, j3: int, m3: int) -> float:
    """<j1 m1 j2 m2 | j3 m3>, from whole numbers up to the last step."""
    f = math.factorial
    numerator = (2 * j3 + 1) * f(j3 + j1 - j2) * f(j3 - j1 + j2) * f(j1 + j2 - j3)
    for j, m in ((j1, m1), (j2, m2), (j3, m3)):
        numerator *= f(j + m) * f(j - m)
    total, scale = 0, f(j1 + j2 + j3 + 1)  # a common multiple of all denominators' parts keeps the sum whole
    first = max(0, j2 - j3 - m1, j1 - j3 + m2)
    for k in range(first, min(j1 + j2 - j3, j1 - m1, j2 + m2) + 1):
        parts = (k, j1 + j2 - j3 - k, j1 - m1 - k, j2 + m2 - k, j3 - j2 + m1 + k, j3 - j1 - m2 + k)
        total += (-1) ** k * (scale**6 // math.prod(map(f, parts)))
    return math.sqrt(numerator / scale) * float(total / scale**6) if total else 0.0


def _to_complex(l: int) -> NDArray[np.complex128]:
    """Real harmonics (columns) to complex ones (rows), with the factor (-i)^l that makes couplings real."""
    q = np.zeros((2 * l + 1, 2 * l + 1), complex)
    q[l, l] = 1
    for m in range(1, l + 1):
        q[l - m, l + m], q[l - m, l - m] = math.sqrt(0.5), -1j * math.sqrt(0.5)
        q[l + m, l + m], q[l + m, l - m] = (-1) ** m * math.sqrt(0.5), 1j * (-1) ** m * math.sqrt(0.5)
    return (-1j) ** l * q
