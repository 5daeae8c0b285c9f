"""One frame of an xyz file, from its text to Atoms, or to a message that names the line.

ASE's reader decides what a frame means. Where `ase-extxyz` is installed its C parser reads the columns of
numbers, several times faster; the comment line, and everything that the C parser would take differently
(NaN, integers, booleans, plain xyz), stays with ASE's.
"""

import ctypes
import re
from collections.abc import Callable
from functools import lru_cache
from io import StringIO
from typing import NamedTuple

import numpy as np
from ase import Atoms
from ase.data import atomic_numbers, chemical_symbols
from ase.io.extxyz import REV_PROPERTY_NAME_MAP, key_val_str_to_dict, read_xyz, set_calc_and_arrays

from physicsml_ase.conventions import PROPERTIES, InputError
from physicsml_ase.data.sources.files import one_line

ArrayDict = dict[str, np.ndarray]
CParser = Callable[[bytes, str], ArrayDict]

KINDS: dict[str, Callable[[str], object]] = {"R": float, "I": int, "S": str, "L": str}


class Column(NamedTuple):
    """A quantity of every atom, as `Properties` declares it."""

    name: str
    kind: str
    width: int


PLAIN = (Column("species", "S", 1), Column("pos", "R", 3))
"""What a file has that declares nothing; more columns are passed over."""


def parse_frame(block: bytes, where: str, line: Callable[[], int], fast: bool) -> Atoms:
    """Atoms from the text of one frame; `line()` is the 1-based number of its first line, for messages."""
    text = _decode(block)
    lines = text.split("\n")
    natoms, comment, rows = int(lines[0]), lines[1], lines[2:]
    columns = None
    declared = re.search(r'(?:^|\s)Properties="?([^"\s]+)', comment)
    try:
        columns = _columns(declared[1]) if declared else None
        atoms = _read_fast(block, comment, columns) if fast and columns else None
        if atoms is not None:
            return atoms
        width = sum(column.width for column in columns) if columns else 0
        if columns and any(len(row.split()) != width for row in rows[:natoms]):
            raise ValueError("a row has another number of columns than Properties declares")
        return next(iter(read_xyz(StringIO(text), 0)))
    except Exception as error:  # ASE's parser lets anything through, from KeyError to AssertionError
        expected = columns or (() if declared else PLAIN)
        row, reason = _bad_row(rows[:natoms], expected, declared is not None) or (-1, one_line(error))
        raise InputError(f"{where}, line {line() + 2 + row}: {reason}") from None


@lru_cache(maxsize=1)
def c_parser() -> CParser | None:
    """The C parser of `ase-extxyz`, reading a frame's columns from memory, or None where it is not there."""
    try:
        import ase_extxyz  # noqa: F401  the plugin that the user installs; it brings extxyz
        from extxyz import cextxyz

        open_memory = ctypes.CDLL(None).fmemopen  # absent on Windows
    except (ImportError, OSError, AttributeError, TypeError):
        return None
    open_memory.restype = cextxyz.FILE_ptr
    open_memory.argtypes = [ctypes.c_char_p, ctypes.c_size_t, ctypes.c_char_p]

    def parse(block: bytes, properties: str) -> ArrayDict:
        """Columns of a frame by name, from its text and what its comment says of them."""
        stream = open_memory(block, len(block), b"r")
        try:
            comment = f"Properties={properties}"
            return dict(cextxyz.read_frame_dicts(stream, comment=comment, use_cleri=False)[2])
        finally:
            cextxyz.cfclose(stream)

    return parse


def same_atoms(a: Atoms, b: Atoms) -> bool:
    """Whether two readers gave the same structure with the same labels, to the last bit."""

    def parts(atoms: Atoms) -> dict[str, object]:
        results = {f"calc {k}": v for k, v in getattr(atoms.calc, "results", {}).items()}
        info = {f"info {k}": v for k, v in atoms.info.items()}
        return {**atoms.arrays, **results, **info, "cell": atoms.cell.array, "pbc": atoms.pbc}

    left, right = parts(a), parts(b)
    return left.keys() == right.keys() and all(_equal(left[k], right[k]) for k in left)


@lru_cache(maxsize=1024)
def _columns(properties: str) -> tuple[Column, ...]:
    fields = properties.split(":")
    columns = []
    for name, kind, width in zip(fields[::3], fields[1::3], fields[2::3], strict=False):
        if kind not in KINDS or not width.isdigit() or int(width) < 1:
            raise ValueError(f"Properties has {name}:{kind}:{width}; the form is name:R|I|S|L:columns")
        columns.append(Column(name, kind, int(width)))
    if len(fields) % 3:
        raise ValueError(f"Properties={properties} does not consist of name:kind:columns")
    for column in columns:
        known = PROPERTIES.get(column.name)
        vector = column.name == "pos" or (known is not None and (known.level, known.shape) == ("atom", (3,)))
        if vector and (column.kind, column.width) != ("R", 3):
            declared = ":".join(map(str, column))
            raise ValueError(f"Properties declares {declared}, expected {column.name}:R:3")
    return tuple(columns)


def _read_fast(block: bytes, comment: str, columns: tuple[Column, ...]) -> Atoms | None:
    """What ASE's reader gives, from the C parser's columns; None where that can not be promised."""
    parse = c_parser()
    if parse is None or any(column.kind not in "RS" for column in columns):
        return None
    properties = ":".join(f"{c.name}:{c.kind}:{c.width}" for c in columns)
    try:
        table = parse(block, properties)
    except Exception:  # the C parser refuses more than ASE does; ASE's reader has the last word
        return None
    arrays = {
        REV_PROPERTY_NAME_MAP.get(c.name, c.name): table[c.name].astype(object if c.kind == "S" else float)
        for c in columns
    }
    if "symbols" not in arrays or "positions" not in arrays:
        return None
    info = key_val_str_to_dict(comment)
    if info.pop("Properties", None) != properties:
        return None
    lattice = info.pop("Lattice", None)
    pbc = info.pop("pbc", None if lattice is None else True)
    atoms = Atoms(
        [symbol.capitalize() for symbol in arrays.pop("symbols")],
        positions=arrays.pop("positions"),
        charges=arrays.pop("initial_charges", None),
        cell=None if lattice is None else lattice.T,
        pbc=pbc,
        info=info,
    )
    set_calc_and_arrays(atoms, arrays)
    return atoms


def _bad_row(rows: list[str], columns: tuple[Column, ...], declared: bool) -> tuple[int, str] | None:
    """The first row that does not hold the columns, which `Properties` has `declared` or are `PLAIN`, and why."""
    kinds = [column for column in columns for _ in range(column.width)]
    for k, row in enumerate(rows):
        values = row.split()
        if columns and declared and len(values) != len(kinds):
            return k, f"atom {k} has {len(values)} columns, Properties declares {len(kinds)}"
        if not declared and len(values) < len(kinds):
            return k, f"atom {k} has {len(values)} columns, an element and three coordinates are expected"
        for column, value in zip(kinds, values):
            try:
                KINDS[column.kind](value)
            except ValueError:
                kind = "an integer" if column.kind == "I" else "a number"
                return k, f"{column.name} of atom {k} is not {kind}: {value!r}"
            if column.name == "species" and value.isdecimal():
                symbol = f", {chemical_symbols[int(value)]}" if 0 < int(value) < len(chemical_symbols) else ""
                return k, f"atom {k} is given by its atomic number, {value}; write the symbol{symbol}"
            if column.name == "species" and value.capitalize() not in atomic_numbers:
                return k, f"atom {k} is of an unknown element, {value!r}"
    return None


def _equal(a: object, b: object) -> bool:
    x, y = np.asarray(a), np.asarray(b)
    numeric = x.dtype.kind == "f" and y.dtype.kind == "f"
    return x.dtype.kind == y.dtype.kind and np.array_equal(x, y, equal_nan=numeric)


def _decode(block: bytes) -> str:
    try:
        return block.decode("utf-8")
    except UnicodeDecodeError:
        return block.decode("latin-1")  # every byte is a character there; only comments can hold them
