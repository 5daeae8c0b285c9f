"""The LightningModule: averaged weights, the best of them, and a Trainer that is built by hand."""

from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from runs_for_tests import SMALL, checkpoint, frames, settings
from torch import nn

from physicsml_ase.checkpoint import load_potential
from physicsml_ase.config import validate
from physicsml_ase.conventions import InputError
from physicsml_ase.data.datamodule import DataModule
from physicsml_ase.data.settings import DataModuleConfig
from physicsml_ase.models.painn import PaiNNConfig
from physicsml_ase.potential import Potential
from physicsml_ase.train.ema import Ema, EmaConfig
from physicsml_ase.train.losses import default_loss
from physicsml_ase.train.module import PotentialModule
from physicsml_ase.train.optim import OptimizerConfig
from physicsml_ase.train.run import Data, start

MODEL = PaiNNConfig(channels=8, layers=1, num_radial=4)


def parts(count: int = 24, **config: Any) -> tuple[PotentialModule, DataModule]:
    """The objects that users build by hand."""
    data = DataModule(
        validate(DataModuleConfig, SMALL["datamodule"] | config), frames(count), test=frames(6, 1)
    )
    torch.manual_seed(0)
    potential = Potential(MODEL, data.domain, data.labels)
    loss = default_loss({label.name: label.level for label in data.labels})
    module = PotentialModule(potential, loss, OptimizerConfig(config={"lr": 1e-2}), ema=EmaConfig(decay=0.9))
    return module, data


def trainer(root: Path, **arguments: Any) -> pl.Trainer:
    quiet = {"enable_progress_bar": False, "enable_model_summary": False, "logger": False}
    return pl.Trainer(
        **{"accelerator": "cpu", "devices": 1, "max_epochs": 2, "default_root_dir": root} | quiet | arguments
    )


# --- the average


def test_the_average_by_hand() -> None:
    layer = nn.Linear(1, 1, bias=False)
    values = [1.0, 2.0, 5.0]
    with torch.no_grad():
        layer.weight.fill_(values[0])
        ema = Ema(layer, 0.2)
        expected = values[0]
        for step, value in enumerate(values[1:], 1):
            layer.weight.fill_(value)
            ema.update()
            decay = min(0.2, (1 + step) / (10 + step))
            expected = decay * expected + (1 - decay) * value
    assert ema.weights["weight"].item() == pytest.approx(expected)
    with ema.worn():
        assert layer.weight.item() == pytest.approx(expected)
        assert ema.own_weights["weight"].item() == 5.0
        ema.put_on()  # twice is once
    assert layer.weight.item() == 5.0
    other = Ema(nn.Linear(1, 1, bias=False), 0.2)
    other.load_state_dict(ema.state_dict())
    assert (other.steps, other.weights["weight"].item()) == (2, ema.weights["weight"].item())


class Watch(pl.Callback):
    """What the potential wears in training and validation, and in a checkpoint saved while validating."""

    def __init__(self, path: Path) -> None:
        self.path, self.worn = path, list[bool]()

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        assert isinstance(pl_module, PotentialModule)
        assert pl_module.ema is not None
        assert pl_module.ema._own is None

    def on_validation_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *_: Any) -> None:
        assert isinstance(pl_module, PotentialModule)
        assert pl_module.ema is not None
        own, average = pl_module.ema.own_weights, pl_module.ema.weights
        now = dict(pl_module.potential.named_parameters())
        self.worn.append(all(torch.equal(now[k], average[k]) for k in now))
        trainer.save_checkpoint(self.path)
        saved = checkpoint(self.path)["state_dict"]
        assert all(torch.equal(saved[f"potential.{k}"], own[k]) for k in now)
        assert any(not torch.equal(own[k], average[k]) for k in now)


def test_the_average_is_validated_and_own_weights_are_saved(tmp_path: Path) -> None:
    module, data = parts()
    watch = Watch(tmp_path / "saved.ckpt")
    trainer(tmp_path, callbacks=[watch], num_sanity_val_steps=0).fit(module, datamodule=data)
    assert watch.worn == [True, True]
    # a calculator takes the average out of a training checkpoint
    loaded = load_potential(tmp_path / "saved.ckpt").state_dict()
    saved = checkpoint(tmp_path / "saved.ckpt")["ema"]["weights"]
    assert all(torch.equal(loaded[k], saved[k]) for k in saved)


def test_accumulated_gradients_count_as_one_step_of_the_average(tmp_path: Path) -> None:
    module, data = parts()
    by_hand = trainer(tmp_path, accumulate_grad_batches=2, max_epochs=1)
    by_hand.fit(module, datamodule=data)
    assert module.ema is not None
    assert module.ema.steps == by_hand.global_step == 3  # of five batches


class Norms(pl.Callback):
    """Of the gradient before and after it is clipped, and its largest component then."""

    def __init__(self) -> None:
        self.before: list[float] = []
        self.after: list[float] = []
        self.largest: list[float] = []

    def on_before_optimizer_step(self, trainer: pl.Trainer, pl_module: pl.LightningModule, _: Any) -> None:
        self.before.append(float(gradient(pl_module).norm()))

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *_: Any) -> None:
        self.after.append(float(gradient(pl_module).norm()))
        self.largest.append(float(gradient(pl_module).abs().max()))


def gradient(module: pl.LightningModule) -> torch.Tensor:
    return torch.cat([p.grad.flatten() for p in module.parameters() if p.grad is not None])


@pytest.mark.parametrize("kind", [None, "norm", "value"])
def test_gradients_are_clipped(tmp_path: Path, kind: str | None) -> None:
    module, data = parts()
    norms = Norms()
    how = {"gradient_clip_val": 1e-3, "gradient_clip_algorithm": kind}
    trainer(tmp_path, callbacks=[norms], max_epochs=1, **how).fit(module, datamodule=data)
    assert min(norms.before) > 2e-3
    if kind == "value":
        assert max(norms.largest) == pytest.approx(1e-3)
        assert max(norms.after) > 2e-3
    else:
        assert norms.after == pytest.approx([1e-3] * len(norms.after), rel=1e-2)


def test_the_best_is_kept() -> None:
    module, _ = parts()
    for step, (score, is_better) in enumerate(
        [(2.0, True), (3.0, False), (float("nan"), False), (1.0, True)]
    ):
        assert module.keep_if_best({"val/total/loss": score, "val/energy/mae": float(step)}) is is_better
    assert module.best["score"] == 1.0
    assert module.best["errors"] == {"energy/mae": 3.0}
    first = {k: v.clone() for k, v in module.best["weights"].items()}
    with torch.no_grad():
        for value in module.averaged_weights().values():
            value.add_(1.0)
    assert all(torch.equal(module.best["weights"][k], v) for k, v in first.items())


def test_the_last_is_kept_where_that_is_asked() -> None:
    module, _ = parts()
    module.keep = "last"
    for score, is_kept in ((2.0, True), (3.0, True), (float("nan"), False)):
        assert module.keep_if_best({"val/total/loss": score}) is is_kept
    assert module.best["score"] == 3.0


# --- by hand


def test_fit_validate_test_predict_by_hand(tmp_path: Path) -> None:
    module, data = parts()
    by_hand = trainer(tmp_path)
    by_hand.fit(module, datamodule=data)
    names = {f"{of}/{x}" for of in ("val", "train") for x in ("energy/loss", "forces/loss", "total/loss")}
    errors = {f"val/{x}/{kind}" for x in ("energy", "forces") for kind in ("mae", "rmse")}
    assert names | errors == set(by_hand.callback_metrics)
    before = by_hand.callback_metrics["val/total/loss"]
    again = by_hand.validate(module, datamodule=data, verbose=False)[0]
    assert again["val/total/loss"] == pytest.approx(float(before))
    tested = by_hand.test(module, datamodule=data, verbose=False)[0]
    assert {"test/energy/rmse", "test/forces/mae", "test/total/loss"} <= tested.keys()
    to_predict = DataModule(data.config, predict=frames(5, 1), domain=data.domain, labels=data.labels)
    batches = by_hand.predict(module, datamodule=to_predict)
    assert batches is not None
    energies = torch.cat([batch["energy"] for batch in batches])
    assert module.ema is not None
    with module.ema.worn():
        alone = [load(module, k)["energy"] for k in range(5)]
    torch.testing.assert_close(energies, torch.cat(alone))


def load(module: PotentialModule, k: int) -> dict[str, torch.Tensor]:
    from physicsml_ase.atoms import to_graph

    module.potential.eval()
    return module.potential(to_graph(frames(5, 1)[k], module.potential.domain.cutoff))


def test_continued_by_hand(tmp_path: Path) -> None:
    module, data = parts()
    first = trainer(tmp_path, max_epochs=1)
    first.fit(module, datamodule=data)
    first.save_checkpoint(tmp_path / "first.ckpt")
    continued, data = parts()
    trainer(tmp_path, max_epochs=3).fit(continued, datamodule=data, ckpt_path=str(tmp_path / "first.ckpt"))
    whole, data = parts()
    trainer(tmp_path, max_epochs=3).fit(whole, datamodule=data)
    for name, value in whole.state_dict().items():
        assert torch.equal(value, continued.state_dict()[name]), name
    assert continued.ema is not None
    assert whole.ema is not None
    assert continued.ema.steps == whole.ema.steps == 15
    assert continued.best["score"] == whole.best["score"]


# --- data of many kinds


@pytest.mark.parametrize("mode", ["max_size_cycle", "max_size", "min_size"])
def test_several_sources(tmp_path: Path, mode: str) -> None:
    config = settings(
        {"datamodule": {"train": {"batch_size": {"a": 4, "b": 2}, "mode": mode}, "validation_split": 0}}
    )
    data = Data({"a": frames(16), "b": frames(4, 1)}, {"c": frames(4, 2), "d": frames(3, 3)}, frames(3, 4))
    result = start(config, data, tmp_path / "run")
    assert result.best["step"] <= {"max_size_cycle": 12, "max_size": 12, "min_size": 6}[mode]
    assert (
        checkpoint_steps(result.folder.metrics) == {"max_size_cycle": 12, "max_size": 12, "min_size": 6}[mode]
    )


def checkpoint_steps(metrics: Path) -> int:
    """Optimizer steps of a run, by the last row of its metrics."""
    lines = metrics.read_text().splitlines()
    column = lines[0].split(",").index("step")
    return int(lines[-1].split(",")[column])


def test_missing_labels(tmp_path: Path) -> None:
    some = frames(24)
    for k, atoms in enumerate(some):
        del atoms.calc.results["forces" if k % 3 else "energy"]
    result = start(settings({"datamodule": {"train": {"batch_size": 1}}}), Data(some), tmp_path / "run")
    assert result.best["score"] == result.best["score"]
    assert all(value.isfinite().all() for value in result.potential.state_dict().values())


def test_without_validation(tmp_path: Path) -> None:
    config = settings({"datamodule": {"validation_split": 0}})
    result = start(config, Data(frames(8)), tmp_path / "run")
    assert result.best == {}
    assert result.folder.model.exists()
    early = {"trainer": {"callbacks": [{"name": "EarlyStopping", "config": {"monitor": "val/total/loss"}}]}}
    with pytest.raises(InputError, match=r"^trainer.callbacks: Early stopping conditioned on"):
        start(settings(early, {"datamodule": {"validation_split": 0}}), Data(frames(8)), tmp_path / "other")


def test_a_loss_that_is_no_number_is_told(tmp_path: Path) -> None:
    config = settings({"optimizer": {"config": {"lr": 1e30}}, "ema": {"decay": 0}})
    with pytest.raises(InputError, match=r"the loss became (nan|inf).*lower the learning rate"):
        start(config, Data(frames(24)), tmp_path / "run")


@pytest.mark.parametrize("precision", [64, "bf16-mixed"])
def test_precisions(tmp_path: Path, precision: int | str) -> None:
    result = start(settings({"trainer": {"precision": precision}}), Data(frames(12)), tmp_path / "run")
    dtype = torch.float64 if precision == 64 else torch.float32
    assert result.potential.dtype == load_potential(result.folder.model).dtype == dtype


def test_a_precision_that_rounds_the_data_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="use bf16-mixed"):
        start(settings({"trainer": {"precision": "bf16-true"}}), Data(frames(12)), tmp_path / "run")


def test_validation_without_the_losses_labels_selects_nothing(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Energies only to validate on, forces to learn: the mean of nothing is not the best score."""
    train, validation = frames(8), frames(3)
    for atoms in validation:
        del atoms.calc.results["forces"]
    config = settings({"loss": {"forces": {"name": "L1Loss"}}, "trainer": {"max_epochs": 2}})
    result = start(config, Data(train, validation), tmp_path / "run")
    assert result.best == {}
    assert "no validation structure has a label of the loss (forces)" in caplog.text
