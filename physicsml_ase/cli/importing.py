"""`import`."""

from pathlib import Path
from typing import Annotated

import typer

from physicsml_ase.cli.options import spare


def import_(
    code: Annotated[str, typer.Argument(metavar="CODE", help="mace, nequip, allegro, tensor_net or ani.")],
    model: Annotated[
        Path, typer.Argument(metavar="FILE", help="A model of that code, or what its dump script wrote.")
    ],
    output: Annotated[Path, typer.Option("-o", "--output", metavar="FILE", help="The checkpoint.")] = Path(
        "model.ckpt"
    ),
    head: Annotated[
        str | None,
        typer.Option(
            help="Which head, of a model that has several; of ani, which member, from 0.", metavar="NAME"
        ),
    ] = None,
    elements: Annotated[
        str | None,
        typer.Option(help="Elements of a model that does not say, such as 'H C O'.", metavar="SYMBOLS"),
    ] = None,
    energy_unit: Annotated[
        str | None,
        typer.Option(
            help="Of a model of torchmd-net that was not trained in eV: kcal/mol, kJ/mol or Hartree."
        ),
    ] = None,
    python: Annotated[
        str | None,
        typer.Option(
            help="Interpreter in which that code is installed. It opens FILE, by which code that FILE names "
            "is run: only for files that you trust. [default: this one]",
            metavar="PATH",
            show_default=False,
        ),
    ] = None,
) -> None:
    """Turn a model of mace-torch, nequip, nequip-allegro, torchmd-net or torchani into a checkpoint."""
    import sys

    from ase.data import atomic_numbers, chemical_symbols

    from physicsml_ase.checkpoint import save_potential
    from physicsml_ase.conventions import InputError
    from physicsml_ase.importers.opening import example_frames, import_model

    spare(str(model), {"-o": output})
    symbols = (elements or "").replace(",", " ").split()
    unknown = [s for s in symbols if s not in atomic_numbers]
    if unknown:
        raise InputError(f"--elements: {unknown[0]!r} is no element")
    factor = None if energy_unit is None else _in_eV(energy_unit)
    numbers = sorted({atomic_numbers[s] for s in symbols})
    potential = import_model(
        code, model, python=python or sys.executable, head=head, elements=numbers, energy_unit=factor
    ).eval()
    about = {"imported": {"code": code, "file": model.name, "head": head or ""}}
    unit = ""
    if code == "tensor_net":
        about["imported"]["energy_unit"] = energy_unit or "eV"
        unit = f"; its energies taken to be in {energy_unit or 'eV'}"
    save_potential(potential, output, frames=example_frames(potential), about=about)
    found = ", ".join(chemical_symbols[z] for z in potential.domain.elements[:12])
    more = len(potential.domain.elements) - 12
    found += f" and {more} more" if more > 0 else ""
    typer.echo(f"written to {output}: {potential.config.name} for {found}{unit}")


def _in_eV(unit: str) -> float:
    """A unit of energy [eV]."""
    from ase import units

    from physicsml_ase.conventions import InputError

    known = {"eV": 1.0, "kcal/mol": units.kcal / units.mol, "kJ/mol": units.kJ / units.mol}
    known["Hartree"] = units.Hartree
    if unit not in known:
        raise InputError(f"--energy-unit: {unit!r} is none of {', '.join(known)}")
    return known[unit]
