"""`export`."""

from pathlib import Path
from typing import Annotated

import typer

from physicsml_ase.cli.options import Device, Dtype, OneCkpt, spare
from physicsml_ase.conventions import InputError


def export(
    ckpt: OneCkpt,
    output: Annotated[
        Path, typer.Option("-o", "--output", metavar="FILE", help="The package; its name ends in .pt2.")
    ] = Path("model.pt2"),
    device: Device = "cpu",
    dtype: Dtype = None,
) -> None:
    """Compile a model ahead of time into one file, which runs on machines without a compiler."""
    from physicsml_ase.backends.package import export_checkpoint
    from physicsml_ase.calculator import PhysicsMLCalculator, choose_device
    from physicsml_ase.checkpoint import read_checkpoint

    spare(ckpt, {"-o": output})
    read_checkpoint(ckpt)  # what is none is told before the wait
    typer.echo("compiling, which takes a minute or more", err=True)
    about = export_checkpoint(ckpt, output, choose_device(device), dtype).about
    if PhysicsMLCalculator(output).backend != "aoti":
        raise InputError(f"{output}: does not compute what {ckpt} does, or does not load; see above")
    where = about["machine"] + " " + about["capability"] if about["device"] == "cpu" else about["device"]
    typer.echo(f"written to {output}, for torch {about['torch']}, {where}, {about['dtype']}")
