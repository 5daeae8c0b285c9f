"""Stages of transfer learning: the config of each, from the run's own and the stage's overrides."""

import dataclasses
from pathlib import Path

from physicsml_ase.config import to_plain, validate
from physicsml_ase.data.settings import DataModuleConfig
from physicsml_ase.recipe import merge
from physicsml_ase.train.folder import RunFolder
from physicsml_ase.train.settings import RunConfig, StageConfig, TransferConfig
from physicsml_ase.train.trainer import TrainerConfig


def stage_configs(config: RunConfig, root: Path) -> list[RunConfig]:
    """One config for each stage, with all overrides applied; the run's own where there are none.

    Each stage starts from the best weights of the one before it. Stages without a `max_time` of their own
    share that of the run equally.
    """
    transfer = config.transfer_learning
    if not transfer or not transfer.stages:
        return [config]
    stages = []
    for number, stage in enumerate(transfer.stages, 1):
        ckpt, match = transfer.ckpt, transfer.modules_to_match
        if number > 1:
            ckpt, match = str(stage_folder(root, number - 1).model), None
        where = f"transfer_learning.stages.{number - 1}"
        trainer, datamodule = config.trainer, config.datamodule
        if trainer.max_time and "max_time" not in stage.trainer:
            trainer = dataclasses.replace(trainer, max_time=trainer.max_time / len(transfer.stages))
        if stage.trainer:
            plain = merge(to_plain(trainer), stage.trainer)
            limited = {"max_steps", "max_time"} & stage.trainer.keys() and "max_epochs" not in stage.trainer
            if limited and trainer.max_epochs == TrainerConfig().max_epochs:
                plain["max_epochs"] = -1  # as in a run: steps or a time are limit enough
            trainer = validate(TrainerConfig, plain, where=f"{where}.trainer")
        if stage.datamodule:
            plain = merge(to_plain(datamodule), stage.datamodule)
            datamodule = validate(DataModuleConfig, plain, where=f"{where}.datamodule")
        stages.append(
            dataclasses.replace(
                config,
                trainer=trainer,
                datamodule=datamodule,
                optimizer=stage.optimizer or config.optimizer,
                scheduler=stage.scheduler or config.scheduler,
                transfer_learning=TransferConfig(
                    ckpt=ckpt,
                    modules_to_match=match,
                    stages=[StageConfig(freeze_modules=stage.freeze_modules)],
                ),
            )
        )
    return stages


def stage_folder(root: Path, number: int) -> RunFolder:
    """Where a stage (1, 2, ...) is kept."""
    return RunFolder(root / f"stage-{number}")
