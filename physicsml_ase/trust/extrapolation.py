"""How far each atom of a structure is from the training data, by several measures; 1 is the rim of what was seen.

`distance` grows by 1 for every tenth that a neighbour is closer than any pair of these elements was, `neighbors`
compares their number with the fewest and the most, `features` and `energy` are those of `cloud`. Shapes: N atoms, E
edges.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from ase.data import atomic_numbers, chemical_symbols
from torch import Tensor

from physicsml_ase.domain import Domain
from physicsml_ase.graph import Graph, edge_vectors
from physicsml_ase.nn.features import NUM_ELEMENTS
from physicsml_ase.potential import Potential
from physicsml_ase.trust.cloud import feature_scores

LIMIT = 1.5
"""Scores above this are extrapolation. 1 is the rim of what was seen, which one atom in a thousand passes at the
temperature of the training data."""
CLOSER = 10.0
"""By how much a distance score grows where a pair is twice as close."""
UNSEEN = 10.0
"""Score of two neighbours whose elements never were neighbours."""


class Scores(NamedTuple):
    """Scores of the atoms, (N,) each, float64."""

    distance: Tensor
    neighbors: Tensor
    features: Tensor
    energy: Tensor

    @property
    def worst(self) -> Tensor:
        """That of each atom's features, and any other that is higher where it is beyond the rim, (N,)."""
        others = torch.stack([self.distance, self.neighbors, self.energy]).amax(0)
        # within it they say little: every fourth atom has as many neighbours as any had
        return torch.where(others > 1, torch.maximum(others, self.features), self.features)


def beyond(scores: Scores, sizes: Sequence[int]) -> list[tuple[int, Scores]]:
    """(place, its own scores) of the structures of a batch, of `sizes` atoms, that are beyond the limit."""
    parts = map(Scores._make, zip(*(of.split(list(sizes)) for of in scores)))
    return [(k, own) for k, own in enumerate(parts) if bool((own.worst > LIMIT).any())]


class Extrapolation:
    """What a potential's training data had, to compare structures with."""

    def __init__(self, potential: Potential) -> None:
        domain, device = potential.domain, potential.references.table.device
        self.domain, self.potential = domain, potential
        self.cloud = {name: t.to(device) for name, t in potential.trust.get("cloud", {}).items()}
        self._shortest = _pairs(domain).to(device)
        fewest, most, middle = (torch.zeros(NUM_ELEMENTS, dtype=torch.float64) for _ in range(3))
        for symbol, (low, high) in domain.neighbor_counts.items():
            fewest[atomic_numbers[symbol]], most[atomic_numbers[symbol]] = low, high
        half = torch.full_like(middle, torch.inf)  # no range, no score
        if self.cloud:
            seen = self.cloud["elements"].cpu()
            middle[seen], half[seen] = (self.cloud[f"energy_{of}"].cpu() for of in ("middle", "half"))
        self._fewest, self._most, self._middle, self._half = (
            table.to(device) for table in (fewest, most, middle, half)
        )

    @property
    def knows(self) -> bool:
        """Whether there is anything to compare with."""
        return bool(self.cloud or self.domain.shortest_distances or self.domain.neighbor_counts)

    def scores(self, graph: Graph, energies: Tensor | None, features: Tensor | None = None) -> Scores:
        """Scores of a batch. `energies` (N,) [eV] are the atoms'; `features` (N, F) are computed where not given."""
        z = graph.atomic_numbers
        d, inside = self._neighbors(graph)
        ratio = self._shortest.index_select(0, self._kinds(graph)) / d
        near = torch.where(ratio.isinf(), UNSEEN, 1 + CLOSER * (ratio - 1)).clamp(min=0.0)
        centre, zero = graph.edge_index[0], d.new_zeros(z.shape[0])
        distance = zero.scatter_reduce(0, centre, torch.where(inside, near, 0.0), "amax")
        count = zero.index_add(0, centre, inside.to(d))
        neighbors = by_features = by_energy = zero
        if self.domain.neighbor_counts:
            few, many = self._fewest.index_select(0, z), self._most.index_select(0, z)
            neighbors = torch.maximum((count + 1) / (many + 1), (few + 1) / (count + 1))
        if self.cloud:
            if features is None:
                with torch.no_grad():
                    features = self.potential.features(graph).node_scalars
            by_features = feature_scores(self.cloud, z, features).double()
            if energies is not None:
                away = (energies - self._middle.index_select(0, z)).abs()
                by_energy = away / self._half.index_select(0, z)
        return Scores(distance, neighbors, by_features, by_energy)

    def in_words(self, kind: str, graph: Graph, scores: Scores) -> str:
        """What is unlike the training data in the atom with the highest score of a kind."""
        atom = int(getattr(scores, kind).argmax())
        score, symbol = float(getattr(scores, kind)[atom]), chemical_symbols[int(graph.atomic_numbers[atom])]
        if kind == "neighbors":
            _, inside = self._neighbors(graph)
            number = int((inside & (graph.edge_index[0] == atom)).sum())
            few, many = self.domain.neighbor_counts[symbol]
            return f"atom {atom} ({symbol}) has {number} neighbours, and in the training data {few} to {many}"
        if kind == "distance":
            d, inside = self._neighbors(graph)
            ratio = self._shortest.index_select(0, self._kinds(graph)) / d
            edge = int(torch.where(inside & (graph.edge_index[0] == atom), ratio, 0.0).argmax())
            other = int(graph.edge_index[1][edge])
            pair = (
                f"atoms {atom} ({symbol}) and {other} ({chemical_symbols[int(graph.atomic_numbers[other])]})"
            )
            if torch.isinf(ratio[edge]):
                return f"{pair} are neighbours, and such never were in the training data"
            shortest = float(ratio[edge] * d[edge])
            return f"{pair} are {float(d[edge]):.3g} Å apart, and in the training data never below {shortest:.3g} Å"
        what = "the surroundings" if kind == "features" else "the energy"
        return f"{what} of atom {atom} ({symbol}): {score:.1f} times as far from the training data as these reach"

    def _neighbors(self, graph: Graph) -> tuple[Tensor, Tensor]:
        """Lengths of edges (E,), and which are of neighbours and not of a list's skin, or of an atom to itself."""
        d = edge_vectors(graph).square().sum(1).sqrt()
        return d, (d < self.domain.cutoff) & (d > 0)

    def _kinds(self, graph: Graph) -> Tensor:
        i, j = graph.atomic_numbers[graph.edge_index]
        return i * NUM_ELEMENTS + j


def _pairs(domain: Domain) -> Tensor:
    """Shortest distance of each pair of elements, infinite for the unseen; zero where none are known at all."""
    empty = torch.inf if domain.shortest_distances else 0.0
    table = torch.full((NUM_ELEMENTS, NUM_ELEMENTS), empty, dtype=torch.float64)
    for pair, d in domain.shortest_distances.items():
        a, b = (atomic_numbers[symbol] for symbol in pair.split("-"))
        table[a, b] = table[b, a] = d
    return table.flatten()
