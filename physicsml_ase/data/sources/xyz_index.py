"""Where the frames of an xyz file begin: one fast pass over its line ends.

A frame is a line with its number of atoms, a comment line, and as many lines as atoms (and, in ADF's
dialect, up to three lines VEC1.. with the cell). Only the count lines are looked at, so a pass runs at the
disk's speed; it sees a file that was cut, a count that is wrong, and what is not an xyz file at all.
"""

from array import array
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray

from physicsml_ase.conventions import InputError

CHUNK = 1 << 23
BOM = b"\xef\xbb\xbf"


def index_frames(stream: BinaryIO, name: str, limit: int | None = None) -> NDArray[np.int64]:
    """Byte offset of every frame and of the end of the last one, (frames + 1,); stops after `limit`."""
    scan = _Scan(name, limit)
    rest = b""
    while not scan.done:
        chunk = stream.read(CHUNK)
        if not chunk and not rest:
            break
        text = rest + chunk if chunk else rest + b"\n"  # the last line may lack its end
        ends = np.flatnonzero(np.frombuffer(text, dtype=np.uint8) == ord("\n"))
        scan.lines(text, ends)
        consumed = int(ends[-1]) + 1 if len(ends) else 0
        rest = text[consumed:] if chunk else b""
        scan.base += consumed
    return scan.finish()


class _Scan:
    """The state between two chunks of the file."""

    def __init__(self, name: str, limit: int | None) -> None:
        self.name = name
        self.limit = limit
        self.base = 0  # offset of the chunk in the file
        self.line = 0  # lines passed
        self.offsets = array("q")  # a list of int would need five times the memory
        self.natoms = 0  # of the frame that is open
        self.skip = 0  # lines of it that are still to come
        self.vectors = 0  # VEC lines that followed it
        self.end = 0  # offset of the end of the last complete line looked at
        self.done = False

    def lines(self, text: bytes, ends: NDArray[np.int64]) -> None:
        """Pass over the complete lines of a chunk; `ends` are the positions of their newlines."""
        if self.line == 0 and b"\0" in text:
            raise InputError(f"{self.name} is not a text file, so not an xyz file")
        k = 0
        while not self.done:
            step = min(self.skip, len(ends) - k)
            k += step
            self.line += step
            self.skip -= step
            if step:
                self.end = self.base + int(ends[k - 1]) + 1
            if k == len(ends):
                tail = text[int(ends[-1]) + 1 if k else 0 :]
                if not self.skip and len(tail) > 1000:  # no need to look for the end of such a count line
                    raise InputError(self._no_count(tail))
                return
            start = int(ends[k - 1]) + 1 if k else 0
            self._between_frames(text[start : int(ends[k])], self.base + start)
            if not self.done:
                k += 1
                self.line += 1

    def _between_frames(self, line: bytes, offset: int) -> None:
        """A line where a frame may begin."""
        if offset == 0 and line.startswith(BOM):
            line, offset = line[len(BOM) :], len(BOM)
        if not line.strip():
            return
        if self.offsets and self.vectors < 3 and line.lstrip().startswith(b"VEC"):
            self.vectors += 1
            self.end = offset + len(line) + 1
            return
        if len(self.offsets) == self.limit:
            self.done, self.end = True, offset
            return
        try:
            natoms = int(line)
        except ValueError:
            raise InputError(self._no_count(line)) from None
        frame = len(self.offsets)
        if natoms <= 0:
            raise InputError(
                f"{self.name} frame {frame}: has {natoms} atoms (line {self.line + 1}); remove the frame"
            )
        self.offsets.append(offset)
        self.natoms, self.skip, self.vectors = natoms, natoms + 1, 0
        self.end = offset + len(line) + 1

    def _no_count(self, line: bytes) -> str:
        found = line[:30].decode("utf-8", "replace").strip()
        frame = len(self.offsets)
        message = f"{self.name} line {self.line + 1}: expected the number of atoms of frame {frame}"
        if not frame:
            return f"{message}, found {found!r}; is it an xyz file?"
        return (
            f"{message}, found {found!r}; frame {frame - 1} says {self.natoms} atoms and lists another number"
        )

    def finish(self) -> NDArray[np.int64]:
        """Where frames begin in the file and the last one ends [bytes]; `InputError` for a file that is cut off."""
        frames = len(self.offsets)
        if self.skip:
            listed = max(self.natoms - self.skip, 0)
            rescue = f"; {self.name}@:{frames - 1} reads the frames before it" if frames > 1 else ""
            raise InputError(
                f"{self.name} frame {frames - 1}: the file ends (line {self.line}) after {listed} of "
                f"{self.natoms} atom lines{rescue}"
            )
        if not frames:
            raise InputError(f"no structures in {self.name}")
        self.offsets.append(self.end)
        return np.array(self.offsets, dtype=np.int64)
