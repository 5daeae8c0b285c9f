"""MACE's symmetric contraction (arXiv:2206.07697, eq. 10 and 11): powers of an atom's features, coupled and weighted.

    B_m = sum_nu sum_k... T^nu_m,k...(z, c) A_k A_... = sum_k A_k V_mk,   V = sum_nu V^nu,

with weights for each element z and channel c. V^nu are matrix products of the monomials of order nu - 1 and T, which
is symmetric, so that dB_m/dA_k = sum_nu nu V^nu_mk comes with them. A harmonic is even or odd under each of the three
reflections x -> -x, y -> -y, z -> -z, and so are products: of the eight classes that makes, a monomial's must be that
of A_k times that of B_m. V is made of eight small blocks; seven eighths of T are zero and never there.

Shapes: Z elements of n atoms each (padded), C channels, M = (lmax + 1)^2 features, m all components of the outputs,
R = m M rows (m, k) by class, Q monomials.
"""

from collections.abc import Sequence
from functools import reduce
from operator import xor

import numpy as np
import torch
from torch import Tensor, nn

from physicsml_ase.nn.constants import Constants
from physicsml_ase.nn.contraction_tables import CLASSES, class_blocks, counts_of, full_tables, reflections
from physicsml_ase.nn.picks import Pick
from physicsml_ase.nn.polynomials import monomials, symmetric_basis


class SymmetricContraction(Constants):
    """Features up to degree lmax to features up to degree L, of the same channels."""

    rows_k: Tensor
    rows_m: Tensor
    of_m: Tensor
    of_k: Tensor

    def __init__(self, lmax: int, L: int, order: int, channels: int, num_elements: int) -> None:
        super().__init__()
        self.order, self.size, num_out = order, (lmax + 1) ** 2, (L + 1) ** 2
        classes = reflections(max(lmax, L))
        # rows and monomials of one class follow each other
        rows = [(m, k) for m in range(num_out) for k in range(self.size)]
        rows.sort(key=lambda row: classes[row[0]] ^ classes[row[1]])
        self.num_rows = counts_of([classes[m] ^ classes[k] for m, k in rows])
        self.constant("rows_k", np.array([k for _, k in rows]))
        self.constant("rows_m", np.array([m for m, _ in rows]))
        self.constant("of_m", np.equal.outer(range(num_out), [m for m, _ in rows]).astype(float))
        self.constant("of_k", np.equal.outer(range(self.size), [k for _, k in rows]).astype(float))
        self.num_terms = [[1] + (CLASSES - 1) * [0]]
        by_order: list[dict[tuple[int, ...], int]] = [{(): 0}]
        self.picks, self.lasts = nn.ModuleList(), nn.ModuleList()
        for nu in range(1, order):
            terms = sorted(monomials(self.size, nu), key=lambda term: reduce(xor, (classes[k] for k in term)))
            self.num_terms.append(counts_of([reduce(xor, (classes[k] for k in term)) for term in terms]))
            before = by_order[-1]
            self.picks.append(Pick(np.array([before[term[:-1]] for term in terms]), len(before)))
            self.lasts.append(Pick(np.array([term[-1] for term in terms]), self.size))
            by_order.append({term: place for place, term in enumerate(terms)})
        self.weights = nn.ParameterDict()
        self.parts: list[dict[str, list[int]]] = []
        for nu in range(1, order + 1):
            self.parts.append({})
            for degree in range(L + 1):
                basis = symmetric_basis(lmax, nu, degree)
                if not len(basis):
                    continue
                full = full_tables(basis, self.size, nu, by_order[nu - 1])  # (K, 2l + 1, M, Q)
                own = [(m - degree**2, k) for m, k in rows if degree**2 <= m < (degree + 1) ** 2]
                counts = counts_of(
                    [classes[m] ^ classes[k] for m, k in rows if degree**2 <= m < (degree + 1) ** 2]
                )
                blocks = class_blocks(full, own, counts, self.num_terms[nu - 1])
                self.constant(f"table_{nu}_{degree}", blocks)
                self.parts[-1][f"{nu}_{degree}"] = counts
                weight = torch.randn(num_elements, channels, len(basis)) / len(basis)
                self.weights[f"{nu}_{degree}"] = nn.Parameter(weight)

    def tensors(self, elements: Tensor | None = None) -> list[Tensor | None]:
        """T of each order and class for the elements (all of them where None), (Z C, rows, terms)."""
        out: list[Tensor | None] = []
        for nu, parts in enumerate(self.parts, 1):
            blocks: list[list[Tensor]] = [[] for _ in range(CLASSES)]
            for name, counts in parts.items():
                w = self.weights[name]
                w = (w if elements is None else w.index_select(0, elements)).flatten(0, 1)  # (Z C, K)
                sizes = [rows * terms for rows, terms in zip(counts, self.num_terms[nu - 1])]
                for c, block in enumerate((w @ getattr(self, f"table_{name}")).split(sizes, dim=1)):
                    if sizes[c]:
                        blocks[c].append(block.unflatten(1, (counts[c], -1)))
            for c, found in enumerate(blocks):
                missing = self.num_rows[c] - sum(block.shape[1] for block in found)
                if found and missing:  # degrees above lmax, which the first order can not make
                    found.append(found[0].new_zeros(found[0].shape[0], missing, found[0].shape[2]))
                out.append(None if not found else torch.cat(found, dim=1) if len(found) > 1 else found[0])
        return out

    def forward(self, a: Tensor, tensors: Sequence[Tensor | None]) -> Tensor:
        """(M, Z C, n) -> (m, Z C, n)."""
        with torch.no_grad():
            powers = self.powers(a)
        learns = torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in tensors)
        weights = OfWeights.apply(self, (a,), powers, *tensors) if learns else None
        return Contract.apply(a, weights, self, powers, *tensors)

    def powers(self, a: Tensor) -> "Powers":
        """Monomials of order 1 .. nu - 1 by class, (Q, Z C, n)."""
        out: list[Tensor] = []
        for shorter, last in zip(self.picks, self.lasts):
            out.append(shorter(out[-1]) * last(a) if out else last(a))
        return Powers(power.split(counts) for power, counts in zip(out, self.num_terms[1:]))

    def of_powers(self, grads: Sequence[Tensor], a: Tensor, powers: "Powers") -> Tensor:
        """Gradient to the features (M, Z C, n) from those to the monomials of each order, (Q, Z C, n)."""
        g_a: Tensor | None = None
        g = grads[-1]
        for k in reversed(range(len(grads))):
            shorter, last = self.picks[k], self.lasts[k]
            assert isinstance(shorter, Pick)
            assert isinstance(last, Pick)
            part = last.transposed(g * shorter(torch.cat(powers[k - 1])) if k else g)
            g_a = part if g_a is None else g_a + part
            if k:
                g = grads[k - 1] + shorter.transposed(g * last(a))
        assert g_a is not None
        return g_a

    def values(self, powers: "Powers", a: Tensor, tensors: Sequence[Tensor | None]) -> tuple[Tensor, Tensor]:
        """sum V^nu and sum nu V^nu, (Z C, R, n)."""
        sums: list[list[Tensor]] = [[] for _ in range(self.order)]  # of V^1 .. V^nu, of each nu
        for c, rows in enumerate(self.num_rows):
            total = tensors[c]
            if total is None:
                total = a.new_zeros(a.shape[1], rows, 1)
            total = total.expand(-1, -1, a.shape[2])
            sums[0].append(total)
            for nu in range(2, self.order + 1):
                tensor = tensors[(nu - 1) * CLASSES + c]
                if tensor is not None:
                    total = torch.baddbmm(total, tensor, powers[nu - 2][c].transpose(0, 1))
                sums[nu - 1].append(total)
        *partial, full = (torch.cat(parts, dim=1) for parts in sums)
        slope = full * self.order if partial else full
        for part in partial:
            slope = slope - part
        return full, slope

    def rows(self, a: Tensor, index: Tensor) -> Tensor:
        """What each row takes of features or outputs, (M, Z C, n) -> (Z C, R, n)."""
        return a.index_select(0, index).transpose(0, 1)

    def of_tensors(
        self, g: Tensor, powers: "Powers", tensors: Sequence[Tensor | None], slopes: bool
    ) -> list[Tensor | None]:
        """Gradients to T from those to sum V^nu, or to sum nu V^nu, (Z C, R, n)."""
        parts = g.split(self.num_rows, dim=1)
        out: list[Tensor | None] = []
        for k, tensor in enumerate(tensors):
            nu, c = k // CLASSES + 1, k % CLASSES
            if tensor is None:
                out.append(None)
            elif nu == 1:
                out.append(parts[c].sum(2, keepdim=True))
            else:
                product = torch.bmm(parts[c], powers[nu - 2][c].permute(1, 2, 0))
                out.append(product * nu if slopes else product)
        return out


class Powers(list[tuple[Tensor, ...]]):
    """Monomials by order and class; as a list, no input that autograd sees."""


class Contract(torch.autograd.Function):
    """The contraction, whose derivative to the features needs nothing but what it computed.

    `weights` is what `OfWeights` gives: it takes the gradient on to the tensors, where that is wanted.
    """

    @staticmethod
    def forward(  # type: ignore[no-untyped-def, override]
        ctx,
        a: Tensor,
        weights: Tensor | None,
        of: SymmetricContraction,
        powers: Powers,
        *tensors: Tensor | None,
    ) -> Tensor:
        """(M, Z C, n) -> (m, Z C, n)."""
        total, slope = of.values(powers, a, tensors)
        ctx.of, ctx.powers = of, powers if weights is not None else None
        ctx.save_for_backward(a, slope, *tensors)
        return (of.of_m @ (total * of.rows(a, of.rows_k))).transpose(0, 1)

    @staticmethod
    def backward(ctx, g: Tensor):  # type: ignore[no-untyped-def, override]
        a, slope, *tensors = ctx.saved_tensors
        g_a = Slope.apply(g, a, ctx.of, slope, ctx.powers, *tensors)
        return g_a, g if ctx.needs_input_grad[1] else None, None, None, *[None] * len(tensors)


class OfWeights(torch.autograd.Function):
    """Zero, whose gradient to the tensors is the contraction's: forces are a gradient that needs none of them,
    and then autograd leaves this function out."""

    @staticmethod
    def forward(  # type: ignore[no-untyped-def, override]
        ctx, of: SymmetricContraction, features: tuple[Tensor], powers: Powers, *tensors: Tensor | None
    ) -> Tensor:
        """Zeros (m, Z C, n)."""
        ctx.of, (a,), ctx.powers = of, features, powers
        ctx.a, ctx.tensors = a, tensors
        return a.new_zeros(()).expand(of.of_m.shape[0], a.shape[1], a.shape[2])

    @staticmethod
    def backward(ctx, g: Tensor):  # type: ignore[no-untyped-def, override]
        of, a = ctx.of, ctx.a  # no input, which would make autograd come here for forces
        powers = of.powers(a) if torch.is_grad_enabled() else ctx.powers
        outer = of.rows(g, of.rows_m) * of.rows(a, of.rows_k)
        return None, None, None, *of.of_tensors(outer, powers, ctx.tensors, slopes=False)


class Slope(torch.autograd.Function):
    """The contraction's gradient to the features, (m, Z C, n) -> (M, Z C, n), with its own derivatives."""

    @staticmethod
    def forward(  # type: ignore[no-untyped-def, override]
        ctx,
        g: Tensor,
        a: Tensor,
        of: SymmetricContraction,
        slope: Tensor,
        powers: Powers | None,
        *tensors: Tensor | None,
    ) -> Tensor:
        """(m, Z C, n) -> (M, Z C, n)."""
        ctx.of, ctx.powers = of, powers
        ctx.save_for_backward(g, a, slope, *tensors)
        return (of.of_k @ (slope * of.rows(g, of.rows_m))).transpose(0, 1)

    @staticmethod
    def backward(ctx, w: Tensor):  # type: ignore[no-untyped-def, override]
        """To g, the features and the tensors; w (M, Z C, n)."""
        g, a, slope, *tensors = ctx.saved_tensors
        of, powers = ctx.of, ctx.powers
        if torch.is_grad_enabled() or powers is None:
            powers = of.powers(a)
            _, slope = of.values(powers, a, tensors)
        w_rows = of.rows(w, of.rows_k)
        g_g = (of.of_m @ (slope * w_rows)).transpose(0, 1)
        q = w_rows * of.rows(g, of.rows_m)
        g_a = None
        if len(powers):
            parts, grads = q.split(of.num_rows, dim=1), []
            for nu in range(2, of.order + 1):
                of_classes = []
                for c, part in enumerate(parts):
                    tensor = tensors[(nu - 1) * CLASSES + c]
                    missing = part.new_zeros(part.shape[0], of.num_terms[nu - 1][c], part.shape[2])
                    of_classes.append(missing if tensor is None else torch.bmm(tensor.mT, part))
                grads.append(torch.cat([x.transpose(0, 1) for x in of_classes]) * nu)
            g_a = of.of_powers(grads, a, powers)
        g_tensors: list[Tensor | None] = [None] * len(tensors)
        if any(ctx.needs_input_grad[5:]):
            g_tensors = of.of_tensors(q, powers, tensors, slopes=True)
        return g_g, g_a, None, None, None, *g_tensors
