"""Gaunt-ACE: its gradient is autograd's whatever the options, and its cost does not grow with the elements."""

import itertools

import pytest
import torch
from ase import Atoms
from ase.build import bulk, molecule
from conftest import structures

from physicsml_ase.atoms import to_graph
from physicsml_ase.config import to_plain
from physicsml_ase.domain import Domain
from physicsml_ase.graph import Graph, collate, edge_vectors
from physicsml_ase.models.gaunt_ace import CONSTANTS, GauntACE, GauntACEConfig, lmax_for
from physicsml_ase.nn.features import Features

CUTOFF = 4.0
OPTIONS = [
    {"layers": 1},
    {"layers": 3, "message_ell": 2},
    {"layers": 2, "message_ell": 0, "correlation": 2},
    {"correlation": 1, "max_ell": 2},
    {"correlation": 4, "max_ell": 4, "message_ell": 2},
    {"max_ell": 1, "num_radial": 3},
    {"element_channels": 2},
]


def make(elements: tuple[int, ...] = (1, 6, 8, 29, 79), seed: int = 0, **options: object) -> GauntACE:
    torch.manual_seed(seed)
    small = {"channels": 4, "num_radial": 5, "hidden": 6} | options
    domain = Domain(cutoff=CUTOFF, elements=elements, avg_num_neighbors=10.0)
    model = GauntACE(GauntACEConfig(**small), domain).double()  # type: ignore[arg-type]
    for parameter in model.parameters():  # also what starts as ones or zeros
        parameter.data += 0.3 * torch.randn_like(parameter)
    return model


def batch() -> Graph:
    kinds = structures()
    return collate([to_graph(kinds[k], CUTOFF) for k in ("molecule", "triclinic", "slab", "lone_atom")])


def run(model: GauntACE, graph: Graph) -> tuple[Features, torch.Tensor]:
    """Features, and autograd's gradient."""
    r_ij = edge_vectors(graph).requires_grad_()
    features = model(graph, r_ij)
    assert features.node_energy is not None
    (expected,) = torch.autograd.grad(features.node_energy.sum(), r_ij)
    return features, expected


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_gradient_is_autograds(options: dict[str, object]) -> None:
    features, expected = run(make(**options), batch())
    assert expected.abs().max() > 1e-3
    torch.testing.assert_close(features.edge_gradient, expected, rtol=1e-10, atol=1e-11)


def test_one_element_has_no_gates() -> None:
    model = make((29,))
    assert not any("gate" in name for name, _ in model.named_parameters())
    features, expected = run(model, to_graph(bulk("Cu", cubic=True).repeat((2, 1, 1)), CUTOFF))
    torch.testing.assert_close(features.edge_gradient, expected, rtol=1e-10, atol=1e-11)


def test_crowded_atoms_get_the_same() -> None:
    """Several rows for one atom change nothing."""
    cluster = bulk("Cu", cubic=True).repeat(2)
    cluster.pbc = False
    cluster.rattle(0.05, seed=1)
    lone = Atoms("Cu60", positions=[[30.0 * k, 50, 0] for k in range(60)])
    model = make((29,))
    alone, _ = run(model, to_graph(cluster, CUTOFF))
    together, expected = run(model, to_graph(cluster + lone, CUTOFF))
    torch.testing.assert_close(together.node_energy[:32], alone.node_energy)  # type: ignore[index]
    torch.testing.assert_close(together.edge_gradient, expected, rtol=1e-10, atol=1e-11)


def test_stored_constants_change_nothing() -> None:
    model, graph = make(), batch()
    r_ij = edge_vectors(graph)
    stored = graph._replace(inputs={CONSTANTS: model.constants(r_ij)})
    a, b = model(graph, r_ij), model(stored, r_ij)
    torch.testing.assert_close(a.edge_gradient, b.edge_gradient, rtol=0, atol=0)
    single = model(graph._replace(inputs={CONSTANTS: model.constants(r_ij).float()}), r_ij)
    torch.testing.assert_close(single.edge_gradient, a.edge_gradient, rtol=0, atol=0)  # not rounded ones


@pytest.mark.parametrize("num", [1, 5, 20, 89])
def test_many_elements(num: int) -> None:
    """Above six, the density has learned channels: its width does not grow."""
    elements = tuple(range(1, num + 1))
    model = make(elements)
    width = model.in_order()[0].mix_density.weight.shape[1] // 5
    assert width == (num if num <= 6 else 8)
    atoms = bulk("Cu", cubic=True).repeat((2, 2, 1))
    atoms.numbers[:] = list(itertools.islice(itertools.cycle(elements[::-1]), len(atoms)))
    features, expected = run(model, to_graph(atoms, CUTOFF))
    torch.testing.assert_close(features.edge_gradient, expected, rtol=1e-10, atol=1e-11)


def test_one_layer_is_strictly_local() -> None:
    """Atoms beyond the cut-off do not matter with one layer, and do with two."""
    chain = Atoms("Cu4", [[0, 0, 0], [3.0, 0, 0], [6.0, 0.3, 0], [9.0, 0, 0]])
    bent = chain.copy()
    bent.positions[2, 1] += 0.2
    for layers, local in ((1, True), (2, False)):
        model = make((29,), layers=layers)
        before, after = (run(model, to_graph(a, CUTOFF))[0].node_energy for a in (chain, bent))
        assert before is not None
        assert after is not None
        assert bool(torch.isclose(before[0], after[0], rtol=1e-14, atol=0)) == local


SITES = {
    "molecule": (molecule("CH3CH2OH"), 3),
    "diamond": (bulk("Si", cubic=True), 3),
    "rock salt": (bulk("NaCl", "rocksalt", a=5.64, cubic=True), 4),
    "bcc": (bulk("Mo", cubic=True), 6),
    "fcc": (bulk("Cu", cubic=True), 6),
    "hcp": (bulk("Mg"), 6),
    "an atom": (Atoms("He"), 3),
}


@pytest.mark.parametrize("kind", SITES)
def test_degrees_by_how_atoms_are_surrounded(kind: str) -> None:
    """Of perfect crystals and of hot ones, turned and wrapped anyhow."""
    atoms, lmax = SITES[kind]
    if atoms.pbc.all():
        atoms = atoms.repeat(2)
    hot = atoms.copy()
    hot.rattle(0.1, seed=1)
    hot.rotate(40, (1, 2, 3), rotate_cell=True)
    for them in ([atoms], [hot], [atoms, hot, atoms]):
        assert lmax_for([collate([to_graph(x, 5.0) for x in them])], 5.0) == lmax


def test_the_config_takes_from_data_what_it_does_not_say() -> None:
    metal = [to_graph(bulk("Cu", cubic=True), 5.0)]
    assert GauntACEConfig().lmax == 3
    assert GauntACEConfig(channels=16).for_data(metal, 5.0) == GauntACEConfig(channels=16, max_ell=6)
    assert GauntACEConfig(max_ell=2).for_data(metal, 5.0) == GauntACEConfig(max_ell=2)


def test_messages_of_degrees_that_are_not_there() -> None:
    with pytest.raises(ValueError, match="message_ell: 2: must be at most max_ell, 1"):
        GauntACEConfig(max_ell=1, message_ell=2)
    GauntACEConfig(max_ell=1, message_ell=2, layers=1)


@pytest.mark.parametrize(
    ("options", "count"),
    [
        ({}, 4),
        ({"max_ell": 6, "layers": 4, "correlation": 4}, 2),
        ({"layers": 1, "max_ell": 1, "message_ell": 2}, 4),
    ],
    ids=str,
)
def test_relatives_are_other_models(options: dict[str, object], count: int) -> None:
    config = GauntACEConfig(**options)  # type: ignore[arg-type]
    own = make(**to_plain(config) | {"channels": 4})
    relatives = [relative for relative, _ in config.relatives()]
    assert len(relatives) == count
    assert all(cost > 0.5 for _, cost in config.relatives())
    assert len({str(config) for config in (*relatives, config)}) == count + 1
    sizes = {sum(p.numel() for p in make(**to_plain(relative)).parameters()) for relative in relatives}
    assert sum(p.numel() for p in own.parameters()) not in sizes


def test_smooth_functions_are_expected_and_change_no_figures() -> None:
    """Weights are drawn in the proportions that are told, and figures follow from weights alone."""
    options: dict[str, object] = {"message_ell": 2, "layers": 2, "max_ell": 3}
    rough, smooth = (make(smoothness=power, **options) for power in (0.0, 1.0))
    smooth.load_state_dict(rough.state_dict())
    for a, b in zip(run(rough, batch())[0], run(smooth, batch())[0]):
        assert (a is None and b is None) or torch.equal(a, b)
    config, domain = (GauntACEConfig(channels=64, **options), Domain(cutoff=CUTOFF, elements=(1, 8)))  # type: ignore[arg-type]
    model = GauntACE(config, domain)
    weight = model.in_order()[1].mix_density.weight.detach()  # (degree, two elements' waves, C)
    drawn = weight.square().mean(2).sqrt().unflatten(1, (2, 8)).mean(1)
    expected = torch.outer(1 / torch.arange(1.0, 5), 1 / torch.arange(1.0, 9))
    torch.testing.assert_close(drawn / drawn[0, 0], expected, rtol=0.35, atol=0.0)
    named = {id(p): name for name, p in model.named_parameters()}
    assert [named[id(p)].split(".", 2)[-1] for p, _ in model.expected_sizes()] == [
        "mix_density.weight",
        "mix_density.weight",
        "mix_message.weight",
        "message.radial",
    ]
    for p, size in model.expected_sizes():
        assert size.expand_as(p).shape == p.shape
        assert size.min() > 0
    of_degrees = [make(max_ell=lmax).expected_sizes()[2][1].flatten() for lmax in (3, 4)]
    assert of_degrees[0].tolist() == pytest.approx([1, 1 / 2, 1 / 3, 1 / 4])
    assert of_degrees[1].tolist() == [1] * 5  # which are there because they matter
