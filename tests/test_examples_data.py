"""The shipped data: complete, small, finite, and with labels that their methods reproduce."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from ase import Atoms
from ase.calculators.calculator import Calculator
from ase.calculators.emt import EMT
from ase.db import connect
from ase.io import read

from physicsml_ase.conventions import VOIGT

EXAMPLES = Path(__file__).parents[1] / "examples"
DATA = EXAMPLES / "data"
FRAMES = {
    "alloy_train.xyz": 200,
    "alloy_test.xyz": 60,
    "water_train.xyz": 40,
    "water_test.xyz": 12,
    "molecules.db": 224,
}
LABELS = {
    "alloy": {"energy", "forces", "stress"},
    "water": {"energy", "forces", "stress", "charges"},
    "molecules": {"energy", "forces", "dipole", "charges"},
}


def frames_of(name: str) -> list[Atoms]:
    """All frames of a shipped file, with a data base's keys in `info`."""
    path = DATA / name
    if path.suffix == ".xyz":
        return read(path, ":")
    frames = []
    for row in connect(path).select():
        atoms = row.toatoms()
        atoms.info.update(row.key_value_pairs)
        frames.append(atoms)
    return frames


def voigt_stress(atoms: Atoms, calculator: Calculator, voigt: int, step: float = 1e-4) -> float:
    """One Voigt component of dE/d(strain)/V by central differences [eV/Å^3]."""
    row, column = VOIGT[voigt]
    energies = []
    for sign in (1, -1):
        strain = np.eye(3)
        strain[row, column] += sign * step / 2
        strain[column, row] += sign * step / 2
        strained = atoms.copy()
        strained.set_cell(atoms.cell @ strain, scale_atoms=True)
        energies.append(calculator.get_property("energy", strained))
    return (energies[0] - energies[1]) / (2 * step) / atoms.get_volume()


def test_small_and_complete():
    assert sum(path.stat().st_size for path in DATA.iterdir()) < 2_000_000
    assert {name: len(frames_of(name)) for name in FRAMES} == FRAMES


@pytest.mark.parametrize("name", FRAMES)
def test_every_frame_has_finite_labels_and_rounded_positions(name):
    for atoms in frames_of(name):
        results = atoms.calc.results
        expected = LABELS[name.split(".")[0].split("_")[0]]
        assert set(results) == (expected if atoms.pbc.all() or not atoms.pbc.any() else expected - {"stress"})
        assert all(np.isfinite(value).all() for value in results.values())
        np.testing.assert_allclose(atoms.positions, atoms.positions.round(5), atol=1e-12)
        assert {"config_type", "group"} <= atoms.info.keys()


def test_no_trajectory_is_in_two_splits():
    for name in ("alloy", "water"):
        groups = [{a.info["group"] for a in frames_of(f"{name}_{split}.xyz")} for split in ("train", "test")]
        assert groups[0].isdisjoint(groups[1])
    groups = [
        {row.group for row in connect(DATA / "molecules.db").select(split=split)}
        for split in ("train", "test")
    ]
    assert groups[0].isdisjoint(groups[1])


@pytest.mark.parametrize("name", ["alloy_train.xyz", "alloy_test.xyz"])
def test_alloy_has_every_kind_of_cell(name):
    frames = frames_of(name)
    assert {a.info["config_type"] for a in frames} == {"bulk", "strained", "vacancy", "slab"}
    assert {a.cell.handedness for a in frames} == {1, -1}
    assert {tuple(a.pbc) for a in frames} == {(True, True, True), (True, True, False)}
    assert {frozenset(a.symbols) for a in frames} >= {frozenset({"Cu", "Au"}), frozenset({"Cu"})}


@pytest.mark.parametrize("name", ["alloy_train.xyz", "alloy_test.xyz"])
def test_emt_reproduces_the_alloy(name):
    for stored in frames_of(name)[::3]:
        for label, value in stored.calc.results.items():
            np.testing.assert_allclose(EMT().get_property(label, stored), value, atol=1e-6, err_msg=label)


@pytest.mark.parametrize("handedness", [1, -1])
def test_alloy_stress_is_the_derivative_of_energy(handedness):
    of_kind = (a for a in frames_of("alloy_test.xyz") if a.info["config_type"] == "strained")
    atoms = next(a for a in of_kind if a.cell.handedness == handedness)
    numerical = [voigt_stress(atoms, EMT(), k) for k in range(6)]
    assert np.abs(atoms.calc.results["stress"]).min() > 1e-4  # no component could be taken for another
    np.testing.assert_allclose(atoms.calc.results["stress"], numerical, atol=1e-6)


@pytest.mark.parametrize("name", ["molecules.db", "water_train.xyz", "water_test.xyz"])
def test_nothing_pushes_a_whole_molecule_or_charges_it(name):
    for atoms in frames_of(name):
        np.testing.assert_allclose(atoms.calc.results["forces"].sum(0), 0, atol=1e-6)
        np.testing.assert_allclose(atoms.calc.results["charges"].sum(), 0, atol=1e-6)


def test_isolated_atoms_bind_into_the_molecules():
    frames = frames_of("molecules.db")
    lone = {
        a.numbers[0]: a.calc.results["energy"] for a in frames if a.info["config_type"] == "isolated_atom"
    }
    molecules = [a for a in frames if a.info["config_type"] == "molecule"]
    assert set(lone) == {int(z) for a in molecules for z in a.numbers}
    assert all(a.calc.results["energy"] < sum(lone[z] for z in a.numbers) for a in molecules)


def test_gfn2_reproduces_the_molecules():
    tblite = pytest.importorskip("tblite.ase")
    for stored in [a for a in frames_of("molecules.db") if a.info["config_type"] == "molecule"][::20]:
        reference = tblite.TBLite(method="GFN2-xTB", accuracy=0.1, verbosity=0)
        for label, value in stored.calc.results.items():
            np.testing.assert_allclose(reference.get_property(label, stored), value, atol=1e-4, err_msg=label)


@pytest.mark.slow
def test_gfn2_reproduces_the_water():
    tblite = pytest.importorskip("tblite.ase")
    stored = frames_of("water_test.xyz")[-1]
    reference = tblite.TBLite(method="GFN2-xTB", accuracy=0.1, verbosity=0)
    for label, value in stored.calc.results.items():
        np.testing.assert_allclose(reference.get_property(label, stored), value, atol=1e-4, err_msg=label)
    numerical = [voigt_stress(stored, reference, k, step=1e-3) for k in range(6)]
    np.testing.assert_allclose(stored.calc.results["stress"], numerical, atol=1e-5)


@pytest.mark.parametrize(
    ("script", "written"),
    [
        ("make_alloy.py", ["alloy_train.xyz", "alloy_test.xyz"]),
        ("make_molecules.py", ["molecules.db"]),
        ("make_water.py", ["water_train.xyz", "water_test.xyz"]),
    ],
)
def test_scripts_run(script, written, tmp_path):
    if script != "make_alloy.py":
        pytest.importorskip("tblite")
    command = [sys.executable, EXAMPLES / script, "--quick", "--out", tmp_path]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(written)
