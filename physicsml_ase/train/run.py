"""A training run, from a config and data to the deployable model in the run's folder."""

import dataclasses
import logging
from pathlib import Path

from physicsml_ase.checkpoint import load_potential
from physicsml_ase.config import to_plain, validate
from physicsml_ase.conventions import InputError
from physicsml_ase.potential import Potential
from physicsml_ase.train.committee import fit_and_teach
from physicsml_ase.train.fit import Result, Start, fit, last_checkpoint
from physicsml_ase.train.folder import RunFolder, is_first_process
from physicsml_ase.train.given import Data, as_text, with_data
from physicsml_ase.train.settings import RunConfig, TransferConfig
from physicsml_ase.train.stages import stage_configs, stage_folder

log = logging.getLogger("physicsml_ase")


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
        config = dataclasses.replace(config, transfer_learning=_absolute(config.transfer_learning))
    stages = stage_configs(config, folder.root)  # what is wrong in a later stage is wrong now
    if ckpt_path and len(stages) > 1:
        raise InputError(
            f"ckpt_path: continues one training, and this run has {len(stages)} stages: use resume"
        )
    begin = Start(potential, Path(ckpt_path) if ckpt_path else None, started_at)
    with folder.new(), folder.held():
        if is_first_process():
            folder.create()
            folder.write_config(to_plain(with_data(config, data)))
            given = ckpt_path is not None or (potential is not None and not config.transfer_learning)
            folder.write_record(data=as_text(data), status="started", continues=given)
        return _run(config, data, folder, begin)


def _absolute(transfer: TransferConfig) -> TransferConfig:
    """The same with absolute paths, which a later session finds from another folder too."""
    stages = []
    for stage in transfer.stages:
        absolute = dict(stage.datamodule)
        for key in (f"{name}_data" for name in Data._fields):
            named = as_text(Data(absolute.get(key)))
            if named is not None and key in absolute:
                absolute[key] = named["train"]
        stages.append(dataclasses.replace(stage, datamodule=absolute))
    ckpt = str(Path(transfer.ckpt).expanduser().absolute())
    return dataclasses.replace(transfer, ckpt=ckpt, stages=stages)


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
                f"{folder.root}: its data were objects in memory; give them again, with "
                "physicsml_ase.train.run.resume(folder, data=Data(train=..., ...)) in Python"
            )
        data = Data(**spec)
    if record.get("continues") and last_checkpoint(folder) is None:
        raise InputError(
            f"{folder.root}: it was begun from trained weights, and stopped before its first checkpoint: begin it "
            "again, in a new folder"
        )
    with folder.held():
        return _run(config, data, folder, Start(None, last_checkpoint(folder), started_at))


def _run(config: RunConfig, data: Data, folder: RunFolder, begin: Start) -> Result:
    if not is_first_process():
        log.setLevel(logging.WARNING)  # the others would tell the same
    stages = stage_configs(config, folder.root)
    if len(stages) == 1:
        return fit_and_teach(stages[0], data, folder, begin)
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
        at, followed = None if results else begin.at, number < len(stages)
        results.append(fit(stage, given, part, Start(ckpt=last_checkpoint(part), at=at, followed=followed)))
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
