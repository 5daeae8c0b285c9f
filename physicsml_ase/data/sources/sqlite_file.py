"""SQLite files of ASE (.db): refused when damaged, opened so that they can not be written, their ids listed."""

import sqlite3
from urllib.parse import quote

import numpy as np
from ase.db import connect
from ase.db.core import Database, parse_selection
from ase.db.sqlite import SQLite3Database
from numpy.typing import NDArray

from physicsml_ase.conventions import InputError
from physicsml_ase.data.sources.files import File, handle, one_line

MAGIC = b"SQLite format 3\0"


def check_sqlite(file: File) -> None:
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
    except (sqlite3.Error, UnicodeDecodeError) as error:
        raise InputError(f"{file.name} can not be read as an ASE database: {one_line(error)}") from None
    if "systems" not in tables:
        raise InputError(f"{file.name} is an SQLite file but not an ASE database: it has no table 'systems'")


def open_sqlite(path: str) -> Database:
    """A database on one connection, kept open: ASE by itself would connect anew for every row."""
    database = connect(path, type="db", use_lock_file=False, serial=True)
    database.connection = _connect_sqlite(path)
    database.change_count = 0
    return database


def _connect_sqlite(path: str) -> sqlite3.Connection:
    return sqlite3.connect(f"file:{quote(path)}?mode=ro", uri=True, timeout=20)


def sqlite_ids(file: File, selection: str) -> NDArray[np.int64]:
    """Ids of the rows that a selection string chooses, ascending.

    By SQL alone: ASE's `select` would decode every row for them.
    """
    database = handle(open_sqlite, file)
    assert isinstance(database, SQLite3Database)
    with database.managed_connection() as connection:
        keys, comparisons = parse_selection(selection)
        sql, values = database.create_select_statement(keys, comparisons, what="systems.id")
        rows = connection.execute(f"{sql} ORDER BY systems.id", values).fetchall()
    return np.array(rows, dtype=np.int64).reshape(len(rows))
