"""Do a model's doubts follow its errors? Models that know 300 K alone, on what is hotter, strained and stretched.

    python benchmarks/extrapolation.py data FOLDER      # labels: GFN2-xTB (tblite)
    python benchmarks/extrapolation.py train FOLDER     # four models of each system
    python benchmarks/extrapolation.py measure FOLDER   # rank correlations and calibration
    python benchmarks/extrapolation.py cost FOLDER      # the guard, in each step of MD

The molecule is ethanol, sampled by Langevin dynamics; the crystal is dry ice (four molecules in the cell, Gamma
point), sampled as Einstein's: Gaussian displacements of molecules and atoms, as wide as the root of the temperature.
"""

import argparse
import csv
import logging
import time
from pathlib import Path

import numpy as np
import torch
from ase import Atoms, units
from ase.build import molecule
from ase.calculators.singlepoint import SinglePointCalculator
from ase.io import read, write
from ase.md.langevin import Langevin
from ase.md.velocitydistribution import MaxwellBoltzmannDistribution
from ase.spacegroup import crystal
from scipy.stats import norm, spearmanr

from physicsml_ase import PhysicsMLCalculator
from physicsml_ase.api import load_model
from physicsml_ase.atoms import to_graph
from physicsml_ase.calculator.guard import LIMIT
from physicsml_ase.checkpoint import load_potential
from physicsml_ase.trust.extrapolation import Extrapolation
from physicsml_ase.trust.last_layer import forces_uncertainty

RESULTS = Path(__file__).parent / "results" / "extrapolation.csv"
SYSTEMS = ("ethanol", "CO2")
CUTOFF = {"ethanol": 4.5, "CO2": 5.0}
MEMBERS, SECONDS = 4, 40
OF_MOLECULES, OF_ATOMS = 0.15, 0.04
"""RMS displacements along an axis at 300 K [Å]."""
HOT = (600, 900, 1200)


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("verb", choices=["data", "train", "measure", "cost"])
    parser.add_argument("folder", type=Path)
    given = parser.parse_args()
    torch.set_num_threads(1)
    logging.getLogger("physicsml_ase").setLevel(logging.ERROR)
    {"data": make_data, "train": train, "measure": measure, "cost": cost}[given.verb](given.folder)


def make_data(folder: Path) -> None:
    """Labelled frames of both systems: 300K_train, 300K, heated, strained, stretched."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    cold = dynamics(300, 5000, 12, rng)
    sets = {
        "300K_train": cold[:350],
        "300K": cold[-60:],
        "heated": [a for t in HOT for a in dynamics(t, 500, 25, rng)],
        "strained": [scaled(a, s) for a, s in zip(cold[-60:], np.linspace(0.9, 1.1, 60))],
        "stretched": [stretched(a, s) for a, s in zip(cold[-60:], np.linspace(0.8, 1.6, 60))],
    }
    label(sets, folder, "ethanol")
    ice = crystal(["C", "O"], [(0, 0, 0), (0.1185,) * 3], spacegroup=205, cellpar=[5.5] * 3 + [90] * 3)
    still = [einstein(ice, 300, rng) for _ in range(100)]
    sets = {
        "300K_train": still[:80],
        "300K": still[80:],
        "heated": [einstein(ice, t, rng) for t in HOT for _ in range(7)],
        "strained": [scaled(einstein(ice, 300, rng), s) for s in np.linspace(0.93, 1.07, 20)],
        "stretched": [pulled(einstein(ice, 300, rng), d) for d in np.linspace(0.1, 0.8, 20)],
    }
    label(sets, folder, "CO2")


def xtb() -> object:
    """A calculator of GFN2-xTB."""
    from tblite.ase import TBLite

    return TBLite(method="GFN2-xTB", verbosity=0)


def dynamics(temperature: float, steps: int, every: int, rng: np.random.Generator) -> list[Atoms]:
    """Frames of ethanol at a temperature [K]."""
    atoms, frames = molecule("CH3CH2OH"), list[Atoms]()
    atoms.calc = xtb()
    MaxwellBoltzmannDistribution(atoms, temperature_K=temperature, rng=rng)
    run = Langevin(atoms, 1.0 * units.fs, temperature_K=temperature, friction=0.02 / units.fs, rng=rng)
    run.run(200)
    run.attach(lambda: frames.append(atoms.copy()), interval=every)
    run.run(steps)
    return frames


def einstein(still: Atoms, temperature: float, rng: np.random.Generator) -> Atoms:
    """The crystal with thermal displacements."""
    atoms, wide = still.copy(), (temperature / 300) ** 0.5
    d = still.get_all_distances(mic=True)
    of = np.where(still.numbers == 6)[0]
    molecule_of = d[:, of].argmin(1)  # the carbon that is nearest
    moved = OF_MOLECULES * rng.normal(size=(len(of), 3))[molecule_of]
    atoms.positions += wide * (moved + OF_ATOMS * rng.normal(size=atoms.positions.shape))
    return atoms


def scaled(atoms: Atoms, factor: float) -> Atoms:
    """Everything scaled."""
    atoms = atoms.copy()
    atoms.positions *= factor
    atoms.set_cell(atoms.cell * factor)
    return atoms


def stretched(atoms: Atoms, factor: float) -> Atoms:
    """One bond of the molecule at `factor` times its length: C-C, C-O or O-H, whatever moves with it moving."""
    atoms = atoms.copy()
    symbols = np.array(atoms.get_chemical_symbols())
    o = int(np.flatnonzero(symbols == "O")[0])
    d = atoms.get_all_distances()
    carbon = min(np.flatnonzero(symbols == "C"), key=lambda c: d[o, c])
    proton = min(np.flatnonzero(symbols == "H"), key=lambda h: d[o, h])
    fixed, moving = ((carbon, [o, proton]), (o, [proton]))[int(factor * 1000) % 2]
    atoms.positions[moving] += (factor - 1) * (atoms.positions[moving[0]] - atoms.positions[fixed])
    return atoms


def pulled(atoms: Atoms, distance: float) -> Atoms:
    """The first atom moved along an axis towards its neighbour."""
    atoms = atoms.copy()
    atoms.positions[0, 0] += distance
    return atoms


def label(sets: dict[str, list[Atoms]], folder: Path, name: str) -> None:
    """Write the sets with energies and forces; what does not converge is left out."""
    for kind, frames in sets.items():
        done = []
        for frame in frames:
            frame.calc = xtb()
            try:
                energy, forces = frame.get_potential_energy(), frame.get_forces()
            except Exception as error:
                print(name, kind, "left out:", str(error).splitlines()[0])
                continue
            frame.calc = SinglePointCalculator(frame, energy=energy, forces=forces)
            done.append(frame)
        write(folder / f"{name}_{kind}.xyz", done, format="extxyz")
        print(name, kind, len(done), "frames", flush=True)


def train(folder: Path) -> None:
    """Four models of each system, of other seeds."""
    for name in SYSTEMS:
        for seed in range(MEMBERS):
            trainer = {
                "accelerator": "cpu",
                "devices": 1,
                "max_time": {"seconds": SECONDS},
                "max_epochs": -1,
                "enable_progress_bar": False,
                "default_root_dir": str(folder / f"{name}_{seed}"),
            }
            config = {
                "model": {"name": "gaunt_ace", "channels": 16},
                "datamodule": {"cut_off": CUTOFF[name], "pre_batch": "in_memory"},
                "compile": "kernel",
                "seed": seed,
                "trainer": trainer,
            }
            load_model(config).train(train_data=str(folder / f"{name}_300K_train.xyz"))
            print(name, seed, "trained", flush=True)


def models(folder: Path, name: str) -> list[Path]:
    """The checkpoints of a system."""
    return [folder / f"{name}_{seed}" / "model.ckpt" for seed in range(MEMBERS)]


def measure(folder: Path) -> None:
    """Write the table."""
    rows = []
    for name in SYSTEMS:
        potentials = [load_potential(path) for path in models(folder, name)]
        known = Extrapolation(potentials[0])
        pooled: dict[str, list[np.ndarray]] = {}
        for kind in ("300K", "heated", "strained", "stretched"):
            columns = [
                of_frame(frame, potentials, known) for frame in read(folder / f"{name}_{kind}.xyz", ":")
            ]
            rows += table(name, kind, columns)
            for column in columns:
                pooled.setdefault(name, []).append(column)
        rows += table(name, "all", pooled[name])
    write_rows(RESULTS, rows)


def of_frame(atoms: Atoms, potentials: list, known: Extrapolation) -> dict[str, np.ndarray]:
    """Errors of the first model's and of the committee's forces, and what each doubts, of the atoms (N, ...)."""
    graph = to_graph(atoms, known.domain.cutoff)
    outs = [p(graph) for p in potentials]
    scores = known.scores(graph, outs[0]["energies"])
    forces = torch.stack([out["forces"] for out in outs])
    true = torch.from_numpy(atoms.get_forces())
    return {
        "error": (forces[0] - true).numpy(),
        "committee_error": (forces.mean(0) - true).numpy(),
        "features": scores.features.numpy(),
        "guard": scores.worst.numpy(),
        "committee": forces.std(0).numpy(),
        "llpr": forces_uncertainty(potentials[0], graph).numpy(),
    }


def table(name: str, kind: str, frames: list[dict[str, np.ndarray]]) -> list[dict[str, object]]:
    """Rows of one set, one for each measure."""
    rows = []
    for measure_ in ("features", "guard", "committee", "llpr"):
        errors = [f["committee_error" if measure_ == "committee" else "error"] for f in frames]
        values = [f[measure_] for f in frames]
        length = [np.linalg.norm(e, axis=1) for e in errors]
        value = [v if v.ndim == 1 else np.linalg.norm(v, axis=1) for v in values]
        area = ""
        if values[0].ndim == 2:
            z = np.abs(np.concatenate(errors)) / np.maximum(np.concatenate(values), 1e-9)
            levels = np.linspace(0.01, 0.99, 99)
            area = f"{np.mean([abs((z < norm.ppf((1 + p) / 2)).mean() - p) for p in levels]):.3f}"
        rows.append(
            {
                "system": name,
                "frames": kind,
                "number": len(frames),
                "force_rmse_meV_A": round(1e3 * float(np.sqrt((np.concatenate(errors) ** 2).mean())), 1),
                "measure": measure_,
                "spearman_atoms": round(
                    float(spearmanr(np.concatenate(value), np.concatenate(length))[0]), 3
                ),
                "spearman_frames": round(
                    float(spearmanr([v.max() for v in value], [e.max() for e in length])[0]), 3
                ),
                "rms_sigma_meV_A": round(1e3 * float(np.sqrt((np.concatenate(values) ** 2).mean())), 1)
                if area
                else "",
                "miscalibration": area,
                "frames_flagged": round(float(np.mean([v.max() > LIMIT for v in value])), 3)
                if not area
                else "",
            }
        )
    return rows


def cost(folder: Path) -> None:
    """Milliseconds of CPU time per step of Langevin dynamics with and without the guard, in turns."""
    rows: list[dict[str, object]] = []
    for name, repeat, backend in (("ethanol", 1, "kernel"), ("CO2", 4, "kernel"), ("ethanol", 1, "eager")):
        atoms = read(folder / f"{name}_300K.xyz", 0)
        atoms = atoms.repeat(repeat) if atoms.pbc.any() else atoms
        runs = {}
        for reaction in ("ignore", "warn"):
            moving = atoms.copy()
            moving.calc = PhysicsMLCalculator(
                models(folder, name)[0], backend=backend, threads=1, on_extrapolation=reaction
            )
            MaxwellBoltzmannDistribution(moving, temperature_K=300, rng=np.random.default_rng(0))
            runs[reaction] = Langevin(
                moving, 0.5 * units.fs, temperature_K=300, friction=0.02, rng=np.random.default_rng(1)
            )
            runs[reaction].run(20)
        steps = max(20, 4000 // len(atoms)) if backend == "kernel" else 40
        times: dict[str, list[float]] = {reaction: [] for reaction in runs}
        for _ in range(25):
            for reaction, run in runs.items():
                begun = time.process_time()
                run.run(steps)
                times[reaction].append((time.process_time() - begun) / steps * 1e3)
        bare, guarded = (float(np.median(times[reaction])) for reaction in ("ignore", "warn"))
        paired = float(np.median(np.array(times["warn"]) / np.array(times["ignore"]))) - 1
        rows.append(
            {
                "system": name,
                "atoms": len(atoms),
                "backend": backend,
                "cpu_ms_per_step": round(bare, 4),
                "with_guard": round(guarded, 4),
                "guard_percent": round(100 * paired, 1),
            }
        )
    write_rows(RESULTS.with_name("extrapolation_cost.csv"), rows)


def write_rows(path: Path, rows: list[dict[str, object]]) -> None:
    """Write a table, and show it."""
    with path.open("w", newline="") as stream:
        writer = csv.DictWriter(stream, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    for row in rows:
        print(*row.values())


if __name__ == "__main__":
    main()
