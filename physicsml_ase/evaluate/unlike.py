"""Structures of a source that are unlike a model's training data: how many, and what is odd about the first."""

import logging
from collections.abc import Mapping

import numpy as np
import torch
from numpy.typing import NDArray

from physicsml_ase.data.sources import Source
from physicsml_ase.graph import Graph, split
from physicsml_ase.potential import Potential
from physicsml_ase.trust.extrapolation import LIMIT, Extrapolation, beyond

log = logging.getLogger("physicsml_ase")


class Unlike:
    """Looks at the structures of a source, batch after batch."""

    def __init__(self, potential: Potential, source: Source) -> None:
        self.known, self.source = Extrapolation(potential), source
        self.seen, self.count, self.first = 0, 0, ""

    def see(self, batch: Graph, results: Mapping[str, NDArray[np.float64]]) -> None:
        """The next structures, with the `energies` of their atoms (N,) [eV] where there are any."""
        if self.known.knows:
            graph = batch.to(self.known.potential.references.table.device)
            energies = results.get("energies")
            given = None if energies is None else torch.as_tensor(energies, device=graph.positions.device)
            odd = beyond(self.known.scores(graph, given), batch.num_atoms.tolist())
            if odd and not self.first:
                place, scores = odd[0]
                kind = next(name for name, of in scores._asdict().items() if bool((of > LIMIT).any()))
                own = split(graph._replace(inputs={}, targets={}), {})[place]
                words = self.known.in_words(kind, own, scores)
                self.first = f"{self.source.where(self.seen + place)}: {words}"
            self.count += len(odd)
        self.seen += len(batch.num_atoms)

    def tell(self) -> None:
        """Warn of them, if there are any."""
        if self.count:
            log.warning(
                "%d of %d structures are unlike the training data, the first is %s",
                *(self.count, self.seen, self.first),
            )
