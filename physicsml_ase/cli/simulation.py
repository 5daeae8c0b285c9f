"""`md` and `relax`."""

import itertools
import logging
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from physicsml_ase.cli.options import (
    Backend,
    Device,
    Dtype,
    Model,
    OnExtrapolation,
    Record,
    Structure,
    Threads,
    keep_memory,
    members,
    spare,
    use_threads,
)
from physicsml_ase.conventions import InputError

if TYPE_CHECKING:
    from ase import Atoms

    from physicsml_ase.calculator import PhysicsMLCalculator

DATABASES = ("db", "json")
"""ASE's formats of many structures that people keep, by its names."""
NOT_CONVERGED = 1


def md(
    ckpt: Model,
    structure: Structure,
    time_ps: Annotated[float, typer.Option(help="Length [ps], with what a continued trajectory has.")] = 1.0,
    timestep: Annotated[float, typer.Option(help="Time step [fs].")] = 1.0,
    temperature: Annotated[
        float,
        typer.Option(
            "-T", "--temperature", help="Temperature [K]; of the velocities too, unless there are any."
        ),
    ] = 300.0,
    thermostat: Annotated[
        str, typer.Option(help="langevin, nve, nose-hoover, bussi, npt, npt-full.")
    ] = "langevin",
    pressure: Annotated[
        float | None, typer.Option(help="Pressure of npt and npt-full [GPa]; else an atmosphere.")
    ] = None,
    trajectory: Annotated[
        str, typer.Option("-o", "--output", metavar="FILE", help="Trajectory: .traj, .xyz or .extxyz.")
    ] = "md.traj",
    restart: Annotated[
        bool, typer.Option(help="Continue the trajectory if it is there, or overwrite it.")
    ] = True,
    log: Annotated[
        str | None, typer.Option(metavar="FILE", help="Text file of time, energies and temperature.")
    ] = None,
    every: Annotated[int, typer.Option(help="Steps between frames.")] = 10,
    seed: Annotated[int, typer.Option(help="Seed of velocities and thermostat.")] = 0,
    device: Device = "auto",
    dtype: Dtype = None,
    backend: Backend = "auto",
    threads: Threads = 0,
    on_extrapolation: OnExtrapolation = "warn",
    record: Record = "extrapolation.db",
) -> None:
    """Molecular dynamics."""
    from physicsml_ase import simulate

    outputs = {"-o": trajectory, "--log": log, "--record": record}
    spare(structure, {option: name for option, name in outputs.items() if option != "-o" or not restart})
    spare(members(ckpt), outputs)
    _different(outputs)
    atoms = _one_structure(structure)
    use_threads(threads, len(atoms))
    keep_memory()
    result = simulate.md(
        _calculator(ckpt, device, dtype, backend, threads, on_extrapolation, record),
        atoms,
        time_ps=time_ps,
        timestep_fs=timestep,
        temperature_K=temperature,
        thermostat=thermostat,
        pressure_GPa=pressure,
        trajectory=trajectory,
        restart=restart,
        log=log,
        every=every,
        seed=seed,
    )
    typer.echo(f"{result.in_words()}; written to {trajectory}")


def relax(
    ckpt: Model,
    structure: Structure,
    fmax: Annotated[float, typer.Option(help="Largest force left [eV/Å].")] = 0.01,
    steps: Annotated[int, typer.Option(help="At most so many steps.")] = 500,
    optimizer: Annotated[str, typer.Option(help="FIRE, BFGS, LBFGS, ...")] = "FIRE",
    cell: Annotated[bool, typer.Option("--cell", help="Relax the cell as well.")] = False,
    pressure: Annotated[float, typer.Option(help="With --cell [GPa].")] = 0.0,
    output: Annotated[
        str, typer.Option("-o", "--output", metavar="FILE", help="The relaxed structure, in ASE's formats.")
    ] = "relaxed.xyz",
    trajectory: Annotated[
        str | None, typer.Option(metavar="FILE", help="All the steps: .traj, .xyz or .extxyz.")
    ] = None,
    device: Device = "auto",
    dtype: Dtype = None,
    backend: Backend = "auto",
    threads: Threads = 0,
    on_extrapolation: OnExtrapolation = "warn",
    record: Record = "extrapolation.db",
) -> None:
    """Geometry optimisation; exit status 1 where it did not converge."""
    import ase.io

    from physicsml_ase import simulate
    from physicsml_ase.data.sources.files import naming

    _check_format(output)
    outputs = {"-o": output, "--trajectory": trajectory}
    spare(structure, outputs)
    spare(members(ckpt), outputs | {"--record": record})
    _different(outputs | {"--record": record})
    atoms = _one_structure(structure)
    _check_writable(atoms, output)
    use_threads(threads, len(atoms))
    keep_memory()
    result = simulate.relax(
        _calculator(ckpt, device, dtype, backend, threads, on_extrapolation, record),
        atoms,
        fmax=fmax,
        steps=steps,
        optimizer=optimizer,
        cell=cell,
        pressure_GPa=pressure,
        trajectory=trajectory,
    )
    with naming(Path(output)):
        ase.io.write(output, result.atoms)
    typer.echo(f"{result.in_words()}; written to {output}")
    if not result.converged:
        raise typer.Exit(NOT_CONVERGED)


def _calculator(
    model: str,
    device: str,
    dtype: str | None,
    backend: str,
    threads: int,
    on_extrapolation: str,
    record: str,
) -> "PhysicsMLCalculator":
    """From the arguments of a verb."""
    from physicsml_ase.calculator import PhysicsMLCalculator

    return PhysicsMLCalculator(
        members(model),
        device=device,
        dtype=dtype,
        backend=backend,
        threads=threads or None,
        on_extrapolation=on_extrapolation,
        record=record,
    )


def _different(outputs: dict[str, str | None]) -> None:
    """Raise `InputError` where two outputs are one file."""
    from physicsml_ase.simulate.outputs import same_file

    given = [(option, name) for option, name in outputs.items() if name is not None]
    for (one, a), (two, b) in itertools.combinations(given, 2):
        if same_file(a, b):
            raise InputError(f"{b}: is given with {one} and with {two}; they are different files")


def _check_format(output: str) -> None:
    """Raise `InputError` for a name that ASE writes nothing under, or a database that ASE would replace."""
    from ase.io.formats import UnknownFileTypeError, filetype, get_ioformat

    try:
        kind = filetype(output, read=False)
        if kind in DATABASES and Path(output).exists() and Path(output).stat().st_size:
            raise InputError(f"{output}: exists, and would lose the structures in it; give a new name")
        if get_ioformat(kind).can_write:
            return
    except UnknownFileTypeError:
        pass
    raise InputError(f"{output}: ASE writes no file format under that name; use .xyz, .cif, .vasp, ...")


def _check_writable(atoms: "Atoms", output: str) -> None:
    """Raise `InputError` for a format that can not hold such a structure; its folder is made."""
    import ase.io

    with tempfile.TemporaryDirectory() as folder:
        try:
            ase.io.write(Path(folder) / Path(output).name, atoms)
        except Exception as error:  # ASE's writers raise anything
            reason = " ".join(str(error).split())[:100]
            raise InputError(
                f"{output}: that format can not hold the structure ({reason}); use .xyz"
            ) from None
    try:
        Path(output).parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"{output}: its folder can not be made: {error}") from None


def _one_structure(spec: str) -> "Atoms":
    from physicsml_ase.data.sources import open_source

    source = open_source(spec)
    if len(source) > 1:
        logging.getLogger("physicsml_ase").info(
            "%s has %d structures: taking the last one (%s@INDEX takes another)", spec, len(source), spec
        )
    return source[len(source) - 1]
