"""LMDB files of ASE (.aselmdb), by ase-db-backends: refused when damaged, opened read-only, their ids listed.

LMDB allows a file to be open once in a process, whatever the number of sources and threads that read it,
and a forked child inherits the claim; so the environments are kept here and every database borrows one.
"""

import os

import lmdb
import numpy as np
from ase.db.core import Database
from ase_db_backends.aselmdb import LMDBDatabase
from numpy.typing import NDArray

from physicsml_ase.conventions import InputError
from physicsml_ase.data.sources.files import File, handle, one_line

_environments: dict[str, tuple[int, int, lmdb.Environment]] = {}  # path: (process, mtime, environment)


class _Borrowing(LMDBDatabase):
    """A database that neither opens nor closes the environment it reads."""

    @property
    def env(self) -> lmdb.Environment:
        return _environment(str(self.filename))

    def _open_lmdb_env(self) -> None:
        pass

    def close(self) -> None:
        pass


def check_lmdb(file: File) -> None:
    """Refuse a file that is shorter than its own map of pages: reading it would end the process (SIGBUS)."""
    try:
        environment = _environment(file.path)
        full = (environment.info()["last_pgno"] + 1) * environment.stat()["psize"]
    except lmdb.Error as error:
        raise InputError(f"{file.name} can not be read as an ASE LMDB database: {one_line(error)}") from None
    if file.size < full:
        raise InputError(f"{file.name} was cut: it has {file.size} bytes, its pages make {full}")


def open_lmdb(path: str) -> Database:
    """A database that can be read from every thread."""
    return _Borrowing(path, readonly=True, use_lock_file=False)


def lmdb_ids(file: File, selection: str) -> NDArray[np.int64]:
    """Ids of the rows that a selection string chooses, ascending; without one no row is read for them."""
    database = handle(open_lmdb, file)
    assert isinstance(database, LMDBDatabase)
    ids = [row.id for row in database.select(selection, include_data=False)] if selection else database.ids
    return np.array(sorted(ids), dtype=np.int64)


def _environment(path: str) -> lmdb.Environment:
    """The environment of this process; one inherited across a fork, or of a former file, is closed first."""
    now = os.getpid(), os.stat(path).st_mtime_ns
    if path in _environments:
        *opened, environment = _environments[path]
        if tuple(opened) == now:
            return environment
        environment.close()
    environment = lmdb.open(path, subdir=False, readonly=True, lock=False, readahead=False)
    _environments[path] = *now, environment
    return environment
