"""Arguments that several verbs share, and what becomes of them."""

import ctypes
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated

import typer

from physicsml_ase.conventions import InputError

Ckpt = Annotated[
    str,
    typer.Argument(
        metavar="CKPT", help="A model.ckpt, or a run's training checkpoint; of a committee, a,b,c."
    ),
]
OneCkpt = Annotated[str, typer.Argument(metavar="CKPT", help="A model.ckpt, or a run's training checkpoint.")]
Model = Annotated[
    str,
    typer.Argument(
        metavar="MODEL",
        help="A model.ckpt, a run's training checkpoint, or an exported model.pt2; a committee: a.ckpt,b.ckpt.",
    ),
]
Structures = Annotated[
    list[str],
    typer.Argument(metavar="DATA...", help="Files that ASE reads, such as a.xyz, 'b.db@natoms<50'."),
]
Structure = Annotated[
    str, typer.Argument(metavar="STRUCTURE", help="A file that ASE reads, or file@index; its last structure.")
]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1.")]
Dtype = Annotated[str | None, typer.Option(help="float32 or float64. [default: the checkpoint's]")]
Backend = Annotated[
    str,
    typer.Option(
        help="auto, eager, compile, aoti, kernel, cuda_graph: what computes the model.", metavar="NAME"
    ),
]
Threads = Annotated[
    int,
    typer.Option(
        min=0,
        help="CPU threads. 0: one, or more where there is work for them, as many as a few steps show to be faster.",
        show_default=False,
    ),
]
OnExtrapolation = Annotated[
    str,
    typer.Option(help="Structures unlike the training data: warn, raise, record or ignore.", metavar="WHAT"),
]
Record = Annotated[str, typer.Option(help="ASE database that record appends to.", metavar="FILE")]
MANY_ATOMS = 512


def use_threads(threads: int, num_atoms: int = 0) -> None:
    """Let torch use `threads` in this process; 0: one, and as many as it likes from `MANY_ATOMS` on.

    Below that a second thread gains nothing on an idle machine, and costs a factor of ten or more on one
    where something else wants the core: the threads wait for each other at every operation.
    """
    import torch

    if threads:
        os.environ["OMP_NUM_THREADS"] = str(
            threads
        )  # for the training kernel, and for processes that are started
    if threads or (num_atoms < MANY_ATOMS and "OMP_NUM_THREADS" not in os.environ):
        torch.set_num_threads(threads or 1)


def keep_memory() -> None:
    """Keep freed memory in this process, which is ours: glibc otherwise returns every large tensor to the system, and
    the page faults of taking it back cost up to half of a step."""
    try:
        libc = ctypes.CDLL("libc.so.6")
        libc.mallopt(-1, 2**31 - 1)  # M_TRIM_THRESHOLD
        libc.mallopt(-3, 2**30)  # M_MMAP_THRESHOLD
    except (OSError, AttributeError):
        return  # not glibc


def members(model: str) -> str | list[str]:
    """The checkpoints of a committee, one where there is one."""
    paths = [path for path in model.split(",") if path]
    return model if len(paths) < 2 or os.path.exists(model) else paths


def spare(read: str | list[str], outputs: Mapping[str, str | Path | None]) -> None:
    """Raise `InputError` where one of the outputs, by option, is one of the files `read`, which may end in @index."""
    for name in [read] if isinstance(read, str) else read:
        while not os.path.exists(name) and "@" in name:
            name = name.rpartition("@")[0]
        for option, output in outputs.items():
            there = output is not None and os.path.isfile(name) and os.path.exists(output)
            if output is not None and there and os.path.samefile(name, output):
                raise InputError(f"{output}: is a file that is read here; give another name with {option}")


def one_or_many(values: list[str]) -> str | list[str]:
    """What `open_source` takes, from an argument that may be repeated."""
    return values[0] if len(values) == 1 else values


def as_keys(values: list[str]) -> dict[str, str]:
    """{NAME: KEY} from the values of --label-key."""
    pairs = [value.partition("=") for value in values]
    for key, _, value in pairs:
        if not (key and value):
            raise InputError(f"--label-key takes NAME=KEY, such as energy=REF_energy, not {key!r}")
    return {key: value for key, _, value in pairs}
