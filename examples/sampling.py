"""What the `make_*.py` scripts share: thermal sampling, exact labels, the command line.

Configurations are drawn by Langevin dynamics. Labels are computed afterwards, at the rounded coordinates
that are stored, so that they are exact for what is in the file.
"""

import argparse
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
from ase import Atoms, units
from ase.calculators.calculator import Calculator
from ase.calculators.singlepoint import SinglePointCalculator
from ase.md.langevin import Langevin

DECIMALS = 5
"""Decimals of the stored positions and cells [Å]."""

HYDROGEN_MASS = 3.0
"""Mass of hydrogen while sampling [u]: slower vibrations allow a longer time step, and the Boltzmann
distribution of the positions does not depend on the masses."""


class Plan(NamedTuple):
    """How many trajectories to run and how to cut frames from each of them."""

    trajectories: int
    frames: int  # per trajectory
    burn_in: int  # steps before the first interval
    interval: int  # steps before each frame


class Options(NamedTuple):
    """The command line of a script."""

    out: Path
    quick: bool
    seed: int


def options(description: str) -> Options:
    """Parse `--out`, `--quick` and `--seed`; the output folder is made."""
    parser = argparse.ArgumentParser(description=description)
    here = Path(__file__).parent / "data"
    parser.add_argument("--out", type=Path, default=here, help="folder for the files (default: %(default)s)")
    parser.add_argument("--quick", action="store_true", help="a few badly equilibrated frames, in seconds")
    parser.add_argument(
        "--seed", type=int, default=0, help="seed of the random numbers (default: %(default)s)"
    )
    given = parser.parse_args()
    given.out.mkdir(parents=True, exist_ok=True)
    return Options(given.out, given.quick, given.seed)


def heavy_hydrogens(atoms: Atoms) -> None:
    """Give hydrogens `HYDROGEN_MASS`, in place."""
    masses = atoms.get_masses()
    masses[atoms.numbers == 1] = HYDROGEN_MASS
    atoms.set_masses(masses)


def langevin(
    atoms: Atoms, plan: Plan, temperature: float, timestep: float, friction: float, rng: np.random.Generator
) -> Iterator[Atoms]:
    """Snapshots of a trajectory that starts at `atoms` at rest; K, fs and 1/fs. `atoms` moves along."""
    dynamics = Langevin(
        atoms,
        timestep * units.fs,
        temperature_K=temperature,
        friction=friction / units.fs,
        fixcm=False,
        rng=rng,
    )
    dynamics.run(plan.burn_in)
    for _ in range(plan.frames):
        dynamics.run(plan.interval)
        yield atoms.copy()


def labelled(
    atoms: Atoms, calculator: Callable[[], Calculator], properties: tuple[str, ...], **info: str | float
) -> Atoms:
    """Rounded copy of `atoms`, nothing but geometry, `info` and the results of a new calculator."""
    frame = Atoms(
        atoms.numbers,
        positions=atoms.positions.round(DECIMALS) + 0.0,  # + 0.0: no minus zeros in the files
        cell=atoms.cell.array.round(DECIMALS) + 0.0,
        pbc=atoms.pbc,
        info=info,
    )
    reference = calculator()
    results = {name: reference.get_property(name, frame) for name in properties}
    frame.calc = SinglePointCalculator(frame, **results)
    return frame
