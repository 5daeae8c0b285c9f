"""Lightning's classes that a Trainer config may name, and this package's own callbacks."""

import functools
import inspect
from types import ModuleType
from typing import cast

from lightning.fabric.loggers import Logger
from lightning.pytorch import callbacks, loggers, plugins, profilers, strategies
from lightning.pytorch.accelerators import AcceleratorRegistry
from lightning.pytorch.plugins import environments
from lightning.pytorch.strategies import StrategyRegistry
from torch.nn.parallel import DistributedDataParallel

from physicsml_ase.train.arguments import Factory
from physicsml_ase.train.named import Catalog

_NOT_BY_NAME = ("Checkpoint", "BaseFinetuning", "BasePredictionWriter", "ProgressBar")  # to be derived from


def _classes(module: ModuleType, base: type | None = None) -> dict[str, Factory]:
    names = dict.fromkeys(
        [*vars(module), *getattr(module, "__all__", ())]
    )  # some are imported only when asked for
    found = {name: getattr(module, name) for name in names if name[0].isupper() and name not in _NOT_BY_NAME}
    return {
        name: cls
        for name, cls in found.items()
        if isinstance(cls, type) and not inspect.isabstract(cls)
        if base is None or (issubclass(cls, base) and cls is not base)
    }


def _registered_strategies() -> dict[str, Factory]:
    entries = {name: StrategyRegistry[name] for name in StrategyRegistry.available_strategies()}
    return {
        name: functools.partial(cast(Factory, entry["strategy"]), **entry["init_params"])
        for name, entry in entries.items()
    }


CALLBACKS = Catalog("callback", _classes(callbacks, callbacks.Callback), filled=("dirpath",))
LOGGERS = Catalog(
    "logger",
    _classes(loggers, Logger),
    filled=("save_dir", "root_dir"),
    packages={
        "TensorBoardLogger": "physicsml-ase[tensorboard]",
        "WandbLogger": "physicsml-ase[wandb]",
        "CometLogger": "comet-ml",
        "MLFlowLogger": "mlflow",
        "LitLogger": "litlogger",
    },
)
_PROFILERS = _classes(profilers, profilers.Profiler)
PROFILERS = Catalog(
    "profiler",
    _PROFILERS | {name: _PROFILERS[cls] for name, cls in (
        ("simple", "SimpleProfiler"), ("advanced", "AdvancedProfiler"), ("pytorch", "PyTorchProfiler"))},
    filled=("dirpath",),
)  # fmt: skip
STRATEGIES = Catalog(
    "strategy",
    _registered_strategies() | _classes(strategies, strategies.Strategy),
    passed_on={
        name: DistributedDataParallel
        for name in ("DDPStrategy", *StrategyRegistry.available_strategies())
        if name.lower().startswith("ddp")
    },
    packages={"DeepSpeedStrategy": "deepspeed", "deepspeed": "deepspeed"},
)
PLUGINS = Catalog("plugin", _classes(plugins) | _classes(environments))
ACCELERATORS = ("auto", "gpu", *sorted(AcceleratorRegistry.available_accelerators()))

register_callback = CALLBACKS.register
"""Class decorator: a callback of this package, or of a user's, that configs can name."""
