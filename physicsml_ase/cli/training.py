"""`train` and `resume`."""

import logging
import warnings
from pathlib import Path
from typing import Annotated

import typer

from physicsml_ase.cli import STARTED_AT
from physicsml_ase.cli.options import Threads, keep_memory, one_or_many, use_threads
from physicsml_ase.conventions import InputError

CONFIG_SUFFIXES = (".yaml", ".yml", ".json", ".toml")
log = logging.getLogger("physicsml_ase")


def train(
    arguments: Annotated[
        list[str] | None,
        typer.Argument(metavar="[CONFIG] [KEY=VALUE]...", help="Config file, and changes to it."),
    ] = None,
    train_: Annotated[
        list[str] | None, typer.Option("--train", metavar="FILE", help="Training data; may be repeated.")
    ] = None,
    validation: Annotated[
        list[str] | None,
        typer.Option(metavar="FILE", help="Validation data. [default: part of the training data]"),
    ] = None,
    test: Annotated[list[str] | None, typer.Option(metavar="FILE", help="Test data.")] = None,
    output: Annotated[
        Path | None,
        typer.Option("-o", "--output", metavar="DIR", help="Folder of the run. [default: training]"),
    ] = None,
    time: Annotated[
        str | None, typer.Option(metavar="LENGTH", help="Wall-clock budget: 90s, 10m, 2h. [default: 15m]")
    ] = None,
    threads: Threads = 0,
) -> None:
    """Train a potential; the result is DIR/model.ckpt.

    Everything has a default: `physicsml-ase train --train my.xyz -o run` is enough. With a CONFIG, only what
    it leaves out has the defaults of `physicsml-ase describe`. Examples of changes: trainer.max_epochs=100,
    model.channels=64, 'datamodule.label_keys={energy: REF_energy, forces: REF_forces}'.
    """
    from physicsml_ase.config import load, validate
    from physicsml_ase.recipe import merge, with_length, with_recipe

    path, overrides = _config_and_overrides(arguments or [])
    given = load(path, overrides)
    if time is not None:
        given = merge(given, {"trainer": {"max_time": time}})
    # a config file keeps the meaning of its keys and their defaults; without one the recipe decides
    config = with_length(given if path else with_recipe(given))

    from physicsml_ase.train.folder import free_folder
    from physicsml_ase.train.run import Data, start
    from physicsml_ase.train.settings import RunConfig

    settings = validate(RunConfig, config, where=path or "command line")
    named = settings.datamodule
    data = Data(
        one_or_many(train_) if train_ else named.train_data,
        one_or_many(validation) if validation else named.validation_data,
        one_or_many(test) if test else named.test_data,
    )
    if data.train is None:
        raise InputError("no training data: give --train FILE, or datamodule.train_data in the config")
    trainer = given.get("trainer")
    if (
        path is None
        and settings.trainer.max_time
        and not (isinstance(trainer, dict) and "max_time" in trainer)
    ):
        log.info("no length given: training for 15 minutes; --time 2h is another length")
    root = output or free_folder(Path(settings.trainer.default_root_dir or "training"))
    _prepare(threads)
    result = start(settings, data, root, started_at=STARTED_AT)
    _exit_if(result.interrupted)


def resume(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="The run's folder.")], threads: Threads = 0
) -> None:
    """Continue a run that was stopped or killed."""
    from physicsml_ase.train.run import resume as resume_run

    _prepare(threads)
    _exit_if(resume_run(run, started_at=STARTED_AT).interrupted)


def _config_and_overrides(arguments: list[str]) -> tuple[str | None, list[str]]:
    def is_config(argument: str) -> bool:
        suffix = Path(argument).suffix.lower()
        return suffix in CONFIG_SUFFIXES and ("=" not in argument or Path(argument).is_file())

    files = [argument for argument in arguments if is_config(argument)]
    overrides = [argument for argument in arguments if not is_config(argument)]
    for argument in overrides:
        if "=" not in argument:
            raise InputError(
                f"{argument}: is neither a config file ({', '.join(CONFIG_SUFFIXES)}) nor a change key.sub=value; "
                "data are given with --train, several as --train a.xyz --train b.xyz or --train 'data/*.xyz'"
            )
    if len(files) > 1:
        raise InputError(f"one config file at most, not {', '.join(files)}")
    return (files[0] if files else None), overrides


def _prepare(threads: int) -> None:
    use_threads(threads)
    _quiet_lightning()
    keep_memory()


def _quiet_lightning() -> None:
    """What Lightning says of hardware and tips is noise beside the run's own lines."""
    import lightning.pytorch

    logging.getLogger(lightning.pytorch.__name__).setLevel(logging.ERROR)
    for place in ("lightning", "torch"):
        warnings.filterwarnings("ignore", module=rf"{place}\..*")


def _exit_if(signum: int) -> None:
    if signum:
        raise typer.Exit(128 + signum)  # 130 after Ctrl-C, 143 after SIGTERM
