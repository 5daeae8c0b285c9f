"""MuonAdam: Adam is torch's, Muon's steps are orthogonal, and a restart changes nothing."""

import copy

import pytest
import torch
from torch import nn

from physicsml_ase.train.muon import MuonAdam, is_matrix, orthogonalised
from physicsml_ase.train.optim import OptimizerConfig, build_optimizer


def problem() -> tuple[nn.ParameterDict, torch.Tensor]:
    torch.manual_seed(0)
    weights = nn.ParameterDict(
        {
            "wide": torch.randn(4, 9),
            "stack": torch.randn(3, 7, 5),
            "bias": torch.randn(6),
            "table": torch.ones(2, 3),
        }
    )
    return weights, torch.randn(5)


def loss(weights: nn.ParameterDict) -> torch.Tensor:
    return sum(
        ((p - 0.3) ** 2 * torch.arange(1.0, p.numel() + 1).view_as(p)).mean() for p in weights.values()
    )


def optimizer_of(weights: nn.ParameterDict, **settings: float) -> MuonAdam:
    built = build_optimizer(OptimizerConfig(name="MuonAdam", config=settings), weights.named_parameters())
    assert isinstance(built, MuonAdam)
    return built


def steps(weights: nn.ParameterDict, optimizer: torch.optim.Optimizer, count: int) -> None:
    for _ in range(count):
        optimizer.zero_grad()
        loss(weights).backward()
        optimizer.step()


def test_singular_values_become_alike() -> None:
    x = torch.randn(6, 5, 8) * torch.tensor([1.0, 0.5, 0.2, 0.1, 0.05])[:, None]
    values = torch.linalg.svdvals(orthogonalised(x))
    assert values.min() > 0.5
    assert values.max() < 1.3


def test_which_weights_are_matrices() -> None:
    weights, _ = problem()
    assert {name for name, p in weights.named_parameters() if is_matrix(name, p)} == {"wide", "stack"}
    assert optimizer_of(weights).param_groups[0]["orthogonal"]
    assert not optimizer_of(weights).param_groups[1]["orthogonal"]


def test_the_rest_takes_adams_steps() -> None:
    weights, _ = problem()
    twin = copy.deepcopy(weights)
    steps(weights, optimizer_of(weights, lr=0.02), 7)
    steps(twin, torch.optim.Adam(twin.values(), lr=0.01), 7)
    for name in ("bias", "table"):
        torch.testing.assert_close(weights[name], twin[name])
    assert not torch.allclose(weights["wide"], twin["wide"])


def test_a_step_is_as_large_as_adams() -> None:
    """Root mean square 0.2 lr for a matrix whose columns are the longer side."""
    weights, _ = problem()
    before = copy.deepcopy(weights)
    steps(weights, optimizer_of(weights, lr=0.01), 1)
    change = (weights["wide"] - before["wide"]).square().mean().sqrt().item()
    assert change == pytest.approx(0.2 * 0.01, rel=0.35)


def test_learns() -> None:
    weights, _ = problem()
    before = loss(weights).item()
    steps(weights, optimizer_of(weights, lr=0.05), 300)
    assert loss(weights).item() < before / 50


def test_a_restart_changes_nothing() -> None:
    weights, _ = problem()
    twin = copy.deepcopy(weights)
    straight = optimizer_of(weights, weight_decay=0.1)
    steps(weights, straight, 6)
    first = optimizer_of(twin, weight_decay=0.1)
    steps(twin, first, 3)
    second = optimizer_of(twin, weight_decay=0.1)
    second.load_state_dict(copy.deepcopy(first.state_dict()))
    steps(twin, second, 3)
    for name in weights:
        assert torch.equal(weights[name], twin[name])


SIZES = {
    "wide": torch.tensor([1.0, 0.5, 0.1, 2.0])[:, None],
    "stack": torch.tensor([1.0, 0.5, 0.2])[:, None, None],
}


def test_expected_sizes_are_those_of_a_weight_divided_by_them() -> None:
    weights, _ = problem()
    divided = nn.ParameterDict({k: p.detach() / SIZES.get(k, 1) for k, p in weights.items()})
    optimizer = optimizer_of(weights, lr=0.02, weight_decay=0.1)
    optimizer.expect((weights[name], size) for name, size in SIZES.items())
    other = optimizer_of(divided, lr=0.02, weight_decay=0.1)
    for _ in range(5):
        optimizer.zero_grad()
        other.zero_grad()
        loss(weights).backward()
        loss({k: p * SIZES.get(k, 1) for k, p in divided.items()}).backward()  # type: ignore[arg-type]
        optimizer.step()
        other.step()
    for name, p in weights.items():
        torch.testing.assert_close(p, divided[name] * SIZES.get(name, 1))


def test_a_restart_keeps_expected_sizes() -> None:
    weights, _ = problem()
    twin = copy.deepcopy(weights)
    straight, first = optimizer_of(weights), optimizer_of(twin)
    for these, optimizer in ((weights, straight), (twin, first)):
        optimizer.expect((these[name], size) for name, size in SIZES.items())
    steps(weights, straight, 6)
    steps(twin, first, 3)
    second = optimizer_of(twin)
    second.load_state_dict(copy.deepcopy(first.state_dict()))
    steps(twin, second, 3)
    for name in weights:
        assert torch.equal(weights[name], twin[name])


def test_nothing_is_expected_of_frozen_weights_and_of_those_that_are_no_matrices() -> None:
    weights, _ = problem()
    weights["wide"].requires_grad_(False)
    optimizer = optimizer_of(weights)
    optimizer.expect((p, torch.tensor(0.5)) for p in weights.values())
    steps(weights, optimizer, 1)
    assert [id(p) for p, state in optimizer.state.items() if "size" in state] == [id(weights["stack"])]
    assert len(optimizer.state_dict()["state"]) == 3  # all but the frozen one


def test_what_began_without_expected_sizes_goes_on_without() -> None:
    weights, _ = problem()
    twin = copy.deepcopy(weights)
    first = optimizer_of(weights)
    steps(weights, first, 3)
    steps(twin, second := optimizer_of(twin), 3)
    second.expect((twin[name], size) for name, size in SIZES.items())
    second.load_state_dict(copy.deepcopy(first.state_dict()))
    steps(weights, first, 3)
    steps(twin, second, 3)
    for name in weights:
        assert torch.equal(weights[name], twin[name])
