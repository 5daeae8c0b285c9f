"""The `trainer` section: all keyword arguments of Lightning's Trainer, under their own names."""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Literal, TypeVar

from lightning.fabric.loggers import Logger
from lightning.pytorch.accelerators import Accelerator
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.plugins import CheckpointIO, LayerSync, Precision
from lightning.pytorch.plugins.environments import ClusterEnvironment
from lightning.pytorch.profilers import Profiler
from lightning.pytorch.strategies import Strategy
from pydantic import AfterValidator, BeforeValidator, Discriminator, Field, InstanceOf, Tag
from pydantic.json_schema import SkipJsonSchema

from physicsml_ase.config import config, did_you_mean
from physicsml_ase.config.wording import Words
from physicsml_ase.conventions import InputError
from physicsml_ase.train.catalogs import ACCELERATORS, CALLBACKS, LOGGERS, PLUGINS, PROFILERS, STRATEGIES
from physicsml_ase.train.duration import Duration, TextDuration
from physicsml_ase.train.named import NamedConfig


def _known_accelerator(value: str | Accelerator) -> str | Accelerator:
    if isinstance(value, str) and value not in ACCELERATORS:
        raise InputError(f"unknown accelerator; {did_you_mean(value, ACCELERATORS)}")
    return value


def _strategy(value: str | NamedConfig | Strategy) -> str | NamedConfig | Strategy:
    return value if value == "auto" else STRATEGIES.check(value)


def _how_many(value: object) -> str:
    if isinstance(value, list | tuple):
        return "<list>"
    is_dict = isinstance(value, Mapping) and not isinstance(value.get("name"), str)
    return "<dict>" if is_dict else "<one>"


def _text(value: object) -> object:
    return str(value) if isinstance(value, Path) else value


_NAMED = "name | {name, config}"
_Named = Words(lambda: _NAMED)
E = TypeVar("E")
OneOrMore = Annotated[
    Annotated[E, Tag("<one>")]
    | Annotated[list[E], Tag("<list>")]
    | Annotated[dict[str, E | None], Tag("<dict>")],
    Discriminator(_how_many),
    Words(lambda: f"{_NAMED}, or a list or dict of these"),
]
"""A thing, a list of them, or a dict of them; {name: EarlyStopping} is one."""
AccEntry = Annotated[
    str | SkipJsonSchema[InstanceOf[Accelerator]], AfterValidator(_known_accelerator), Words(lambda: "name")
]
StrategyEntry = Annotated[
    str | NamedConfig | SkipJsonSchema[InstanceOf[Strategy]], AfterValidator(_strategy), _Named
]
CallbackEntry = Annotated[
    str | NamedConfig | SkipJsonSchema[InstanceOf[Callback]], AfterValidator(CALLBACKS.check), _Named
]
LoggerEntry = Annotated[
    str | NamedConfig | SkipJsonSchema[InstanceOf[Logger]], AfterValidator(LOGGERS.check), _Named
]
ProfilerEntry = Annotated[
    str | NamedConfig | SkipJsonSchema[InstanceOf[Profiler]], AfterValidator(PROFILERS.check), _Named
]
PluginEntry = Annotated[
    str
    | NamedConfig
    | SkipJsonSchema[InstanceOf[Precision]]
    | SkipJsonSchema[InstanceOf[ClusterEnvironment]]
    | SkipJsonSchema[InstanceOf[CheckpointIO]]
    | SkipJsonSchema[InstanceOf[LayerSync]],
    AfterValidator(PLUGINS.check),
    _Named,
]
# fmt: off
PrecisionName = Literal[
    64, 32, 16, "64", "32", "16", "bf16", "64-true", "32-true", "16-true", "bf16-true", "16-mixed", "bf16-mixed",
    "transformer-engine", "transformer-engine-float16",
]
# fmt: on


def _devices(value: int | str | list[int]) -> int | str | list[int]:
    """What Lightning understands: a number, several with commas between them, a list of them, or "auto"."""
    if isinstance(value, str) and value != "auto":
        numbers = [part.strip().removeprefix("-") for part in value.split(",") if part.strip()]
        if not numbers or not all(number.isdigit() for number in numbers):
            raise ValueError(
                "no number of devices and no list of them; for the second GPU, write accelerator=cuda "
                "devices=[1]"
            )
    return value


def _plain_precision(name: str | int | None) -> str | int:
    """One name for each of float32 and float64, which have several."""
    if name is None or name in ("32", "32-true"):
        return 32
    return 64 if name in ("64", "64-true") else name


Share = Annotated[int, Field(ge=0)] | Annotated[float, Field(ge=0, le=1)] | None
"""A number of batches (an integer) or a share of them (a float)."""


@config
class TrainerConfig:
    """Lightning's Trainer."""

    accelerator: AccEntry = "auto"
    """What to compute on: auto, cpu, gpu, cuda, mps, tpu."""
    strategy: StrategyEntry = "auto"
    """How several devices work together: auto, a name such as ddp, or {name, config}."""
    devices: Annotated[int | str | list[int], AfterValidator(_devices)] = "auto"
    """How many devices, or which; -1 or "auto" is all of them (on a CPU "auto" is one process)."""
    num_nodes: Annotated[int, Field(ge=1)] = 1
    """Number of machines."""
    precision: Annotated[PrecisionName | None, AfterValidator(_plain_precision)] = 32
    """Number type of training: 32, 64, or mixed and lower precisions by Lightning's names."""
    logger: OneOrMore[LoggerEntry] | bool | None = None
    """Loggers by {name, config}: one, a list or a dict of them. none: metrics.csv in the run's folder;
    true: Lightning's default; false: no logger."""
    callbacks: OneOrMore[CallbackEntry] | None = None
    """Callbacks by {name, config}: one, a list or a dict of them, with Lightning's class names or this
    package's own. In a dict, none removes one."""
    fast_dev_run: bool | Annotated[int, Field(ge=0)] = False
    """Run one batch (or so many) of everything, to find errors."""
    max_epochs: Annotated[int, Field(ge=-1)] | None = 1
    """Stop after so many epochs; -1: no limit."""
    min_epochs: Annotated[int, Field(ge=0)] | None = None
    """Train for at least so many epochs."""
    max_steps: Annotated[int, Field(ge=-1)] = -1
    """Stop after so many optimizer steps; -1: no limit."""
    min_steps: Annotated[int, Field(ge=0)] | None = None
    """Train for at least so many optimizer steps."""
    max_time: Duration | None = None
    """Stop after this time: 90s, 10m, 1h30m, DD:HH:MM:SS or {minutes: 10}."""
    limit_train_batches: Share = None
    """Use so many training batches in an epoch (an integer), or this share of them (a float)."""
    limit_val_batches: Share = None
    """The same for validation."""
    limit_test_batches: Share = None
    """The same for the test."""
    limit_predict_batches: Share = None
    """The same for prediction."""
    overfit_batches: Annotated[int, Field(ge=0)] | Annotated[float, Field(ge=0, le=1)] = 0.0
    """Train and validate on the same few batches, to see whether a model can learn at all."""
    val_check_interval: (
        Annotated[int, Field(ge=0)] | Annotated[float, Field(ge=0, le=1)] | TextDuration | None
    ) = None
    """Validate after this share of an epoch (a float), so many batches (an integer), or this time."""
    check_val_every_n_epoch: Annotated[int, Field(ge=1)] | None = 1
    """Validate every so many epochs; none: only `val_check_interval` counts, across epochs."""
    num_sanity_val_steps: Annotated[int, Field(ge=-1)] | None = None
    """Validation batches to try before training; -1: all. none: in a run none, else 2."""
    log_every_n_steps: Annotated[int, Field(ge=0)] | None = None
    """Write metrics of steps every so many steps. none: 50."""
    enable_checkpointing: bool | None = False
    """Save Lightning's own checkpoints too. A callback that saves checkpoints switches this on."""
    enable_progress_bar: bool | None = None
    """Show a progress bar. none: in a run on a terminal only, else yes."""
    enable_model_summary: bool | None = None
    """Print the model's modules before training. none: in a run no, else yes."""
    accumulate_grad_batches: Annotated[int, Field(ge=1)] = 1
    """Add up the gradients of so many batches for one optimizer step."""
    gradient_clip_val: Annotated[float, Field(ge=0)] | None = None
    """Clip gradients to this norm or value."""
    gradient_clip_algorithm: Literal["norm", "value"] | None = None
    """Clip the norm of all gradients, or each value. none: norm."""
    deterministic: bool | Literal["warn"] | None = None
    """Use deterministic algorithms of torch only, or warn where there is none."""
    benchmark: bool | None = None
    """Let cuDNN look for the fastest algorithms."""
    inference_mode: bool = True
    """Evaluate within torch.inference_mode rather than torch.no_grad."""
    use_distributed_sampler: bool = True
    """Let Lightning share the batches among processes where the dataloader does not do so itself."""
    profiler: ProfilerEntry | None = None
    """Measure where time goes, told in the run's folder (fit-profile.txt): simple, advanced, pytorch, or {name,
    config}."""
    detect_anomaly: bool = False
    """Find the operation that made a NaN in the backward pass; slow."""
    barebones: bool = False
    """Switch off everything that costs time beside the training itself."""
    plugins: OneOrMore[PluginEntry] | None = None
    """Lightning's plugins (precision, cluster environment, checkpoint files) by {name, config}."""
    sync_batchnorm: bool = False
    """Synchronize batch norms among processes."""
    reload_dataloaders_every_n_epochs: Annotated[int, Field(ge=0)] = 0
    """Make new dataloaders every so many epochs; 0: never."""
    default_root_dir: Annotated[str, BeforeValidator(_text)] = "training"
    """Folder for everything that the run writes."""
    enable_autolog_hparams: bool = True
    """Log hyperparameters at the start."""
    model_registry: str | None = None
    """Name under which Lightning's model registry keeps the model."""
