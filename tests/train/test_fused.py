"""Training steps by the C++ kernel: as the plain ones, and refused with a reason where they can not be."""

from pathlib import Path

import pytest
import torch
from ase.build import molecule
from runs_for_tests import frames, settings

from physicsml_ase.atoms import to_graph
from physicsml_ase.backends.totals import Summed, Totals
from physicsml_ase.backends.training import TrainingKernel, training_kernel_reason
from physicsml_ase.conventions import InputError
from physicsml_ase.domain import Domain
from physicsml_ase.graph import Graph, collate
from physicsml_ase.models.gaunt_ace import GauntACE, GauntACEConfig
from physicsml_ase.potential import Potential
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
def test_validation_is_by_the_kernel_once_it_has_agreed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    result = start(settings(SIXTEEN, {"trainer": {"max_epochs": 1}}), Data(frames()), tmp_path / "run")
    potential = result.potential.train().requires_grad_(True)
    fused, graph = FusedPotential(potential), collate([to_graph(atoms, 3.0) for atoms in frames(3)])
    calls = []
    right = fused.kernel.predict

    def counted(graph: Graph, batch: Summed) -> Totals:
        calls.append(len(batch.r_ij))
        return right(graph, batch)

    monkeypatch.setattr(fused.kernel, "predict", counted)
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
def test_a_wrong_kernel_is_not_used(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    result = start(settings(SIXTEEN, {"trainer": {"max_epochs": 1}}), Data(frames()), tmp_path / "run")
    potential = result.potential.train().requires_grad_(True)
    fused = FusedPotential(potential)
    right = fused.kernel.predict
    monkeypatch.setattr(
        fused.kernel, "predict", lambda graph, batch: Totals(*(1.1 * x for x in right(graph, batch)))
    )
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


@needs_compiler
def test_atoms_within_the_wall_are_learned_by_the_kernel_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whose energy is the potential's business, and what the model sees of them."""
    distances = {"H-H": 1.2, "C-H": 1.3, "C-C": 1.6}
    domain = Domain(cutoff=3.0, elements=(1, 6), shortest_distances=distances, short_range="zbl")
    torch.manual_seed(0)
    potential = Potential(GauntACEConfig(channels=16), domain, ()).train()
    graph = collate([to_graph(molecule(name), 3.0) for name in ("CH4", "C2H6")])
    assert Summed(graph, potential).near > 0
    plain = potential(graph)
    right, calls = TrainingKernel.__call__, []

    def counted(self: TrainingKernel, graph: Graph, r_ij: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        calls.append(len(r_ij))
        return right(self, graph, r_ij)

    monkeypatch.setattr(TrainingKernel, "__call__", counted)
    fused = FusedPotential(potential)
    found = fused(graph)
    assert len(calls) == 2  # to be compared, and then
    for name, value in plain.items():
        torch.testing.assert_close(found[name], value, rtol=1e-4, atol=1e-4, equal_nan=True)
    assert not fused.given_up


def test_reasons(tmp_path: Path) -> None:
    for change, words in (
        ({"model": {"name": "painn"}}, "gaunt_ace only"),
        ({"model": {"channels": 12}}, "multiples of 16"),
        ({"trainer": {"precision": 64}}, "float32"),
    ):
        with pytest.raises(InputError, match=f"compile: 'kernel': .*{words}"):
            start(settings({"compile": "kernel"}, change), Data(frames()), tmp_path / words)
