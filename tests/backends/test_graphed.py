"""A step that is recorded must never wait for the GPU, which can be seen without one; for the rest see test_gpu."""

import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from ase.build import bulk
from conftest import rattled, structures
from test_contract import make
from torch.utils._python_dispatch import TorchDispatchMode

from physicsml_ase.atoms import to_graph
from physicsml_ase.backends import rows as backend_rows
from physicsml_ase.backends.choose import choose
from physicsml_ase.backends.compiled import OnRows
from physicsml_ase.backends.graphed import RECORDING, Graphed, Recorded, plain_function
from physicsml_ase.backends.moving import MovingGraph
from physicsml_ase.backends.package import not_compilable
from physicsml_ase.config import MODELS
from physicsml_ase.conventions import InputError
from physicsml_ase.graph import Graph, collate
from physicsml_ase.potential import Potential

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


def bare(name: str, **settings: object) -> Potential:
    """Without a wall, within which most of the structures are, and where the potential itself computes."""
    potential = make(name, **settings)
    potential.wall = None
    return potential


@pytest.mark.parametrize("name", RECORDED)
def test_nothing_waits(name: str) -> None:
    potential = bare(name)
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


@pytest.mark.parametrize("name", [n for n in RECORDED if n not in ("lj", "zbl")])  # which know no attributes
def test_each_structure_of_a_batch_has_its_own_attributes(name: str) -> None:
    attrs = {"attrs": ("temperature",), "attr_shifts": (300.0,), "attr_scales": (100.0,)}
    potential, graphs = bare(name, **attrs), []
    for atoms, temperature in ((structures()["molecule"], 250.0), (structures()["triclinic"], 600.0)):
        atoms.info["temperature"] = temperature
        graphs.append(to_graph(atoms, 4.0, attrs=("temperature",)))
    graph = collate(graphs)
    expected, found = potential(graph), OnRows(potential, plain_function(potential))(graph)
    for key, value in expected.items():
        torch.testing.assert_close(found[key], value, rtol=1e-9, atol=1e-9, equal_nan=True)


@pytest.mark.parametrize("name", RECORDED)
def test_edges_beyond_the_cutoff_change_nothing(name: str) -> None:
    """A recorded step is given lists with their skin."""
    potential, atoms = bare(name), rattled(bulk("Cu", cubic=True))
    expected, found = (OnRows(potential, plain_function(potential))(to_graph(atoms, c)) for c in (4.0, 5.2))
    for key, value in expected.items():
        torch.testing.assert_close(found[key], value, rtol=1e-9, atol=1e-9)


def test_it_is_for_gpus() -> None:
    with pytest.raises(InputError, match="backend cuda_graph: is for GPUs, and the model is on cpu"):
        choose("cuda_graph", make("gaunt_ace"))


class Recorder(Graphed):
    """Records as a GPU does: a replay computes what is in the kept inputs, into the same outputs."""

    wrong = False

    def _record(self, inputs: list[torch.Tensor]) -> Recorded:
        assert RECORDING.locked()
        kept, function, wrong = [x.clone() for x in inputs], self._function, self.wrong
        outputs = [x.clone() for x in function(kept)]

        class Replay:
            replays = 0

            def replay(self) -> None:
                self.replays += 1
                for there, x in zip(outputs, () if wrong else function(kept)):
                    there.copy_(x)

        return Recorded(Replay(), kept, outputs)


def moved(potential: Potential) -> Iterator[tuple[Graph, Graph]]:
    """Structures on their way, through lists, cells and sizes, and towards each other; with a skin and without."""
    rng = np.random.default_rng(0)
    for atoms in (structures()["triclinic"], structures()["crystal"], structures()["molecule"]):
        moving = MovingGraph(potential.domain, 0.5, torch.device("cpu"))
        for step in range(7):
            atoms.positions += 0.03 * rng.normal(size=atoms.positions.shape)
            if step == 3 and atoms.pbc.all():
                atoms.set_cell(atoms.cell.array * 1.01, scale_atoms=True)
            if step == 5:
                atoms.positions[1] += 0.3 * (atoms.positions[0] - atoms.positions[1])
            yield moving.next(atoms, {}, sys.maxsize), to_graph(atoms, 4.0)


@pytest.mark.parametrize("name", [*RECORDED, "walled"])
def test_a_replay_is_of_the_present_structure(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backend_rows, "ROUNDED", {"cpu"})
    potential = make("gaunt_ace") if name == "walled" else bare(name)
    recorder, kept = Recorder(plain_function(potential), 1e-9, 1.0), []
    rows = OnRows(potential, recorder)
    for graph, exact in moved(potential):
        expected, found = potential(exact), rows(graph)
        for key, value in expected.items():
            torch.testing.assert_close(found[key], value, rtol=1e-9, atol=1e-8, equal_nan=True)
        kept.append((found, {key: value.clone() for key, value in found.items()}))
    assert recorder._recorded is not None
    assert recorder._recorded.graph.replays > 2
    for found, copied in kept:  # which later steps did not write over
        for key, value in copied.items():
            torch.testing.assert_close(found[key], value, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("name", ["gaunt_ace", "mace"])
def test_weights_that_change_are_used(name: str) -> None:
    """A model may be trained further while a calculator has it: what was made of its old weights is not used."""
    potential = bare(name).requires_grad_(False)
    graph = to_graph(structures()["triclinic"], 4.0)
    rows = OnRows(potential, Recorder(plain_function(potential), 1e-9, 1.0))
    before = [rows(graph)["energy"] for _ in range(3)][-1]
    potential.load_state_dict({key: 1.1 * value for key, value in potential.state_dict().items()})
    after = rows(graph)["energy"]
    torch.testing.assert_close(after, potential(graph)["energy"])
    assert (after - before).abs() > 1e-6


@pytest.mark.parametrize("name", ["gaunt_ace", "nequip"])
def test_within_inference_mode(name: str) -> None:
    potential = bare(name)
    rows = OnRows(potential, Recorder(plain_function(potential), 1e-9, 1.0))
    with torch.inference_mode():
        graph = to_graph(structures()["triclinic"], 4.0).map(torch.clone)
        assert graph.positions.is_inference()
        inside = [rows(graph)["forces"] for _ in range(4)]
    outside = rows(to_graph(structures()["triclinic"], 4.0))["forces"]
    for forces in inside:
        torch.testing.assert_close(forces, outside, rtol=1e-12, atol=1e-12)


def test_threads_take_turns() -> None:
    potential, kinds = bare("gaunt_ace"), structures()
    frames = [rattled(kinds["triclinic"], 0.02, seed=k) for k in range(40)]  # lists of equal sizes
    graphs = [to_graph(atoms, 5.5) for atoms in frames]
    expected = [potential(graph)["forces"] for graph in graphs]
    rows = OnRows(potential, Recorder(plain_function(potential), 1e-9, 1.0))
    with ThreadPoolExecutor(4) as pool:
        for found, value in zip(pool.map(rows, graphs), expected, strict=True):
            torch.testing.assert_close(found["forces"], value, rtol=1e-9, atol=1e-9)


def test_a_wrong_recording_is_not_used(caplog: pytest.LogCaptureFixture) -> None:
    potential, atoms = bare("gaunt_ace"), structures()["triclinic"]
    recorder = Recorder(plain_function(potential), 1e-9, 1.0)
    recorder.wrong = True
    rows, moving = OnRows(potential, recorder), MovingGraph(potential.domain, 1.0, torch.device("cpu"))
    for _ in range(5):
        atoms.positions[0, 0] += 0.01
        found = rows(moving.next(atoms, {}, sys.maxsize))["forces"]
        torch.testing.assert_close(found, potential(to_graph(atoms, 4.0))["forces"], rtol=1e-9, atol=1e-9)
    assert caplog.text.count("gives other results than the plain one") == 1


def test_without_memory_it_is_tried_once_for_each_size(caplog: pytest.LogCaptureFixture) -> None:
    potential, tries = bare("gaunt_ace"), []

    class Full(Recorder):
        def _record(self, inputs: list[torch.Tensor]) -> Recorded:
            tries.append(inputs[0].shape)
            if inputs[0].shape[0] > 4:
                raise torch.OutOfMemoryError
            return super()._record(inputs)

    rows = OnRows(potential, Full(plain_function(potential), 1e-9, 1.0))
    for kind in ("molecule", "crystal"):
        graph = to_graph(structures()[kind], 4.0)
        for _ in range(6):
            torch.testing.assert_close(rows(graph)["forces"], potential(graph)["forces"])
    assert [tuple(shape) for shape in tries] == [(len(structures()[k]), 3) for k in ("molecule", "crystal")]
    assert caplog.text.count("no memory to record") == 1
