"""`info` and `describe`: what a checkpoint is, and what a config may say."""

import json
import shutil
import sys
import textwrap
from typing import Annotated

import typer


def info(
    ckpt: Annotated[
        str,
        typer.Argument(
            metavar="CKPT", help="A model.ckpt, a run's training checkpoint, or an exported model.pt2."
        ),
    ],
) -> None:
    """What a checkpoint is and what it was trained on; replays its stored frames."""
    from physicsml_ase.backends.package import describe_package, is_package
    from physicsml_ase.checkpoint import describe_checkpoint

    words = describe_package(ckpt) if is_package(ckpt) else describe_checkpoint(ckpt)
    width = max(map(len, words))
    for name, value in words.items():
        typer.echo(f"{name:{width}}  {value}")


def describe(
    section: Annotated[
        str | None, typer.Argument(metavar="[SECTION]", help="Such as datamodule, or model.painn.")
    ] = None,
    schema: Annotated[bool, typer.Option("--schema", help="The JSON schema of all, for editors.")] = False,
) -> None:
    """Every field of the config with its type, default and meaning."""
    from physicsml_ase.config import describe as rows
    from physicsml_ase.config import json_schema
    from physicsml_ase.train.settings import RunConfig

    if schema:
        typer.echo(json.dumps(json_schema(RunConfig), indent=1))
        return
    for row in rows(RunConfig, section):
        typer.echo(
            f"{typer.style(row.path, bold=True)}: {row.type}{f' = {row.default}' if row.default else ''}"
        )
        for line in _lines(row.meaning):
            typer.echo(f"    {line}")


def _lines(text: str) -> list[str]:
    """Lines that fit the terminal; elsewhere a text stays one line, for grep."""
    if not sys.stdout.isatty():
        return [text] if text else []
    return textwrap.wrap(text, max(shutil.get_terminal_size().columns - 4, 40))
