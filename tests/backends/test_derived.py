"""The compiled step of models whose energy is differentiated by autograd gives what the plain one gives."""

import pytest
import torch
from conftest import structures
from test_contract import make

from physicsml_ase.atoms import to_graph
from physicsml_ase.backends.choose import choose
from physicsml_ase.backends.derived import of_pairs
from physicsml_ase.backends.rows import make_rows
from physicsml_ase.graph import collate

COMPILED = ("nequip", "allegro", "mace", "tensor_net")


def test_pairs_of_rows() -> None:
    rows = make_rows(to_graph(structures()["triclinic"], 4.0), 4.0)
    assert rows is not None
    first, pair = of_pairs(rows)
    pair, reverse = pair.flatten(), rows.reverse.flatten()
    assert (pair == pair[reverse]).all()
    assert ((first[pair] == torch.arange(len(pair))) | (first[pair] == reverse)).all()
    assert pair.max() < len(first)


@pytest.mark.slow
@pytest.mark.parametrize("name", COMPILED)
@pytest.mark.parametrize("backend", ["compile", "aoti"])
def test_compiled_is_plain(name: str, backend: str) -> None:
    attrs = {"attrs": ("temperature",), "attr_shifts": (300.0,), "attr_scales": (100.0,)}
    potential = make(name, **(attrs if backend == "compile" else {}))
    engine = choose(backend, potential)
    kinds = structures()
    for atoms in kinds.values():
        atoms.info["temperature"] = 350.0
    graphs = {k: to_graph(a, 4.0, attrs=potential.domain.attrs) for k, a in kinds.items()}
    graphs["batch"] = collate([graphs["molecule"], graphs["crystal"]])
    if backend == "compile":  # which may compile again for sizes that are equal by chance
        graphs = {k: graphs[k] for k in ("triclinic", "batch")}
    for graph in graphs.values():
        plain, fast = potential(graph), engine(graph)
        for key, value in plain.items():
            torch.testing.assert_close(fast[key], value, rtol=1e-9, atol=1e-9, equal_nan=True)
    assert engine.name == backend
