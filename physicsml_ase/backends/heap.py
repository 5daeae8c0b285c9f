"""Memory that plain PyTorch frees in one step of dynamics and takes again in the next."""

import torch

LARGEST = 2**25 - 2**16
"""Just below the largest block [bytes] by which glibc adjusts what it keeps."""


def keep_freed_memory() -> None:
    """Let glibc keep some freed memory of a CPU (up to 64 MiB) in place of returning it to the system at every step,
    whose page faults cost plain PyTorch a quarter to a third of a step.

    It adjusts that to the largest block freed so far, so one is taken and freed, and never touched: no setting of the
    program around us is changed, and nothing happens under other libraries.
    """
    torch.empty(LARGEST, dtype=torch.uint8)
