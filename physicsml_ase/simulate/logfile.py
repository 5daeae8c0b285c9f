"""A log of named columns, one line a record, readable by people, numpy and pandas."""

import os
from collections.abc import Mapping
from pathlib import Path

from physicsml_ase.conventions import InputError
from physicsml_ase.data.sources.files import naming

WIDTH = 15


class LogFile:
    """Columns of numbers under a line of names; the first column is the step."""

    def __init__(self, path: Path, columns: Mapping[str, str], continue_from: int | None = None) -> None:
        """`columns` is {name with unit: format}. `continue_from` keeps an older log up to that step."""
        self.formats = list(columns.values())
        header = "# " + " ".join(f"{name:>{WIDTH}}" for name in columns)[2:] + "\n"
        if not path.name or path.is_dir():
            raise InputError(f"{path}: is a folder; give the log a file's name")
        if path.suffix in (".ckpt", ".pt2"):
            raise InputError(f"{path}: is the name of a model; give the log another one")
        path.parent.mkdir(parents=True, exist_ok=True)
        kept = [header]
        if continue_from is not None and path.exists():
            old = path.read_text(encoding="utf-8").splitlines(keepends=True)
            if old and old[0] != header:
                raise InputError(f"{path}: has other columns than this run's log; name another log")
            kept += [line for line in old[1:] if line.endswith("\n") and _step(line) <= continue_from]
        beside = path.with_name(f".{path.name}.{os.getpid()}")
        beside.write_text("".join(kept), encoding="utf-8")
        os.replace(beside, path)
        self.path, self.stream = path, path.open("a", encoding="utf-8")

    def write(self, *values: float) -> None:
        """Add a line."""
        shown = (f"{value:{form}}" for value, form in zip(values, self.formats, strict=True))
        with naming(self.path):
            self.stream.write(" ".join(f"{text:>{WIDTH}}" for text in shown) + "\n")
            self.stream.flush()

    def close(self) -> None:
        """Close the file."""
        with naming(self.path):
            self.stream.close()


def _step(line: str) -> int:
    """The step of a line; 0, before all steps, where somebody has written something else."""
    first = line.split()[:1]
    return int(first[0]) if first and first[0].isdigit() else 0
