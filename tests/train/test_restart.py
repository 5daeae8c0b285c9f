"""A run that was killed anywhere and resumed ends as the one that was not: bit for bit, on one thread."""

import json
import logging
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from runs_for_tests import SMALL, Killed, checkpoint, differences, settings, write_frames

from physicsml_ase.checkpoint import load_potential
from physicsml_ase.config import load, validate
from physicsml_ase.conventions import InputError
from physicsml_ase.recipe import merge
from physicsml_ase.train import fit
from physicsml_ase.train.given import as_text
from physicsml_ase.train.run import Data, Result, resume, start
from physicsml_ase.train.settings import RunConfig

EARLY = {"name": "EarlyStopping", "config": {"monitor": "val/total/loss", "patience": 2}}
LAST = {"name": "ModelCheckpoint", "config": {"filename": "end", "enable_version_counter": False}}
PLATEAU = {"name": "ReduceLROnPlateau", "config": {"patience": 0, "threshold": 0.5}}


@pytest.fixture(autouse=True)
def _save_always(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fit, "SAVE_EVERY_SECONDS", 0.0)


def run_twice(folder: Path, config: dict[str, Any], kill_before: int, count: int = 24) -> None:
    """Run whole, and killed and resumed; both must leave the same."""
    data = Data(write_frames(folder / "frames.xyz", count))
    callbacks = config.get("trainer", {}).get("callbacks", [EARLY])
    given = [*callbacks, LAST]
    whole = settings(config, {"trainer": {"callbacks": given}})
    start(whole, data, folder / "a")
    kill = [*given, {"name": "KillBefore", "config": {"batch": kill_before}}]
    with pytest.raises(Killed):
        start(settings(config, {"trainer": {"callbacks": kill}}), data, folder / "b")
    assert not (folder / "b/model.ckpt").exists()
    text = (folder / "b/config.yaml").read_text()
    at = text.index("  - name: KillBefore")
    (folder / "b/config.yaml").write_text(text[:at] + text[text.index("  fast_dev_run") :])
    resume(folder / "b")
    for name in ("model.ckpt", "checkpoints/end.ckpt"):
        a, b = checkpoint(folder / "a" / name), checkpoint(folder / "b" / name)
        assert list(differences(a, b)) == []
    assert (folder / "a/metrics.csv").read_text() == (folder / "b/metrics.csv").read_text()


# 24 frames: 2 are split off, 22 make 5 batches of 4 in an epoch
SLOW = pytest.mark.slow


@pytest.mark.parametrize("kill_before", [7, 11, *(pytest.param(k, marks=SLOW) for k in (3, 5, 6, 10, 12))])
def test_killed_in_mid_epoch_and_at_its_boundaries(tmp_path: Path, kill_before: int) -> None:
    run_twice(tmp_path, {"trainer": {"max_epochs": 4}}, kill_before)


CASES: dict[str, tuple[dict[str, Any], int]] = {
    "one batch an epoch": ({"datamodule": {"train": {"batch_size": 22}}, "trainer": {"max_epochs": 5}}, 3),
    "two batches an epoch": ({"datamodule": {"train": {"batch_size": 11}}, "trainer": {"max_epochs": 5}}, 5),
    "validation within epochs": ({"trainer": {"val_check_interval": 0.4}}, 7),
    "validation within epochs, just before": ({"trainer": {"val_check_interval": 2}}, 8),
    "validation across epochs": ({"trainer": {"val_check_interval": 3, "check_val_every_n_epoch": None}}, 8),
    "validation after every batch": ({"trainer": {"val_check_interval": 1}}, 8),
    "validation every other epoch": ({"trainer": {"check_val_every_n_epoch": 2, "max_epochs": 4}}, 12),
    "accumulated gradients": ({"trainer": {"accumulate_grad_batches": 2}}, 8),
    "accumulated gradients, an epoch of them": ({"trainer": {"accumulate_grad_batches": 5}}, 12),
    "a number of steps": ({"trainer": {"max_steps": 13, "max_epochs": -1}}, 10),
    "a number of steps, first batch of an epoch": ({"trainer": {"max_steps": 13, "max_epochs": -1}}, 11),
    "patience ends": ({"trainer": {"max_epochs": 12}, "optimizer": {"config": {"lr": 0.3}}}, 16),
    "plateau": ({"scheduler": PLATEAU, "trainer": {"max_epochs": 5}}, 12),
    "plateau, first batch of an epoch": ({"scheduler": PLATEAU, "trainer": {"max_epochs": 5}}, 11),
    "plateau and steps": ({"scheduler": PLATEAU, "trainer": {"max_epochs": -1, "max_steps": 22}}, 12),
    "another schedule by epochs": ({"scheduler": {"name": "StepLR", "config": {"step_size": 1}}}, 8),
    "no schedule, no average": ({"scheduler": None, "ema": {"decay": 0}}, 8),
    "no validation": ({"datamodule": {"validation_split": 0}, "trainer": {"callbacks": []}}, 8),
    "double precision": ({"trainer": {"precision": 64}}, 8),
    "graphs made anew": ({"datamodule": {"pre_batch": None}}, 8),
    "batches by atoms": ({"datamodule": {"train": {"batch_size": 4, "max_atoms": 18}}}, 8),
    "batches kept": ({"datamodule": {"train": {"batch_size": 4, "redraw_interval": 2}}}, 8),
}  # fmt: skip


QUICK = (
    "validation within epochs",
    "accumulated gradients",
    "plateau",
    "a number of steps, first batch of an epoch",
)


@pytest.mark.parametrize(
    "name", [name if name in QUICK else pytest.param(name, marks=SLOW) for name in CASES]
)
def test_killed(tmp_path: Path, name: str) -> None:
    run_twice(tmp_path, *CASES[name])


@pytest.mark.slow
def test_killed_with_workers(tmp_path: Path) -> None:
    run_twice(tmp_path, {"datamodule": {"num_workers": 2, "pre_batch": None}}, 8)


@pytest.mark.slow
def test_killed_with_graphs_on_disk(tmp_path: Path) -> None:
    run_twice(tmp_path, {"datamodule": {"pre_batch": "on_disk", "cache_dir": str(tmp_path / "cache")}}, 8)


# --- signals


def signalled(folder: Path, signum: int, times: int = 1) -> Result:
    """A run that a signal reaches before its eighth batch."""
    data = Data(write_frames(folder / "frames.xyz"))
    callback = {"name": "SignalBefore", "config": {"batch": 7, "signum": int(signum), "times": times}}
    return start(settings({"trainer": {"callbacks": [EARLY, LAST, callback]}}), data, folder / "b")


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_leaves_a_model_and_a_run_that_ends_as_if_there_was_none(
    tmp_path: Path, signum: int, caplog: pytest.LogCaptureFixture
) -> None:
    handlers = [signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM)]
    caplog.set_level(logging.INFO, "physicsml_ase")
    result = signalled(tmp_path, signum)
    assert handlers == [signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM)]
    assert result.interrupted == signum
    assert f"physicsml-ase resume {tmp_path / 'b'}" in caplog.text
    assert checkpoint(result.folder.last)["global_step"] == 8
    assert "forces" in load_potential(result.folder.model).outputs
    assert result.folder.read_record()["status"] == "interrupted"
    ended = resume(tmp_path / "b")  # its signal came before batch 8, which is over
    whole = start(
        settings({"trainer": {"callbacks": [EARLY, LAST]}}),
        Data(str(tmp_path / "frames.xyz")),
        tmp_path / "a",
    )
    assert ended.best == whole.best
    for name in ("model.ckpt", "checkpoints/end.ckpt"):
        a, b = checkpoint(tmp_path / "a" / name), checkpoint(tmp_path / "b" / name)
        assert list(differences(a, b)) == []
    with pytest.raises(InputError, match="the run is finished"):
        resume(tmp_path / "b")


def test_a_second_signal_stops_at_once(tmp_path: Path) -> None:
    before = signal.getsignal(signal.SIGINT)  # of a job in the background another than Python's
    with pytest.raises(KeyboardInterrupt):
        signalled(tmp_path, signal.SIGINT, times=2)
    assert not (tmp_path / "b/checkpoints/last.ckpt").exists() or (
        checkpoint(tmp_path / "b/checkpoints/last.ckpt")["global_step"] < 8
    )
    assert signal.getsignal(signal.SIGINT) is before


def test_a_run_without_a_checkpoint_begins_again(tmp_path: Path) -> None:
    data = Data(write_frames(tmp_path / "frames.xyz"))
    config = {"trainer": {"callbacks": [{"name": "KillBefore", "config": {"batch": 0}}]}}
    with pytest.raises(Killed):
        start(settings(config), data, tmp_path / "b")
    with pytest.raises(InputError, match=r"already holds a run; continue it with `physicsml-ase resume .*b`"):
        start(settings(), data, tmp_path / "b")
    config_file = tmp_path / "b/config.yaml"
    config_file.write_text(config_file.read_text().replace("batch: 0", "batch: 900"))
    a, b = start(settings(), data, tmp_path / "a"), resume(tmp_path / "b")
    assert a.best == b.best


def test_a_path_from_the_home_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert as_text(Data("~/frames.xyz@:3")) == Data(str(tmp_path / "frames.xyz@:3"))._asdict()


def test_given_weights_are_not_forgotten_by_a_resumed_run(tmp_path: Path) -> None:
    data = Data(write_frames(tmp_path / "frames.xyz"))
    trained = start(settings(), data, tmp_path / "a").potential
    killed = settings({"trainer": {"callbacks": [{"name": "KillBefore", "config": {"batch": 0}}]}})
    with pytest.raises(Killed):
        start(killed, data, tmp_path / "b", potential=trained)
    with pytest.raises(
        InputError, match="begun from trained weights, and stopped before its first checkpoint"
    ):
        resume(tmp_path / "b")


def test_other_data_are_no_continuation(tmp_path: Path) -> None:
    signalled(tmp_path, signal.SIGTERM)
    write_frames(tmp_path / "frames.xyz", seed=1)
    with pytest.raises(InputError, match="the train data changed since the run began"):
        resume(tmp_path / "b")


# --- processes


CODE = """
import signal
import physicsml_ase.train.fit as fit
from physicsml_ase.cli import main
fit.SAVE_EVERY_SECONDS = 0.0
main()
"""


def process(*arguments: str) -> subprocess.Popen[str]:
    """The command line in a process group of its own, saving whenever it can."""
    return subprocess.Popen(
        [sys.executable, "-c", CODE, *arguments],
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def long_run(folder: Path, *changes: str) -> tuple[Path, list[str]]:
    """A config whose run takes some seconds, and what begins that run."""
    write_frames(folder / "frames.xyz", 40)
    config = folder / "config.json"
    plain = merge(SMALL, {"trainer": {"max_epochs": 12, "callbacks": [EARLY, LAST]}})
    config.write_text(json.dumps(plain))
    return config, ["train", str(config), "--train", str(folder / "frames.xyz"), *changes]


def wait_for(path: Path, of: subprocess.Popen[str], seconds: float = 60.0) -> None:
    end = time.monotonic() + seconds
    while not path.exists():
        assert of.poll() is None, of.communicate()[1]
        assert time.monotonic() < end
        time.sleep(0.02)


def same_end(folder: Path) -> bool:
    a, b = (checkpoint(folder / run / "checkpoints/end.ckpt") for run in "ab")
    return list(differences(a, b)) == []


def test_a_killed_process(tmp_path: Path) -> None:
    config, arguments = long_run(tmp_path)
    killed = process(*arguments, "-o", str(tmp_path / "b"))
    wait_for(tmp_path / "b/checkpoints/last.ckpt", killed)
    time.sleep(0.3)
    killed.send_signal(signal.SIGKILL)
    killed.communicate(timeout=60)
    assert checkpoint(tmp_path / "b/checkpoints/last.ckpt")["epoch"] < 12
    start(validate(RunConfig, load(config)), Data(str(tmp_path / "frames.xyz")), tmp_path / "a")
    resume(tmp_path / "b")
    assert same_end(tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("changes", [[], ["datamodule.num_workers=2", "datamodule.pre_batch=null"]])
def test_ctrl_c_and_resume_on_the_command_line(tmp_path: Path, changes: list[str]) -> None:
    _, arguments = long_run(tmp_path, *changes)
    for signum in (signal.SIGINT, signal.SIGTERM):
        resumed = ["resume", str(tmp_path / "b")]
        begun = (tmp_path / "b").exists()
        run = process(*(resumed if begun else [*arguments, "-o", str(tmp_path / "b")]))
        last = tmp_path / "b/checkpoints/last.ckpt"
        wait_for(last, run)
        before = last.stat().st_mtime_ns
        while last.stat().st_mtime_ns == before:
            time.sleep(0.01)
        os.killpg(run.pid, signum)
        told = run.communicate(timeout=60)[1]
        assert run.returncode == 128 + signum, told
        assert f"continue with `physicsml-ase resume {tmp_path / 'b'}`" in told
        assert "Traceback" not in told
        assert (tmp_path / "b/model.ckpt").exists()
    for arguments_ in (["resume", str(tmp_path / "b")], [*arguments, "-o", str(tmp_path / "a")]):
        run = process(*arguments_)
        told = run.communicate(timeout=100)[1]
        assert run.returncode == 0, told
    assert same_end(tmp_path)
