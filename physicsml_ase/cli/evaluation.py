"""`evaluate` and `predict`."""

from pathlib import Path
from typing import Annotated

import typer

from physicsml_ase.cli.options import Ckpt, Device, Structures, as_keys, one_or_many


def evaluate(
    ckpt: Ckpt,
    data: Structures,
    output: Annotated[
        Path | None,
        typer.Option("-o", "--output", metavar="DIR", help="Folder of tables, predictions and plots."),
    ] = None,
    label_key: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME=KEY", help="Key of a label: energy=REF_energy; may be repeated."),
    ] = None,
    device: Device = "auto",
) -> None:
    """Errors on labelled structures: tables, predictions and parity plots."""
    keys = as_keys(label_key or [])

    from physicsml_ase.calculator import choose_device
    from physicsml_ase.checkpoint import load_potential
    from physicsml_ase.evaluate import evaluate as evaluate_

    potential = load_potential(ckpt, device=choose_device(device))
    evaluation = evaluate_(potential, one_or_many(data), label_keys=keys)
    typer.echo(evaluation.table())
    if output is not None:
        evaluation.write(output)
        typer.echo(f"written to {output}")


def predict(
    ckpt: Ckpt,
    data: Structures,
    output: Annotated[
        Path, typer.Option("-o", "--output", metavar="FILE", help="The structures with results, as extxyz.")
    ],
    device: Device = "auto",
) -> None:
    """Energies, forces and all else the model knows, for every structure."""
    from physicsml_ase.calculator import choose_device
    from physicsml_ase.checkpoint import load_potential
    from physicsml_ase.evaluate import write_predictions

    potential = load_potential(ckpt, device=choose_device(device))
    count = write_predictions(potential, one_or_many(data), output)
    typer.echo(f"{count} structures written to {output}")
