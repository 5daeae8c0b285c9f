"""What `check` says of every bad or unusual file, and that it says nothing against valid ones."""

import json
from pathlib import Path

import pytest
from command_line import error_of, run
from conftest import SHARED

BAD = SHARED / "data" / "bad"
pytestmark = pytest.mark.skipif(not BAD.is_dir(), reason="needs the folder of real data beside the checkout")

NOT_OPENED = {
    "truncated_midline.xyz": "frame 8: the file ends",
    "truncated_midframe.xyz": "frame 9: the file ends",
    "wrong_natoms.xyz": "frame 2 says 16 atoms",
    "empty.xyz": "no structures in",
    "blank_lines.xyz": "no structures in",
    "zero_atoms.xyz": "frame 0: has 0 atoms",
    "truncated.db": "was cut",
    "text_named.db": "is not an ASE database",
    "binary_named.xyz": "is not a text file",
}
"""Files that are none: exit status 2, one line, as for every verb."""

WRONG = {
    "nan_forces.xyz": ("not-finite", [7]),
    "inf_energy.xyz": ("not-finite", [4]),
    "wrong_force_length.xyz": ("unreadable", [3]),
    "wrong_properties.xyz": ("unreadable", [1]),
    "duplicate_atoms.xyz": ("unusable-geometry", [2]),
    "duplicate_atoms_pbc.xyz": ("unusable-geometry", [0]),
    "zero_volume_coplanar.xyz": ("unusable-geometry", [0]),
    "zero_volume_nocell.xyz": ("unusable-geometry", [0]),
    "zero_volume_cvec0.xyz": ("unusable-geometry", [0]),
    "single_atom.xyz": ("only-isolated-atoms", []),
    "keys_REF.xyz": ("other-keys", list(range(10))),
    "keys_NEP.xyz": ("other-keys", list(range(10))),
    "unknown_element.xyz": ("no-labels", [0, 1]),
    "energy_in_hartree.xyz": ("energy-unit", []),
}
"""Errors, with the frames that are named."""

DOUBTFUL = {
    "energy_only.xyz": ("no-forces", []),
    "forces_only.xyz": ("no-energy", []),
    "mixed_keys.db": ("other-keys", [4, 5, 6]),
    "forces_eV_per_Bohr.xyz": ("energy-force-units", []),
    "one_frame_energy_in_hartree.xyz": ("energy-outliers", [11]),
    "outlier_force_1e6.xyz": ("large-forces", [5]),
    "duplicate_frames.xyz": ("duplicates", list(range(1, 20))),
    "zero_forces.xyz": ("all-zero-forces", list(range(8))),
    "stress_sign_flipped.xyz": ("stress-sign", []),
}
"""Warnings: nothing that ruins a training for certain."""

FINE = {
    "missing_energy.xyz": {"missing-energy"},
    "missing_forces.xyz": {"missing-forces"},
    "slab_TTF_and_molecules.xyz": {"missing-stress"},
    "slab_TTF_only.xyz": set(),
    "single_atom_in_train.xyz": {"missing-forces"},
    "two_atoms_far_apart.xyz": {"all-zero-forces", "unusual-cutoff", "lonely-atoms", "single-frame"},
    "crlf.xyz": set(),
    "tiny_cell.xyz": {"all-zero-forces", "duplicates"},
    "unwrapped_pair.xyz": {"duplicates"},
    "equivalent_cells.xyz": {"duplicates"},
    "one_frame.xyz": {"single-frame"},
}
"""Valid files and the notes on them."""


def found_in(name: str) -> tuple[int, list[dict]]:
    """Exit status and findings."""
    result = run("check", BAD / name, "--json")
    return result.exit_code, json.loads(result.stdout)["findings"]


def test_all_files_are_here() -> None:
    assert set(json.loads((BAD / "expected.json").read_text())) == {*NOT_OPENED, *WRONG, *DOUBTFUL, *FINE}


@pytest.mark.parametrize("name", NOT_OPENED)
def test_files_that_are_none(name: str) -> None:
    assert NOT_OPENED[name] in error_of(run("check", BAD / name))


@pytest.mark.parametrize("name", WRONG)
def test_errors(name: str) -> None:
    status, findings = found_in(name)
    assert status == 1
    code, frames = WRONG[name]
    error = next(f for f in findings if f["grade"] == "error")
    assert error["code"] == code
    assert error["frames"].get("train", []) == frames
    assert not frames or name in error["where"][0]


@pytest.mark.parametrize("name", DOUBTFUL)
def test_warnings(name: str) -> None:
    status, findings = found_in(name)
    assert status == 0
    code, frames = DOUBTFUL[name]
    found = {f["code"]: f for f in findings if f["grade"] == "warning"}
    assert code in found
    assert found[code]["frames"].get("train", []) == frames


@pytest.mark.parametrize("name", FINE)
def test_valid_files(name: str) -> None:
    status, findings = found_in(name)
    assert status == 0
    assert {f["code"] for f in findings} == FINE[name]
    assert {f["grade"] for f in findings} <= {"note"}


@pytest.mark.parametrize("name", [*WRONG, *DOUBTFUL, *FINE])
def test_the_text_for_people(name: str) -> None:
    result = run("check", BAD / name)
    assert result.exit_code in (0, 1)
    assert "on one CPU core (an estimate)" in " ".join(result.stdout.split())
    assert "Traceback" not in result.output


def test_repaired_data_are_accepted(tmp_path: Path) -> None:
    """NaN labels are taken out, frames that coincide dropped, and the rest is as it was."""
    for name, said, left in (
        ("nan_forces.xyz", "removed 1 label", 24),
        ("duplicate_atoms.xyz", "dropped 1 frame with a geometry that training refuses", 5),
        ("keys_REF.xyz", "renamed labels in 10 frames", 10),
        ("duplicate_frames.xyz", "dropped 19 frames that occur before", 1),
    ):
        out = tmp_path / name
        result = run("check", BAD / name, "--fix", out)
        assert said in result.stdout
        again = run("check", out, "--json")
        report = json.loads(again.stdout)
        assert again.exit_code == 0
        assert report["sets"]["train"]["frames"] == left
