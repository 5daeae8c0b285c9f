"""A training run, from a config and data to the deployable model in the run's folder."""

import dataclasses
import logging
import math
import os
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import lightning.pytorch as pl
import torch
from lightning.pytorch.strategies.launchers import _MultiProcessingLauncher
from lightning.pytorch.utilities.exceptions import MisconfigurationException

from physicsml_ase.check.short import tell
from physicsml_ase.checkpoint import load_potential, save_potential
from physicsml_ase.config import ModelConfig, to_plain, validate
from physicsml_ase.conventions import InputError
from physicsml_ase.data.datamodule import DataModule
from physicsml_ase.data.sample import sample
from physicsml_ase.potential import Potential, Trust
from physicsml_ase.train.copies import TAUGHT, teach
from physicsml_ase.train.folder import RunFolder, committee_folder, is_first_process, student_folder
from physicsml_ase.train.given import Data, as_text, refuse_changed_data, with_data
from physicsml_ase.train.metrics import in_words
from physicsml_ase.train.module import PotentialModule
from physicsml_ase.train.overfitting import (
    Member,
    Plan,
    StopWhereOverfitting,
    TimeLeft,
    can_teach,
    good,
    kinds_of,
    of_part,
)
from physicsml_ase.train.pace import EndInTime, TellProgress
from physicsml_ase.train.parts import (
    continued,
    how_to_step,
    keep_constants,
    make_loss,
    make_potential,
    open_data,
)
from physicsml_ase.train.place import settled
from physicsml_ase.train.resumable import Interrupted, Resumable, StoppedAtOnce, read_training
from physicsml_ase.train.schedule import Budget
from physicsml_ase.train.settings import RunConfig
from physicsml_ase.train.stages import stage_configs, stage_folder
from physicsml_ase.train.trainer import TrainerConfig, build_trainer
from physicsml_ase.train.trouble import is_out_of_memory, out_of_memory
from physicsml_ase.trust import measure
from physicsml_ase.trust.walls import settle_walls

log = logging.getLogger("physicsml_ase")
NUM_STORED_FRAMES = 4
SAVE_EVERY_SECONDS = 60.0
TRAIN_ATOMS, VALIDATION_ATOMS = 4000, 1500
"""Of each set, on which distances to the training data are measured: as costly as some epochs of so many atoms."""
FAILED = -1
"""In place of a signal's number: the training ended by an error."""


class Result(NamedTuple):
    """How a run ended."""

    potential: Potential
    folder: RunFolder
    best: dict[str, Any]  # "score", "epoch", "step", "errors" of the best validation
    test_errors: dict[str, float]
    interrupted: int  # the signal that stopped it, or 0


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

    @property
    def is_part(self) -> bool:
        """Whether it is one of several trainings of a run on the same data, of which the first has told them."""
        return self.member > 0 or bool(self.teachers)


def start(
    config: RunConfig,
    data: Data,
    root: str | Path,
    *,
    potential: Potential | None = None,
    ckpt_path: str | Path | None = None,
    started_at: float | None = None,
) -> Result:
    """Train from the beginning, or from a training checkpoint, in the new folder `root`.

    `potential` continues from given weights. `started_at`, on `time.monotonic`'s clock, is when the
    wall-clock budget began.
    """
    folder = RunFolder(root)
    if config.transfer_learning:
        ckpt = str(Path(config.transfer_learning.ckpt).absolute())
        transfer = dataclasses.replace(config.transfer_learning, ckpt=ckpt)
        config = dataclasses.replace(config, transfer_learning=transfer)
    stage_configs(config, folder.root)  # what is wrong in a later stage is wrong now
    begin = Start(potential, Path(ckpt_path) if ckpt_path else None, started_at)
    with folder.new(), folder.held():
        if is_first_process():
            folder.create()
            folder.write_config(to_plain(with_data(config, data)))
            given = potential is not None or ckpt_path is not None
            folder.write_record(data=as_text(data), status="started", continues=given)
        return _run(config, data, folder, begin)


def resume(root: str | Path, *, data: Data | None = None, started_at: float | None = None) -> Result:
    """Continue the run in the folder `root` from its last checkpoint, or begin it again if it has none yet."""
    folder = RunFolder(root)
    record = folder.read_record()
    if record.get("status") == "finished":
        raise InputError(f"{folder.root}: the run is finished; its model is {folder.model}")
    config = validate(RunConfig, folder.read_config(), where=str(folder.config))
    if data is None:
        spec = record["data"]
        if spec is None:
            raise InputError(
                f"{folder.root}: its data were objects in memory; continue with "
                "model.train(train_data=..., ckpt_path=...) in Python"
            )
        data = Data(**spec)
    with folder.held():
        return _run(config, data, folder, Start(None, _last(folder), started_at))


def _run(config: RunConfig, data: Data, folder: RunFolder, begin: Start) -> Result:
    if not is_first_process():
        log.setLevel(logging.WARNING)  # the others would tell the same
    stages = stage_configs(config, folder.root)
    if len(stages) == 1:
        return _fit_and_teach(stages[0], data, folder, begin)
    results: list[Result] = []
    for number, stage in enumerate(stages, 1):
        part = stage_folder(folder.root, number)
        if part.is_finished:
            if is_first_process():
                folder.publish(part.model)  # it may have been killed before it did
            continue
        log.info("stage %d of %d", number, len(stages))
        if is_first_process() and not part.is_used:
            part.create()
            part.write_record(status="started")
        assert config.transfer_learning is not None
        own = config.transfer_learning.stages[number - 1].datamodule
        given = Data(*(own.get(f"{name}_data", spec) for name, spec in data._asdict().items()))
        results.append(_fit(stage, given, part, Start(ckpt=_last(part), at=None if results else begin.at)))
        if is_first_process():
            folder.publish(part.model)
            folder.write_record(status="interrupted" if results[-1].interrupted else "running")
        if results[-1].interrupted:
            break
    last = results[-1] if results else Result(load_potential(folder.model), folder, {}, {}, 0)
    if is_first_process() and not last.interrupted:
        folder.write_record(best=last.best, test=last.test_errors, status="finished")
        log.info("model of the last stage: %s", folder.model)
    return last._replace(folder=folder)


def _fit_and_teach(config: RunConfig, data: Data, folder: RunFolder, begin: Start) -> Result:
    """One training and, where its data had no more to tell, a committee and their student."""
    record = folder.read_record() if folder.record.exists() else {}
    if "plan" in record:  # an earlier session came so far
        if int(os.environ.get("WORLD_SIZE", "1")) > 1:
            raise InputError(f"{folder.root}: its committee was begun by one process: continue with one")
        with _said_before(True):
            refuse_changed_data(record.get("summary") or {}, open_data(config, data._asdict()).summary)
        first = Result(load_potential(folder.model), folder, record["best"], record["test"], 0)
    else:
        first = _fit(config, data, folder, begin)
        record = folder.read_record() if is_first_process() else {}
        if "plan" not in record:
            return first
    last = None
    try:
        # with what was left to the data, and where the first training was
        place = folder.read_config()["trainer"]["accelerator"]
        trainer = dataclasses.replace(config.trainer, accelerator=place)
        same = dataclasses.replace(config, model=first.potential.config, trainer=trainer)
        last = first if first.interrupted else _taught(same, data, folder, record)
    except InputError as error:
        log.warning("the committee and its student were given up: %s", error)
    if last is not None and last.interrupted:
        folder.write_record(status="interrupted")
        _tell_the_end(folder, first.best, first.test_errors, True)
        return first._replace(interrupted=last.interrupted)
    alone = {"best": first.best, "test": first.test_errors}
    if last is not None and last.best.get("score", math.inf) < first.best["score"]:
        folder.publish(last.folder.model)
        first = last._replace(folder=folder)
    folder.write_record(best=first.best, test=first.test_errors, status="finished", alone=alone)
    _tell_the_end(folder, first.best, first.test_errors, False)
    return first


def _taught(config: RunConfig, data: Data, folder: RunFolder, record: Mapping[str, Any]) -> Result:
    """The student of a committee, or the part at which it was interrupted."""
    if len(record["plan"]) != len(Plan._fields):
        raise InputError("they were begun by an earlier version")
    plan, kinds = Plan(*record["plan"]), kinds_of(config.model)
    costs = [cost for _, cost in kinds]
    members = [Member(steps, kind, score) for steps, kind, score in record.get("members", [])]
    rest = plan.total - plan.spent(members, costs)
    time_left = TimeLeft.of(record["seconds"], rest / plan.total)
    while (member := plan.next_member(members, costs)) is not None:
        number, model = len(members) + 1, kinds[member.kind][0]
        words = "committee: member %d, %d steps%s"
        log.info(words, number, member.steps, _unlike(config.model, model))
        share = time_left.share(plan.spent([member], costs) / rest)
        own = dataclasses.replace(config, model=model)
        part = committee_folder(folder.root, number)
        try:
            result = _part(of_part(own, member.steps, share), data, part, Start(member=number, own=own))
        except InputError as error:
            log.warning("member %d was given up: %s", number, error)
        else:
            if result.interrupted:
                return result
            member = member._replace(score=result.best.get("score", math.inf))
        members.append(member)
        folder.write_record(members=[list(m) for m in members])
        rest = plan.total - plan.spent(members, costs)
    known = {"the first training": (folder.model, record["best"]["score"])}
    for number, member in enumerate(members, 1):
        known[f"member {number}"] = (committee_folder(folder.root, number).model, member.score)
    names = [list(known)[k] for k in good([score for _, score in known.values()])]
    if not names:
        raise InputError("no member came to a good end")
    log.info("student of %s; %d steps at most", ", ".join(names), rest)
    folder.write_record(teachers=names)
    paths = tuple(known[name][0] for name in names)
    epochs = rest * (record["best"]["epoch"] + 1) / record["best"]["step"]
    begin = Start(teachers=paths, epochs=epochs, own=config, at=time.monotonic())
    part = student_folder(folder.root)
    student = _part(of_part(config, rest, time_left.share(1.0)), data, part, begin)
    if not student.interrupted:
        (part.root / TAUGHT).unlink(missing_ok=True)
    return student


def _unlike(own: ModelConfig, model: ModelConfig) -> str:
    """In words, how a member's model is another than the run's."""
    mine, others = to_plain(own), to_plain(model)
    return "".join(f", {key}={value}" for key, value in others.items() if mine[key] != value)


def _part(config: RunConfig, data: Data, folder: RunFolder, begin: Start) -> Result:
    """One of several trainings of a run, from where it is."""
    if folder.is_finished:
        record = folder.read_record()
        return Result(load_potential(folder.model), folder, record["best"], record["test"], 0)
    if folder.is_used:  # its time is what it began with
        config = validate(RunConfig, folder.read_config(), where=str(folder.config))
    else:
        folder.create()
        folder.write_record(status="started")
    return _fit(config, data, folder, begin._replace(ckpt=_last(folder)))


def _fit(config: RunConfig, data: Data, folder: RunFolder, begin: Start) -> Result:
    """One training, from the data to the deployable model; of a run in stages, one of them."""
    torch.set_float32_matmul_precision(config.float32_matmul_precision)
    saved = read_training(begin.ckpt) if begin.ckpt else None
    with _said_before(begin.is_part):
        datamodule = _opened(config, data, folder, begin, saved)
        own_seed = dataclasses.replace(config, seed=datamodule.seed)
        potential = make_potential(own_seed, datamodule, saved, begin.potential)
        config = settled(config, potential, datamodule, new=saved is None)
    step_by = how_to_step(config, potential)  # which may have to compile
    with _said_before(begin.is_part):
        if step_by == "kernel":
            log.info("training steps by the C++ kernel")
        if config.trainer.precision == 32 and step_by != "kernel":
            keep_constants(potential, datamodule)
        weights = sum(p.numel() for p in potential.parameters() if p.requires_grad)
        log.info("model %s: %d weights, cut-off %g Å", config.model.name, weights, potential.domain.cutoff)
    config = dataclasses.replace(config, loss=make_loss(config, potential))
    seconds = config.trainer.max_time.total_seconds() if config.trainer.max_time else None
    budget = Budget(seconds=seconds, started_at=begin.at)
    module = _module(config, begin.own or config, potential, step_by, budget)
    about = {"config": module.config}
    summary = datamodule.summary
    if is_first_process():
        summary = _record_begin(folder, config, data, summary, potential)
    trainer = _trainer(config, folder, budget)
    resumable = Resumable(folder.last, SAVE_EVERY_SECONDS)
    watch = StopWhereOverfitting(budget, potential.config)
    new = is_first_process() and not folder.read_record().get("continues")
    if new and can_teach(config, potential, datamodule, trainer.world_size):
        trainer.callbacks.append(watch)  # type: ignore[attr-defined]
    trainer.callbacks.append(resumable)  # type: ignore[attr-defined]
    if trainer.is_global_zero:
        trainer.loggers = [*trainer.loggers, folder.csv_logger(saved["global_step"] if saved else None)]
    interrupted = 0
    try:
        with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
            torch.manual_seed(datamodule.seed)
            trainer.fit(module, datamodule=datamodule, ckpt_path=str(begin.ckpt) if begin.ckpt else None)
    except Interrupted:
        interrupted = resumable.signal or 15
    except StoppedAtOnce:
        raise KeyboardInterrupt from None
    except Exception as failure:
        error = failure
        if is_out_of_memory(failure):
            error = out_of_memory(module.batch_sizes, module.device)
        if not resumable.signal:
            if not isinstance(error, InputError) or not module.best:
                raise _in_one_line(error) from None
            # the loss is not finite, or a frame can not be used: what was good until then is not lost
            _finish(about | {"data": summary}, trainer, module, datamodule, folder, FAILED, begin, watch)
            _tell_the_end(folder, module.best, {}, False)
            raise InputError(f"{error}; the best model until then is {folder.model}") from None
        interrupted = resumable.signal  # it reached the data workers too, and they died of it
    result = _finish(
        about | {"data": summary}, trainer, module, datamodule, folder, interrupted, begin, watch
    )
    if watch.plan is not None and not interrupted:
        return result._replace(interrupted=resumable.signal or 0)  # which came after the last step
    if trainer.is_global_zero and not begin.is_part:
        _tell_the_end(folder, result.best, result.test_errors, interrupted > 0)
    return result


def _module(
    config: RunConfig,
    own: RunConfig,
    potential: Potential,
    step_by: bool | str | dict[str, Any],
    budget: Budget,
) -> PotentialModule:
    """What Lightning trains; its checkpoints tell of `own`, the run's config."""
    # without the data: whoever trains the model further brings others
    told = to_plain(with_data(dataclasses.replace(own, loss=config.loss), Data()))
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
    )


def _opened(
    config: RunConfig, data: Data, folder: RunFolder, begin: Start, saved: Mapping[str, Any] | None
) -> DataModule:
    """The data of a training, with the seed that is its own after they were split by the run's."""
    datamodule = open_data(config, data._asdict(), continued(config, saved) if saved else None)
    datamodule.seed = config.seed + begin.member
    if begin.teachers:
        teach(datamodule, begin.teachers, config.seed, folder.root / TAUGHT, begin.epochs)
    if is_first_process() and saved is None and not begin.is_part:
        keys = {label.name: label.key for label in datamodule.labels}
        tell(datamodule.sources, datamodule.domain.cutoff, keys)
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


def _finish(
    about: Mapping[str, Any],
    trainer: pl.Trainer,
    module: PotentialModule,
    datamodule: DataModule,
    folder: RunFolder,
    interrupted: int,
    begin: Start,
    watch: StopWhereOverfitting,
) -> Result:
    """Put the best weights on, write the deployable model, and test it, whatever ended the training."""
    potential, best = module.potential, module.best
    weights = best.get("weights") or module.averaged_weights()
    with torch.no_grad():
        for name, parameter in potential.named_parameters():
            parameter.copy_(weights[name])
    module.ema = None  # from here on the module's own weights are the averaged ones
    best = {k: v for k, v in best.items() if k != "weights"}
    test_errors: dict[str, float] = {}

    def write_model() -> None:
        found = {"best": best, "test_errors": test_errors, "finished": not interrupted}
        frames = datamodule.stored_frames(NUM_STORED_FRAMES)
        save_potential(potential.to("cpu").eval(), folder.model, frames=frames, about={**about, **found})

    settle_walls(potential)
    if trainer.is_global_zero:
        write_model()  # before the test, which may take long and be stopped
    if datamodule.has_test and not interrupted and not begin.member:
        values = trainer.test(module, datamodule=datamodule, verbose=False)[0]
        test_errors = {k.removeprefix("test/"): v for k, v in values.items() if not k.endswith("loss")}
    if trainer.is_global_zero:
        if not begin.member:
            potential.trust = _measured(potential.to(trainer.strategy.root_device), datamodule)
        if test_errors or potential.trust:
            write_model()
        follows = watch.record() if not interrupted else {}
        folder.write_record(best=best, test=test_errors, **{"status": _status(interrupted)} | follows)
    return Result(potential.to("cpu").eval().requires_grad_(False), folder, best, test_errors, interrupted)


def _measured(potential: Potential, datamodule: DataModule) -> Trust:
    """What tells the model's users how far they are from the training data; the training is not lost without it."""
    stores = datamodule.resolve().stores
    try:
        train, held = sample(stores["train"], TRAIN_ATOMS), sample(stores["validation"], VALIDATION_ATOMS)
        return measure(potential, train, held)
    except (
        RuntimeError,
        MemoryError,
        InputError,
        OSError,
    ) as error:  # of memory, weights, or a file that is gone
        why = " ".join(str(error).split()) or type(error).__name__
        log.warning("distances to the training data were not measured: %s", why)
        return {}


def _status(interrupted: int) -> str:
    return "failed" if interrupted == FAILED else "interrupted" if interrupted else "finished"


def _tell_the_end(
    folder: RunFolder, best: Mapping[str, Any], test_errors: dict[str, float], interrupted: bool
) -> None:
    if best:
        log.info("best validation RMSE, epoch %d: %s", best["epoch"], in_words(best["errors"]))
    if test_errors:
        log.info("test RMSE: %s", in_words(test_errors))
    log.info("model written to %s; see it with `physicsml-ase report %s`", folder.model, folder.run)
    if interrupted:
        log.warning("interrupted: continue with `physicsml-ase resume %s`", folder.run)


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
    if isinstance(trainer.strategy.launcher, _MultiProcessingLauncher):
        raise InputError(
            f"trainer.strategy: {given.strategy}: its processes end with the training and take the best "
            "weights with them; use ddp, from a script or the command line"
        )
    return trainer


def _in_one_line(error: Exception) -> Exception:
    """What Lightning says of a config that does not work, as an InputError; any other error as it is."""
    text = " ".join(str(error).split())
    if isinstance(error, MisconfigurationException):
        return InputError(text)
    return (
        InputError(f"trainer.callbacks: {text}")
        if text.startswith("Early stopping conditioned on")
        else error
    )


@contextmanager
def _said_before(quiet: bool) -> Iterator[None]:
    """Without what the first training of a run has said of the same data."""
    level = log.level
    if quiet:
        log.setLevel(logging.ERROR)
    try:
        yield
    finally:
        log.setLevel(level)


def _last(folder: RunFolder) -> Path | None:
    return folder.last if folder.last.exists() else None
