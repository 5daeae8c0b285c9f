"""Memory that is freed in one step is there in the next: glibc is asked, as page faults differ between systems."""

import platform
import subprocess
import sys
from pathlib import Path

import pytest

from physicsml_ase.backends.heap import MOST, Heap

SCRIPT = """
import ctypes, gc, sys, torch
from physicsml_ase.backends.heap import Heap, keep_freed_memory
class Info(ctypes.Structure):
    _fields_ = [(name, ctypes.c_size_t) for name in
                "arena ordblks smblks hblks hblkhd usmblks fsmblks uordblks fordblks keepcost".split()]
mallinfo = getattr(ctypes.CDLL(None), "mallinfo2", None)
if mallinfo is None:
    sys.exit(77)
mallinfo.restype = Info
torch.set_num_threads(1)
gc.disable()
blocks, keep = int(sys.argv[1]), sys.argv[2]
if keep == "some":
    keep_freed_memory()
heap = Heap() if keep == "all" else None
lost = []
for _ in range(20):  # what is kept is found by doubling, two steps each, once the heap begins to lose
    x = [torch.ones(3_000_000) for _ in range(blocks)]  # 12 MB each
    held = mallinfo()
    del x
    lost.append(held.arena + held.hblkhd - mallinfo().arena - mallinfo().hblkhd)
    if heap is not None:
        heap.after_step(lost[-1] // 4096)
print(lost[-1] / 2**20)
"""


def lost(tmp_path: Path, blocks: int, keep: str) -> float:
    """MiB that a step that holds so many blocks gives back to the system at its end."""
    (tmp_path / "script.py").write_text(SCRIPT)
    command = [sys.executable, str(tmp_path / "script.py"), str(blocks), keep]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode == 77:
        pytest.skip("this glibc has no mallinfo2 to ask")
    assert not done.returncode, done.stderr
    return float(done.stdout)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="is about glibc")
@pytest.mark.parametrize(("blocks", "keep"), [(4, "some"), (30, "all")])
def test_freed_memory_is_kept(tmp_path: Path, blocks: int, keep: str) -> None:
    """What `keep_freed_memory` keeps, and what only a `Heap` does: 48 and 360 MB a step.

    Where something of the program lies at the end of the heap, both are kept without us.
    """
    assert lost(tmp_path, blocks, keep) < 1


def test_more_than_the_most_is_not_kept_and_nothing_for_steps_that_lose_nothing() -> None:
    heap = Heap()
    for _ in range(5):
        heap.after_step(0)
    assert heap.kept == 0
    for _ in range(50):
        heap.after_step(10**6)
    assert heap.kept == MOST
