"""The engines of several potentials, called as one engine is."""

from collections.abc import Sequence

from torch import Tensor

from physicsml_ase.backends.choose import Engine
from physicsml_ase.backends.native import Step
from physicsml_ase.graph import Graph
from physicsml_ase.neighbors import Origin
from physicsml_ase.trust.committee import combined


class Committee:
    """All members compute the same graph, from one neighbour list."""

    def __init__(self, engines: Sequence[Engine]) -> None:
        self.engines = list(engines)

    @property
    def name(self) -> str:
        """Backends of the members, one name where they are the same."""
        return ", ".join(dict.fromkeys(engine.name for engine in self.engines))

    @property
    def whole_lists(self) -> int:
        """As of an engine: what all members can take."""
        return min(engine.whole_lists for engine in self.engines)

    @property
    def features(self) -> Tensor | None:
        """Those of the first member, which the structure is compared with its training data by."""
        return self.engines[0].features

    @property
    def close(self) -> bool:
        """Whether atoms of the last structure were within the first member's wall, where it knows."""
        return self.engines[0].close

    def keep_features(self) -> None:
        """As of an engine."""
        self.engines[0].keep_features()

    follows = False
    """There is nothing quicker than a call."""

    def follow(self, graph: Graph, origin: Origin) -> Step | None:
        """As of an engine."""

    def __call__(self, graph: Graph) -> dict[str, Tensor]:
        """Means under the labels' names and standard deviations as `<label>_std`."""
        return combined([engine(graph) for engine in self.engines])
