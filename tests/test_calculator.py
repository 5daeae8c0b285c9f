"""What the calculator promises by itself; that ASE's tools run on it is in test_calculator_ase.py."""

import copy
import pickle
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import conftest
import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import bulk, molecule
from ase.calculators.calculator import PropertyNotImplementedError
from ase.calculators.fd import calculate_numerical_forces, calculate_numerical_stress
from ase.constraints import FixAtoms
from conftest import rattled, structures

import physicsml_ase.models  # noqa: F401  registers the architectures
from physicsml_ase.atoms import EDGES_PER_BATCH, to_graph
from physicsml_ase.calculator import PhysicsMLCalculator, choose_device
from physicsml_ase.checkpoint import save_potential
from physicsml_ase.config import MODELS, validate
from physicsml_ase.conventions import PROPERTIES, InputError, Label
from physicsml_ase.domain import Domain
from physicsml_ase.potential import Potential

DOMAIN = replace(conftest.DOMAIN, energy_scale=1.0)
KNOWN = ("energy", "forces", "stress", "dipole", "charges", "magmoms", "magmom")
LABELS = (
    *(Label(name, PROPERTIES[name].level, PROPERTIES[name].shape, name) for name in KNOWN),
    Label("gap", "structure", (), "gap"),
    Label("efg", "atom", (3, 3), "efg"),
)


def make(domain: Domain = DOMAIN, labels: tuple[Label, ...] = LABELS) -> Potential:
    """A small potential with random weights that nobody trains."""
    torch.manual_seed(1)
    config = validate(MODELS["painn"].config, {"name": "painn", "channels": 8, "layers": 2, "num_radial": 6})
    return Potential(config, domain, labels).double().eval().requires_grad_(False)


@pytest.fixture
def calc() -> PhysicsMLCalculator:
    return PhysicsMLCalculator(make())


def same(a: dict, b: dict, tolerance: float = 1e-9) -> None:
    assert a.keys() == b.keys()
    for name in a:
        np.testing.assert_allclose(a[name], b[name], rtol=tolerance, atol=tolerance, err_msg=name)


@pytest.mark.parametrize("kind", structures())
def test_results_are_in_ase_s_shapes(calc, kind):
    atoms = structures()[kind]
    atoms.calc = calc
    n, results = len(atoms), (atoms.get_potential_energy(), calc.results)[1]
    shapes = {
        "energy": (),
        "free_energy": (),
        "energies": (n,),
        "forces": (n, 3),
        "dipole": (3,),
        "charges": (n,),
        "magmoms": (n,),
        "magmom": (),
        "gap": (),
        "efg": (n, 3, 3),
    }
    if atoms.cell.rank == 3:
        shapes["stress"] = (6,)
    assert {name: np.shape(value) for name, value in results.items()} == shapes
    assert set(results) <= set(calc.implemented_properties)
    for name, value in results.items():
        assert type(value) is (np.ndarray if shapes[name] else float), name
        assert np.asarray(value).dtype == np.float64, name
    assert results["energies"].sum() == pytest.approx(results["energy"], rel=1e-12)
    assert atoms.get_potential_energies() is not None
    assert atoms.get_potential_energy(force_consistent=True) == results["energy"]
    assert atoms.get_dipole_moment().shape == (3,)
    assert atoms.get_charges().shape == atoms.get_magnetic_moments().shape == (n,)
    assert isinstance(atoms.get_magnetic_moment(), float)
    assert calc.get_property("gap", atoms) == results["gap"]


@pytest.mark.parametrize("kind", ["molecule", "slab", "wire", "left_handed", "tiny"])
def test_forces_are_the_numerical_ones(calc, kind):
    atoms = structures()[kind]
    atoms.calc = calc
    numerical = calculate_numerical_forces(atoms, eps=1e-4, iatoms=range(2))
    np.testing.assert_allclose(atoms.get_forces()[:2], numerical, atol=1e-7)


@pytest.mark.parametrize("kind", ["triclinic", "left_handed", "tiny", "unwrapped"])
def test_stress_is_the_numerical_one(calc, kind):
    atoms = structures()[kind]
    atoms.calc = calc
    np.testing.assert_allclose(atoms.get_stress(), calculate_numerical_stress(atoms, eps=1e-5), atol=1e-9)


@pytest.mark.parametrize("kind", ["molecule", "slab_without_c", "lone_atom"])
def test_no_stress_without_a_full_cell(calc, kind):
    atoms = structures()[kind]
    atoms.calc = calc
    with pytest.raises(PropertyNotImplementedError, match="stress"):
        atoms.get_stress()
    assert np.isfinite(atoms.get_forces()).all()


def test_known_properties_can_be_exported(calc):
    atoms = structures()["crystal"]
    atoms.calc = calc
    exported = atoms.get_properties(["energy", "forces", "stress"])
    assert exported["energy"] == calc.results["energy"]
    assert "gap" not in exported


def test_a_model_without_energy():
    calc = PhysicsMLCalculator(make(labels=(Label("dipole", "structure", (3,), "dipole"),)))
    atoms = structures()["molecule"]
    atoms.calc = calc
    assert calc.implemented_properties == ["dipole"]
    assert atoms.get_dipole_moment().shape == (3,)
    with pytest.raises(PropertyNotImplementedError):
        atoms.get_potential_energy()


def test_a_free_energy_that_was_learned_is_kept():
    labels = tuple(Label(name, "structure", (), name) for name in ("energy", "free_energy"))
    potential = make(labels=labels)
    calc = PhysicsMLCalculator(potential)
    assert calc.implemented_properties.count("free_energy") == 1
    atoms = structures()["molecule"]
    atoms.calc = calc
    learned = potential(to_graph(atoms, DOMAIN.cutoff))["free_energy"].item()
    assert learned != atoms.get_potential_energy()
    assert atoms.get_potential_energy(force_consistent=True) == pytest.approx(learned, rel=1e-12)


def test_edge_labels_are_matrices_over_pairs():
    calc = PhysicsMLCalculator(make(labels=(LABELS[0], Label("bond", "edge", (), "bond"))))
    molecule_, crystal = structures()["molecule"], structures()["tiny"]
    matrix = calc.get_property("bond", molecule_)
    assert (np.isfinite(matrix) == (molecule_.get_all_distances() < 4.0) & ~np.eye(9, dtype=bool)).all()
    with pytest.raises(PropertyNotImplementedError):  # a pair has many images
        calc.get_property("bond", crystal)


# --- what is kept, and when it is not


def test_results_are_kept_until_the_atoms_change(calc, monkeypatch):
    calls = []
    forward = type(calc.potential).forward
    monkeypatch.setattr(type(calc.potential), "forward", lambda *a, **k: calls.append(1) or forward(*a, **k))
    atoms = structures()["crystal"]
    atoms.calc = calc

    def evaluations() -> int:
        calls.clear()
        atoms.get_forces(), atoms.get_potential_energy(), atoms.get_stress(), atoms.get_charges()
        return len(calls)

    assert evaluations() == 1
    assert evaluations() == 0
    atoms.positions[0, 0] += 1e-9
    assert evaluations() == 1
    atoms.set_cell(atoms.cell * 1.001)
    assert evaluations() == 1
    atoms.pbc = (True, True, False)
    assert evaluations() == 1
    atoms.numbers[0] = 79 if atoms.numbers[0] == 29 else 29
    assert evaluations() == 1
    atoms.append("Cu")
    atoms.positions[-1] = (1.0, 1.1, 1.2)
    assert evaluations() == 1
    del atoms[0]
    assert evaluations() == 1
    atoms.set_initial_charges(np.ones(len(atoms)))  # no model sees them
    assert evaluations() == 0
    assert "positions" in calc.check_state(Atoms("H"))


def test_every_step_equals_a_new_calculator():
    calc = PhysicsMLCalculator(make(), skin=1.0)
    rng = np.random.default_rng(0)
    for kind in ("crystal", "molecule", "slab", "crystal", "triclinic", "far_apart"):
        atoms = structures()[kind]
        atoms.calc = calc
        for step in range(6):
            atoms.positions += rng.normal(size=(len(atoms), 3)) * 0.05
            if step == 3:
                atoms.set_cell(atoms.cell @ (np.eye(3) + rng.normal(size=(3, 3)) * 0.01), scale_atoms=True)
            if step == 5:
                atoms.wrap()
            atoms.get_potential_energy()
            fresh = PhysicsMLCalculator(calc.potential, skin=0)
            fresh.calculate(atoms)
            same(calc.results, fresh.results)
    assert calc._inputs.moving.verlet.rebuilds < 20


def test_results_are_the_caller_s_own(calc):
    atoms = structures()["molecule"]
    atoms.calc = calc
    forces = atoms.get_forces()
    kept = forces.copy()
    forces[:] = 0
    np.testing.assert_array_equal(atoms.get_forces(), kept)


def test_a_failed_calculation_leaves_nothing_behind(calc):
    atoms = structures()["molecule"]
    atoms.calc = calc
    atoms.get_forces()
    atoms.numbers[0] = 54
    for _ in range(2):
        with pytest.raises(InputError):
            atoms.get_potential_energy()
    with pytest.raises(InputError):
        calc.calculate(atoms)
    assert calc.results == {}
    atoms.numbers[0] = 6
    assert np.isfinite(atoms.get_potential_energy())


def test_true_forces_under_constraints(calc):
    atoms = structures()["molecule"]
    atoms.calc = calc
    true = atoms.get_forces()
    atoms.set_constraint(FixAtoms([0, 1]))
    assert (atoms.get_forces()[:2] == 0).all()
    np.testing.assert_array_equal(atoms.get_forces(apply_constraint=False), true)


# --- many structures


@pytest.mark.parametrize("batch_size", [None, 1, 3, 100])
def test_predict_equals_singles(calc, batch_size, monkeypatch):
    monkeypatch.setitem(EDGES_PER_BATCH, "cpu", 300)
    frames = list(structures().values())
    predicted = calc.predict(frames, batch_size)
    assert len(predicted) == len(frames)
    for atoms, results in zip(frames, predicted):
        calc.calculate(atoms)
        same(results, calc.results)


def test_predict_keeps_the_cache(calc):
    atoms = structures()["molecule"]
    atoms.calc = calc
    energy = atoms.get_potential_energy()
    assert calc.predict(iter([structures()["crystal"]])) != []
    assert calc.predict([]) == []
    assert calc.check_state(atoms) == []
    assert calc.results["energy"] == energy


def test_predict_names_the_structure(calc):
    frames = [molecule("H2O"), Atoms("Xe"), molecule("H2O")]
    with pytest.raises(InputError, match=r"structure 1: element Xe \(atom 0\)"):
        calc.predict(frames)
    frames[1] = Atoms("HH", [[0, 0, 0], [0, 0, 0]])
    with pytest.raises(InputError, match="structure 1: atoms 0 and 1 coincide"):
        calc.predict(frames)
    with pytest.raises(InputError, match="batch_size is 0"):
        calc.predict(frames, batch_size=0)


# --- refusals


def test_unknown_element(calc):
    atoms = Atoms("CHOXe", np.arange(12.0).reshape(4, 3))
    atoms.calc = calc
    with pytest.raises(InputError, match=r"element Xe \(atom 3\) is not in the model \(Au, C, Cu, H, O\)"):
        atoms.get_potential_energy()


def test_no_atoms(calc):
    with pytest.raises(InputError, match="no atoms"):
        calc.calculate(Atoms())
    with pytest.raises(InputError, match="no atoms"):
        calc.calculate()


def test_coincident_atoms_and_bad_positions(calc):
    atoms = structures()["molecule"]
    atoms.calc = calc
    atoms.get_forces()
    atoms.positions[1] = atoms.positions[2]
    with pytest.raises(InputError, match="atoms 1 and 2 coincide"):
        atoms.get_forces()
    atoms.positions[1] = np.nan
    with pytest.raises(InputError, match="position of atom 1 is not finite"):
        atoms.get_forces()


def test_never_nan():
    potential = make()
    next(potential.energy_head.parameters()).fill_(np.nan)
    calc = PhysicsMLCalculator(potential)
    with pytest.raises(InputError, match=r"^forces of atom 0 came out as not finite"):
        calc.calculate(structures()["molecule"])
    with pytest.raises(InputError, match="structure 0: forces of atom 0 came"):
        calc.predict([structures()["molecule"]])


def test_checkpoints_that_are_none(tmp_path):
    (tmp_path / "text.ckpt").write_text("not a checkpoint")
    for path in (tmp_path / "none.ckpt", tmp_path / "text.ckpt", tmp_path):
        with pytest.raises(InputError) as error:
            PhysicsMLCalculator(path)
        assert str(path) in str(error.value)
        assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"dtype": "float16"}, "dtype 'float16' is not known: use float32 or float64"),
        ({"dtype": torch.int64}, "dtype 'torch.int64' is not known"),
        ({"device": "toaster"}, "device 'toaster' can not be used"),
        ({"device": "cuda:99"}, "device 'cuda:99' can not be used"),
        ({"skin": -1.0}, "skin is -1.0"),
        ({"skin": np.nan}, "skin is nan"),
    ],
)
def test_bad_settings(settings, message):
    with pytest.raises(InputError, match=message):
        PhysicsMLCalculator(make(), **settings)


# --- devices, number types, checkpoints, processes, threads


def test_from_a_file(tmp_path, calc):
    save_potential(calc.potential, tmp_path / "model.ckpt")
    atoms = structures()["crystal"]
    calc.calculate(atoms)
    for path in (tmp_path / "model.ckpt", str(tmp_path / "model.ckpt")):
        loaded = PhysicsMLCalculator(path, device="cpu")
        assert loaded.potential.dtype == torch.float64
        loaded.calculate(atoms)
        same(loaded.results, calc.results)
    single = PhysicsMLCalculator(tmp_path / "model.ckpt", dtype="float32")
    assert single.potential.dtype == torch.float32
    single.calculate(atoms)
    same(single.results, calc.results, 1e-4)
    assert single.results["energy"] != float(np.float32(single.results["energy"]))  # summed in float64


def test_a_potential_in_training_is_not_touched():
    potential = make().train().requires_grad_(True)
    calc = PhysicsMLCalculator(potential, dtype=torch.float32)
    calc.calculate(structures()["molecule"])
    assert potential.training
    assert potential.dtype == torch.float64
    assert all(w.requires_grad for w in potential.parameters())
    shared = make()
    for _ in range(2):
        assert PhysicsMLCalculator(shared, device="cpu").potential is shared


def test_no_global_state():
    before = torch.get_default_dtype(), torch.get_num_threads(), torch.is_grad_enabled()
    calc = PhysicsMLCalculator(make())
    with torch.inference_mode():
        calc.calculate(structures()["crystal"])
    with torch.no_grad():
        calc.predict([structures()["crystal"]])
    assert (torch.get_default_dtype(), torch.get_num_threads(), torch.is_grad_enabled()) == before


def test_copies_are_independent(calc):
    atoms = structures()["crystal"]
    atoms.calc = calc
    energy = atoms.get_potential_energy()
    for twin in (pickle.loads(pickle.dumps(calc)), copy.deepcopy(calc), copy.copy(calc)):
        assert twin.check_state(atoms) == []
        assert twin.results["energy"] == energy
        twin.calculate(structures()["molecule"])
        assert calc.results["energy"] == energy
        twin.calculate(atoms)
        same(twin.results, calc.results)


def test_in_another_process(tmp_path, calc):
    calc.calculate(structures()["crystal"])
    (tmp_path / "calc.pickle").write_bytes(pickle.dumps((calc, structures()["crystal"])))
    code = (
        "import pickle, sys; calc, atoms = pickle.load(open(sys.argv[1], 'rb')); calc.reset(); atoms.calc = calc;"
        "print(repr(float(atoms.get_potential_energy())), 'lightning' in sys.modules, 'h5py' in sys.modules)"
    )
    out = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "calc.pickle")],
        capture_output=True,
        text=True,
        check=True,
    )
    energy, *heavy = out.stdout.split()
    assert float(energy) == pytest.approx(calc.results["energy"], rel=1e-12)
    assert heavy == ["False", "False"]


def test_in_threads():
    potential = make()
    frames = [rattled(atoms, 0.02, seed) for seed in range(5) for atoms in structures().values()]
    calc = PhysicsMLCalculator(potential)
    serial = calc.predict(frames, batch_size=1)

    def work(k: int) -> list[dict]:
        own, results = PhysicsMLCalculator(potential), []
        for atoms in frames:
            own.calculate(atoms)
            results.append(own.results)
        return results if k % 2 else calc.predict(frames)

    with ThreadPoolExecutor(4) as pool:
        for results in pool.map(work, range(4)):
            for a, b in zip(results, serial, strict=True):
                same(a, b)


def test_device_auto():
    assert choose_device().type == ("cuda" if torch.cuda.is_available() else "cpu")
    assert choose_device("cpu") == choose_device(torch.device("cpu"))


# --- what the model was told about its data


def test_attributes_are_read_from_info():
    domain = replace(DOMAIN, attrs=("charge", "field"), attr_shifts=(0.0,) * 4, attr_scales=(1.0,) * 4)
    calc = PhysicsMLCalculator(make(domain))
    atoms = structures()["molecule"]
    atoms.calc = calc
    with pytest.raises(InputError, match=r"no 'charge' in Atoms\.info"):
        atoms.get_potential_energy()
    atoms.info |= {"charge": 0, "field": np.zeros(3)}
    energies = [atoms.get_potential_energy()]
    atoms.info["charge"] = 1
    energies.append(atoms.get_potential_energy())
    atoms.info["field"][0] = 0.5  # in place
    energies.append(atoms.get_potential_energy())
    assert len(set(energies)) == 3
    assert calc.predict([atoms])[0]["energy"] == pytest.approx(energies[-1])
    atoms.info["field"] = 0.5  # would be broadcast
    for compute in (atoms.get_potential_energy, lambda: calc.predict([atoms])):
        with pytest.raises(InputError, match="are 4 numbers in the training data, but 2 here"):
            compute()


def test_cell_and_pbc_of_the_training_data_override():
    crystal = bulk("Cu", cubic=True)
    domain = replace(DOMAIN, pbc=(True, True, True), cell=tuple(map(tuple, crystal.cell.tolist())))
    calc, plain = PhysicsMLCalculator(make(domain)), PhysicsMLCalculator(make())
    cluster = Atoms(crystal.numbers, crystal.positions)
    calc.calculate(cluster)
    plain.calculate(crystal)
    same(calc.results, plain.results)
    same(calc.predict([cluster])[0], plain.results)


def test_self_interaction():
    calc = PhysicsMLCalculator(make(replace(DOMAIN, self_interaction=True)))
    atoms = structures()["molecule"]
    atoms.calc = calc
    numerical = calculate_numerical_forces(atoms, eps=1e-4, iatoms=[0])
    np.testing.assert_allclose(atoms.get_forces()[:1], numerical, atol=1e-7)
    same(calc.predict([atoms])[0], calc.results)


def test_its_atoms_are_those_that_were_calculated(calc):
    first, kept = structures()["crystal"], []
    first.calc = calc
    first.get_potential_energy()
    other = first.copy()
    other.calc = calc
    other.set_tags(2)
    other.info["note"] = "other"
    for seed in range(3):
        other.rattle(0.05, seed=seed)
        other.get_forces()
        kept.append((calc.atoms, other.positions.copy()))
    assert calc.atoms is calc.get_atoms() or calc.atoms == calc.get_atoms()
    assert calc.atoms.get_tags()[0] == 2
    assert calc.atoms.info["note"] == "other"
    for shown, positions in kept:
        np.testing.assert_array_equal(shown.positions, positions)
    other.positions += 1.0  # not calculated yet
    np.testing.assert_array_equal(calc.atoms.positions, kept[-1][1])


def test_results_that_were_taken_away_are_computed_again(calc):
    atoms = structures()["crystal"]
    atoms.calc = calc
    energy = atoms.get_potential_energy()
    calc.results.clear()
    assert atoms.get_potential_energy() == energy
    calc.results.pop("forces")
    assert atoms.get_forces().shape == (len(atoms), 3)


def test_one_structure_can_be_predicted(calc):
    atoms = structures()["crystal"]
    (alone,) = calc.predict(atoms)
    (listed,) = calc.predict([atoms])
    assert alone["energy"] == listed["energy"]


@pytest.mark.parametrize("number", [-1, 0, 119, 500])
def test_numbers_of_no_element(calc, number):
    atoms = structures()["molecule"]
    atoms.numbers[1] = number
    with pytest.raises(InputError, match=rf"atomic number {number} \(atom 1\) is of no element"):
        calc.get_potential_energy(atoms)
    with pytest.raises(InputError, match=r"structure 0: atomic number"):
        calc.predict([atoms])
