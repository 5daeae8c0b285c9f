"""Threads that share work, and how many of them it takes: found by trying, not by rule.

A second thread gains nothing where something else wants the core, or where there is little to do.
"""

import os
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from functools import cached_property

TRIES = 3
"""Steps by which numbers of threads are compared."""
WORTH = 0.85
"""More threads must take so much of one's time at most: what they gain else is lost to the rest of the step."""


class Pace:
    """The quickest of some numbers of threads, each tried a few times."""

    def __init__(self, numbers: Sequence[int]) -> None:
        self._times: dict[int, list[float]] = {number: [] for number in numbers}

    @property
    def threads(self) -> int:
        """The number for the next step."""
        few = min(self._times, key=lambda number: len(self._times[number]))
        if len(self._times) > 1 and len(self._times[few]) < TRIES:
            return few
        return min(self._times, key=self._cost)

    def _cost(self, threads: int) -> float:
        shortest = min(self._times[threads], default=0.0)
        return shortest if threads == min(self._times) else shortest / WORTH

    def took(self, threads: int, seconds: float) -> None:
        """Remember what a step cost, while numbers of threads are compared."""
        if len(self._times[threads]) < TRIES:
            self._times[threads].append(seconds)


class Crew:
    """One, or as many threads as there are cores, for tasks that have nothing to do with each other."""

    def __init__(self, threads: int | None = None) -> None:
        self._threads, self._process = threads, 0
        self._pool: ThreadPoolExecutor | None = None

    @cached_property
    def pace(self) -> Pace:
        """Of the first tasks on, when it is known how many processes there are."""
        return Pace((self._threads,) if self._threads else sorted({1, cores_of_a_process()}))

    def each(self, work: Callable[[int, int], None], number: int, size: int = 0) -> None:
        """work(task, thread) of all tasks; with `size`, numbers of threads are compared by the time that it takes."""
        if self._process != os.getpid():  # a fork has none of the threads
            self._process, self._pool = os.getpid(), None
        chosen = self.pace.threads
        threads, began = min(chosen, number), time.perf_counter()
        left = deque(range(number))

        def take_on(thread: int) -> None:
            """Tasks, one after the other, until none is left."""
            while True:
                try:
                    task = left.popleft()
                except IndexError:
                    return
                work(task, thread)

        if threads > 1:
            self._pool = self._pool or ThreadPoolExecutor(chosen - 1, "physicsml_ase")
            others = [self._pool.submit(take_on, thread) for thread in range(1, threads)]
            try:
                take_on(0)
            finally:  # what they write to must outlive them
                wait(others)
            for other in others:
                other.result()
        else:
            take_on(0)
        if number > 1 and size:
            self.pace.took(chosen, (time.perf_counter() - began) / size)


def usable_cores() -> int:
    """Cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def cores_of_a_process() -> int:
    """Its share of the cores where several train together, and no more than OMP_NUM_THREADS or Slurm say."""
    together = int(os.environ.get("LOCAL_WORLD_SIZE") or os.environ.get("WORLD_SIZE") or 1)
    said = [
        os.environ.get(name, "").split(",")[0].strip() for name in ("OMP_NUM_THREADS", "SLURM_CPUS_PER_TASK")
    ]
    limits = [int(number) for number in said if number.isdecimal() and int(number)]
    return max(min([usable_cores() // together, *limits]), 1)
