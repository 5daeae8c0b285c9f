"""The step on rows against the model itself, and how a backend is chosen and checked."""

import copy
import functools
import logging
import pickle
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import bulk
from conftest import alloy, rattled, structures
from models_for_tests import CUTOFF, DOMAIN, ENERGY, WALL, graphs, make, on_cpu, same

from physicsml_ase.atoms import to_graph
from physicsml_ase.backends import choose as chooser
from physicsml_ase.backends import native
from physicsml_ase.backends.choose import Engine, choose, disagreement
from physicsml_ase.backends.compiled import OnRows, Step, compiled_function, exported
from physicsml_ase.backends.crew import Pace
from physicsml_ase.backends.native import numbers_of_threads
from physicsml_ase.backends.plain import step_function
from physicsml_ase.backends.rows import make_rows
from physicsml_ase.calculator import PhysicsMLCalculator
from physicsml_ase.checkpoint import save_potential
from physicsml_ase.conventions import InputError, Label
from physicsml_ase.graph import Graph
from physicsml_ase.models.painn import PaiNN
from physicsml_ase.potential import Potential


def plain_step(potential: Potential) -> OnRows:
    """The backend without a compiler."""
    step = Step(potential)
    return OnRows(potential, lambda inputs: step(*inputs))


@pytest.mark.parametrize(
    "potential",
    [
        make(),
        make((*ENERGY, "dipole", "charges", "magmoms")),
        make(domain=replace(DOMAIN, shortest_distances=WALL)),
        make(domain=replace(DOMAIN, self_interaction=True)),
        make(domain=replace(DOMAIN, attrs=("field",), attr_shifts=(0.3, 0.0), attr_scales=(0.5, 2.0))),
        make(layers=1),
        make(layers=3, message_ell=2, element_channels=3),
        make(element_channels=1),
    ],
    ids=["plain", "heads", "wall", "self", "attrs", "local", "deep", "one_element_channel"],
)
@pytest.mark.parametrize("kept", [False, True], ids=["step", "kept"])
def test_the_step_is_the_model(potential: Potential, kept: bool) -> None:
    """For every kind of structure and for batches, to round-off; and where what stays is computed once."""
    potential = copy.deepcopy(potential).double()
    backend, reached = OnRows(potential, step_function(potential)) if kept else plain_step(potential), 0
    for graph in graphs(attrs=potential.domain.attrs):
        for moved in (0.0, 0.01):  # the second time the list of neighbours is the last one
            torch.manual_seed(0)
            positions = graph.positions + moved * torch.randn_like(graph.positions)
            graph = graph._replace(positions=positions)
            same(potential(graph), backend(graph), 1e-11)
        reached += backend._last[1] is not None
    assert reached >= 8


def test_eager_keeps_nothing_of_other_atoms_or_weights() -> None:
    """What it computed once belongs to the elements, the neighbours and the weights of then."""
    potential = make(domain=replace(DOMAIN, shortest_distances=WALL)).double()
    engine = choose("eager", potential)
    graph = to_graph(structures()["molecule"], CUTOFF)
    order = torch.arange(len(graph.atomic_numbers)).flip(0)
    other = graph._replace(atomic_numbers=graph.atomic_numbers.index_select(0, order))
    assert (other.atomic_numbers != graph.atomic_numbers).any()
    for given in (graph, other, graph, graph._replace(edge_shift=graph.edge_shift.clone()), other):
        same(potential(given), engine(given), 1e-11)
    before = engine(graph)["energy"]
    with torch.no_grad():
        for weight in potential.parameters():
            weight.mul_(1.1)
    assert (engine(graph)["energy"] - before).abs() > 1e-3
    same(potential(graph), engine(graph), 1e-11)


def test_eager_in_dynamics_is_the_model(caplog: pytest.LogCaptureFixture) -> None:
    """Also where neighbours change, and where atoms come within the wall of their elements."""
    atoms = structures()["crystal"]
    nearest = float(atoms.get_all_distances(mic=True)[np.triu_indices(len(atoms), 1)].min())
    potential = make(domain=replace(DOMAIN, shortest_distances=dict.fromkeys(WALL, nearest / 0.97)))
    atoms.calc = PhysicsMLCalculator(potential, backend="eager", on_extrapolation="ignore")
    rng, alone = np.random.default_rng(0), []
    for _ in range(40):
        atoms.positions += 0.03 * rng.normal(size=atoms.positions.shape)
        right = potential(to_graph(atoms, CUTOFF))["forces"].numpy()
        scale = max(np.abs(right).max(), 1.0)
        assert np.abs(atoms.get_forces() - right).max() < 1e-5 * scale
        alone.append(atoms.calc._engine._backend.by_itself)
    assert len(set(alone)) == 2
    assert not caplog.records


def test_eager_of_a_model_without_energy(caplog: pytest.LogCaptureFixture) -> None:
    """Nothing is told that was not trained."""
    engine, graph = choose("eager", make(("charges",))), to_graph(structures()["molecule"], CUTOFF)
    for _ in range(2):
        assert engine(graph).keys() == {"charges"}
    assert "not used" not in caplog.text


def test_the_wall_was_reached() -> None:
    walled, bare = make(domain=replace(DOMAIN, shortest_distances=WALL)), make()
    graph = to_graph(structures()["crystal"], CUTOFF)
    assert (walled(graph)["energy"] > bare(graph)["energy"] + 0.01).all()


def test_rows_are_an_involution() -> None:
    for graph in graphs():
        rows = make_rows(graph, CUTOFF)
        if rows is None:
            continue
        reverse, n = rows.reverse.flatten(), len(graph.positions)
        assert (reverse[reverse] == torch.arange(len(reverse))).all()
        r = graph.positions[rows.neighbor] + rows.shift - graph.positions[:, None]
        d = r.norm(dim=-1).flatten()
        assert (d[reverse] - d).abs().max() < 1e-12
        assert int((d < CUTOFF).sum()) == len(graph.reverse)
        centre = torch.arange(n).repeat_interleave(rows.neighbor.shape[1])
        assert (rows.neighbor.flatten()[reverse] == centre).all()


def test_a_crowded_atom_does_not_fill_the_memory() -> None:
    """One atom with many neighbours among many that have none: the model's own rows are shorter."""
    k = np.arange(300) + 0.5
    height, angle = 1 - 2 * k / 300, k * np.pi * (1 + 5**0.5)
    ring = np.sqrt(1 - height**2)
    shell = 0.9 * CUTOFF * np.stack([ring * np.cos(angle), ring * np.sin(angle), height], axis=1)
    far = np.stack([np.arange(2000) * 5.0 + 20, np.zeros(2000), np.zeros(2000)], axis=1)
    potential = make()
    graph = to_graph(Atoms("Cu2301", np.concatenate([[[0, 0, 0]], shell, far])), CUTOFF)
    assert make_rows(graph, CUTOFF) is None
    same(potential(graph), plain_step(potential)(graph), 1e-5)


def test_one_export_for_all_sizes() -> None:
    potential = make(("energy", "forces", "charges"), replace(DOMAIN, shortest_distances=WALL)).double()
    module = exported(potential).module()
    backend = OnRows(potential, lambda inputs: module(*inputs))
    for graph in graphs():
        same(potential(graph), backend(graph), 1e-11)


def test_no_recompilation(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where numbers of atoms, rows and neighbours agree by chance."""
    compilations = []

    def counting(module: torch.fx.GraphModule, example_inputs: object, **options: object) -> object:
        compilations.append(module)
        return module

    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend=counting))
    potential = make()
    backend = OnRows(potential, compiled_function(potential))
    for graph in graphs():
        same(potential(graph), backend(graph), 1e-5)
    for size in ((1, 1, 2), (2, 2, 2), (3, 2, 2)):
        graph = to_graph(alloy(rattled(bulk("Cu", cubic=True).repeat(size))), CUTOFF)
        same(potential(graph), backend(graph), 1e-5)
    assert len(compilations) == 1


@pytest.mark.slow
def test_torch_compile() -> None:
    potential = make((*ENERGY, "dipole"), channels=16)
    calc, plain = (on_cpu(potential, backend=name) for name in ("compile", "eager"))
    assert calc.backend == "compile"
    torch._dynamo.utils.counters.clear()
    for kind in ("crystal", "molecule", "slab", "triclinic", "lone_atom"):
        atoms = structures()[kind]
        calc.calculate(atoms)
        plain.calculate(atoms)
        assert calc.results.keys() == plain.results.keys()
        for name, value in plain.results.items():
            np.testing.assert_allclose(calc.results[name], value, rtol=1e-5, atol=1e-5, err_msg=name)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 1
    assert calc.backend == "compile"


# --- the choice


def test_unknown_names() -> None:
    with pytest.raises(InputError, match=r"backend 'kernl' is not known: did you mean 'kernel'\?"):
        on_cpu(make(), backend="kernl")
    with pytest.raises(InputError, match="known: auto, eager, compile, aoti, kernel"):
        choose("x", make())
    with pytest.raises(InputError, match="threads is 0"):
        on_cpu(make(), threads=0)


@pytest.mark.parametrize("name", ["compile", "aoti", "kernel"])
def test_what_has_no_compiled_step_is_refused(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(PaiNN, "takes_slots", False)  # as architectures of others may be
    potential = make(name="painn")
    assert on_cpu(potential).backend == "eager"
    with pytest.raises(InputError, match=f"^backend {name}: ") as error:
        on_cpu(potential, backend=name)
    assert "\n" not in str(error.value)


def test_the_kernel_does_not_read_heads() -> None:
    potential = make((*ENERGY, "charges"))
    assert on_cpu(potential).backend == "eager"
    with pytest.raises(InputError, match="backend kernel: it does not compute charges"):
        on_cpu(potential, backend="kernel")


def off(potential: Potential, name: str, by: float) -> chooser.Backend:
    """A backend that gets one result wrong."""
    return lambda graph: (out := potential(graph)) | {name: out[name] + by * potential.domain.energy_scale}


@pytest.mark.parametrize("stored", [True, False])
@pytest.mark.parametrize("name", ["energy", "energies", "forces", "stress"])
def test_a_wrong_backend_is_not_used(name: str, stored: bool, caplog: pytest.LogCaptureFixture) -> None:
    """Though reference energies are a thousand times what is wrong."""
    potential = make()
    frames = [to_graph(structures()["crystal"], CUTOFF)] * 2
    engine = Engine(potential, "fast", off(potential, name, 0.01), frames if stored else [])
    assert engine.name == ("eager" if stored else "fast")
    same(potential(frames[0]), engine(frames[0]), 0.0)
    assert engine.name == "eager"
    assert f"backend fast is not used: its {name} differs from the plain one's by" in caplog.text


class Leaves:
    """A wrong backend that leaves its first structure to the potential."""

    def __init__(self, potential: Potential) -> None:
        self.potential, self.wrong, self.by_itself = potential, off(potential, "energy", 0.01), True

    def __call__(self, graph: Graph) -> dict[str, torch.Tensor]:
        self.by_itself = len(graph.positions) > 1
        return self.wrong(graph) if self.by_itself else self.potential(graph)


def test_what_plain_pytorch_computed_checks_no_backend() -> None:
    potential = make()
    alone, molecule = (to_graph(x, CUTOFF) for x in (Atoms("H"), structures()["molecule"]))
    engine = Engine(potential, "fast", Leaves(potential), [])
    same(potential(alone), engine(alone), 0.0)
    assert engine.name == "fast"
    same(potential(molecule), engine(molecule), 0.0)
    assert engine.name == "eager"


@pytest.mark.parametrize(("error", "name"), [(0.0, "fast"), (0.1, "eager")])
def test_of_a_large_structure_a_piece_is_checked(
    error: float, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Eager might not have the memory for all of it."""
    monkeypatch.setattr(chooser, "LARGE", 100)
    potential, sizes = make(), []
    step, forward = plain_step(potential), type(potential).forward

    def fast(graph: Graph) -> dict[str, torch.Tensor]:
        out = step(graph)
        return out | {"forces": out["forces"] + error * potential.domain.energy_scale}

    def counted(self: Potential, graph: Graph) -> dict[str, torch.Tensor]:
        sizes.append(len(graph.positions))
        return forward(self, graph)

    large = to_graph(alloy(rattled(bulk("Cu", cubic=True).repeat(3))), CUTOFF)
    right = potential(large)
    monkeypatch.setattr(Potential, "forward", counted)
    engine = Engine(potential, "fast", fast, [])
    same(right, engine(large), 1e-5)
    assert engine.name == name
    assert sizes == ([12] if name == "fast" else [12, 108])


def test_rounding_is_no_difference() -> None:
    single = make()
    for graph in graphs():
        plain = single(graph)
        double = {name: value.clone() for name, value in make().double()(graph).items()}
        assert disagreement(single, graph, plain, double) is None
        double["forces"][0, 0] = torch.nan
        assert "not a number" in disagreement(single, graph, plain, double)


def test_the_choice_is_told(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chooser, "not_native", lambda potential: "there is no compiler")
    with caplog.at_level(logging.INFO, "physicsml_ase"):
        assert on_cpu(make()).backend == "eager"
    assert "backend: eager" in caplog.text
    with pytest.raises(InputError, match="backend kernel: there is no compiler"):
        on_cpu(make(), backend="kernel")


# --- behind the calculator


def calculator(
    backend: str, monkeypatch: pytest.MonkeyPatch, potential: Potential, **settings: object
) -> PhysicsMLCalculator:
    """A calculator; for "compile" without the compiler."""
    if backend == "kernel" and (reason := chooser.not_native(potential)):
        pytest.skip(reason)
    step = Step(potential)
    monkeypatch.setattr(chooser, "compiled_function", lambda potential: lambda inputs: step(*inputs))
    calc = on_cpu(potential, backend=backend, **settings)
    assert calc.backend == backend
    return calc


@pytest.mark.parametrize("backend", ["compile", "kernel"])
def test_every_step_equals_a_new_calculator(backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Moves, strains, other structures, the wall now and then: whatever a backend keeps from step to step."""
    seldom = {"Cu-Cu": 2.45, "Au-Cu": 2.45, "Au-Au": 2.45, "C-H": 1.1}
    potential = make(channels=16, domain=replace(DOMAIN, shortest_distances=seldom))
    forward, by_eager = Potential.forward, []

    def counted(self: Potential, graph: Graph) -> dict[str, torch.Tensor]:
        by_eager.append(1)
        return forward(self, graph)

    monkeypatch.setattr(Potential, "forward", counted)
    calc = calculator(backend, monkeypatch, potential, skin=0.6)
    rng = np.random.default_rng(0)
    for kind in ("crystal", "molecule", "slab", "crystal", "triclinic", "far_apart", "lone_atom"):
        atoms = structures()[kind]
        atoms.calc = calc
        for step in range(6):
            atoms.positions += rng.normal(size=(len(atoms), 3)) * 0.03
            if step == 3:
                atoms.set_cell(atoms.cell @ (np.eye(3) + rng.normal(size=(3, 3)) * 0.01), scale_atoms=True)
            if step == 4:
                atoms.numbers[:] = atoms.numbers[::-1].copy()
            if step == 5:
                atoms.wrap()
            atoms.get_potential_energy()
            fresh = on_cpu(potential, skin=0, backend="eager")
            fresh.calculate(atoms)
            assert calc.results.keys() == fresh.results.keys()
            for name, value in fresh.results.items():
                np.testing.assert_allclose(calc.results[name], value, rtol=1e-5, atol=2e-5, err_msg=name)
    assert calc.backend == backend
    steps = 7 * 6
    assert steps + 1 < len(by_eager) < steps + 25  # the fresh ones, and those within the wall or alone


@pytest.mark.parametrize("backend", ["compile", "kernel"])
def test_predict(backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    potential = make(channels=16)
    calc, plain = calculator(backend, monkeypatch, potential), on_cpu(potential, backend="eager")
    frames = list(structures().values())
    for fast, slow in zip(calc.predict(frames), plain.predict(frames), strict=True):
        assert fast.keys() == slow.keys()
        for name, value in slow.items():
            np.testing.assert_allclose(fast[name], value, rtol=1e-5, atol=2e-5, err_msg=name)


@pytest.mark.parametrize("backend", ["compile", "kernel"])
def test_copies_are_independent(backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    calc = calculator(backend, monkeypatch, make(channels=16))
    atoms = structures()["crystal"]
    for _ in range(2):  # the second structure is written over the copy of the first
        atoms.positions[0] += 0.01
        calc.calculate(atoms)
    energy = calc.results["energy"]
    for twin in (pickle.loads(pickle.dumps(calc)), copy.deepcopy(calc), copy.copy(calc)):
        assert twin.check_state(atoms) == []
        moved = atoms.copy()
        moved.positions[0] += 0.1
        twin.calculate(moved)
        assert twin.backend == backend
        assert calc.results["energy"] == energy != twin.results["energy"]
        calc.calculate(moved)
        assert twin.check_state(moved) == []
        calc.calculate(atoms)
        assert twin.check_state(moved) == []


@pytest.mark.parametrize("backend", ["compile", "kernel"])
def test_predict_in_threads(backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    calc = calculator(backend, monkeypatch, make(channels=16))
    frames = [rattled(atoms, 0.02, seed) for seed in range(3) for atoms in structures().values()]
    calc.predict(frames[:1])  # the first structure is the plain one's, which checks the backend
    serial = calc.predict(frames, batch_size=1)
    with ThreadPoolExecutor(4) as pool:
        for results in pool.map(lambda _: calc.predict(frames, batch_size=1), range(4)):
            for a, b in zip(results, serial, strict=True):
                np.testing.assert_array_equal(a["forces"], b["forces"])


def test_threads_of_the_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    """The number given; else one for few atoms, and for many what a few steps show to be faster."""
    monkeypatch.setattr(native, "usable_cores", lambda: 4)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 4)
    assert numbers_of_threads(3, 10) == numbers_of_threads(3, 10_000) == (3,)
    assert numbers_of_threads(None, 15) == (1,)
    for cost in ({1: 1.0, 4: 0.4}, {1: 1.0, 4: 9.0}):
        pace, used = Pace(numbers_of_threads(None, 1000)), []
        for _ in range(10):
            used.append(pace.threads)
            pace.took(used[-1], cost[used[-1]])
        assert used[6:] == [min(cost, key=cost.__getitem__)] * 4
        assert used.count(1) >= 3 <= used.count(4)


def test_edge_labels_have_the_edges_of_the_cutoff(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not those of the skin, which energies do not mind."""
    potential = make()
    labels = (Label("energy", "structure", (), "energy"), Label("bond", "edge", (), "bond"))
    potential = Potential(potential.config, DOMAIN, labels).eval().requires_grad_(False)
    calc = calculator("compile", monkeypatch, potential)
    molecule = structures()["molecule"]
    for _ in range(2):
        matrix = calc.get_property("bond", molecule)
        near = (molecule.get_all_distances() < CUTOFF) & ~np.eye(9, dtype=bool)
        assert (np.isfinite(matrix) == near).all()
        molecule.positions[0] += 0.05


def test_checked_on_the_frames_of_the_checkpoint(tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    potential = make()
    frames = [to_graph(structures()[kind], CUTOFF) for kind in ("crystal", "molecule")]
    save_potential(potential, tmp_path / "model.ckpt", frames=frames)
    monkeypatch.setattr(chooser, "compiled_function", lambda potential: None)
    seen = []
    wrong = off(potential, "forces", 0.1)
    monkeypatch.setattr(chooser, "OnRows", lambda *a: lambda graph: seen.append(1) or wrong(graph))
    calc = on_cpu(tmp_path / "model.ckpt", backend="compile")
    assert calc.backend == "eager"
    assert seen
