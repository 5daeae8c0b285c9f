"""The C++ kernel says what eager says in float64, to float32's round-off, for every kind of model and structure."""

import copy
import multiprocessing
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import bulk, fcc111, molecule
from conftest import rattled
from kernels_for_tests import cache, mixed  # noqa: F401  cache is a fixture

from physicsml_ase.atoms import to_graph
from physicsml_ase.backends import build
from physicsml_ase.backends.kernel import Edges, Kernel, Output, SkinList, kernel_reason
from physicsml_ase.backends.native import MANY_ATOMS, OnKernel
from physicsml_ase.domain import Domain
from physicsml_ase.models.gaunt_ace import GauntACEConfig
from physicsml_ase.neighbors import neighbor_list
from physicsml_ase.potential import Potential

CUTOFF = 4.0
pytestmark = pytest.mark.skipif(build.compiler() is None, reason="there is no C++ compiler")


def sheared(atoms: Atoms) -> Atoms:
    """A copy in a cell without right angles."""
    atoms = atoms.copy()
    atoms.set_cell(atoms.cell.array @ (np.eye(3) + 0.2 * np.tri(3, k=-1)), scale_atoms=True)
    return atoms


def left_its_cell(atoms: Atoms) -> Atoms:
    """A copy of which an atom is many cells away, as dynamics, which wrap nothing, leave it."""
    atoms = atoms.copy()
    atoms.positions[2] += np.array([30.0, -20.0, 25.0]) @ atoms.cell.array
    return atoms


FIVE, MANY = (1, 6, 7, 53, 82), tuple(range(21, 31))
SILICON = rattled(bulk("Si", cubic=True))
SLAB = rattled(fcc111("Cu", (2, 2, 2), vacuum=6.0, periodic=True))
ETHANOL = rattled(molecule("CH3CH2OH"))
FAR = ETHANOL + Atoms("H", [[20.0, 0, 0]])
COPPER = rattled(bulk("Cu", cubic=True).repeat((2, 1, 1)))
STRUCTURES = {
    "molecule": (ETHANOL, (1, 6, 8)),
    "with_a_lone_atom": (FAR, (1, 6, 8)),
    "alone": (Atoms("H"), (1, 6, 8)),
    "crystal": (SILICON, (14,)),
    "one_atom_cell": (bulk("Si", "bcc", a=3.0), (14,)),
    "triclinic": (sheared(SILICON), (14,)),
    "left_handed": (Atoms(SILICON, cell=SILICON.cell.array[[1, 0, 2]]), (14,)),
    "slab": (SLAB, (29,)),
    "five_elements": (mixed(sheared(COPPER), FIVE), FIVE),
    "many_elements": (mixed(COPPER, MANY), MANY),
    "an_atom_that_left_its_cell": (left_its_cell(SILICON), (14,)),
}


def make(elements: tuple[int, ...], **model: object) -> Potential:
    """A potential whose parameters are all far from what they start as."""
    torch.manual_seed(2)
    config = GauntACEConfig(**{"channels": 16, "max_ell": 2, "hidden": 12, "num_radial": 6} | model)
    potential = Potential(config, Domain(cutoff=CUTOFF, elements=elements, avg_num_neighbors=15.0), ())
    with torch.no_grad():
        for weight in potential.parameters():
            weight += 0.3 * torch.randn_like(weight)
    return potential.requires_grad_(False).eval()


def elements_of(potential: Potential, atoms: Atoms) -> np.ndarray:
    return potential.model.index.places.numpy()[atoms.numbers].astype(np.int32)


def edges_of(potential: Potential, atoms: Atoms) -> Edges:
    """The edges of a structure, out of a list with a skin."""
    neighbors = neighbor_list(atoms.positions, atoms.cell.array, atoms.pbc, CUTOFF + 0.7)
    skin = SkinList(neighbors, elements_of(potential, atoms))
    return skin.within(atoms.positions, atoms.cell.array, CUTOFF)


def compute(potential: Potential, atoms: Atoms, threads: int = 1) -> Output:
    return Kernel(potential.model)(edges_of(potential, atoms), threads, True)


def check(out: Output, potential: Potential, atoms: Atoms) -> None:
    """Agreement with eager in float64, relative to the largest number."""
    exact, graph = copy.deepcopy(potential).double(), to_graph(atoms, CUTOFF)
    wanted = exact(graph)

    def close(value: np.ndarray, want: torch.Tensor) -> None:
        reference = want.numpy()
        assert np.abs(value - reference).max() <= 5e-5 * np.abs(reference).max() + 1e-12

    close(out.energies, wanted["energies"])
    close(out.forces, wanted["forces"])
    assert out.features is not None
    close(out.features, exact.features(graph).node_scalars)
    np.testing.assert_allclose(out.forces.sum(0), 0, atol=1e-12 * max(np.abs(out.forces).max(), 1))
    if abs(atoms.cell.volume) > 0:
        close((out.virial + out.virial.T) / (2 * abs(atoms.cell.volume)), wanted["stress"][0])


@pytest.mark.parametrize("kind", STRUCTURES)
def test_structures(kind: str) -> None:
    atoms, elements = STRUCTURES[kind]
    potential = make(elements)
    check(compute(potential, atoms), potential, atoms)


MODELS = {
    "one_layer": {"layers": 1},
    "three_layers": {"layers": 3},
    "pairs": {"correlation": 2, "message_ell": 0},
    "linear": {"correlation": 1, "max_ell": 1},
    "high": {"correlation": 4, "max_ell": 3, "message_ell": 2},
    "wide": {"channels": 48, "hidden": 40, "num_radial": 9, "max_ell": 4},
    "metals": {"max_ell": 6},
    "element_channels": {"element_channels": 2},
}


@pytest.mark.parametrize("kind", MODELS)
def test_models(kind: str) -> None:
    atoms, elements = STRUCTURES["five_elements"]
    potential = make(elements, **MODELS[kind])
    check(compute(potential, atoms), potential, atoms)


def test_threads() -> None:
    atoms, elements = STRUCTURES["triclinic"]
    atoms, potential = atoms.repeat((3, 2, 1)), make(elements)
    out = compute(potential, atoms, threads=3)
    check(out, potential, atoms)
    again = compute(potential, atoms, threads=3)
    assert all(np.array_equal(x, y) for x, y in zip(out, again))


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there are no forks")
@pytest.mark.filterwarnings("ignore:.*fork")
def test_a_fork_computes_too() -> None:
    """Though the threads of the process before are not there."""
    atoms, elements = STRUCTURES["crystal"]
    graph = to_graph(atoms.repeat(3), CUTOFF)
    backend = OnKernel(make(elements), threads=2)
    backend(graph)

    def again() -> None:
        assert torch.isfinite(backend(graph)["energy"]).all()

    fork = multiprocessing.get_context("fork").Process(target=again)
    fork.start()
    fork.join(30)
    ended = fork.exitcode
    fork.kill()
    assert ended == 0


def test_sizes_that_take_one_thread_are_not_tried_with_more() -> None:
    atoms, elements = STRUCTURES["crystal"]
    backend = OnKernel(make(elements))
    small, large = atoms.repeat((3, 3, 2)), atoms.repeat(3)  # 144 and 216 atoms: as many binary digits
    for order in ((small, large), (large, small)):
        backend._pace.clear()
        for structure in order:
            backend(to_graph(structure, CUTOFF))
        assert [size for size, _ in backend._pace] == [len(x) >= MANY_ATOMS for x in order]


def test_no_atoms() -> None:
    out = compute(make((1, 6, 8)), Atoms())
    assert out.forces.shape == (0, 3)
    assert not out.virial.any()


def test_an_atom_is_its_own_neighbour() -> None:
    atoms, elements = STRUCTURES["molecule"]
    potential = make(elements)
    neighbors = neighbor_list(atoms.positions, atoms.cell.array, atoms.pbc, CUTOFF + 0.7, True)
    z = elements_of(potential, atoms)
    edges = SkinList(neighbors, z).within(atoms.positions, atoms.cell.array, CUTOFF)
    assert edges.shortest > 0.5
    out = Kernel(potential.model)(edges)
    wanted = potential.double()(to_graph(atoms, CUTOFF, self_interaction=True))
    np.testing.assert_allclose(out.forces, wanted["forces"], atol=2e-5 * wanted["forces"].abs().max())
    np.testing.assert_allclose(out.energies, wanted["energies"], atol=2e-5 * wanted["energies"].abs().max())


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("kind", ["molecule", "alone", "one_atom_cell", "slab", "five_elements"])
def test_edges_within_the_skin_follow_atoms_and_cell(kind: str, threads: int) -> None:
    atoms, elements = STRUCTURES[kind]
    if threads > 1:
        atoms = atoms.repeat(tuple(np.where(atoms.pbc, 9, 1)))
    index = {z: k for k, z in enumerate(elements)}
    z = np.array([index[number] for number in atoms.numbers], np.int32)
    skin = SkinList(neighbor_list(atoms.positions, atoms.cell.array, atoms.pbc, CUTOFF + 0.7), z)
    atoms = rattled(atoms, 0.05, seed=8)
    atoms.set_cell(atoms.cell.array * 1.01, scale_atoms=True)
    fresh = neighbor_list(atoms.positions, atoms.cell.array, atoms.pbc, CUTOFF)
    i, j = fresh.edge_index
    r = atoms.positions[j] + fresh.edge_shift @ atoms.cell.array - atoms.positions[i]
    edges = skin.within(atoms.positions, atoms.cell.array, CUTOFF, threads)
    assert edges.start[0] == 0
    np.testing.assert_array_equal(np.diff(edges.start), np.bincount(i, minlength=len(atoms)))
    centre = np.repeat(np.arange(len(atoms)), np.diff(edges.start))
    ours = np.column_stack([centre, edges.neighbor, edges.r_ij.astype(float)]).round(4)
    theirs = np.column_stack([i, j, r.astype(np.float32)]).round(4)
    for rows in (ours, theirs):
        rows += 0.0  # no negative zeros
    np.testing.assert_allclose(
        ours[np.lexsort(ours.T[::-1])], theirs[np.lexsort(theirs.T[::-1])], atol=2.1e-4
    )
    shortest = np.linalg.norm(r, axis=1).min(initial=np.inf)
    assert edges.shortest == pytest.approx(shortest)


def test_edges_within_reach_of_the_wall_are_counted() -> None:
    atoms, elements = STRUCTURES["molecule"]
    i, j, d = _distances(atoms)
    outer = np.array([[1.0, 1.2, 0.5], [1.2, 1.45, 1.0], [0.5, 1.0, 0.0]])
    index = {z: k for k, z in enumerate(elements)}
    z = np.array([index[number] for number in atoms.numbers], np.int32)
    neighbors = neighbor_list(atoms.positions, atoms.cell.array, atoms.pbc, CUTOFF + 0.7)
    edges = SkinList(neighbors, z, outer).within(atoms.positions, atoms.cell.array, CUTOFF)
    assert edges.near == (d < outer[z[i], z[j]]).sum() > 0


def _distances(atoms: Atoms) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    i, j = neighbor_list(atoms.positions, atoms.cell.array, atoms.pbc, CUTOFF).edge_index
    return i, j, np.linalg.norm(atoms.positions[j] - atoms.positions[i], axis=1)


def test_nan_comes_out_as_nan() -> None:
    atoms, elements = STRUCTURES["molecule"]
    potential = make(elements)
    z, edges = elements_of(potential, atoms), edges_of(potential, atoms)
    edges.r_ij[0] = np.nan
    out = Kernel(potential.model)(edges)
    assert np.isnan(out.energies[0])
    assert np.isnan(out.forces[0]).all()
    potential.model.layers[0].readout.inward[0] = np.nan
    assert np.isnan(Kernel(potential.model)(edges_of(potential, atoms)).energies).all()
    positions = atoms.positions.copy()
    positions[1] = np.nan
    neighbors = neighbor_list(atoms.positions, atoms.cell.array, atoms.pbc, CUTOFF)
    found = SkinList(neighbors, z).within(positions, atoms.cell.array, CUTOFF)
    assert np.isnan(found.r_ij).any()


@pytest.mark.parametrize("by", [1.0, 3e3])
def test_shifts_are_as_few_as_there_are(by: float) -> None:
    """And right where so many could be that no number tells them apart."""
    far = SILICON.copy()
    far.positions[2] += by * np.array([300.0, -200.0, 250.0]) @ far.cell.array
    far.positions[3] -= by * np.array([299.0, -202.0, 251.0]) @ far.cell.array
    found = []
    for atoms in (SILICON, far):
        neighbors = neighbor_list(atoms.positions, atoms.cell.array, atoms.pbc, CUTOFF + 0.7)
        skin = SkinList(neighbors, np.zeros(len(atoms), np.int32))
        assert len(skin._shifts) < 1000
        edges = skin.within(atoms.positions, atoms.cell.array, CUTOFF)
        found.append((len(edges.neighbor), np.sort(np.linalg.norm(edges.r_ij, axis=1))))
    assert found[0][0] == found[1][0]
    np.testing.assert_allclose(found[0][1], found[1][1], rtol=1e-5)


@pytest.mark.parametrize("backend", ["kernel", "rows"])
def test_one_mixture_of_several_elements(backend: str) -> None:
    potential = make((11, 17), element_channels=1)
    salt = rattled(bulk("NaCl", "rocksalt", a=5.0, cubic=True))
    other = salt.copy()
    other.numbers[3] = 28 - other.numbers[3]
    energies = []
    for atoms in (salt, other):
        plain = potential(to_graph(atoms, CUTOFF))
        if backend == "kernel":
            fast = compute(potential, atoms).energies
        else:
            from physicsml_ase.backends.compiled import OnRows
            from physicsml_ase.backends.graphed import plain_function

            fast = OnRows(potential, plain_function(potential))(to_graph(atoms, CUTOFF))["energies"].numpy()
        np.testing.assert_allclose(fast, plain["energies"].numpy(), rtol=1e-4, atol=1e-4)
        energies.append(plain["energies"][0])
    assert energies[0] != energies[1]  # of an atom that is the same, with another neighbour


def test_energy_is_smooth_where_neighbours_come_and_go() -> None:
    potential = make((1, 6, 8))
    kernel = Kernel(potential.model)
    energies = []
    for d in (CUTOFF - 1e-3, CUTOFF - 1e-6, CUTOFF + 1e-6):
        pair = Atoms("HO", [[0, 0, 0], [0, 0, d]])
        energies.append(kernel(edges_of(potential, pair)).energies.sum())
    assert energies[0] == pytest.approx(energies[2], rel=1e-6)
    assert energies[1] == pytest.approx(energies[2], rel=1e-6)


def test_what_it_can_not_compute_is_one_line() -> None:
    reasons = [
        kernel_reason(make((14,), channels=12).model),
        kernel_reason(make((14,)).double().model),
        kernel_reason(torch.nn.Linear(2, 2)),
    ]
    for reason, word in zip(reasons, ["16 channels", "float64", "gaunt_ace"]):
        assert reason is not None
        assert word in reason
        assert "\n" not in reason


def test_without_a_compiler_or_with_one_that_fails(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    model = make((14,), num_radial=5).model
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "empty"))
    fails = tmp_path / "fails"
    fails.write_text("#!/bin/sh\necho 'fatal error: no such thing' >&2\nexit 1\n")
    fails.chmod(0o755)
    monkeypatch.setenv("CXX", str(fails))
    reason = kernel_reason(model)
    assert reason is not None
    assert "no such thing" in reason
    assert "\n" not in reason
    monkeypatch.delenv("CXX")
    monkeypatch.setenv("PATH", str(tmp_path))
    assert "no C++ compiler" in (kernel_reason(model) or "")


def test_two_processes_compile_at_once(tmp_path: Path) -> None:
    script = "from physicsml_ase.backends.build import build; build('edges.cpp').within"
    environment = {"XDG_CACHE_HOME": str(tmp_path), "PATH": os.environ["PATH"]}
    runs = [subprocess.Popen([sys.executable, "-c", script], env=environment) for _ in range(2)]
    assert [run.wait(timeout=120) for run in runs] == [0, 0]
    assert len(list((tmp_path / "physicsml_ase").iterdir())) == 1
