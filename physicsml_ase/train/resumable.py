"""What makes a run survive: a checkpoint now and then, and a clean stop on a signal.

A checkpoint is saved at a place where everything that Lightning does around a batch or an epoch is either
wholly done or wholly to come, so that a continued run does what an uninterrupted one would have done: after
a batch that completes an optimizer step and is followed by another one without a validation between them,
or before an epoch's first batch. Gradients that are being accumulated, and the metrics that a scheduler or
EarlyStopping will look at, are in no checkpoint.
"""

import os
import signal
import threading
import time
from pathlib import Path
from types import FrameType
from typing import Any

import lightning.pytorch as pl
import torch

from physicsml_ase.conventions import InputError
from physicsml_ase.train.module import PotentialModule


class Interrupted(BaseException):
    """A signal asked the run to stop, and a checkpoint to continue from was saved."""


class StoppedAtOnce(BaseException):
    """A second signal: nothing more is saved. Lightning would end the program on a KeyboardInterrupt."""


class Resumable(pl.Callback):
    """Keeps `path` a checkpoint that the run can be continued from, and stops cleanly on SIGINT and SIGTERM.

    It must be the last callback, so that its checkpoints hold what the others did.
    """

    def __init__(self, path: Path, every_seconds: float = 60.0) -> None:
        self.path, self.every_seconds = path, every_seconds
        self.signal: int | None = None
        """The signal that asked the run to stop."""
        self._saved_at = time.monotonic()
        self._before: dict[int, Any] = {}

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Take over the signals, in the main thread, which alone gets them."""
        assert isinstance(pl_module, PotentialModule)
        loop = trainer.fit_loop
        if loop.epoch_progress.current.ready == trainer.current_epoch:
            # saved between epochs: with max_steps set Lightning would end the finished epoch once more
            loop.epoch_loop.restarting = False

        def stop(signum: int, frame: FrameType | None) -> None:
            if pl_module.asked.stop_here:
                raise StoppedAtOnce
            self.signal = signum
            pl_module.asked = pl_module.asked._replace(stop_here=True)

        if threading.current_thread() is threading.main_thread():
            for signum in (signal.SIGINT, signal.SIGTERM):
                self._before[signum] = signal.signal(signum, stop)

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Save before the first batch of an epoch, if it is time."""
        # Lightning counts the epoch as begun; in the checkpoint it must not be
        progress = trainer.fit_loop.epoch_progress
        progress.current.ready -= 1
        progress.total.ready -= 1
        self._save_if_due(trainer, pl_module)
        progress.current.ready += 1
        progress.total.ready += 1

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        # the restart is over; Lightning takes it to last to the end of the epoch, and then leaves out the
        # step of ReduceLROnPlateau there
        trainer.fit_loop._restarting = False

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Save after a batch, where everything around it is done."""
        assert isinstance(pl_module, PotentialModule)
        due = time.monotonic() - self._saved_at > self.every_seconds
        pl_module.asked = pl_module.asked._replace(save_here=due)
        if (
            batch_idx + 1 < trainer.num_training_batches
            and (batch_idx + 1) % trainer.accumulate_grad_batches == 0
            and not _validates_next(trainer, batch_idx)
        ):
            self._save_if_due(trainer, pl_module)

    def _save_if_due(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        assert isinstance(pl_module, PotentialModule)
        if pl_module.asked.save or pl_module.asked.stop:
            save_training(trainer, self.path)
            pl_module.asked = pl_module.asked._replace(save_here=False, save=False)
            self._saved_at = time.monotonic()
        if pl_module.asked.stop:
            raise Interrupted

    def on_exception(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException
    ) -> None:
        self._give_signals_back()

    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        self._give_signals_back()

    def _give_signals_back(self) -> None:
        for signum, handler in self._before.items():
            signal.signal(signum, handler)
        self._before.clear()


def save_training(trainer: pl.Trainer, path: Path) -> None:
    """Save a training checkpoint, complete or not at all. Every rank must call it."""
    beside = path.with_name(f".{path.name}.part")
    try:
        trainer.save_checkpoint(beside)
    except BaseException:
        if trainer.is_global_zero:
            beside.unlink(missing_ok=True)
        raise
    if trainer.is_global_zero:
        os.replace(beside, path)


def read_training(path: Path) -> dict[str, Any]:
    """A training checkpoint of ours, as plain data."""
    if not path.is_file():
        raise InputError(f"{path}: no such checkpoint")
    try:
        saved = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises many kinds for what is no checkpoint
        raise InputError(
            f"{path}: can not be read as a training checkpoint ({type(error).__name__})"
        ) from None
    if "physicsml_ase" not in saved:
        raise InputError(
            f"{path}: is no training checkpoint; a run continues from checkpoints/last.ckpt, "
            "and a model.ckpt is a start for transfer_learning"
        )
    return saved


def _validates_next(trainer: pl.Trainer, batch_idx: int) -> bool:
    """Whether validation follows this batch, by a rule that may also say so where none follows."""
    every = trainer.val_check_batch
    if trainer.should_stop:
        return True
    if every is None or every == float("inf") or not trainer.enable_validation:
        return False
    across_epochs = trainer.check_val_every_n_epoch is None
    done = trainer.fit_loop.total_batch_idx if across_epochs else batch_idx
    return bool((done + 1) % every == 0)
