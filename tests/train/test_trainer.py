"""Lightning's Trainer from its config."""

import importlib.util
import inspect
import json
from datetime import timedelta
from pathlib import Path
from typing import get_args

import lightning.pytorch as pl
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from lightning.fabric.plugins.precision.precision import _PRECISION_INPUT
from lightning.pytorch import callbacks as lightning_callbacks
from lightning.pytorch.demos.boring_classes import BoringModel
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.plugins import AsyncCheckpointIO
from lightning.pytorch.profilers import SimpleProfiler
from lightning.pytorch.strategies import DDPStrategy

from physicsml_ase.config import describe, fields, json_schema, to_plain, validate
from physicsml_ase.config.wording import members
from physicsml_ase.conventions import InputError
from physicsml_ase.train.catalogs import CALLBACKS, LOGGERS, PROFILERS
from physicsml_ase.train.trainer import TrainerConfig, build_trainer, parse_duration, register_callback

LIGHTNING = {k: p for k, p in inspect.signature(pl.Trainer.__init__).parameters.items() if k != "self"}
EARLY = {"name": "EarlyStopping", "config": {"monitor": "val/total/loss", "patience": 3}}


def build(root: Path, **data: object) -> pl.Trainer:
    """The Trainer of a config that was read, saved and read again."""
    config = validate(TrainerConfig, {"accelerator": "cpu", "enable_progress_bar": False, **data}, "trainer")
    assert validate(TrainerConfig, json.loads(json.dumps(to_plain(config)))) == config
    return build_trainer(config, root=root)


def refused(root: Path, **data: object) -> str:
    with pytest.raises(InputError) as error:
        build(root, **data)
    assert "\n" not in str(error.value)
    return str(error.value)


# --- the declaration


def test_all_of_lightning_s_arguments_are_here() -> None:
    assert set(fields(TrainerConfig)) == set(LIGHTNING)


def test_defaults_are_lightning_s_but_for_a_few() -> None:
    defaults = {name: field.default for name, field in fields(TrainerConfig).items()}
    assert {name: value for name, value in defaults.items() if value != LIGHTNING[name].default} == {
        "precision": 32,
        "max_epochs": 1,
        "enable_checkpointing": False,
        "default_root_dir": "training",
    }


def test_precisions_are_lightning_s() -> None:
    ours = {
        value
        for member in members(get_args(fields(TrainerConfig)["precision"].annotation)[0])
        for value in get_args(member)
    }
    assert ours == {value for member in get_args(_PRECISION_INPUT) for value in get_args(member)}


def test_every_argument_is_described() -> None:
    rows = describe(TrainerConfig)
    assert [row.path for row in rows] == list(fields(TrainerConfig))
    assert all(row.meaning and "Annotated" not in row.type for row in rows)
    assert describe(TrainerConfig, "max_epochs")[0][1:3] == ("int >= -1 | none", "1")
    assert len(json_schema(TrainerConfig)["properties"]) == len(rows)


def test_arguments_newer_than_the_installed_lightning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    signature = inspect.signature(pl.Trainer.__init__).parameters
    parameters = [p for name, p in signature.items() if name != "model_registry"]
    monkeypatch.setattr(pl.Trainer.__init__, "__signature__", inspect.Signature(parameters), raising=False)
    assert build(tmp_path).default_root_dir == str(tmp_path)
    assert "trainer.model_registry: needs a newer Lightning" in refused(tmp_path, model_registry="x")


# --- building


def test_the_defaults_build(tmp_path: Path) -> None:
    trainer = build(tmp_path)
    assert trainer.max_epochs == 1
    assert trainer.precision == "32-true"
    assert not trainer.checkpoint_callbacks
    assert build_trainer(TrainerConfig(accelerator="cpu", default_root_dir=tmp_path)).default_root_dir == str(
        tmp_path
    )


@pytest.mark.parametrize("form", [EARLY, [EARLY], {"early": EARLY, "removed": None}])
def test_callbacks_by_name(tmp_path: Path, form: object) -> None:
    (early,) = build(tmp_path, callbacks=form).early_stopping_callbacks
    assert (early.monitor, early.patience) == ("val/total/loss", 3)


def test_callbacks_by_bare_name_and_as_objects(tmp_path: Path) -> None:
    mine = lightning_callbacks.LearningRateMonitor()
    trainer = build_trainer(TrainerConfig(accelerator="cpu", callbacks=["ModelSummary", mine]), root=tmp_path)
    assert mine in trainer.callbacks
    assert any(type(c) is lightning_callbacks.ModelSummary for c in trainer.callbacks)
    assert mine in build_trainer(TrainerConfig(accelerator="cpu", callbacks=mine), root=tmp_path).callbacks


def test_arguments_that_json_can_not_hold(tmp_path: Path) -> None:
    schedule = {"name": "GradientAccumulationScheduler", "config": {"scheduling": {0: 1, 4: 2}}}
    save = {"name": "ModelCheckpoint", "config": {"train_time_interval": "10m"}}
    timer = {"name": "Timer", "config": {"duration": "1h30m"}}
    built = build(tmp_path, callbacks=[schedule, save, timer]).callbacks
    by_name = {type(callback).__name__: callback for callback in built}
    assert by_name["GradientAccumulationScheduler"].scheduling == {0: 1, 4: 2}
    assert by_name["ModelCheckpoint"]._train_time_interval == timedelta(minutes=10)
    assert by_name["Timer"].time_remaining() == 5400


def test_own_callbacks_are_known_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(CALLBACKS, "classes", dict(CALLBACKS.classes))

    @register_callback
    class Mine(pl.Callback):
        def __init__(self, level: int = 1) -> None:
            self.level = level

    trainer = build(tmp_path, callbacks=[{"name": "Mine", "config": {"level": 3}}])
    assert [c.level for c in trainer.callbacks if isinstance(c, Mine)] == [3]
    with pytest.raises(ValueError, match="already registered"):
        register_callback(Mine)


def test_extra_callbacks_come_after_the_user_s(tmp_path: Path) -> None:
    extra = lightning_callbacks.LearningRateMonitor()
    config = validate(TrainerConfig, {"accelerator": "cpu", "callbacks": [EARLY]})
    built = build_trainer(config, extra_callbacks=[extra], root=tmp_path).callbacks
    assert built[1] is extra
    assert config.callbacks == validate(TrainerConfig, {"callbacks": [EARLY]}).callbacks


def test_checkpoint_callbacks_switch_checkpointing_on(tmp_path: Path) -> None:
    (save,) = build(tmp_path, callbacks=["ModelCheckpoint"]).checkpoint_callbacks
    assert Path(save.dirpath) == tmp_path / "checkpoints"
    own = {"name": "ModelCheckpoint", "config": {"dirpath": str(tmp_path / "own"), "monitor": "a"}}
    (save,) = build(tmp_path, callbacks=[own], enable_checkpointing=True).checkpoint_callbacks
    assert Path(save.dirpath) == tmp_path / "own"
    (save,) = build(tmp_path, enable_checkpointing=True).checkpoint_callbacks
    assert Path(save.dirpath) == tmp_path / "checkpoints"


def test_loggers(tmp_path: Path) -> None:
    default = CSVLogger(tmp_path)
    config = TrainerConfig(accelerator="cpu")
    assert build_trainer(config, root=tmp_path, logger=default).loggers == [default]
    assert not build_trainer(config, root=tmp_path, logger=False).loggers
    assert not build_trainer(
        TrainerConfig(accelerator="cpu", logger=False), root=tmp_path, logger=default
    ).loggers
    csv = {"name": "CSVLogger", "config": {"name": "mine"}}
    for form in (csv, [csv], {"file": csv}):
        (logger,) = build(tmp_path, logger=form).loggers
        assert logger.save_dir == str(tmp_path)
        assert logger.name == "mine"
    assert isinstance(build(tmp_path, logger=True).logger, CSVLogger)


@pytest.mark.parametrize(
    ("name", "module", "how"),
    [
        ("WandbLogger", "wandb", "pip install 'physicsml-ase[wandb]'"),
        ("TensorBoardLogger", "tensorboard", "pip install 'physicsml-ase[tensorboard]'"),
        ("MLFlowLogger", "mlflow", "pip install 'mlflow'"),
    ],
)
def test_loggers_whose_package_is_missing(tmp_path: Path, name: str, module: str, how: str) -> None:
    if importlib.util.find_spec(module):
        pytest.skip(f"{module} is installed")
    message = refused(tmp_path, logger={"name": name})
    assert message == f"trainer.logger: {name} needs a package that is not installed: {how}"


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_gpu_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(
        InputError, match=r"trainer\.accelerator: cuda, and torch .* finds none here: use auto or cpu"
    ):
        build(tmp_path, accelerator="cuda")


def test_profilers(tmp_path: Path) -> None:
    simple = build(tmp_path, profiler="simple").profiler
    assert isinstance(simple, SimpleProfiler)
    assert (simple.dirpath, simple.filename) == (tmp_path, "profile")  # else it would be lost on the screen
    profiler = build(tmp_path, profiler={"name": "SimpleProfiler", "config": {"filename": "times"}}).profiler
    assert profiler.dirpath == tmp_path
    assert {"simple", "advanced", "pytorch", "AdvancedProfiler"} <= set(PROFILERS.classes)


@pytest.mark.parametrize("name", ["DDPStrategy", "ddp"])
def test_strategies(tmp_path: Path, name: str) -> None:
    settings = {"find_unused_parameters": True, "timeout": "10m", "process_group_backend": "gloo"}
    strategy = build(tmp_path, strategy={"name": name, "config": settings}).strategy
    assert isinstance(strategy, DDPStrategy)
    assert strategy._ddp_kwargs == {"find_unused_parameters": True}
    assert strategy._timeout == timedelta(minutes=10)
    assert isinstance(build(tmp_path, strategy=name, devices=2).strategy, DDPStrategy)
    assert not isinstance(build(tmp_path, strategy="auto").strategy, DDPStrategy)
    assert isinstance(
        build_trainer(TrainerConfig(accelerator="cpu", strategy=DDPStrategy())).strategy, DDPStrategy
    )


def test_plugins(tmp_path: Path) -> None:
    for form in ("AsyncCheckpointIO", [{"name": "AsyncCheckpointIO"}], [AsyncCheckpointIO()]):
        config = TrainerConfig(accelerator="cpu", plugins=form)
        assert isinstance(build_trainer(config, root=tmp_path).strategy.checkpoint_io, AsyncCheckpointIO)


@pytest.mark.parametrize("value", ["1h30m", "5400s", 5400, "00:01:30:00", {"hours": 1, "minutes": 30}])
def test_times(tmp_path: Path, value: object) -> None:
    assert validate(TrainerConfig, {"max_time": value}).max_time == timedelta(hours=1, minutes=30)
    timers = [
        c for c in build(tmp_path, max_time=value).callbacks if isinstance(c, lightning_callbacks.Timer)
    ]
    assert timers[0].time_remaining() == 5400


def test_validation_interval_keeps_number_and_kind(tmp_path: Path) -> None:
    for value in (1, 1.0, 0.5, timedelta(minutes=10)):
        config = validate(TrainerConfig, {"val_check_interval": value})
        assert config.val_check_interval == value
        assert type(config.val_check_interval) is type(value)
    assert validate(TrainerConfig, {"val_check_interval": "10m"}).val_check_interval == timedelta(minutes=10)
    assert validate(TrainerConfig, {"limit_train_batches": 1}).limit_train_batches == 1
    assert type(validate(TrainerConfig, {"limit_train_batches": 1.0}).limit_train_batches) is float


@pytest.mark.parametrize(("names", "plain"), [([None, "32", "32-true", 32], 32), (["64", "64-true"], 64)])
def test_all_names_of_a_precision_are_one(names: list[str | int | None], plain: int) -> None:
    for name in names:
        assert validate(TrainerConfig, {"precision": name}).precision == plain


def test_double_precision(tmp_path: Path) -> None:
    assert build(tmp_path, precision=64).precision == "64-true"


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"max_epoch": 3}, "trainer: max_epoch: unknown key; did you mean 'max_epochs'?"),
        ({"max_epochs": -3}, "trainer: max_epochs: -3: must be int >= -1 | none"),
        ({"precision": "16-mix"}, "did you mean '16-mixed'?"),
        ({"devices": "cuda:1"}, "write accelerator=cuda devices="),
        ({"accelerator": "gpuu"}, "trainer: accelerator: 'gpuu': unknown accelerator; did you mean 'gpu'?"),
        ({"strategy": "dpp"}, "trainer: strategy: unknown strategy 'dpp'; did you mean 'ddp'?"),
        (
            {"strategy": {"name": "ddp", "config": {"find_unused": True}}},
            "strategy.config.find_unused: no argument of ddp; did you mean 'find_unused_parameters'?",
        ),
        ({"callbacks": "EarlyStoping"}, "callbacks: unknown callback 'EarlyStoping'; did you mean 'EarlyStopping'?"),
        ({"callbacks": ["EarlyStopping"]}, "callbacks.0.config: EarlyStopping needs 'monitor'"),
        (
            {"callbacks": {"a": {"name": "EarlyStopping", "config": {"monitor": "x", "patiense": 1}}}},
            "callbacks.a.config.patiense: no argument of EarlyStopping; did you mean 'patience'?",
        ),
        (
            {"callbacks": [{"name": "EarlyStopping", "config": {"monitor": "x", "patience": "three"}}]},
            "callbacks.0.config.patience: 'three': must be int",
        ),
        ({"callbacks": [{"name": "EarlyStopping", "confg": {}}]},
         "callbacks.0.confg: unknown key; did you mean 'config'?"),
        ({"callbacks": [3]}, "callbacks.0: 3: must be a valid string or a section"),
        ({"logger": {"name": "CSVLoger"}}, "logger.name: unknown logger 'CSVLoger'; did you mean 'CSVLogger'?"),
        ({"profiler": "simpl"}, "profiler: unknown profiler 'simpl'; did you mean 'simple'?"),
        ({"plugins": "Asynccheckpointo"}, "did you mean 'AsyncCheckpointIO'?"),
        ({"max_time": "10x"}, "max_time: '10x': not a duration; write 90s, 10m"),
        ({"max_time": {"minuts": 3}}, "max_time: {'minuts': 3}: not a duration"),
        ({"max_time": True}, "max_time: true: not a duration"),
        ({"val_check_interval": 1.5}, "val_check_interval: 1.5: must be int >= 0 | float >= 0 and <= 1 | duration"),
        ({"limit_train_batches": -1}, "limit_train_batches: -1: must be int >= 0 | float >= 0 and <= 1 | none"),
        ({"gradient_clip_algorithm": "nrm"}, "did you mean 'norm'?"),
        ({"devices": 0}, "trainer: "),
        ({"callbacks": ["Timer", {"name": "Timer", "config": {"interval": "hour"}}]}, "callbacks.1: Timer: "),
    ],
)  # fmt: skip
def test_what_is_wrong_is_said(tmp_path: Path, data: dict[str, object], message: str) -> None:
    assert message in refused(tmp_path, **data)


def test_every_name_can_be_looked_up() -> None:
    assert {"EarlyStopping", "ModelCheckpoint", "LearningRateMonitor", "RichProgressBar"} <= set(
        CALLBACKS.classes
    )
    assert {"CSVLogger", "TensorBoardLogger", "WandbLogger", "MLFlowLogger"} <= set(LOGGERS.classes)
    for catalog in (CALLBACKS, LOGGERS, PROFILERS):
        for name, cls in catalog.classes.items():
            assert inspect.signature(cls), name


def test_a_fit_writes_below_its_root_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "cwd").mkdir()
    monkeypatch.chdir(tmp_path / "cwd")
    trainer = build(
        tmp_path / "run",
        callbacks=["ModelCheckpoint", "LearningRateMonitor"],
        logger="CSVLogger",
        profiler={"name": "simple", "config": {"filename": "times"}},
        max_epochs=2,
        limit_train_batches=2,
        limit_val_batches=2,
        enable_model_summary=False,
    )
    trainer.fit(BoringModel())
    assert not list((tmp_path / "cwd").iterdir())
    written = {path.relative_to(tmp_path / "run").parts[0] for path in (tmp_path / "run").rglob("*")}
    assert written == {"checkpoints", "lightning_logs", "fit-times.txt"}


# --- durations


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("90s", 90), ("10m", 600), ("10 min", 600), ("1h30m", 5400), ("1h 30m", 5400), ("2d", 172800), ("1.5h", 5400),
        ("600", 600), (600, 600), ("0.5", 0.5), ("00:12:00:00", 43200), ("1:00:00:01", 86401), (" 3H ", 10800),
        ("1d2h3m4s", 93784), (".5m", 30),
    ],
)  # fmt: skip
def test_durations(text: str, seconds: float) -> None:
    assert parse_duration(text) == seconds


@pytest.mark.parametrize(
    "text",
    ["", "m", "10x", "-10m", "0", "0s", "10m1h", "5m5m", "1:30", "1:2:3:4:5", "ten minutes", "inf", "nan", "1e99",
     "10m!"]
)  # fmt: skip
def test_what_is_no_duration(text: str) -> None:
    with pytest.raises(InputError, match="is not a duration; write 90s, 10m, 1h30m"):
        parse_duration(text)


@given(st.integers(0, 10), st.integers(0, 23), st.integers(0, 59), st.integers(1, 59))
def test_durations_add_up(days: int, hours: int, minutes: int, seconds: int) -> None:
    total = timedelta(days=days, hours=hours, minutes=minutes, seconds=seconds).total_seconds()
    assert parse_duration(f"{days}d{hours}h{minutes}m{seconds}s") == total
    assert parse_duration(f"{days}:{hours:02}:{minutes:02}:{seconds:02}") == total
