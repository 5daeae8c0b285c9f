"""Checkpoints from somebody else: opening one runs nothing and fills no memory."""

import os
import pickle
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch

from physicsml_ase.checkpoint import load_potential, read_checkpoint, save_potential
from physicsml_ase.config import MODELS, validate
from physicsml_ase.conventions import InputError, Label
from physicsml_ase.domain import Domain
from physicsml_ase.potential import Potential


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    config = validate(MODELS["painn"].config, {"name": "painn", "channels": 8, "layers": 1})
    domain = Domain(cutoff=4.0, elements=(1, 8), avg_num_neighbors=5.0)
    save_potential(
        Potential(config, domain, (Label("energy", "structure", (), "energy"),)), tmp_path / "model.ckpt"
    )
    return tmp_path / "model.ckpt"


class Runs:
    """Makes a file when it is unpickled by something careless."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return os.mkdir, (str(self.path),)


def changed(path: Path, **changes: Any) -> Path:
    """The checkpoint with some of its contents replaced."""
    contents = torch.load(path, weights_only=True) | changes
    torch.save(contents, path)
    return path


def refused(path: Path, words: str) -> None:
    with pytest.raises(InputError, match=words) as told:
        load_potential(path)
    assert "\n" not in str(told.value)


def test_a_sound_one_loads(checkpoint: Path) -> None:
    load_potential(checkpoint)


def test_code_in_a_checkpoint_is_not_run(checkpoint: Path, tmp_path: Path) -> None:
    made = tmp_path / "made"
    refused(changed(checkpoint, about={"x": Runs(made)}), "holds more than plain data")
    plain = tmp_path / "plain.ckpt"
    plain.write_bytes(pickle.dumps(Runs(made)))
    refused(plain, "not a checkpoint")
    assert not made.exists()


def test_a_bit_that_fell_over_is_seen(checkpoint: Path) -> None:
    contents = bytearray(checkpoint.read_bytes())
    with zipfile.ZipFile(checkpoint) as file:
        weights = max(file.infolist(), key=lambda entry: entry.file_size)
    contents[weights.header_offset + 200] ^= 1
    checkpoint.write_bytes(contents)
    refused(checkpoint, "is damaged")


def test_a_name_that_is_no_text_is_one_line(checkpoint: Path) -> None:
    checkpoint.write_bytes(checkpoint.read_bytes().replace(b"data.pkl", b"data\xff\xfe\xff\xff"))
    refused(checkpoint, "not a checkpoint|damaged")


def test_an_end_that_names_other_disks_is_one_line(checkpoint: Path) -> None:
    """An end record of ZIP64 says on how many disks an archive lies."""
    data = bytearray(checkpoint.read_bytes())
    locator = b"PK\x06\x07" + (1).to_bytes(4, "little") + bytes(8) + (7).to_bytes(4, "little")
    end = data.rindex(b"PK\x05\x06")
    checkpoint.write_bytes(bytes(data[:end]) + locator + bytes(data[end:]))
    refused(checkpoint, "not a checkpoint|damaged|newer|cut")


def test_a_compressed_checkpoint_is_refused(checkpoint: Path, tmp_path: Path) -> None:
    bomb = tmp_path / "bomb.ckpt"
    with zipfile.ZipFile(checkpoint) as old, zipfile.ZipFile(bomb, "w", zipfile.ZIP_DEFLATED) as new:
        for entry in old.infolist():
            new.writestr(entry.filename, old.read(entry))
        new.writestr("model/data/999", bytes(10**8))
    refused(bomb, "larger than the file")


def test_weights_that_are_larger_than_the_file_are_refused(checkpoint: Path) -> None:
    weights = torch.load(checkpoint, weights_only=True)["state_dict"]
    name = next(iter(weights))
    refused(
        changed(checkpoint, state_dict=weights | {name: torch.zeros(1).expand(10**12)}),
        "larger than what is stored",
    )
    refused(changed(checkpoint, state_dict=weights | {name: "none"}), "is no weight")
    sparse = torch.sparse_coo_tensor(torch.zeros(1, 1), torch.zeros(1), (10**12,))
    with pytest.raises(InputError):
        load_potential(changed(checkpoint, state_dict=weights | {name: sparse}))


@pytest.mark.parametrize("size", [10**6, 10**12])
def test_a_model_that_needs_more_memory_than_its_weights_is_refused(checkpoint: Path, size: int) -> None:
    contents = torch.load(checkpoint, weights_only=True)
    model = contents["model"] | {"channels": size}
    refused(changed(checkpoint, model=model), "larger than all of its weights|weights do not fit the model")
    padded = contents["state_dict"] | {"more": torch.zeros(2 * 10**6)}
    refused(
        changed(checkpoint, model=model, state_dict=padded), "larger than all|weights do not fit the model"
    )


@pytest.mark.parametrize(
    "changes",
    [
        {"domain": {"cutoff": 4.0}},
        {"domain": None},
        {"model": {"name": "nothing"}},
        {"model": []},
        {"labels": [["energy"]]},
        {"labels": 3},
        {"heads": 5},
        {"format_version": "new"},
        {"state_dict": []},
        {"state_dict": {}},
        {"frames": [{"graph": {}}]},
    ],
    ids=str,
)
def test_contents_of_another_shape_are_one_line(checkpoint: Path, changes: dict[str, Any]) -> None:
    path = changed(checkpoint, **changes)
    if "frames" in changes:
        read_checkpoint(path)  # they are not looked at before they are replayed
        return
    refused(path, "model.ckpt")
