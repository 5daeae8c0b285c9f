"""`check --fix` loses nothing that it does not say, and keeps the better one of two equal frames."""

from pathlib import Path

import numpy as np
from ase import Atoms
from ase.build import molecule
from ase.calculators.singlepoint import SinglePointCalculator
from ase.io import read, write

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
