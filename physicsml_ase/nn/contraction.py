"""MACE's symmetric contraction (arXiv:2206.07697, eq. 10 and 11): powers of an atom's features, coupled and weighted.

    B_m = sum_nu sum_k... T^nu_m,k...(z, c) A_k A_... = sum_k A_k V_mk,   V = sum_nu V^nu,

with weights for each element z and channel c. V^nu are matrix products of the monomials of order nu - 1 and T, which
is symmetric, so that dB_m/dA_k = sum_nu nu V^nu_mk comes with them. Shapes: Z elements of n atoms each (padded), C
channels, M = (lmax + 1)^2 features, m all components of the outputs, Q monomials.
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn

from physicsml_ase.nn.constants import Constants
from physicsml_ase.nn.polynomials import Floats, monomials, symmetric_basis


class SymmetricContraction(Constants):
    """Features up to degree lmax to features up to degree L, of the same channels."""

    def __init__(self, lmax: int, L: int, order: int, channels: int, num_elements: int) -> None:
        super().__init__()
        self.order, self.L, self.size = order, L, (lmax + 1) ** 2
        self.weights = nn.ParameterDict()
        for nu in range(1, order + 1):
            for degree in range(L + 1):
                basis = symmetric_basis(lmax, nu, degree)
                if len(basis):
                    self.constant(f"table_{nu}_{degree}", _tables(basis, self.size, nu))
                    weight = torch.randn(num_elements, channels, len(basis)) / len(basis)
                    self.weights[f"{nu}_{degree}"] = nn.Parameter(weight)
        for nu in range(2, order):
            shorter = {term: k for k, term in enumerate(monomials(self.size, nu - 1))}
            terms = monomials(self.size, nu)
            self.constant(f"shorter_{nu}", np.array([shorter[term[:-1]] for term in terms]))
            self.constant(f"last_{nu}", np.array([term[-1] for term in terms]))

    def tensors(self, elements: Tensor | None = None) -> list[Tensor]:
        """T of each order for the elements (all of them where None), (Z C, m M, Q)."""
        out = []
        for nu in range(1, self.order + 1):
            parts = []
            for degree in range(self.L + 1):
                rows = (2 * degree + 1) * self.size
                if f"{nu}_{degree}" in self.weights:
                    w = self.weights[f"{nu}_{degree}"]
                    w = (w if elements is None else w.index_select(0, elements)).flatten(0, 1)  # (Z C, K)
                    parts.append((w @ getattr(self, f"table_{nu}_{degree}")).unflatten(1, (rows, -1)))
                else:
                    w = next(iter(self.weights.values()))
                    num = (w.shape[0] if elements is None else elements.shape[0]) * w.shape[1]
                    parts.append(w.new_zeros(num, rows, len(monomials(self.size, nu - 1))))
            out.append(torch.cat(parts, dim=1) if len(parts) > 1 else parts[0])
        return out

    def forward(self, a: Tensor, tensors: Sequence[Tensor]) -> Tensor:
        """(M, Z C, n) -> (m, Z C, n)."""
        return Contract.apply(a, self, *tensors)

    def powers(self, a: Tensor) -> list[Tensor]:
        """Monomials of order 1 .. nu - 1, (Q, Z C, n) each."""
        out = [a]
        for nu in range(2, self.order):
            shorter, last = getattr(self, f"shorter_{nu}"), getattr(self, f"last_{nu}")
            out.append(out[-1].index_select(0, shorter) * a.index_select(0, last))
        return out[: self.order - 1]

    def values(self, a: Tensor, tensors: Sequence[Tensor]) -> list[Tensor]:
        """V of each order, (Z C, m, M, n); of the first order n = 1."""
        out = [tensors[0].unflatten(1, (-1, self.size))]
        for power, tensor in zip(self.powers(a), tensors[1:]):
            out.append(torch.bmm(tensor, power.transpose(0, 1)).unflatten(1, (-1, self.size)))
        return out


class Contract(torch.autograd.Function):
    """The contraction, whose derivative to the features needs nothing but what it computed."""

    @staticmethod
    def forward(ctx, a: Tensor, of: SymmetricContraction, *tensors: Tensor) -> Tensor:  # type: ignore[no-untyped-def, override]
        total, slope = _total_and_slope(of.values(a, tensors))
        ctx.of = of
        ctx.save_for_backward(a, slope, *tensors)
        return (total * a.transpose(0, 1)[:, None]).sum(2).transpose(0, 1)  # (m, Z C, n)

    @staticmethod
    def backward(ctx, g: Tensor):  # type: ignore[no-untyped-def, override]
        a, slope, *tensors = ctx.saved_tensors
        g = g.transpose(0, 1)  # (Z C, m, n)
        if torch.is_grad_enabled():  # it will be differentiated again
            _, slope = _total_and_slope(ctx.of.values(a, tensors))
        g_a = (slope * g[:, :, None]).sum(1).transpose(0, 1)
        g_tensors: list[Tensor | None] = [None] * len(tensors)
        if any(ctx.needs_input_grad[2:]):
            outer = (g[:, :, None] * a.transpose(0, 1)[:, None]).flatten(1, 2)  # (Z C, m M, n)
            g_tensors[0] = outer.sum(2, keepdim=True)
            for k, power in enumerate(ctx.of.powers(a)):
                g_tensors[k + 1] = torch.bmm(outer, power.permute(1, 2, 0))
        return g_a, None, *g_tensors


def _total_and_slope(values: list[Tensor]) -> tuple[Tensor, Tensor]:
    """sum V^nu and sum nu V^nu."""
    total = slope = values[0]
    for nu, value in enumerate(values[1:], 2):
        total, slope = value + total, torch.add(slope, value, alpha=nu)
    return total, slope


def _tables(basis: Floats, size: int, order: int) -> Floats:
    """T as V needs it, (K, m M Q): each monomial is shared by the variables in it, one of which is A_k."""
    places = {term: k for k, term in enumerate(monomials(size, order - 1))}
    out = np.zeros((*basis.shape[:2], size, len(places)))
    for p, term in enumerate(monomials(size, order)):
        for k in set(term):
            rest = list(term)
            rest.remove(k)
            out[:, :, k, places[tuple(rest)]] += basis[:, :, p] * term.count(k) / order
    return out.reshape(len(basis), -1)
