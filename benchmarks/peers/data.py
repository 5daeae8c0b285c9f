"""The data sets of the benchmark, split once and the same for everyone.

    python peers/data.py FOLDER_OF_THE_SETS OUT

writes OUT/NAME/{train,validation,test}.xyz and OUT/NAME/reference.json (energy of each element, eV). A tenth of
each training file is held out as validation (seed 0). Needs ase and numpy only.
"""

import json
import sys
from pathlib import Path

import numpy as np
from ase import Atoms
from ase.calculators.singlepoint import SinglePointCalculator
from ase.io import read, write

SETS = {
    "acac": ("acac/train_300K.xyz", "acac/test_MD_300K.xyz"),
    "Si": ("mlearn/Si/train.xyz", "mlearn/Si/test.xyz"),
    "MAPbI3": ("MAPbI3/train.xyz", "MAPbI3/test.xyz"),
    "TiO2": ("TiO2/train.xyz", "TiO2/test.xyz"),
    "Mo": ("mlearn/Mo/train.xyz", "mlearn/Mo/test.xyz"),
}
CUTOFF = 5.0  # Å, for every model
HELD_OUT = 0.1


def prepare(source: Path, out: Path, name: str) -> Path:
    """The folder of one set, written if it is not there yet."""
    folder = out / name
    if (folder / "reference.json").exists():
        return folder
    folder.mkdir(parents=True, exist_ok=True)
    train_file, test_file = SETS[name]
    frames = [_bare(atoms) for atoms in read(source / train_file, ":")]
    order = np.random.default_rng(0).permutation(len(frames))
    held = round(HELD_OUT * len(frames))
    train = [frames[i] for i in order[held:]]
    write(folder / "train.xyz", train, format="extxyz")
    write(folder / "validation.xyz", [frames[i] for i in order[:held]], format="extxyz")
    write(folder / "test.xyz", [_bare(atoms) for atoms in read(source / test_file, ":")], format="extxyz")
    isolated = (source / train_file).parent / "isolated_atoms.xyz"
    reference = _isolated(isolated) if isolated.exists() else _least_squares(train)
    (folder / "reference.json").write_text(json.dumps(reference, indent=1))
    return folder


def _bare(atoms: Atoms) -> Atoms:
    """Elements, positions, cell, energy and forces: what every peer reads alike (no stress)."""
    bare = Atoms(atoms.numbers, atoms.positions)
    if atoms.pbc.any():
        bare.set_cell(atoms.cell)
        bare.pbc = atoms.pbc
    results = atoms.calc.results
    bare.calc = SinglePointCalculator(bare, energy=results["energy"], forces=results["forces"])
    return bare


def _isolated(path: Path) -> dict[str, float]:
    return {atoms.get_chemical_symbols()[0]: atoms.get_potential_energy() for atoms in read(path, ":")}


def _least_squares(frames: list[Atoms]) -> dict[str, float]:
    """Energies of the elements whose sums come nearest to the frames' (the least norm where many do)."""
    elements = sorted({symbol for atoms in frames for symbol in atoms.get_chemical_symbols()})
    counts = np.array([[atoms.get_chemical_symbols().count(x) for x in elements] for atoms in frames], float)
    energies = np.array([atoms.get_potential_energy() for atoms in frames])
    solution, *_ = np.linalg.lstsq(counts, energies, rcond=None)
    return dict(zip(elements, map(float, solution), strict=True))


if __name__ == "__main__":
    for set_name in SETS:
        print(prepare(Path(sys.argv[1]), Path(sys.argv[2]), set_name))
