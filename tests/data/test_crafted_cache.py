"""Caches that somebody made: they are read as numbers of their own file, or not at all."""

from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from frames_for_tests import RECIPE, molecules, source_of

from physicsml_ase.data.cache import cached_store
from physicsml_ase.data.disk import Damaged, DiskStore


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return cached_store(source_of(molecules(4)), RECIPE, tmp_path / "cache").path


def outside(path: Path) -> Path:
    """Another HDF5 file, which holds what nobody should see."""
    with h5py.File(path, "w") as file:
        file["secret"] = np.arange(8)
    return path


def external_link(file: h5py.File, tmp_path: Path) -> None:
    del file["atom/positions"]
    file["atom/positions"] = h5py.ExternalLink(str(outside(tmp_path / "outside.h5")), "secret")


def soft_link(file: h5py.File, tmp_path: Path) -> None:
    del file["atom/positions"]
    file["atom/positions"] = h5py.SoftLink("/structure/frame")


def virtual(file: h5py.File, tmp_path: Path) -> None:
    rows = len(file["atom/positions"])
    layout = h5py.VirtualLayout((rows, 3), "f8")
    del file["atom/positions"]
    file.create_virtual_dataset("atom/positions", layout)


def raw_file(file: h5py.File, tmp_path: Path) -> None:
    rows = len(file["atom/positions"])
    del file["atom/positions"]
    file.create_dataset("atom/positions", (rows, 3), "f8", external=[("/etc/passwd", 0, rows * 24)])


def huge(file: h5py.File, tmp_path: Path) -> None:
    rows = len(file["atom/positions"])
    del file["atom/positions"]
    file.create_dataset("atom/positions", (rows, 10**10), "f8", chunks=(1, 1000))


def a_folder(file: h5py.File, tmp_path: Path) -> None:
    file.create_group("atom/more")


def strings(file: h5py.File, tmp_path: Path) -> None:
    rows = len(file["atom/positions"])
    file.create_dataset("atom/names", (rows,), h5py.string_dtype())


@pytest.mark.parametrize("craft", [external_link, soft_link, virtual, raw_file, huge, a_folder, strings])
def test_a_crafted_cache_is_not_used(cache: Path, tmp_path: Path, craft: Any) -> None:
    DiskStore(cache)
    with h5py.File(cache, "r+") as file:
        craft(file, tmp_path)
    with pytest.raises(Damaged):
        DiskStore(cache)
