"""Files of what a peer found, made by the scripts in `references/`, compared with our potentials."""

import json
import os
import subprocess
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from ase import Atoms

from physicsml_ase.atoms import to_graph
from physicsml_ase.potential import Potential

FOLDER = Path(__file__).parent / "references"
NEQUIP_ZBL = (
    'pair_potential={"_target_": "nequip.nn.pair_potential.ZBL", "units": "metal", '
    '"chemical_species": ["O", "H", "C", "N"]}'
)
"""A setting of `make_nequip.py`."""


class Reference(NamedTuple):
    """A model of a peer, and what it gives."""

    meta: dict[str, Any]
    state: dict[str, torch.Tensor]
    structures: dict[str, Atoms]
    found: dict[str, dict[str, np.ndarray]]


def read_reference(path: Path) -> Reference:
    """What `references/peer.py` wrote."""
    with np.load(path) as file:
        arrays = dict(file)
    meta, state, found = json.loads(str(arrays.pop("meta"))), {}, {}
    for name, value in arrays.items():
        if name.startswith("state/"):
            value = value.astype(np.float64) if value.dtype == np.float32 else value
            state[name.removeprefix("state/")] = torch.from_numpy(np.array(value))
        else:
            found.setdefault(name.split("/")[0], {})[name.split("/")[1]] = value
    structures = {
        name: Atoms(x["numbers"], x["positions"], cell=x["cell"], pbc=x["pbc"]) for name, x in found.items()
    }
    return Reference(meta, state, structures, found)


def made_by_peer(venv: str, script: str, path: Path, *settings: str) -> Reference:
    """The same, of a model made now in the environment of the peer, which the test needs."""
    python = Path(os.environ.get("VENVS", "no such folder")) / venv / "bin" / "python"
    if not python.exists():
        pytest.skip(f"needs {venv} in VENVS")
    command = [str(python), str(FOLDER / script), str(path), *settings]
    done = subprocess.run(command, capture_output=True, text=True, cwd=FOLDER)
    assert done.returncode == 0, done.stderr
    return read_reference(path)


def assert_equal(potential: Potential, reference: Reference, unit: float = 1.0, rtol: float = 1e-8) -> None:
    """Energies, forces and stress to `rtol` of the largest component; `unit` is the peer's [eV]."""
    assert [label.name for label in potential.labels] == ["energy", "forces", "stress"]
    potential = potential.eval()
    for name, atoms in reference.structures.items():
        out, found = potential(to_graph(atoms, potential.domain.cutoff)), reference.found[name]
        assert np.abs(found["forces"]).max() > 1e-3
        values = {"energy": out["energy"][0], "forces": out["forces"], "stress": out["stress"][0]}
        for key in values.keys() & found.keys():
            expected = unit * found[key]
            tolerance = rtol * np.abs(expected).max()
            np.testing.assert_allclose(
                values[key].numpy(), expected, rtol=0, atol=tolerance, err_msg=name + key
            )
