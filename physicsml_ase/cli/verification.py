"""`verify` and `report`."""

import json
import sys
from pathlib import Path
from typing import Annotated

import typer

from physicsml_ase.cli.options import Device, OneCkpt, use_threads

FAILED = 1
SOME = 4
"""Structures of a file that are tried."""


def verify(
    ckpt: OneCkpt,
    data: Annotated[
        str | None,
        typer.Argument(metavar="[FILE]", help="Structures to try besides those stored in the checkpoint."),
    ] = None,
    plots: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Folder for a picture of the dimer curves.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the checks as JSON.")] = False,
    compile_: Annotated[
        bool, typer.Option("--compile", help="Check torch.compile and exported code too, a minute or more.")
    ] = False,
    device: Device = "auto",
) -> None:
    """Whether a model is what it says: derivatives, symmetries, dimers, number types, backends, short MD.

    Exit status 1 where a check fails.
    """
    from physicsml_ase.calculator import choose_device
    from physicsml_ase.data.sources import open_source
    from physicsml_ase.verify import verify as verify_

    use_threads(0)
    frames = []
    if data is not None:
        source = open_source(data)
        frames = (
            [source[k * len(source) // SOME] for k in range(SOME)] if len(source) > SOME else list(source)
        )
    found = verify_(ckpt, frames, device=choose_device(device), compile=compile_)
    if as_json:
        typer.echo(json.dumps(found.plain(), indent=1, ensure_ascii=False))
    else:
        from rich.console import Console

        console = Console()
        typer.echo(found.text(max(console.width, 80), color=sys.stdout.isatty()), nl=False)
    if plots is not None and found.curves:
        from physicsml_ase.plots.dimers import dimer_figure
        from physicsml_ase.plots.style import save

        save(dimer_figure(found.curves), plots / "dimers.png")
        typer.echo(f"written to {plots / 'dimers.png'}", err=True)
    if not found.passed:
        raise typer.Exit(FAILED)


def report(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="The run's folder.")],
    output: Annotated[
        Path | None, typer.Option("-o", "--output", metavar="FILE", help="[default: RUN/report.html]")
    ] = None,
    figures: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Folder for the figures, as PNG and SVG.")
    ] = None,
    structures: Annotated[int, typer.Option(help="At most so many structures are evaluated.")] = 500,
) -> None:
    """A run as one HTML file: data, learning curves, errors, worst structures, checks, timings, config."""
    from physicsml_ase.report import write_report

    use_threads(0)
    path = write_report(run, output, figures_folder=figures, structures=structures)
    typer.echo(f"written to {path}")
