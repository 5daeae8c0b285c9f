"""Large forces: frames whose largest force is far beyond what is usual in the data. Every frame is seen."""

import numpy as np

from physicsml_ase.check.findings import Finding, Places
from physicsml_ase.check.frame import Frame

FACTOR, LEAST = 50.0, 30.0
"""A force is extreme at so many times the usual RMS, and at least [eV/Å]."""
USUAL = 0.4
"""Part of the frames below which the RMS is usual: more than half of them may be wrong."""


class LargeForces:
    """The largest force and the RMS of every frame."""

    def __init__(self) -> None:
        self.rows: list[tuple[str, int, float, float]] = []
        self.names: dict[tuple[str, int], str] = {}

    def see(self, frame: Frame) -> None:
        """One more frame."""
        if frame.forces is None or not len(frame.forces):
            return
        square = (frame.forces**2).sum(1)
        largest = float(np.sqrt(square.max()))
        self.rows.append((frame.set_, frame.index, largest, float(np.sqrt(square.mean() / 3))))
        if largest > LEAST:
            self.names[frame.set_, frame.index] = frame.where

    def findings(self) -> list[Finding]:
        """What was found."""
        if not self.names:
            return []
        rms = np.array([row[3] for row in self.rows])
        limit = max(LEAST, FACTOR * float(np.quantile(rms, USUAL)))
        places = Places()
        for set_, index, largest, _ in sorted(self.rows, key=lambda row: -row[2]):
            if largest > limit:
                places.put(set_, index, self.names[set_, index], f"{largest:.4g} eV/Å")
        return places.finding(
            "warning",
            "large-forces",
            "{n} with an extreme force",
            f"remove them, or leave them out with datamodule.max_force={limit:.3g}",
            limit=limit,
        )
