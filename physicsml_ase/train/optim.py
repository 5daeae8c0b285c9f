"""Optimizers and learning-rate schedules by name: torch's classes, and this package's WarmupCosine."""

import math
from collections.abc import Iterable, Mapping
from typing import Annotated, Literal, NamedTuple, Self, TypedDict

import torch
from pydantic import AfterValidator, Field, TypeAdapter, ValidationError, model_validator
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from physicsml_ase.config import config
from physicsml_ase.config.declare import within
from physicsml_ase.conventions import InputError
from physicsml_ase.train.arguments import parameters
from physicsml_ase.train.muon import MuonAdam, is_matrix
from physicsml_ase.train.named import Arguments, Catalog, NamedConfig
from physicsml_ase.train.schedule import Budget, WarmupCosine

OPTIMIZERS = Catalog(
    "optimizer",
    {
        name: cls
        for name, cls in vars(torch.optim).items()
        if isinstance(cls, type) and issubclass(cls, Optimizer) and cls is not Optimizer
    }
    | {"MuonAdam": MuonAdam},
    reserved=("params",),
)
SCHEDULERS = Catalog(
    "scheduler",
    {
        name: cls
        for name, cls in vars(torch.optim.lr_scheduler).items()
        if isinstance(cls, type) and issubclass(cls, LRScheduler) and name != "LRScheduler" and name[0] != "_"
    }
    | {"WarmupCosine": WarmupCosine},
    reserved=("optimizer", "budget"),
)


class RunLength(NamedTuple):
    """What "num_steps" and "num_epochs" stand for; none where the run has no such end."""

    num_steps: int | None
    num_epochs: int | None


def _check_scheduler(choice: NamedConfig) -> NamedConfig:
    """Refuse unknown schedulers and arguments, also within SequentialLR and ChainedScheduler."""
    any_length = RunLength(1, 1)
    numbers = {key: _resolved(value, any_length, key) for key, value in choice.config.items()}
    SCHEDULERS.check(NamedConfig(name=choice.name, config=numbers))
    parts = choice.config.get("schedulers", [])
    try:
        _PARTS.validate_python(parts)
    except ValidationError as error:
        raise within(("config", "schedulers"), error, parts) from None
    return choice


_Part = Annotated[NamedConfig, AfterValidator(_check_scheduler)]
_PARTS = TypeAdapter(list[_Part])


@config
class OptimizerConfig:
    """The optimizer."""

    name: str = "AdamW"
    """A class of torch.optim, or MuonAdam: Muon for matrices, Adam for the rest."""
    config: Arguments = Field(default_factory=dict)
    """Its keyword arguments (lr, weight_decay, betas, ...); those left out are torch's. Biases, and all other
    weights with fewer than two dimensions, are not decayed."""

    @model_validator(mode="after")
    def _known(self) -> Self:
        return OPTIMIZERS.check(self)


@config
class SchedulerConfig:
    """The learning-rate schedule."""

    name: str = "WarmupCosine"
    """A class of torch.optim.lr_scheduler, or WarmupCosine: a short linear warm-up, then half a cosine over
    the whole run, whether its end is given in steps, epochs or time."""
    config: Arguments = Field(default_factory=dict)
    """Its keyword arguments. "num_steps" and "num_epochs" stand for the numbers of the run: {T_max: num_epochs}.
    SequentialLR and ChainedScheduler take `schedulers`: a list of {name, config}."""
    interval: Literal["step", "epoch"] | None = None
    """When it moves on. none: every step for WarmupCosine and where "num_steps" is used, else every epoch."""
    frequency: Annotated[int, Field(ge=1)] = 1
    """It moves on every so many intervals."""
    monitor: str | None = None
    """Logged quantity that ReduceLROnPlateau watches. none: val/total/loss."""
    strict: bool = True
    """Whether training stops with an error when `monitor` is not there."""

    @model_validator(mode="after")
    def _known(self) -> Self:
        _check_scheduler(NamedConfig(name=self.name, config=self.config))
        return self


class LightningScheduler(TypedDict):
    """The `lr_scheduler` of what `configure_optimizers` returns."""

    scheduler: LRScheduler
    interval: str
    frequency: int
    monitor: str | None
    strict: bool


def build_optimizer(
    config: OptimizerConfig, named_parameters: Iterable[tuple[str, nn.Parameter]], where: str = "optimizer"
) -> Optimizer:
    """The optimizer of the parameters that are trained.

    Weight decay pulls towards zero, which is a meaningful prior for matrices and not for biases, norms and
    tables of one number per element: these are in a group without it.
    """
    named = [(name, p) for name, p in named_parameters if p.requires_grad]
    trained = [p for _, p in named]
    if not trained:
        raise InputError(f"{where}: nothing to train: every weight is frozen")
    if config.name == "MuonAdam":
        matrices = [p for name, p in named if is_matrix(name, p)]
        rest = [p for name, p in named if not is_matrix(name, p)]
        groups: list[dict[str, object]] = [
            {"params": matrices, "orthogonal": True},
            {"params": rest, "weight_decay": 0.0},
        ]
        optimizer = OPTIMIZERS.build(config, where, {"params": [g for g in groups if g["params"]]})
        assert isinstance(optimizer, Optimizer)
        return optimizer
    takes = parameters(OPTIMIZERS.classes[config.name])
    decays = "weight_decay" in takes and config.config.get("weight_decay", takes["weight_decay"].default)
    groups = [{"params": trained}]
    tables = {id(p) for name, p in named if name.rpartition(".")[2] in ("shifts", "scales")}
    flat = [p for p in trained if p.ndim < 2 or id(p) in tables]
    if decays and flat:
        flats = {id(p) for p in flat}
        groups = [
            {"params": [p for p in trained if id(p) not in flats]},
            {"params": flat, "weight_decay": 0.0},
        ]
    optimizer = OPTIMIZERS.build(config, where, {"params": [g for g in groups if g["params"]]})
    assert isinstance(optimizer, Optimizer)
    return optimizer


def build_scheduler(
    config: SchedulerConfig,
    optimizer: Optimizer,
    num_steps: float | None,
    num_epochs: float | None,
    budget: Budget | None = None,
    where: str = "scheduler",
) -> LightningScheduler:
    """The `lr_scheduler` of Lightning's `configure_optimizers`.

    `num_steps` and `num_epochs` are those of the whole run, None or infinite where it has no such end.
    WarmupCosine follows `budget`, by default that of `num_steps`.
    """
    if _by_step(config) and (config.interval == "epoch" or config.frequency != 1):
        raise InputError(f"{where}: interval, frequency: WarmupCosine follows every step: leave them out")
    length = RunLength(_finite(num_steps), _finite(num_epochs))
    whole = NamedConfig(name=config.name, config=config.config)
    scheduler = _build(whole, optimizer, length, budget or Budget(length.num_steps), where)
    by_step = _by_step(config) or _mentions(config.config, "num_steps")
    is_plateau = config.name == "ReduceLROnPlateau"
    return {
        "scheduler": scheduler,
        "interval": config.interval or ("step" if by_step else "epoch"),
        "frequency": config.frequency,
        "monitor": config.monitor or ("val/total/loss" if is_plateau else None),
        "strict": config.strict,
    }


def _by_step(config: SchedulerConfig) -> bool:
    """Whether it is WarmupCosine, or has that within."""
    return config.name == "WarmupCosine" or _mentions(config.config, "WarmupCosine")


def _build(
    choice: NamedConfig, optimizer: Optimizer, length: RunLength, budget: Budget, where: str
) -> LRScheduler:
    arguments = {k: _resolved(v, length, f"{where}.config.{k}") for k, v in choice.config.items()}
    if "schedulers" in arguments:
        arguments["schedulers"] = [
            _build(part, optimizer, length, budget, f"{where}.config.schedulers.{n}")
            for n, part in enumerate(_PARTS.validate_python(arguments["schedulers"]))
        ]
    resolved = NamedConfig(name=choice.name, config=arguments)
    scheduler = SCHEDULERS.build(resolved, where, {"optimizer": optimizer, "budget": budget})
    assert isinstance(scheduler, LRScheduler)
    return scheduler


def _finite(number: float | None) -> int | None:
    return None if number is None or not 0 < number < math.inf else int(number)


def _resolved(value: object, length: RunLength, where: str) -> object:
    """`value` with the numbers of the run in place of their names, also within lists."""
    if isinstance(value, list | tuple):
        return [_resolved(item, length, where) for item in value]
    if not isinstance(value, str) or value not in RunLength._fields:
        return value
    number = length._asdict()[value]
    if number is None:
        raise InputError(f"{where}: {value!r} is not known: set trainer.max_epochs or trainer.max_steps")
    return number


def _mentions(value: object, word: str) -> bool:
    if isinstance(value, Mapping):
        return any(_mentions(item, word) for item in value.values())
    return any(_mentions(item, word) for item in value) if isinstance(value, list | tuple) else value == word
