"""The compiled step of models whose energy is differentiated by autograd gives what the plain one gives."""

import functools
from typing import cast

import pytest
import test_contract as contract
import torch
from ase.build import bulk
from conftest import rattled, structures
from test_contract import make

from physicsml_ase.atoms import to_graph
from physicsml_ase.backends.choose import Engine, choose
from physicsml_ase.backends.compiled import OnRows, Step, examples
from physicsml_ase.backends.derived import of_pairs, traced_step
from physicsml_ase.backends.rows import make_rows
from physicsml_ase.config import MODELS, validate
from physicsml_ase.domain import Domain
from physicsml_ase.graph import Graph, collate
from physicsml_ase.potential import Potential

PAIRS = ("lj", "zbl")  # which know no attributes
COMPILED = ("nequip", "allegro", "mace", "tensor_net", "painn", "egnn", "ani", *PAIRS)


def test_pairs_of_rows() -> None:
    rows = make_rows(to_graph(structures()["triclinic"], 4.0), 4.0)
    assert rows is not None
    first, pair = of_pairs(rows)
    pair, reverse = pair.flatten(), rows.reverse.flatten()
    assert (pair == pair[reverse]).all()
    assert ((first[pair] == torch.arange(len(pair))) | (first[pair] == reverse)).all()
    assert pair.max() < len(first)


class Through:
    """What the contract asks of a potential, answered by an engine."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine

    def __call__(self, graph: Graph, derivatives: bool = True) -> dict[str, torch.Tensor]:
        return self.engine(graph)

    def train(self, mode: bool) -> None:
        """It is not trained."""
        assert not mode


def wall_less(name: str, **settings: object) -> Potential:
    """Structures within the wall, as most of the contract's are, would be computed by the potential itself."""
    potential = make(name, **settings)
    potential.wall = None
    return potential


def one_element(name: str) -> Potential:
    """A model that knows copper alone."""
    torch.manual_seed(2)
    domain = Domain(cutoff=4.0, elements=(29,), avg_num_neighbors=12.0, energy_scale=1.3)
    config = validate(MODELS[name].config, {"name": name, **contract.SMALL[name]})
    return Potential(config, domain, ()).double().eval().requires_grad_(False)


@functools.cache
def compiled(name: str) -> Engine:
    """Compiled once for all tests, which takes minutes on a single core."""
    return choose("compile", wall_less(name))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["gaunt_ace", *COMPILED])
def test_contract_when_compiled(name: str) -> None:
    engine = compiled(name)
    through = cast(Potential, Through(engine))
    for kind in contract.KINDS:
        contract.test_turns_with_the_structure(through, kind, proper=False)
        contract.test_nothing_depends_on_origin_or_wrapping(through, kind)
        contract.test_order_of_atoms_does_not_matter(through, kind)
        if kind in ("molecule", "triclinic", "slab", "tiny"):
            contract.test_forces_are_the_gradient(through, kind)
    for kind in contract.PERIODIC:
        contract.test_stress_is_the_strain_derivative(through, kind)
    for kind in ("molecule", "slab_without_c", "lone_atom"):
        contract.test_no_stress_without_a_volume(through, kind)
    contract.test_equivalent_cells_agree(through)
    contract.test_a_batch_is_its_singles(through, training=False)
    contract.test_a_supercell_is_its_cell(through, "tiny")
    contract.test_energies_of_far_atoms_add(through)
    contract.test_smooth_at_the_cutoff(through)
    contract.test_smooth_at_symmetric_sites(through)
    assert engine.name == "compile"


@pytest.mark.slow
@pytest.mark.parametrize("name", COMPILED)
@pytest.mark.parametrize("backend", ["compile", "aoti"])
def test_compiled_is_plain(name: str, backend: str) -> None:
    if backend == "compile":
        engine = compiled(name)
    else:
        attrs = {"attrs": ("temperature",), "attr_shifts": (300.0,), "attr_scales": (100.0,)}
        engine = choose(backend, wall_less(name, **({} if name in PAIRS else attrs)))
    potential, kinds = engine.potential, structures()
    for k, atoms in enumerate(kinds.values()):
        atoms.info["temperature"] = 250.0 + 40.0 * k
    graphs = {k: to_graph(a, 4.0, attrs=potential.domain.attrs) for k, a in kinds.items()}
    graphs["batch"] = collate([graphs["molecule"], graphs["crystal"]])
    for graph in graphs.values():
        plain, fast = potential(graph), engine(graph)
        for key, value in plain.items():
            torch.testing.assert_close(fast[key], value, rtol=1e-9, atol=1e-9, equal_nan=True)
    assert engine.name == backend


@pytest.mark.parametrize("name", ["mace", "nequip"])
def test_a_trace_leaves_nothing_in_the_model(name: str) -> None:
    """Of a single element, too, whose weights are kept: the next trace and plain steps use real ones."""
    potential = one_element(name)
    graph = to_graph(rattled(bulk("Cu").repeat(2)), 4.0)
    step, inputs = Step(potential), examples(potential)
    traces = [traced_step(potential, inputs, step.close)[0] for _ in range(2)]
    expected = one_element(name)(graph)
    torch.testing.assert_close(potential(graph)["forces"], expected["forces"])
    for trace in traces:
        found = OnRows(potential, lambda given, trace=trace: trace(*given))(graph)  # type: ignore[misc]
        torch.testing.assert_close(found["forces"], expected["forces"], rtol=1e-9, atol=1e-9)
