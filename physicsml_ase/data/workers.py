"""Worker processes: how many, how they start, what is said when one dies.

They start from a clean process (forkserver, or spawn where there is none), never as a copy of this one: with
threads about, a copy may hold a lock that nobody will release. Unlike multiprocessing's own way the user's
script is not imported again in them, so it needs no `if __name__ == "__main__":`.
"""

import multiprocessing
import os
import pickle
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing.context import BaseContext
from types import ModuleType

from physicsml_ase.conventions import InputError

WORKER_DIED = "a data worker died, perhaps for want of memory; datamodule.num_workers=0 works without workers"


def process_context() -> BaseContext:
    """The multiprocessing context that workers start from."""
    known = multiprocessing.get_all_start_methods()
    context = multiprocessing.get_context("forkserver" if "forkserver" in known else "spawn")
    if "forkserver" in known:
        context.set_forkserver_preload(["physicsml_ase.data.loader"])  # imported once, for all workers
    return context


def worker_count(num_workers: int | str) -> int:
    """Processes for `num_workers`; "all" is every core that this process may use."""
    if num_workers != "all":
        return int(num_workers)
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def leave_interrupts_alone(worker: int) -> None:
    """Ctrl-C goes to every process of a terminal; what becomes of the run is for its main process to say."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


@contextmanager
def starting() -> Iterator[None]:
    """Start processes within; they do not import the user's script."""
    script = sys.modules["__main__"]
    sys.modules["__main__"] = ModuleType("__main__")
    try:
        yield
    except (pickle.PicklingError, AttributeError, TypeError) as error:
        if "pickle" not in str(error):
            raise
        raise InputError(
            f"the data can not be sent to workers ({error}); use datamodule.num_workers=0"
        ) from None
    finally:
        sys.modules["__main__"] = script
