"""Memory that is freed in one step is there in the next."""

import platform
import subprocess
import sys

import pytest

FAULTS = """
import resource, sys, torch
from physicsml_ase.backends.heap import keep_freed_memory
torch.set_num_threads(1)
if sys.argv[1] == "kept":
    keep_freed_memory()
def step():
    x = [torch.ones(3_000_000) for _ in range(4)]  # 12 MB each
def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(5):
    step()
before = faults()
for _ in range(50):
    step()
print((faults() - before) / 50)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="is about glibc")
def test_freed_memory_is_kept() -> None:
    def faults_of_a_step(how: str) -> float:
        done = subprocess.run([sys.executable, "-c", FAULTS, how], capture_output=True, text=True, check=True)
        return float(done.stdout)

    assert faults_of_a_step("kept") < 20 < 100 < faults_of_a_step("as it is")
