"""A run that was killed anywhere and resumed ends as the one that was not: bit for bit, on one thread."""

from pathlib import Path
from typing import Any

import pytest
from runs_for_tests import Killed, checkpoint, differences, settings, write_frames

from physicsml_ase.train import run as runs
from physicsml_ase.train.run import Data, resume, start

EARLY = {"name": "EarlyStopping", "config": {"monitor": "val/total/loss", "patience": 2}}
LAST = {"name": "ModelCheckpoint", "config": {"filename": "end", "enable_version_counter": False}}
PLATEAU = {"name": "ReduceLROnPlateau", "config": {"patience": 0, "threshold": 0.5}}


@pytest.fixture(autouse=True)
def _save_always(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runs, "SAVE_EVERY_SECONDS", 0.0)


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
