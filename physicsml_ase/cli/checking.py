"""`check`."""

import json
import shutil
import sys
from pathlib import Path
from typing import Annotated

import typer

from physicsml_ase.cli.options import Structures, as_keys, one_or_many

FOUND = 1


def check(
    data: Structures,
    validation: Annotated[
        list[str] | None, typer.Option(metavar="FILE", help="Validation data; may be repeated.")
    ] = None,
    test: Annotated[
        list[str] | None, typer.Option(metavar="FILE", help="Test data; may be repeated.")
    ] = None,
    cutoff: Annotated[float, typer.Option(min=0.5, max=20.0, help="Neighbour cut-off [Å].")] = 5.0,
    label_key: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME=KEY", help="Key of a label: energy=REF_energy; may be repeated."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="All that was found as JSON.")] = False,
    fix: Annotated[
        Path | None,
        typer.Option(
            metavar="OUT.xyz", help="Write DATA without what is certainly wrong: units and outliers stay."
        ),
    ] = None,
) -> None:
    """What is wrong with data, before anything is trained on them.

    Exit status 1 where an error was found, 0 for warnings and notes alone.
    """
    keys = as_keys(label_key or [])

    from physicsml_ase.check import check_sources, repair, written_to
    from physicsml_ase.config import did_you_mean
    from physicsml_ase.conventions import PROPERTIES, InputError
    from physicsml_ase.data.sources import open_source

    for name in keys:
        if name not in PROPERTIES:
            raise InputError(f"--label-key {name}: {did_you_mean(name, PROPERTIES)}")
    given = {"train": data, "validation": validation, "test": test}
    sources = {set_: open_source(one_or_many(files)) for set_, files in given.items() if files}
    if fix is not None:
        written_to(fix, *sources.values())  # a wrong name is told before the wait
    report = check_sources(sources, cutoff=cutoff, label_keys=keys)
    if as_json:
        typer.echo(json.dumps(report.plain(), indent=1, ensure_ascii=False))
    else:
        width = shutil.get_terminal_size((110, 40)).columns
        typer.echo(report.text(max(width, 60), color=sys.stdout.isatty()), nl=False)
    if fix is not None:
        for line in repair(report, sources["train"], "train", keys, fix):
            typer.echo(line, err=as_json)
    if report.errors:
        raise typer.Exit(FOUND)
