"""Arguments that several verbs share, and what becomes of them."""

from typing import Annotated

import typer

Ckpt = Annotated[str, typer.Argument(metavar="CKPT", help="A model.ckpt, or a run's training checkpoint.")]
Structures = Annotated[
    list[str],
    typer.Argument(metavar="DATA...", help="Files that ASE reads, such as a.xyz, 'b.db@natoms<50'."),
]
Structure = Annotated[
    str, typer.Argument(metavar="STRUCTURE", help="A file that ASE reads, or file@index; its last structure.")
]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1.")]
Dtype = Annotated[str | None, typer.Option(help="float32 or float64. [default: the checkpoint's]")]


def one_or_many(values: list[str]) -> str | list[str]:
    """What `open_source` takes, from an argument that may be repeated."""
    return values[0] if len(values) == 1 else values
