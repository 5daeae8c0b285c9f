"""What the scripts of the peers share; imported inside each peer's environment, so it needs ase and numpy only.

A peer is a module with `CONFIGS`, `train(run, data, config, batch, budget)` and `calculator(run)`; `main` gives it
the command line

    python peers/X_peer.py train    --config C --data FOLDER --run RUN --seconds 240
    python peers/X_peer.py evaluate --data FOLDER --run RUN

`train` is given a `Budget`, counted in CPU seconds of the whole process from its start, imports included.
"""

import argparse
import json
import math
import os
import time
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import numpy as np
from ase.io import read

os.environ.setdefault("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")


class Budget:
    """CPU seconds to spend, `reserve` of them for what comes after the last step; and what was done with them.

    The learning rate falls along a cosine to zero over the budget, for every peer alike: the schedules that peers
    ship count epochs without progress, and would never fall within four minutes.
    """

    def __init__(self, seconds: float, reserve: float, run: Path) -> None:
        self.end = seconds - reserve
        self.run = run
        self.began: float | None = None
        self.structures = self.steps = 0
        self.step_seconds = 0.0
        self.curve: list[tuple[float, float]] = []

    def fraction(self) -> float:
        """How much of the time for steps is spent, 0 at the first step."""
        now = time.process_time()
        if self.began is None:
            self.began = now
        return min(1.0, (now - self.began) / max(1.0, self.end - self.began))

    def factor(self) -> float:
        """Of the learning rate."""
        return 0.5 * (1 + math.cos(math.pi * self.fraction()))

    def over(self) -> bool:
        """No time for another step."""
        return time.process_time() >= self.end

    def count(self, structures: int, seconds: float) -> None:
        """One step of forward, backward and optimizer."""
        self.steps += 1
        self.structures += structures
        self.step_seconds += seconds

    def validated(self, force_rmse: float) -> None:
        """A point of the learning curve, meV/Å."""
        self.curve.append((round(time.process_time(), 2), round(force_rmse, 3)))

    def write(self, training_frames: int) -> None:
        """Leave the counts beside the model."""
        content = {
            "steps": self.steps,
            "epochs": round(self.structures / training_frames, 2),
            "structures_per_cpu_s": round(self.structures / max(self.step_seconds, 1e-9), 2),
            "start_cpu_s": self.began,
            "curve": self.curve,
        }
        (self.run / "progress.json").write_text(json.dumps(content))


def reference(data: Path, shifted: bool) -> dict[str, float]:
    """Energies of the elements, eV; `shifted` by the training set's mean interaction energy per atom.

    The shift gives a peer that does not fit one itself the same start as the others.
    """
    energies = json.loads((data / "reference.json").read_text())
    if not shifted:
        return energies
    rest = [
        (atoms.get_potential_energy() - sum(energies[s] for s in atoms.get_chemical_symbols())) / len(atoms)
        for atoms in read(data / "train.xyz", ":")
    ]
    return {symbol: energy + float(np.mean(rest)) for symbol, energy in energies.items()}


def lightning_callback(budget: Budget, frames: int, metric: str) -> object:
    """Keeps a Lightning run within the budget; `metric` is the validation's force RMSE, eV/Å."""
    try:
        from lightning.pytorch import Callback
    except ImportError:
        from pytorch_lightning import Callback

    class Keeper(Callback):
        def on_train_batch_start(self, trainer, module, batch, batch_index):
            factor = budget.factor()
            for optimizer in trainer.optimizers:
                for group in optimizer.param_groups:
                    group["lr"] = factor * group.setdefault("budget_lr", group["lr"])
            self.began = time.process_time()

        def on_train_batch_end(self, trainer, module, outputs, batch, batch_index):
            size = min(trainer.train_dataloader.batch_size, frames)
            budget.count(size, time.process_time() - self.began)
            if budget.over():
                trainer.should_stop = True

        def on_validation_end(self, trainer, module):
            if metric in trainer.callback_metrics and not trainer.sanity_checking:
                budget.validated(1000 * float(trainer.callback_metrics[metric]))

    return Keeper()


def evaluate(calculator: object, data: Path) -> dict[str, float]:
    """RMSE on the test file: energy meV/atom, forces meV/Å over components."""
    energy, forces = [], []
    for frame in read(data / "test.xyz", ":"):
        atoms = frame.copy()
        atoms.calc = calculator
        energy.append((atoms.get_potential_energy() - frame.get_potential_energy()) / len(atoms))
        forces.append((atoms.get_forces() - frame.get_forces()).ravel())
    rms = lambda x: float(1000 * np.sqrt(np.mean(np.square(x))))  # noqa: E731
    return {"energy_rmse": rms(energy), "force_rmse": rms(np.concatenate(forces))}


def main(
    train: Callable[..., None],
    calculator: Callable[[Path], object],
    configs: dict[str, object],
    untrained: Callable[[Path, Path, str], None] | None = None,
) -> None:
    """The command line of a peer; `untrained` writes a model whose weights are those of the start."""
    parser = argparse.ArgumentParser()
    parser.add_argument("verb", choices=["train", "evaluate", "untrained"])
    parser.add_argument("--config", choices=list(configs))
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--run", type=Path, required=True)
    parser.add_argument("--seconds", type=float, default=240)
    parser.add_argument("--batch", type=int, default=5)
    given = parser.parse_args()
    run, data = given.run.resolve(), given.data.resolve()
    if given.verb != "evaluate":
        run.mkdir(parents=True)
        os.chdir(run)
    if given.verb == "train":
        train(run, data, given.config, given.batch, given.seconds)
    elif given.verb == "untrained":
        untrained(run, data, given.config)
    else:
        print(json.dumps(evaluate(calculator(run), data)))


def peer(name: str) -> ModuleType:
    """The module of a peer by name."""
    import importlib

    return importlib.import_module(f"{name}_peer")
