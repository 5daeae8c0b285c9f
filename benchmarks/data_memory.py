"""Peak memory of pre-batched data on disk, while it is built and while an epoch is read.

    python benchmarks/data_memory.py            # 1,000 and 100,000 small molecules
    python benchmarks/data_memory.py 1000000

The molecules are made up when they are asked for, so that the source itself takes no memory. Every figure is
the peak resident set of a process of its own (ru_maxrss), imports included; the first line of each table is
the same process without data.

Measured on 2 cores (torch 2.13, HDF5 by h5py 3.16), batches of 32, molecules of 9 to 14 atoms:

    on_disk    structures  MB build  MB epoch  MB file
                        0       412
                    1,000       446       443      3.7
                   10,000       449       466        -
                  100,000       481       494      262
                  300,000       520       522        -
    in_memory     100,000       940       942

16 blocks of 2 MB are kept, which 1,000 structures do not fill. Beyond that a structure costs about 0.2 kB at
the peak: 56 bytes that last (its sizes, its rows, its place in the order), the rest while statistics are made.
"""

import resource
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from ase import Atoms
from ase.build import molecule
from ase.calculators.singlepoint import SinglePointCalculator

from physicsml_ase.config import validate
from physicsml_ase.data.datamodule import DataModule
from physicsml_ase.data.settings import DataModuleConfig
from physicsml_ase.data.sources import Source

NAMES = ("CH3CH2OH", "C6H6", "CH3CONH2", "C4H4NH", "isobutane")


@dataclass(frozen=True, eq=False)
class MadeUp:
    """Rattled molecules by number."""

    def where(self, key: int) -> str:
        return f"molecule {key}"

    def content_hash(self) -> str:
        return "made up"

    def read(self, key: int) -> Atoms:
        rng = np.random.default_rng(key)
        atoms = molecule(NAMES[key % len(NAMES)])
        atoms.positions += 0.05 * rng.normal(size=atoms.positions.shape)
        forces = rng.normal(size=atoms.positions.shape)
        atoms.calc = SinglePointCalculator(atoms, energy=float(rng.normal()), forces=forces)
        return atoms


def work(task: str, count: int, pre_batch: str, folder: str) -> None:
    """One measurement: nothing, the DataModule resolved, or an epoch of batches read as well."""
    seconds = time.perf_counter()
    if task != "nothing":
        settings = {
            "pre_batch": pre_batch,
            "cache_dir": folder,
            "validation_split": 0,
            "train": {"batch_size": 32},
        }
        source = Source("made up", MadeUp(), np.arange(count))
        data = DataModule(validate(DataModuleConfig, settings), source)
        data.resolve()
        if task == "epoch":
            seconds = time.perf_counter()
            structures = sum(len(batch.num_atoms) for batch in data.train_dataloader())
            assert structures == count // 32 * 32
    seconds = time.perf_counter() - seconds
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, seconds)


def measure(task: str, count: int, pre_batch: str, folder: str) -> tuple[float, float]:
    """Peak MB and seconds of `work` in a new process."""
    command = [sys.executable, __file__, "--work", task, str(count), pre_batch, folder]
    peak, seconds = subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()
    return float(peak), float(seconds)


def main() -> None:
    counts = [int(n) for n in sys.argv[1:]] or [1_000, 100_000]
    for pre_batch in ("on_disk", "in_memory"):  # in memory for comparison
        print(
            f"{pre_batch:10} {'structures':>10} {'MB build':>9} {'s':>7} {'MB epoch':>9} {'s':>7} {'MB file':>8}"
        )
        with tempfile.TemporaryDirectory() as folder:
            print(f"{'':10} {0:10d} {measure('nothing', 0, pre_batch, folder)[0]:9.0f}")
            for count in counts:
                sub = Path(folder) / str(count)
                build = measure("build", count, pre_batch, str(sub))
                epoch = measure("epoch", count, pre_batch, str(sub))
                size = sum(path.stat().st_size for path in sub.glob("*.h5")) / 1e6 if sub.exists() else 0.0
                print(
                    f"{'':10} {count:10d} {build[0]:9.0f} {build[1]:7.1f} {epoch[0]:9.0f} {epoch[1]:7.2f} {size:8.1f}"
                )


if __name__ == "__main__":
    if sys.argv[1:2] == ["--work"]:
        work(sys.argv[2], int(sys.argv[3]), sys.argv[4], sys.argv[5])
    else:
        main()
