"""A GPU: what does a step of MD and a step of training cost, by each way of computing it?

    python benchmarks/gpu.py md --models gaunt_ace,mace --sizes 64,512,4096,32768 --backends eager,compile
    python benchmarks/gpu.py md --peer mace:model.pt --sizes 64,512,4096     # in the environment of mace-torch
    python benchmarks/gpu.py md --peer nequip:last.ckpt --sizes 64,512,4096  # in that of nequip

Weights are random: the cost does not depend on them. Silicon, cut-off 5 Å, float32, the calculator and ASE's
Langevin included; medians of single steps.
"""

import argparse
import json
import statistics
import time

import numpy as np
import torch
from ase import Atoms, units
from ase.build import bulk
from ase.calculators.calculator import Calculator
from ase.md.langevin import Langevin

import physicsml_ase.models  # noqa: F401
from physicsml_ase import PhysicsMLCalculator
from physicsml_ase.config import MODELS, validate
from physicsml_ase.conventions import PROPERTIES, Label
from physicsml_ase.domain import Domain
from physicsml_ase.potential import Potential

SETTINGS: dict[str, dict[str, object]] = {
    "mace": {"hidden_irreps": "32x0e+32x1o", "max_ell": 3, "correlation": 3, "num_interactions": 2},
    "nequip": {"num_layers": 3, "num_features": 32, "max_ell": 1},
}


def silicon(num_atoms: int) -> Atoms:
    """A rattled crystal of 8 n³ atoms."""
    atoms = bulk("Si", cubic=True).repeat(round((num_atoms / 8) ** (1 / 3)))
    assert len(atoms) == num_atoms
    atoms.rattle(0.03, seed=1)
    return atoms


def potential(name: str) -> Potential:
    """Random weights, small forces."""
    torch.manual_seed(0)
    domain = Domain(
        cutoff=5.0,
        elements=(14,),
        avg_num_neighbors=28.0,
        atomic_energies={14: -5.0},
        energy_scale=0.01,
        shortest_distances={"Si-Si": 1.9},
    )
    labels = tuple(
        Label(n, PROPERTIES[n].level, PROPERTIES[n].shape, n) for n in ("energy", "forces", "stress")
    )
    config = validate(MODELS[name].config, {"name": name} | SETTINGS.get(name, {}))
    return Potential(config, domain, labels).eval()


def calculator(name: str, backend: str, device: str) -> Calculator:
    """Of one of our models, or of a peer's file, "mace:model.pt"."""
    kind, _, path = name.partition(":")
    if not path:
        return PhysicsMLCalculator(potential(name), device=device, backend=backend)
    if kind == "mace":
        from mace.calculators import MACECalculator

        return MACECalculator(model_paths=path, device=device, default_dtype="float32")
    from nequip.integrations.ase import NequIPCalculator

    return NequIPCalculator._from_saved_model(path, device=device)


def md(name: str, size: int, backend: str, device: str, steps: int) -> dict[str, object]:
    """Milliseconds of a step, and the largest memory of the GPU [MB]."""
    atoms = silicon(size)
    begin = time.perf_counter()
    atoms.calc = calculator(name, backend, device)
    dynamics = Langevin(atoms, units.fs, temperature_K=300, friction=0.01, rng=np.random.default_rng(0))
    dynamics.run(3)
    start = time.perf_counter() - begin
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
    times = []
    for _ in range(steps):
        begin = time.perf_counter()
        dynamics.run(1)
        times.append(time.perf_counter() - begin)
    memory = torch.cuda.max_memory_allocated() / 2**20 if device == "cuda" else float("nan")
    return {
        "model": name,
        "task": "md",
        "atoms": size,
        "backend": getattr(atoms.calc, "backend", backend),
        "ms": round(1e3 * statistics.median(times), 3),
        "mean_ms": round(1e3 * statistics.mean(times), 3),
        "start_s": round(start, 1),
        "peak_mb": round(memory, 1),
    }


def profile(name: str, size: int, backend: str) -> None:
    """Print what takes the time of ten steps on the GPU, and how often the host waits for it."""
    atoms = silicon(size)
    atoms.calc = PhysicsMLCalculator(potential(name), device="cuda", backend=backend)
    dynamics = Langevin(atoms, units.fs, temperature_K=300, friction=0.01, rng=np.random.default_rng(0))
    dynamics.run(3)
    kinds = [torch.profiler.ProfilerActivity.CPU, torch.profiler.ProfilerActivity.CUDA]
    with torch.profiler.profile(activities=kinds) as found:
        dynamics.run(10)
    averages = found.key_averages()
    waits = {
        "aten::item",
        "aten::nonzero",
        "cudaStreamSynchronize",
        "cudaDeviceSynchronize",
        "cudaMemcpyAsync",
    }
    counts = {x.key: x.count / 10 for x in averages if x.key in waits or x.key == "cudaLaunchKernel"}
    print(name, size, backend, "of each step:", counts)
    print(averages.table(sort_by="cuda_time_total", row_limit=12, max_name_column_width=60))
    print(averages.table(sort_by="self_cpu_time_total", row_limit=12, max_name_column_width=60))


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("task", choices=["md"])
    parser.add_argument("--models", default="gaunt_ace")
    parser.add_argument("--peer", help="in place of our models: mace:FILE or nequip:FILE")
    parser.add_argument("--sizes", default="64,512,4096,32768")
    parser.add_argument("--backends", default="eager")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--profile", action="store_true", help="what ten steps call, in place of the table")
    given = parser.parse_args()
    for name in [given.peer] if given.peer else given.models.split(","):
        for backend in given.backends.split(","):
            for size in map(int, given.sizes.split(",")):
                if given.profile:
                    profile(name, size, backend)
                    continue
                try:
                    row = md(name, size, backend, given.device, given.steps)
                except Exception as error:
                    row = {"model": name, "atoms": size, "backend": backend, "error": str(error)[:300]}
                print(json.dumps(row), flush=True)
                torch.cuda.empty_cache()


if __name__ == "__main__":
    main()
