"""`evaluate` and `predict`."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from physicsml_ase.cli.options import Ckpt, Device, Structures, as_keys, members, one_or_many

if TYPE_CHECKING:
    from physicsml_ase.evaluate.predict import Predictor


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
    uncertainty: Annotated[
        bool, typer.Option("--uncertainty", help="Compare the last layer's uncertainties with the errors.")
    ] = False,
    device: Device = "auto",
) -> None:
    """Errors on labelled structures: tables, predictions and parity plots."""
    keys = as_keys(label_key or [])

    from physicsml_ase.data.sources import open_source
    from physicsml_ase.evaluate import evaluate as evaluate_
    from physicsml_ase.evaluate.report import refuse_own_folder

    model, source = _predictor(ckpt, device), open_source(one_or_many(data))
    if output is not None:
        refuse_own_folder(source, output)  # before the wait
    evaluation = evaluate_(model, source, label_keys=keys, uncertainty=uncertainty)
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
    from physicsml_ase.evaluate import write_predictions

    count = write_predictions(_predictor(ckpt, device), one_or_many(data), output)
    typer.echo(f"{count} structures written to {output}")


def _predictor(ckpt: str, device: str) -> "Predictor":
    """The model, or the committee of several, at paths with commas between."""
    from physicsml_ase.calculator import choose_device
    from physicsml_ase.checkpoint import load_potential
    from physicsml_ase.trust.committee import MeanPotential

    paths = members(ckpt)
    if isinstance(paths, str):
        return load_potential(paths, device=choose_device(device))
    return MeanPotential([load_potential(path, device=choose_device(device)) for path in paths], paths)
