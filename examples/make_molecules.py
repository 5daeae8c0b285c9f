"""Make `molecules.db`: ten small CHNO molecules and the four isolated atoms with GFN2-xTB.

Energy, forces, dipole and charges; `split=train` and `split=test` are different trajectories. A minute or two
on one core; needs tblite.
"""

from functools import partial

import numpy as np
from ase import Atoms
from ase.build import molecule
from ase.db import connect
from sampling import Plan, heavy_hydrogens, labelled, langevin, options
from tblite.ase import TBLite

FULL = {"train": Plan(20, frames=8, burn_in=400, interval=200), "test": Plan(20, 3, 400, 200)}
QUICK = {"train": Plan(2, frames=2, burn_in=10, interval=5), "test": Plan(2, 1, 10, 5)}

MOLECULES = (
    "CH3CH2OH",
    "H2O",
    "CH3OH",
    "NH3",
    "CH3CH2NH2",
    "CH3CHO",
    "HCOOH",
    "CH3CONH2",
    "CH3CN",
    "C2H4",
)
"""Names in ASE's g2 collection."""
MULTIPLICITY = {"H": 2, "C": 3, "N": 4, "O": 3}
"""Of the atoms' ground states."""
TEMPERATURES = (300.0, 600.0)  # K
TIMESTEP, FRICTION = 1.0, 0.02  # fs, 1/fs


def gfn2(multiplicity: int = 1) -> TBLite:
    """GFN2-xTB, silent, converged more tightly than by default."""
    return TBLite(method="GFN2-xTB", accuracy=0.1, multiplicity=multiplicity, verbosity=0)


def label(atoms: Atoms, multiplicity: int = 1, **info: str | float) -> Atoms:
    """A copy of `atoms` with everything that the method knows about a molecule."""
    return labelled(atoms, partial(gfn2, multiplicity), ("energy", "forces", "dipole", "charges"), **info)


def trajectory(split: str, number: int, plan: Plan, seed: int) -> list[Atoms]:
    """Labelled frames of one molecule at one temperature, centred at the origin."""
    rng = np.random.default_rng([seed, split == "test", number])
    name = MOLECULES[number % len(MOLECULES)]
    temperature = TEMPERATURES[number // len(MOLECULES) % len(TEMPERATURES)]
    atoms = molecule(name)
    heavy_hydrogens(atoms)
    atoms.calc = gfn2()
    frames = []
    for frame in langevin(atoms, plan, temperature, TIMESTEP, FRICTION, rng):
        frame.positions -= frame.positions.mean(axis=0)
        frames.append(
            label(
                frame,
                config_type="molecule",
                name=name,
                group=f"{split}-{number}",
                split=split,
                temperature=temperature,
            )
        )
    return frames


def main() -> None:
    """Write the data base, in place of an old one."""
    out, quick, seed = options(__doc__)
    frames = [
        label(
            Atoms(symbol),
            multiplicity,
            config_type="isolated_atom",
            group=f"isolated-{symbol}",
            split="train",
        )
        for symbol, multiplicity in MULTIPLICITY.items()
    ]
    for split, plan in (QUICK if quick else FULL).items():
        for number in range(plan.trajectories):
            frames += trajectory(split, number, plan, seed)
    path = out / "molecules.db"
    path.unlink(missing_ok=True)
    with connect(path) as database:
        for frame in frames:
            database.write(frame, key_value_pairs=frame.info)
    print(f"{path}: {len(frames)} frames")


if __name__ == "__main__":
    main()
