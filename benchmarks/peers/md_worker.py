"""One model and one system, Langevin MD through ASE, a turn at a time.

    python peers/md_worker.py KIND PATH SYSTEM [--backend B] [--acac FILE]

After the first forces it prints a line of JSON; then, for every number of steps read from the standard input, it
runs them and prints another; it ends with its input. Run in the environment of the peer KIND.
"""

import argparse
import contextlib
import inspect
import json
import os
import re
import resource
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import common
import numpy as np
from ase import Atoms, units
from ase.build import bulk
from ase.io import read
from ase.md.langevin import Langevin
from ase.md.velocitydistribution import MaxwellBoltzmannDistribution


def main() -> None:
    """Serve turns."""
    began = time.perf_counter()
    parser = argparse.ArgumentParser()
    parser.add_argument("kind")
    parser.add_argument("path", type=Path)
    parser.add_argument("system")
    parser.add_argument("--backend")
    parser.add_argument("--acac", type=Path)
    given = parser.parse_args()
    warnings.filterwarnings("ignore")
    answers, sys.stdout = sys.stdout, sys.stderr  # whatever the peers print
    atoms = system(given.system, given.acac)
    MaxwellBoltzmannDistribution(atoms, temperature_K=300, rng=np.random.default_rng(0))
    atoms.calc = loader(given.kind, given.backend)(given.path)
    atoms.get_forces()
    first = time.perf_counter() - began
    step = 0.5 if given.system == "acac15" else 1.0
    dynamics = Langevin(
        atoms, step * units.fs, temperature_K=300, friction=0.01 / units.fs, fixcm=False,
        rng=np.random.default_rng(0),
    )  # fmt: skip
    say(answers, {"atoms": len(atoms), "first_s": first, **memory()})
    for line in sys.stdin:
        steps = int(line)
        wall, cpu, machine = time.perf_counter(), time.process_time(), busy()
        dynamics.run(steps)
        wall, cpu, machine = time.perf_counter() - wall, time.process_time() - cpu, busy() - machine
        temperature = float(atoms.get_temperature())
        foreign = max(0.0, machine - cpu) / wall
        say(answers, {"wall": wall, "cpu": cpu, "foreign": foreign, "temperature": temperature, **memory()})


def system(name: str, acac: Path | None) -> Atoms:
    """`acac15`, or `siN` or `cN`: a cubic piece of rattled silicon or diamond of N atoms."""
    if name == "acac15":
        frame = read(acac, "0")
        return Atoms(frame.numbers, frame.positions)
    symbol, number = re.fullmatch(r"(si|c)(\d+)", name).groups()
    repeats = round((int(number) / 8) ** (1 / 3))
    length = {"si": 5.431, "c": 3.567}[symbol]
    atoms = bulk(symbol.capitalize(), "diamond", a=length, cubic=True) * (repeats, repeats, repeats)
    atoms.rattle(0.05, seed=1)
    return atoms


def loader(kind: str, backend: str | None) -> Callable[[Path], object]:
    """The peer's calculator; ours takes a backend if one is named."""
    make = common.peer(kind).calculator
    if backend is None or "backend" not in inspect.signature(make).parameters:
        return make
    return lambda path: make(path, backend=backend)


def memory() -> dict[str, float]:
    """Peak of this process."""
    return {"rss_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024}


def busy() -> float:
    """CPU seconds of the whole machine."""
    with contextlib.suppress(OSError):
        values = list(map(int, Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:9]))
        return (sum(values) - values[3] - values[4]) / os.sysconf("SC_CLK_TCK")
    return 0.0


def say(stream: object, content: dict[str, float]) -> None:
    """One line."""
    print(json.dumps(content), file=stream, flush=True)


if __name__ == "__main__":
    main()
