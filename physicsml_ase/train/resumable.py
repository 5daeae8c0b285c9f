"""What makes a run survive: a checkpoint now and then, a clean stop on a signal, an end on time.

The checkpoint is saved after a batch that is not the last of its epoch. There, everything that Lightning
does around a batch and at an epoch's end is either wholly done or wholly to come, so that a continued run
does what an uninterrupted one would have done.
"""

import logging
import os
import signal
import threading
import time
from pathlib import Path
from types import FrameType
from typing import Any

import lightning.pytorch as pl

from physicsml_ase.train.metrics import in_words
from physicsml_ase.train.module import PotentialModule
from physicsml_ase.train.schedule import Budget

log = logging.getLogger("physicsml_ase")


class Interrupted(BaseException):
    """A signal asked the run to stop, and a checkpoint to continue from was saved."""


class Resumable(pl.Callback):
    """Keeps `path` a checkpoint that the run can be continued from, and stops cleanly on SIGINT and SIGTERM."""

    def __init__(self, path: Path, every_seconds: float = 60.0, every_steps: int | None = None) -> None:
        self.path, self.every_seconds, self.every_steps = path, every_seconds, every_steps
        self._saved_at = time.monotonic()
        self._before: dict[int, Any] = {}

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        assert isinstance(pl_module, PotentialModule)

        def stop(signum: int, frame: FrameType | None) -> None:
            if pl_module.stop_requested:  # asked twice: at once
                raise KeyboardInterrupt
            pl_module.stop_requested = True

        if threading.current_thread() is threading.main_thread():
            for signum in (signal.SIGINT, signal.SIGTERM):
                self._before[signum] = signal.signal(signum, stop)

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if batch_idx + 1 < trainer.num_training_batches:
            self._save_if_due(trainer, pl_module)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if trainer.num_training_batches == 1:  # no batch is anything but the last
            self._save_if_due(trainer, pl_module)

    def _save_if_due(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        assert isinstance(pl_module, PotentialModule)
        due = time.monotonic() - self._saved_at > self.every_seconds
        if trainer.world_size > 1:
            due = trainer.strategy.broadcast(due)
        if self.every_steps:
            due = due or trainer.global_step % self.every_steps == 0
        if due or pl_module.stop_requested:
            save_training(trainer, self.path)
            self._saved_at = time.monotonic()
        if pl_module.stop_requested:
            raise Interrupted

    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        for signum, handler in self._before.items():
            signal.signal(signum, handler)
        self._before.clear()


def save_training(trainer: pl.Trainer, path: Path) -> None:
    """Save a training checkpoint, complete or not at all. Every rank must call it."""
    beside = path.with_name(f".{path.name}.part")
    trainer.save_checkpoint(beside)
    if trainer.is_global_zero:
        os.replace(beside, path)


class EndOnTime(pl.Callback):
    """Ends training so that its last validation and what comes after fit into the wall-clock budget."""

    def __init__(self, budget: Budget) -> None:
        assert budget.seconds is not None
        self.budget, self.all_seconds = budget, budget.seconds
        self._validating_since = 0.0
        self._reserve(0.0)

    def _reserve(self, validation: float) -> None:
        self.budget.seconds = max(self.all_seconds - 1.0 - 1.5 * validation, 0.5 * self.all_seconds)

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._validating_since = time.monotonic()

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._reserve(time.monotonic() - self._validating_since)

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if self.budget.progress(trainer.global_step) >= 1:
            trainer.should_stop = True


class TellProgress(pl.Callback):
    """One line in the log for each validation, at most one every few seconds."""

    def __init__(self, budget: Budget, seconds: float = 5.0) -> None:
        self.budget, self.seconds, self._told_at = budget, seconds, -1e9

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        assert isinstance(pl_module, PotentialModule)
        now = time.monotonic()
        if trainer.sanity_checking or not trainer.is_global_zero or now - self._told_at < self.seconds:
            return
        self._told_at = now
        errors = {k: float(v) for k, v in trainer.callback_metrics.items() if k.startswith("val/")}
        rmses = in_words({k.removeprefix("val/"): v for k, v in errors.items()})
        best = "  best so far" if pl_module.best.get("step") == trainer.global_step else ""
        log.info(
            "%5.0f s  epoch %d  step %d  validation RMSE: %s%s",
            self.budget.elapsed,
            trainer.current_epoch,
            trainer.global_step,
            rmses or "no labels",
            best,
        )
