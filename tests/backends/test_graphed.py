"""A step that is recorded must never wait for the GPU, which can be seen without one; for the rest see test_gpu."""

import pytest
import torch
from ase.build import bulk
from conftest import rattled, structures
from test_contract import make
from torch.utils._python_dispatch import TorchDispatchMode

from physicsml_ase.atoms import to_graph
from physicsml_ase.backends.choose import choose
from physicsml_ase.backends.compiled import OnRows
from physicsml_ase.backends.graphed import plain_function
from physicsml_ase.backends.package import not_compilable
from physicsml_ase.config import MODELS
from physicsml_ase.conventions import InputError
from physicsml_ase.graph import collate

WAITING = ("_local_scalar_dense", "nonzero", "unique", "masked_select", "bincount", "lift_fresh")
RECORDED = [n for n in sorted(MODELS) if not_compilable(make(n)) is None]


class Waits(TorchDispatchMode):
    """Notes operators whose sizes depend on values, or that bring values from the host."""

    def __init__(self) -> None:
        super().__init__()
        self.found = list[str]()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        name = str(func)
        by_mask = "aten.index" in name and any(
            isinstance(x, torch.Tensor) and x.dtype == torch.bool
            for a in args
            if isinstance(a, list)
            for x in a
        )
        repeats = "repeat_interleave" in name and (kwargs or {}).get("output_size") is None
        if by_mask or repeats or any(word in name for word in WAITING):
            self.found.append(name)
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("name", RECORDED)
def test_nothing_waits(name: str) -> None:
    potential = make(name)
    noted = []

    def function(inputs: list[torch.Tensor]):
        plain = plain_function(potential)
        with Waits() as mode:
            out = plain(inputs)
        noted.append(mode.found)
        return out

    kinds = structures()
    rows = OnRows(potential, function)
    for graph in (
        to_graph(kinds["triclinic"], 4.0),
        collate([to_graph(kinds[kind], 4.0) for kind in ("molecule", "crystal")]),
    ):
        expected, found = potential(graph), rows(graph)
        for key, value in expected.items():
            torch.testing.assert_close(found[key], value, rtol=1e-9, atol=1e-9, equal_nan=True)
    assert len(noted) == 2
    assert noted == [[], []]


@pytest.mark.parametrize("name", RECORDED)
def test_edges_beyond_the_cutoff_change_nothing(name: str) -> None:
    """A recorded step is given lists with their skin."""
    potential, atoms = make(name), rattled(bulk("Cu", cubic=True))
    expected, found = (OnRows(potential, plain_function(potential))(to_graph(atoms, c)) for c in (4.0, 5.2))
    for key, value in expected.items():
        torch.testing.assert_close(found[key], value, rtol=1e-9, atol=1e-9)


def test_it_is_for_gpus() -> None:
    with pytest.raises(InputError, match="backend cuda_graph: is for GPUs, and the model is on cpu"):
        choose("cuda_graph", make("gaunt_ace"))
