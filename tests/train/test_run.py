"""A run's folder: what is in it, what it refuses, and that its config trains the same again."""

import csv
import json
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from ase import Atoms
from ase.build import bulk
from ase.calculators.emt import EMT
from ase.calculators.singlepoint import SinglePointCalculator
from runs_for_tests import checkpoint, differences, frames, settings, write_frames

from physicsml_ase import load_model
from physicsml_ase.checkpoint import load_potential
from physicsml_ase.config import load, to_plain, validate
from physicsml_ase.conventions import InputError
from physicsml_ase.train.folder import RunFolder, free_folder
from physicsml_ase.train.pace import EndInTime
from physicsml_ase.train.run import Data, resume, start
from physicsml_ase.train.settings import RunConfig
from physicsml_ase.train.trainer import register_callback


def test_what_a_run_leaves(tmp_path: Path) -> None:
    data = Data(write_frames(tmp_path / "frames.xyz"), None, write_frames(tmp_path / "test.xyz", 6, 1))
    result = start(settings(), data, tmp_path / "run")
    root = tmp_path / "run"
    assert sorted(p.name for p in root.iterdir() if p.name != "train.log") == [
        *("checkpoints", "config.yaml", "metrics.csv", "model.ckpt", "run.json")
    ]  # and the log, where something was said
    record = json.loads((root / "run.json").read_text())
    assert record["status"] == "finished"
    assert {"physicsml_ase", "python", "torch", "lightning", "ase"} <= record["versions"].keys()
    sources = record["summary"]["sources"]
    assert all(len(sources[name]["hash"]) >= 16 for name in ("train", "validation", "test"))
    split = record["summary"]["split"][""]
    assert sorted(split["train"] + split["validation"]) == list(range(24))
    assert record["domain"]["elements"] == [1, 6, 7, 8]
    assert record["test"] == result.test_errors
    with open(root / "metrics.csv", newline="") as file:
        columns = next(csv.reader(file))
    of = {f"{s}/{x}/loss" for s in ("train", "val", "test") for x in ("energy", "forces", "total")}
    errors = {f"{s}/{x}/{e}" for s in ("val", "test") for x in ("energy", "forces") for e in ("mae", "rmse")}
    assert set(columns) == of | errors | {"epoch", "step"}
    model = checkpoint(root / "model.ckpt")
    assert model["about"]["finished"]
    assert model["about"]["config"]["datamodule"]["train_data"] is None
    assert list((root / "checkpoints").iterdir()) == []  # nothing was due, and nothing asked for
    with pytest.raises(InputError, match=r"already holds a run; its model is .*model\.ckpt"):
        start(settings(), data, root)
    assert free_folder(root) == tmp_path / "run-2"


@pytest.mark.parametrize("saves", [True, False])
def test_checkpoints_of_lightning_are_beside(tmp_path: Path, saves: bool) -> None:
    result = start(settings({"trainer": {"enable_checkpointing": saves}}), Data(frames(12)), tmp_path / "run")
    assert result.folder.model.exists()
    assert bool(list((tmp_path / "run/checkpoints").iterdir())) is saves


def test_the_resolved_config_trains_the_same_again(tmp_path: Path) -> None:
    data = Data(write_frames(tmp_path / "frames.xyz"))
    first = start(settings({"ema": {"decay": 0.9}}), data, tmp_path / "a")
    plain = load(tmp_path / "a/config.yaml")
    config = validate(RunConfig, plain)
    assert to_plain(config) == plain
    assert config.loss is not None  # resolved
    named = config.datamodule
    again = start(config, Data(named.train_data, named.validation_data, named.test_data), tmp_path / "b")
    assert first.best == again.best
    a, b = checkpoint(tmp_path / "a/model.ckpt"), checkpoint(tmp_path / "b/model.ckpt")
    assert list(differences(a["state_dict"], b["state_dict"])) == []


def test_another_seed_is_another_run(tmp_path: Path) -> None:
    config = {"datamodule": {"validation_split": 4}}
    results = [start(settings(config, {"seed": k}), Data(frames()), tmp_path / str(k)) for k in (0, 1)]
    assert results[0].best["score"] != results[1].best["score"]


def test_training_is_repeatable_and_leaves_the_random_state_alone(tmp_path: Path) -> None:
    before = torch.get_rng_state()
    results = [start(settings(), Data(frames()), tmp_path / str(k)) for k in (0, 1)]
    assert results[0].best == results[1].best
    assert torch.equal(torch.get_rng_state(), before)


def test_continue_in_python(tmp_path: Path) -> None:
    path = write_frames(tmp_path / "frames.xyz")
    last = {"name": "ModelCheckpoint", "config": {"filename": "{epoch}", "save_top_k": -1}}
    config: dict[str, Any] = to_plain(settings())
    config["trainer"]["default_root_dir"] = str(tmp_path / "run")
    config["trainer"]["callbacks"] = [last]
    whole = load_model(config).train(path)
    ckpt = tmp_path / "run/checkpoints/epoch=0.ckpt"
    continued = load_model(config).train(path, ckpt_path=ckpt)
    assert continued.folder == tmp_path / "run-2"
    a, b = whole.potential.state_dict(), continued.potential.state_dict()
    assert all(torch.equal(a[k], b[k]) for k in a)
    with pytest.raises(InputError, match=r"model.channels: 4, but the run that is to be continued has 8"):
        load_model(config, ["model.channels=4"]).train(path, ckpt_path=ckpt)
    before = sorted(tmp_path.iterdir())
    rate = to_plain(settings())["optimizer"]["config"]["lr"]
    for change, words in (
        ("optimizer.name=SGD", "optimizer.name: 'SGD', but the run that is to be continued has '"),
        ("optimizer.config.lr=1e-5", f"optimizer.config.lr: 1e-05, but .* has {rate}"),
        ("scheduler.config.warmup=0.3", r"scheduler.config.warmup: 0.3, but .* has None"),
    ):
        with pytest.raises(InputError, match=words):
            load_model(config, [change]).train(path, ckpt_path=ckpt)
    assert sorted(tmp_path.iterdir()) == before
    with pytest.raises(InputError, match=r"is no training checkpoint.*transfer_learning"):
        load_model(config).train(path, ckpt_path=tmp_path / "run/model.ckpt")
    with pytest.raises(InputError, match="no such checkpoint"):
        load_model(config).train(path, ckpt_path=tmp_path / "nowhere.ckpt")


def test_what_a_config_leaves_to_the_data(tmp_path: Path) -> None:
    """It is found again where a run goes on, and is the trained model's where another begins with its weights."""

    def rattled(atoms: Atoms) -> list[Atoms]:
        copies = [atoms.copy() for _ in range(8)]
        for seed, copy in enumerate(copies):
            copy.rattle(0.05, seed=seed)
            copy.calc = EMT()
            energy, forces = copy.get_potential_energy(), copy.get_forces()
            copy.calc = SinglePointCalculator(copy, energy=energy, forces=forces)
        return copies

    metal, dimers = rattled(bulk("Cu", cubic=True)), rattled(Atoms("Cu2", [[0, 0, 0], [0, 0, 2.3]]))
    config: dict[str, Any] = to_plain(settings())
    config["model"]["max_ell"] = None
    config["trainer"] |= {"default_root_dir": str(tmp_path / "run"), "max_epochs": 1}
    first = load_model(config).train(metal)
    assert first.potential.config.max_ell == 6
    saves = {"name": "ModelCheckpoint", "config": {"filename": "{epoch}", "save_top_k": -1}}
    config["trainer"] |= {"default_root_dir": str(tmp_path / "on"), "callbacks": [saves]}
    load_model(config).train(metal)
    config["trainer"] |= {"max_epochs": 2}
    on = load_model(config).train(metal, ckpt_path=tmp_path / "on/checkpoints/epoch=0.ckpt")
    assert on.potential.config.max_ell == 6
    config["transfer_learning"] = {"ckpt": str(first.folder / "model.ckpt")}
    assert load_model(config).train(dimers).potential.config.max_ell == 6


def test_the_deployed_model_is_the_best_average(tmp_path: Path) -> None:
    result = start(settings({"ema": {"decay": 0.9}}), Data(frames()), tmp_path / "run")
    loaded = load_potential(result.folder.model)
    errors = load_model(result.folder.model).evaluate(frames()).metrics
    assert errors
    for name, value in result.potential.state_dict().items():
        assert torch.equal(value, loaded.state_dict()[name])


def test_early_stopping(tmp_path: Path) -> None:
    early = {
        "name": "EarlyStopping",
        "config": {"monitor": "val/total/loss", "patience": 1, "min_delta": 100.0},
    }
    result = start(
        settings({"trainer": {"callbacks": [early], "max_epochs": 50}}), Data(frames()), tmp_path / "a"
    )
    assert 2 <= len((result.folder.metrics).read_text().splitlines()) <= 9
    assert not result.interrupted


def test_a_number_of_steps_ends_with_a_validation(tmp_path: Path) -> None:
    result = start(settings({"trainer": {"max_steps": 7, "max_epochs": -1}}), Data(frames()), tmp_path / "a")
    assert result.best["step"] == 7
    with open(result.folder.metrics, newline="") as file:
        steps = [row["step"] for row in csv.DictReader(file) if row["val/total/loss"]]
    assert steps == ["4", "6"]


def test_a_time_that_was_over_before_training_began(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    config = settings({"trainer": {"max_time": "20s", "max_epochs": -1}})
    start(config, Data(frames()), tmp_path / "a", started_at=time.monotonic() - 19.0)
    assert "the time of 20 s was over after 1 steps, of which little is learned; 19 s" in caplog.text


def test_a_time_that_was_over_within_an_epoch(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("physicsml_ase.train.pace.FEW_STEPS", 1)
    config = settings({"trainer": {"max_time": "20s", "max_epochs": -1}})
    start(config, Data(frames()), tmp_path / "a", started_at=time.monotonic() - 19.0)
    assert "was over within the first epoch, after 1 of 5 batches" in caplog.text


@pytest.mark.parametrize("schedule", [{}, {"scheduler": {"name": "StepLR", "config": {"step_size": 100}}}])
def test_a_time_is_kept_over_an_interruption(tmp_path: Path, schedule: dict[str, Any]) -> None:
    stop = {"name": "SignalBefore", "config": {"batch": 8, "signum": int(signal.SIGTERM)}}
    trainer = {"max_time": "5s", "max_epochs": -1, "callbacks": [stop]}
    data = Data(write_frames(tmp_path / "frames.xyz"))
    began = time.monotonic()
    first = start(settings(schedule, {"trainer": trainer}), data, tmp_path / "a", started_at=began - 1.0)
    assert first.interrupted
    used = checkpoint(first.folder.last)["budget"]["elapsed"]
    assert used == pytest.approx(1.0 + time.monotonic() - began, abs=0.5)
    again = time.monotonic()
    result = resume(tmp_path / "a", started_at=again)
    assert 3.5 < used + time.monotonic() - again < 5.5
    assert not result.interrupted
    assert result.best["step"] > first.best["step"]


@register_callback
class SpoilBefore(pl.Callback):
    """Makes the weights infinite before an epoch, as a diverging run does."""

    def __init__(self, epoch: int) -> None:
        self.epoch = epoch

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if trainer.current_epoch == self.epoch:
            with torch.no_grad():
                next(pl_module.parameters()).fill_(torch.inf)


def test_a_run_that_diverges_leaves_its_best_model(tmp_path: Path) -> None:
    spoil = {"trainer": {"callbacks": [{"name": "SpoilBefore", "config": {"epoch": 2}}]}}
    with pytest.raises(InputError, match=r"the loss became .*the best model until then is .*model\.ckpt"):
        start(settings(spoil), Data(frames()), tmp_path / "run")
    potential = load_potential(tmp_path / "run" / "model.ckpt")
    assert all(torch.isfinite(p).all() for p in potential.parameters())
    assert json.loads((tmp_path / "run" / "run.json").read_text())["status"] == "failed"


def test_two_processes_do_not_train_in_one_folder(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "run")
    with folder.held():
        with pytest.raises(InputError, match="another process is training in it"):
            start(settings(), Data(frames()), tmp_path / "run")
        assert free_folder(tmp_path / "run") == tmp_path / "run-2"
    assert free_folder(tmp_path / "run") == tmp_path / "run"
    start(settings(), Data(frames()), tmp_path / "run")


def test_energies_are_no_derivative(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"heads\.energy\.direct: true, but only forces and stress"):
        start(settings({"heads": {"energy": {"direct": True}}}), Data(frames()), tmp_path / "a")


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"optimizer": {"name": "Adam", "config": {"betas": [0.9, 2.0]}}}, "beta"),
        ({"trainer": {"val_check_interval": 100}}, "val_check_interval"),
        (
            {"trainer": {"callbacks": {"name": "StochasticWeightAveraging", "config": {"swa_lrs": 0.1}}}},
            "ema",
        ),
        (
            {
                "trainer": {
                    "callbacks": {"name": "GradientAccumulationScheduler", "config": {"scheduling": {0: 2}}}
                }
            },
            "accumulate_grad_batches",
        ),
        ({"loss": {"energy": {"name": "HuberLoss", "config": {"delta": -1.0}}}}, "delta"),
    ],
)
def test_a_config_that_is_refused_late_leaves_the_folder_free(
    tmp_path: Path, wrong: dict[str, Any], message: str
) -> None:
    with pytest.raises(InputError, match=message) as told:
        start(settings(wrong), Data(frames(24)), tmp_path / "run")
    assert "\n" not in str(told.value)
    assert not RunFolder(tmp_path / "run").is_used
    start(settings(), Data(frames(24)), tmp_path / "run")


def test_last_checkpoints_of_callbacks_are_not_the_run_s_own(tmp_path: Path) -> None:
    last = {"name": "ModelCheckpoint", "config": {"save_last": True}}
    start(settings({"trainer": {"callbacks": last}}), Data(frames(24)), tmp_path / "run")
    assert (tmp_path / "run/checkpoints/callback-last.ckpt").exists()
    assert not (tmp_path / "run/checkpoints/last.ckpt").exists()


@pytest.mark.parametrize(
    ("other", "message"),
    [
        ({"cut_off": 3.5}, r"datamodule.cut_off: 3.5, but the run .* has"),
        ({"self_interaction": True}, "datamodule.self_interaction"),
        ({"y_graph_scalars": ["energy"]}, r"datamodule.y_...: \['energy'\], but"),
    ],
)
def test_a_continued_run_takes_structures_as_before(
    tmp_path: Path, other: dict[str, Any], message: str
) -> None:
    path = write_frames(tmp_path / "frames.xyz")
    config = settings({"trainer": {"callbacks": {"name": "ModelCheckpoint"}}})
    start(config, Data(path), tmp_path / "a")
    (saved,) = (tmp_path / "a/checkpoints").glob("*.ckpt")
    with pytest.raises(InputError, match=message):
        load_model(to_plain(settings({"datamodule": other}))).train(path, ckpt_path=saved)


def test_labels_without_a_term_of_the_loss_are_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for number, loss in enumerate(({"forces": {"weight": 3.0}}, {"forces": {}, "energy": {"weight": 0.0}})):
        start(settings({"loss": loss}), Data(frames(24)), tmp_path / f"{number}")
        assert "energy: in the data, but not learned, as loss names forces alone" in caplog.text
        caplog.clear()
    with pytest.raises(InputError, match="all weights are 0"):
        start(settings({"loss": {"energy": {"weight": 0.0}}}), Data(frames(24)), tmp_path / "none")


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_before_the_first_step_is_no_success(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, signum: signal.Signals
) -> None:
    def signalled(self: EndInTime, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        signal.raise_signal(signum)

    monkeypatch.setattr(EndInTime, "on_train_start", signalled)  # once Lightning has its handlers in place
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a job in the background ignores it
    try:
        with pytest.raises(SystemExit if signum == signal.SIGTERM else KeyboardInterrupt) as stopped:
            start(settings(), Data(frames(24)), tmp_path / "run")
    finally:
        signal.signal(signal.SIGINT, before)
    if isinstance(stopped.value, SystemExit):
        assert stopped.value.code == 143


def test_python_is_told_what_the_command_line_is(tmp_path: Path) -> None:
    """Where the program around has not said where a log goes."""
    write_frames(tmp_path / "frames.xyz")
    (tmp_path / "config.json").write_text(json.dumps(to_plain(settings())))
    code = "from physicsml_ase import load_model; load_model('config.json').train('frames.xyz')"
    told = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    assert "model written to" in told.stderr
