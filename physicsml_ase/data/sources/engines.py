"""The two kinds of ASE database file that are read row by row: SQLite (.db) and LMDB (.aselmdb).

For each: refuse a damaged file before it can do harm, open it so that it can not be written, list the ids.
"""

import sqlite3
from collections.abc import Callable
from typing import NamedTuple
from urllib.parse import quote

import numpy as np
from ase.db import connect
from ase.db.core import Database, parse_selection
from ase.db.sqlite import SQLite3Database
from numpy.typing import NDArray

from physicsml_ase.conventions import InputError
from physicsml_ase.data.sources.files import File, handle, one_line

MAGIC = b"SQLite format 3\0"


class Engine(NamedTuple):
    """What it takes to read one kind of database file."""

    check: Callable[[File], None]
    open_: Callable[[str], Database]
    ids: Callable[[File, str], NDArray[np.int64]]  # of the rows that a selection string chooses, ascending


def _check_sqlite(file: File) -> None:
    """Refuse what is no SQLite file, what is shorter than its header says, and what ASE has not made."""
    with open(file.path, "rb") as stream:
        header = stream.read(100)
    if not header.startswith(MAGIC):
        raise InputError(f"{file.name} is not an ASE database: it is no SQLite file, whatever its name says")
    page = int.from_bytes(header[16:18], "big")
    full = int.from_bytes(header[28:32], "big") * (65536 if page == 1 else page)
    size_is_kept = header[24:28] == header[92:96]  # not so where an SQLite before 3.7 wrote last
    if len(header) < 100 or (size_is_kept and file.size < full):
        raise InputError(f"{file.name} was cut: it has {file.size} bytes, its header says {full}")
    try:
        connection = _connect_sqlite(file.path)
        tables = {name for (name,) in connection.execute("SELECT name FROM sqlite_master")}
        connection.close()
    except sqlite3.Error as error:
        raise InputError(f"{file.name} can not be read as an ASE database: {one_line(error)}") from None
    if "systems" not in tables:
        raise InputError(f"{file.name} is an SQLite file but not an ASE database: it has no table 'systems'")


def _open_sqlite(path: str) -> Database:
    """A database on one connection, kept open: ASE by itself would connect anew for every row."""
    database = connect(path, type="db", use_lock_file=False, serial=True)
    database.connection = _connect_sqlite(path)
    database.change_count = 0
    return database


def _connect_sqlite(path: str) -> sqlite3.Connection:
    return sqlite3.connect(f"file:{quote(path)}?mode=ro", uri=True, timeout=20)


def _sqlite_ids(file: File, selection: str) -> NDArray[np.int64]:
    """Ids by SQL alone: ASE's `select` would decode every row for them."""
    database = handle(_open_sqlite, file)
    assert isinstance(database, SQLite3Database)
    with database.managed_connection() as connection:
        keys, comparisons = parse_selection(selection)
        sql, values = database.create_select_statement(keys, comparisons, what="systems.id")
        rows = connection.execute(f"{sql} ORDER BY systems.id", values).fetchall()
    return np.array(rows, dtype=np.int64).reshape(len(rows))


def _check_lmdb(file: File) -> None:
    """Refuse a file that is shorter than its own map of pages: reading it would end the process (SIGBUS)."""
    try:
        import lmdb
        from ase_db_backends import aselmdb  # noqa: F401
    except ImportError:
        raise InputError(
            f"{file.name}: reading .aselmdb needs the package ase-db-backends; "
            "pip install 'physicsml-ase[aselmdb]'"
        ) from None
    try:
        with lmdb.open(file.path, subdir=False, readonly=True, lock=False) as environment:
            full = (environment.info()["last_pgno"] + 1) * environment.stat()["psize"]
    except lmdb.Error as error:
        raise InputError(f"{file.name} can not be read as an ASE LMDB database: {one_line(error)}") from None
    if file.size < full:
        raise InputError(f"{file.name} was cut: it has {file.size} bytes, its pages make {full}")


def _open_lmdb(path: str) -> Database:
    from ase_db_backends.aselmdb import LMDBDatabase

    return LMDBDatabase(path, readonly=True, use_lock_file=False)


def _lmdb_ids(file: File, selection: str) -> NDArray[np.int64]:
    """All ids at once; a selection has to look at every row."""
    database = handle(_open_lmdb, file)
    if not selection:
        return np.array(sorted(getattr(database, "ids")), dtype=np.int64)  # noqa: B009  no types there
    rows = database.select(selection, include_data=False)
    return np.array(sorted(row.id for row in rows), dtype=np.int64)


SQLITE = Engine(_check_sqlite, _open_sqlite, _sqlite_ids)
LMDB = Engine(_check_lmdb, _open_lmdb, _lmdb_ids)
