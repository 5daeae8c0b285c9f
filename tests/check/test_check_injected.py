"""Errors put into clean data, made here or shipped with the project, are named; the clean data are not accused."""

from collections.abc import Callable
from functools import cache
from itertools import product
from pathlib import Path

import ase.io
import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk, molecule
from ase.calculators.emt import EMT
from ase.calculators.singlepoint import SinglePointCalculator
from ase.units import Bohr, GPa, Hartree, kcal, mol

from physicsml_ase.check import Finding, Report, check, check_sources
from physicsml_ase.data.sources import open_source

DATA = Path(__file__).parents[2] / "examples" / "data"
Frames = list[Atoms]


@cache
def shipped(name: str) -> tuple[Atoms, ...]:
    """Every other frame of a shipped set: enough for all checks."""
    return tuple(ase.io.read(DATA / name, ":")[::2])


def alloy() -> Frames:
    return list(shipped("alloy_train.xyz"))


def molecules() -> Frames:
    return [atoms for atoms in shipped("molecules.db") if len(atoms) > 1]


def changed(atoms: Atoms, **results: object) -> Atoms:
    """A copy with other labels."""
    new = atoms.copy()
    new.calc = SinglePointCalculator(new, **(atoms.calc.results | results))
    return new


def scaled(frames: Frames, **factors: float) -> Frames:
    """Labels of all frames times factors."""
    return [
        changed(
            a, **{k: np.multiply(a.calc.results[k], f) for k, f in factors.items() if k in a.calc.results}
        )
        for a in frames
    ]


def codes(report: Report) -> set[str]:
    """What is said beyond notes."""
    return {f.code for f in (*report.errors, *report.warnings)}


def finding(report: Report, code: str) -> Finding:
    return next(f for f in report.findings if f.code == code)


@pytest.mark.parametrize("frames", [alloy, molecules, lambda: ase.io.read(DATA / "water_train.xyz", ":")])
def test_clean_sets_are_not_accused(frames: Callable[[], Frames]) -> None:
    assert codes(check(frames())) == set()


@pytest.mark.parametrize(
    ("factor", "words"),
    [
        ({"energy": 1 / Hartree}, "energies in Hartree"),
        ({"energy": mol / kcal}, "energies in kcal/mol"),
        ({"forces": Bohr}, "forces in eV/Bohr"),
        ({"forces": Bohr / Hartree}, "forces in Hartree/Bohr"),
        ({"forces": mol / kcal}, "forces in kcal/mol/Å"),
        (
            {"energy": 1 / Hartree, "forces": Bohr / Hartree},
            "energies in Hartree with forces in Hartree/Bohr",
        ),
    ],
)
@pytest.mark.parametrize("frames", [alloy, molecules])
def test_units_of_energies_and_forces(frames: Callable[[], Frames], factor: dict, words: str) -> None:
    report = check(scaled(frames(), **factor))
    assert words in finding(report, "energy-force-units").message


@pytest.mark.parametrize("frames", [alloy, molecules])
def test_positions_in_bohr(frames: Callable[[], Frames]) -> None:
    report = check([in_bohr(a) for a in frames()])
    assert "as if positions in Bohr" in finding(report, "energy-force-units").message
    assert "as if in Bohr" in finding(report, "positions-unit").message


def in_bohr(atoms: Atoms) -> Atoms:
    """The same numbers for the labels, positions and cell in Bohr."""
    new = changed(atoms)
    new.set_cell(atoms.cell / Bohr, scale_atoms=False)
    new.positions = atoms.positions / Bohr
    return new


def test_atoms_without_bonds_are_not_in_another_unit() -> None:
    """Noble gases, and two atoms that are pulled apart."""
    dimers = [Atoms("NO", [[0, 0, 0], [0, 0, d]]) for d in np.linspace(2.4, 4.5, 12)]
    argon = [Atoms("Ar8", np.indices((2, 2, 2)).reshape(3, 8).T * d) for d in np.linspace(3.5, 4.2, 12)]
    for frames in (dimers, argon):
        labelled = [
            with_results(a, {"energy": 1.0 + k, "forces": np.zeros((len(a), 3))})
            for k, a in enumerate(frames)
        ]
        assert "positions-unit" not in codes(check(labelled))


def emt_labelled(atoms: Atoms) -> Atoms:
    """With what the effective medium theory says."""
    atoms.calc = EMT()
    names = ("energy", "forces", "stress") if atoms.pbc.all() else ("energy", "forces")
    return with_results(atoms, {name: atoms.calc.get_property(name, atoms) for name in names})


@pytest.mark.parametrize("rattle", [1e-4, 1e-3, 5e-3])
@pytest.mark.parametrize(("metal", "structure"), [("Cu", "fcc"), ("Al", "fcc"), ("Cu", "bcc")])
def test_strained_crystals_are_not_accused(metal: str, structure: str, rattle: float) -> None:
    """Forces say nothing of an even strain."""
    cell = bulk(metal, structure, a=None if structure == "fcc" else 2.87, cubic=True)
    frames = []
    for component, strain in product(range(6), np.linspace(-0.02, 0.02, 7)):
        atoms, voigt = cell.repeat((4 // len(cell), 1, 1)), np.zeros(6)
        voigt[component] = strain / (1 if component < 3 else 2)
        deformation = np.eye(3) + voigt[[[0, 5, 4], [5, 1, 3], [4, 3, 2]]]
        atoms.set_cell(atoms.cell.array @ deformation, scale_atoms=True)
        atoms.rattle(rattle, seed=len(frames))
        frames.append(emt_labelled(atoms))
    assert codes(check(frames)) <= {"duplicates", "disagreeing-duplicates"}


@pytest.mark.filterwarnings("error")
def test_noise_where_symmetry_forbids_all_forces() -> None:
    """One atom in a cell: nothing that a fit could be made to."""
    frames = [
        with_results(
            bulk("Fe", a=2.8 + 0.01 * k), {"energy": -5.0 + 0.01 * k, "forces": np.full((1, 3), 1e-9)}
        )
        for k in range(10)
    ]
    assert codes(check(frames)) == set()


def test_bonds_that_are_pulled_far_are_no_stray_energies() -> None:
    """A fit to what is usual knows nothing of them."""
    frames = emt_crystals(90, np.random.default_rng(7), shear=0.0)
    frames += [emt_labelled(Atoms("Cu2", [[0, 0, 0], [0, 0, d]])) for d in np.linspace(2.0, 3.1, 12)]
    assert "stray-energies" not in codes(check(frames))


def test_an_element_of_few_frames_is_not_far_from_the_others() -> None:
    """What it contributes is open, and half its frames are as far from it as the others from theirs."""
    frames = molecules()
    for k in range(3):
        atoms = Atoms("SH2", molecule("SH2").positions)
        atoms.rattle(0.03, seed=k)
        frames.append(with_results(atoms, {"energy": -10861.0 + 0.1 * k, "forces": np.zeros((3, 3))}))
    assert "energy-outliers" not in codes(check(frames))


@pytest.mark.parametrize("count", [6, 8, 10, 14, 20])
@pytest.mark.parametrize("frames", [alloy, molecules])
def test_few_clean_frames_are_not_accused(frames: Callable[[], Frames], count: int) -> None:
    """Pairs of few frames are not independent of each other."""
    everything = frames()
    for begin in range(0, len(everything) - count, max(1, len(everything) // 4)):
        assert codes(check(everything[begin : begin + count])) <= {"all-zero-forces"}


def test_energies_of_other_frames() -> None:
    """Each structure's energies, one frame on: compositions do not tell."""
    frames = emt_crystals(60, np.random.default_rng(4), shear=0.0)
    energies = np.roll([a.calc.results["energy"] for a in frames], 1)
    report = check([changed(a, energy=e) for a, e in zip(frames, energies)])
    assert codes(report) == {"energies-follow-nothing"}
    assert "as if of other frames" in finding(report, "energies-follow-nothing").advice


def test_single_stray_energies() -> None:
    """A fraction of an eV per atom is nothing among compositions; of like frames, it is told by the forces."""
    frames = ase.io.read(DATA / "water_train.xyz", ":")
    assert codes(check(frames)) == set()
    for k in (7, 31):
        frames[k] = changed(frames[k], energy=frames[k].calc.results["energy"] + 0.4 * len(frames[k]))
    assert set(finding(check(frames), "stray-energies").frames) == {("train", 7), ("train", 31)}


@pytest.mark.parametrize("part", [0.1, 0.5])
@pytest.mark.parametrize(
    ("factor", "code"), [(-1.0, "stress-sign-of-some"), (-10 / GPa, "stress-unit-of-some")]
)
def test_stresses_of_some(factor: float, code: str, part: float) -> None:
    """Frames are named, and what is right is not to be changed with them."""
    frames = emt_crystals(40, np.random.default_rng(5), shear=0.02)
    wrong = set(np.random.default_rng(6).choice(40, round(part * 40), replace=False).tolist())
    for k in wrong:
        frames[k] = changed(frames[k], stress=factor * frames[k].calc.results["stress"])
    report = check(frames)
    assert codes(report) == {code}
    named = {index for _, index in finding(report, code).frames}
    assert named <= wrong
    assert len(named) >= 0.8 * len(wrong)


def test_charges_that_are_no_input() -> None:
    frames = [changed(a) for a in molecules()[:20] if len(a) == len(molecules()[0])]
    for k, atoms in enumerate(frames):
        if k % 3:
            atoms.info["charge"] = float(k % 2)  # a frame that says nothing has none
    found = finding(check(frames), "unknown-state")
    charged = sum(bool(a.info.get("charge")) for a in frames)
    assert f"charge: 0 ({len(frames) - charged} frames), 1 ({charged} frame" in found.message
    assert "graph_attrs_cols=[charge]" in found.advice
    known = check_sources({"train": open_source(frames)}, inputs=["charge"])
    assert "unknown-state" not in codes(known)
    for k, atoms in enumerate(frames):
        atoms.info.pop("charge", None)
        atoms.info["head"] = ["one", "other"][k % 2]
    assert "graph_attrs_cols" not in finding(check(frames), "unknown-state").advice


def test_a_charge_or_spin_of_each_composition_is_no_other_state() -> None:
    frames = [changed(a) for a in molecules()]
    for atoms in frames:
        atoms.info |= {"charge": [0, -0.0, 1e-9][len(atoms) % 3], "multiplicity": 1 + len(atoms) % 2}
    frames.append(with_results(Atoms("O"), {"energy": -2041.0, "forces": np.zeros((1, 3))}))
    frames[-1].info["multiplicity"] = 3
    assert "unknown-state" not in codes(check(frames))


@pytest.mark.parametrize("frames", [alloy, molecules])
@pytest.mark.parametrize("label", ["energy", "forces"])
def test_a_wrong_sign_is_certain(frames: Callable[[], Frames], label: str) -> None:
    found = finding(check(scaled(frames(), **{label: -1.0})), "forces-sign")
    assert found.grade == "error"
    assert "wrong sign" in found.message
    assert found.evidence["slope"] == pytest.approx(-1, rel=0.2)


def test_energies_per_atom() -> None:
    frames = [changed(a, energy=a.calc.results["energy"] / len(a)) for a in molecules()]
    assert finding(check(frames), "energy-per-atom").grade == "error"


@pytest.mark.parametrize(
    ("factor", "code", "words"),
    [
        (-1.0, "stress-sign", "wrong sign"),
        (1 / GPa, "stress-unit", "GPa"),
        (-10 / GPa, "stress-unit", "kBar"),
    ],
)
def test_sign_and_unit_of_stresses(factor: float, code: str, words: str) -> None:
    report = check(scaled(alloy(), stress=factor))
    assert codes(report) == {code}
    assert words in finding(report, code).message


def test_order_of_stress_components() -> None:
    """Sheared crystals tell the places of the shears apart."""
    rng = np.random.default_rng(0)
    frames = []
    for atoms in emt_crystals(16, rng, shear=0.03):
        stress = atoms.calc.results["stress"]
        frames.append(changed(atoms, stress=stress[[0, 1, 2, 5, 3, 4]]))
    report = check(frames)
    assert "xx yy zz xy yz xz" in finding(report, "stress-order").message
    assert check(emt_crystals(16, np.random.default_rng(0), shear=0.03)).findings == ()


def emt_crystals(count: int, rng: np.random.Generator, shear: float) -> Frames:
    """Rattled and sheared copper."""
    frames = []
    for _ in range(count):
        atoms = bulk("Cu", cubic=True).repeat((2, 1, 1))
        strain = rng.normal(0, shear, (3, 3))
        atoms.set_cell(atoms.cell.array @ (np.eye(3) + (strain + strain.T) / 2), scale_atoms=True)
        atoms.positions += rng.normal(0, 0.08, (len(atoms), 3))
        frames.append(emt_labelled(atoms))
    return frames


def with_results(atoms: Atoms, results: dict) -> Atoms:
    new = atoms.copy()
    new.calc = SinglePointCalculator(new, **results)
    return new


@pytest.mark.parametrize("frames", [alloy, molecules])
def test_forces_of_other_atoms(frames: Callable[[], Frames]) -> None:
    rng = np.random.default_rng(1)
    report = check([changed(a, forces=rng.permutation(a.calc.results["forces"])) for a in frames()])
    assert "forces-follow-nothing" in codes(report)


@pytest.mark.parametrize("part", [0.01, 0.05, 0.5])
@pytest.mark.parametrize(
    ("label", "code"),
    [("energy", "energy-outliers"), ("forces", "large-forces"), ("order", "forces-of-other-atoms")],
)
def test_outliers_are_named(part: float, label: str, code: str) -> None:
    """Whether one frame in a hundred is wrong or half of them: those, and no others."""
    rng = np.random.default_rng(2)
    frames = [a for a in alloy() if np.std(a.calc.results["forces"]) > 0.15]
    chosen = sorted(rng.choice(len(frames), max(1, round(part * len(frames))), replace=False).tolist())
    for k in chosen:
        forces = frames[k].calc.results["forces"].copy()
        if label == "energy":
            away = rng.uniform(3, 10) * rng.choice([-1, 1]) * len(frames[k])
            frames[k] = changed(frames[k], energy=frames[k].calc.results["energy"] + away)
        elif label == "forces":
            forces[0] += [80.0, 0, 0]
            frames[k] = changed(frames[k], forces=forces)
        else:
            frames[k] = changed(frames[k], forces=np.roll(forces, 3, axis=0))
    named = {index for _, index in finding(check(frames), code).frames}
    assert named <= set(chosen)
    assert len(named) >= 0.9 * len(chosen)


def test_half_of_the_energies_in_hartree() -> None:
    """Which half is wrong is told by which of the two units is not eV."""
    frames = molecules()
    for k in range(0, len(frames), 2):
        frames[k] = changed(frames[k], energy=frames[k].calc.results["energy"] / Hartree)
    found = finding(check(frames), "energy-outliers")
    assert "Hartree" in found.message
    assert {index for _, index in found.frames} == set(range(0, len(frames), 2))


def disguised(atoms: Atoms, rng: np.random.Generator) -> Atoms:
    """The same structure turned, mirrored, moved, in another order and in another choice of the cell."""
    order = rng.permutation(len(atoms))
    turn = np.linalg.qr(rng.normal(size=(3, 3)))[0]
    cell = np.array([[1, 0, 0], [1, 1, 0], [0, 0, 1]]) @ atoms.cell.array
    new = Atoms(atoms.numbers[order], atoms.positions[order] @ turn, cell=cell @ turn, pbc=atoms.pbc)
    return with_results(
        new, {"energy": atoms.calc.results["energy"], "forces": atoms.calc.results["forces"][order] @ turn}
    )


@pytest.mark.parametrize("frames", [alloy, molecules])
def test_leakage_and_repeats_in_disguise(frames: Callable[[], Frames]) -> None:
    rng = np.random.default_rng(3)
    data = frames()
    train, test = data[:-20], data[-20:]
    test[4], test[11] = disguised(train[2], rng), disguised(train[30], rng)
    train.append(disguised(train[7], rng))
    report = check(train, test=test)
    assert set(finding(report, "leakage").frames) == {("test", 4), ("test", 11)}
    assert finding(report, "duplicates").frames == (("train", len(train) - 1),)


def test_a_copy_with_another_energy_is_named() -> None:
    frames = alloy()
    frames.append(changed(frames[3], energy=frames[3].calc.results["energy"] + 0.3 * len(frames[3])))
    assert finding(check(frames), "disagreeing-duplicates").frames == (("train", len(frames) - 1),)
