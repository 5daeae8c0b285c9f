"""The training kernel: values and gradients to the weights are eager autograd's, for every model and batch."""

import copy
from collections.abc import Mapping

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import bulk, molecule
from conftest import rattled
from kernels_for_tests import cache, mixed  # noqa: F401  cache is a fixture

from physicsml_ase.atoms import to_graph
from physicsml_ase.backends import build
from physicsml_ase.backends.shares import ATOMS_OF_A_PART, shares
from physicsml_ase.backends.totals import Summed
from physicsml_ase.backends.training import TrainingKernel, training_kernel_reason
from physicsml_ase.domain import Domain
from physicsml_ase.graph import Graph, collate, edge_vectors
from physicsml_ase.models.gaunt_ace import GauntACE, GauntACEConfig
from physicsml_ase.potential import Potential

CUTOFF = 4.0
pytestmark = pytest.mark.skipif(build.compiler() is None, reason="there is no C++ compiler")


CHNO, FIVE = (1, 6, 8), (1, 6, 7, 53, 82)
ETHANOL, WATER = rattled(molecule("CH3CH2OH")), rattled(molecule("H2O"))
SILICON = rattled(bulk("Si", cubic=True))
LONE = ETHANOL + Atoms("H", [[20.0, 0, 0]])
COPPER = rattled(bulk("Cu", cubic=True).repeat((2, 1, 1)))
BATCHES: dict[str, tuple[list[Atoms], tuple[int, ...]]] = {
    "molecules": ([ETHANOL, WATER], CHNO),
    "silicon": ([SILICON], (14,)),
    "one_atom_cell": ([bulk("Si", "bcc", a=3.0)], (14,)),
    "five_elements": ([mixed(COPPER, FIVE)], FIVE),
    "unlike": ([Atoms("H"), ETHANOL, mixed(SILICON, CHNO), LONE, Atoms("O")], CHNO),
    "no_edges": ([Atoms("H"), Atoms("O")], CHNO),
}


def make(elements: tuple[int, ...], noise: float = 0.3, **model: object) -> GauntACE:
    """A model whose parameters are all far from what they start as, in float64."""
    torch.manual_seed(2)
    config = GauntACEConfig(**{"channels": 16, "max_ell": 2, "hidden": 12, "num_radial": 6} | model)
    made = GauntACE(config, Domain(cutoff=CUTOFF, elements=elements, avg_num_neighbors=15.0)).double()
    with torch.no_grad():
        for weight in made.parameters():
            weight += noise * torch.randn_like(weight)
    return made


def batch(structures: list[Atoms]) -> Graph:
    return collate([to_graph(atoms, CUTOFF) for atoms in structures])


def loss(energy: torch.Tensor, gradient: torch.Tensor) -> torch.Tensor:
    """Some function of the energies (N,) and the gradient (E, 3) that is linear in neither."""
    torch.manual_seed(3)
    a, b = torch.randn(energy.shape, dtype=torch.float64), torch.randn(gradient.shape, dtype=torch.float64)
    energy, gradient = energy.double(), gradient.double()
    return (a * energy + 0.1 * energy.square()).sum() + (b * gradient + 0.1 * gradient.square()).sum()


def gradients(model: GauntACE, graph: Graph, kernel: TrainingKernel | None) -> list[torch.Tensor]:
    """Energies, gradient, and the gradient of their loss to every parameter."""
    model.zero_grad()
    dtype = next(model.parameters()).dtype
    r_ij = edge_vectors(graph).to(dtype)
    if kernel is None:
        features = model(graph, r_ij)
        out = (features.node_energy, features.edge_gradient)
    else:
        out = kernel(graph, r_ij)
    loss(*out).backward()
    assert all(x.dtype == dtype for x in out)
    return [*(x.detach() for x in out), *(p.grad for p in model.parameters() if p.grad is not None)]


def check(model: GauntACE, graph: Graph, threads: int = 1) -> None:
    wanted = gradients(model, graph, None)
    for dtype, tolerance in ((torch.float64, 1e-9), (torch.float32, 3e-4)):
        same = copy.deepcopy(model).to(dtype)
        kernel = TrainingKernel(same, threads)
        found = gradients(same, graph, kernel)
        assert len(found) == len(wanted)
        for x, y in zip(found, wanted):
            assert x.shape == y.shape
            if y.numel():
                assert float((x - y).abs().max()) <= tolerance * float(y.abs().max()) + 1e-9
        again = gradients(same, graph, kernel)
        assert all(torch.equal(x, y) for x, y in zip(found, again))


@pytest.mark.parametrize("kind", BATCHES)
def test_batches(kind: str) -> None:
    structures, elements = BATCHES[kind]
    check(make(elements), batch(structures))


MODELS = {
    "one_layer": {"layers": 1},
    "three_layers": {"layers": 3, "noise": 0.1},  # with more, cubes of cubes of cubes leave float32 no digits
    "pairs": {"correlation": 2, "message_ell": 0},
    "pairs_of_one_layer": {"correlation": 2, "layers": 1},
    "linear": {"correlation": 1, "max_ell": 1},
    "high": {"correlation": 4, "max_ell": 3, "message_ell": 2},
    "wide": {"channels": 48, "hidden": 40, "num_radial": 9, "max_ell": 4},
    "metals": {"max_ell": 6},
    "default": {"channels": 32, "hidden": 32, "num_radial": 8, "max_ell": 3},
}


QUICK = ("one_layer", "default")
"""The others are compiled, half a minute each, when slow tests are asked for."""


@pytest.mark.parametrize(
    "kind", [k if k in QUICK else pytest.param(k, marks=pytest.mark.slow) for k in MODELS]
)
def test_models(kind: str) -> None:
    structures, elements = BATCHES["unlike"]
    check(make(elements, **MODELS[kind]), batch(structures))


@pytest.mark.parametrize("kind", ["one_layer", pytest.param("pairs", marks=pytest.mark.slow), "default"])
def test_models_of_one_element(kind: str) -> None:
    structures, elements = BATCHES["silicon"]
    check(make(elements, **MODELS[kind]), batch(structures))


SEVEN = (1, 6, 7, 8, 14, 53, 82)


@pytest.mark.parametrize(
    ("elements", "model"),
    [
        (FIVE, {"element_channels": 2}),
        pytest.param(SEVEN, {}, marks=pytest.mark.slow),
        pytest.param((14,), {"element_channels": 3}, marks=pytest.mark.slow),
    ],
)
def test_mixtures_of_elements(elements: tuple[int, ...], model: dict[str, object]) -> None:
    made = make(elements, **model)
    assert made.neighbor_channels is not None
    structures = [mixed(COPPER, elements), Atoms([elements[0]], [[0.0, 0, 0]]), mixed(COPPER, elements[:1])]
    check(made, batch(structures))


def test_threads_change_nothing() -> None:
    """The parts of a batch are the same ones, whoever computes them."""
    model, graph = (
        make((14,)),
        batch([SILICON.repeat((2, 2, 1)), SILICON, SILICON.repeat((3, 1, 1)), SILICON]),
    )
    assert len(shares(graph)) == 2
    check(model, graph, threads=2)
    one, many = (gradients(model, graph, TrainingKernel(model, threads)) for threads in (1, 4))
    assert all(torch.equal(x, y) for x, y in zip(one, many))


def test_parts_of_batches() -> None:
    """All structures, in order, in parts that are not too small; one where there is little."""
    small, large = Atoms("H"), SILICON.repeat((2, 2, 2))
    for structures in ([small], [small] * 100, [large, small, large], [small, large, small, large, small]):
        graph = batch(structures)
        parts = shares(graph)
        assert [part.atoms.start for part in parts] == [0, *(part.atoms.stop for part in parts[:-1])]
        assert [part.edges.start for part in parts] == [0, *(part.edges.stop for part in parts[:-1])]
        assert parts[-1].atoms.stop == len(graph.positions)
        assert parts[-1].edges.stop == len(graph.reverse)
        assert len(parts) == 1 or min(p.atoms.stop - p.atoms.start for p in parts) >= ATOMS_OF_A_PART
        for atoms, edges in parts:  # no edge leaves a part
            assert (graph.edge_index[:, edges] >= atoms.start).all()
            assert (graph.edge_index[:, edges] < atoms.stop).all()


def test_losses_of_one_of_the_two() -> None:
    model, graph = make(CHNO), batch([ETHANOL])
    kernel, r_ij = TrainingKernel(model), edge_vectors(graph)
    for which in (0, 1):
        both = []
        for out in (kernel(graph, r_ij), model(graph, r_ij)[3:]):
            model.zero_grad()
            out[which].square().sum().backward()
            # the gradient to pair vectors does not depend on an energy's constant
            given = [torch.zeros_like(p) if p.grad is None else p.grad for p in model.parameters()]
            both.append(torch.cat([g.flatten() for g in given]))
        assert torch.allclose(*both, rtol=1e-9, atol=1e-9)


def test_it_sees_changed_weights_and_needs_no_gradient() -> None:
    model, graph = make(CHNO), batch([ETHANOL])
    kernel, r_ij = TrainingKernel(model), edge_vectors(graph)
    with torch.no_grad():
        for weight in model.parameters():
            weight *= 1.1
        energy, gradient = kernel(graph, r_ij)
        wanted = model(graph, r_ij)
    assert torch.allclose(energy, wanted.node_energy)
    assert torch.allclose(gradient, wanted.edge_gradient)
    assert not energy.requires_grad


def test_an_atom_is_its_own_neighbour() -> None:
    graph = to_graph(bulk("Si", "bcc", a=3.0), CUTOFF, self_interaction=True)
    check(make((14,)), graph)


def test_nan_comes_out_as_nan() -> None:
    model, graph = make(CHNO), batch([ETHANOL, WATER])
    r_ij = edge_vectors(graph)
    r_ij[0] = torch.nan
    energy, gradient = TrainingKernel(model)(graph, r_ij)
    assert energy[0].isnan()
    assert gradient[0].isnan().all()
    assert not energy[len(ETHANOL) :].isnan().any()


def test_what_it_can_not_train_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    made = [
        make((14,), channels=12),
        make((14,)).half(),
        torch.nn.Linear(2, 2),
    ]
    for model, word in zip(made, ["16 channels", "float", "gaunt_ace"]):
        reason = training_kernel_reason(model)
        assert reason is not None
        assert word in reason
        assert "\n" not in reason
    monkeypatch.setattr(build, "compiler", lambda: None)
    assert "no C++ compiler" in (training_kernel_reason(make((14,), num_radial=5)) or "")


def potential_of(elements: tuple[int, ...], wall: bool = False, **domain: object) -> Potential:
    """A potential whose parameters are far from what they start as, in float64 and in training."""
    known = Domain(
        cutoff=CUTOFF,
        elements=elements,
        avg_num_neighbors=15.0,
        atomic_energies={z: -3.0 - z for z in elements},
        energy_scale=0.7,
        short_range="zbl" if wall else "none",
        **domain,  # type: ignore[arg-type]
    )
    torch.manual_seed(2)
    config = GauntACEConfig(channels=16, max_ell=2, hidden=12, num_radial=6)
    potential = Potential(config, known, ()).double().train()
    with torch.no_grad():
        for weight in potential.parameters():
            weight += 0.3 * torch.randn_like(weight)
    return potential


def loss_of(out: Mapping[str, torch.Tensor]) -> torch.Tensor:
    """Of all predictions, linear in none; what is no number counts for nothing."""
    torch.manual_seed(3)
    total = torch.zeros((), dtype=torch.float64)
    for name in ("energy", "energies", "forces", "stress"):
        factor, there = torch.randn_like(out[name]), ~out[name].isnan()
        value = torch.where(there, out[name], 0.0)
        total = total + (factor * value + 0.1 * (value - value.detach().mean()).square()).sum()
    return total


SUMMED = BATCHES | {
    "left_handed": ([Atoms(SILICON, cell=SILICON.cell.array[[1, 0, 2]])], (14,)),
    "slab_among_crystals": ([SILICON, Atoms(SILICON, pbc=(True, False, True)), SILICON * (2, 1, 1)], (14,)),
    "cell_without_pbc": ([Atoms(WATER, cell=[9, 9, 9]), WATER], CHNO),
    "cell_that_does_not_matter": ([Atoms(WATER, cell=np.full((3, 3), np.nan))], CHNO),
}


@pytest.mark.parametrize("self_interaction", [False, True])
@pytest.mark.parametrize("kind", SUMMED)
def test_predictions_of_a_batch_and_their_gradients(kind: str, self_interaction: bool) -> None:
    structures, elements = SUMMED[kind]
    potential = potential_of(elements, self_interaction=self_interaction)
    graph = collate([to_graph(atoms, CUTOFF, self_interaction=self_interaction) for atoms in structures])
    weights = list(potential.parameters())
    plain = potential(graph)
    wanted = torch.autograd.grad(loss_of(plain), weights, allow_unused=True, materialize_grads=True)
    batch, kernel = Summed(graph, potential), TrainingKernel(potential.model)
    torch.testing.assert_close(batch.r_ij, edge_vectors(graph), rtol=1e-13, atol=1e-13)
    found = kernel.predict(graph, batch)._asdict()
    got = torch.autograd.grad(loss_of(found), weights, allow_unused=True, materialize_grads=True)
    for name, value in found.items():
        torch.testing.assert_close(value, plain[name], rtol=1e-10, atol=1e-10, equal_nan=True)
    for a, b in zip(got, wanted):
        torch.testing.assert_close(a, b, rtol=1e-8, atol=1e-8 * float(b.abs().max() + 1))
    with torch.no_grad():
        again = kernel.predict(graph, batch)
    assert all(torch.equal(x, y) or bool(x.isnan().any()) for x, y in zip(again, found.values()))


def test_pairs_within_the_wall_are_counted() -> None:
    distances = {"H-O": 1.2, "H-H": 1.0, "C-H": 1.3}
    potential = potential_of(CHNO, wall=True, shortest_distances=distances)
    assert potential.wall is not None
    for structures in ([WATER], [Atoms("H"), Atoms("O")], [ETHANOL, WATER]):
        graph = collate([to_graph(atoms, CUTOFF, self_interaction=True) for atoms in structures])
        near = potential.wall.near(graph, edge_vectors(graph))
        assert Summed(graph, potential).near == (0 if near is None else len(near.edge))
