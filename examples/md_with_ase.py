"""A trained potential as any other ASE calculator: relaxation with the cell, then MD, by ASE's own classes.

python examples/md_with_ase.py demo-run/train/model.ckpt
"""

import sys
from pathlib import Path

import numpy as np
from ase import units
from ase.build import bulk
from ase.filters import FrechetCellFilter
from ase.io.trajectory import Trajectory
from ase.md.langevin import Langevin
from ase.optimize import BFGS

from physicsml_ase import PhysicsMLCalculator


def main(ckpt: str, steps: int = 500, out: Path = Path("cu3au.traj")) -> None:
    """Relax Cu3Au with its cell, then heat a supercell of it."""
    atoms = bulk("Cu", "fcc", a=3.8, cubic=True)
    atoms.symbols[0] = "Au"
    # device: "auto" takes a GPU where there is one; dtype: "float64" for phonons and tight optimisations
    atoms.calc = PhysicsMLCalculator(ckpt, device="auto", dtype="float64")
    BFGS(FrechetCellFilter(atoms), logfile=None).run(fmax=0.001, steps=200)
    print(f"Cu3Au: a = {atoms.cell.lengths().mean():.3f} Å, {atoms.get_potential_energy():.4f} eV")
    print("stress [GPa]", (atoms.get_stress() / units.GPa).round(3))

    crystal = atoms.repeat((3, 3, 3))
    crystal.calc = PhysicsMLCalculator(ckpt)  # float32: several times as fast, and enough for MD
    dynamics = Langevin(  # from rest, the thermostat heats it
        crystal,
        2 * units.fs,
        temperature_K=600,
        friction=0.02 / units.fs,
        fixcm=False,
        rng=np.random.default_rng(0),
    )
    with Trajectory(out, "w", crystal) as trajectory:
        dynamics.attach(trajectory.write, interval=20)
        dynamics.run(steps)
    print(f"{steps} steps, {crystal.get_temperature():.0f} K, written to {out}")


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else "demo-run/train/model.ckpt")
