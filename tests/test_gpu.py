"""On a GPU everything gives what it gives on a CPU; skipped where there is none."""

import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from ase import units
from ase.md.velocitydistribution import MaxwellBoltzmannDistribution
from ase.md.verlet import VelocityVerlet
from conftest import structures
from test_contract import CUTOFF, make
from trust_for_tests import frames, trained

from physicsml_ase import PhysicsMLCalculator
from physicsml_ase.atoms import to_graph
from physicsml_ase.backends.choose import choose
from physicsml_ase.backends.moving import MovingGraph
from physicsml_ase.backends.package import not_compilable
from physicsml_ase.config import MODELS
from physicsml_ase.conventions import InputError
from physicsml_ase.graph import Graph, collate

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
GPU = torch.device("cuda", 0)
TOLERANCE = {torch.float64: 1e-9, torch.float32: 2e-4}


def graphs() -> dict[str, Graph]:
    """All kinds of structures, and a batch of them."""
    found = {kind: to_graph(atoms, CUTOFF) for kind, atoms in structures().items()}
    return found | {"batch": collate(list(found.values()))}


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("name", sorted(MODELS))
def test_outputs(name: str, dtype: torch.dtype) -> None:
    on_cpu, on_gpu = make(name).to(dtype), make(name).to(dtype).to(GPU)
    for graph in graphs().values():
        expected, found = on_cpu(graph), on_gpu(graph.to(GPU))
        assert list(found) == list(expected)
        for key, value in expected.items():
            assert found[key].device == GPU
            assert found[key].dtype == value.dtype
            scale = max(1.0, float(value.nan_to_num().abs().max())) if key != "energy" else 1.0
            t = TOLERANCE[dtype] * (1 if key not in ("energy", "energies") else 10)
            torch.testing.assert_close(found[key].cpu(), value, rtol=t, atol=t * scale, equal_nan=True)


@pytest.mark.parametrize("name", sorted(MODELS))
def test_gradients_of_the_weights(name: str) -> None:
    def gradients(device: torch.device) -> list[torch.Tensor | None]:
        potential = make(name).to(device).train()
        out = potential(graphs()["batch"].to(device))
        stress = torch.where(out["stress"].isnan(), 0.0, out["stress"])
        (out["energy"].sum() + out["forces"].square().sum() + stress.square().sum()).backward()
        return [None if p.grad is None else p.grad.cpu() for p in potential.parameters()]

    for found, expected in zip(gradients(GPU), gradients(torch.device("cpu")), strict=True):
        assert (found is None) == (expected is None)
        if expected is not None and found is not None:
            scale = max(1.0, float(expected.abs().max()))
            torch.testing.assert_close(found, expected, rtol=1e-8, atol=1e-8 * scale)


@pytest.mark.parametrize("name", ["gaunt_ace", "mace", "nequip", "painn"])
def test_dynamics(name: str) -> None:
    """The same trajectory in float64, through rebuilds of the neighbour list."""
    ends = []
    for device in ("cuda", "cpu"):
        atoms = structures()["triclinic"].repeat((2, 1, 1))
        MaxwellBoltzmannDistribution(atoms, temperature_K=300, rng=np.random.default_rng(0))
        atoms.calc = PhysicsMLCalculator(make(name), device=device, dtype="float64", skin=0.3)
        VelocityVerlet(atoms, units.fs).run(30)
        ends.append((atoms.positions.copy(), atoms.get_potential_energy(), atoms.get_stress()))
    for a, b in zip(*ends):
        np.testing.assert_allclose(a, b, rtol=1e-7, atol=1e-7)


def test_many_structures_and_a_pickled_calculator() -> None:
    many = [*structures().values()] * 3
    on_gpu = pickle.loads(pickle.dumps(PhysicsMLCalculator(make("gaunt_ace"), device="cuda")))
    assert on_gpu.device == GPU
    on_cpu = PhysicsMLCalculator(make("gaunt_ace"), device="cpu")
    for a, b in zip(on_gpu.predict(many), on_cpu.predict(many), strict=True):
        for key, value in b.items():
            np.testing.assert_allclose(a[key], value, rtol=1e-9, atol=1e-7, equal_nan=True)


def test_a_committee_with_extrapolation_and_uncertainty(tmp_path: Path) -> None:
    paths = [tmp_path / f"{seed}.ckpt" for seed in range(2)]
    for seed, path in enumerate(paths):
        trained(tmp_path / str(seed), seed=seed).save(path)
    for ckpt in (str(paths[0]), [str(p) for p in paths]):
        results = []
        for device in ("cuda", "cpu"):
            atoms = frames(1)[0]
            atoms.calc = PhysicsMLCalculator(
                ckpt,
                device=device,
                dtype="float64",
                on_extrapolation="ignore",
                uncertainty=isinstance(ckpt, str),
            )
            names = [*atoms.calc.implemented_properties]
            atoms.get_forces()
            atoms.calc.calculate(atoms, names)
            results.append({name: atoms.calc.results[name] for name in names if name in atoms.calc.results})
        assert "extrapolation" in results[0]
        for key, value in results[1].items():
            np.testing.assert_allclose(results[0][key], value, rtol=1e-6, atol=1e-7, err_msg=key)


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["compile", "aoti"])
@pytest.mark.parametrize("name", ["gaunt_ace", "nequip", "allegro", "mace", "tensor_net"])
def test_backends(name: str, backend: str) -> None:
    potential = make(name).to(GPU).requires_grad_(False)
    potential.wall = None  # within it, where most of these structures are, the potential itself computes
    engine = choose(backend, potential)
    for kind in ("triclinic", "slab", "molecule", "batch"):
        graph = graphs()[kind].to(GPU)
        expected = potential(graph)
        for key, value in engine(graph).items():
            torch.testing.assert_close(value, expected[key], rtol=1e-9, atol=1e-8, equal_nan=True)
    assert engine.name == backend


def test_what_auto_takes() -> None:
    assert choose("auto", make("gaunt_ace").to(GPU)).name == "cuda_graph"
    assert choose("auto", make("ani").to(GPU)).name == "cuda_graph"
    with pytest.raises(InputError, match="kernel"):
        PhysicsMLCalculator(make("gaunt_ace"), device="cuda", backend="kernel")


@pytest.mark.parametrize("name", [n for n in sorted(MODELS) if not_compilable(make(n)) is None])
@pytest.mark.parametrize("walled", [False, True])
def test_a_recorded_step(name: str, walled: bool) -> None:
    """What is replayed is what is computed: of other positions, cells, lists and sizes, and within a wall, where the
    potential itself computes."""
    potential = make(name).to(GPU).requires_grad_(False)
    potential.wall = potential.wall if walled else None
    engine = choose("cuda_graph", potential)
    rng = np.random.default_rng(0)
    kept = []
    for atoms in (structures()["triclinic"], structures()["crystal"], structures()["molecule"]):
        moving = MovingGraph(potential.domain, 0.5, GPU)
        for step in range(9):
            atoms.positions += 0.03 * rng.normal(size=atoms.positions.shape)
            if step == 4 and atoms.pbc.all():
                atoms.set_cell(atoms.cell.array * 1.01, scale_atoms=True)
            if step == 6:  # towards each other, into the wall
                atoms.positions[1] += 0.3 * (atoms.positions[0] - atoms.positions[1])
            graph = moving.next(atoms, {}, engine.whole_lists)
            kept.append((engine(graph), {k: v.clone() for k, v in engine(graph).items()}))
            expected = potential(to_graph(atoms, CUTOFF).to(GPU))
            for key, value in expected.items():
                torch.testing.assert_close(kept[-1][0][key], value, rtol=1e-9, atol=1e-8, equal_nan=True)
    assert engine.name == "cuda_graph"
    for given, copied in kept:  # which later steps did not write over
        for key, value in copied.items():
            torch.testing.assert_close(given[key], value, rtol=0, atol=0, equal_nan=True)
