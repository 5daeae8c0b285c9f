"""When the data of a run have no more to tell one model, and a committee of short trainings and a student follow.

With few frames, validation soon gets worse while the training loss goes on falling. The mean of several models is
better than each of them, and one model can learn that mean, from structures that need no calculation: the training's
own, with their atoms moved a little. It costs what any model costs. Hinton et al., arXiv:1503.02531; measured in
docs/gaunt_ace.md.
"""

import logging
import math
import time
from collections import deque
from dataclasses import replace
from datetime import timedelta
from statistics import median
from typing import Any, NamedTuple

import lightning.pytorch as pl

from physicsml_ase.config import ModelConfig
from physicsml_ase.data.datamodule import DataModule
from physicsml_ase.data.store import MemoryStore
from physicsml_ase.potential import Potential
from physicsml_ase.train.copies import COPIES
from physicsml_ase.train.module import PotentialModule
from physicsml_ase.train.plan import MOST, Plan, kinds_of, planned
from physicsml_ase.train.schedule import Budget
from physicsml_ase.train.settings import RunConfig

log = logging.getLogger("physicsml_ase")
RECENT = 5
"""Validations whose median is compared with the best."""
WORSE, LEARNED = 1.01, 0.95
"""Overfitting is a validation loss so many times the best, with a training loss so many times what it was then."""
WAIT = 0.03
"""Share of the run that must have passed since the best validation."""
MOST_EDGES = 5_000_000
"""Training sets of more edges are not few frames, and their copies would take much memory."""


class Best(NamedTuple):
    """Where a term of the loss was lowest in validation."""

    step: int
    progress: float
    validation: float
    training: float


class StopWhereOverfitting(pl.Callback):
    """Ends the training once validation gets worse while the training loss goes on falling, if a committee and a
    student can be trained in what is left.

    What is looked at is the largest term of the validation loss: as a rule the forces', beside which energies that
    still get better count for little.
    """

    def __init__(self, budget: Budget, model: ModelConfig) -> None:
        self.budget, self.model = budget, model
        self.plan: Plan | None = None
        # of each validation, the terms of its loss and of the training's
        self._recent: deque[tuple[list[float], list[float]]] = deque(maxlen=RECENT)
        self._best: list[Best] = []  # of each term
        self._validating_since = 0.0

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._validating_since = time.monotonic()

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Compare this validation with the best."""
        assert isinstance(pl_module, PotentialModule)
        training = pl_module.training_losses
        if trainer.sanity_checking or training is None or not pl_module.seen_labels:
            return
        loss, step = pl_module.loss, trainer.global_step
        progress = self.budget.progress(step)
        validation = [float(trainer.callback_metrics[f"val/{name}/loss"]) for name in loss.labels]
        self._recent.append((validation, training))
        now = [Best(step, progress, validation[k], self._median(1, k)) for k in range(len(loss.labels))]
        self._best = [min(pair, key=lambda b: b.validation) for pair in zip(self._best or now, now)]
        largest = max(range(len(now)), key=lambda k: loss.weights[k] * validation[k])
        if self.plan is None and self._overfits(largest, progress) and may_stop(trainer):
            costs = [cost for _, cost in kinds_of(self.model)]
            labelling = self._labelling(trainer)
            epoch = math.ceil(trainer.num_training_batches / trainer.accumulate_grad_batches)
            self.plan = planned(self._best[largest].step, step, progress, labelling, costs, epoch)
        if self.plan is not None and not trainer.should_stop:
            trainer.should_stop = True
            words = "validation of %s is worse than at step %d: more steps would not help, more frames would"
            log.info(words, loss.labels[largest], self._best[largest].step)

    def _labelling(self, trainer: pl.Trainer) -> float:
        """What the labels of copies will take, as a share of what is left of the run, by what validation took."""
        if self.budget.seconds is None:
            return 0.0
        stores = trainer.datamodule.resolve().stores  # type: ignore[attr-defined]
        sizes = {name: sum(int(x.num_atoms.sum()) for x in stores[name].values()) for name in stores}
        seconds = (time.monotonic() - self._validating_since) * sizes["train"] / max(sizes["validation"], 1)
        return seconds * COPIES * MOST / max(self.budget.seconds - self.budget.elapsed, 1e-3)

    def _overfits(self, term: int, progress: float) -> bool:
        best = self._best[term]
        if len(self._recent) < RECENT or progress - best.progress < WAIT or progress >= 1:
            return False
        worse = self._median(0, term) > WORSE * best.validation
        return worse and self._median(1, term) < LEARNED * best.training

    def _median(self, which: int, term: int) -> float:
        return median(recent[which][term] for recent in self._recent)

    def record(self) -> dict[str, Any]:
        """What the run's record says of what follows, with the seconds that are left."""
        if self.plan is None:
            return {}
        seconds = None if self.budget.seconds is None else self.budget.seconds - self.budget.elapsed
        return {"plan": list(self.plan), "seconds": seconds, "status": "running"}

    def state_dict(self) -> dict[str, object]:
        """Plain data, for training checkpoints."""
        return {"recent": list(self._recent), "best": [tuple(best) for best in self._best]}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on with what an earlier session has seen."""
        self._recent.extend(state_dict["recent"])
        self._best = [Best(*best) for best in state_dict["best"]]


def may_stop(trainer: pl.Trainer) -> bool:
    """Whether the run has gone as far as its user wants at least."""
    enough = trainer.current_epoch + 1 >= (trainer.min_epochs or 0)
    return enough and trainer.global_step >= (trainer.min_steps or 0)


def can_teach(config: RunConfig, potential: Potential, datamodule: DataModule, processes: int) -> bool:
    """Whether a run may go on with a committee and a student."""
    if config.on_overfitting != "distil" or not config.scheduler or config.scheduler.name != "WarmupCosine":
        return False
    stores = list(datamodule.resolve().stores["train"].values())
    spread = any(name.endswith("_std") for name in potential.headed)
    kept = all(isinstance(store, MemoryStore) for store in stores)
    small = sum(int(store.num_edges.sum()) for store in stores) <= MOST_EDGES
    return processes == 1 and kept and small and not spread and config.transfer_learning is None


def of_part(config: RunConfig, steps: int, seconds: float | None) -> RunConfig:
    """The config of a member of the committee, or of the student; the run's callbacks and loggers are not theirs.

    -1 steps: as many as there is time for.
    """
    trainer = replace(
        config.trainer,
        max_time=None if seconds is None else timedelta(seconds=seconds),
        max_steps=steps,
        max_epochs=-1,
        min_epochs=None,
        min_steps=None,
        check_val_every_n_epoch=1,
        val_check_interval=None,
        callbacks=None,
        logger=None,
        devices=1,
        num_nodes=1,
    )
    return replace(config, trainer=trainer, on_overfitting="go_on")
