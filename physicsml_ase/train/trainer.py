"""Lightning's Trainer from its config: callbacks, loggers, profiler, strategy and plugins by name."""

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import cast

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import Callback, Checkpoint, ModelCheckpoint
from lightning.pytorch.loggers import Logger
from lightning.pytorch.utilities.exceptions import MisconfigurationException

from physicsml_ase.config import fields
from physicsml_ase.conventions import InputError
from physicsml_ase.train.catalogs import (
    CALLBACKS,
    LOGGERS,
    PLUGINS,
    PROFILERS,
    STRATEGIES,
    register_callback,
)
from physicsml_ase.train.duration import parse_duration
from physicsml_ase.train.named import Catalog, Choice, NamedConfig
from physicsml_ase.train.trainer_config import TrainerConfig

__all__ = ["TrainerConfig", "build_trainer", "parse_duration", "register_callback"]


def build_trainer(
    config: TrainerConfig,
    *,
    extra_callbacks: Sequence[Callback] = (),
    logger: Logger | bool | None = None,
    root: str | Path | None = None,
    where: str = "trainer",
) -> pl.Trainer:
    """The Trainer that `config` describes.

    `extra_callbacks` are the program's own, after the user's. `logger` is what `logger: none` means, by
    default Lightning's default. Everything is written below `root`, by default `default_root_dir`. `where`
    names the section in errors.
    """
    folder = Path(root or config.default_root_dir)
    own = _own_arguments(config, where)
    callbacks = _build_all(
        CALLBACKS, config.callbacks, f"{where}.callbacks", {"dirpath": folder / "checkpoints"}
    )
    saves = config.enable_checkpointing
    if saves and not any(isinstance(callback, ModelCheckpoint) for callback in callbacks):
        callbacks.append(ModelCheckpoint(dirpath=folder / "checkpoints"))
    callbacks += extra_callbacks
    if any(isinstance(callback, Checkpoint) for callback in callbacks):
        saves = True  # Lightning refuses such callbacks otherwise
    # to a file: on the screen it would be one of Lightning's messages, which the command line keeps silent
    measured = {"dirpath": folder, "filename": "profile"}
    plugins = _build_all(PLUGINS, config.plugins, f"{where}.plugins", {})
    own |= {
        "default_root_dir": str(folder),
        "callbacks": callbacks,
        "enable_checkpointing": saves,
        "logger": None if config.barebones else _loggers(config, logger, folder, where),
        "strategy": _strategy(config, where),
        "profiler": _build_one(PROFILERS, config.profiler, f"{where}.profiler", measured),
        "plugins": plugins or None,
    }
    try:
        return pl.Trainer(**own)  # type: ignore[arg-type]
    except (MisconfigurationException, ImportError, ValueError, TypeError, RuntimeError) as error:
        raise InputError(f"{where}: {' '.join(str(error).split())}") from error


def _own_arguments(config: TrainerConfig, where: str) -> dict[str, object]:
    """The config's values, without those that the installed Lightning does not know yet."""
    known = inspect.signature(pl.Trainer.__init__).parameters
    values = {name: getattr(config, name) for name in fields(TrainerConfig)}
    for name, value in values.items():
        if name not in known and value != fields(TrainerConfig)[name].default:
            raise InputError(f"{where}.{name}: needs a newer Lightning than the installed {pl.__version__}")
    _refuse_missing_gpu(config, where)
    return {name: value for name, value in values.items() if name in known}


def _refuse_missing_gpu(config: TrainerConfig, where: str) -> None:
    here = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    here["gpu"] = any(here.values())
    if isinstance(config.accelerator, str) and not here.get(config.accelerator, True):
        words = f"{config.accelerator}, and torch {torch.__version__} finds none here: use auto or cpu"
        raise InputError(f"{where}.accelerator: {words}")


def _loggers(config: TrainerConfig, default: Logger | bool | None, folder: Path, where: str) -> object:
    if config.logger is None:
        return default
    if isinstance(config.logger, bool):
        return config.logger
    program = {"save_dir": str(folder), "root_dir": str(folder)}
    return _build_all(LOGGERS, config.logger, f"{where}.logger", program)


def _strategy(config: TrainerConfig, where: str) -> object:
    """The strategy. Lightning's own names go to it as they are: it chooses what fits the accelerator.

    Of several processes each must know that some weights get no gradient: the last layer's vectors do not
    touch the energy.
    """
    if isinstance(config.strategy, str) and not config.strategy[0].isupper():
        if config.strategy == "ddp" or (config.strategy == "auto" and _several_devices(config)):
            return "ddp_find_unused_parameters_true"
        return config.strategy
    choice = config.strategy
    if isinstance(choice, NamedConfig) and choice.name in ("ddp", "DDPStrategy"):
        choice = replace(choice, config={"find_unused_parameters": True, **choice.config})
    return _build_one(STRATEGIES, choice, f"{where}.strategy", {})


def _several_devices(config: TrainerConfig) -> bool:
    devices = config.devices
    if config.num_nodes > 1:
        return True
    if devices in ("auto", -1, "-1"):
        return config.accelerator in ("auto", "gpu", "cuda") and torch.cuda.device_count() > 1
    if isinstance(devices, str):
        return len([d for d in devices.split(",") if d]) > 1 if "," in devices else int(devices) > 1
    return devices > 1 if isinstance(devices, int) else len(devices) > 1


def _build_all(
    catalog: Catalog, entries: object, where: str, program: Mapping[str, object]
) -> list[Callback]:
    """One entry, a list or a dict of entries, each a name, a {name, config} or an object, as objects."""
    if isinstance(entries, Mapping):
        named = {f"{where}.{key}": entry for key, entry in entries.items()}
    elif isinstance(entries, Sequence) and not isinstance(entries, str):
        named = {f"{where}.{n}": entry for n, entry in enumerate(entries)}
    else:
        named = {where: entries}
    built = (_build_one(catalog, entry, at, program) for at, entry in named.items() if entry is not None)
    return cast(list[Callback], list(built))


def _build_one(catalog: Catalog, entry: object, where: str, program: Mapping[str, object]) -> object:
    if isinstance(entry, str):
        entry = NamedConfig(name=entry)
    return catalog.build(cast(Choice, entry), where, program) if isinstance(entry, NamedConfig) else entry
