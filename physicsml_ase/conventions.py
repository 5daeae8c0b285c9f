"""Units, signs, orders and the table of known properties: the one place where they are decided.

Inside the package: eV, Å, e, eV/Å³; energies extensive; stress is dE/d(strain)/V, positive in tension,
as in ASE. Voigt order is ASE's: xx, yy, zz, yz, xz, xy.
"""

from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

Level = Literal["structure", "atom", "edge"]

VOIGT = ((0, 0), (1, 1), (2, 2), (1, 2), (0, 2), (0, 1))
"""(row, column) of each of ASE's six Voigt components."""


class InputError(ValueError):
    """Something the user gave is wrong; the message is one line: what, where, what to do."""


def raised_in(error: BaseException) -> str:
    """Name of the module whose code raised an error."""
    last = error.__traceback__
    while last is not None and last.tb_next is not None:
        last = last.tb_next
    return "" if last is None else str(last.tb_frame.f_globals.get("__name__"))


class Property(NamedTuple):
    """A quantity that a structure, its atoms or its edges can have."""

    level: Level
    shape: tuple[int, ...]
    unit: str
    extensive: bool = False  # a structure's value is the sum over its atoms, not the mean


PROPERTIES: dict[str, Property] = {
    "energy": Property("structure", (), "eV", extensive=True),
    "energies": Property("atom", (), "eV"),
    "forces": Property("atom", (3,), "eV/Å"),
    "stress": Property("structure", (3, 3), "eV/Å³"),
    "dipole": Property("structure", (3,), "e·Å", extensive=True),
    "magmom": Property("structure", (), "μB", extensive=True),
    "charges": Property("atom", (), "e"),
    "magmoms": Property("atom", (), "μB"),
}
"""Known by name. Other labels are allowed: their level and shape come from the slot that names them."""


class Label(NamedTuple):
    """A quantity to learn: our name for it, what it looks like, and the user's name for it."""

    name: str
    level: Level
    shape: tuple[int, ...]
    key: str

    @property
    def unit(self) -> str:
        """Unit of the label, empty when the property is not a known one."""
        return PROPERTIES[self.name].unit if self.name in PROPERTIES else ""


def voigt_to_matrix(voigt: NDArray[np.float64]) -> NDArray[np.float64]:
    """Symmetric matrices from ASE's Voigt order, (..., 6) -> (..., 3, 3)."""
    matrix = np.empty((*voigt.shape[:-1], 3, 3), dtype=voigt.dtype)
    for k, (row, column) in enumerate(VOIGT):
        matrix[..., row, column] = matrix[..., column, row] = voigt[..., k]
    return matrix


def matrix_to_voigt(matrix: NDArray[np.float64]) -> NDArray[np.float64]:
    """ASE's Voigt order from symmetric matrices, (..., 3, 3) -> (..., 6)."""
    return np.stack([matrix[..., row, column] for row, column in VOIGT], axis=-1)
