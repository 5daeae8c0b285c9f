"""`import`: models of other codes, opened by those codes or given as plain data."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from ase.build import molecule
from command_line import error_of, run

from physicsml_ase import PhysicsMLCalculator
from physicsml_ase.checkpoint import load_potential, replay
from physicsml_ase.importers.dump_mace import FORMAT
from physicsml_ase.importers.opening import _is_dump

REFERENCES = Path(__file__).parent / "models" / "references"


def reference_dump(path: Path, wrong: float = 0.0) -> Path:
    """A file as `dump_mace.py` writes it, of the reference model."""
    sys.path.insert(0, str(REFERENCES.parent))
    try:
        from references_for_tests import read_reference
    finally:
        sys.path.pop(0)
    reference = read_reference(REFERENCES / "mace.npz")
    checks = []
    for name, atoms in reference.structures.items():
        found = reference.found[name]
        arrays = {"numbers": atoms.numbers, "positions": atoms.positions, "cell": atoms.cell.array}
        arrays |= {"pbc": atoms.pbc, "forces": found["forces"] + wrong, "energy": found["energy"]}
        checks.append({k: torch.from_numpy(np.array(v)) for k, v in arrays.items()})
    content = {"format": FORMAT, "config": reference.meta["config"], "state_dict": reference.state}
    torch.save(content | {"checks": {"Default": checks}}, path)
    return path


def test_plain_data_becomes_a_checkpoint(tmp_path: Path) -> None:
    result = run("import", "mace", reference_dump(tmp_path / "dump.pt"), "-o", tmp_path / "model.ckpt")
    assert result.exit_code == 0, result.output
    assert "mace for H, C, N, O" in result.stdout
    potential = load_potential(tmp_path / "model.ckpt")
    assert replay(tmp_path / "model.ckpt", potential) < 1e-12
    atoms = molecule("CH3OH")
    atoms.calc = PhysicsMLCalculator(tmp_path / "model.ckpt")
    assert np.isfinite(atoms.get_forces()).all()


def test_what_gives_something_else_is_refused(tmp_path: Path) -> None:
    path = reference_dump(tmp_path / "dump.pt", wrong=0.1)
    result = run("import", "mace", path, "-o", tmp_path / "model.ckpt")
    assert "differs from mace-torch's" in error_of(result)
    assert not (tmp_path / "model.ckpt").exists()


def test_without_mace_torch(tmp_path: Path) -> None:
    """An interpreter without it says so in one line."""
    (tmp_path / "their.model").write_bytes(b"a pickle")
    no_mace = tmp_path / "python"
    no_mace.write_text(f"#!/bin/sh\nexec {sys.executable} -S -c 'import sys; sys.exit(\"no mace-torch\")'\n")
    no_mace.chmod(0o755)
    result = run("import", "mace", tmp_path / "their.model", "--python", no_mace)
    assert "could not be opened by" in error_of(result)
    result = run("import", "mace", tmp_path / "nothing.model")
    assert "there is no such file" in error_of(result)
    result = run("import", "mace", tmp_path / "their.model", "--python", tmp_path / "nowhere")
    assert "No such file" in error_of(result)


def test_wrong_words(tmp_path: Path) -> None:
    assert "'mice' is not one of mace, nequip" in error_of(run("import", "mice", tmp_path / "x.model"))
    assert "name them (--elements)" in error_of(run("import", "tensor_net", tmp_path / "x.ckpt"))
    wrong = run("import", "tensor_net", tmp_path / "x.ckpt", "--elements", "H Q")
    assert "'Q' is no element" in error_of(wrong)


@pytest.mark.peer
@pytest.mark.parametrize("heads", ["Default", "a,b"])
def test_a_whole_model_of_mace_torch(tmp_path: Path, heads: str) -> None:
    python = Path(os.environ.get("VENVS", "no such folder")) / "mace" / "bin" / "python"
    if not python.exists():
        pytest.skip("needs mace in VENVS")
    command = [python, REFERENCES / "make_mace.py", tmp_path / "x.npz", "save=1", f"heads={heads}"]
    subprocess.run(list(map(str, command)), check=True, capture_output=True, cwd=REFERENCES)
    arguments = ["import", "mace", tmp_path / "x.model", "-o", tmp_path / "model.ckpt", "--python", python]
    if heads == "a,b":
        assert "choose one of a, b" in error_of(run(*arguments))
        arguments += ["--head", "b"]
    assert run(*arguments).exit_code == 0
    assert load_potential(tmp_path / "model.ckpt").config.hidden_irreps == "4x0e+4x1o"


def test_what_a_dump_script_wrote_is_not_opened_by_another_interpreter(tmp_path: Path) -> None:
    """A checkpoint of Lightning may be plain data too, and is no dump."""
    contents = {
        "dump": {"meta": {}, "state": {}, "more": 1},
        "lightning": {"hyper_parameters": {}, "state_dict": {}},
    }
    for name, content in contents.items():
        torch.save(content, tmp_path / name)
    assert _is_dump(tmp_path / "dump")
    assert not _is_dump(tmp_path / "lightning")
