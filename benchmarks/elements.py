"""What the number of elements that a model knows costs: Gaunt-ACE's MD step and training step, this package alone.

    taskset -c 1 python benchmarks/elements.py

A rattled crystal whose sites hold the model's elements at random, cut-off 5 Å, random weights, float32, one thread;
configurations take turns, CPU time, medians. Writes results/elements.csv.
"""

import csv
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from ase import Atoms
from ase.build import bulk

import physicsml_ase.models  # noqa: F401
from physicsml_ase import PhysicsMLCalculator
from physicsml_ase.atoms import to_graph
from physicsml_ase.config import MODELS, validate
from physicsml_ase.conventions import PROPERTIES, Label
from physicsml_ase.domain import Domain
from physicsml_ase.potential import Potential
from physicsml_ase.train.fused import FusedPotential

NUMBERS, SIZE, BATCH, ROUNDS = (1, 5, 20, 89), 512, 128, 15


def potential(num_elements: int) -> Potential:
    """Random weights for the first elements."""
    torch.manual_seed(0)
    elements = tuple(range(1, num_elements + 1))
    domain = Domain(
        cutoff=5.0,
        elements=elements,
        avg_num_neighbors=28.0,
        atomic_energies=dict.fromkeys(elements, -1.0),
        energy_scale=0.01,
    )
    labels = tuple(
        Label(n, PROPERTIES[n].level, PROPERTIES[n].shape, n) for n in ("energy", "forces", "stress")
    )
    return Potential(validate(MODELS["gaunt_ace"].config, {"name": "gaunt_ace"}), domain, labels).eval()


def crystal(num_atoms: int, num_elements: int) -> Atoms:
    """The elements on the sites of a diamond lattice."""
    rng = np.random.default_rng(0)
    atoms = bulk("Si", cubic=True).repeat((num_atoms // 64, 2, 4))
    atoms.numbers = rng.integers(1, num_elements + 1, len(atoms))
    atoms.positions += 0.05 * rng.normal(size=atoms.positions.shape)
    return atoms


def dynamics(num_elements: int, backend: str) -> Callable[[], object]:
    """A calculation of moved atoms."""
    atoms, rng = crystal(SIZE, num_elements), np.random.default_rng(1)
    calc = PhysicsMLCalculator(
        potential(num_elements), device="cpu", backend=backend, threads=1, on_extrapolation="ignore"
    )
    assert calc.backend == backend

    def step() -> object:
        atoms.positions += 0.001 * rng.normal(size=atoms.positions.shape)
        return calc.calculate(atoms)

    return step


def training(num_elements: int, fused: bool) -> Callable[[], object]:
    """Energies, forces and the weights' gradient, without the optimizer."""
    model = potential(num_elements).train()
    graph, predict = to_graph(crystal(BATCH, num_elements), 5.0), FusedPotential(model) if fused else model

    def step() -> object:
        out = predict(graph)
        return (out["energy"].sum() + out["forces"].square().sum()).backward()

    return step


def main() -> None:
    """Measure, print and write the table."""
    torch.set_num_threads(1)
    steps = {
        (num, task, backend): make(num)
        for num in NUMBERS
        for task, backend, make in (
            ("md", "kernel", lambda n: dynamics(n, "kernel")),
            ("md", "eager", lambda n: dynamics(n, "eager")),
            ("train", "kernel", lambda n: training(n, True)),
            ("train", "eager", lambda n: training(n, False)),
        )
    }
    times: dict[tuple[int, str, str], list[float]] = {key: [] for key in steps}
    for round_ in range(ROUNDS + 2):
        for key, step in steps.items():
            begin = time.process_time()
            step()
            if round_ > 1:
                times[key].append(time.process_time() - begin)
    path = Path(__file__).parent / "results" / "elements.csv"
    with path.open("w", newline="") as file:
        table = csv.writer(file, lineterminator="\n")
        table.writerow(["task", "backend", "elements", "atoms", "cpu_us_per_atom"])
        for (num, task, backend), spent in sorted(times.items(), key=lambda x: (x[0][1:], x[0][0])):
            atoms = SIZE if task == "md" else BATCH
            row = [task, backend, num, atoms, round(1e6 * statistics.median(spent) / atoms, 1)]
            table.writerow(row)
            print(*row)


if __name__ == "__main__":
    main()
