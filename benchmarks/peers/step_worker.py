"""Steps of one model on one system, a turn at a time.

    python peers/step_worker.py MODULE PATH TASK SYSTEM [--acac FILE]
    python peers/step_worker.py MODULE PATH write ELEMENTS

MODULE is a file of this folder with three functions: write(path, elements) saves a model with random weights,
calculator(path) opens it for ASE, trainer(path, frames) gives a function that does a step of training on the frames.
TASK is md: energy and forces (and stress, of crystals) by the calculator after every atom has moved a little; or
train: loss of energy and forces, its gradient to the weights, a step of Adam. Turns are as md_worker.py's.
"""

import argparse
import importlib
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import common  # noqa: F401  the threads of torch
import numpy as np
from ase import Atoms
from md_worker import busy, memory, say, system

COPIES = {"acac15": 8}
"""Structures in a batch of training, where it is not one."""
WARM = 3
"""Steps before the first turn: TorchScript compiles in the second and third."""


def main() -> None:
    """Write, or serve turns."""
    parser = argparse.ArgumentParser()
    parser.add_argument("module")
    parser.add_argument("path", type=Path)
    parser.add_argument("task", choices=["write", "md", "train"])
    parser.add_argument("system")
    parser.add_argument("--acac", type=Path)
    given = parser.parse_args()
    warnings.filterwarnings("ignore")
    answers, sys.stdout = sys.stdout, sys.stderr  # whatever the peers print
    module = importlib.import_module(given.module)
    if given.task == "write":
        return module.write(given.path, [int(z) for z in given.system.split(",")])
    began = time.perf_counter()
    atoms = system(given.system, given.acac)
    if given.task == "md":
        step = moving(atoms, module.calculator(given.path))
    else:
        step = module.trainer(given.path, labelled(atoms, COPIES.get(given.system, 1)))
    for _ in range(WARM if len(atoms) <= 1000 else 1):
        step()
    say(answers, {"atoms": len(atoms), "first_s": time.perf_counter() - began, **memory()})
    for line in sys.stdin:
        steps = int(line)
        wall, cpu, machine = time.perf_counter(), time.process_time(), busy()
        for _ in range(steps):
            step()
        wall, cpu, machine = time.perf_counter() - wall, time.process_time() - cpu, busy() - machine
        foreign = max(0.0, machine - cpu) / wall
        say(answers, {"wall": wall, "cpu": cpu, "foreign": foreign, **memory()})


def moving(atoms: Atoms, calculator: object) -> Callable[[], None]:
    """Forces after steps as long as those of MD at room temperature, about the same sites."""
    atoms.calc = calculator
    sites, rng, walk = atoms.positions.copy(), np.random.default_rng(0), np.zeros_like(atoms.positions)

    def step() -> None:
        nonlocal walk
        walk = 0.98 * walk + rng.normal(0, 0.005, walk.shape)
        atoms.positions = sites + walk
        atoms.get_forces()

    return step


def labelled(atoms: Atoms, copies: int) -> list[Atoms]:
    """Structures with labels, which are random: what a step costs does not depend on them."""
    from ase.calculators.singlepoint import SinglePointCalculator

    out, rng = [], np.random.default_rng(1)
    for _ in range(copies):
        frame = Atoms(atoms.numbers, atoms.positions, cell=atoms.cell, pbc=atoms.pbc)
        frame.positions += rng.normal(0, 0.02, frame.positions.shape)
        forces = rng.normal(0, 1, frame.positions.shape)
        frame.calc = SinglePointCalculator(frame, energy=float(rng.normal()), forces=forces)
        out.append(frame)
    return out


if __name__ == "__main__":
    main()
