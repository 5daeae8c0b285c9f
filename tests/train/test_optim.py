"""Optimizers and schedules by name, and the schedule over steps or wall-clock."""

import json
from pathlib import Path

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.demos.boring_classes import RandomDataset
from torch import nn
from torch.optim.lr_scheduler import CosineAnnealingLR

from physicsml_ase.config import describe, to_plain, validate
from physicsml_ase.conventions import InputError
from physicsml_ase.train import schedule
from physicsml_ase.train.optim import (
    OPTIMIZERS,
    SCHEDULERS,
    OptimizerConfig,
    SchedulerConfig,
    build_optimizer,
    build_scheduler,
)
from physicsml_ase.train.schedule import Budget, WarmupCosine


def net() -> nn.Module:
    return nn.Sequential(nn.Linear(3, 4), nn.SiLU(), nn.Linear(4, 1))


def sgd(lr: float = 1.0) -> torch.optim.Optimizer:
    return torch.optim.SGD(net().parameters(), lr=lr)


def learning_rates(scheduler: torch.optim.lr_scheduler.LRScheduler, steps: int) -> list[float]:
    rates = []
    for _ in range(steps):
        rates.append(scheduler.optimizer.param_groups[0]["lr"])
        scheduler.optimizer.step()
        scheduler.step()
    return rates


class Clock:
    """A clock that a test sets."""

    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    fake = Clock()
    monkeypatch.setattr(schedule, "time", fake)
    return fake


# --- optimizers


@pytest.mark.parametrize("name", sorted(set(OPTIMIZERS.classes) - {"Muon", "MuonAdam"}))
def test_every_optimizer_of_torch(name: str) -> None:
    optimizer = build_optimizer(OptimizerConfig(name=name), net().named_parameters())
    assert type(optimizer) is getattr(torch.optim, name)
    assert sum(len(group["params"]) for group in optimizer.param_groups) == 4


def test_arguments_reach_the_optimizer() -> None:
    config = validate(OptimizerConfig, {"name": "AdamW", "config": {"lr": 0.1, "betas": [0.8, 0.9]}})
    optimizer = build_optimizer(config, net().named_parameters())
    assert optimizer.defaults["lr"] == 0.1
    assert tuple(optimizer.defaults["betas"]) == (0.8, 0.9)
    assert validate(OptimizerConfig, json.loads(json.dumps(to_plain(config)))) == config


@pytest.mark.parametrize(
    ("config", "decays"),
    [
        ({"name": "AdamW"}, [0.01, 0.0]),
        ({"name": "AdamW", "config": {"weight_decay": 0}}, [0]),
        ({"name": "Adam"}, [0]),
        ({"name": "Adam", "config": {"weight_decay": 1e-3}}, [1e-3, 0.0]),
    ],
)
def test_biases_are_not_decayed(config: dict[str, object], decays: list[float]) -> None:
    optimizer = build_optimizer(validate(OptimizerConfig, config), net().named_parameters())
    assert [group["weight_decay"] for group in optimizer.param_groups] == decays
    if len(decays) == 2:
        assert all(p.ndim >= 2 for p in optimizer.param_groups[0]["params"])
        assert all(p.ndim == 1 for p in optimizer.param_groups[1]["params"])


def test_frozen_weights_are_left_out() -> None:
    module = net()
    module[0].requires_grad_(False)
    optimizer = build_optimizer(OptimizerConfig(), module.named_parameters())
    assert sum(len(group["params"]) for group in optimizer.param_groups) == 2
    with pytest.raises(InputError, match="nothing to train"):
        build_optimizer(OptimizerConfig(), module.requires_grad_(False).named_parameters())


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"name": "AdmW"}, "name: unknown optimizer 'AdmW'; did you mean 'AdamW'?"),
        ({"config": {"learning_rat": 1}}, "config.learning_rat: no argument of AdamW; known: lr, betas"),
        ({"config": {"weight_deacy": 1}}, "config.weight_deacy: no argument of AdamW; did you mean 'weight_decay'?"),
        ({"config": {"params": []}}, "config.params: no argument of AdamW"),
        ({"config": {"lr": "fast"}}, "config.lr: 'fast': must be float"),
        ({"config": {"amsgrad": 3}}, "config.amsgrad: 3: must be bool"),
    ],
)  # fmt: skip
def test_bad_optimizers_are_refused_when_the_config_is_read(data: dict[str, object], message: str) -> None:
    with pytest.raises(InputError) as error:
        validate(OptimizerConfig, data, "optimizer")
    assert str(error.value).startswith(f"optimizer: {message}")


def test_values_that_only_torch_refuses_name_the_section() -> None:
    with pytest.raises(InputError, match="optimizer: AdamW: Invalid learning rate: -1"):
        build_optimizer(OptimizerConfig(config={"lr": -1.0}), net().named_parameters())


# --- schedulers


@pytest.mark.parametrize(
    ("name", "config"),
    [
        ("StepLR", {"step_size": 3}),
        ("MultiStepLR", {"milestones": [2, "num_steps"]}),
        ("ConstantLR", {}),
        ("LinearLR", {"total_iters": "num_steps"}),
        ("ExponentialLR", {"gamma": 0.9}),
        ("PolynomialLR", {"total_iters": "num_epochs"}),
        ("CosineAnnealingLR", {"T_max": "num_epochs"}),
        ("CosineAnnealingWarmRestarts", {"T_0": 3}),
        ("OneCycleLR", {"max_lr": 0.1, "total_steps": "num_steps"}),
        ("CyclicLR", {"base_lr": 0.1, "max_lr": 0.2, "cycle_momentum": False}),
        ("ReduceLROnPlateau", {"patience": 3}),
        ("LambdaLR", {"lr_lambda": lambda step: 0.5}),
        ("WarmupCosine", {}),
    ],
)
def test_every_scheduler(name: str, config: dict[str, object]) -> None:
    built = build_scheduler(SchedulerConfig(name=name, config=config), sgd(), 100, 10)
    assert type(built["scheduler"]).__name__ == name
    by_step = name == "WarmupCosine" or "num_steps" in str(config)
    assert built["interval"] == ("step" if by_step else "epoch")
    assert built["monitor"] == ("val/total/loss" if name == "ReduceLROnPlateau" else None)


def test_the_length_of_the_run_by_name() -> None:
    config = SchedulerConfig(name="CosineAnnealingLR", config={"T_max": "num_steps"})
    scheduler = build_scheduler(config, sgd(), 123, None)["scheduler"]
    assert isinstance(scheduler, CosineAnnealingLR)
    assert scheduler.T_max == 123
    for unknown in (None, float("inf"), -1):
        with pytest.raises(InputError, match=r"scheduler.config.T_max: 'num_steps' is not known"):
            build_scheduler(config, sgd(), unknown, 1)


def test_given_interval_wins() -> None:
    config = SchedulerConfig(
        name="StepLR", config={"step_size": 3}, interval="epoch", frequency=2, monitor="a", strict=False
    )
    built = build_scheduler(config, sgd(), 100, 10)
    assert {k: v for k, v in built.items() if k != "scheduler"} == {
        "interval": "epoch", "frequency": 2, "monitor": "a", "strict": False,
    }  # fmt: skip


@pytest.mark.parametrize("change", [{"interval": "epoch"}, {"frequency": 2}])
def test_warmup_cosine_follows_every_step(change: dict[str, object]) -> None:
    warmup = {"name": "WarmupCosine", "config": {}}
    nested = {"name": "SequentialLR", "config": {"schedulers": [warmup], "milestones": []}}
    for data in (warmup, nested):
        with pytest.raises(InputError, match="WarmupCosine follows every step"):
            build_scheduler(validate(SchedulerConfig, data | change), sgd(), 100, 10)


def test_nested_schedulers() -> None:
    data = {
        "name": "SequentialLR",
        "config": {
            "schedulers": [
                {"name": "LinearLR", "config": {"start_factor": 0.5, "total_iters": 4}},
                {"name": "CosineAnnealingLR", "config": {"T_max": "num_steps"}},
            ],
            "milestones": [4],
        },
    }
    config = validate(SchedulerConfig, data)
    built = build_scheduler(config, sgd(), 10, None)
    assert built["interval"] == "step"
    assert learning_rates(built["scheduler"], 5) == pytest.approx([0.5, 0.625, 0.75, 0.875, 1.0])
    chained = {"name": "ChainedScheduler", "config": {"schedulers": data["config"]["schedulers"]}}
    assert learning_rates(
        build_scheduler(validate(SchedulerConfig, chained), sgd(), 10, None)["scheduler"], 2
    )


@pytest.mark.parametrize(
    ("data", "messages"),
    [
        ({"name": "CosineAnealingLR"}, ["unknown scheduler 'CosineAnealingLR'; did you mean 'CosineAnnealingLR'?"]),
        ({"name": "CosineAnnealingLR"}, ["config: CosineAnnealingLR needs 'T_max'"]),
        ({"name": "CosineAnnealingLR", "config": {"T_max": "num_stepz"}}, ["config.T_max: 'num_stepz': must be int"]),
        ({"config": {"warmpu": 0.1}}, ["config.warmpu: no argument of WarmupCosine; did you mean 'warmup'?"]),
        ({"config": {"budget": 0.1}}, ["config.budget: no argument of WarmupCosine"]),
        ({"interval": "batch"}, ["interval: 'batch': must be 'step' | 'epoch' | none"]),
        ({"frequency": 0}, ["frequency: 0: must be int >= 1"]),
        (
            {"name": "SequentialLR", "config": {"milestones": [1], "schedulers": [{"name": "x"}, {"nam": "a"}, 3]}},
            [
                "config.schedulers.0.name: unknown scheduler 'x'",
                "config.schedulers.1.nam: unknown key; did you mean 'name'?",
                "config.schedulers.1.name: missing; must be str",
                "config.schedulers.2: 3: must be a section",
            ],
        ),
        ({"name": "SequentialLR", "config": {"milestones": [1], "schedulers": 3}}, ["config.schedulers: 3: "]),
    ],
)  # fmt: skip
def test_bad_schedulers_are_refused_when_the_config_is_read(
    data: dict[str, object], messages: list[str]
) -> None:
    with pytest.raises(InputError) as error:
        validate(SchedulerConfig, data, "scheduler")
    for message in messages:
        assert message in str(error.value)


def test_describe() -> None:
    assert [row.path for row in describe(SchedulerConfig)] == [
        "name", "config", "interval", "frequency", "monitor", "strict"
    ]  # fmt: skip
    assert set(SCHEDULERS.classes) >= {"OneCycleLR", "WarmupCosine"}


# --- the schedule over the whole run


def test_warmup_then_cosine_over_steps() -> None:
    scheduler = WarmupCosine(sgd(2.0), Budget(100), warmup=0.1, start=0.1, final=0.01)
    rates = learning_rates(scheduler, 101)
    assert rates[0] == pytest.approx(0.2)
    assert rates[5] == pytest.approx(2 * 0.55)
    assert rates[10] == pytest.approx(2.0)
    assert rates[55] == pytest.approx(2 * (0.01 + 0.99 / 2))
    assert rates[100] == pytest.approx(0.02)
    assert all(a < b for a, b in zip(rates[:10], rates[1:11]))
    assert all(a > b for a, b in zip(rates[10:100], rates[11:]))
    assert learning_rates(scheduler, 5) == pytest.approx([0.02] * 5)  # beyond the end it stays low


def test_steps_alone_do_not_look_at_the_clock(clock: Clock) -> None:
    budget = Budget(10)
    clock.now += 1e6
    assert [budget.progress(step) for step in (0, 5, 10, 20)] == [0, 0.5, 1, 1]


def test_wall_clock_progress_begins_after_start_up(clock: Clock) -> None:
    budget = Budget(seconds=100, started_at=clock.now)
    clock.now += 30  # reading data
    assert budget.progress(0) == 0
    clock.now += 10  # compiling in the first step
    assert budget.progress(1) == 0
    clock.now += 30
    assert budget.progress(7) == pytest.approx(0.5)
    assert budget.elapsed == 70
    clock.now += 30
    assert budget.progress(8) == 1
    clock.now += 30
    assert budget.progress(9) == 1


def test_whichever_ends_first(clock: Clock) -> None:
    budget = Budget(100, seconds=100)
    assert budget.progress(1) == pytest.approx(0.01)
    clock.now += 50
    assert budget.progress(10) == pytest.approx(0.5)
    assert budget.progress(90) == pytest.approx(0.9)


def test_a_budget_used_up_by_the_start_up(clock: Clock) -> None:
    budget = Budget(seconds=10, started_at=clock.now)
    clock.now += 20
    assert budget.progress(0) == 1
    assert learning_rates(WarmupCosine(sgd(), budget), 2) == pytest.approx([0.01, 0.01])


def test_seconds_count_over_sessions(clock: Clock) -> None:
    first = Budget(seconds=100)
    first.progress(1)
    clock.now += 40
    state = first.state_dict()
    clock.now += 1000  # between the sessions
    second = Budget(seconds=100)
    second.load_state_dict(state)
    clock.now += 10
    assert second.elapsed == 50
    assert second.progress(20) == pytest.approx(0.5)


def test_processes_agree_on_the_first_one_s_clock(clock: Clock) -> None:
    budget = Budget(seconds=100, agree=lambda progress: 0.25)
    clock.now += 80
    assert budget.progress(10) == 0.25


def test_bad_budgets_and_schedules() -> None:
    for wrong in ({"total_steps": 0}, {"seconds": -1.0}, {"seconds": float("nan")}):
        with pytest.raises(InputError, match="must be > 0"):
            Budget(**wrong)
    with pytest.raises(InputError, match="scheduler: WarmupCosine: needs the end of the run"):
        build_scheduler(SchedulerConfig(), sgd(), None, None)
    with pytest.raises(InputError, match="warmup: 2: must be from 0 to"):
        build_scheduler(SchedulerConfig(config={"warmup": 2}), sgd(), 10, None)
    assert learning_rates(WarmupCosine(sgd(), Budget(10), warmup=0), 1) == [1.0]


def test_state_is_plain_and_continues_exactly(tmp_path: Path) -> None:
    whole = learning_rates(WarmupCosine(sgd(), Budget(50)), 50)
    optimizer = sgd()
    scheduler = WarmupCosine(optimizer, Budget(50))
    first = learning_rates(scheduler, 20)
    torch.save({"o": optimizer.state_dict(), "s": scheduler.state_dict()}, tmp_path / "state")
    saved = torch.load(tmp_path / "state", weights_only=True)
    optimizer = sgd()
    scheduler = WarmupCosine(optimizer, Budget(50))
    optimizer.load_state_dict(saved["o"])
    scheduler.load_state_dict(saved["s"])
    assert first + learning_rates(scheduler, 30) == whole


class Recorded(pl.LightningModule):
    """A tiny fit that notes the learning rate of every step."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 1)
        self.rates: list[float] = []

    def training_step(self, batch: torch.Tensor, batch_idx: int) -> torch.Tensor:
        self.rates.append(self.optimizers().param_groups[0]["lr"])
        return self.layer(batch).square().mean()

    def configure_optimizers(self) -> dict[str, object]:
        optimizer = build_optimizer(OptimizerConfig(), self.named_parameters())
        steps, epochs = self.trainer.estimated_stepping_batches, self.trainer.max_epochs
        return {
            "optimizer": optimizer,
            "lr_scheduler": build_scheduler(SchedulerConfig(), optimizer, steps, epochs),
        }


class StopAfter(pl.Callback):
    """Ends the training after so many epochs, as an interruption would."""

    def __init__(self, epochs: int) -> None:
        self.epochs = epochs

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        trainer.should_stop = trainer.current_epoch + 1 >= self.epochs


def test_in_lightning_and_after_a_restart(tmp_path: Path) -> None:
    last = tmp_path / "last.ckpt"

    def fit(stop_after: int = 4, ckpt: Path | None = None) -> list[float]:
        module = Recorded()
        trainer = pl.Trainer(
            max_epochs=4,
            accelerator="cpu",
            callbacks=[StopAfter(stop_after)],
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            default_root_dir=tmp_path,
        )
        trainer.fit(module, torch.utils.data.DataLoader(RandomDataset(4, 20), batch_size=4), ckpt_path=ckpt)
        trainer.save_checkpoint(last)
        return module.rates

    whole = fit()
    assert len(whole) == 20
    assert whole[0] == pytest.approx(0.05e-3)
    assert max(whole) > 0.99e-3
    assert fit(stop_after=2) + fit(ckpt=last) == whole
