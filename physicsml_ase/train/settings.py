"""The whole config of a run: what a config file holds."""

from typing import Annotated, Any, Literal

from pydantic import Field

from physicsml_ase.config import ModelConfig, config
from physicsml_ase.data.settings import DataModuleConfig
from physicsml_ase.models.gaunt_ace import GauntACEConfig
from physicsml_ase.nn.heads import HeadConfig
from physicsml_ase.train.ema import EmaConfig
from physicsml_ase.train.losses import LossTerm
from physicsml_ase.train.optim import OptimizerConfig, SchedulerConfig
from physicsml_ase.train.trainer import TrainerConfig


@config
class StageConfig:
    """One stage of transfer learning."""

    freeze_modules: list[str] = Field(default_factory=list)
    """Modules whose weights stay as they are, by their path in the potential: model.embed, model.messages.0."""
    trainer: dict[str, Any] = Field(default_factory=dict)
    """Overrides of `trainer` in this stage."""
    datamodule: dict[str, Any] = Field(default_factory=dict)
    """Overrides of `datamodule` in this stage."""
    optimizer: OptimizerConfig | None = None
    """Optimizer of this stage; None: that of the run."""
    scheduler: SchedulerConfig | None = None
    """Scheduler of this stage; None: that of the run."""


@config
class TransferConfig:
    """Start from a trained checkpoint."""

    ckpt: str
    """The pre-trained `model.ckpt`, or a training checkpoint."""
    modules_to_match: dict[str, str] | None = None
    """{new: pre-trained} paths of modules whose weights are taken over. None: all of them."""
    stages: list[StageConfig] = Field(default_factory=list)
    """Trained one after the other; none: one stage with the run's own settings."""


@config
class RunConfig:
    """A training run."""

    model: ModelConfig = GauntACEConfig()
    """Architecture and its hyperparameters, chosen by `name`."""
    datamodule: DataModuleConfig = DataModuleConfig()
    """Data, labels, batches and neighbour lists."""
    trainer: TrainerConfig = TrainerConfig()
    """Lightning's Trainer."""
    loss: Annotated[dict[str, LossTerm], Field(min_length=1)] | None = None
    """One term for each label, by its name. None: the recipe's, for every label that the data have. In validation no
    value counts for more than 1 eV/atom or 30 eV/Å where the loss is linear, so that an outlier does not decide."""
    optimizer: OptimizerConfig = OptimizerConfig()
    """Any optimizer of torch.optim."""
    scheduler: SchedulerConfig | None = SchedulerConfig()
    """Any learning-rate schedule of torch.optim.lr_scheduler, or WarmupCosine over the run's whole length."""
    ema: EmaConfig = EmaConfig()
    """Moving average of the weights: what is validated, selected and deployed."""
    heads: dict[str, HeadConfig] = Field(default_factory=dict)
    """How labels are read off the atoms, by the label's name, where that is not the default."""
    reference_energies: dict[str, float] | Literal["isolated_atoms", "least_squares"] | None = None
    """Energy of each lone atom by its symbol [eV], or where to take them from. None: isolated atoms in the
    training data where there are any, and a robust least-squares fit for the other elements."""
    energy_scale: Annotated[float, Field(gt=0)] | None = None
    """Scale of the learned energy of an atom [eV]. None: the RMS force component of the training data x 1 Å."""
    short_range: Literal["zbl", "none"] = "zbl"
    """Repulsion between atoms that are closer than nine tenths of the shortest distance of their elements in the
    training data, where nothing was learned: ZBL and a spring, or none. It is zero for every training structure."""
    avg_num_neighbors: Annotated[float, Field(gt=0)] | None = None
    """Mean number of neighbours that sums are normalised by. None: that of the training data."""
    transfer_learning: TransferConfig | None = None
    """Start from a trained checkpoint."""
    compile: bool | Literal["auto", "kernel"] | dict[str, Any] = False
    """Compile the training step with torch.compile, or with these options of it; "kernel": gaunt_ace on a CPU by its
    C++ kernel, which is several times as fast. "auto": on a CPU the kernel where it can be built, else torch.compile
    where the run is long enough to repay the minute that it takes; on a GPU neither."""
    on_bad_loss: Literal["stop", "skip"] = "stop"
    """What to do where a loss or its gradient is no number: stop, and name the frames; or leave the step out."""
    on_overfitting: Literal["distil", "go_on"] = "go_on"
    """What to do where validation gets worse while the training loss goes on falling: end there, train a committee of
    models, of other shapes too, for a short time each, and in what is left of the run a student, from the data and
    from what the committee says of structures near to them; or go on to the end of the run. Either way the best
    weights are kept. For WarmupCosine and data in memory, one process; the recipe's is distil."""
    float32_matmul_precision: Literal["highest", "high", "medium"] = "highest"
    """Precision of float32 matrix products on GPUs (torch.set_float32_matmul_precision)."""
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 0
    """Seed of the weights, the split and the batches."""
