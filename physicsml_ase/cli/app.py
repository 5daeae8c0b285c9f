"""The program: its verbs, its own lines on stderr, and its exit statuses.

0 done; 1 a relaxation that did not converge, errors in checked data, or a model that failed its checks; 2 wrong
input, in one line; 130 interrupted. Only a mistake in the program itself shows a traceback.
"""

import errno
import logging
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from physicsml_ase.cli.about import describe, info
from physicsml_ase.cli.checking import check
from physicsml_ase.cli.evaluation import evaluate, predict
from physicsml_ase.cli.export import export
from physicsml_ase.cli.importing import import_
from physicsml_ase.cli.simulation import md, relax
from physicsml_ase.cli.training import resume, train
from physicsml_ase.cli.verification import report, verify
from physicsml_ase.conventions import InputError
from physicsml_ase.version import __version__

WRONG_INPUT, INTERRUPTED = 2, 128 + signal.SIGINT


class Verbs(TyperGroup):
    """Runs a verb; what a user can do wrong becomes a line on stderr and an exit status."""

    def invoke(self, ctx: typer.Context) -> Any:  # type: ignore[override]
        """Run the verb."""
        with _own_lines_on_stderr():
            try:
                return super().invoke(ctx)
            except KeyboardInterrupt:
                typer.secho("interrupted", fg="red", err=True)
                raise typer.Exit(INTERRUPTED) from None
            except (InputError, OSError, RuntimeError) as error:
                words = _in_words(error)
                if words is None:
                    raise
                typer.echo(f"{typer.style('error:', fg='red', bold=True)} {words}", err=True)
                raise typer.Exit(WRONG_INPUT) from None


def _in_words(error: Exception) -> str | None:
    """What the user has to know of an error, None where it is a mistake in the program."""
    if isinstance(error, InputError):
        return str(error)
    if type(error).__name__ == "OutOfMemoryError":  # torch's, which is not imported for every verb
        return (
            "the GPU's memory is full: take smaller batches (batch_size, max_atoms, max_edges of datamodule)"
        )
    if isinstance(error, OSError) and error.errno not in (None, errno.EPIPE):
        # a full disk, a folder that is not ours; EPIPE is somebody's `| head`, which click ends quietly
        return f"{error.filename}: {error.strerror}" if error.filename else str(error.strerror)
    return None


@contextmanager
def _own_lines_on_stderr() -> Iterator[None]:
    class Format(logging.Formatter):
        def format(self, record: logging.LogRecord) -> str:
            return ("warning: " if record.levelno >= logging.WARNING else "") + record.getMessage()

    handler = logging.StreamHandler()
    handler.setFormatter(Format())
    own = logging.getLogger("physicsml_ase")
    own.setLevel(logging.INFO)
    own.addHandler(handler)
    try:
        yield
    finally:
        own.removeHandler(handler)


def _show_version(asked: bool) -> None:
    if asked:
        typer.echo(f"physicsml-ase {__version__}")
        raise typer.Exit


app = typer.Typer(
    cls=Verbs,
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,  # which takes "[ps]" for markup
    context_settings={"help_option_names": ["-h", "--help"]},
)
for verb in (check, train, resume, evaluate, predict, md, relax, verify, report, export, info, describe):
    app.command()(verb)
app.command("import")(import_)


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version.")
    ] = False,
) -> None:
    """Train machine-learned interatomic potentials on ASE data and run them in ASE."""
