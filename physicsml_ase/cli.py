"""The command line: thin verbs over the Python API. Wrong input is one line and exit status 2."""

import time

STARTED_AT = time.monotonic()  # `--time` includes the seconds that imports take

import ctypes  # noqa: E402
import json  # noqa: E402
import logging  # noqa: E402
import signal  # noqa: E402
import sys  # noqa: E402
import warnings  # noqa: E402
from pathlib import Path  # noqa: E402
from typing import Annotated, Any  # noqa: E402

import typer  # noqa: E402
from rich.console import Console  # noqa: E402
from rich.table import Table  # noqa: E402

from physicsml_ase.conventions import InputError  # noqa: E402

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="Train machine-learned interatomic potentials on ASE data and run them in ASE.",
)
errors = Console(stderr=True, highlight=False, soft_wrap=True)
Overrides = Annotated[list[str] | None, typer.Argument(help="Config file, then key.sub=value overrides.")]
Out = Annotated[Path | None, typer.Option("-o", "--output", help="Folder of the results.")]


@app.command()
def train(
    arguments: Annotated[
        list[str] | None, typer.Argument(metavar="[CONFIG] [KEY=VALUE]...", help="Config file and overrides.")
    ] = None,
    train_: Annotated[
        list[str] | None, typer.Option("--train", help="Training data; may be repeated.")
    ] = None,
    validation: Annotated[list[str] | None, typer.Option("--validation", help="Validation data.")] = None,
    test: Annotated[list[str] | None, typer.Option("--test", help="Test data.")] = None,
    output: Out = None,
    time_: Annotated[str | None, typer.Option("--time", help="Wall-clock budget: 90s, 10m, 2h.")] = None,
) -> None:
    """Train a potential; the result is OUTPUT/model.ckpt."""
    from physicsml_ase.config import load, validate
    from physicsml_ase.recipe import merge, with_length, with_recipe

    path, overrides = _config_and_overrides(arguments or [])
    given = load(path, overrides)
    if time_ is not None:
        given = merge(given, {"trainer": {"max_time": time_}})
    # a config file keeps the meaning of its keys and their defaults; without one the recipe decides
    config = with_length(given if path else with_recipe(given))

    from physicsml_ase.train.folder import free_folder
    from physicsml_ase.train.run import Data, start
    from physicsml_ase.train.settings import RunConfig

    settings = validate(RunConfig, config, where=str(path or "command line"))
    if (
        settings.trainer.max_time
        and path is None
        and time_ is None
        and "max_time" not in given.get("trainer", {})
    ):
        logging.getLogger("physicsml_ase").info("no length given: training for 15 minutes (--time 15m)")
    named = settings.datamodule
    data = Data(
        _one_or_many(train_) or named.train_data,
        _one_or_many(validation) or named.validation_data,
        _one_or_many(test) or named.test_data,
    )
    if data.train is None:
        raise InputError("no training data: give --train FILE, or datamodule.train_data in the config")
    root = output or Path(settings.trainer.default_root_dir or "training")
    if output is None:
        root = free_folder(root)
    _quiet_lightning()
    _keep_memory()
    result = start(settings, data, root, started_at=STARTED_AT)
    _exit_if(result.interrupted)


@app.command()
def resume(run: Annotated[Path, typer.Argument(help="The run's folder.")]) -> None:
    """Continue a run that was stopped or killed."""
    from physicsml_ase.train.run import resume as resume_run

    _quiet_lightning()
    _keep_memory()
    _exit_if(resume_run(run, started_at=STARTED_AT).interrupted)


@app.command()
def evaluate(
    ckpt: Annotated[str, typer.Argument(help="model.ckpt")],
    data: Annotated[list[str], typer.Argument(help="Structures with labels.")],
    output: Out = None,
    label_keys: Annotated[
        list[str] | None, typer.Option("--label-key", help="Where a label is found: energy=REF_energy.")
    ] = None,
    device: str = "auto",
) -> None:
    """Errors on labelled structures: tables, predictions and parity plots."""
    from physicsml_ase.calculator import choose_device
    from physicsml_ase.checkpoint import load_potential
    from physicsml_ase.evaluate import evaluate as evaluate_

    potential = load_potential(ckpt, device=choose_device(device))
    evaluation = evaluate_(potential, _one_or_many(data), label_keys=_pairs(label_keys))
    typer.echo(evaluation.table())
    if output is not None:
        evaluation.write(output)
        typer.echo(f"written to {output}")


@app.command()
def predict(
    ckpt: Annotated[str, typer.Argument(help="model.ckpt")],
    data: Annotated[list[str], typer.Argument(help="Structures.")],
    output: Annotated[Path, typer.Option("-o", "--output", help="File of the results, extxyz.")],
    device: str = "auto",
) -> None:
    """Energies, forces and all else the model knows, for every structure."""
    from physicsml_ase.calculator import choose_device
    from physicsml_ase.checkpoint import load_potential
    from physicsml_ase.evaluate import write_predictions

    potential = load_potential(ckpt, device=choose_device(device))
    count = write_predictions(potential, _one_or_many(data), output)
    typer.echo(f"{count} structures written to {output}")


@app.command()
def md(
    ckpt: Annotated[str, typer.Argument(help="model.ckpt")],
    structure: Annotated[str, typer.Argument(help="The starting structure: a file, or file@index.")],
    time_ps: Annotated[float, typer.Option("--time-ps", help="Length [ps].")] = 1.0,
    timestep: Annotated[float, typer.Option(help="Time step [fs].")] = 1.0,
    temperature: Annotated[float, typer.Option("-T", "--temperature", help="[K]")] = 300.0,
    thermostat: Annotated[str, typer.Option(help="langevin, nve, nose-hoover, bussi, npt.")] = "langevin",
    pressure: Annotated[float, typer.Option(help="Of npt [GPa].")] = 0.0,
    trajectory: Annotated[
        str, typer.Option("-o", "--output", help="Trajectory; continued if it exists.")
    ] = "md.traj",
    log: Annotated[str | None, typer.Option(help="Text file of time, energies and temperature.")] = None,
    every: Annotated[int, typer.Option(help="Steps between frames.")] = 10,
    seed: int = 0,
    device: str = "auto",
    dtype: Annotated[str | None, typer.Option(help="float32 or float64; default: the checkpoint's.")] = None,
) -> None:
    """Molecular dynamics."""
    from physicsml_ase import simulate
    from physicsml_ase.calculator import PhysicsMLCalculator

    result = simulate.md(
        PhysicsMLCalculator(ckpt, device=device, dtype=dtype),
        _one_structure(structure),
        time_ps=time_ps,
        timestep_fs=timestep,
        temperature_K=temperature,
        thermostat=thermostat,
        pressure_GPa=pressure,
        trajectory=trajectory,
        log=log,
        every=every,
        seed=seed,
    )
    typer.echo(result.in_words())


@app.command()
def relax(
    ckpt: Annotated[str, typer.Argument(help="model.ckpt")],
    structure: Annotated[str, typer.Argument(help="The starting structure: a file, or file@index.")],
    fmax: Annotated[float, typer.Option(help="Largest force left [eV/Å].")] = 0.01,
    steps: Annotated[int, typer.Option(help="At most so many steps.")] = 500,
    optimizer: Annotated[str, typer.Option(help="FIRE, BFGS, LBFGS, ...")] = "FIRE",
    cell: Annotated[bool, typer.Option("--cell", help="Relax the cell as well.")] = False,
    pressure: Annotated[float, typer.Option(help="With --cell [GPa].")] = 0.0,
    output: Annotated[str, typer.Option("-o", "--output", help="The relaxed structure.")] = "relaxed.xyz",
    trajectory: str | None = None,
    device: str = "auto",
    dtype: Annotated[str | None, typer.Option(help="float32 or float64; default: the checkpoint's.")] = None,
) -> None:
    """Geometry optimisation; exit status 1 where it did not converge."""
    import ase.io

    from physicsml_ase import simulate
    from physicsml_ase.calculator import PhysicsMLCalculator

    result = simulate.relax(
        PhysicsMLCalculator(ckpt, device=device, dtype=dtype),
        _one_structure(structure),
        fmax=fmax,
        steps=steps,
        optimizer=optimizer,
        cell=cell,
        pressure_GPa=pressure,
        trajectory=trajectory,
    )
    ase.io.write(output, result.atoms)
    typer.echo(f"{result.in_words()}; written to {output}")
    if not result.converged:
        raise typer.Exit(1)


@app.command()
def info(ckpt: Annotated[str, typer.Argument(help="model.ckpt")]) -> None:
    """What a checkpoint is and what it was trained on; replays its stored frames."""
    from physicsml_ase.checkpoint import describe_checkpoint

    table = Table(show_header=False, box=None)
    for name, value in describe_checkpoint(ckpt).items():
        table.add_row(name, value)
    Console(soft_wrap=True, highlight=False).print(table)


@app.command()
def describe(
    section: Annotated[str | None, typer.Argument(help="Such as datamodule, or model.painn.")] = None,
    schema: Annotated[bool, typer.Option("--schema", help="The JSON schema, for editors.")] = False,
) -> None:
    """Every field of the config with its type, default and meaning."""
    from physicsml_ase.config import describe as rows
    from physicsml_ase.config import json_schema
    from physicsml_ase.train.settings import RunConfig

    if schema:
        typer.echo(json.dumps(json_schema(RunConfig), indent=1))
        return
    console = Console(highlight=False)
    table = Table("field", "type", "default", "meaning", show_lines=False, box=None, pad_edge=False)
    for row in rows(RunConfig, section):
        table.add_row(row.path, row.type, row.default, row.meaning)
    console.print(table)


def main() -> None:
    """The entry point `physicsml-ase`."""
    own = logging.getLogger("physicsml_ase")
    own.setLevel(logging.INFO)
    own.addHandler(_to_stderr())
    try:
        app(standalone_mode=True)
    except InputError as error:
        errors.print("error:", style="bold red", end=" ")
        errors.print(str(error), markup=False)
        sys.exit(2)
    except KeyboardInterrupt:
        errors.print("interrupted", style="bold red")
        sys.exit(128 + signal.SIGINT)
    except OSError as error:  # a full disk, a folder that is not ours
        errors.print(f"error: {error.filename or ''}: {error.strerror or error}", markup=False, style="red")
        sys.exit(2)


def _to_stderr() -> logging.Handler:
    class Format(logging.Formatter):
        def format(self, record: logging.LogRecord) -> str:
            return ("warning: " if record.levelno >= logging.WARNING else "") + record.getMessage()

    handler = logging.StreamHandler()
    handler.setFormatter(Format())
    return handler


def _quiet_lightning() -> None:
    """What Lightning says of hardware and tips is noise beside the run's own lines."""
    import lightning.pytorch

    logging.getLogger(lightning.pytorch.__name__).setLevel(logging.ERROR)
    for place in ("lightning", "torch"):
        warnings.filterwarnings("ignore", module=rf"{place}\..*")


def _keep_memory() -> None:
    """Keep freed memory in this process: glibc otherwise returns every large tensor to the system, and
    the page faults of taking it back cost a third of a training step."""
    try:
        libc = ctypes.CDLL("libc.so.6")
        libc.mallopt(-1, 2**31 - 1)  # M_TRIM_THRESHOLD
        libc.mallopt(-3, 2**30)  # M_MMAP_THRESHOLD
    except (OSError, AttributeError):
        return  # not glibc


def _config_and_overrides(arguments: list[str]) -> tuple[str | None, list[str]]:
    files = [a for a in arguments if "=" not in a]
    if len(files) > 1:
        raise InputError(f"one config file at most, not {', '.join(files)}; data are given with --train")
    return (files[0] if files else None), [a for a in arguments if "=" in a]


def _one_or_many(values: list[str] | None) -> Any:
    return values[0] if values and len(values) == 1 else values or None


def _pairs(values: list[str] | None) -> dict[str, str] | None:
    if not values:
        return None
    pairs = [value.partition("=") for value in values]
    if not all(equals and key and value for key, equals, value in pairs):
        raise InputError(f"--label-key takes name=key, such as energy=REF_energy, not {' '.join(values)}")
    return {key: value for key, _, value in pairs}


def _one_structure(spec: str) -> Any:
    from physicsml_ase.data.sources import open_source

    source = open_source(spec)
    if len(source) > 1:
        logging.getLogger("physicsml_ase").info(
            "%s has %d structures: taking the last one", spec, len(source)
        )
    return source[len(source) - 1]


def _exit_if(interrupted: bool) -> None:
    if interrupted:
        raise typer.Exit(128 + signal.SIGINT)


if __name__ == "__main__":
    main()
