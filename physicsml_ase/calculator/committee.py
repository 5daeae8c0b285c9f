"""Several models as one: the mean of what they say, and how far they are apart.

The standard deviation is that of one member (with M - 1). Where members tell a standard deviation of their own, of
noise that they have learned (`<label>_std`), the variances add up (Lakshminarayanan et al., arXiv:1612.01474).
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from physicsml_ase.backends.choose import Engine
from physicsml_ase.graph import Graph

STD = "_std"


class Committee:
    """The engines of several potentials, called as one engine is."""

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
        """Those of the first member."""
        return self.engines[0].features

    def keep_features(self) -> None:
        """Have the first member's kernel keep features."""
        self.engines[0].keep_features()

    def __call__(self, graph: Graph) -> dict[str, Tensor]:
        """Means under the labels' names and standard deviations as `<label>_std`."""
        outs = [engine(graph) for engine in self.engines]
        found: dict[str, Tensor] = {}
        for name in outs[0]:
            if name.endswith(STD) and name.removesuffix(STD) in outs[0]:
                continue
            values = torch.stack([out[name] for out in outs])
            found[name] = values.mean(0)
            variance = values.var(0)
            if name + STD in outs[0]:
                variance = variance + torch.stack([out[name + STD] for out in outs]).square().mean(0)
            found[name + STD] = variance.sqrt()
        return found
