"""Make `water_train.xyz` and `water_test.xyz`: liquid water, twelve molecules with periodic boundaries.

Sampled with GFN1-xTB, which is fast; labelled with GFN2-xTB: energy, forces, stress and charges. Twenty
minutes on one core; needs tblite.
"""

import numpy as np
from ase import Atoms
from ase.build import molecule
from ase.calculators.calculator import Calculator
from ase.io import write
from sampling import Plan, heavy_hydrogens, labelled, langevin, options
from tblite.ase import TBLite

FULL = {"train": Plan(5, frames=8, burn_in=60, interval=60), "test": Plan(2, 6, 60, 60)}
QUICK = {"train": Plan(1, frames=1, burn_in=1, interval=1), "test": Plan(1, 1, 1, 1)}
MELT = {False: Plan(1, frames=1, burn_in=0, interval=300), True: Plan(1, frames=1, burn_in=0, interval=1)}
"""How to forget the lattice that the molecules start on, quickly or not."""

GRID = (2, 2, 3)
"""Molecules along each axis."""
VOLUME = 29.9  # Å^3 a molecule, at 1 g/cm^3
DILATION = (-0.02, 0.02)
"""Range of the isotropic strain of the box."""
SHEAR = 0.02
"""Standard deviation of each component of the box's deformation: the boxes are triclinic."""
MELTING, TEMPERATURES = 600.0, (300.0, 400.0)  # K
TIMESTEP, FRICTION = 1.5, 0.05  # fs, 1/fs


def xtb(method: str) -> TBLite:
    """A method of tblite, silent."""
    return TBLite(method=method, verbosity=0)


def gfn2() -> Calculator:
    """The method of the labels."""
    return xtb("GFN2-xTB")


def lattice_of_molecules(rng: np.random.Generator) -> Atoms:
    """Molecules with random orientations on a grid, in a box that is a little deformed."""
    spacing = VOLUME ** (1 / 3)
    water = Atoms(cell=spacing * np.array(GRID), pbc=True)
    deformation = np.eye(3) * (1 + rng.uniform(*DILATION)) + rng.normal(0, SHEAR, (3, 3))
    water.set_cell(water.cell @ deformation)
    for site in np.ndindex(GRID):
        one = molecule("H2O")
        one.euler_rotate(*rng.uniform(0, 360, 3))
        one.translate(spacing * np.array(site) @ deformation)
        water += one
    heavy_hydrogens(water)
    return water


def trajectory(split: str, number: int, plan: Plan, melt: Plan, seed: int) -> list[Atoms]:
    """Labelled frames of one liquid."""
    rng = np.random.default_rng([seed, split == "test", number])
    temperature = TEMPERATURES[number % len(TEMPERATURES)]
    water = lattice_of_molecules(rng)
    water.calc = xtb("GFN1-xTB")
    for _ in langevin(water, melt, MELTING, TIMESTEP, FRICTION, rng):
        pass  # its frame is not kept: `water` has moved along
    return [
        labelled(
            frame,
            gfn2,
            ("energy", "forces", "stress", "charges"),
            config_type="liquid",
            group=f"{split}-{number}",
            temperature=temperature,
        )
        for frame in langevin(water, plan, temperature, TIMESTEP, FRICTION, rng)
    ]


def main() -> None:
    """Write both files."""
    out, quick, seed = options(__doc__)
    for split, plan in (QUICK if quick else FULL).items():
        frames = [f for n in range(plan.trajectories) for f in trajectory(split, n, plan, MELT[quick], seed)]
        path = out / f"water_{split}.xyz"
        write(path, frames, format="extxyz")
        print(f"{path}: {len(frames)} frames")


if __name__ == "__main__":
    main()
