"""Small batches stay on the CPU, where the accelerator was left open; what was asked for is done."""

from typing import Any

import pytest
import torch
from runs_for_tests import frames, settings

from physicsml_ase.train import place
from physicsml_ase.train.fused import FusedPotential
from physicsml_ase.train.parts import make_potential, open_data
from physicsml_ase.train.settings import RunConfig

OPEN: dict[str, Any] = {
    "model": {"channels": 16},
    "trainer": {"accelerator": "auto", "devices": "auto"},
    "compile": "auto",
}
DATA = {"train": frames(8), "validation": frames(4, 1), "test": None}


def accelerator(
    monkeypatch: pytest.MonkeyPatch,
    seconds: tuple[float, float] | None,
    *overrides: dict[str, Any],
    gpus: int = 1,
) -> object:
    """What is settled with a GPU that takes so long; None where nothing may be measured."""

    def measured(*_: object) -> tuple[float, float]:
        assert seconds is not None
        return seconds

    config: RunConfig = settings(OPEN, *overrides)
    datamodule = open_data(config, DATA)
    potential = make_potential(config, datamodule, None, None)
    monkeypatch.setattr(place, "measured", measured)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: None)
    return place.settled(config, potential, datamodule).trainer.accelerator


def test_the_quicker_is_taken_and_told(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    assert accelerator(monkeypatch, (0.003, 0.02)) == "cpu"
    assert "training on the CPU: for these batches a step takes 3 ms" in caplog.text
    assert accelerator(monkeypatch, (0.03, 0.02)) == "auto"
    assert "training on the GPU" in caplog.text


@pytest.mark.parametrize(
    "given",
    [
        {"trainer": {"accelerator": "gpu"}},
        {"trainer": {"devices": 2}},
        {"trainer": {"strategy": "ddp"}},
        {"trainer": {"precision": "bf16-mixed"}},
        {"compile": False},
        {"model": {"name": "painn", "channels": 8}},
    ],
)
def test_what_was_asked_for_is_done(monkeypatch: pytest.MonkeyPatch, given: dict[str, Any]) -> None:
    if "name" in given.get("model", {}):
        given = given | {"model": {"channels": 8, "layers": 1, "num_radial": 4, "name": "painn"}}
    wanted = given.get("trainer", {}).get("accelerator", "auto")
    assert accelerator(monkeypatch, None, given) == wanted


@pytest.mark.parametrize("of_many", [("LOCAL_RANK", "1"), ("SLURM_NTASKS", "4"), ("WORLD_SIZE", "2")])
def test_one_of_many_processes_decides_nothing(
    monkeypatch: pytest.MonkeyPatch, of_many: tuple[str, str]
) -> None:
    monkeypatch.setenv(*of_many)
    assert accelerator(monkeypatch, None) == "auto"


def test_several_gpus_are_used(monkeypatch: pytest.MonkeyPatch) -> None:
    assert accelerator(monkeypatch, None, gpus=2) == "auto"


def test_the_batch_is_of_all_sources() -> None:
    datamodule = open_data(settings(OPEN), DATA | {"train": {"a": frames(8), "b": frames(9, 2)}})
    assert datamodule.first_batch().num_atoms.shape[0] == 8


def test_a_step_is_timed_and_changes_nothing() -> None:
    config = settings(OPEN)
    datamodule = open_data(config, DATA)
    potential = make_potential(config, datamodule, None, None)
    before = [p.detach().clone() for p in potential.parameters()]
    batch = datamodule.first_batch()
    assert batch.num_atoms.shape[0] == 4
    assert 0 < place.seconds_of_a_step(FusedPotential(potential.train()), batch) < 5
    for p, old in zip(potential.parameters(), before, strict=True):
        assert torch.equal(p, old)
