"""Small runs that are over in a second, ways to stop them, and to compare what they leave."""

import signal
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import numpy as np
import torch
from ase import Atoms
from ase.build import molecule
from ase.calculators.emt import EMT
from ase.calculators.singlepoint import SinglePointCalculator
from ase.io import write

from physicsml_ase.config import validate
from physicsml_ase.recipe import merge
from physicsml_ase.train.settings import RunConfig
from physicsml_ase.train.trainer import register_callback

SMALL: dict[str, Any] = {
    "model": {"channels": 8, "layers": 1, "num_radial": 4},
    "datamodule": {
        "train": {"batch_size": 4},
        "validation": {"batch_size": 8},
        "test": {"batch_size": 8},
        "cut_off": 3.0,
        "pre_batch": "in_memory",
    },
    "trainer": {"accelerator": "cpu", "devices": 1, "max_epochs": 3, "enable_progress_bar": False},
    "optimizer": {"config": {"lr": 1e-2}},
}


def settings(*overrides: Mapping[str, Any]) -> RunConfig:
    """The config of a small run."""
    data: dict[str, Any] = SMALL
    for override in overrides:
        data = merge(data, override)
    return validate(RunConfig, data)


def frames(count: int = 24, seed: int = 0) -> list[Atoms]:
    """Rattled molecules with EMT's energies and forces."""
    rng, calculator, result = np.random.default_rng(seed), EMT(), []
    for k in range(count):
        atoms = molecule(("H2O", "CH4", "C2H6", "CH3OH", "NH3")[k % 5])
        atoms.positions += 0.05 * rng.normal(size=atoms.positions.shape)
        calculator.calculate(atoms, ["energy", "forces"])
        kept = {name: calculator.results[name] for name in ("energy", "forces")}
        atoms.calc = SinglePointCalculator(atoms, **kept)
        result.append(atoms)
    return result


def write_frames(path: Path, count: int = 24, seed: int = 0) -> str:
    """A file of `frames`."""
    write(path, frames(count, seed), format="extxyz")
    return str(path)


class Killed(BaseException):
    """What a killed process does not get: a chance to save anything."""


@register_callback
class KillBefore(pl.Callback):
    """Ends the run before a batch, counted over all epochs, as a power cut would."""

    def __init__(self, batch: int) -> None:
        self.batch = batch

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        if trainer.fit_loop.total_batch_idx == self.batch:
            raise Killed


@register_callback
class SignalBefore(pl.Callback):
    """Sends this process a signal before a batch, counted over all epochs."""

    def __init__(self, batch: int, signum: int, times: int = 1) -> None:
        self.batch, self.signum, self.times = batch, signum, times

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        for _ in range(self.times if trainer.fit_loop.total_batch_idx == self.batch else 0):
            signal.raise_signal(self.signum)


def differences(a: Any, b: Any, path: str = "") -> Iterator[str]:
    """Where two checkpoints differ; folders and clocks may."""
    if any(word in path for word in ("dirpath", "_path", "elapsed", "best_k_models", "kth_", "config")):
        return
    if isinstance(a, Mapping) and isinstance(b, Mapping):
        if a.keys() != b.keys():
            yield f"{path}: {sorted(map(str, a.keys() ^ b.keys()))}"
        for key in a.keys() & b.keys():
            yield from differences(a[key], b[key], f"{path}.{key}")
    elif isinstance(a, list | tuple) and isinstance(b, list | tuple) and len(a) == len(b):
        for k, (x, y) in enumerate(zip(a, b)):
            yield from differences(x, y, f"{path}.{k}")
    elif isinstance(a, torch.Tensor) and isinstance(b, torch.Tensor):
        if a.shape != b.shape or not torch.equal(a.nan_to_num(7e7), b.nan_to_num(7e7)):
            yield path
    elif a != b:
        yield f"{path}: {a} {b}"


def checkpoint(path: Path) -> dict[str, Any]:
    """A checkpoint's contents."""
    return torch.load(path, weights_only=True)
