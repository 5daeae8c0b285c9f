"""A bounded sample of a stream of frames, for what looks at frames together: pairs of neighbours, chosen evenly."""

import heapq

import numpy as np

from physicsml_ase.check.frame import Frame

RUN = 2
"""Consecutive frames that are taken together, since neighbours of a trajectory tell most."""


class Sample:
    """At most `most_frames` frames and about `most_atoms` atoms, whatever passes by; the same ones every time."""

    def __init__(self, most_frames: int = 150, most_atoms: int = 5000) -> None:
        self.most_frames, self.most_atoms = most_frames, most_atoms
        self.heap: list[tuple[float, int, Frame]] = []
        self.atoms = 0

    def see(self, frame: Frame) -> None:
        """One more frame; it or others may be let go of."""
        if frame.pairs is None or not len(frame.pairs.i) or frame.forces is None or not frame.forces.any():
            return
        if len(frame.atoms) > self.most_atoms:
            return
        rank = float(np.random.default_rng((7, frame.index // RUN)).random())
        heapq.heappush(self.heap, (-rank, frame.index, frame))
        self.atoms += len(frame.atoms)
        while len(self.heap) > self.most_frames or self.atoms > self.most_atoms:
            self.atoms -= len(heapq.heappop(self.heap)[-1].atoms)

    @property
    def frames(self) -> list[Frame]:
        """Those kept, in their order."""
        return [frame for _, _, frame in sorted(self.heap, key=lambda row: row[1])]
