"""The sums of `nn.matrix_messages` and `nn.outer_sums` over neighbours in rows, in plain operators for compilers.

A compiler makes one loop of what it takes from neighbours, multiplies and adds up, so that what an edge sends is
never in memory. Derivatives are gathered too, from the other ends of pairs: nothing is scattered. Shapes: N atoms,
E edges, R rows of J slots, S = R J, P pairs, of which the last is that of an atom and itself, F channels; matrices
are (N, 9, F).
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor

from physicsml_ase.graph import Graph
from physicsml_ase.nn.matrices import PARTS, SIZES
from physicsml_ase.nn.pair_rows import PairRows
from physicsml_ase.nn.transposes import apart, in_memory


class Ends(NamedTuple):
    """Where sums look."""

    rows: PairRows
    neighbor: Tensor  # (S,) atom of each slot
    pair: Tensor  # (S,) pair of each slot; in padding P, of which everything is zero
    i: Tensor  # (P - 1,) atoms of each pair
    j: Tensor  # (P - 1,)
    weight: Tensor  # (P - 1,) what each of a pair's edges counts
    num_atoms: int


def ends(graph: Graph, rows: PairRows) -> Ends:
    """Those of a graph's edges in rows."""
    i, j = graph.edge_index.index_select(1, rows.edge)
    pair = rows.pair
    if not rows.full():
        pair = torch.full_like(pair, rows.edge.shape[0] + 1).index_copy(0, rows.slots.slot, rows.pair_of_edge)
    return Ends(rows, apart(rows.neighbor), apart(pair), i, j, rows.weights(), graph.atomic_numbers.shape[0])


def row_messages(factors: Tensor, x: Tensor, where: Ends) -> Tensor:
    """Sums over neighbours of x_j times factors, (P, 3, F) and (N, 9, F) -> (N, 9, F)."""
    out: Tensor = _Gather.apply(factors, x, where)
    return out


def row_outer_sum(a: Tensor, b: Tensor, kind: Tensor, num: int, where: Ends) -> Tensor:
    """Sums of outer products over neighbours of each of `num` kinds, of edges (E, M), pairs (P, K) and atoms (N,),
    (N, num, M, K)."""
    rows = where.rows
    b = rows.of_slots(b).unflatten(0, (-1, rows.slots.width))  # (R, J, K)
    a = rows.fill(a)  # (R, J, M)
    if num > 1:
        of_slots = kind.index_select(0, rows.neighbor).view(a.shape[:2])
        chosen = (of_slots[..., None] == torch.arange(num, device=kind.device)).to(a)
        a = (chosen[..., None] * a[:, :, None, :]).flatten(2)  # (R, J, num M)
    return rows.slots.per_atom(torch.bmm(a.mT, b), where.num_atoms).unflatten(1, (num, -1))


class _Gather(torch.autograd.Function):
    """The sums over neighbours."""

    @staticmethod
    def forward(ctx: Any, f: Tensor, x: Tensor, where: Ends) -> Tensor:
        """(P, 3, F) and (N, 9, F) -> (N, 9, F)."""
        ctx.where = where
        f, x = in_memory(f), in_memory(x)
        ctx.save_for_backward(f, x)
        rows = where.rows
        if not rows.full():
            f = torch.cat([f, torch.zeros_like(f[:1])])
        sent = x.index_select(0, where.neighbor).split(SIZES, dim=1)
        of_slots = f.index_select(0, where.pair)  # (S, 3, F)
        parts = [s * of_slots[:, k : k + 1] for k, s in enumerate(sent)]
        sums = [part.unflatten(0, (-1, rows.slots.width)).sum(1) for part in parts]
        return rows.slots.per_atom(torch.cat(sums, dim=1), where.num_atoms)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        """To factors the correlation, to x the same sums."""
        f, x = ctx.saved_tensors
        to_f, to_x, _ = ctx.needs_input_grad
        return (
            _Correlate.apply(g, x, ctx.where) if to_f else None,
            _Gather.apply(f, g, ctx.where) if to_x else None,
            None,
        )


class _Correlate(torch.autograd.Function):
    """Sums of y_i x_j over both edges of a pair and over the components of a part, (P, 3, F)."""

    @staticmethod
    def forward(ctx: Any, y: Tensor, x: Tensor, where: Ends) -> Tensor:
        """(N, 9, F) twice -> (P, 3, F)."""
        ctx.where = where
        y, x = in_memory(y), in_memory(x)
        ctx.save_for_backward(y, x)
        i, j = where.i, where.j
        product = y.index_select(0, i) * x.index_select(0, j) + y.index_select(0, j) * x.index_select(0, i)
        product = product * where.weight.to(x.dtype)[:, None, None]  # (P - 1, 9, F)
        out = torch.stack([product[:, part].sum(1) for part in PARTS], dim=1)
        return torch.cat([out, torch.zeros_like(out[:1])])

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        """To either the sums over neighbours of the other."""
        y, x = ctx.saved_tensors
        to_y, to_x, _ = ctx.needs_input_grad
        return (
            _Gather.apply(g, x, ctx.where) if to_y else None,
            _Gather.apply(g, y, ctx.where) if to_x else None,
            None,
        )
