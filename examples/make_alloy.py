"""Make `alloy_train.xyz` and `alloy_test.xyz`: Cu-Au crystals with ASE's effective medium theory.

Bulk, strained (triclinic, some of them left-handed), vacancies and slabs; energy, forces, and stress where
all three directions are periodic. Two minutes on one core.
"""

import numpy as np
from ase import Atoms
from ase.build import bulk, fcc100, fcc111
from ase.calculators.emt import EMT
from ase.data import atomic_numbers
from ase.io import write
from sampling import Plan, labelled, langevin, options

FULL = {
    "train": Plan(40, frames=5, burn_in=200, interval=80),
    "test": Plan(12, frames=5, burn_in=200, interval=80),
}
QUICK = {
    "train": Plan(4, frames=2, burn_in=10, interval=5),
    "test": Plan(4, frames=1, burn_in=10, interval=5),
}

KINDS = ("bulk", "strained", "vacancy", "slab")
PHASES = ("Cu4", "Cu3Au", "Cu2Au2", "CuAu3", "Au4")
"""The fcc cell: copper, L1_2, L1_0, L1_2, gold."""
TEMPERATURES = (300.0, 800.0)  # K
LATTICE = {"Cu": 3.59, "Au": 4.06}
"""Lattice constants of the method [Å]."""
DILATION = (-0.03, 0.05)
"""Range of the isotropic strain; the hot lattice pushes outwards."""
SHEAR = 0.03
"""Standard deviation of each component of the deformation of the strained cells."""
PRIMITIVE_REPEATS = ((2, 2, 3), (3, 2, 2), (3, 3, 2), (2, 2, 2))
TIMESTEP, FRICTION = 5.0, 0.02  # fs, 1/fs


def fcc_cell(phase: str) -> Atoms:
    """Ordered cubic cell of four atoms with the lattice constant of Vegard's law."""
    symbols = Atoms(phase).symbols
    gold = float(np.mean(symbols == "Au"))
    cell = bulk("Cu", a=(1 - gold) * LATTICE["Cu"] + gold * LATTICE["Au"], cubic=True)
    cell.symbols = symbols
    return cell


def disordered(atoms: Atoms, gold: float, rng: np.random.Generator) -> Atoms:
    """`atoms` with a fraction `gold` of Au and the rest Cu, on random sites; in place."""
    is_gold = rng.permutation(len(atoms)) < round(gold * len(atoms))
    atoms.numbers = np.where(is_gold, atomic_numbers["Au"], atomic_numbers["Cu"])
    return atoms


def starting_point(kind: str, phase: str, rng: np.random.Generator) -> Atoms:
    """An ideal lattice of the given kind and composition, strained at random."""
    ordered = fcc_cell(phase)
    lattice = ordered.cell[0, 0]
    gold = float(np.mean(ordered.symbols == "Au"))
    deformation = np.eye(3) * (1 + rng.uniform(*DILATION))
    if kind == "slab":
        face, size = ((fcc111, (2, 2, 4)), (fcc100, (2, 2, 5)))[rng.integers(2)]
        atoms = disordered(face("Cu", size, a=lattice, vacuum=6.0), gold, rng)
        deformation[2, 2] = 1.0
    elif kind == "strained":
        repeat = PRIMITIVE_REPEATS[rng.integers(len(PRIMITIVE_REPEATS))]
        atoms = disordered(bulk("Cu", a=lattice).repeat(repeat), gold, rng)
        deformation += rng.normal(0, SHEAR, (3, 3))
    else:
        atoms = ordered.repeat(2)
        if rng.random() < 0.5:
            disordered(atoms, gold, rng)
        if kind == "vacancy":
            del atoms[rng.integers(len(atoms))]
    atoms.set_cell(atoms.cell @ deformation, scale_atoms=True)
    if kind == "strained" and rng.random() < 0.5:
        atoms.set_cell(atoms.cell[[1, 0, 2]])  # the same crystal in a left-handed cell
    return atoms


def trajectory(split: str, number: int, plan: Plan, seed: int) -> list[Atoms]:
    """Labelled frames of one trajectory; kinds, phases and temperatures take turns."""
    rng = np.random.default_rng([seed, split == "test", number])
    kind = KINDS[number % len(KINDS)]
    turn = number // len(KINDS) + number % len(KINDS)
    temperature = TEMPERATURES[turn % len(TEMPERATURES)]
    atoms = starting_point(kind, PHASES[turn % len(PHASES)], rng)
    atoms.calc = EMT()
    # A slab's volume is arbitrary, so its stress means nothing: it has none.
    properties = ("energy", "forces", "stress") if atoms.pbc.all() else ("energy", "forces")
    return [
        labelled(frame, EMT, properties, config_type=kind, group=f"{split}-{number}", temperature=temperature)
        for frame in langevin(atoms, plan, temperature, TIMESTEP, FRICTION, rng)
    ]


def main() -> None:
    """Write both files."""
    out, quick, seed = options(__doc__)
    for split, plan in (QUICK if quick else FULL).items():
        frames = [f for number in range(plan.trajectories) for f in trajectory(split, number, plan, seed)]
        path = out / f"alloy_{split}.xyz"
        write(path, frames, format="extxyz")
        print(f"{path}: {len(frames)} frames")


if __name__ == "__main__":
    main()
