"""How often `physicsml-ase check` finds errors that were put into clean data, and how often it cries wolf.

python benchmarks/check.py run --source DATA      # writes results/check.csv, a row for each error, set, size and seed
python benchmarks/check.py table                  # detection and false alarms by error, seconds by set

Each error is put into random frames of real sets: an error counts as found when one of its codes is among the
warnings and errors, and for errors of single frames when at least half of them are named, and no more others than
a tenth of them. A false alarm is a warning or an error, of data without an injected error, that the same data
are not known to deserve (KNOWN: repeated frames that are really there).
"""

import argparse
import csv
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import ase.io
import numpy as np
from ase import Atoms
from ase.calculators.singlepoint import SinglePointCalculator
from ase.units import Bohr, GPa, Hartree, kcal, kJ, mol

from physicsml_ase.check import Report, check

RESULTS = Path(__file__).parent / "results" / "check.csv"
SETS = {
    "acac": "acac/train_300K.xyz",
    "Si": "mlearn/Si/train.xyz",
    "Mo": "mlearn/Mo/train.xyz",
    "TiO2": "TiO2/train.xyz",
    "MAPbI3": "MAPbI3/train.xyz",
    "PbTe": "PbTe/train.xyz",
    "oxides": "oxides/train.xyz",
}
KNOWN = {"duplicates", "leakage", "near-leakage", "all-zero-forces"}
"""Codes that clean sets deserve: Si and TiO2 hold repeated frames, Si strained crystals at rest one after another."""
SIZES = (20, 100, 400)
FEW = "none, few"
SMALL, DRAWS = (6, 8, 10, 14, 20, 30), 10
"""Sizes of clean sets that are drawn so many times, and twice: at random, and one frame after another."""
COLUMNS = ("set", "frames", "seed", "error", "found", "grade", "named", "others", "codes", "seconds")
Frames = list[Atoms]


class Case(NamedTuple):
    """Data with an error."""

    train: Frames
    test: Frames
    touched: set[int]
    """Frames of the training data that have it; empty where all have."""


class Kind(NamedTuple):
    """An error, and the codes that name it."""

    make: Callable[[Frames, np.random.Generator], Case | None]
    codes: set[str]


def relabelled(atoms: Atoms, **results: object) -> Atoms:
    """A copy with other labels; those that are not given stay."""
    new = atoms.copy()
    new.calc = SinglePointCalculator(new, **(atoms.calc.results | results))
    return new


def scaled(name: str, factor: float) -> Callable[[Frames, np.random.Generator], Case | None]:
    """One label of all frames in another unit or with another sign."""

    def make(frames: Frames, rng: np.random.Generator) -> Case | None:
        if not any(name in atoms.calc.results for atoms in frames):
            return None
        results = (atoms.calc.results for atoms in frames)
        changed = [{name: r[name] * factor} if name in r else {} for r in results]
        return Case([relabelled(atoms, **c) for atoms, c in zip(frames, changed)], [], set())

    return make


def hartree_units(frames: Frames, rng: np.random.Generator) -> Case:
    """Energies in Hartree, forces in Hartree/Bohr."""
    unit = {"energy": 1 / Hartree, "forces": Bohr / Hartree}
    return Case(
        [relabelled(a, **{k: a.calc.results[k] * u for k, u in unit.items()}) for a in frames], [], set()
    )


def per_atom(frames: Frames, rng: np.random.Generator) -> Case:
    """Energies per atom."""
    return Case([relabelled(a, energy=a.calc.results["energy"] / len(a)) for a in frames], [], set())


def vasp_order(frames: Frames, rng: np.random.Generator) -> Case | None:
    """Stress components as xx yy zz xy yz xz."""
    if not any("stress" in atoms.calc.results for atoms in frames):
        return None
    stress = [atoms.calc.results.get("stress") for atoms in frames]
    changed = [{} if s is None else {"stress": np.asarray(s)[[0, 1, 2, 5, 3, 4]]} for s in stress]
    return Case([relabelled(atoms, **c) for atoms, c in zip(frames, changed)], [], set())


def shuffled_forces(frames: Frames, rng: np.random.Generator) -> Case:
    """Forces in another order of the atoms."""
    return Case([relabelled(a, forces=rng.permutation(a.calc.results["forces"])) for a in frames], [], set())


def forces_of_next(frames: Frames, rng: np.random.Generator) -> Case | None:
    """Forces of the frame before."""
    if len({len(a) for a in frames}) > 1:
        return None
    forces = [a.calc.results["forces"] for a in frames]
    return Case([relabelled(a, forces=f) for a, f in zip(frames, forces[-1:] + forces[:-1])], [], set())


def in_bohr(frames: Frames, rng: np.random.Generator) -> Case:
    """Positions and cells in Bohr, labels in eV and eV/Å."""
    moved = [relabelled(a) for a in frames]
    for atoms in moved:
        atoms.set_cell(atoms.cell / Bohr, scale_atoms=False)
        atoms.positions /= Bohr
    return Case(moved, [], set())


def energies_of_next(frames: Frames, rng: np.random.Generator) -> Case:
    """Energies of another frame of the same composition."""
    kinds = defaultdict(list)
    for k, atoms in enumerate(frames):
        kinds[atoms.get_chemical_formula()].append(k)
    other = {k: of[j - 1] for of in kinds.values() for j, k in enumerate(of)}
    energies = [frames[other[k]].calc.results["energy"] for k in range(len(frames))]
    return Case([relabelled(a, energy=e) for a, e in zip(frames, energies)], [], set())


def some(part: float, change: Callable[[Atoms, np.random.Generator], Atoms]) -> Callable:
    """A change of a part of the frames, at least one."""

    def make(frames: Frames, rng: np.random.Generator) -> Case | None:
        able = {forces_of_others: _has_forces, stress_turned: _has_stress, stress_in_kbar: _has_stress}
        fit = [k for k, atoms in enumerate(frames) if able.get(change, bool)(atoms)]
        if not fit:
            return None
        size = min(max(1, round(part * len(frames))), len(fit))
        chosen = set(rng.choice(fit, size, replace=False).tolist())
        return Case([change(a, rng) if k in chosen else a for k, a in enumerate(frames)], [], chosen)

    return make


def _has_forces(atoms: Atoms) -> bool:
    """Whether another order of the forces is an error: in a crystal at rest all of them are zero."""
    return bool(np.sqrt(np.mean(np.square(atoms.calc.results["forces"]))) > 0.1)


def _has_stress(atoms: Atoms) -> bool:
    """Whether its sign can be told: it is not a mere pressure."""
    stress = np.array(atoms.calc.results.get("stress", np.zeros(6)))
    stress[:3] -= stress[:3].mean()
    return bool(np.abs(stress).max() > 0.005)


def stress_turned(atoms: Atoms, rng: np.random.Generator) -> Atoms:
    """One frame's stress with the other sign."""
    return relabelled(atoms, stress=-np.asarray(atoms.calc.results["stress"]))


def stress_in_kbar(atoms: Atoms, rng: np.random.Generator) -> Atoms:
    """One frame's stress as VASP writes it."""
    return relabelled(atoms, stress=-10 / GPa * np.asarray(atoms.calc.results["stress"]))


def energy_a_little_off(atoms: Atoms, rng: np.random.Generator) -> Atoms:
    """A calculation that did not converge: 0.3 eV/atom off."""
    away = 0.3 * rng.choice([-1, 1]) * len(atoms)
    return relabelled(atoms, energy=atoms.calc.results["energy"] + away)


def energy_in_hartree(atoms: Atoms, rng: np.random.Generator) -> Atoms:
    """One frame's energy in Hartree."""
    return relabelled(atoms, energy=atoms.calc.results["energy"] / Hartree)


def energy_off(atoms: Atoms, rng: np.random.Generator) -> Atoms:
    """A failed calculation: 3 to 10 eV/atom off."""
    away = rng.uniform(3, 10) * rng.choice([-1, 1]) * len(atoms)
    return relabelled(atoms, energy=atoms.calc.results["energy"] + away)


def one_force(atoms: Atoms, rng: np.random.Generator) -> Atoms:
    """A force of 100 eV/Å on one atom."""
    forces = np.array(atoms.calc.results["forces"])
    forces[rng.integers(len(atoms))] += 100 * np.array([1.0, 0, 0])
    return relabelled(atoms, forces=forces)


def forces_in_kcal(atoms: Atoms, rng: np.random.Generator) -> Atoms:
    """One frame's forces in kcal/mol/Å."""
    return relabelled(atoms, forces=atoms.calc.results["forces"] * mol / kcal)


def forces_of_others(atoms: Atoms, rng: np.random.Generator) -> Atoms:
    """One frame's forces in another order."""
    return relabelled(atoms, forces=rng.permutation(atoms.calc.results["forces"]))


def fixed_atoms(atoms: Atoms, rng: np.random.Generator) -> Atoms:
    """A third of the atoms held, their forces zero."""
    forces = np.array(atoms.calc.results["forces"])
    forces[rng.permutation(len(atoms))[: max(1, len(atoms) // 3)]] = 0.0
    return relabelled(atoms, forces=forces)


def not_a_number(atoms: Atoms, rng: np.random.Generator) -> Atoms:
    """One component of a force is NaN."""
    forces = np.array(atoms.calc.results["forces"])
    forces[rng.integers(len(atoms)), 1] = np.nan
    return relabelled(atoms, forces=forces)


def too_close(atoms: Atoms, rng: np.random.Generator) -> Atoms:
    """Two atoms 0.2 Å apart."""
    new = relabelled(atoms)
    i, j = rng.choice(len(atoms), 2, replace=False)
    new.positions[j] = new.positions[i] + [0.2, 0.0, 0.0]
    return new


def disguised(atoms: Atoms, rng: np.random.Generator) -> Atoms:
    """The same structure: turned, moved, its atoms in another order."""
    order = rng.permutation(len(atoms))
    new = relabelled(atoms)
    forces = np.array(atoms.calc.results["forces"])
    turn = np.linalg.qr(rng.normal(size=(3, 3)))[0]
    turn *= np.sign(np.linalg.det(turn))
    moved = Atoms(
        atoms.numbers[order],
        (atoms.positions[order] + rng.normal(size=3)) @ turn,
        cell=atoms.cell.array @ turn,
        pbc=atoms.pbc,
    )
    moved.calc = SinglePointCalculator(moved, energy=new.calc.results["energy"], forces=forces[order] @ turn)
    return moved


def leakage(frames: Frames, rng: np.random.Generator) -> Case | None:
    """A fifth of the test frames are training frames in disguise."""
    size = len(frames) // 5
    test, train = frames[:size], frames[size:]
    for k in range(max(1, size // 5)):
        test[k] = disguised(train[int(rng.integers(len(train)))], rng)
    return Case(train, test, set())


def repeated(frames: Frames, rng: np.random.Generator) -> Case:
    """A tenth of the frames once more, in disguise, at the end."""
    more = [disguised(frames[int(rng.integers(len(frames)))], rng) for _ in range(max(5, len(frames) // 10))]
    return Case([*frames, *more], [], set(range(len(frames), len(frames) + len(more))))


UNITS = {"energy-unit", "energy-force-units"}
FORCE = {"large-forces", "net-force", "forces-of-another-size", "forces-of-other-atoms", "net-torque"}
KINDS: dict[str, Kind] = {
    "none": Kind(lambda frames, rng: Case(frames, [], set()), set()),
    "energy in Hartree": Kind(scaled("energy", 1 / Hartree), UNITS),
    "energy in kcal/mol": Kind(scaled("energy", mol / kcal), UNITS),
    "energy in kJ/mol": Kind(scaled("energy", mol / kJ), UNITS),
    "energy per atom": Kind(per_atom, {"energy-per-atom", "energy-force-units"}),
    "energy sign": Kind(scaled("energy", -1.0), {"forces-sign", "energy-force-units"}),
    "forces in eV/Bohr": Kind(scaled("forces", Bohr), UNITS),
    "forces in Hartree/Bohr": Kind(scaled("forces", Bohr / Hartree), UNITS),
    "forces in kcal/mol/Å": Kind(scaled("forces", mol / kcal), UNITS),
    "all in Hartree, Bohr": Kind(hartree_units, UNITS),
    "forces sign": Kind(scaled("forces", -1.0), {"forces-sign", "energy-force-units"}),
    "stress sign": Kind(scaled("stress", -1.0), {"stress-sign", "stress-unit"}),
    "stress in GPa": Kind(scaled("stress", 1 / GPa), {"stress-unit"}),
    "stress in kBar, VASP sign": Kind(scaled("stress", -10 / GPa), {"stress-unit"}),
    "stress order": Kind(vasp_order, {"stress-order"}),
    "forces shuffled": Kind(
        shuffled_forces, {"forces-follow-nothing", "net-torque", "forces-of-other-atoms"}
    ),
    "forces of the frame before": Kind(forces_of_next, {"forces-follow-nothing", "net-torque"}),
    "positions in Bohr": Kind(in_bohr, {"positions-unit", "energy-force-units"}),
    "energies of other frames": Kind(energies_of_next, {"energies-follow-nothing"}),
    "leakage": Kind(leakage, {"leakage"}),
    "repeated frames": Kind(repeated, {"duplicates"}),
    **{
        f"{name}, {100 * part:g} %": Kind(some(part, change), codes)
        for name, change, codes in (
            ("energy in Hartree", energy_in_hartree, {"energy-outliers"}),
            ("energy off", energy_off, {"energy-outliers"}),
            ("energy 0.3 eV/atom off", energy_a_little_off, {"energy-outliers", "stray-energies"}),
            ("stress sign", stress_turned, {"stress-sign-of-some"}),
            ("stress in kBar", stress_in_kbar, {"stress-unit-of-some"}),
            ("a force of 100 eV/Å", one_force, FORCE),
            ("forces in kcal/mol/Å", forces_in_kcal, FORCE),
            ("forces shuffled", forces_of_others, FORCE),
        )
        for part in (0.01, 0.05, 0.5)
    },
    "fixed atoms, 20 %": Kind(some(0.2, fixed_atoms), {"zeroed-forces"}),
    "NaN, 1 %": Kind(some(0.01, not_a_number), {"not-finite"}),
    "atoms too close, 1 %": Kind(some(0.01, too_close), {"overlapping-atoms", "close-atoms"}),
}


def judge(report: Report, case: Case, codes: set[str]) -> tuple[bool, str, int, int]:
    """Whether the error was found, its grade, how many of its frames were named and how many others."""
    hits = [f for f in (*report.errors, *report.warnings) if f.code in codes]
    named = {index for f in hits for set_, index in f.frames if set_ == "train"}
    right, others = len(named & case.touched), len(named - case.touched)
    found = bool(hits)
    if case.touched:
        found = right >= 0.5 * len(case.touched)
        found &= others <= 0.1 * len(case.touched) or codes <= KNOWN
    return found, hits[0].grade if hits else "", right, others


def run(source: Path, seeds: int, only: str | None) -> None:
    """Every error in every set; rows are written as they come."""
    with Path("/dev/null" if only else RESULTS).open("w", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(COLUMNS)
        for seed in range(seeds):
            for size in SIZES:
                for name, file in SETS.items():
                    whole = ase.io.read(source / file, ":")
                    if size > SIZES[0] and len(whole) <= size // 2:
                        continue
                    chosen = np.sort(np.random.default_rng((seed, size)).permutation(len(whole))[:size])
                    for row in cases(name, [whole[k] for k in chosen], seed, only):
                        writer.writerow(row)
                        stream.flush()
                        print(*row, sep="\t", flush=True)
        if only is None:
            for name, file in SETS.items():
                writer.writerows(few(name, ase.io.read(source / file, ":")))


def few(name: str, whole: Frames) -> Iterator[tuple]:
    """A row for each draw of few clean frames."""
    for size in (size for size in SMALL if size < len(whole)):
        for seed in range(DRAWS):
            rng = np.random.default_rng((seed, size, 2))
            first = int(rng.integers(len(whole) - size))
            for chosen in (np.sort(rng.permutation(len(whole))[:size]), np.arange(first, first + size)):
                begin = time.process_time()
                report = check([whole[k] for k in chosen])
                seconds = time.process_time() - begin
                yield (name, size, seed, FEW, 0, "", 0, 0, _said(report), f"{seconds:.2f}")


def cases(name: str, frames: Frames, seed: int, only: str | None) -> Iterator[tuple]:
    """A row for each error in these frames."""
    for error, kind in KINDS.items():
        if only and only not in error:
            continue
        case = kind.make(list(frames), np.random.default_rng((seed, len(frames), 1)))
        if case is None or (kind.codes == FORCE and not case.touched):
            continue
        begin = time.process_time()
        report = check(case.train, test=case.test or None)
        seconds = time.process_time() - begin
        found, grade, right, others = judge(report, case, kind.codes)
        values = (name, len(frames), seed, error, int(found), grade, right, others)
        yield (*values, _said(report), f"{seconds:.2f}")


def _said(report: Report) -> str:
    """Codes of warnings and errors."""
    return " ".join(f"{f.grade[0]}:{f.code}" for f in (*report.errors, *report.warnings))


def table() -> None:
    """Detection and false alarms of what was measured."""
    with RESULTS.open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    print("| error | found | " + " | ".join(SETS) + " |\n|---|---|" + "---|" * len(SETS))
    for error in ("none", FEW, *list(KINDS)[1:]):
        of = [row for row in rows if row["error"] == error]
        cells = []
        for group in (of, *([r for r in of if r["set"] == name] for name in SETS)):
            hits = sum(_alarm(r) if error in ("none", FEW) else int(r["found"]) for r in group)
            cells.append(f"{hits}/{len(group)}" if group else "")
        shown = {"none": "**none (false alarms)**", FEW: "**none, 6 to 30 frames**"}.get(error, error)
        print(f"| {shown} | " + " | ".join(cells) + " |")
    seconds = defaultdict(list)
    for row in rows:
        if row["error"] == "none":
            seconds[row["set"], int(row["frames"])].append(float(row["seconds"]))
    print("\n| set | frames | CPU s |\n|---|---|---|")
    for (name, size), values in seconds.items():
        print(f"| {name} | {size} | {np.median(values):.2f} |")


def _alarm(row: dict[str, str]) -> bool:
    return bool({code.partition(":")[2] for code in row["codes"].split()} - KNOWN)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", choices=["run", "table"])
    parser.add_argument("--source", type=Path, help="Folder of the real sets.")
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--only", help="Errors whose name contains this; nothing is written.")
    given = parser.parse_args()
    if given.what == "run":
        run(given.source, given.seeds, given.only)
    else:
        table()
