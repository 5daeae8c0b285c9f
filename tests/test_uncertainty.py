"""Uncertainties of one model: the last layer's, against their definition, and those that are learned."""

import logging
import math

import numpy as np
import pytest
import torch
from ase.build import molecule
from trust_for_tests import SMALL, frames, trained

from physicsml_ase import PhysicsMLCalculator
from physicsml_ase.api import load_model
from physicsml_ase.atoms import to_graph
from physicsml_ase.checkpoint import load_potential
from physicsml_ase.conventions import InputError, Label
from physicsml_ase.evaluate import evaluate
from physicsml_ase.evaluate.calibration import Calibration
from physicsml_ase.graph import collate
from physicsml_ase.train.losses import GaussianNLLLoss
from physicsml_ase.trust import measure
from physicsml_ase.trust.last_layer import (
    along,
    energy_uncertainty,
    forces_uncertainty,
    last_features,
    sums,
)


@pytest.fixture(scope="module")
def ckpt(tmp_path_factory):
    return trained(tmp_path_factory.mktemp("run") / "training").folder / "model.ckpt"


@pytest.fixture
def potential(ckpt):
    return load_potential(ckpt, dtype="float64")


LABELS = (Label("energy", "structure", (), "energy"), Label("forces", "atom", (3,), "forces"))


def graphs(count: int, seed: int):
    return [to_graph(atoms, 4.0, LABELS) for atoms in frames(count, seed)]


def test_the_last_layer_is_linear_in_its_features(potential):
    graph = collate(graphs(3, 0))
    last = potential.energy_head[-1]
    learned = last_features(potential, graph) @ last.weight[0] + last.bias
    own = potential(graph)["energies"] - potential.references(graph.atomic_numbers)
    torch.testing.assert_close(learned * potential.domain.energy_scale, own)


def test_derivatives_along_a_displacement_give_the_forces(potential):
    graph = collate(graphs(2, 1))
    v = torch.randn(graph.positions.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    slope = along(potential, graph, v) @ potential.energy_head[-1].weight[0] * potential.domain.energy_scale
    work = torch.zeros(2, dtype=torch.float64).index_add(
        0, graph.batch, -(potential(graph)["forces"] * v).sum(1)
    )
    torch.testing.assert_close(slope, work, rtol=1e-5, atol=1e-7)


def test_uncertainties_are_what_the_covariance_says(potential):
    graph, known = graphs(2, 3)[1], potential.trust["last_layer"]
    f = sums(potential, graph, known["centre"])[0]
    covariance = known["root_energy"] @ known["root_energy"].mT
    expected = known["alpha_energy"] * (f @ covariance @ f).sqrt()
    torch.testing.assert_close(energy_uncertainty(potential, graph)[0], expected)
    found = forces_uncertainty(potential, graph)
    covariance = known["root_forces"] @ known["root_forces"].mT
    for atom, axis in ((0, 0), (2, 1)):
        v = torch.zeros(graph.positions.shape, dtype=torch.float64)
        v[atom, axis] = 1.0
        j = along(potential, graph, v)[0]
        expected = known["alpha_forces"] * (j @ covariance @ j).sqrt()
        torch.testing.assert_close(found[atom, axis], expected, rtol=1e-4, atol=1e-9)


def test_a_batch_s_uncertainties_are_those_of_its_structures(potential):
    parts = graphs(4, 5)
    batch = collate(parts)
    for of in (energy_uncertainty, forces_uncertainty):
        together = of(potential, batch)
        torch.testing.assert_close(together, torch.cat([of(potential, part) for part in parts]))


def test_lone_atoms_have_no_force_to_be_uncertain_of(potential):
    lone = to_graph(molecule("H2O")[:1], 4.0)
    assert (forces_uncertainty(potential, lone) == 0).all()
    assert energy_uncertainty(potential, lone).item() >= 0


def test_calibration_finds_the_spread_of_last_layers_that_the_data_allow(potential):
    """Labels of the model with another last layer: errors are then exactly what the theory is about."""
    generator = torch.Generator().manual_seed(0)
    last = potential.energy_head[-1]
    root, before = potential.trust["last_layer"]["root_forces"], last.weight.clone()
    last.weight += root @ torch.randn(len(root), generator=generator, dtype=torch.float64)

    def relabelled(graph):
        out = potential(graph)
        return graph._replace(targets={name: out[name] for name in ("energy", "forces")})

    train, held, test = ([relabelled(collate(graphs(n, seed)))] for n, seed in ((60, 0), (40, 11), (60, 12)))
    last.weight.copy_(before)
    potential.trust = measure(potential, train, held)
    sigma = forces_uncertainty(potential, test[0])
    error = (potential(test[0])["forces"] - test[0].targets["forces"]).abs()
    ratio = float((error.square().mean() / sigma.square().mean()).sqrt())
    assert 0.6 < ratio < 1.6
    calibration = Calibration("forces", "eV/Å")
    calibration.add(error.numpy(), sigma.numpy())
    assert calibration.numbers()["miscalibration"] < 0.25  # it is one draw of eight weights


def test_more_heat_is_more_uncertain(potential):
    cold, hot = (
        np.mean(
            [
                float(forces_uncertainty(potential, to_graph(a, 4.0)).square().mean())
                for a in frames(10, 3, size)
            ]
        )
        for size in (0.03, 0.15)
    )
    assert hot > 1.5 * cold


def test_the_calculator_tells_them_when_asked(ckpt):
    atoms = molecule("CH3OH")
    atoms.calc = PhysicsMLCalculator(ckpt, uncertainty=True)
    atoms.get_potential_energy()
    assert 0 < atoms.calc.results["energy_uncertainty"] < 100
    assert "forces_uncertainty" not in atoms.calc.results  # dear, and not asked for
    assert atoms.calc.results["forces_uncertainty"].shape == (6, 3)
    (predicted,) = atoms.calc.predict([atoms])
    assert predicted["energy_uncertainty"] == pytest.approx(
        atoms.calc.results["energy_uncertainty"], rel=1e-3
    )
    plain = PhysicsMLCalculator(ckpt)
    plain.calculate(atoms)
    assert "energy_uncertainty" not in plain.results
    assert "energy_uncertainty" not in plain.implemented_properties
    bare = load_potential(ckpt)
    bare.trust = {}
    with pytest.raises(InputError, match="was not measured on its training data"):
        PhysicsMLCalculator(bare, uncertainty=True)


def test_evaluate_compares_them_with_the_errors(ckpt, tmp_path):
    evaluation = evaluate(load_potential(ckpt), frames(20, 9), uncertainty=True)
    calibration = evaluation.metrics["calibration"]
    assert calibration.keys() == {"energy", "forces"}
    assert 0.2 < calibration["forces"]["rms_sigma"] / calibration["forces"]["rmse"] < 5
    evaluation.write(tmp_path)
    assert (tmp_path / "calibration.png").exists()
    assert "forces_uncertainty" in (tmp_path / "predictions.xyz").read_text()
    assert "calibration" not in evaluate(load_potential(ckpt), frames(2, 9)).metrics


# --- figures of merit


def test_miscalibration_of_gaussian_errors():
    rng = np.random.default_rng(0)
    sigma = rng.uniform(0.5, 2.0, 20000)
    for factor, low, high in ((1.0, 0.0, 0.01), (0.25, 0.25, 0.4), (4.0, 0.25, 0.4)):
        calibration = Calibration("x", "")
        calibration.add(rng.normal(size=20000) * sigma, factor * sigma)
        numbers = calibration.numbers()
        assert low <= numbers["miscalibration"] < high
        assert numbers["rms_sigma"] == pytest.approx(factor * 1.32, rel=0.05)
    right = Calibration("x", "")
    right.add(np.array([[1.0, np.nan]]), np.array([[1.0, 1.0]]))
    assert len(right) == 1
    assert right.numbers()["nll"] == pytest.approx(0.5 + 0.5 * math.log(2 * math.pi))
    x, y = calibration.bins()
    assert len(x) == 12
    assert (np.diff(x) > 0).all()
    assert y == pytest.approx(x / 4, rel=0.15)


# --- mean and variance


@pytest.mark.parametrize("beta", [0.0, 0.5])
def test_the_likelihood_is_greatest_at_the_true_mean_and_spread(beta):
    target = 3.0 + 0.5 * torch.randn(4000, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    mean, log_std = (torch.zeros((), dtype=torch.float64, requires_grad=True) for _ in range(2))
    optimizer = torch.optim.Adam([mean, log_std], lr=0.05)
    for _ in range(400):
        optimizer.zero_grad()
        GaussianNLLLoss(beta)(mean.expand(4000), target, log_std.exp().expand(4000)).mean().backward()
        optimizer.step()
    assert mean.item() == pytest.approx(target.mean().item(), abs=0.02)
    assert log_std.exp().item() == pytest.approx(0.5, rel=0.05)


def test_a_model_learns_how_noisy_its_labels_are(tmp_path):
    """Labels of water are exact, those of methanol have noise: the model must say which is which."""
    rng = np.random.default_rng(0)

    def noisy(count, seed):
        found = frames(count, seed)
        for atoms in found:
            atoms.info["gap"] = float(len(atoms) + (0.8 if len(atoms) > 3 else 0.02) * rng.normal())
            atoms.calc = None
        return found

    trainer = {"accelerator": "cpu", "devices": 1, "max_epochs": 15, "enable_progress_bar": False}
    model = load_model(
        {
            **SMALL,
            "datamodule": {**SMALL["datamodule"], "y_graph_scalars": ["gap"]},
            "loss": {"gap": {"name": "GaussianNLLLoss", "config": {"beta": 0.5}}},
            "trainer": {**trainer, "default_root_dir": str(tmp_path / "run")},
        }
    )
    model.train(train_data=noisy(120, 0), validation_data=noisy(30, 1))
    calc = PhysicsMLCalculator(model.folder / "model.ckpt")
    std = {}
    for name in ("H2O", "CH3OH"):
        atoms = molecule(name)
        calc.calculate(atoms)
        std[name] = calc.get_property("gap_std", atoms)
    assert std["CH3OH"] > 2 * std["H2O"]
    assert 0.3 < std["CH3OH"] < 2.0
    calibration = evaluate(load_potential(model.folder / "model.ckpt"), noisy(60, 2)).metrics["calibration"][
        "gap"
    ]
    assert calibration["miscalibration"] < 0.2


def test_energies_can_have_one_too_and_vectors_can_not(tmp_path, caplog):
    term = {"name": "GaussianNLLLoss", "per_atom": True}
    with caplog.at_level(logging.ERROR):
        model = trained(tmp_path / "a", epochs=1, loss={"energy": term, "forces": {"name": "L2NormLoss"}})
    potential = model.potential
    graph = collate(graphs(3, 0))
    out = potential(graph)
    assert out["energy_std"].shape == (3,)
    assert (out["energy_std"] > 0).all()
    assert "energy_std" in PhysicsMLCalculator(potential).implemented_properties
    with pytest.raises(
        InputError, match=r"label 'forces': a variance is learned of labels that are one number"
    ):
        trained(tmp_path / "b", epochs=1, loss={"energy": term, "forces": {"name": "GaussianNLLLoss"}})
