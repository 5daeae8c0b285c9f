"""Several models as one calculator: means, how far they are apart, and what they must have in common."""

import copy
import pickle
from dataclasses import replace

import numpy as np
import pytest
import torch
from ase.build import bulk
from ase.calculators.singlepoint import SinglePointCalculator
from conftest import alloy, rattled, structures
from test_calculator import DOMAIN, LABELS, make

from physicsml_ase import PhysicsMLCalculator
from physicsml_ase.cli.options import members
from physicsml_ase.conventions import InputError
from physicsml_ase.evaluate import evaluate
from physicsml_ase.trust.committee import MeanPotential, combined


def shaken(seed: int, labels=LABELS):
    """A potential that is a little unlike the others."""
    potential = make(labels=labels)
    generator = torch.Generator().manual_seed(seed)
    for weight in potential.parameters():
        weight += (
            0.05 * weight.abs().mean() * torch.randn(weight.shape, generator=generator, dtype=weight.dtype)
        )
    return potential


@pytest.fixture(scope="module")
def potentials():
    return [shaken(seed) for seed in range(3)]


@pytest.mark.parametrize("kind", ["molecule", "crystal", "slab_without_c", "lone_atom"])
def test_mean_and_standard_deviation(potentials, kind):
    atoms = structures()[kind]
    singles = []
    for potential in potentials:
        calc = PhysicsMLCalculator(potential)
        calc.calculate(atoms)
        singles.append(calc.results)
    committee = PhysicsMLCalculator(potentials)
    committee.calculate(atoms)
    for name, first in singles[0].items():
        values = np.stack([results[name] for results in singles])
        np.testing.assert_allclose(committee.results[name], values.mean(0), rtol=1e-9, atol=1e-9)
        if name != "free_energy":
            std = committee.results[f"{name}_std"]
            np.testing.assert_allclose(std, values.std(0, ddof=1), rtol=1e-7, atol=1e-9)
            assert np.shape(std) == np.shape(first)
    assert set(committee.results) <= set(committee.implemented_properties)


def test_the_mean_is_one_potential_whose_forces_are_its_gradient(potentials):
    atoms = structures()["molecule"]
    atoms.calc = PhysicsMLCalculator(potentials)
    forces, eps = atoms.get_forces(), 1e-4
    energies = []
    for sign in (1, -1):
        moved = atoms.copy()
        moved.calc = atoms.calc
        moved.positions[0, 1] += sign * eps
        energies.append(moved.get_potential_energy())
    assert forces[0, 1] == pytest.approx((energies[1] - energies[0]) / (2 * eps), abs=1e-6)
    assert atoms.calc.get_property("forces_std", atoms).shape == (len(atoms), 3)


def test_one_model_twice_is_told(potentials, caplog):
    PhysicsMLCalculator(potentials[:2], device="cpu")
    assert "same weights" not in caplog.text
    PhysicsMLCalculator([potentials[0], potentials[1], copy.deepcopy(potentials[0])], device="cpu")
    assert "model 0 and model 2 have the same weights" in caplog.text


def test_equal_members_do_not_differ(potentials):
    calc = PhysicsMLCalculator([potentials[0]] * 3)
    calc.calculate(structures()["triclinic"])
    assert calc.results["energy_std"] < 1e-9
    assert np.abs(calc.results["forces_std"]).max() < 1e-9


def test_predict_and_pickle(potentials):
    calc = PhysicsMLCalculator(potentials)
    atoms = structures()["crystal"]
    calc.calculate(atoms)
    (predicted,) = calc.predict([atoms])
    again = pickle.loads(pickle.dumps(calc))
    again.calculate(atoms)
    for results in (predicted, again.results):
        assert results["energy_std"] == pytest.approx(calc.results["energy_std"], rel=1e-9)


def test_learned_noise_adds_to_the_spread():
    outs = [{"gap": torch.tensor([v]), "gap_std": torch.tensor([s])} for v, s in ((1.0, 3.0), (3.0, 5.0))]
    found = combined(outs)
    assert found.keys() == {"gap", "gap_std"}
    assert float(found["gap_std"][0]) == pytest.approx((2.0 + (9 + 25) / 2) ** 0.5)


@pytest.mark.parametrize(
    ("domain", "labels", "message"),
    [
        ({"cutoff": 5.0}, LABELS, "model 1: its cutoff is 5.0, and the first model's 4.0"),
        ({"elements": (1, 6, 29)}, LABELS, r"its elements is \(1, 6, 29\)"),
        ({}, LABELS[:2], "predicts energy, energies, forces, stress, and"),
    ],
)
def test_members_that_do_not_agree(potentials, domain, labels, message):
    other = make(replace(DOMAIN, **domain), labels)
    with pytest.raises(InputError, match=message) as error:
        PhysicsMLCalculator([potentials[0], other])
    assert "\n" not in str(error.value)


def test_no_members_and_no_single_uncertainty(potentials):
    with pytest.raises(InputError, match="at least one"):
        PhysicsMLCalculator([])
    with pytest.raises(InputError, match="of a single model"):
        PhysicsMLCalculator(potentials, uncertainty=True)


def test_committees_are_evaluated_with_their_calibration(tmp_path):
    one, *plain = (shaken(seed, LABELS[:2]) for seed in range(4))
    truth = PhysicsMLCalculator(one)
    frames = [alloy(rattled(bulk("Cu", cubic=True), seed=k), seed=k) for k in range(8)]
    for atoms in frames:
        truth.calculate(atoms)
        kept = {name: truth.results[name] for name in ("energy", "forces")}
        atoms.calc = SinglePointCalculator(atoms, **kept)
    evaluation = evaluate(MeanPotential(plain, ["a", "b", "c"]), frames)
    numbers = evaluation.metrics["calibration"]["forces"]
    predicted = PhysicsMLCalculator(plain).predict(frames)
    assert numbers["rmse"] == pytest.approx(evaluation.metrics["forces_rmse"])
    rms = np.sqrt(np.mean([results["forces_std"] ** 2 for results in predicted]))
    assert numbers["rms_sigma"] == pytest.approx(rms)
    assert "uncertainty of forces" in evaluation.table()
    evaluation.write(tmp_path)
    assert (tmp_path / "calibration.png").stat().st_size > 5000
    assert "forces_std" in (tmp_path / "predictions.xyz").read_text()
    molecules = [rattled(structures()["molecule"], seed=k) for k in range(3)]  # which have no stress
    for atoms in molecules:
        atoms.calc = SinglePointCalculator(atoms, energy=0.0)
    assert "energy" in evaluate(MeanPotential(plain, ["a", "b", "c"]), molecules).metrics["calibration"]


def test_commas_name_members(tmp_path):
    assert members("a.ckpt") == "a.ckpt"
    assert members("a.ckpt,b.ckpt") == ["a.ckpt", "b.ckpt"]
    odd = tmp_path / "a,b.ckpt"
    odd.write_text("")
    assert members(str(odd)) == str(odd)
