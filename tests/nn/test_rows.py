"""Rows of slots: every edge once, its reverse where it should be, and no row longer than it must be."""

import numpy as np
import torch
from ase import Atoms
from ase.build import bulk

from physicsml_ase.atoms import to_graph
from physicsml_ase.graph import Graph, collate
from physicsml_ase.nn.slots import CROWDED, Slots, make_slots, swap


def crowd() -> Atoms:
    """A dense cluster amid lone atoms and pairs: few atoms have nearly all of the neighbours."""
    rng = np.random.default_rng(0)
    dense = bulk("Cu", cubic=True).repeat(2)
    dense.pbc = False
    dense.rattle(0.1, seed=0)
    far = Atoms(f"Cu{200}", positions=[[20.0 * k, 100.0, 0.0] for k in range(200)])
    far.positions += rng.normal(size=far.positions.shape) * 0.1
    return dense + far


def check(graph: Graph, slots: Slots) -> None:
    edges = torch.arange(1.0, len(graph.reverse) + 1)[:, None]
    filled = slots.fill(edges)
    assert filled.shape[1] == slots.width
    assert filled.count_nonzero() == len(edges)
    rows = torch.arange(filled.shape[0]) if slots.row_atom is None else slots.row_atom
    atom = rows[:, None].expand(filled.shape[:2])
    there = filled[..., 0] > 0
    # an edge lies in a row of its centre
    assert torch.equal(atom[there], graph.edge_index[0][(filled[there][:, 0] - 1).long()])
    torch.testing.assert_close(swap(swap(filled, slots.reverse), slots.reverse), filled)
    of_reverse = swap(filled, slots.reverse).flatten(0, 1)[slots.slot, 0]
    assert torch.equal(of_reverse, edges[graph.reverse, 0])
    counts = slots.per_atom(there.double().sum(1, keepdim=True), len(graph.positions))[:, 0]
    assert torch.equal(counts.long(), torch.bincount(graph.edge_index[0], minlength=len(graph.positions)))


def test_even_neighborhoods_have_one_row_each() -> None:
    graph = to_graph(bulk("Cu", cubic=True), 4.0)
    slots = make_slots(graph)
    assert slots.row_atom is None
    assert slots.reverse.shape[0] == len(graph.reverse)  # not one slot of padding
    check(graph, slots)


def test_a_crowd_does_not_widen_the_rows_of_others() -> None:
    graph = to_graph(crowd(), 4.0)
    slots = make_slots(graph)
    longest = int(torch.bincount(graph.edge_index[0]).max())
    n, e = len(graph.positions), len(graph.reverse)
    assert slots.row_atom is not None
    assert slots.reverse.shape[0] <= 2 * (e + n * (CROWDED * e / n + 1)) < n * longest
    check(graph, slots)


def test_no_edges_and_batches() -> None:
    lone = to_graph(Atoms("Cu"), 4.0)
    check(lone, make_slots(lone))
    batch = collate(
        [to_graph(a, 4.0) for a in (bulk("Cu"), Atoms("Cu"), crowd(), Atoms("Cu2", [[0, 0, 0], [2, 0, 0]]))]
    )
    check(batch, make_slots(batch))
