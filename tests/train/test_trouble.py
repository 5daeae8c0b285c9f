"""Steps that fail: the frames of a loss that is no number are named, and so is a batch that fills the memory."""

import logging
import multiprocessing
import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from ase.io import write
from runs_for_tests import frames, settings, write_frames

from physicsml_ase.checkpoint import load_potential
from physicsml_ase.conventions import InputError
from physicsml_ase.potential import Potential
from physicsml_ase.train.given import Data
from physicsml_ase.train.module import PotentialModule
from physicsml_ase.train.run import start
from physicsml_ase.train.trainer import register_callback
from physicsml_ase.train.trouble import is_out_of_memory


def spoilt(frame: int = 5) -> Data:
    """Twelve frames, one with forces whose squares no float32 holds; four others to validate with."""
    train = frames(12)
    train[frame].calc.results["forces"] = train[frame].calc.results["forces"] * 1e30
    return Data(train, frames(4, seed=1))


SETTINGS = {"energy_scale": 1.0, "datamodule": {"validation_split": 0}, "ema": {"decay": 0.0}, "loss": {
    "energy": {"name": "MSELoss"}, "forces": {"name": "MSELoss"}}}  # fmt: skip


def test_the_frame_is_named_and_the_run_ends(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"in the batch of train data: frame 5; .*on_bad_loss=skip") as told:
        start(settings(SETTINGS), spoilt(), tmp_path / "run")
    assert "\n" not in str(told.value)


def test_such_steps_are_left_out(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, "physicsml_ase"):
        result = start(settings(SETTINGS, {"on_bad_loss": "skip"}), spoilt(), tmp_path / "run")
    assert sum("left out: the loss" in line and "frame 5" in line for line in caplog.messages) == 3
    assert result.best["score"] < float("inf")
    assert all(p.isfinite().all() for p in load_potential(tmp_path / "run" / "model.ckpt").parameters())


@pytest.mark.parametrize("name", ["AdamW", "MuonAdam"])
def test_a_step_that_is_left_out_changes_no_weight(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """Neither by momentum nor by decay; nor does the average count it."""
    seen: list[tuple[bool, bool, int]] = []
    step = PotentialModule.optimizer_step

    def watched(self: PotentialModule, *args: Any, **kwargs: Any) -> None:
        before = [p.detach().clone() for p in self.potential.parameters()]
        count = self.ema.steps if self.ema else 0
        step(self, *args, **kwargs)
        same = all(torch.equal(a, b) for a, b in zip(before, self.potential.parameters(), strict=True))
        seen.append((self._left_out, same, (self.ema.steps if self.ema else 0) - count))

    monkeypatch.setattr(PotentialModule, "optimizer_step", watched)
    more = {"on_bad_loss": "skip", "ema": {"decay": 0.9}, "optimizer": {"name": name, "config": {"lr": 1e-3}}}
    start(settings(SETTINGS, more), spoilt(), tmp_path / "run")
    assert {left_out for left_out, _, _ in seen} == {True, False}
    assert all(same == left_out and counted == (not left_out) for left_out, same, counted in seen)


def test_not_for_ever(tmp_path: Path) -> None:
    diverging = {"optimizer": {"config": {"lr": 1e30}}, "on_bad_loss": "skip", "trainer": {"max_epochs": 50}}
    with pytest.raises(InputError, match="steps one after the other had to be left out"):
        start(settings({"ema": {"decay": 0}}, diverging), Data(frames(24)), tmp_path / "run")


def test_a_gradient_that_is_no_number(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    forward = Potential.forward

    def with_a_bad_gradient(self: Potential, graph):  # type: ignore[no-untyped-def]
        out = forward(self, graph)
        if self.training:
            zero = next(self.parameters()).sum() * 0
            out["energy"] = out["energy"] + zero.abs().sqrt()  # 0, with an infinite slope
        return out

    monkeypatch.setattr(Potential, "forward", with_a_bad_gradient)
    with pytest.raises(InputError, match="gradient became nan at step 0 in the batch of train data: frames "):
        start(settings(), Data(frames(24)), tmp_path / "run")


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB"),
        RuntimeError(
            "[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes"
        ),
        MemoryError(),
    ],
)
def test_a_batch_that_fills_the_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def full(self: Potential, graph: object) -> None:
        raise error

    assert is_out_of_memory(error)
    monkeypatch.setattr(Potential, "forward", full)
    words = (
        r"a batch of 4 structures, \d+ atoms and \d+ edges does not fit .*max_atoms=\d+\) or a smaller model$"
    )
    with pytest.raises(InputError, match=words):
        start(settings(), Data(frames(24)), tmp_path / "run")


def test_other_errors_are_not_taken_for_it() -> None:
    assert not is_out_of_memory(RuntimeError("shapes do not fit"))
    assert not is_out_of_memory(ValueError("out of memory"))


@register_callback
class KillWorkers(pl.Callback):
    """Kills the data workers in the second epoch, as a system short of memory does."""

    def on_train_batch_start(self, trainer: pl.Trainer, *args: object) -> None:
        for child in multiprocessing.active_children() if trainer.current_epoch == 1 else []:
            os.kill(child.pid or 0, signal.SIGKILL)


@register_callback
class Remove(pl.Callback):
    """Removes the file of the data in the second epoch."""

    def __init__(self, path: str) -> None:
        self.path = Path(path)

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if trainer.current_epoch == 1:
            self.path.unlink()


def test_a_killed_worker_is_one_line_and_the_best_model_stays(tmp_path: Path) -> None:
    data = Data(write_frames(tmp_path / "data.xyz"))
    config = settings({"trainer": {"callbacks": [{"name": "KillWorkers"}]}, "datamodule": {"num_workers": 1}})
    with pytest.raises(
        InputError, match=r"a data worker died.*num_workers=0.*the best model until then is"
    ) as told:
        start(config, data, tmp_path / "run")
    assert "\n" not in str(told.value)
    assert all(p.isfinite().all() for p in load_potential(tmp_path / "run" / "model.ckpt").parameters())


@pytest.mark.parametrize("kind", ["xyz", "db"])
def test_a_file_that_is_gone_does_not_end_a_run(tmp_path: Path, kind: str) -> None:
    """What was opened stays open; no frame is read twice or left out."""
    path = tmp_path / f"data.{kind}"
    write(path, frames(24))
    remove = {"name": "Remove", "config": {"path": str(path)}}
    live = {"datamodule": {"pre_batch": None}}
    results = []
    for name, callbacks in (("kept", []), ("removed", [remove])):
        config = settings(live, {"trainer": {"callbacks": callbacks}})
        results.append(start(config, Data(str(path)), tmp_path / name).best["score"])
    assert results[0] == results[1]


FULL = """
import resource, signal, sys
from physicsml_ase.cli.app import app
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, ({limit}, {limit}))
app({arguments!r})
"""


@pytest.mark.skipif(sys.platform == "win32", reason="has no limit of file sizes")
@pytest.mark.parametrize("limit", [1000, 60_000])
def test_a_full_disk_is_one_line_and_no_half_model(tmp_path: Path, limit: int) -> None:
    """Full when the config is written, and when the checkpoint is."""
    given = ["train", "--train", write_frames(tmp_path / "data.xyz"), "-o", str(tmp_path / "run")]
    given += [
        "model.channels=16",
        "model.layers=2",
        "trainer.max_epochs=2",
        "model.name=painn",
        "compile=false",
    ]
    code = FULL.format(limit=limit, arguments=given)
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 2, done.stderr
    assert "Traceback" not in done.stderr
    assert re.search(r"error: .*(File too large|could not be written)", done.stderr), done.stderr
    assert not (tmp_path / "run" / "model.ckpt").exists()
    assert not list(tmp_path.rglob(".model.ckpt*"))
