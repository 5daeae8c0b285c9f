"""Operators that go through edges in blocks give what plain ones give, with derivatives of any order."""

import pytest
import torch
from ase.build import bulk

from physicsml_ase.atoms import to_graph
from physicsml_ase.nn import matrix_messages, outer_sums
from physicsml_ase.nn.matrices import PARTS
from physicsml_ase.nn.pairs import make_pairs


def doubles(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, dtype=torch.float64, requires_grad=True)


@pytest.mark.parametrize("block", [1, 1 << 18], ids=["blocks of 32", "one block"])
def test_sums_of_outer_products(monkeypatch: pytest.MonkeyPatch, block: int) -> None:
    monkeypatch.setattr(outer_sums, "BLOCK", block)
    torch.manual_seed(0)
    group = torch.randint(0, 4, (70,))
    a, b = doubles(70, 3), doubles(70, 2)
    expected = torch.stack([a[group == g].T @ b[group == g] for g in range(4)])
    torch.testing.assert_close(outer_sums.outer_sum(a, b, group, 4), expected)
    few = group[:5]
    assert torch.autograd.gradgradcheck(
        lambda a, b: outer_sums._outer_sum(a, b, few, 4), (doubles(5, 3), doubles(5, 2))
    )


def test_messages_of_matrices(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(matrix_messages, "BLOCK", 1)
    graph = to_graph(bulk("Si", cubic=True), 3.9)
    pairs, n = make_pairs(graph), len(graph.positions)
    factors, x = doubles(len(pairs.edge) + 1, 3, 2), doubles(n, 9, 2)
    expected = torch.zeros_like(x)
    for e, (i, j) in enumerate(graph.edge_index.T.tolist()):
        for k, part in enumerate(PARTS):
            expected[i, part] += factors[pairs.of_edge[e], k] * x[j, part]
    torch.testing.assert_close(matrix_messages.messages(factors, x, graph, pairs), expected)


@pytest.mark.parametrize("itself", [False, True])
def test_derivatives_of_messages(itself: bool) -> None:
    graph = to_graph(bulk("Si", "sc", a=2.4).repeat((2, 1, 1)), 2.5, self_interaction=itself)
    pairs = make_pairs(graph)
    inputs = doubles(len(pairs.edge) + 1, 3, 1), doubles(2, 9, 1)
    assert torch.autograd.gradcheck(lambda f, x: matrix_messages.messages(f, x, graph, pairs), inputs)
    assert torch.autograd.gradgradcheck(lambda f, x: matrix_messages.messages(f, x, graph, pairs), inputs)
