"""Predictions and labels, set aside while a source streams by, to be written out when asked for."""

import tempfile
from collections.abc import Iterator, Mapping

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
IN_MEMORY = 1 << 26  # bytes, then a temporary file


class Spool:
    """Batches of arrays by name, in order; on disk where they are many, and gone with this object."""

    def __init__(self) -> None:
        self.file = tempfile.SpooledTemporaryFile(IN_MEMORY)  # noqa: SIM115  open for as long as this object
        self.batches: list[tuple[int, list[str], list[str]]] = []

    def append(self, structures: int, results: Mapping[str, Array], reference: Mapping[str, Array]) -> None:
        """Set a batch aside."""
        self.batches.append((structures, list(results), list(reference)))
        for array in (*results.values(), *reference.values()):
            np.save(self.file, array)

    def __iter__(self) -> Iterator[tuple[int, dict[str, Array], dict[str, Array]]]:
        """The batches again, as (number of structures, predictions, labels)."""
        self.file.seek(0)
        for structures, results, reference in self.batches:
            yield (
                structures,
                {k: np.load(self.file) for k in results},
                {k: np.load(self.file) for k in reference},
            )
