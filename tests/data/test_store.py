"""Stores give the same batches as graphs made one by one and put together."""

import logging
import pickle

import numpy as np
import pytest
import torch
from ase import Atoms
from frames_for_tests import LABELS, RECIPE, assert_same, every_kind, molecules, source_of, with_labels

from physicsml_ase.conventions import InputError, Label
from physicsml_ase.data.disk import DiskStore, write
from physicsml_ase.data.flat import concat, flatten
from physicsml_ase.data.frames import NothingLeft, Recipe, chunks
from physicsml_ase.data.store import LiveStore, MemoryStore, Store
from physicsml_ase.graph import collate


@pytest.fixture(params=["live", "memory", "disk"])
def store(request: pytest.FixtureRequest, tmp_path) -> Store:
    source = source_of(every_kind())
    parts = chunks(source, RECIPE)
    if request.param == "live":
        return LiveStore(source, RECIPE, parts)
    if request.param == "memory":
        return MemoryStore(parts)
    write(tmp_path / "graphs.h5", parts)
    return DiskStore(tmp_path / "graphs.h5")


@pytest.mark.parametrize("order", [[3], [0, 1, 2], [4, 5, 6, 7], [9, 2, 2, 5, 0], [10, 8, 10]])
def test_a_batch_is_the_collated_graphs(store: Store, order: list[int]) -> None:
    frames = every_kind()
    expected = collate([RECIPE.graph(frames[k], "frame") for k in order])
    assert_same(store.read(np.array(order)), expected)


def test_sizes_are_those_of_the_graphs(store: Store) -> None:
    graphs = [RECIPE.graph(atoms, "frame") for atoms in every_kind()]
    assert store.num_atoms.tolist() == [int(g.num_atoms) for g in graphs]
    assert store.num_edges.tolist() == [int(g.num_edges) for g in graphs]
    assert store.frames.tolist() == list(range(len(graphs)))


def test_a_store_survives_pickling(store: Store) -> None:
    copy = pickle.loads(pickle.dumps(store))
    assert len(copy) == len(store)
    assert_same(copy.read(np.array([5, 1])), store.read(np.array([5, 1])))


def test_sizes_outlive_the_move_of_the_arrays_to_a_worker() -> None:
    store = MemoryStore(chunks(source_of(molecules(50)), RECIPE))
    before = store.num_atoms.copy(), store.num_edges.copy(), store.frames.copy()
    for _, _, array in store.flat.items():
        array.share_memory_()  # as pickling for another process does; it frees what was there
    assert not any(
        np.shares_memory(mine, array.numpy())
        for mine in (store.num_atoms, store.num_edges, store.frames)
        for array in store.flat.arrays["structure"].values()
    )
    for now, then in zip((store.num_atoms, store.num_edges, store.frames), before):
        np.testing.assert_array_equal(now, then)


def test_labels_of_every_level_and_attributes_come_back() -> None:
    frames = []
    for k, atoms in enumerate(molecules(4)):
        n = len(atoms)
        atoms.info |= {"charge": float(k), "field": [1.0, k], "bond": np.arange(n * n).reshape(n, n)}
        atoms.arrays["q"] = np.arange(n, dtype=float)
        frames.append(atoms)
    labels = (Label("bond", "edge", (), "bond"), Label("q", "atom", (), "q"), *LABELS[:1])
    recipe = Recipe(cutoff=3.0, labels=labels, attrs=("charge", "field"), self_interaction=True)
    store = MemoryStore(chunks(source_of(frames), recipe))
    batch = store.read(np.array([2, 0]))
    assert_same(batch, collate([recipe.graph(frames[k], "frame") for k in (2, 0)]))
    assert batch.inputs["graph_attrs"].tolist() == [[2, 1, 2], [0, 1, 0]]
    assert len(batch.targets["bond"]) == len(batch.reverse)


def test_parts_make_the_whole() -> None:
    graphs = [RECIPE.graph(atoms, "frame") for atoms in every_kind()]
    parts = [flatten(graphs[:4], LABELS, range(4)), flatten(graphs[4:], LABELS, range(4, len(graphs)))]
    assert_same(concat(parts).to_graph(), collate(graphs))


def test_an_edge_takes_18_bytes() -> None:
    flat = MemoryStore(chunks(source_of(molecules(3)), RECIPE)).flat
    assert sum(x.nbytes for level, _, x in flat.items() if level == "edge") == 18 * int(
        flat.starts["edge"][-1]
    )


def test_frames_of_no_use_are_left_out_and_named(caplog: pytest.LogCaptureFixture) -> None:
    frames = molecules(5)
    frames[1].calc = None
    frames[3] = with_labels(frames[3], energy=1.0, forces=np.full((len(frames[3]), 3), 1e3))
    recipe = Recipe(cutoff=4.0, labels=LABELS, labelled_only=True, max_force=100.0)
    with caplog.at_level(logging.WARNING, "physicsml_ase"):
        store = MemoryStore(chunks(source_of(frames), recipe))
    assert store.frames.tolist() == [0, 2, 4]
    assert "1 of 5 structures without any of the labels energy, forces, stress: structure 1" in caplog.text
    assert "1 of 5 structures with a force above max_force=100 eV/Å: structure 3" in caplog.text


def test_nothing_left_is_an_error_that_says_what_was_found() -> None:
    frames = [Atoms("H2", [[0, 0, 0], [0, 0, 1]], info={"REF_energy": 1.0})]
    with pytest.raises(NothingLeft, match=r"label_keys=\{energy: REF_energy\}"):
        MemoryStore(chunks(source_of(frames), Recipe(cutoff=3.0, labels=LABELS, labelled_only=True)))


def test_an_element_that_the_model_does_not_know_is_named() -> None:
    recipe = Recipe(cutoff=3.0, elements=(1, 6, 8))
    frames = [Atoms("CO", [[0, 0, 0], [0, 0, 1.1]]), Atoms("HOXe", [[0, 0, 0], [0, 0, 1], [3, 0, 0]])]
    with pytest.raises(
        InputError, match=r"structure 1: element Xe \(atom 2\) is not in the model \(H, C, O\)"
    ):
        list(chunks(source_of(frames), recipe))


def test_an_atom_absurdly_far_outside_its_cell_is_refused() -> None:
    atoms = Atoms("H2", [[0, 0, 0], [1.0e6 + 1, 0, 0]], cell=[2.0, 2.0, 2.0], pbc=True)
    with pytest.raises(InputError, match=r"structure 0: .*wrap"):
        list(chunks(source_of([atoms]), Recipe(cutoff=3.0)))


def test_chunks_made_by_workers_are_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    import physicsml_ase.data.frames as module

    monkeypatch.setattr(module, "WORTH_WORKERS", 1)
    monkeypatch.setattr(module, "CHUNK", 16)
    source = source_of(molecules(70))
    alone, helped = (MemoryStore(chunks(source, RECIPE, workers=w)) for w in (0, 2))
    assert_same(helped.read(np.arange(70)), alone.read(np.arange(70)))
    assert torch.equal(helped.flat.arrays["structure"]["frame"], torch.arange(70))
