"""Batches: a pure function of seed and epoch, dealt to ranks and continued in mid-epoch without a gap."""

import multiprocessing
import os
import signal
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from frames_for_tests import LABELS, RECIPE, assert_same, molecules, numbers_in, source_of

from physicsml_ase.conventions import InputError
from physicsml_ase.data.batching import WINDOW, Plan, Rule, Sizes, over_budget, plan, shuffled
from physicsml_ase.data.disk import DiskStore, write
from physicsml_ase.data.frames import chunks
from physicsml_ase.data.loader import GraphLoader
from physicsml_ase.data.store import LiveStore, MemoryStore


def sizes_of(count: int, block: int = 1, seed: int = 0) -> Sizes:
    rng = np.random.default_rng(seed)
    atoms = rng.integers(1, 30, count)
    return Sizes(atoms, atoms * 7, block)


def batches(plan: Plan) -> list[list[int]]:
    return [share.indices.tolist() for share in (plan.share(k) for k in range(plan.steps)) if not share.blank]


def seen(plan: Plan) -> Counter[int]:
    return Counter(i for batch in batches(plan) for i in batch)


@pytest.mark.parametrize("block", [1, 7])
@pytest.mark.parametrize("shuffle", [False, True])
def test_every_structure_is_in_one_batch(block: int, shuffle: bool) -> None:
    for count in (1, 6, 7, 100):
        for rule in (Rule(4, shuffle=shuffle), Rule(9, max_atoms=60, max_edges=300, shuffle=shuffle)):
            drawn = seen(plan(sizes_of(count, block), rule))
            assert drawn == Counter(range(count))


def test_epochs_differ_and_repeat_themselves() -> None:
    rule, sizes = Rule(4, shuffle=True, seed=5), sizes_of(40)
    first = [batches(plan(sizes, rule, epoch)) for epoch in range(3)]
    assert first == [batches(plan(sizes, rule, epoch)) for epoch in range(3)]
    assert first[0] != first[1] != first[2]
    assert first[0] != batches(plan(sizes, Rule(4, shuffle=True, seed=6)))
    assert batches(plan(sizes, rule, 0, cycle=1)) not in first


def test_the_order_is_the_same_on_every_machine_for_ever() -> None:
    assert batches(plan(sizes_of(7), Rule(3, shuffle=True, seed=1), epoch=2)) == [[1, 6, 3], [0], [5, 2, 4]]


def test_composition_is_kept_for_the_interval_while_the_order_changes() -> None:
    rule, sizes = Rule(4, shuffle=True, redraw_interval=3), sizes_of(40)
    sets = [{frozenset(batch) for batch in batches(plan(sizes, rule, epoch))} for epoch in range(6)]
    assert sets[0] == sets[1] == sets[2] != sets[3] == sets[5]
    assert batches(plan(sizes, rule, 0)) != batches(plan(sizes, rule, 1))


def test_drop_last_never_drops_everything() -> None:
    assert plan(sizes_of(10), Rule(4, drop_last=True)).steps == 2
    assert batches(plan(sizes_of(3), Rule(4, drop_last=True))) == [[0, 1, 2]]
    assert batches(plan(sizes_of(3), Rule(8, max_atoms=10**6, drop_last=True))) == [[0, 1, 2]]


@pytest.mark.parametrize("epoch", range(3))
def test_two_ranks_see_the_global_batches_of_one(epoch: int) -> None:
    alone = plan(sizes_of(33), Rule(4, shuffle=True, drop_last=True), epoch)
    ranks = [plan(sizes_of(33), Rule(2, shuffle=True, drop_last=True), epoch, 0, r, 2) for r in range(2)]
    assert [sorted(a + b) for a, b in zip(*map(batches, ranks))] == [
        sorted(batch) for batch in batches(alone)
    ]


@pytest.mark.parametrize("rule", [Rule(2), Rule(5, max_atoms=40), Rule(2, shuffle=True, drop_last=True)])
@pytest.mark.parametrize("count", [1, 2, 3, 10, 31])
def test_ranks_take_equal_numbers_of_batches_and_share_nothing(rule: Rule, count: int) -> None:
    world = 3
    plans = [plan(sizes_of(count), rule, 0, 0, rank, world) for rank in range(world)]
    assert len({p.steps for p in plans}) == 1
    assert plans[0].steps > 0
    together = sum((seen(p) for p in plans), Counter())
    assert max(together.values()) == 1
    if not rule.drop_last:
        assert set(together) == set(range(count))


def test_no_batch_passes_its_budget_unless_it_is_one_structure() -> None:
    sizes = sizes_of(200)
    rule = Rule(6, max_atoms=25, max_edges=160, shuffle=True)
    of = batches(plan(sizes, rule, 4))
    assert any(len(batch) == 1 and sizes.num_atoms[batch[0]] > 25 for batch in of)
    for batch in of:
        within = (
            sizes.num_atoms[batch].sum() <= 25 and sizes.num_edges[batch].sum() <= 160 and len(batch) <= 6
        )
        assert within or len(batch) == 1
    assert len(over_budget(sizes, rule)) == (sizes.num_edges > 160).sum()


def test_a_budget_gives_the_same_number_of_batches_in_every_epoch() -> None:
    rule = Rule(6, max_atoms=60, shuffle=True, drop_last=True)
    for world in (1, 2):
        counts = {
            plan(sizes_of(150), rule, e, c, r, world).steps
            for e in range(8)
            for c in (0, 1)
            for r in range(world)
        }
        assert len(counts) == 1


def test_a_window_reads_few_blocks_and_every_block_once() -> None:
    block, count = 10, 12 * 10 * WINDOW
    drawn = batches(plan(sizes_of(count, block), Rule(5, shuffle=True), 1))
    blocks = [[i // block for i in batch] for batch in drawn]
    per_window = WINDOW * block // 5
    for k in range(0, len(blocks), per_window):
        assert len({b for batch in blocks[k : k + per_window] for b in batch}) == WINDOW
    assert any(len(set(b)) > 3 for b in blocks)
    assert sorted(shuffled(count, block, WINDOW, (1, 2))) == list(range(count))


# --- the loader


@pytest.fixture(scope="module")
def store() -> MemoryStore:
    return MemoryStore(chunks(source_of(molecules(22)), RECIPE))


def test_passes_without_an_epoch_differ_and_with_one_repeat(store: MemoryStore) -> None:
    loader = GraphLoader(store, Rule(4, shuffle=True, drop_last=True))
    first, second = ([numbers_in(b) for b in loader] for _ in range(2))
    assert len(first) == len(loader) == 5
    assert first != second
    again = GraphLoader(store, Rule(4, shuffle=True, drop_last=True))
    assert [numbers_in(b) for b in again] == first
    again.set_epoch(1)
    third = [numbers_in(b) for b in again]
    again.set_epoch(0)
    assert [numbers_in(b) for b in again] == first != third


def test_asking_for_an_iterator_changes_nothing(store: MemoryStore) -> None:
    a, b = (GraphLoader(store, Rule(4, shuffle=True)) for _ in range(2))
    iter(a)
    waiting = iter(a)
    a.set_epoch(2)
    b.set_epoch(2)
    assert [numbers_in(x) for x in waiting] == [numbers_in(x) for x in b]


@pytest.mark.parametrize("num_workers", [0, 2])
def test_a_loader_continues_in_mid_epoch(store: MemoryStore, num_workers: int) -> None:
    rule = Rule(3, shuffle=True, drop_last=True, seed=9)
    whole = GraphLoader(store, rule, num_workers)
    whole.set_epoch(4)
    expected = list(whole)
    whole.set_epoch(5)
    after = [numbers_in(b) for b in whole]
    whole.close()

    stopped = GraphLoader(store, rule, num_workers)
    stopped.set_epoch(4)
    got = []
    for batch in stopped:
        got.append(batch)
        if len(got) == 3:
            state = stopped.state_dict()  # workers have read further ahead than this
            break
    stopped.close()
    continued = GraphLoader(store, rule, num_workers)
    continued.load_state_dict(state)
    continued.set_epoch(4)
    got += list(continued)
    assert len(continued) == len(expected) == len(got)
    for a, b in zip(got, expected):
        assert_same(a, b)
    continued.set_epoch(5)
    assert [numbers_in(b) for b in continued] == after
    continued.close()


def test_a_source_that_had_run_out_stays_so_until_the_next_epoch(store: MemoryStore) -> None:
    """Beside longer sources, each read once; where it is read again and again, it begins again."""
    for once in (True, False):
        stopped, continued = (GraphLoader(store, Rule(4, shuffle=True)) for _ in range(2))
        continued.once = once
        stopped.set_epoch(1)
        assert list(stopped)
        continued.load_state_dict(stopped.state_dict())
        continued.set_epoch(1)
        assert bool(list(continued)) == (not once)
        continued.set_epoch(2)
        assert len(list(continued)) == len(continued)


def test_workers_leave_the_random_numbers_of_the_run_alone(store: MemoryStore) -> None:
    torch.manual_seed(0)
    before = torch.get_rng_state()
    loader = GraphLoader(store, Rule(8, shuffle=True), 1)
    assert len(list(loader)) == len(list(loader)) == 3
    loader.close()
    assert torch.equal(torch.get_rng_state(), before)


def test_workers_do_not_run_the_user_s_script_again(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    tests = [str(Path(__file__).parent), str(Path(__file__).parents[1])]
    script.write_text(
        f"import sys\nsys.path[:0] = {tests}\nprint('run')\n"
        "from frames_for_tests import *\n"
        "from physicsml_ase.data import frames\n"
        "from physicsml_ase.data.loader import GraphLoader\n"
        "from physicsml_ase.data.batching import Rule\n"
        "from physicsml_ase.data.store import MemoryStore\n"
        "frames.WORTH_WORKERS = 1\n"
        "store = MemoryStore(frames.chunks(source_of(molecules(9)), RECIPE, workers=2))\n"
        "print(len(list(GraphLoader(store, Rule(3), 2))))\n"
    )
    done = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, timeout=120)
    assert (done.stdout, done.returncode) == ("run\n3\n", 0), done.stderr


@pytest.mark.filterwarnings("ignore:Got pickle error")
def test_what_can_not_be_sent_to_workers_is_said_in_one_line() -> None:
    frames = molecules(9)
    frames[0].info["note"] = lambda: None
    source = source_of(frames)
    store = LiveStore(source, RECIPE, chunks(source, RECIPE))
    with pytest.raises(InputError, match="num_workers=0"):
        list(GraphLoader(store, Rule(3), 1))


def test_a_pass_that_was_left_does_not_disturb_the_next(store: MemoryStore) -> None:
    for workers in (0, 1):
        loader = GraphLoader(store, Rule(2, shuffle=True), workers)
        for _ in loader:
            break
        loader.set_epoch(1)
        fresh = GraphLoader(store, Rule(2, shuffle=True))
        fresh.set_epoch(1)
        assert [numbers_in(b) for b in loader] == [numbers_in(b) for b in fresh]
        loader.close()


def test_a_rank_without_a_structure_gets_one_that_counts_for_nothing(store: MemoryStore) -> None:
    few = MemoryStore(chunks(source_of(molecules(3)), RECIPE))
    loaders = [GraphLoader(few, Rule(2), rank=rank, world=4) for rank in range(4)]
    got = [list(loader) for loader in loaders]
    assert [len(batches) for batches in got] == [1, 1, 1, 1]
    assert sorted(numbers_in(b)[0] for (b,) in got[:3]) == [0, 1, 2]
    (blank,) = got[3]
    assert all(bool(blank.targets[label.name].isnan().all()) for label in LABELS)


def test_more_devices_than_before_continue_with_a_warning(
    store: MemoryStore, caplog: pytest.LogCaptureFixture
) -> None:
    loader = GraphLoader(store, Rule(2, shuffle=True), rank=0, world=2)
    loader.load_state_dict({"epoch": 1, "cycle": 0, "position": 9, "steps": 11})
    assert "does not continue with exactly" in caplog.text
    assert len(list(loader)) == 6


def test_shuffled_batches_from_disk_hold_every_structure(tmp_path) -> None:
    source = source_of(molecules(60))
    write(tmp_path / "graphs.h5", chunks(source, RECIPE))
    store = DiskStore(tmp_path / "graphs.h5")
    store.block = 4
    loader = GraphLoader(store, Rule(5, shuffle=True))
    assert Counter(n for batch in loader for n in numbers_in(batch)) == Counter(range(60))


def test_a_structure_over_the_budget_is_said_once(
    store: MemoryStore, caplog: pytest.LogCaptureFixture
) -> None:
    loader = GraphLoader(store, Rule(8, max_atoms=6), name="train data")
    list(loader)
    list(loader)
    assert caplog.text.count("go alone") == 1


def test_an_interrupt_does_not_end_the_workers(store: MemoryStore) -> None:
    """Ctrl-C reaches every process of a terminal; the run goes on to a place where it can be continued."""
    loader = GraphLoader(store, Rule(batch_size=2), 2)
    batches = iter(loader)
    next(batches), next(batches)  # one from each worker: both have begun
    for worker in multiprocessing.active_children():
        os.kill(worker.pid or 0, signal.SIGINT)
    assert len(list(batches)) == len(loader) - 2
    loader.close()
