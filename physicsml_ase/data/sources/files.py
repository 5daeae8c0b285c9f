"""Files as the user names them: found, opened once in every process, hashed.

Open files and database connections must not cross a fork (they would share one position or one lock with
the parent), and can not be pickled. So a source keeps only a `File`, and asks `handle` for what is open:
one for each process and thread, few enough at a time that a glob of thousands of files is fine.
"""

import difflib
import errno
import hashlib
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple, TypeVar

from physicsml_ase.conventions import InputError

Handle = TypeVar("Handle")
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, None)
"""Errors of a disk, a quota or a file that is full; None is numpy's."""


class File(NamedTuple):
    """A regular file that was there and readable when the source was opened."""

    path: str  # absolute
    name: str  # as the user wrote it
    size: int  # bytes
    mtime_ns: int


def find_file(name: str) -> File:
    """The file of that name, or an `InputError` that says what is there instead."""
    path = Path(name).expanduser().absolute()
    try:
        status = path.stat()
        if path.is_dir():
            raise InputError(f"{name} is a directory; name its files, such as {Path(name) / '*.xyz'}")
        if not path.is_file():
            raise InputError(f"{name} is not a regular file")
        with path.open("rb"):
            pass
    except (FileNotFoundError, NotADirectoryError):
        raise InputError(f"{name}: no such file{_nearest(path)}") from None
    except OSError as error:
        raise InputError(f"{name} can not be opened: {error.strerror}") from None
    if status.st_size == 0:
        raise InputError(f"no structures in {name}: the file is empty")
    return File(str(path), name, status.st_size, status.st_mtime_ns)


def handle(open_: Callable[[str], Handle], file: File) -> Handle:
    """`open_(path)`, opened by and for this process and thread only.

    A file that was written anew since is opened anew.
    """
    opened: Handle = _open(open_, file, os.getpid(), threading.get_ident())  # type: ignore[assignment]
    return opened


@lru_cache(maxsize=64)
def _open(open_: Callable[[str], object], file: File, process: int, thread: int) -> object:
    return open_(file.path)


@lru_cache(maxsize=4096)
def file_hash(file: File) -> str:
    """Hash of the file's bytes, read as a stream, once for a process."""
    with open(file.path, "rb") as stream:
        return hashlib.file_digest(stream, lambda: hashlib.blake2b(digest_size=16)).hexdigest()


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Have errors of a disk that is full while a file is written name the file, which Python's do not."""
    try:
        yield
    except OSError as error:
        if error.filename is None and error.errno in FULL:
            number, words = error.errno or errno.ENOSPC, error.strerror or f"is not written whole: {error}"
            raise OSError(number, words, str(path)) from None
        raise


def one_line(error: BaseException) -> str:
    """What an exception of another package says, on one line of a bearable length."""
    text = " ".join(str(error).split())
    return f"{text[:200]}" if text else type(error).__name__


def _nearest(path: Path) -> str:
    folder = path.parent
    if not folder.is_dir():
        return f" (there is no folder {folder})"
    near = difflib.get_close_matches(path.name, [entry.name for entry in folder.iterdir()], n=1)
    return f"; did you mean {near[0]}?" if near else f" in {folder}"
