"""Labels under other names: what `check` says of them, label by label, and what `--fix` makes of them."""

from collections.abc import Mapping

import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk, molecule
from ase.calculators.emt import EMT
from ase.calculators.singlepoint import SinglePointCalculator
from conftest import rattled

from physicsml_ase.check import check
from physicsml_ase.check.findings import Finding
from physicsml_ase.check.report import Report

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
        atoms.arrays |= {
            "magmoms": np.zeros((4, 3)),
            "charges": np.zeros(4),
            "spring_forces": np.zeros((4, 3)),
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
