"""The end of a run in time, and what is said on the way."""

import logging
import time
from typing import Any

import lightning.pytorch as pl

from physicsml_ase.train.metrics import in_words
from physicsml_ase.train.module import PotentialModule
from physicsml_ase.train.schedule import Budget

log = logging.getLogger("physicsml_ase")
FEW_STEPS = 50
"""Of which nothing is learned."""


class EndInTime(pl.Callback):
    """Ends training so that its last validation and what comes after fit into the wall-clock budget.

    `max_steps` ends it here too: Lightning would stop there without a validation.
    """

    def __init__(self, budget: Budget) -> None:
        self.budget, self.all_seconds = budget, budget.seconds
        self._validating_since = 0.0
        self._reserve(0.0)

    def _reserve(self, validation: float) -> None:
        if self.all_seconds is not None:
            self.budget.seconds = max(self.all_seconds - 1.0 - 1.5 * validation, 0.5 * self.all_seconds)

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._validating_since = time.monotonic()

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._reserve(time.monotonic() - self._validating_since)

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Stop where time or steps are used up; say so where that was before anything could be learned."""
        out_of_time = self.all_seconds is not None and self.budget.progress(trainer.global_step) >= 1
        if out_of_time or 0 < trainer.max_steps <= trainer.global_step:
            trainer.should_stop = True
            if not (out_of_time and trainer.is_global_zero):
                return
            batches = trainer.num_training_batches
            if trainer.global_step < FEW_STEPS:
                log.warning(
                    "the time of %g s was over after %d steps, of which little is learned; %.0f s went to starting, "
                    "where what was compiled is kept for other runs: give it more time",
                    *(self.all_seconds, trainer.global_step, self.budget.started_in),
                )
            elif trainer.current_epoch == 0 and batch_idx + 1 < batches:
                log.warning(
                    "the time of %g s was over within the first epoch, after %d of %g batches: most is learned in "
                    "later ones, so give it more time",
                    *(self.all_seconds, batch_idx + 1, batches),
                )


class TellProgress(pl.Callback):
    """One line in the log for each validation, at most one every few seconds."""

    def __init__(self, budget: Budget, seconds: float = 5.0) -> None:
        self.budget, self.seconds, self._told_at = budget, seconds, -1e9

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Tell the errors of this validation, if the last were told long enough ago."""
        assert isinstance(pl_module, PotentialModule)
        now = time.monotonic()
        if trainer.sanity_checking or not trainer.is_global_zero or now - self._told_at < self.seconds:
            return
        self._told_at = now
        errors = {k: float(v) for k, v in trainer.callback_metrics.items() if k.startswith("val/")}
        rmses = in_words({k.removeprefix("val/"): v for k, v in errors.items()})
        is_best = pl_module.keep == "best" and pl_module.best.get("step") == trainer.global_step
        log.info(
            "%5.0f s  epoch %d  step %d  validation RMSE: %s%s",
            self.budget.elapsed,
            trainer.current_epoch,
            trainer.global_step,
            rmses or "no labels",
            "  best so far" if is_best else "",
        )
