"""`check --fix` loses nothing that it does not say, and keeps the better one of two equal frames."""

from pathlib import Path

import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk, fcc111, molecule
from ase.calculators.singlepoint import SinglePointCalculator
from ase.db import connect
from ase.io import read, write
from command_line import error_of, run

from physicsml_ase.check import check, repair
from physicsml_ase.check.report import Report
from physicsml_ase.data.sources import open_source


def frames(count: int = 12) -> list[Atoms]:
    rng, result = np.random.default_rng(0), []
    for _ in range(count):
        atoms = molecule("CH3OH")
        atoms.positions += 0.1 * rng.normal(size=atoms.positions.shape)
        forces = rng.normal(size=atoms.positions.shape)
        given = {"energy": -5.0 + rng.normal(), "forces": forces - forces.mean(0)}
        atoms.calc = SinglePointCalculator(
            atoms, **given, dipole=rng.normal(size=3), charges=rng.normal(size=6)
        )
        result.append(atoms)
    return result


def labelled(atoms: Atoms, **results: object) -> Atoms:
    """A copy with these results."""
    new = atoms.copy()
    new.calc = SinglePointCalculator(new, **results)
    return new


def repaired(some: list[Atoms], tmp_path: Path) -> tuple[list[Atoms], Report]:
    write(tmp_path / "data.xyz", some, format="extxyz")
    source = open_source(str(tmp_path / "data.xyz"))
    report = check(str(tmp_path / "data.xyz"))
    repair(report, source, "train", {}, tmp_path / "fixed.xyz")
    return read(tmp_path / "fixed.xyz", ":"), report


def test_other_labels_stay(tmp_path: Path) -> None:
    some = frames()
    some[3].calc.results["forces"][2, 1] = np.nan
    fixed, _ = repaired(some, tmp_path)
    assert len(fixed) == 12
    for before, after in zip(some, fixed):
        np.testing.assert_allclose(after.calc.results["dipole"], before.calc.results["dipole"], atol=1e-7)
        np.testing.assert_allclose(after.calc.results["charges"], before.calc.results["charges"], atol=1e-7)
    assert "forces" not in fixed[3].calc.results
    assert "energy" in fixed[3].calc.results


def test_of_two_equal_frames_the_labelled_one_stays(tmp_path: Path) -> None:
    some = frames()
    copy = some[6].copy()
    fixed, report = repaired([copy, *some], tmp_path)
    assert "duplicates" in {finding.code for finding in report.findings}
    assert len(fixed) == 12
    assert all("energy" in atoms.calc.results for atoms in fixed)


def test_another_charge_or_other_forces_are_another_calculation(tmp_path: Path) -> None:
    some = frames()
    charged, pushed = some[4].copy(), some[5].copy()
    charged.info["charge"] = 1
    for atoms, of in ((charged, some[4]), (pushed, some[5])):
        results = dict(of.calc.results)
        if atoms is pushed:
            results["forces"] = 3 * results["forces"]
        atoms.calc = SinglePointCalculator(atoms, **results)
    fixed, report = repaired([*some, charged, pushed], tmp_path)
    assert len(fixed) == 14
    assert sum(atoms.info.get("charge", 0) == 1 for atoms in fixed) == 1
    assert "disagreeing-duplicates" in {finding.code for finding in report.findings}


def test_what_a_database_s_rows_hold_beside(tmp_path: Path) -> None:
    some, rng = frames(6), np.random.default_rng(1)
    with connect(tmp_path / "a.db") as db:
        for atoms in some:
            odd = {"ragged": [[1], [1, 2]], "hessian": rng.normal(size=(6, 3, 3)), "list": [{"a": 1}] * 6}
            data = {"gap": 1.5, "hirshfeld": rng.normal(size=6), **odd}
            db.write(atoms, key_value_pairs={"run": 3}, data=data)
    source = open_source(str(tmp_path / "a.db"))
    done = repair(check(source), source, "train", {}, tmp_path / "fixed.xyz")
    (first, *_) = read(tmp_path / "fixed.xyz", ":")
    assert first.info["gap"] == 1.5
    assert first.info["run"] == 3
    assert first.arrays["hirshfeld"].shape == (6,)
    assert (
        "left out, as extxyz can not hold it: ragged of 6 frames, hessian of 6 frames, list of 6" in done[-2]
    )
    assert "nothing else was changed" in done[-1]


def test_other_labels_keep_their_names(tmp_path: Path) -> None:
    some = frames(6)
    for atoms in some:
        atoms.info["REF_dipole"] = np.ones(3)
    write(tmp_path / "data.xyz", some, format="extxyz")
    source = open_source(str(tmp_path / "data.xyz"))
    done = repair(check(source), source, "train", {"dipole": "REF_dipole"}, tmp_path / "fixed.xyz")
    assert read(tmp_path / "fixed.xyz", 0).info["REF_dipole"].tolist() == [1, 1, 1]
    assert "renamed" not in " ".join(done)
    error = error_of(run("check", str(tmp_path / "data.xyz"), "--label-key", "Energy=REF_energy"))
    assert "--label-key Energy: " in error


def test_what_differs_far_apart_is_no_repeat(tmp_path: Path) -> None:
    apart = []
    for d in np.linspace(6.5, 11.5, 11):
        other = molecule("CH4")
        other.positions += [0, 0, d]
        atoms = molecule("CH4") + other
        apart.append(labelled(atoms, energy=-10 + d**-6, forces=np.zeros((10, 3))))
    above = []
    for d in (5.0, 6.0, 7.0):
        slab = fcc111("Cu", (2, 2, 2), vacuum=12.0, periodic=True)
        slab += Atoms("O", [slab.positions[-1] + np.array([0, 0, d])])
        above.append(labelled(slab, energy=-1 / d, forces=np.zeros((9, 3))))
    for some in (apart, above):
        found = {f.code for f in check(some).findings}
        assert not {"duplicates", "disagreeing-duplicates"} & found
        assert "leakage" not in {f.code for f in check(some[:2], test=some[2:]).findings}
    assert "duplicates" in {f.code for f in check([*apart, apart[3]]).findings}


def test_one_atom_that_moved_a_little_in_many_cells(tmp_path: Path) -> None:
    some, rng = [], np.random.default_rng(0)
    for k in range(240):
        cell = bulk("MgO", "rocksalt", a=4.2 + 0.0005 * k, cubic=True).repeat((1, 1, 2))
        for atom in (0, 1):
            moved = cell.copy()
            moved.positions[atom, 0] += 0.01
            some.append(
                labelled(moved, energy=-5.0 + 1e-3 * rng.normal(), forces=0.1 * rng.normal(size=(16, 3)))
            )
    assert "duplicates" not in {f.code for f in check(some).findings}


def test_of_equal_frames_those_with_more_labels_stay_and_states_tell_them_apart(tmp_path: Path) -> None:
    some = frames(6)
    bare = labelled(some[2], energy=some[2].calc.results["energy"], forces=some[2].calc.results["forces"])
    fixed, _ = repaired([bare, *some], tmp_path)
    assert len(fixed) == 6
    assert all("dipole" in atoms.calc.results for atoms in fixed)
    with connect(tmp_path / "b.db") as db:
        for atoms in some:
            for charge in (0, 1):
                db.write(atoms, key_value_pairs={"total_charge": charge})
    assert not {"duplicates", "disagreeing-duplicates"} & {f.code for f in check(tmp_path / "b.db").findings}
    for name in ("time", "idx"):  # numbers of the frame itself are no labels
        for k, atoms in enumerate(some):
            atoms.info = {name: k}
        write(tmp_path / f"{name}.xyz", some)
    both = [*read(tmp_path / "time.xyz", ":"), *read(tmp_path / "idx.xyz", ":")]
    (found,) = [f for f in check(both).findings if f.code == "duplicates"]
    assert len(found.frames) == 6
    cations = [atoms.copy() for atoms in some]
    for neutral, cation in zip(some, cations):
        neutral.info["charge"], cation.info["charge"] = 0, 1
        cation.calc = neutral.calc
    assert "leakage" not in {f.code for f in check(some, test=cations).findings}
    (found,) = [f for f in check([*some, *cations], test=[*cations, *some]).findings if f.code == "leakage"]
    assert len(found.frames) == 12


def test_what_is_checked_is_not_written_over(tmp_path: Path) -> None:
    """Neither the data nor those that they are compared with, by whatever name."""
    for name in ("a.xyz", "b.xyz"):
        write(tmp_path / name, frames(), format="extxyz")
    before = {name: (tmp_path / name).read_bytes() for name in ("a.xyz", "b.xyz")}
    (tmp_path / "link.xyz").symlink_to("a.xyz")
    for out in ("a.xyz", "b.xyz", "link.xyz"):
        arguments = (
            f"{tmp_path / '[a]*.xyz'}@:5",
            "--validation",
            tmp_path / "b.xyz",
            "--fix",
            tmp_path / out,
        )
        assert f"{out}: is one of the files that are checked" in error_of(run("check", *arguments))
    assert before == {name: (tmp_path / name).read_bytes() for name in before}


def test_what_extxyz_can_not_hold_is_left_out_and_said(tmp_path: Path) -> None:
    """Nothing that is written makes the file, or what stands behind it, unreadable."""
    odd = {
        "input": "! PBE\n* xyz 0 1",
        "empty": "",
        "c": 1j,
        "tab": "a\tb",
        "end": "a\\",
        "eq=": 4,
        "none": None,
        "t": [[[1]]],
    }
    kept = {"name": 'he said "x"', "list": [1, 2], "comma": "a,b", "with space": 3, "last": 7}
    given = frames(4)
    for atoms in given:
        atoms.info |= odd | kept
        atoms.arrays |= {
            "phase": np.full(len(atoms), 1j),
            "words": np.array(["a b"] * len(atoms)),
            "my column": np.ones(len(atoms)),
        }
        atoms.arrays["tag"] = np.arange(len(atoms))
    lines = repair(check(given), open_source(given), "train", {}, tmp_path / "fixed.xyz")
    (said,) = [line for line in lines if "can not hold" in line]
    assert all(f"{key} of 4 frames" in said for key in [*odd, "phase", "words", "my column"])
    for atoms, original in zip(read(tmp_path / "fixed.xyz", ":"), given, strict=True):
        assert set(atoms.info) == set(kept)
        assert atoms.info["name"] == kept["name"]
        assert (atoms.arrays["tag"] == original.arrays["tag"]).all()
        assert atoms.get_forces() == pytest.approx(original.get_forces())
