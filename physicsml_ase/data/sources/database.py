"""Rows of ASE databases: SQLite (.db) and LMDB (.aselmdb) row by row, JSON (.json) held in memory.

A row keeps its forces as they were computed: ASE applies a row's constraints only when asked for forces
through Atoms, never to `calc.results`. What a row has besides (key_value_pairs and data) is in `Atoms.info`
under those two names.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from ase import Atoms
from ase.db import connect
from ase.db.core import Database, parse_selection
from numpy.typing import NDArray

from physicsml_ase.conventions import InputError
from physicsml_ase.data.sources.files import File, file_hash, find_file, handle, one_line
from physicsml_ase.data.sources.memory import from_file
from physicsml_ase.data.sources.source import Source
from physicsml_ase.data.sources.sqlite_file import check_sqlite, open_sqlite, sqlite_ids

Engine = tuple[Callable[[File], None], Callable[[str], Database], Callable[[File, str], NDArray[np.int64]]]
"""To read one kind of file row by row: refuse a damaged one, open it, list the ids of a selection."""


@dataclass(frozen=True, eq=False)
class _Rows:
    file: File
    open_: Callable[[str], Database]

    def where(self, key: int) -> str:
        return f"{self.file.name} row id {key}"

    def read(self, key: int) -> Atoms:
        try:
            row = handle(self.open_, self.file).get(id=key)
            return row.toatoms(add_additional_information=True)
        except Exception as error:  # a damaged row raises anything
            raise InputError(f"{self.where(key)} can not be read: {one_line(error)}") from None

    def content_hash(self) -> str:
        return file_hash(self.file)


def open_database(name: str, selection: str = "") -> Source:
    """The rows of an ASE database that a selection string chooses, by ascending id; first and last are read."""
    file = find_file(name)
    try:
        parse_selection(selection)
    except Exception as error:
        raise InputError(f"{name}: {selection!r} is not a selection of rows: {one_line(error)}") from None
    if name.lower().endswith(".json"):
        return _hold_json(file, selection)
    check, open_, list_ids = _engine(file)
    check(file)
    try:
        ids = list_ids(file, selection)
    except Exception as error:  # sqlite3, lmdb and zlib have errors of their own
        raise InputError(f"{name} can not be read as an ASE database: {one_line(error)}") from None
    if not len(ids):
        raise InputError(_nothing_in(name, selection))
    rows = _Rows(file, open_)
    for key in {int(ids[0]), int(ids[-1])}:
        rows.read(key)
    return Source(name, rows, ids)


def _engine(file: File) -> Engine:
    if not file.path.lower().endswith(".aselmdb"):
        return check_sqlite, open_sqlite, sqlite_ids
    try:
        from physicsml_ase.data.sources.lmdb_file import check_lmdb, lmdb_ids, open_lmdb
    except ImportError:
        raise InputError(
            f"{file.name}: reading .aselmdb needs the package ase-db-backends; "
            "pip install 'physicsml-ase[aselmdb]'"
        ) from None
    return check_lmdb, open_lmdb, lmdb_ids


def _hold_json(file: File, selection: str) -> Source:
    """ASE reads a JSON database as a whole for every row, so its rows are held instead."""
    try:
        database = connect(file.path, type="json", use_lock_file=False, serial=True)
        rows = [row.toatoms(add_additional_information=True) for row in database.select(selection)]
    except Exception as error:
        raise InputError(f"{file.name} can not be read as an ASE database: {one_line(error)}") from None
    if not rows:
        raise InputError(_nothing_in(file.name, selection))
    return from_file(file, tuple(rows), "row")


def _nothing_in(name: str, selection: str) -> str:
    return f"no structures in {name}" + (f" match {selection!r}" if selection else "")
