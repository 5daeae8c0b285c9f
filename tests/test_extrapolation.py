"""Whether a calculator notices what its model has never seen, says it once, and keeps it without repeating itself."""

import logging
import pickle

import numpy as np
import pytest
import torch
from ase import Atoms, units
from ase.build import molecule
from ase.db import connect
from ase.md.verlet import VelocityVerlet
from trust_for_tests import frames, trained

from physicsml_ase import PhysicsMLCalculator
from physicsml_ase.atoms import to_graph
from physicsml_ase.calculator.guard import LIMIT, ExtrapolationError
from physicsml_ase.calculator.record import Recorder
from physicsml_ase.checkpoint import load_potential, save_potential
from physicsml_ase.conventions import InputError
from physicsml_ase.evaluate import write_predictions
from physicsml_ase.trust.cloud import distances, fit_cloud, whitening
from physicsml_ase.trust.extrapolation import UNSEEN, Extrapolation


@pytest.fixture(scope="module")
def ckpt(tmp_path_factory):
    return trained(tmp_path_factory.mktemp("run") / "training").folder / "model.ckpt"


@pytest.fixture
def known(ckpt):
    return Extrapolation(load_potential(ckpt))


def scores(known, atoms):
    return known.scores(to_graph(atoms, 4.0), None)


def squeezed(factor: float) -> Atoms:
    """Water with one bond at `factor` times its length."""
    atoms = molecule("H2O")
    atoms.positions[1] = atoms.positions[0] + factor * (atoms.positions[1] - atoms.positions[0])
    return atoms


# --- the cloud


def test_whitening_gives_unit_variance_in_every_direction():
    x = torch.randn(20000, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    x = x @ torch.tensor(np.random.default_rng(0).normal(size=(5, 5))) * 7.0
    y = x @ whitening(x)
    assert torch.allclose(y.mT @ y / len(y), torch.eye(5, dtype=torch.float64), atol=0.01)


def test_whitening_of_features_that_never_vary_is_finite():
    x = torch.zeros(50, 4, dtype=torch.float64)
    x[:, 0] = torch.linspace(-1, 1, 50)
    assert torch.isfinite(whitening(x)).all()
    assert torch.isfinite(whitening(torch.zeros(3, 4, dtype=torch.float64))).all()


def test_the_rim_is_where_one_atom_in_a_thousand_is_beyond_also_of_atoms_not_fitted_to():
    generator = torch.Generator().manual_seed(1)
    numbers = torch.full((4000,), 6)
    x = torch.randn(4000, 8, generator=generator)
    wider = 1.5 * torch.randn(4000, 8, generator=generator)
    for held in (x, wider):
        cloud = fit_cloud(numbers, x, numbers, held, torch.zeros(8000), 1.0)
        beyond = distances(cloud, numbers, held) > cloud["rim"][0]
        assert 2 <= int(beyond.sum()) <= 6


def test_an_element_without_a_cloud_is_infinitely_far():
    numbers, x = torch.tensor([1, 1, 8, 8]), torch.randn(4, 2)
    cloud = fit_cloud(numbers, x, numbers[:0], x[:0], torch.zeros(4), 1.0)
    assert torch.isinf(distances(cloud, torch.tensor([6]), torch.zeros(1, 2))).all()


def test_the_training_data_are_inside_and_what_was_rattled_more_is_outside(known):
    inside = torch.cat([scores(known, atoms).worst for atoms in frames(40)])
    outside = torch.stack([scores(known, atoms).worst.max() for atoms in frames(40, seed=5, size=0.3)])
    assert (inside < LIMIT).all()
    assert (outside > LIMIT).float().mean() > 0.8


# --- distances, pairs and numbers of neighbours


def test_atoms_closer_than_ever(known):
    shortest = known.domain.shortest_distances["H-O"]
    atoms = squeezed(0.9 * shortest / 0.9686)
    found = scores(known, atoms)
    d = atoms.get_distance(0, 1)
    assert found.distance[0] == pytest.approx(1 + 10 * (shortest / d - 1), rel=1e-3)
    assert found.distance[1] == found.distance[0] > max(LIMIT, found.distance[2])
    words = known.in_words("distance", to_graph(atoms, 4.0), found)
    assert (
        words
        == f"atoms 0 (O) and 1 (H) are {d:.3g} Å apart, and in the training data never below {shortest:.3g} Å"
    )


def test_pairs_that_were_never_neighbours(known):
    atoms = Atoms("COO", [[0, 0, 0], [0, 0, 1.2], [0, 0, 3.0]])  # no training structure has two O
    found = scores(known, atoms)
    assert found.distance.tolist()[1:] == [UNSEEN, UNSEEN] != found.distance[0]
    assert "atoms 1 (O) and 2 (O) are neighbours" in known.in_words("distance", to_graph(atoms, 4.0), found)


def test_more_neighbours_than_ever(known):
    rng = np.random.default_rng(0)
    ring = Atoms(
        "OH12", np.vstack([np.zeros(3), 2.5 * np.eye(3).repeat(4, 0) + rng.normal(size=(12, 3)) * 0.8])
    )
    found = scores(known, ring)
    assert found.neighbors[0] > LIMIT
    few, many = known.domain.neighbor_counts["O"]
    assert (few, many) == (2, 5)  # in water and methanol
    assert f"in the training data {few} to {many}" in known.in_words("neighbors", to_graph(ring, 4.0), found)


# --- the calculator


def test_a_warning_of_each_kind_is_given_once(ckpt, caplog):
    calc = PhysicsMLCalculator(ckpt, backend="eager")
    with caplog.at_level(logging.WARNING, "physicsml_ase"):
        for atoms in frames(4):
            calc.calculate(atoms)
        assert not [record for record in caplog.records if record.levelno >= logging.WARNING]
        for factor in (0.7, 0.69, 0.68):
            calc.calculate(squeezed(factor))
    messages = [record.getMessage() for record in caplog.records]
    assert len(messages) == len(set(messages)) <= 4
    assert sum("Å apart" in message for message in messages) == 1


def warned(caplog) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]


@pytest.mark.parametrize("backend", ["eager", "auto"])
def test_many_structures_at_once_are_guarded(ckpt, caplog, backend):
    """Each by itself, whatever its place in a batch."""
    structures = [*frames(5), squeezed(0.7), *frames(2)]
    calc = PhysicsMLCalculator(ckpt, backend=backend)
    with caplog.at_level(logging.WARNING, "physicsml_ase"):
        calc.predict(frames(4), batch_size=3)
        assert not warned(caplog)
        calc.predict((atoms for atoms in structures), batch_size=3)
    messages = warned(caplog)
    assert messages
    assert all(message.startswith("extrapolation: structure 5: ") for message in messages)
    with pytest.raises(
        ExtrapolationError, match=r"structure 5: atoms 0 \(O\) and 1 \(H\) are 0\.\d+ Å apart"
    ):
        PhysicsMLCalculator(ckpt, backend=backend, on_extrapolation="raise").predict(structures)
    quiet = PhysicsMLCalculator(ckpt, backend=backend, on_extrapolation="ignore").predict(structures)
    assert len(quiet) == len(structures)


def test_of_many_structures_the_odd_ones_are_recorded(ckpt, tmp_path):
    """As they were, though the generator goes on with the same atoms."""
    atoms = squeezed(0.7)

    def changing():
        for factor in (1.0, 0.7, 0.6, 1.0):
            atoms.positions = squeezed(factor).positions
            yield atoms

    path = tmp_path / "odd.db"
    PhysicsMLCalculator(ckpt, on_extrapolation="record", record=path).predict(changing())
    rows = list(connect(path).select())
    assert [row.toatoms().get_distance(0, 1) for row in rows] == pytest.approx(
        [squeezed(f).get_distance(0, 1) for f in (0.7, 0.6)]
    )


def test_written_predictions_of_structures_unlike_the_training_data_are_warned_of(ckpt, tmp_path, caplog):
    potential = load_potential(ckpt)
    with caplog.at_level(logging.WARNING, "physicsml_ase"):
        write_predictions(potential, frames(4), tmp_path / "alike.xyz")
        assert not warned(caplog)
        write_predictions(potential, [*frames(4), squeezed(0.7), squeezed(0.6)], tmp_path / "unlike.xyz")
    (message,) = [record.getMessage() for record in caplog.records]
    assert message.startswith(
        "2 of 6 structures are unlike the training data, the first is structure 4: atoms 0"
    )


def test_raise_names_the_atoms_and_leaves_no_results(ckpt):
    calc = PhysicsMLCalculator(ckpt, on_extrapolation="raise")
    with pytest.raises(ExtrapolationError, match=r"atoms 0 \(O\) and 1 \(H\) are 0\.\d+ Å apart"):
        calc.calculate(squeezed(0.7))
    assert calc.results == {}
    calc.calculate(molecule("H2O"))
    assert np.isfinite(calc.results["energy"])


def test_a_slow_scan_is_noticed(ckpt):
    """In steps that are none of a jump, without an interval's end."""
    calc = PhysicsMLCalculator(ckpt, on_extrapolation="raise", backend="eager")
    atoms = molecule("H2O")
    along = atoms.positions[1] - atoms.positions[0]

    def scan():
        for _ in range(18):
            atoms.positions[1] -= 0.03 * along
            calc.calculate(atoms)

    with pytest.raises(ExtrapolationError, match="Å apart"):
        scan()


def test_structures_of_other_sizes_in_any_order(ckpt):
    calc = PhysicsMLCalculator(ckpt, backend="eager")
    water = molecule("H2O")
    for still in range(9):
        for _ in range(still):
            water.rattle(1e-3, seed=still)
            calc.calculate(water)
        calc.calculate(molecule("OH"))


def test_other_periodicity_is_another_structure(ckpt):
    calc = PhysicsMLCalculator(ckpt, on_extrapolation="raise", backend="eager")
    atoms = molecule("H2O", cell=[12, 12, 2.2])
    calc.calculate(atoms)
    atoms.pbc = [False, False, True]
    with pytest.raises(ExtrapolationError):
        calc.calculate(atoms)


def test_ignore_says_nothing(ckpt, caplog):
    PhysicsMLCalculator(ckpt, on_extrapolation="ignore").calculate(squeezed(0.7))
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]


def test_scores_do_not_depend_on_what_was_calculated_before(ckpt):
    calc, other = PhysicsMLCalculator(ckpt), PhysicsMLCalculator(ckpt, on_extrapolation="ignore", skin=0)
    for atoms in (*frames(3, seed=7), squeezed(0.8), frames(1)[0]):
        atoms.calc = calc
        atoms.get_forces()
        assert "extrapolation" not in calc.results  # nobody asked
        asked = calc.results["extrapolation"]
        assert asked.shape == (len(atoms),)
        other.calculate(atoms)
        np.testing.assert_allclose(other.get_property("extrapolation", atoms), asked, rtol=1e-4)
    assert calc.results["extrapolation"] is calc.results["extrapolation"]
    with pytest.raises(KeyError):
        calc.results["nothing"]


@pytest.mark.parametrize("steps", [1, 3])
def test_scores_are_those_of_what_was_calculated_whatever_becomes_of_the_results(ckpt, steps):
    found = []
    for changed in (False, True):
        atoms, calc = frames(1)[0], PhysicsMLCalculator(ckpt, on_extrapolation="ignore")
        atoms.calc = calc
        for _ in range(steps):
            atoms.positions[0] += 0.01
            atoms.get_forces()
        if changed:
            for name in ("energies", "forces"):
                calc.results[name] += 100.0
        found.append(calc.results["extrapolation"])
    np.testing.assert_array_equal(*found)


def test_a_copy_of_the_calculator_guards_as_well(ckpt):
    calc = pickle.loads(pickle.dumps(PhysicsMLCalculator(ckpt, on_extrapolation="raise")))
    with pytest.raises(ExtrapolationError):
        calc.calculate(squeezed(0.7))


def test_in_dynamics_an_excursion_is_found_though_few_steps_are_checked(ckpt, monkeypatch):
    checks = []
    whole = Extrapolation.scores
    monkeypatch.setattr(Extrapolation, "scores", lambda *a, **k: checks.append(1) or whole(*a, **k))
    calc = PhysicsMLCalculator(ckpt, on_extrapolation="ignore")
    calc = PhysicsMLCalculator(ckpt, extrapolation_interval=20)
    atoms = molecule("H2O")
    atoms.calc = calc
    dynamics = VelocityVerlet(atoms, 0.2 * units.fs)
    dynamics.run(60)
    assert 3 <= len(checks) <= 5
    checks.clear()
    for factor in np.linspace(1.0, 0.6, 15):  # between two checks
        atoms.positions[1] = squeezed(factor).positions[1] - squeezed(1).positions[0] + atoms.positions[0]
        atoms.get_forces()
    assert len(checks) == 1  # by the atoms' energies
    checks.clear()
    atoms.positions[1] = squeezed(1.4).positions[1]  # a jump
    atoms.get_forces()
    assert len(checks) == 1


# --- what is recorded


def test_an_excursion_is_recorded_and_not_every_step(ckpt, tmp_path):
    path = tmp_path / "out.db"
    calc = PhysicsMLCalculator(ckpt, on_extrapolation="record", record=path, extrapolation_interval=1)
    for factor in np.linspace(1.0, 0.72, 57):
        calc.calculate(squeezed(factor))
    calc.calculate(squeezed(0.72))
    rows = list(connect(path).select())
    assert 2 <= len(rows) <= 15
    assert all(row.extrapolation > LIMIT and row.why for row in rows)
    assert not any(hasattr(row, "energy") or hasattr(row, "forces") for row in rows)  # no labels of our own
    assert rows[0].data["scores"].shape == (3,)
    again = PhysicsMLCalculator(ckpt, on_extrapolation="record", record=path)
    again.calculate(rows[0].toatoms())
    assert len(connect(path)) == len(rows)


def test_labels_of_the_structure_given_are_not_recorded(ckpt, tmp_path):
    """They may be of where its atoms were; a folder that is not there is made before it is needed."""
    path = tmp_path / "new" / "out.db"
    calc = PhysicsMLCalculator(ckpt, on_extrapolation="record", record=path, extrapolation_interval=1)
    assert path.parent.is_dir()
    atoms = squeezed(0.72)
    atoms.info |= {"REF_energy": -5.0, "note": "kept"}
    calc.calculate(atoms)
    (row,) = connect(path).select()
    assert row.data["info"] == {"note": "kept"}
    assert atoms.info["REF_energy"] == -5.0


def test_a_database_that_can_not_be_written_is_one_line(tmp_path):
    with pytest.raises(InputError, match=r"must end in \.db"):
        Recorder(tmp_path / "out.xyz")
    (tmp_path / "out.db").write_text("not a database")
    with pytest.raises(InputError, match="could not be recorded"):
        Recorder(tmp_path / "out.db").offer(molecule("H2O"), np.array([2.0]), ["distance"], True)


# --- checkpoints


def test_what_is_known_survives_saving_and_is_of_no_use_to_other_weights(ckpt, tmp_path):
    potential = load_potential(ckpt)
    save_potential(potential, tmp_path / "again.ckpt")
    again = load_potential(tmp_path / "again.ckpt")
    for part, of in potential.trust.items():
        assert all(torch.equal(value, again.trust[part][name]) for name, value in of.items())
    assert load_potential(ckpt, dtype="float64").trust["cloud"]["mean"].dtype == torch.float32


def test_a_checkpoint_without_it_still_loads_and_is_guarded_by_distances(ckpt, tmp_path, caplog):
    contents = torch.load(ckpt, weights_only=True)
    del contents["trust"]
    torch.save(contents, tmp_path / "old.ckpt")
    with caplog.at_level(logging.INFO, "physicsml_ase"):
        calc = PhysicsMLCalculator(tmp_path / "old.ckpt", on_extrapolation="raise")
    assert sum("no measure of its training data" in record.getMessage() for record in caplog.records) == 1
    calc.calculate(molecule("H2O"))
    with pytest.raises(ExtrapolationError, match="apart"):
        calc.calculate(squeezed(0.7))


@pytest.mark.parametrize("trust", [[1, 2], {"cloud": 3}, {"cloud": {"mean": "x"}}])
def test_a_checkpoint_in_which_it_is_damaged(ckpt, tmp_path, trust):
    contents = torch.load(ckpt, weights_only=True) | {"trust": trust}
    torch.save(contents, tmp_path / "bad.ckpt")
    with pytest.raises(InputError, match="damaged"):
        PhysicsMLCalculator(tmp_path / "bad.ckpt")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"on_extrapolation": "explode"}, "on_extrapolation 'explode'"),
        ({"extrapolation_interval": 0}, "extrapolation_interval is 0"),
        ({"on_extrapolation": "record", "record": "x.xyz"}, "must end in .db"),
    ],
)
def test_wrong_settings(ckpt, settings, message):
    with pytest.raises(InputError, match=message):
        PhysicsMLCalculator(ckpt, **settings)


def test_a_scan_of_the_cell_is_no_dynamics(ckpt, monkeypatch):
    checks = []
    whole = Extrapolation.scores
    monkeypatch.setattr(Extrapolation, "scores", lambda *a, **k: checks.append(1) or whole(*a, **k))
    calc = PhysicsMLCalculator(ckpt)
    for a in (3.0, 3.2, 3.4):
        calc.calculate(Atoms("O", cell=[a] * 3, pbc=True))
    assert len(checks) == 3
