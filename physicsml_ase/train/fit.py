"""One training, from the data to the deployable model."""

import dataclasses
import functools
import logging
import re
import signal
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.strategies.launchers import _MultiProcessingLauncher
from lightning.pytorch.utilities.exceptions import MisconfigurationException, SIGTERMException

from physicsml_ase.check.short import tell
from physicsml_ase.config import to_plain
from physicsml_ase.conventions import InputError, raised_in
from physicsml_ase.data.datamodule import DataModule
from physicsml_ase.potential import Potential
from physicsml_ase.train.copies import TAUGHT, teach
from physicsml_ase.train.finish import FAILED, Result, finish, tell_the_end
from physicsml_ase.train.folder import RunFolder, is_first_process
from physicsml_ase.train.given import Data, refuse_changed_data, with_data
from physicsml_ase.train.module import PotentialModule
from physicsml_ase.train.overfitting import StopWhereOverfitting, can_teach
from physicsml_ase.train.pace import EndInTime, TellProgress
from physicsml_ase.train.parts import (
    continued,
    how_to_step,
    keep_constants,
    make_loss,
    make_potential,
    open_data,
    refuse_other_steps,
)
from physicsml_ase.train.place import settled
from physicsml_ase.train.resumable import Interrupted, Resumable, StoppedAtOnce, read_training
from physicsml_ase.train.schedule import Budget
from physicsml_ase.train.settings import RunConfig
from physicsml_ase.train.trainer import TrainerConfig, build_trainer
from physicsml_ase.train.trouble import is_out_of_memory, out_of_memory

log = logging.getLogger("physicsml_ase")
_THEIRS = re.compile(r"(lightning|torch)\b")
REFUSED = {
    "GradientAccumulationScheduler": "the schedule could not count its steps; set trainer.accumulate_grad_batches",
    "StochasticWeightAveraging": "weights are averaged already, see ema",
    "ModelPruning": "the model that is kept would not have what it left",
    "BackboneFinetuning": "it needs a module called backbone; see transfer_learning.stages and freeze_modules",
    "LearningRateFinder": "it needs a module with a learning rate of its own; set optimizer.config.lr",
    "BatchSizeFinder": "batches are the data module's; set datamodule.train.batch_size",
}
"""Callbacks of Lightning's that do not do here what they say, and why."""
SAVE_EVERY_SECONDS = 60.0


class Start(NamedTuple):
    """What a run begins with, besides its config and data."""

    potential: Potential | None = None
    ckpt: Path | None = None
    at: float | None = None
    member: int = 0
    """Of a committee, from 1 on: weights and batches are others."""
    teachers: tuple[Path, ...] = ()
    """Models of a committee, from which a student learns too."""
    epochs: float = 0.0
    """Of the data alone, in the student's steps."""
    own: RunConfig | None = None
    """The run's config, where that of the training is one for a part of it: what models tell of."""
    followed: bool = False
    """Whether another training of the run comes after it, which a signal must keep from beginning."""

    @property
    def is_part(self) -> bool:
        """Whether it is one of several trainings of a run on the same data, of which the first has told them."""
        return self.member > 0 or bool(self.teachers)


def fit(config: RunConfig, data: Data, folder: RunFolder, begin: Start) -> Result:
    """One training, from the data to the deployable model; of a run in stages, one of them."""
    torch.set_float32_matmul_precision(config.float32_matmul_precision)
    saved = read_training(begin.ckpt) if begin.ckpt else None
    with said_before(begin.is_part):
        datamodule = _opened(config, data, folder, begin, saved)
        own_seed = dataclasses.replace(config, seed=datamodule.seed)
        potential = make_potential(own_seed, datamodule, saved, begin.potential)
        config = settled(config, potential, datamodule, new=saved is None)
    step_by = how_to_step(config, potential)  # which may have to compile
    with said_before(begin.is_part):
        if step_by == "kernel":
            log.info("training steps by the C++ kernel")
        if config.trainer.precision == 32 and step_by != "kernel":
            keep_constants(potential, datamodule)
        weights = sum(p.numel() for p in potential.parameters() if p.requires_grad)
        log.info("model %s: %d weights, cut-off %g Å", config.model.name, weights, potential.domain.cutoff)
    config = dataclasses.replace(config, loss=make_loss(config, potential))
    seconds = config.trainer.max_time.total_seconds() if config.trainer.max_time else None
    budget = Budget(seconds=seconds, started_at=begin.at)
    module = _module(config, begin, potential, step_by, budget)
    summary = datamodule.summary
    trainer = _trainer(config, folder, budget)
    if is_first_process():
        summary = _record_begin(folder, config, data, summary, potential)
    resumable = Resumable(folder.last, SAVE_EVERY_SECONDS)
    watch = StopWhereOverfitting(budget, potential.config)
    new = is_first_process() and not folder.read_record().get("continues")
    if new and can_teach(config, potential, datamodule, trainer.world_size):
        trainer.callbacks.append(watch)  # type: ignore[attr-defined]
    trainer.callbacks.append(resumable)  # type: ignore[attr-defined]
    if trainer.is_global_zero:
        trainer.loggers = [*trainer.loggers, folder.csv_logger(saved["global_step"] if saved else None)]
    ended = functools.partial(
        finish,
        {"config": module.config, "data": summary},
        trainer,
        module,
        datamodule,
        folder,
        is_member=begin.member > 0,
        follows=watch.record,
    )
    interrupted = 0
    try:
        with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
            torch.manual_seed(datamodule.seed)
            trainer.fit(module, datamodule=datamodule, ckpt_path=str(begin.ckpt) if begin.ckpt else None)
    except Interrupted:
        interrupted = resumable.signal or 15
    except StoppedAtOnce:
        raise KeyboardInterrupt from None
    except SystemExit as stopped:
        raise _stopped_early(stopped) from None
    except Exception as failure:
        error = failure
        if is_out_of_memory(failure):
            error = out_of_memory(module.batch_sizes, module.device)
        if not resumable.signal:
            if trainer.global_step == 0 and is_first_process() and not begin.is_part:
                folder.write_record(status="started")  # what was refused leaves the folder free
            if not isinstance(error, InputError) or not module.best:
                raise _in_one_line(error, trainer.global_step > 0) from None
            # the loss is not finite, or a frame can not be used: what was good until then is not lost
            ended(FAILED)
            tell_the_end(folder, module.best, {}, False)
            raise InputError(f"{error}; the best model until then is {folder.model}") from None
        interrupted = resumable.signal  # it reached the data workers too, and they died of it
    result = ended(interrupted)
    if (watch.plan is not None or begin.followed) and not interrupted:
        if trainer.is_global_zero and watch.plan is None and not begin.is_part:
            tell_the_end(folder, result.best, result.test_errors, bool(resumable.signal))
        return result._replace(interrupted=resumable.signal or 0)  # which came after the last step
    if trainer.is_global_zero and not begin.is_part:
        tell_the_end(folder, result.best, result.test_errors, interrupted > 0)
    return result


def _module(
    config: RunConfig,
    begin: Start,
    potential: Potential,
    step_by: bool | str | dict[str, Any],
    budget: Budget,
) -> PotentialModule:
    """What Lightning trains; its checkpoints tell of the run's own config."""
    # without the data: whoever trains the model further brings others
    told = to_plain(with_data(dataclasses.replace(begin.own or config, loss=config.loss), Data()))
    return PotentialModule(
        potential,
        config.loss or {},
        config.optimizer,
        config.scheduler,
        budget=budget,
        ema=config.ema,
        config=told,
        compile=step_by,
        on_bad_loss=config.on_bad_loss,
        # what is noise in a member goes from the mean; at a high rate validation finds good forces and poor energies
        keep="last" if begin.member else "best",
    )


def _opened(
    config: RunConfig, data: Data, folder: RunFolder, begin: Start, saved: Mapping[str, Any] | None
) -> DataModule:
    """The data of a training, with the seed that is its own after they were split by the run's."""
    if saved:
        refuse_other_steps(begin.own or config, saved)
    datamodule = open_data(config, data._asdict(), continued(config, saved) if saved else None)
    datamodule.seed = config.seed + begin.member
    if begin.teachers:
        teach(datamodule, begin.teachers, config.seed, folder.root / TAUGHT, begin.epochs)
    if is_first_process() and saved is None and not begin.is_part:
        keys = {label.name: label.key for label in datamodule.labels}
        tell(datamodule.sources, datamodule.domain.cutoff, keys, datamodule.domain.attrs)
    return datamodule


def _record_begin(
    folder: RunFolder, config: RunConfig, data: Data, summary: Mapping[str, Any], potential: Potential
) -> dict[str, Any]:
    """Write down what the run is begun or continued with; what is known of its data by now."""
    before = folder.read_record().get("summary") or {}
    refuse_changed_data(before, summary)
    known = before | dict(summary)  # a resumed run resolves less anew
    folder.write_config(to_plain(with_data(config, data)))
    folder.write_record(summary=known, domain=to_plain(potential.domain), status="running")
    return known


def _trainer(config: RunConfig, folder: RunFolder, budget: Budget) -> pl.Trainer:
    """Lightning's Trainer, without what the run does itself or tells in its own lines."""
    given = config.trainer
    if str(given.precision).endswith("16-true"):
        raise InputError(
            f"trainer.precision: {given.precision} rounds positions and energies themselves; use "
            f"{str(given.precision).replace('true', 'mixed')}"
        )
    progress = sys.stderr.isatty() if given.enable_progress_bar is None else given.enable_progress_bar
    quiet: TrainerConfig = dataclasses.replace(
        given,
        max_time=None,
        num_sanity_val_steps=given.num_sanity_val_steps or 0,
        enable_model_summary=bool(given.enable_model_summary),
        enable_progress_bar=progress,
    )
    trainer = build_trainer(
        quiet, extra_callbacks=[TellProgress(budget), EndInTime(budget)], logger=False, root=folder.root
    )
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        if (name := type(callback).__name__) in REFUSED:
            raise InputError(f"trainer.callbacks: {name}: {REFUSED[name]}")
    for callback in trainer.checkpoint_callbacks:
        if isinstance(callback, ModelCheckpoint) and Path(callback.dirpath or "") == folder.last.parent:
            callback.CHECKPOINT_NAME_LAST = "callback-last"  # the run's own last.ckpt continues exactly
    if isinstance(trainer.strategy.launcher, _MultiProcessingLauncher):
        raise InputError(
            f"trainer.strategy: {given.strategy}: its processes end with the training and take the best "
            "weights with them; use ddp, from a script or the command line"
        )
    return trainer


def _stopped_early(by: SystemExit) -> BaseException:
    """What a signal comes to that Lightning took, before the run's own handlers were in place: no success."""
    log.warning("stopped before the first step; there is no model yet")
    return SystemExit(128 + signal.SIGTERM) if isinstance(by, SIGTERMException) else KeyboardInterrupt()


def _in_one_line(error: Exception, begun: bool) -> Exception:
    """What Lightning or torch says of a config that does not work, as an InputError; any other error as it is.

    Before the first step, whatever they raise themselves.
    """
    text = " ".join(str(error).split())
    if isinstance(error, MisconfigurationException) or (not begun and _THEIRS.match(raised_in(error))):
        return InputError(text)
    return (
        InputError(f"trainer.callbacks: {text}")
        if text.startswith("Early stopping conditioned on")
        else error
    )


@contextmanager
def said_before(quiet: bool) -> Iterator[None]:
    """Without what the first training of a run has said of the same data."""
    level = log.level
    if quiet:
        log.setLevel(logging.ERROR)
    try:
        yield
    finally:
        log.setLevel(level)


def last_checkpoint(folder: RunFolder) -> Path | None:
    return folder.last if folder.last.exists() else None
