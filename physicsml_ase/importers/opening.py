"""Files of other codes: as plain data, or brought to plain data by their own code in its own environment."""

import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from physicsml_ase.atoms import to_graph
from physicsml_ase.conventions import InputError
from physicsml_ase.graph import Graph
from physicsml_ase.importers.dump_mace import structures
from physicsml_ase.potential import Potential

CODES = ("mace", "nequip", "allegro", "tensor_net", "ani")


def plain_data(path: Path) -> dict[str, Any] | None:
    """The contents of a file of plain data; None where it holds anything else, of which no code is run."""
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise InputError(f"{path}: there is no such file") from None
    except Exception:  # pickle's errors have no common type
        return None
    return content if isinstance(content, dict) else None


def import_model(
    code: str,
    path: Path,
    *,
    python: str | None = None,
    head: str | None = None,
    elements: Sequence[int] = (),
    energy_unit: float | None = None,
) -> Potential:
    """The potential in a file of another code (`CODES`), whose `energy_unit` [eV], of torchmd-net, is 1 if not given.

    What only that code can open is opened by it, in the interpreter `python`, which has it installed.
    """
    if energy_unit is not None and code != "tensor_net":
        raise InputError(f"--energy-unit is for models of torchmd-net, and not of {code}")
    if code == "tensor_net":
        from physicsml_ase.importers.tensor_net import import_torchmdnet

        if not elements:
            raise InputError("a checkpoint of torchmd-net does not say its elements: name them (--elements)")
        return import_torchmdnet(path, tuple(elements), energy_unit or 1.0)
    if code == "ani":
        from physicsml_ase.importers.ani import import_torchani

        if head is not None and not head.isdigit():
            raise InputError(f"--head of a model of torchani is the number of a member, not {head!r}")
        return import_torchani(path, int(head or 0))
    if code not in CODES:
        raise InputError(f"{code!r} is not one of {', '.join(CODES)}")
    with tempfile.TemporaryDirectory() as folder:
        if python is not None and not _is_dump(path):
            path = _dumped(python, "dump_mace.py" if code == "mace" else "dump_nequip.py", path, Path(folder))
        if code == "mace":
            from physicsml_ase.importers.mace import import_mace

            return import_mace(path, head)
        from physicsml_ase.importers.nequip import import_nequip

        return import_nequip(path)


def _is_dump(path: Path) -> bool:
    """Whether one of the dump scripts wrote it; a checkpoint of nequip may be plain data too."""
    content = plain_data(path)
    return content is not None and ("format" in content or content.keys() >= {"meta", "state"})


def example_frames(potential: Potential) -> list[Graph]:
    """Structures of the model's elements, which its checkpoint keeps to be replayed."""
    domain = potential.domain
    return [to_graph(atoms, domain.cutoff) for atoms in structures(domain.elements)]


def _dumped(python: str, script: str, path: Path, folder: Path) -> Path:
    """`path` as plain data, written by the code that it belongs to."""
    out = folder / "dump.pt"
    # beside the script there are files named as what it imports
    alone = Path(shutil.copy(Path(__file__).with_name(script), folder))
    command = [python, str(alone), str(path.resolve()), str(out)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, cwd=folder)
    except OSError as error:
        raise InputError(f"{python}: {error.strerror}") from None
    if done.returncode or not out.exists():
        lines = [line for line in done.stderr.splitlines() if line.strip()]
        raise InputError(f"{path} could not be opened by {python}: {lines[-1] if lines else 'no output'}")
    return out
