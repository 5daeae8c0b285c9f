"""A training run, from a config and data to the deployable model in the run's folder."""

import dataclasses
import logging
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import lightning.pytorch as pl
import torch

from physicsml_ase.checkpoint import build_potential, read_checkpoint, save_potential
from physicsml_ase.config import did_you_mean, to_plain, validate
from physicsml_ase.conventions import InputError
from physicsml_ase.data.datamodule import DataModule
from physicsml_ase.domain import Domain
from physicsml_ase.graph import Graph
from physicsml_ase.potential import Potential
from physicsml_ase.train.folder import RunFolder
from physicsml_ase.train.losses import LossTerm, default_loss
from physicsml_ase.train.metrics import in_words
from physicsml_ase.train.module import PotentialModule
from physicsml_ase.train.resumable import EndOnTime, Interrupted, Resumable, TellProgress
from physicsml_ase.train.schedule import Budget
from physicsml_ase.train.settings import RunConfig
from physicsml_ase.train.trainer import TrainerConfig, build_trainer
from physicsml_ase.train.transfer import adopt, freeze

log = logging.getLogger("physicsml_ase")
NUM_STORED_FRAMES = 4
SAVE_EVERY_SECONDS = 60.0


class Data(NamedTuple):
    """What a run learns from: anything that `data.sources.open_source` takes, or dicts of such."""

    train: Any = None
    validation: Any = None
    test: Any = None


class Result(NamedTuple):
    """How a run ended."""

    potential: Potential
    folder: RunFolder
    best: dict[str, Any]  # "score", "epoch", "step", "errors" of the best validation
    test_errors: dict[str, float]
    interrupted: bool


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
    if is_first_process():
        folder.create()
        folder.write_config(to_plain(config))
        folder.write_record(data=_as_text(data), status="started")
    if ckpt_path is not None:
        return _fit(config, data, folder, Path(ckpt_path), None, started_at)
    return _fit(config, data, folder, None, potential, started_at)


def resume(root: str | Path, *, data: Data | None = None, started_at: float | None = None) -> Result:
    """Continue the run in the folder `root` from its last checkpoint."""
    folder = RunFolder(root)
    record = folder.read_record()
    if record.get("status") == "finished":
        raise InputError(f"{folder.root}: the run is finished; its model is {folder.model}")
    if not folder.last.exists():
        raise InputError(
            f"{folder.root}: has no checkpoint to continue from yet; train again in another folder"
        )
    config = validate(RunConfig, folder.read_config(), where=str(folder.config))
    if data is None:
        spec = record["data"]
        if spec is None:
            raise InputError(
                f"{folder.root}: its data were objects in memory; continue with "
                "model.train(train_data=..., ckpt_path=...) in Python"
            )
        data = Data(**spec)
    return _fit(config, data, folder, folder.last, None, started_at)


def _fit(
    config: RunConfig,
    data: Data,
    folder: RunFolder,
    ckpt_path: Path | None,
    potential: Potential | None,
    started_at: float | None,
) -> Result:
    torch.set_float32_matmul_precision(config.float32_matmul_precision)
    saved = read_checkpoint_of_run(ckpt_path) if ckpt_path else None
    datamodule = open_data(config, data, build_potential(saved["physicsml_ase"]) if saved else None)
    potential = make_potential(config, datamodule, saved, potential)
    loss = make_loss(config, potential)
    budget = Budget(seconds=_seconds(config), started_at=started_at)
    module = PotentialModule(
        potential,
        loss,
        config.optimizer,
        config.scheduler,
        budget=budget,
        ema=config.ema,
        config=to_plain(config),
    )
    if is_first_process():
        summary = datamodule.summary
        if saved and folder.record.exists():
            _refuse_changed_data(folder.read_record().get("summary"), summary)
        folder.write_record(summary=summary, status="running")
    callbacks: list[pl.Callback] = [TellProgress(budget)]
    if budget.seconds is not None:
        callbacks.append(EndOnTime(budget))
    callbacks.append(Resumable(folder.last, SAVE_EVERY_SECONDS))
    trainer = build_trainer(_quiet(config.trainer), extra_callbacks=callbacks, logger=False, root=folder.root)
    if trainer.is_global_zero:
        trainer.loggers = [*trainer.loggers, folder.csv_logger(saved["global_step"] if saved else None)]
    weights = sum(p.numel() for p in potential.parameters() if p.requires_grad)
    log.info("model %s: %d weights, cut-off %g Å", config.model.name, weights, potential.domain.cutoff)
    interrupted = False
    try:
        trainer.fit(module, datamodule=datamodule, ckpt_path=str(ckpt_path) if ckpt_path else None)
    except Interrupted:
        interrupted = True
    return _finish(config, trainer, module, datamodule, folder, interrupted)


def _finish(
    config: RunConfig,
    trainer: pl.Trainer,
    module: PotentialModule,
    datamodule: DataModule,
    folder: RunFolder,
    interrupted: bool,
) -> Result:
    """Put the best weights on, test them, and write the deployable model, whatever ended the training."""
    potential, best = module.potential, module.best
    weights = best.get("weights") or module.averaged_weights()
    with torch.no_grad():
        for name, parameter in potential.named_parameters():
            parameter.copy_(weights[name])
    module.ema = None  # from here on the module's own weights are the averaged ones
    test_errors: dict[str, float] = {}
    if datamodule.has_test and not interrupted:
        values = trainer.test(module, datamodule=datamodule, verbose=False)[0]
        test_errors = {k.removeprefix("test/"): v for k, v in values.items() if not k.endswith("loss")}
    potential = potential.to("cpu").eval()
    best = {k: v for k, v in best.items() if k != "weights"}
    if trainer.is_global_zero:
        about = {
            "config": to_plain(config),
            "data": datamodule.summary,
            "best": best,
            "test_errors": test_errors,
            "finished": not interrupted,
        }
        save_potential(potential, folder.model, frames=_some_frames(datamodule), about=about)
        folder.write_record(best=best, test=test_errors, status="interrupted" if interrupted else "finished")
        _tell_the_end(folder, best, test_errors, interrupted)
    return Result(potential.requires_grad_(False), folder, best, test_errors, interrupted)


def _tell_the_end(
    folder: RunFolder, best: Mapping[str, Any], test_errors: dict[str, float], interrupted: bool
) -> None:
    if best:
        log.info("best validation RMSE, epoch %d: %s", best["epoch"], in_words(best["errors"]))
    if test_errors:
        log.info("test RMSE: %s", in_words(test_errors))
    log.info("model written to %s", folder.model)
    if interrupted:
        log.warning("interrupted: continue with `physicsml-ase resume %s`", folder.root)


def open_data(config: RunConfig, data: Data, known: Potential | None = None) -> DataModule:
    """The DataModule of a run, resolved; `known` tells what an earlier session resolved."""
    datamodule = DataModule(
        config.datamodule,
        train=data.train,
        validation=data.validation,
        test=data.test,
        domain=known.domain if known else None,
        labels=known.labels if known else None,
        seed=config.seed,
        reference_energies=config.reference_energies,
    )
    datamodule.resolve()
    return datamodule


def make_potential(
    config: RunConfig, datamodule: DataModule, saved: Mapping[str, Any] | None, given: Potential | None
) -> Potential:
    """The potential to train: a saved run's, a given one, a pre-trained one, or a new one."""
    if saved:
        potential = build_potential(saved["physicsml_ase"])
    else:
        domain, transfer = _with_given_numbers(config, datamodule.domain), config.transfer_learning
        before = given
        if transfer:
            contents = read_checkpoint(transfer.ckpt)
            before = build_potential(contents, transfer.ckpt)
            before.load_state_dict(contents["state_dict"])
        if before is not None:
            domain = _as_before(domain, before.domain)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(config.seed)
            potential = Potential(config.model, domain, datamodule.labels, config.heads)
        if before is not None:
            adopt(potential, before, transfer.modules_to_match if transfer else None)
    if config.transfer_learning:
        for stage in config.transfer_learning.stages[:1]:
            freeze(potential, stage.freeze_modules)
    return potential.requires_grad_(True) if not config.transfer_learning else potential


def _with_given_numbers(config: RunConfig, domain: Domain) -> Domain:
    given = {"energy_scale": config.energy_scale, "avg_num_neighbors": config.avg_num_neighbors}
    return dataclasses.replace(domain, **{k: v for k, v in given.items() if v is not None})


def _as_before(domain: Domain, before: Domain) -> Domain:
    """The new data's domain with the scales that trained weights were made for."""
    if domain.cutoff != before.cutoff:
        raise InputError(
            f"datamodule.cut_off: {domain.cutoff}: the pre-trained model has {before.cutoff}; use the same"
        )
    return dataclasses.replace(
        domain,
        energy_scale=before.energy_scale,
        avg_num_neighbors=before.avg_num_neighbors,
        elements=tuple(sorted({*domain.elements, *before.elements})),
        atomic_energies=before.atomic_energies | domain.atomic_energies,
    )


def make_loss(config: RunConfig, potential: Potential) -> dict[str, LossTerm]:
    """The loss's terms, each with a label that the data have."""
    names = {label.name: label.level for label in potential.labels}
    if config.loss is None:
        return default_loss(names)
    for name in config.loss:
        if name not in names:
            raise InputError(f"loss.{name}: is not a label of the training data; {did_you_mean(name, names)}")
    return dict(config.loss)


def read_checkpoint_of_run(path: Path) -> dict[str, Any]:
    """A training checkpoint of ours, as plain data."""
    if not path.is_file():
        raise InputError(f"{path}: no such checkpoint")
    try:
        saved = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise InputError(
            f"{path}: can not be read as a training checkpoint ({type(error).__name__})"
        ) from None
    if "physicsml_ase" not in saved:
        raise InputError(
            f"{path}: is no training checkpoint; a run continues from checkpoints/last.ckpt, "
            "and a model.ckpt is a start for transfer_learning"
        )
    return saved


def is_first_process() -> bool:
    """Whether this is the process that writes files, also before the processes know of each other."""
    from lightning.pytorch.utilities.rank_zero import rank_zero_only

    return (rank_zero_only.rank or 0) == 0


def _quiet(trainer: TrainerConfig) -> TrainerConfig:
    """The Trainer's config without what the run does itself or tells in its own lines."""
    return dataclasses.replace(
        trainer,
        max_time=None,
        num_sanity_val_steps=trainer.num_sanity_val_steps or 0,
        enable_model_summary=bool(trainer.enable_model_summary),
        enable_progress_bar=sys.stderr.isatty()
        if trainer.enable_progress_bar is None
        else trainer.enable_progress_bar,
    )


def _seconds(config: RunConfig) -> float | None:
    return config.trainer.max_time.total_seconds() if config.trainer.max_time else None


def _some_frames(datamodule: DataModule) -> list[Graph]:
    """A few structures for the checkpoint to replay."""
    store = datamodule.stored_frames(NUM_STORED_FRAMES)
    return list(store)


def _refuse_changed_data(before: Mapping[str, Any] | None, now: Mapping[str, Any]) -> None:
    for name, source in ((before or {}).get("sources") or {}).items():
        if now["sources"].get(name, {}).get("hash") != source.get("hash"):
            raise InputError(f"the {name} data changed since the run began; a resumed run needs the same")


def _as_text(data: Data) -> dict[str, Any] | None:
    """The data by absolute paths, or None where they are objects in memory."""

    def text(spec: Any) -> Any:
        if spec is None:
            return None
        if isinstance(spec, str | Path):
            name, at, selection = str(spec).partition("@")
            return str(Path(name).absolute()) + at + selection
        if isinstance(spec, Mapping):
            return {key: text(value) for key, value in spec.items()}
        if isinstance(spec, list | tuple) and all(isinstance(s, str | Path) for s in spec):
            return [text(s) for s in spec]
        raise TypeError

    try:
        return {name: text(spec) for name, spec in data._asdict().items()}
    except TypeError:
        return None
