"""Two processes that train together, by gloo on the CPU: as one process with twice the batch size."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from runs_for_tests import SMALL, checkpoint, differences, settings, write_frames

from physicsml_ase.conventions import InputError
from physicsml_ase.recipe import merge
from physicsml_ase.train.run import Data, start

EARLY = {
    "name": "EarlyStopping",
    "config": {"monitor": "val/total/loss", "patience": 12, "min_delta": 100.0},  # stops after 13 epochs
}
LAST = {"name": "ModelCheckpoint", "config": {"filename": "end", "enable_version_counter": False}}
TWO = ("trainer.devices=2", "trainer.strategy=ddp")
CODE = """
import physicsml_ase.train.fit as fit
from physicsml_ase.cli import main
fit.SAVE_EVERY_SECONDS = 0.0
main()
"""


@pytest.fixture
def arguments(tmp_path: Path) -> list[str]:
    """A run of two processes on files, with early stopping and a test set."""
    write_frames(tmp_path / "frames.xyz", 44)
    write_frames(tmp_path / "test.xyz", 7, seed=5)
    config = merge(SMALL, {"trainer": {"max_epochs": 30, "callbacks": [EARLY, LAST]}})
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "physicsml.py").write_text(CODE)
    data = ["--train", str(tmp_path / "frames.xyz"), "--test", str(tmp_path / "test.xyz")]
    return ["train", str(tmp_path / "config.json"), *data, *TWO]


class Run:
    """The command line in a process group that ends with the test, whatever happens."""

    def __init__(self, folder: Path, *arguments: str) -> None:
        # Lightning starts the second process as the first was started: from a file
        self.process = subprocess.Popen(
            [sys.executable, str(folder / "physicsml.py"), *arguments],
            env=os.environ | {"OMP_NUM_THREADS": "1"},
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    def end(self, seconds: float = 100) -> tuple[int, str]:
        """Exit status, and what was told."""
        try:
            told = self.process.communicate(timeout=seconds)[1]
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.process.pid, signal.SIGKILL)
        return self.process.returncode, told


def assert_close(a: Mapping[str, Any], b: Mapping[str, Any], tolerance: float) -> None:
    for name, value in a["state_dict"].items():
        torch.testing.assert_close(value, b["state_dict"][name], rtol=tolerance, atol=tolerance)


def test_two_processes_are_one_with_twice_the_batch(tmp_path: Path, arguments: list[str]) -> None:
    two = Run(tmp_path, *arguments, "-o", str(tmp_path / "two"))
    config = {
        "datamodule": {"train": {"batch_size": 8}},
        "trainer": {"max_epochs": 30, "callbacks": [EARLY]},
    }
    data = Data(str(tmp_path / "frames.xyz"), None, str(tmp_path / "test.xyz"))
    one = start(settings(config), data, tmp_path / "one")
    status, told = two.end()
    assert status == 0, told
    model = checkpoint(tmp_path / "two/model.ckpt")
    rows = (tmp_path / "two/metrics.csv").read_text().splitlines()
    assert rows[-1].startswith("13,65,")  # the test, after 13 epochs of 5 steps and not 30
    assert len(rows) == len(one.folder.metrics.read_text().splitlines())
    assert model["about"]["best"]["step"] == one.best["step"]
    assert model["about"]["best"]["score"] == pytest.approx(one.best["score"], rel=1e-4)
    assert model["about"]["test_errors"] == pytest.approx(one.test_errors, rel=1e-3)
    assert_close(checkpoint(one.folder.model), model, 1e-3)
    assert not (tmp_path / "training").exists()


@pytest.mark.slow
def test_two_processes_stop_at_a_signal_and_continue(tmp_path: Path, arguments: list[str]) -> None:
    whole = Run(tmp_path, *arguments, "-o", str(tmp_path / "a"))
    assert whole.end()[0] == 0
    for group in (True, False):  # the signal reaches both, or only the first
        begun = (tmp_path / "b").exists()
        run = Run(
            tmp_path, *(["resume", str(tmp_path / "b")] if begun else [*arguments, "-o", str(tmp_path / "b")])
        )
        last = tmp_path / "b/checkpoints/last.ckpt"
        before = last.stat().st_mtime_ns if begun else 0
        end = time.monotonic() + 60
        while not last.exists() or last.stat().st_mtime_ns == before:
            assert time.monotonic() < end
            assert run.process.poll() is None
            time.sleep(0.01)
        (os.killpg if group else os.kill)(run.process.pid, signal.SIGTERM)
        status, told = run.end()
        assert status == 128 + signal.SIGTERM, told
        assert "physicsml-ase resume" in told
        assert "Traceback" not in told
    assert Run(tmp_path, "resume", str(tmp_path / "b")).end()[0] == 0
    for name in ("model.ckpt", "checkpoints/end.ckpt"):
        a, b = checkpoint(tmp_path / "a" / name), checkpoint(tmp_path / "b" / name)
        assert list(differences(a, b)) == []


@pytest.mark.slow
def test_two_processes_end_in_time_together(tmp_path: Path, arguments: list[str]) -> None:
    started = time.monotonic()
    endless = [*arguments, "trainer.callbacks=null", "trainer.max_epochs=-1", "--time", "40s"]
    status, told = Run(tmp_path, *endless, "-o", str(tmp_path / "a")).end()
    assert status == 0, told
    assert 30 < time.monotonic() - started < 60  # of which the processes' own end is a part
    last = [
        line.split()[0] for line in told.splitlines() if "validation RMSE" in line and " s  epoch" in line
    ][-1]
    assert 30 < float(last) <= 40
    assert checkpoint(tmp_path / "a/model.ckpt")["about"]["finished"]


@pytest.mark.slow
def test_two_processes_meet_the_same_error(tmp_path: Path, arguments: list[str]) -> None:
    status, told = Run(tmp_path, *arguments, "optimizer.config.lr=1e30", "-o", str(tmp_path / "a")).end()
    assert status == 2
    assert "the loss became nan" in told or "the loss became inf" in told
    assert "Traceback" not in told


def test_processes_that_take_their_weights_with_them_are_refused(tmp_path: Path) -> None:
    data = Data(write_frames(tmp_path / "frames.xyz"))
    with pytest.raises(InputError, match=r"trainer\.strategy: ddp_spawn: .* use ddp"):
        start(settings({"trainer": {"strategy": "ddp_spawn", "devices": 2}}), data, tmp_path / "a")
