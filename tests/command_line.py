"""The command line run in this process, and models that it can run."""

from pathlib import Path

import torch
from ase.data import atomic_numbers
from typer.testing import CliRunner, Result

from physicsml_ase.checkpoint import save_potential
from physicsml_ase.cli.app import app
from physicsml_ase.conventions import PROPERTIES, Label
from physicsml_ase.domain import Domain
from physicsml_ase.models.painn import PaiNNConfig
from physicsml_ase.potential import Potential

TINY = ("model.channels=8", "model.layers=1", "model.num_radial=4", "trainer.accelerator=cpu")


def run(*arguments: object) -> Result:
    """A verb with its arguments; what is a mistake in the program is raised as it is."""
    result = CliRunner().invoke(app, [str(argument) for argument in arguments], prog_name="physicsml-ase")
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


def error_of(result: Result) -> str:
    """The one line with which a verb refused its input."""
    assert result.exit_code == 2, result.output
    errors = [line for line in result.stderr.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1
    assert result.stderr.splitlines()[-1] == errors[0]
    assert result.stdout == ""
    return errors[0]


def random_model(path: Path, symbols: str) -> Path:
    """A checkpoint of a small model with random weights that knows these elements ("C H O")."""
    elements = tuple(sorted(atomic_numbers[symbol] for symbol in symbols.split()))
    domain = Domain(
        cutoff=5.0,
        elements=elements,
        avg_num_neighbors=12.0,
        atomic_energies={z: -1.5 * z for z in elements},
        energy_scale=1.0,
    )
    labels = tuple(
        Label(name, PROPERTIES[name].level, PROPERTIES[name].shape, name)
        for name in ("energy", "forces", "stress")
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        potential = Potential(PaiNNConfig(channels=8, layers=2, num_radial=4), domain, labels).eval()
    save_potential(potential, path)
    return path
