"""Threads that share work."""

import multiprocessing
import os

import pytest

from physicsml_ase.backends import crew
from physicsml_ase.backends.crew import Crew, cores_of_a_process


def test_every_task_is_done_once() -> None:
    for threads in (1, 2, 5):
        done: list[tuple[int, int]] = []

        def work(task: int, thread: int, done: list[tuple[int, int]] = done) -> None:
            done.append((task, thread))

        shared = Crew(threads)
        for number in (0, 1, 3, 50):
            done.clear()
            shared.each(work, number)
            assert sorted(task for task, _ in done) == list(range(number))
            assert all(thread < min(threads, max(number, 1)) for _, thread in done)


def test_what_a_thread_raises_is_not_lost() -> None:
    def work(task: int, thread: int) -> None:
        if task == 7:
            raise ValueError("of task 7")

    with pytest.raises(ValueError, match="of task 7"):
        Crew(3).each(work, 10)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there are no forks")
@pytest.mark.filterwarnings("ignore:.*fork")
def test_a_fork_has_threads_of_its_own() -> None:
    """Those of the process before do not come with it."""
    shared = Crew(3)
    shared.each(lambda task, thread: None, 9)
    fork = multiprocessing.get_context("fork").Process(
        target=shared.each, args=(lambda task, thread: None, 9)
    )
    fork.start()
    fork.join(30)
    ended = fork.exitcode
    fork.kill()
    assert ended == 0


def test_the_quicker_number_of_threads_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever it is: on a busy machine one is, and one where others gain next to nothing."""
    monkeypatch.setattr(crew, "cores_of_a_process", lambda: 4)
    for cost, best in (({1: 1.0, 4: 0.4}, 4), ({1: 1.0, 4: 9.0}, 1), ({1: 1.0, 4: 0.95}, 1)):
        shared, used, clock = Crew(), [], [0.0]
        monkeypatch.setattr(crew.time, "perf_counter", lambda clock=clock: clock[0])

        def work(task: int, thread: int, shared=shared, cost=cost, clock=clock) -> None:  # type: ignore[no-untyped-def]
            clock[0] += cost[shared.pace.threads]

        for _ in range(12):
            used.append(shared.pace.threads)
            shared.each(work, 8, size=100)
        assert used[6:] == [best] * 6


def test_a_crew_counts_cores_when_its_work_begins(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lightning says how many processes there are after the training's module was made."""
    for name in ("OMP_NUM_THREADS", "SLURM_CPUS_PER_TASK", "LOCAL_WORLD_SIZE", "WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(crew, "usable_cores", lambda: 8)
    shared, tried = Crew(), set()
    monkeypatch.setenv("WORLD_SIZE", "2")
    for _ in range(8):
        tried.add(shared.pace.threads)
        shared.each(lambda task, thread: None, 8, size=100)
    assert tried == {1, 4}


def test_cores_of_a_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the machine has, shared with the other ranks, and no more than the user says."""
    for name in ("OMP_NUM_THREADS", "SLURM_CPUS_PER_TASK", "LOCAL_WORLD_SIZE", "WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(crew, "usable_cores", lambda: 8)
    assert cores_of_a_process() == 8
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert cores_of_a_process() == 4
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "16")
    assert cores_of_a_process() == 1
    monkeypatch.delenv("LOCAL_WORLD_SIZE")
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    assert cores_of_a_process() == 3
    monkeypatch.setenv("OMP_NUM_THREADS", "what")
    assert cores_of_a_process() == 4
    monkeypatch.setenv("SLURM_CPUS_PER_TASK", "2")
    assert cores_of_a_process() == 2
