"""Labels under other names: what `check` says of them, label by label, and what `--fix` makes of them."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk, molecule
from ase.calculators.emt import EMT
from ase.calculators.singlepoint import SinglePointCalculator
from ase.db import connect
from ase.io import read, write
from command_line import run
from conftest import rattled

from physicsml_ase.check import check, repair
from physicsml_ase.check.findings import Finding
from physicsml_ase.check.report import Report
from physicsml_ase.data.sources import open_source

OURS = {"energy": "energy", "forces": "forces", "stress": "stress"}
REF = {name: f"REF_{name}" for name in OURS}


def crystal(seed: int, names: Mapping[str, str] = OURS) -> Atoms:
    """Rattled copper with labels of the effective medium theory under these names."""
    atoms = rattled(bulk("Cu", cubic=True), seed=seed)
    atoms.calc = EMT()
    values = {name: atoms.calc.get_property(name, atoms) for name in names}
    ours = {name: values[name] for name, key in names.items() if key == name}
    atoms.calc = SinglePointCalculator(atoms, **ours)
    for name, key in names.items():
        if key != name:
            (atoms.arrays if name == "forces" else atoms.info)[key] = values[name]
    return atoms


def found(report: Report, code: str) -> list[Finding]:
    """The findings of this code."""
    return [f for f in report.findings if f.code == code]


@pytest.mark.parametrize(
    "others",
    [
        {"forces": "DFT_forces"},
        {"stress": "REF_stress"},
        {"energy": "REF_energy"},
        {"forces": "DFT_forces", "stress": "REF_stress"},
        REF,
    ],
)
def test_other_names_are_told_label_by_label(others: dict[str, str]) -> None:
    report = check([crystal(k, OURS | others) for k in range(6)])
    (finding,) = found(report, "other-keys")
    assert finding.grade == ("error" if others == REF else "warning")
    assert len(finding.frames) == 6
    keys = ", ".join(f"{ours}: {theirs}" for ours, theirs in others.items())
    assert f"label_keys={{{keys}}}'" in finding.advice
    assert report.keys == others  # so that units of what is there are judged
    assert not {"no-energy", "no-forces"} & {f.code for f in report.findings}


def test_names_that_are_asked_for_leave_the_others_to_be_found() -> None:
    frames = [crystal(k, REF) for k in range(6)]
    (finding,) = found(check(frames, label_keys={"energy": "REF_energy"}), "other-keys")
    assert finding.grade == "warning"
    assert "without forces and stress, but with REF_forces and REF_stress" in finding.message
    assert not found(check(frames, label_keys=REF), "other-keys")


def test_what_is_no_other_name() -> None:
    frames = [crystal(k, {"energy": "energy"}) for k in range(6)]
    for atoms in frames:
        atoms.info |= {"free_energy": -1.0, "solvation_energy": -1.0, "virial": np.eye(3)}
        atoms.info |= {"energy_mp2_corr": -1.0, "nuclear_repulsion_energy": 5.0}
        atoms.arrays |= {
            "magmoms": np.zeros((4, 3)),
            "charges": np.zeros(4),
            "spring_forces": np.zeros((4, 3)),
            "electric_field_gradient": np.zeros((4, 3)),
        }
    report = check(frames)
    assert not found(report, "other-keys")
    assert found(report, "no-forces")
    (note,) = found(report, "to-convert")
    assert (note.grade, len(note.frames)) == ("note", 6)
    assert "write stress = -virial / volume" in note.advice
    water = molecule("H2O")  # without a volume there is no stress
    water.calc = SinglePointCalculator(water, energy=-1.0, forces=np.zeros((3, 3)))
    water.info |= {"REF_stress": np.zeros(6), "virial": np.eye(3)}
    assert not {"other-keys", "to-convert"} & {f.code for f in check([water]).findings}


def test_a_set_of_two_kinds_of_names_comes_under_ours(tmp_path: Path) -> None:
    frames = [crystal(k, OURS if k < 3 else REF) for k in range(6)]
    frames[4].info["energy"] = frames[4].info.pop("REF_energy")  # one label of a frame, or another name
    frames[5].info["dft_energy"] = frames[5].info.pop("REF_energy")
    frames.append(crystal(6))  # both, and not alike: ours is taken
    frames[6].info["REF_energy"] = -77.0
    report = check(frames)
    assert all("check FILE --fix OUT.xyz" in f.advice for f in found(report, "other-keys"))
    done = repair(report, open_source(frames), "train", {}, tmp_path / "fixed.xyz")
    assert "renamed labels in 3 frames: REF_energy to energy in 1, REF_forces to forces, " in done[0]
    assert "dft_energy to energy in 1" in done[0]
    assert done[1] == "took energy of 1 frame from energy, though REF_energy has other values"
    again = {f.code for f in check(tmp_path / "fixed.xyz").findings}
    assert not {"other-keys", "missing-energy", "missing-forces", "missing-stress"} & again
    for k, atoms in enumerate(read(tmp_path / "fixed.xyz", ":")):
        for name, value in crystal(k).calc.results.items():
            np.testing.assert_allclose(atoms.calc.results[name], value, atol=1e-7)
        assert not {"REF_forces", "REF_stress", "dft_energy"} & ({*atoms.info} | {*atoms.arrays})


def test_the_name_that_is_asked_for_wins(tmp_path: Path) -> None:
    frames = [crystal(k) for k in range(4)]
    for atoms in frames[:2]:
        atoms.info["dft_energy"] = -77.0
    out = tmp_path / "fixed.xyz"
    write(tmp_path / "a.xyz", frames)
    result = run("check", tmp_path / "a.xyz", "--label-key", "energy=dft_energy", "--fix", out)
    assert "renamed labels in 2 frames: dft_energy to energy\n" in result.stdout
    assert "took energy of 2 frames from dft_energy, though energy has other values" in result.stdout
    energies = [atoms.calc.results["energy"] for atoms in read(out, ":")]
    assert energies == [
        -77.0,
        -77.0,
        *(pytest.approx(a.calc.results["energy"], abs=1e-7) for a in frames[2:]),
    ]


@pytest.mark.parametrize("suffix", ["xyz", "db", "traj"])
def test_a_free_energy_that_is_another_is_noted(tmp_path: Path, suffix: str) -> None:
    frames = [crystal(k) for k in range(6)]
    for k, atoms in enumerate(frames):
        results = atoms.calc.results
        atoms.calc.results["free_energy"] = results["energy"] - (0.02 if k else 1e-4)  # of 4 atoms
    path = tmp_path / f"a.{suffix}"
    if suffix == "db":
        with connect(path) as db:
            for atoms in frames:
                db.write(atoms)
    else:
        write(path, frames)
    (note,) = found(check(path), "free-energy")
    assert (note.grade, len(note.frames)) == ("note", 5)
    assert "typically by 0.005 eV/atom" in note.message
    assert "label_keys={energy: free_energy}" in note.advice
    assert not found(check(path, label_keys={"energy": "free_energy"}), "free-energy")
    assert not found(check(frames[:1]), "free-energy")


def test_the_isolated_atom_that_is_wrong_is_named() -> None:
    frames = [crystal(k) for k in range(4)]
    for k in range(6):  # of two elements, in three compositions
        atoms = rattled(bulk("Cu", cubic=True), seed=k)
        atoms.symbols[: 1 + k % 3] = "Au"
        atoms.calc = EMT()
        atoms.calc = SinglePointCalculator(
            atoms, energy=atoms.get_potential_energy(), forces=atoms.get_forces()
        )
        frames.append(atoms)

    def told(**alone: float) -> list[Finding]:
        lone = [Atoms(symbol) for symbol in alone]
        for atoms, energy in zip(lone, alone.values()):
            atoms.calc = SinglePointCalculator(atoms, energy=energy)
        return found(check([*frames, *lone]), "isolated-atoms")

    assert not told(Cu=3.5, Au=3.8)
    assert not told(Cu=3.5)
    for alone in ({"Cu": 3.5, "Au": -500.0}, {"Au": -500.0}):
        (finding,) = told(**alone)
        assert "for each Au beyond the isolated atoms in the data (Au -500 eV)" in finding.message
        assert finding.evidence["cohesion"] == pytest.approx(500, abs=2)
