"""Steps that go straight from positions to results are those of a new calculator, and end where they must."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import bulk, molecule
from ase.calculators.calculator import PropertyNotImplementedError
from conftest import rattled
from kernels_for_tests import cache, mixed  # noqa: F401  cache is a fixture

from physicsml_ase import PhysicsMLCalculator
from physicsml_ase.atoms import to_graph
from physicsml_ase.backends import build
from physicsml_ase.backends.edges import SkinList
from physicsml_ase.conventions import InputError
from physicsml_ase.domain import Domain
from physicsml_ase.models.gaunt_ace import GauntACEConfig
from physicsml_ase.neighbors import neighbor_list
from physicsml_ase.potential import Potential

CUTOFF, ELEMENTS = 4.0, (1, 6, 8, 14)
pytestmark = pytest.mark.skipif(build.compiler() is None, reason="there is no C++ compiler")

CRYSTAL = rattled(bulk("Si", cubic=True))
ETHANOL = rattled(molecule("CH3CH2OH"))
SLAB = Atoms(CRYSTAL, pbc=(True, True, False))
TRICLINIC = mixed(Atoms(CRYSTAL), (6, 14))
TRICLINIC.set_cell(TRICLINIC.cell.array @ (np.eye(3) + 0.2 * np.tri(3, k=-1)), scale_atoms=True)
STRUCTURES = {"crystal": CRYSTAL, "molecule": ETHANOL, "slab": SLAB, "triclinic": TRICLINIC}


def make(wall: bool = False, **domain: object) -> Potential:
    """A potential with random weights."""
    torch.manual_seed(2)
    config = GauntACEConfig(channels=16, max_ell=2, hidden=12, num_radial=6)
    distances = {"H-H": 1.4, "C-H": 1.0} if wall else {}
    known = Domain(
        cutoff=CUTOFF,
        elements=ELEMENTS,
        atomic_energies=dict.fromkeys(ELEMENTS, -3.0),
        energy_scale=0.7,
        avg_num_neighbors=15.0,
        shortest_distances=distances,
        short_range="zbl" if wall else "none",
        **domain,  # type: ignore[arg-type]
    )
    return Potential(config, known, ()).requires_grad_(False).eval()


@pytest.fixture
def anew(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Numbers of atoms of the structures that were calculated by way of a graph."""
    seen: list[int] = []
    whole = PhysicsMLCalculator._from_anew

    def counted(self: PhysicsMLCalculator, atoms: Atoms) -> object:
        seen.append(len(atoms))
        return whole(self, atoms)

    monkeypatch.setattr(PhysicsMLCalculator, "_from_anew", counted)
    return seen


def calculator(potential: Potential, skin: float = 1.0) -> PhysicsMLCalculator:
    return PhysicsMLCalculator(potential, skin=skin, backend="kernel", on_extrapolation="ignore")


def equals_fresh(calc: PhysicsMLCalculator, atoms: Atoms, potential: Potential) -> None:
    """Results are those of plain PyTorch, to float32's rounding."""
    atoms.calc = calc
    atoms.get_forces()
    fresh = PhysicsMLCalculator(potential, backend="eager", skin=0.0, on_extrapolation="ignore")
    fresh.calculate(atoms)
    assert calc.results.keys() == fresh.results.keys()
    for name, value in fresh.results.items():
        size = 1e-5 * (np.abs(value).max() + 1)
        np.testing.assert_allclose(calc.results[name], value, rtol=0, atol=size, err_msg=name)
        assert type(calc.results[name]) is type(value), name


@pytest.mark.parametrize("kind", STRUCTURES)
def test_every_step_is_that_of_a_new_calculator(kind: str, anew: list[int]) -> None:
    atoms, potential, rng = STRUCTURES[kind].copy(), make(), np.random.default_rng(5)
    calc = calculator(potential)
    for _ in range(40):
        atoms.positions += 0.07 * rng.standard_normal((len(atoms), 3)) + [0.2, -0.1, 0.3]
        equals_fresh(calc, atoms, potential)
    own = len(anew) - 40  # the others are of the new ones
    assert own == 1 if kind == "molecule" else 1 < own < 30


def test_large_reference_energies_cost_no_digits() -> None:
    potential, atoms = make(), CRYSTAL.copy()
    potential.references.table[14] = -7881.25
    calc = calculator(potential)
    for k in range(3):
        atoms.positions[k] += 0.01
        atoms.calc = calc
        atoms.get_potential_energy()
        learned = potential(to_graph(atoms, CUTOFF))["energies"].numpy()
        assert calc.results["energies"].dtype == np.float64
        np.testing.assert_allclose(calc.results["energies"], learned, rtol=0, atol=2e-5)


def changes() -> dict[str, Callable[[Atoms], None]]:
    def cell(atoms: Atoms) -> None:
        atoms.set_cell(atoms.cell.array * 1.01, scale_atoms=True)

    def cell_alone(atoms: Atoms) -> None:
        atoms.set_cell(atoms.cell.array * 1.01)

    def pbc(atoms: Atoms) -> None:
        atoms.pbc = (True, False, True)

    def numbers(atoms: Atoms) -> None:
        atoms.numbers[2] = 6

    def one_less(atoms: Atoms) -> None:
        del atoms[3]

    def wrapped(atoms: Atoms) -> None:
        atoms.positions[1] += atoms.cell.array[0] - atoms.cell.array[2]

    def far(atoms: Atoms) -> None:
        atoms.positions[1] += 0.7

    return {f.__name__: f for f in (cell, cell_alone, pbc, numbers, one_less, wrapped, far)}


@pytest.mark.parametrize("change", changes())
def test_whatever_else_changes_is_seen(change: str, anew: list[int]) -> None:
    atoms, potential = CRYSTAL.copy(), make()
    calc = calculator(potential)
    for k in range(3):
        atoms.positions[k] += 0.01
        equals_fresh(calc, atoms, potential)
    before = len(anew)
    changes()[change](atoms)
    equals_fresh(calc, atoms, potential)
    assert len(anew) == before + 2
    for k in range(2):
        atoms.positions[k] -= 0.01
        equals_fresh(calc, atoms, potential)
    assert len(anew) == before + 4  # of which two are of the new ones


def test_the_list_of_another_cell_is_followed_too(anew: list[int]) -> None:
    """As far as its skin, which is not what it was, allows."""
    potential, rng = make(), np.random.default_rng(0)
    turn = np.array([[0.8, 0.6, 0], [-0.6, 0.8, 0], [0, 0, 1.0]])
    followed = []
    for change in (np.eye(3) * 1.04, np.eye(3) * 0.9, turn, np.eye(3) + 0.05 * np.tri(3, k=-1)):
        atoms, calc = CRYSTAL.copy(), calculator(potential)
        equals_fresh(calc, atoms, potential)
        atoms.set_cell(CRYSTAL.cell.array @ change, scale_atoms=True)
        before = len(anew)
        for _ in range(12):
            atoms.positions += 0.1 * rng.standard_normal((len(atoms), 3))
            equals_fresh(calc, atoms, potential)
        followed.append(24 - (len(anew) - before))
    assert 5 < min(followed) <= max(followed) < 12


@pytest.mark.parametrize("kind", ["crystal", "molecule"])
def test_bad_positions_are_refused_as_ever(kind: str) -> None:
    def step(change: Callable[[Atoms], None]) -> None:
        atoms = STRUCTURES[kind].copy()
        atoms.calc = calculator(make())
        for k in range(3):
            atoms.positions[k] += 0.01
            atoms.get_forces()
        change(atoms)
        atoms.get_forces()

    def nan(atoms: Atoms) -> None:
        atoms.positions[1, 2] = np.nan

    def coincide(atoms: Atoms) -> None:
        atoms.positions[1] = atoms.positions[0]

    def leave(atoms: Atoms) -> None:
        atoms.positions += 1e9

    for change, why in ((nan, "atom 1 is not finite"), (coincide, "coincide"), (leave, "too far")):
        with pytest.raises(InputError, match=why):
            step(change)


def test_damaged_weights_are_no_result() -> None:
    potential, atoms = make(), CRYSTAL.copy()
    atoms.calc = calculator(potential)
    for k in range(2):
        atoms.positions[k] += 0.01
        atoms.get_forces()
    atoms.calc._engine._backend.kernel._keep[3][:] = np.nan
    atoms.positions[0] += 0.01
    with pytest.raises(InputError, match="came out as not finite"):
        atoms.get_forces()


def test_the_wall_is_the_potential_s(anew: list[int]) -> None:
    potential = make(wall=True)
    assert potential.wall is not None
    atoms = Atoms("HHC", [[0, 0, 0], [0, 0, 2.0], [0, 2.0, 0]])
    calc = calculator(potential)
    for height in (2.0, 1.9, 1.8, 1.7, 1.2, 1.0, 0.9, 1.8, 1.9):
        atoms.positions[1, 2] = height
        equals_fresh(calc, atoms, potential)
        assert calc._engine.close == (height < 1.25)
    assert 9 < len(anew) < 18


def test_results_are_the_caller_s_own() -> None:
    atoms, calc = CRYSTAL.copy(), calculator(make())
    atoms.calc = calc
    kept = []
    for k in range(6):
        atoms.positions[k] += 0.02
        atoms.get_forces()
        kept.append((calc.results, {name: np.array(value) for name, value in calc.results.items()}))
    for results, copies in kept:
        for name, value in copies.items():
            np.testing.assert_array_equal(results[name], value)


def test_no_stress_of_a_molecule() -> None:
    atoms = ETHANOL.copy()
    atoms.calc = calculator(make())
    for k in range(3):
        atoms.positions[k] += 0.01
        atoms.get_forces()
    with pytest.raises(PropertyNotImplementedError, match="stress"):
        atoms.get_stress()


def test_the_cell_of_the_training_data_is_followed(anew: list[int]) -> None:
    cell = tuple(map(tuple, CRYSTAL.cell.array.tolist()))
    potential = make(cell=cell, pbc=(True, True, True))
    atoms = Atoms(CRYSTAL.symbols, CRYSTAL.positions)
    calc = calculator(potential)
    for k in range(5):
        atoms.positions[k] += 0.01
        equals_fresh(calc, atoms, potential)
    assert len(anew) == 5 + 1


def test_the_whole_skin_is_used_and_no_more() -> None:
    atoms, room = CRYSTAL.copy(), 0.8
    positions, cell = atoms.positions, atoms.cell.array
    neighbors = neighbor_list(positions, cell, atoms.pbc, CUTOFF + room)
    edges = SkinList(neighbors, np.zeros(len(atoms), np.int32))
    edges.within(positions, cell, CUTOFF)
    direction = np.random.default_rng(0).normal(size=positions.shape)
    direction -= direction.mean(0)
    direction /= np.linalg.norm(direction, axis=1).max()
    for distance, good in ((0.0, True), (0.2, True), (0.399, True), (0.401, False), (5.0, False)):
        x = positions + distance * direction + distance * 100
        found = edges.follow(x, positions, room)
        assert (found is not None) == good
        if found is not None:
            again = edges.within(x, cell, CUTOFF)
            fresh = neighbor_list(x, cell, atoms.pbc, CUTOFF)
            assert len(found.neighbor) == len(again.neighbor) == len(fresh.reverse)
    for bad in (np.nan, np.inf, 1e8):
        x = positions.copy()
        x[3, 1] = bad
        assert edges.follow(x, positions, np.inf) is None
