"""What the program says to bad and unusual files: every one of shared/data/bad, in training and in prediction."""

import csv
import json
import math
import re
import subprocess
import sys
from pathlib import Path

import ase.io
import numpy as np
import pytest
from ase import Atoms
from command_line import TINY, error_of, random_model, run
from conftest import SHARED

from physicsml_ase.calculator import PhysicsMLCalculator
from physicsml_ase.checkpoint import load_potential

BAD = SHARED / "data" / "bad"
pytestmark = pytest.mark.skipif(not BAD.is_dir(), reason="needs the folder of real data beside the checkout")

SINGLE = "has a single frame: it is used for training, there is no validation set"
NO_KEYS = (
    r"no energy, forces in .*{0}; found .*{1}.*{2}; name them with 'datamodule.label_keys={{energy: {1}, "
)
CUT = r"frame {}: the file ends \(line {}\) after 4 of 15 atom lines"

REFUSED_IN_TRAINING = {
    "nan_forces.xyz": "frame 7: forces of atom 3 is nan; .*non_finite_labels=missing",
    "inf_energy.xyz": "frame 4: energy is inf; .*non_finite_labels=missing",
    "truncated_midline.xyz": CUT.format(8, 142) + "; .*@:8 reads the frames before it",
    "truncated_midframe.xyz": CUT.format(9, 159),
    "wrong_force_length.xyz": "frame 3, line 59: atom 5 has 6 columns, Properties declares 7",
    "wrong_natoms.xyz": "line 53: .*frame 2 says 16 atoms",
    "wrong_properties.xyz": "frame 1, line 19: Properties declares forces:R:2, expected forces:R:3",
    "duplicate_atoms.xyz": "frame 2: atoms 4 and 5 coincide",
    "duplicate_atoms_pbc.xyz": r"frame 0: atoms 0 and 1 \(its image across the periodic boundary\) coincide",
    "zero_volume_coplanar.xyz": "frame 0: cell is singular",
    "zero_volume_nocell.xyz": "frame 0: cell is singular",
    "zero_volume_cvec0.xyz": "frame 0: cell is singular",
    "single_atom.xyz": "nothing to learn from .*only isolated atoms",
    "empty.xyz": "no structures in",
    "blank_lines.xyz": "no structures in",
    "zero_atoms.xyz": "frame 0: has 0 atoms",
    "truncated.db": "was cut: it has 47104 bytes, its header says 94208",
    "text_named.db": "is not an ASE database",
    "binary_named.xyz": "is not a text file",
    "keys_REF.xyz": NO_KEYS.format("keys_REF.xyz", "REF_energy", "REF_forces") + "forces: REF_forces}'",
    "keys_NEP.xyz": NO_KEYS.format("keys_NEP.xyz", "Energy", "force") + "forces: force}'",
    "unknown_element.xyz": "no energy, forces in .*found no labels at all",
}
"""What is said of each file that is refused as training data."""

ACCEPTED_IN_TRAINING = {
    "missing_energy.xyz": ["train: energy in 14 of 22", "train: forces in 22 of 22"],
    "missing_forces.xyz": ["train: energy in 22 of 22", "train: forces in 16 of 22"],
    "energy_only.xyz": ["warning: the training data have no forces"],
    "forces_only.xyz": ["warning: no energies are learned: .*unknown offset"],
    "slab_TTF_and_molecules.xyz": ["train: stress in 1 of 8"],
    "slab_TTF_only.xyz": ["warning: .*no frames are left to validate on"],
    "single_atom_in_train.xyz": ["reference energies from isolated atoms", "train: forces in 21 of 24"],
    "two_atoms_far_apart.xyz": [f"warning: .*{SINGLE}", "warning: no atom has a neighbour within 5 Å"],
    "mixed_keys.db": [
        "warning: .* row id 5 has other keys .energy: dft_energy, forces: dft_forces",
        "warning: left out 4 of 11 structures without any of the labels .*: .* row id 5",
    ],
    "forces_eV_per_Bohr.xyz": [r"warning: energies change by 1\.\d+ eV .* as if forces in eV/Bohr"],
    "energy_in_hartree.xyz": ["warning: energies are in Hartree, not eV"],
    "one_frame_energy_in_hartree.xyz": [
        r"warning: 1 with an energy far from the others .* frame 11: \+603.1 eV/atom"
    ],
    "outlier_force_1e6.xyz": [r"warning: 1 with an extreme force \(max_force .* frame 5: 1e\+06 eV/Å"],
    "crlf.xyz": [],
    "tiny_cell.xyz": [],
    "unwrapped_pair.xyz": ["warning: 1 frame of 1 of validation that are in the training data"],
    "equivalent_cells.xyz": ["warning: 1 frame of 1 of validation that are in the training data"],
    "one_frame.xyz": [f"warning: .*{SINGLE}"],
    "duplicate_frames.xyz": ["warning: all 20 frames .* have the same geometry"],
    "zero_forces.xyz": ["warning: all forces of all frames are zero"],
    "stress_sign_flipped.xyz": [],
}
"""What is said of each file that is trained on."""

ONE_COMPOSITION = r"warning: the compositions do not tell the elements' energies apart"
"""Also said of most of them, which are frames of one molecule."""

LABELS_ONLY = {"nan_forces.xyz", "inf_energy.xyz", "keys_REF.xyz", "keys_NEP.xyz", "single_atom.xyz"}
"""Refused as training data for their labels, which predictions do not need."""
REFUSED_IN_PREDICTION = {k: v for k, v in REFUSED_IN_TRAINING.items() if k not in LABELS_ONLY} | {
    "unknown_element.xyz": r"frame 0: element Xe \(atom 0\) is not in the model \(H, C, O\)"
}
OTHER_ELEMENTS = {
    "slab_TTF_and_molecules.xyz": "H C O Si Ge Mo",
    "slab_TTF_only.xyz": "Si Ge Mo",
    "mixed_keys.db": "H C O Si",
    "tiny_cell.xyz": "Li",
    "unwrapped_pair.xyz": "Si",
    "equivalent_cells.xyz": "Si",
    "stress_sign_flipped.xyz": "Si",
    "duplicate_atoms_pbc.xyz": "Si",
    "zero_volume_coplanar.xyz": "Si",
    "zero_volume_nocell.xyz": "Si",
    "zero_volume_cvec0.xyz": "Si",
}
"""Elements of the model that predicts, where they are not C, H and O."""


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a model of random weights for each set of elements."""
    folder = tmp_path_factory.mktemp("models")
    for symbols in {"H C O", *OTHER_ELEMENTS.values()}:
        random_model(folder / f"{symbols}.ckpt", symbols)
    return folder


def train(name: str, folder: Path, *more: str) -> str:
    """Train on a file that is accepted, and return what was said; the losses and weights must be finite."""
    result = run("train", "--train", BAD / name, "-o", folder, *TINY, "trainer.max_epochs=2", *more)
    assert result.exit_code == 0, result.stderr
    with open(folder / "metrics.csv", newline="") as file:
        rows = [row for row in csv.DictReader(file) if row.get("train/total/loss")]
    assert len(rows) == 2
    assert all(math.isfinite(float(value)) for row in rows for value in row.values() if value)
    potential = load_potential(folder / "model.ckpt")
    assert all(bool(p.isfinite().all()) for p in potential.parameters())
    return result.stderr


def test_all_files_are_here() -> None:
    expected = json.loads((BAD / "expected.json").read_text())
    assert set(expected) == set(REFUSED_IN_TRAINING) | set(ACCEPTED_IN_TRAINING)
    assert not set(REFUSED_IN_TRAINING) & set(ACCEPTED_IN_TRAINING)


@pytest.mark.parametrize("name", REFUSED_IN_TRAINING)
def test_refused_in_training(name: str, tmp_path: Path) -> None:
    result = run("train", "--train", BAD / name, "-o", tmp_path / "run", *TINY, "trainer.max_epochs=2")
    message = error_of(result)
    assert name in message
    assert re.search(REFUSED_IN_TRAINING[name], message)
    assert not list(tmp_path.rglob("*.ckpt*"))


@pytest.mark.parametrize("name", ACCEPTED_IN_TRAINING)
def test_accepted_in_training(name: str, tmp_path: Path) -> None:
    said = train(name, tmp_path / "run")
    for words in ACCEPTED_IN_TRAINING[name]:
        assert re.search(words, said), said
    if not any(words.startswith("warning") for words in ACCEPTED_IN_TRAINING[name]):
        assert "warning" not in re.sub(ONE_COMPOSITION, "", said)


@pytest.mark.parametrize("name", REFUSED_IN_PREDICTION)
def test_refused_in_prediction(name: str, models: Path, tmp_path: Path) -> None:
    model = models / f"{OTHER_ELEMENTS.get(name, 'H C O')}.ckpt"
    message = error_of(run("predict", model, BAD / name, "-o", tmp_path / "predictions.xyz"))
    assert name in message
    assert re.search(REFUSED_IN_PREDICTION[name], message)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", [*ACCEPTED_IN_TRAINING, *sorted(LABELS_ONLY)])
def test_accepted_in_prediction(name: str, models: Path, tmp_path: Path) -> None:
    model = models / f"{OTHER_ELEMENTS.get(name, 'H C O')}.ckpt"
    result = run("predict", model, BAD / name, "-o", tmp_path / "predictions.xyz")
    assert result.exit_code == 0, result.stderr
    frames = ase.io.read(tmp_path / "predictions.xyz", ":")
    assert len(frames) == len(ase.io.read(BAD / name, ":"))
    for atoms in frames:
        assert math.isfinite(atoms.get_potential_energy())
        assert np.isfinite(atoms.get_forces()).all()


@pytest.mark.parametrize("name", ["nan_forces.xyz", "inf_energy.xyz"])
def test_values_that_are_not_finite_count_as_missing(name: str, tmp_path: Path) -> None:
    train(name, tmp_path / "run", "datamodule.non_finite_labels=missing")


@pytest.mark.parametrize(
    ("name", "keys"), [("keys_REF.xyz", "REF_energy REF_forces"), ("keys_NEP.xyz", "Energy force")]
)
def test_the_users_own_keys(name: str, keys: str, tmp_path: Path) -> None:
    energy, forces = keys.split()
    said = train(name, tmp_path / "run", f"datamodule.label_keys={{energy: {energy}, forces: {forces}}}")
    assert "train: forces in 9 of 9" in said
    assert said.count("warning") == len(re.findall(ONE_COMPOSITION, said)) == 1
    model = tmp_path / "run" / "model.ckpt"
    found = run("evaluate", model, BAD / name, "-o", tmp_path / "errors")
    assert found.exit_code == 0
    metrics = json.loads((tmp_path / "errors" / "metrics.json").read_text())
    assert metrics["counts"]["forces"]["structures"] == 10
    assert "missing" not in found.stderr


def test_keys_of_part_of_a_database(tmp_path: Path) -> None:
    said = train("mixed_keys.db", tmp_path / "run", "datamodule.label_keys.energy=dft_energy", FORCES)
    assert "left out 4 of 11 structures" in said


FORCES = "datamodule.label_keys.forces=dft_forces"


@pytest.mark.parametrize(
    ("name", "frame"), [("outlier_force_1e6.xyz", 5), ("one_frame_energy_in_hartree.xyz", 11)]
)
def test_an_outlier_ruins_nothing(name: str, frame: int, tmp_path: Path) -> None:
    """Errors on the other frames are near those of a run without the outlier, which is learned from in one."""
    clean = [atoms for k, atoms in enumerate(ase.io.read(BAD / name, ":")) if k != frame]
    ase.io.write(tmp_path / "clean.xyz", clean)
    errors = {}
    for data in (BAD / name, tmp_path / "clean.xyz"):
        folder = tmp_path / data.stem
        size = ("model.channels=16", "model.layers=2", "trainer.max_epochs=30")
        pace = ("optimizer.config.lr=0.01", "datamodule.train.batch_size=4")
        clean_too = ("--validation", tmp_path / "clean.xyz")  # or the split would differ
        result = run("train", "--train", data, *clean_too, "-o", folder, *TINY, *size, *pace)
        assert result.exit_code == 0
        run("evaluate", folder / "model.ckpt", tmp_path / "clean.xyz", "-o", folder / "errors")
        errors[data.stem] = json.loads((folder / "errors" / "metrics.json").read_text())
    with_outlier, without = errors.values()
    assert without["forces_rmse"] < 0.95  # it learns: all zero would be 1.02
    for key in ("forces_rmse", "energy_per_atom_rmse"):
        assert with_outlier[key] < 1.15 * without[key]


@pytest.mark.parametrize(
    ("name", "frame"), [("outlier_force_1e6.xyz", 5), ("one_frame_energy_in_hartree.xyz", 11)]
)
def test_an_outlier_does_not_choose_the_weights(name: str, frame: int, tmp_path: Path) -> None:
    """With one of the two validation frames an outlier, the chosen weights are as good as without it."""
    frames = ase.io.read(BAD / name, ":")
    clean = [atoms for k, atoms in enumerate(frames) if k != frame]
    ase.io.write(tmp_path / "clean.xyz", clean[1:])
    ase.io.write(tmp_path / "without.xyz", clean[:1])
    ase.io.write(tmp_path / "with.xyz", [clean[0], frames[frame]])
    errors = []
    for validation in ("with", "without"):
        folder, size = tmp_path / validation, ("model.channels=16", "model.layers=2", "trainer.max_epochs=25")
        files = ("--train", tmp_path / "clean.xyz", "--validation", tmp_path / f"{validation}.xyz")
        assert run("train", *files, "-o", folder, *TINY, *size).exit_code == 0
        run("evaluate", folder / "model.ckpt", tmp_path / "clean.xyz", "-o", folder / "errors")
        errors.append(json.loads((folder / "errors" / "metrics.json").read_text()))
    for key in ("forces_rmse", "energy_per_atom_rmse"):
        assert errors[0][key] < 1.15 * errors[1][key]


def energy_forces_stress(
    models: Path, name: str, **settings: str
) -> list[tuple[float, np.ndarray, np.ndarray]]:
    """Of each frame of a file: energy per atom, forces, and stress where there is one."""
    calculator = PhysicsMLCalculator(
        models / f"{OTHER_ELEMENTS.get(name, 'H C O')}.ckpt", device="cpu", **settings
    )
    return [
        (r["energy"] / len(r["forces"]), r["forces"], r.get("stress", np.zeros(6)))
        for r in calculator.predict(ase.io.read(BAD / name, ":"))
    ]


@pytest.mark.parametrize("name", ["equivalent_cells.xyz", "unwrapped_pair.xyz"])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_one_crystal_in_different_words(name: str, dtype: str, models: Path) -> None:
    first, *others = energy_forces_stress(models, name, dtype=dtype)
    assert np.abs(first[1]).max() > 1e-3
    for other in others:
        for one, same in zip(first, other):
            np.testing.assert_allclose(same, one, atol=1e-6, rtol=0)


def test_a_cell_smaller_than_the_cut_off(models: Path) -> None:
    calculator = PhysicsMLCalculator(models / "Li.ckpt", device="cpu")
    for small in ase.io.read(BAD / "tiny_cell.xyz", ":"):
        one, many = calculator.predict([small, small.repeat(3)])
        assert one["energy"] / 2 == pytest.approx(many["energy"] / 54, abs=1e-6)
        np.testing.assert_allclose(one["stress"], many["stress"], atol=1e-6)


def test_two_atoms_far_apart(models: Path) -> None:
    calculator = PhysicsMLCalculator(models / "H C O.ckpt", device="cpu")
    pair = ase.io.read(BAD / "two_atoms_far_apart.xyz")
    together, *alone = calculator.predict([pair, *(Atoms([symbol]) for symbol in pair.symbols)])
    assert together["energy"] == pytest.approx(sum(one["energy"] for one in alone), abs=1e-6)
    assert not together["forces"].any()


def test_the_height_of_a_slabs_cell_means_nothing(models: Path) -> None:
    calculator = PhysicsMLCalculator(models / "Si Ge Mo.ckpt", device="cpu")
    for slab in ase.io.read(BAD / "slab_TTF_only.xyz", ":"):
        flat, high = slab.copy(), slab.copy()
        flat.cell[2], high.cell[2] = 0.0, [0.0, 0.0, 80.0]
        first, *others = calculator.predict([slab, flat, high])
        for other in others:
            assert other["energy"] == pytest.approx(first["energy"], abs=1e-6 * len(slab))
            np.testing.assert_allclose(other["forces"], first["forces"], atol=1e-6)


@pytest.mark.parametrize("name", ["nan_forces.xyz", "truncated.db"])
def test_as_a_user_sees_it(name: str, tmp_path: Path) -> None:
    """In a process of its own: no traceback, no model, nothing on stdout."""
    command = [
        sys.executable,
        "-m",
        "physicsml_ase.cli",
        "train",
        "--train",
        str(BAD / name),
        "-o",
        "run",
        *TINY,
    ]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1].startswith(f"error: {BAD / name}")
    assert "Traceback" not in done.stderr
    assert done.stdout == ""
    assert not list(tmp_path.rglob("*.ckpt*"))
