"""Structures that a model extrapolates to, kept in an ASE database to be labelled.

Written are: the first structure of each excursion outside of the training data, then one whose score is a quarter
higher than any before in it, or the next after ten checks; and none that is in the database already. They have no
energies or forces: those would be the model's own, and must not be taken for labels.
"""

import hashlib
import sqlite3
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from ase import Atoms
from numpy.typing import NDArray

from physicsml_ase.conventions import InputError
from physicsml_ase.data.sources.keys import drop_labels

HIGHER, CHECKS = 1.25, 10


class Recorder:
    """Appends to the database at `path`, which is opened when there is something to write."""

    def __init__(self, path: str | Path, attrs: Sequence[str] = (), labels: Sequence[str] = ()) -> None:
        """`attrs` are the keys of `Atoms.info` that the model sees, `labels` those of what it was trained on."""
        self.path, self.attrs, self.labels = Path(path), tuple(attrs), tuple(labels)
        if self.path.suffix != ".db":
            raise InputError(
                f"{path}: structures are recorded in an ASE database, so the name must end in .db"
            )
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise InputError(f"{path}: its folder can not be made: {error}") from None
        self._highest, self._passed = 0.0, 0
        self._written: set[str] | None = None

    def offer(self, atoms: Atoms, scores: NDArray[np.float64], kinds: list[str], begins: bool) -> bool:
        """Write a structure with its scores (N,) if the rule asks for it; whether it was. `begins` an excursion."""
        score = float(scores.max())
        self._passed += 1
        if not (begins or score > HIGHER * self._highest or self._passed > CHECKS):
            return False
        self._highest = score if begins else max(score, self._highest)
        self._passed = 0
        return self._write(atoms, scores, kinds)

    def _write(self, atoms: Atoms, scores: NDArray[np.float64], kinds: list[str]) -> bool:
        from ase.db import connect

        # ASE's databases do not keep `info`, and a charge or a spin is part of what is to be labelled
        plain = atoms.copy()
        plain.info = {k: v for k, v in atoms.info.items() if not isinstance(v, dict)}
        drop_labels(plain, self.labels, self.attrs)
        info = {
            k: v for k, v in plain.info.items() if k in self.attrs or isinstance(v, int | float | str | bool)
        }
        seen = {k: np.asarray(info[k]).tolist() for k in self.attrs if k in info}
        name = fingerprint(atoms, repr(sorted(seen.items())) if seen else "")
        try:
            with connect(self.path) as database:
                if self._written is None:
                    self._written = {row.get("fingerprint", "") for row in database.select()}
                if name in self._written:
                    return False
                pairs: dict[str, Any] = {"extrapolation": float(scores.max()), "why": " ".join(kinds)}
                database.write(
                    plain,
                    key_value_pairs=pairs | {"fingerprint": name},
                    data={"scores": scores, "info": info},
                )
        except (sqlite3.Error, OSError) as error:
            raise InputError(f"{self.path}: a structure could not be recorded: {error}") from None
        self._written.add(name)
        return True


def fingerprint(atoms: Atoms, state: str = "") -> str:
    """The same for structures that differ by less than about 0.001 Å, in the same state."""
    digest = hashlib.sha256(atoms.numbers.astype(np.int64).tobytes() + bytes(atoms.pbc) + state.encode())
    for values in (atoms.cell.array, atoms.positions):
        digest.update(np.round(values * 1e3).astype(np.int64).tobytes())
    return f"f{digest.hexdigest()[:24]}"  # ASE takes what looks like a number for one
