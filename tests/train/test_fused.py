"""Training steps by the C++ kernel: as the plain ones, and refused with a reason where they can not be."""

from pathlib import Path

import pytest
import torch
from runs_for_tests import frames, settings

from physicsml_ase.atoms import to_graph
from physicsml_ase.backends.training import training_kernel_reason
from physicsml_ase.conventions import InputError
from physicsml_ase.domain import Domain
from physicsml_ase.graph import Graph, collate
from physicsml_ase.models.gaunt_ace import GauntACE, GauntACEConfig
from physicsml_ase.train.fused import FusedPotential
from physicsml_ase.train.run import Data, start

SIXTEEN = {"model": {"channels": 16}}
SMALL = GauntACE(GauntACEConfig(channels=16), Domain(cutoff=3.0, elements=(1, 6)))
needs_compiler = pytest.mark.skipif(training_kernel_reason(SMALL) is not None, reason="no compiler")


@needs_compiler
def test_a_run_by_the_kernel_is_a_plain_run(tmp_path: Path) -> None:
    """The same errors after three epochs, within what float32 makes of them."""
    results = [
        start(settings(SIXTEEN, {"compile": how}), Data(frames()), tmp_path / str(how))
        for how in (False, "kernel")
    ]
    plain, fused = (result.best["errors"] for result in results)
    assert plain == pytest.approx(fused, rel=1e-2)


@needs_compiler
def test_validation_is_by_the_kernel_once_it_has_agreed(tmp_path: Path) -> None:
    result = start(settings(SIXTEEN, {"trainer": {"max_epochs": 1}}), Data(frames()), tmp_path / "run")
    potential = result.potential.train().requires_grad_(True)
    fused, graph = FusedPotential(potential), collate([to_graph(atoms, 3.0) for atoms in frames(3)])
    calls = []
    right = fused.kernel

    def counted(graph: Graph, r_ij: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        calls.append(len(r_ij))
        return right(graph, r_ij)

    fused.kernel = counted  # type: ignore[assignment]
    with torch.inference_mode():
        before, again = fused.evaluate(graph), fused.evaluate(graph)
    assert len(calls) == 2
    torch.testing.assert_close(before["forces"], potential(graph)["forces"], rtol=0, atol=1e-9)
    torch.testing.assert_close(again["forces"], before["forces"], rtol=1e-4, atol=1e-4)
    fused(graph)
    assert len(calls) == 4  # its gradients are checked all the same
    calls.clear()
    potential.eval()
    with torch.inference_mode():
        after = fused.evaluate(graph)
    assert len(calls) == 1
    for name in before:
        torch.testing.assert_close(after[name], before[name], rtol=1e-4, atol=1e-4, equal_nan=True)
    with torch.no_grad():
        next(potential.parameters()).mul_(2)  # as when averaged weights are put on
        changed, plain = fused.evaluate(graph), potential(graph)
    torch.testing.assert_close(changed["forces"], plain["forces"], rtol=1e-4, atol=1e-4)
    assert not torch.allclose(changed["forces"], after["forces"], atol=1e-3)


@needs_compiler
def test_a_wrong_kernel_is_not_used(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    result = start(settings(SIXTEEN, {"trainer": {"max_epochs": 1}}), Data(frames()), tmp_path / "run")
    potential = result.potential.train().requires_grad_(True)
    fused = FusedPotential(potential)
    right = fused.kernel
    fused.kernel = lambda graph, r_ij: tuple(1.1 * x for x in right(graph, r_ij))  # type: ignore[assignment]
    graph = to_graph(frames(1)[0], 3.0)
    torch.testing.assert_close(fused(graph)["energy"], potential(graph)["energy"])
    assert fused.given_up
    assert "gradients are off" in caplog.text
    other = FusedPotential(potential)
    other.kernel = fused.kernel
    torch.testing.assert_close(other.evaluate(graph)["energy"], potential(graph)["energy"])
    assert other.given_up
    assert "forces are off" in caplog.text
    torch.testing.assert_close(fused.evaluate(graph)["energy"], potential(graph)["energy"])


def test_reasons(tmp_path: Path) -> None:
    for change, words in (
        ({"model": {"name": "painn"}}, "gaunt_ace only"),
        ({"model": {"channels": 12}}, "multiples of 16"),
        ({"trainer": {"precision": 64}}, "float32"),
    ):
        with pytest.raises(InputError, match=f"compile: 'kernel': .*{words}"):
            start(settings({"compile": "kernel"}, change), Data(frames()), tmp_path / words)
