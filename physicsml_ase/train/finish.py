"""The end of a training: the best weights, the deployable model, its errors, and what measures its trust."""

import logging
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import lightning.pytorch as pl
import torch

from physicsml_ase.checkpoint import save_potential
from physicsml_ase.conventions import InputError
from physicsml_ase.data.datamodule import DataModule
from physicsml_ase.data.sample import sample
from physicsml_ase.potential import Potential, Trust
from physicsml_ase.train.folder import RunFolder
from physicsml_ase.train.metrics import in_words
from physicsml_ase.train.module import PotentialModule
from physicsml_ase.trust import measure
from physicsml_ase.trust.walls import settle_walls

log = logging.getLogger("physicsml_ase")
NUM_STORED_FRAMES = 4
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


def finish(
    about: Mapping[str, Any],
    trainer: pl.Trainer,
    module: PotentialModule,
    datamodule: DataModule,
    folder: RunFolder,
    interrupted: int,
    *,
    is_member: bool,
    follows: Callable[[], Mapping[str, Any]],
) -> Result:
    """Put the best weights on, write the deployable model, and test it, whatever ended the training.

    Members of a committee are not tested; `follows` is what the record says of what comes next.
    """
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
    if datamodule.has_test and not interrupted and not is_member:
        values = trainer.test(module, datamodule=datamodule, verbose=False)[0]
        test_errors = {k.removeprefix("test/"): v for k, v in values.items() if not k.endswith("loss")}
    if trainer.is_global_zero:
        if not is_member:
            potential.trust = _measured(potential.to(trainer.strategy.root_device), datamodule)
        if test_errors or potential.trust:
            write_model()
        status: dict[str, Any] = {"status": _status(interrupted), **({} if interrupted else follows())}
        folder.write_record(best=best, test=test_errors, **status)
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


def tell_the_end(
    folder: RunFolder, best: Mapping[str, Any], test_errors: dict[str, float], interrupted: bool
) -> None:
    """Say how a run ended: its best validation, its test, where its model is, and how to go on if it was stopped."""
    if best:
        log.info("best validation RMSE, epoch %d: %s", best["epoch"], in_words(best["errors"]))
    if test_errors:
        log.info("test RMSE: %s", in_words(test_errors))
    log.info("model written to %s; see it with `physicsml-ase report %s`", folder.model, folder.run)
    if interrupted:
        log.warning("interrupted: continue with `physicsml-ase resume %s`", folder.run)
