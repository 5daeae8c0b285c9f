"""Batches as the loop brings them, and how many steps they make."""

import math
from collections.abc import Mapping

import lightning.pytorch as pl
from lightning.pytorch.utilities import CombinedLoader

from physicsml_ase.graph import Graph, collate

Batch = Graph | Mapping[str, Graph]
"""Batches of several named sources come side by side and are learned from as one."""


def as_one(batch: Batch) -> Graph:
    """The batches of several sources as one; those that ran out are None."""
    if isinstance(batch, Graph):
        return batch
    return collate([graph for graph in batch.values() if graph is not None])


def count_steps(trainer: pl.Trainer, num_epochs: int | None) -> int | None:
    """Optimizer steps of the whole run, None where only time ends it.

    Lightning's `estimated_stepping_batches` opens the loaders before a checkpoint's state can be given to
    them, and a run would then continue with another order of batches.
    """
    bounds = [trainer.max_steps] if trainer.max_steps > 0 else []
    if num_epochs is not None:
        datamodule = getattr(trainer, "datamodule", None)
        if datamodule is None:
            return int(trainer.estimated_stepping_batches)
        loader, limit = datamodule.train_dataloader(), trainer.limit_train_batches
        if isinstance(loader, CombinedLoader):
            iter(loader)  # it has no length before
        batches = len(loader)
        if limit is not None:
            batches = min(batches, limit) if isinstance(limit, int) else int(batches * limit)
        bounds.append(math.ceil(batches / trainer.accumulate_grad_batches) * num_epochs)
    return max(min(bounds), 1) if bounds else None
