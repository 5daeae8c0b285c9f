"""`evaluate` and `predict`."""

from pathlib import Path
from typing import Annotated

import typer

from physicsml_ase.cli.options import Ckpt, Device, Structures, one_or_many
from physicsml_ase.conventions import InputError


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
    keys = _pairs(label_key or [])

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


def _pairs(values: list[str]) -> dict[str, str]:
    pairs = [value.partition("=") for value in values]
    for key, _, value in pairs:
        if not (key and value):
            raise InputError(f"--label-key takes NAME=KEY, such as energy=REF_energy, not {key!r}")
    return {key: value for key, _, value in pairs}
