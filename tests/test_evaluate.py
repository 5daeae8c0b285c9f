"""Errors against numbers worked out by hand, and what is written of them."""

import json
import logging
from dataclasses import replace
from pathlib import Path

import ase.io
import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk, molecule
from ase.calculators.singlepoint import SinglePointCalculator
from ase.db import connect
from conftest import rattled, structures
from test_contract import make

from physicsml_ase.conventions import InputError, Label
from physicsml_ase.data.sources import open_source
from physicsml_ase.evaluate import evaluate, predict, write_predictions
from physicsml_ase.evaluate.errors import KEPT, Sample
from physicsml_ase.potential import Potential

NAMES = ("energy", "forces", "stress")


@pytest.fixture(scope="module")
def potential() -> Potential:
    full = make("painn")
    labels = tuple(label for label in full.labels if label.name in NAMES)
    slim = Potential(full.config, full.domain, labels).double().eval()
    slim.load_state_dict(full.state_dict(), strict=False)
    return slim


def labelled(potential: Potential, frames: list[Atoms], **errors: float) -> list[Atoms]:
    """Copies whose labels are the predictions minus known errors."""
    found = []
    for atoms in predict(potential, frames):
        results = {k: np.array(atoms.calc.results[k]) for k in errors if k in atoms.calc.results}
        atoms.calc = SinglePointCalculator(atoms, **{k: v - errors[k] for k, v in results.items()})
        found.append(atoms)
    return found


def metal(seed: int = 0) -> Atoms:
    return rattled(bulk("Cu", cubic=True), seed=seed)


def test_errors_by_hand(potential: Potential) -> None:
    """Known errors: +0.3 eV on 9 atoms, -0.8 eV on 4; forces off in one component of one atom."""
    ethanol, copper, unlabelled = molecule("CH3CH2OH"), metal(), metal(1)
    ethanol.info["config_type"], copper.info["config_type"] = "gas", "solid"
    first, second, third = labelled(
        potential, [ethanol, copper, unlabelled], energy=0.0, forces=0.0, stress=0.0
    )
    first.calc.results["energy"] -= 0.3
    second.calc.results["energy"] += 0.8
    oxygen = first.symbols.indices()["O"][0]
    first.calc.results["forces"][oxygen, 1] += 0.6
    second.calc.results["stress"] += [0.01, 0, 0, 0.02, 0, 0]
    third.calc = None
    metrics = evaluate(potential, [first, second, third]).metrics

    by_atom = [0.3 / 9, 0.8 / 4]
    assert metrics["energy_per_atom_mae"] == pytest.approx(np.mean(by_atom))
    assert metrics["energy_per_atom_rmse"] == pytest.approx(np.sqrt(np.mean(np.square(by_atom))))
    assert metrics["energy_mae"] == pytest.approx(0.55)
    assert metrics["forces_mae"] == pytest.approx(0.6 / 39)
    assert metrics["forces_rmse"] == pytest.approx(0.6 / 39**0.5)
    assert metrics["stress_mae"] == pytest.approx((0.01 + 2 * 0.02) / 9)  # nine components
    assert metrics["stress_rmse"] == pytest.approx(((0.01**2 + 2 * 0.02**2) / 9) ** 0.5)

    assert metrics["per_element"]["O"] == pytest.approx(
        {"atoms": 1, "forces_mae": 0.2, "forces_rmse": 0.6 / 3**0.5}
    )
    assert metrics["per_element"]["Cu"] == pytest.approx({"atoms": 8, "forces_mae": 0, "forces_rmse": 0})
    groups = metrics["per_config_type"]
    assert list(groups) == ["gas", "solid"]
    assert groups["gas"]["energy_per_atom_mae"] == pytest.approx(0.3 / 9)
    assert groups["gas"]["forces_rmse"] == pytest.approx(0.6 / 27**0.5)
    assert "stress_rmse" not in groups["gas"]
    assert groups["solid"]["energy_per_atom_rmse"] == pytest.approx(0.2)

    assert metrics["counts"] == {
        "structures": 3,
        "atoms": 17,
        "energy": {"values": 2, "structures": 2, "missing": 1},
        "forces": {"values": 39, "structures": 2, "missing": 1},
        "stress": {"values": 9, "structures": 1, "missing": 2},
    }
    assert metrics["units"]["forces"] == "eV/Å"


def test_labels_that_are_nowhere_are_left_out(potential: Potential, caplog) -> None:
    frames = labelled(potential, [molecule("CO"), molecule("H2O")], energy=0.0)
    evaluation = evaluate(potential, frames)
    assert {k for k in evaluation.metrics if k.endswith(("_rmse", "_mae"))} == {
        *("energy_per_atom_rmse", "energy_per_atom_mae", "energy_rmse", "energy_mae")
    }
    assert "no structure has forces, stress" in caplog.text
    assert "forces" not in evaluation.table()


def test_batches_do_not_matter(potential: Potential) -> None:
    """Also for structures of every kind in one batch, and one larger than a batch."""
    frames = labelled(potential, list(structures().values()), energy=0.1, forces=0.2, stress=0.01)
    frames[3].info["config_type"] = "x"
    one, few, all_ = (evaluate(potential, frames, batch_atoms=n).metrics for n in (1, 20, 10000))
    for metrics in (few, all_):
        flat = {k: v for k, v in metrics.items() if isinstance(v, float)}
        assert flat == pytest.approx({k: one[k] for k in flat})
        assert metrics["per_element"].keys() == one["per_element"].keys()
        assert metrics["counts"] == one["counts"]
    assert one["forces_rmse"] == pytest.approx(0.2)
    assert one["per_element"]["Au"]["forces_mae"] == pytest.approx(0.2)
    with pytest.raises(InputError, match="batch_atoms"):
        evaluate(potential, frames, batch_atoms=0)


def test_partly_missing_and_infinite_labels(potential: Potential, caplog) -> None:
    frames = labelled(potential, [metal(k) for k in range(4)], energy=0.5, forces=0.1)
    frames[1].calc.results["energy"] = np.inf
    frames[2].calc.results["forces"][3, 1] = np.nan
    metrics = evaluate(potential, frames).metrics
    assert metrics["counts"]["energy"] == {"values": 3, "structures": 3, "missing": 1}
    assert metrics["counts"]["forces"]["values"] == 4 * 12 - 1
    assert metrics["forces_rmse"] == pytest.approx(0.1)
    assert "not finite were left out: energy in structure 1, forces in structure 2" in caplog.text


def test_a_shifted_reference_is_noticed(potential: Potential, caplog) -> None:
    frames = labelled(potential, [metal(k) for k in range(5)], energy=0.0)
    for k, atoms in enumerate(frames):
        atoms.calc.results["energy"] -= 4 * (2.5 + 0.001 * k)
    evaluate(potential, frames)
    assert "off by +2.502 eV/atom on average, with a spread of only 0.00141" in caplog.text
    caplog.clear()
    for k, atoms in enumerate(frames):
        atoms.calc.results["energy"] -= 4 * (k - 3)
    evaluate(potential, frames)
    assert "off by" not in caplog.text


def test_nothing_is_computed_where_nothing_can_be_compared(
    potential: Potential, monkeypatch: pytest.MonkeyPatch
) -> None:
    frames = [metal() for _ in range(3)]
    with monkeypatch.context() as patch:
        patch.setattr(Potential, "forward", None)
        with pytest.raises(InputError, match="nothing to compare with"):
            evaluate(potential, frames)
    last = labelled(potential, [metal()], energy=0.4)
    assert evaluate(potential, frames + last).metrics["energy_rmse"] == pytest.approx(0.4)


def test_the_users_own_keys(potential: Potential) -> None:
    (atoms,) = labelled(potential, [metal()], energy=0.4)
    atoms.info["dft_energy"] = atoms.calc.results["energy"]
    atoms.calc = None
    with pytest.raises(InputError, match=r"nothing to compare with: .*label_keys=\{energy: dft_energy\}"):
        evaluate(potential, [atoms])
    evaluation = evaluate(potential, [atoms], label_keys={"energy": "dft_energy"})
    assert evaluation.metrics["energy_rmse"] == pytest.approx(0.4)
    with pytest.raises(InputError, match=r"enrgy is not a label of this model \(energy, forces, stress\)"):
        evaluate(potential, [atoms], label_keys={"enrgy": "dft_energy"})


def test_a_file_with_our_names_for_a_model_trained_with_others(potential: Potential) -> None:
    labels = tuple(label._replace(key=f"REF_{label.name}") for label in potential.labels)
    theirs = Potential(potential.config, potential.domain, labels).double().eval()
    theirs.load_state_dict(potential.state_dict())
    (atoms,) = labelled(theirs, [metal()], energy=0.4, forces=0.1)
    atoms.info["REF_stress"] = atoms.calc.results.pop("stress", np.zeros(6))
    evaluation = evaluate(theirs, [atoms])
    assert evaluation.metrics["energy_rmse"] == pytest.approx(0.4)
    assert evaluation.metrics["forces_rmse"] == pytest.approx(0.1)
    assert evaluation.notes[:2] == [
        "no REF_energy in these data: compared with energy",
        "no REF_forces in these data: compared with forces",
    ]
    atoms.info["REF_energy"] = atoms.calc.results["energy"] - 1.0
    assert evaluate(theirs, [atoms]).metrics["energy_rmse"] == pytest.approx(1.4)
    asked = evaluate(theirs, [atoms], label_keys={"energy": "energy"})
    assert asked.metrics["energy_rmse"] == pytest.approx(0.4)
    assert "REF_energy" not in " ".join(asked.notes)


def test_groups_of_a_database(potential: Potential, tmp_path: Path) -> None:
    with connect(tmp_path / "x.db") as db:
        for k, atoms in enumerate(labelled(potential, [metal(k) for k in range(3)], energy=0.2)):
            db.write(atoms, config_type=f"type {k % 2}", split="a")
    groups = evaluate(potential, str(tmp_path / "x.db")).metrics["per_config_type"]
    assert {k: v["structures"] for k, v in groups.items()} == {"type 0": 2, "type 1": 1}
    by_key = evaluate(potential, str(tmp_path / "x.db"), group_key="split").metrics["per_config_type"]
    assert list(by_key) == ["a"]


def test_unknown_elements_are_named(potential: Potential, tmp_path: Path) -> None:
    path = tmp_path / "x.xyz"
    ase.io.write(path, [molecule("CO"), Atoms("COXe", np.eye(3) * 3, info={"energy": 0.0})])
    with pytest.raises(
        InputError, match=r"x.xyz frame 1.*element Xe \(atom 2\) is not in the model \(H, C, O"
    ):
        evaluate(potential, str(path))


def test_what_is_written(potential: Potential, tmp_path: Path) -> None:
    frames = labelled(
        potential, [molecule("CH3CH2OH"), metal(), structures()["slab"]], energy=0.3, forces=0.1, stress=0.01
    )
    frames[0].info |= {"config_type": "gas", "note": "kept"}
    frames[1].calc.results.pop("forces")
    evaluation = evaluate(potential, frames, batch_atoms=10)
    evaluation.write(tmp_path / "out")
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == [
        *("metrics.json", "metrics.txt", "parity.png", "predictions.xyz")
    ]
    assert json.loads((tmp_path / "out" / "metrics.json").read_text()) == evaluation.metrics
    text = (tmp_path / "out" / "metrics.txt").read_text()
    assert ["forces", "100", "100", "meV/Å"] in [line.split()[:4] for line in text.splitlines()]
    assert "1 of 3 structures have no forces" in text
    written = ase.io.read(tmp_path / "out" / "predictions.xyz", ":")
    expected = list(predict(potential, frames))
    for atoms, right, given in zip(written, expected, frames, strict=True):
        np.testing.assert_allclose(atoms.get_forces(), right.get_forces(), atol=1e-7)
        assert atoms.get_potential_energy() == pytest.approx(right.get_potential_energy(), abs=1e-7)
        assert atoms.info["ref_energy"] == pytest.approx(given.calc.results["energy"], abs=1e-7)
        assert "ref_energies" not in atoms.arrays
    assert written[0].info["note"] == "kept"
    assert "stress" not in written[0].calc.results
    np.testing.assert_allclose(written[1].get_stress(), expected[1].get_stress(), atol=1e-7)
    assert written[1].info["ref_stress"].shape == (3, 3)
    assert "ref_forces" not in written[1].arrays
    np.testing.assert_allclose(written[0].arrays["ref_forces"], written[0].get_forces() - 0.1, atol=1e-7)


def test_the_cell_of_the_config_is_written(potential: Potential, tmp_path: Path) -> None:
    crystal = metal()
    box = tuple(map(tuple, crystal.cell.tolist()))
    domain = replace(potential.domain, pbc=(True, True, True), cell=box)
    inside = Potential(potential.config, domain, potential.labels).double().eval()
    inside.load_state_dict(potential.state_dict())
    (expected,) = predict(potential, [crystal])
    cluster = Atoms(crystal.numbers, crystal.positions, info={"energy": 0.0})
    evaluate(inside, [cluster]).write(tmp_path)
    for atoms in (*predict(inside, [cluster]), ase.io.read(tmp_path / "predictions.xyz")):
        assert atoms.pbc.all()
        np.testing.assert_allclose(atoms.cell, crystal.cell, atol=1e-7)
        np.testing.assert_allclose(atoms.get_stress(), expected.get_stress(), atol=1e-7)
    assert not cluster.pbc.any()


def test_without_labels_there_is_nothing_to_evaluate(potential: Potential) -> None:
    with pytest.raises(
        InputError, match=r"compare with: no energy, forces, stress in structure 0; found no labels"
    ):
        evaluate(potential, [molecule("CO"), metal()])


def test_predictions_of_a_file(potential: Potential, tmp_path: Path) -> None:
    path = tmp_path / "x.xyz"
    ase.io.write(path, [metal(k) for k in range(5)])
    assert write_predictions(potential, f"{path}@1:", tmp_path / "new" / "out.xyz") == 4
    with pytest.raises(InputError, match="Xe"):
        write_predictions(potential, [metal(), Atoms("Xe")], tmp_path / "new" / "out.xyz")
    assert len(ase.io.read(tmp_path / "new" / "out.xyz", ":")) == 4  # the old file, not half of a new one
    assert [p.name for p in (tmp_path / "new").iterdir()] == ["out.xyz"]


def test_predictions_do_not_take_the_place_of_labels(potential: Potential, tmp_path: Path) -> None:
    path = tmp_path / "x.xyz"
    ase.io.write(path, [metal(k) for k in range(3)])
    before = path.read_bytes()
    for source in (path, f"{path}@1:", [str(path), str(path)]):
        with pytest.raises(InputError, match=r"x\.xyz: is the file of the structures themselves"):
            write_predictions(potential, source, path)
    assert path.read_bytes() == before


def test_other_labels(tmp_path: Path) -> None:
    """Heads of the user's own names, per structure, atom and edge."""
    full = make("painn")
    labels = (
        Label("gap", "structure", (), "gap"),
        Label("spin", "atom", (), "s"),
        Label("coupling", "edge", (), "j"),
    )
    other = Potential(full.config, full.domain, labels).double().eval()
    atoms = molecule("H2O")
    (predicted,) = predict(other, [atoms])
    atoms.info["gap"] = predicted.info["gap"] + 0.5
    atoms.arrays["s"] = predicted.arrays["spin"] + np.array([0.3, 0.0, 0.0])
    atoms.info["j"] = np.zeros((3, 3))
    evaluation = evaluate(other, [atoms])
    metrics = evaluation.metrics
    assert metrics["gap_mae"] == pytest.approx(0.5)
    assert metrics["spin_mae"] == pytest.approx(0.1)
    assert metrics["per_element"]["O"]["spin_rmse"] == pytest.approx(0.3)
    assert metrics["counts"]["coupling"]["values"] == 6
    evaluation.write(tmp_path)
    written = ase.io.read(tmp_path / "predictions.xyz")
    assert written.info["ref_gap"] == pytest.approx(atoms.info["gap"])
    np.testing.assert_allclose(written.arrays["spin"], predicted.arrays["spin"], atol=1e-7)


def test_a_model_that_diverged_is_not_believed(potential: Potential) -> None:
    broken = make("painn")
    next(broken.parameters()).data.fill_(np.nan)
    with pytest.raises(InputError, match=r"structure 0: the model's .* is not finite"):
        evaluate(broken, [Atoms("CO", [[0, 0, 0], [0, 0, 1.2]], info={"energy": 0.0})])


def test_the_potential_is_left_as_it_was(potential: Potential) -> None:
    potential.train()
    try:
        evaluate(potential, [Atoms("CO", [[0, 0, 0], [0, 0, 1.2]], info={"energy": 0.0})])
        assert potential.training
    finally:
        potential.eval()


def test_the_sample_is_bounded_and_fair() -> None:
    sample, n = Sample(), 10 * KEPT
    for start in range(0, n, 997):
        values = np.arange(start, min(start + 997, n), dtype=float)
        sample.add(values, -values, np.full(len(values), "g", dtype=object))
    reference, prediction, group = sample.pairs()
    assert KEPT <= len(reference) <= 2 * KEPT
    assert (np.diff(reference) == sample.stride).all()
    assert (prediction == -reference).all()
    assert len(group) == len(reference)


def test_real_frames(potential: Potential, shared: Path, caplog) -> None:
    """Every kind of label trouble of the bad inputs, counted."""
    with caplog.at_level(logging.WARNING):
        counts = evaluate(potential, str(shared / "data/bad/missing_energy.xyz")).metrics["counts"]
        assert counts["energy"] == {"values": 16, "structures": 16, "missing": 8}
        assert counts["forces"]["structures"] == 24
        evaluate(potential, open_source(str(shared / "data/bad/nan_forces.xyz")))
    assert "forces in" in caplog.text
    assert "nan_forces.xyz frame 7" in caplog.text
