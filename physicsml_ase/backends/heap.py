"""Memory that plain PyTorch frees in one step of dynamics and takes again in the next."""

import platform

import torch
from torch import Tensor

LARGEST = 2**25 - 2**16
"""Just below the largest block [bytes] that glibc takes from its heap, and by which it adjusts what it keeps."""
PIECE = 2**20
"""The heap is extended by blocks of so many bytes, one of which stays."""
MOST = 2**30
"""Bytes held at most: what a step takes beyond them is taken from the system each time."""
MANY = 1000
"""Page faults of a step that are worth mending: 2 ms."""


def keep_freed_memory() -> None:
    """Let glibc keep some freed memory of a CPU (up to 64 MiB) in place of returning it to the system at every step,
    whose page faults cost plain PyTorch a quarter to a third of a step.

    It adjusts that to the largest block freed so far, so one is taken and freed, and never touched: no setting of the
    program around us is changed, and nothing happens under other libraries.
    """
    torch.empty(LARGEST, dtype=torch.uint8)


class Heap:
    """Keeps the memory of a step for the next one, for as long as this lives.

    glibc returns what is free at the end of its heap, beyond 64 MiB, and where the end is depends on what else the
    program holds. A block that stays there keeps all below it. One is put behind as much as steps need, found by
    doubling, when steps are seen to have their pages mapped anew. What is kept is at most what a step held.
    """

    def __init__(self) -> None:
        keep_freed_memory()
        self.kept = 0
        """Bytes put before the end of the heap."""
        self._steps = 0
        self._end: Tensor | None = None

    def after_step(self, faults: int) -> None:
        """Told the page faults of each step. The first after a change is that of new memory."""
        self._steps = self._steps + 1 if faults > MANY else 0
        if self._steps > 1 and self.kept < MOST:
            self.kept, self._steps = max(2 * self.kept, 2**27), 0
            self._end = None
            blocks = [torch.empty(PIECE, dtype=torch.uint8) for _ in range(self.kept // PIECE + 1)]
            self._end = max(blocks, key=Tensor.data_ptr)


if platform.libc_ver()[0] == "glibc":
    from resource import RUSAGE_SELF, getrusage

    def page_faults() -> int:
        """Of this process so far, without reading from a disk; zero where they are not counted."""
        return getrusage(RUSAGE_SELF).ru_minflt
else:

    def page_faults() -> int:
        """Zero: this is about glibc."""
        return 0
