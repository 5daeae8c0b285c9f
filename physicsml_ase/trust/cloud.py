"""The cloud of the training atoms in a model's own features, and how far outside of it an atom is.

For each element the mean m and covariance C of the last features x of its training atoms (Mahalanobis 1936); the
distance |C^(-1/2) (x - m)|, divided by what 99.9 % of the atoms seen keep below, is 1 at the rim of the cloud. C is
shrunk towards its diagonal as its sample size asks for (OAS: Chen et al., arXiv:0907.4698). Elements of few atoms
share one covariance. Shapes: N atoms, F features, Z elements, G covariances.
"""

from collections.abc import Mapping

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from physicsml_ase.nn.features import NUM_ELEMENTS

RIM = 0.999
"""Part of the atoms seen within a score of 1."""
FLOOR = 1e-5
"""Least variance of any direction, of the mean one: below it is rounding, and what the data never tested."""
ENOUGH = 2
"""An element has a covariance of its own from so many atoms for each feature on."""
MOST_NUMBERS = 4_000_000
"""Of all covariances together: 16 MB in a checkpoint."""
SMALLEST_WIDTH = 0.02
"""Least half width of the range of an element's atomic energies, in units of the energy scale."""


def fit_cloud(
    numbers: Tensor, x: Tensor, held_numbers: Tensor, held: Tensor, energies: Tensor, energy_scale: float
) -> dict[str, Tensor]:
    """The cloud of atoms (N,) with features (N, F), its rim found on `held` atoms as well, which did not shape it.

    `energies` (N,) [eV] are those of both, one after the other; their range is kept for each element.
    """
    x, held = x.double(), held.double()
    elements, counts = numbers.unique(return_counts=True)
    width = x.shape[1]
    means = torch.stack([x[numbers == z].mean(0) for z in elements])  # (Z, F)
    place = torch.zeros(NUM_ELEMENTS, dtype=torch.int64)
    place[elements] = torch.arange(len(elements))
    centred = x - means[place[numbers]]
    matrices, group = [whitening(centred)], torch.zeros(len(elements), dtype=torch.int64)
    for k in counts.argsort(descending=True).tolist():
        room = (len(matrices) + 1) * width * width <= MOST_NUMBERS
        if len(elements) > 1 and counts[k] >= ENOUGH * width and room:
            group[k] = len(matrices)
            matrices.append(whitening(centred[numbers == elements[k]]))
    found = {"elements": elements, "mean": means, "matrix": torch.stack(matrices), "group": group}
    rim = torch.ones(len(elements), dtype=torch.float64)
    own, others = (distances(found, z, y) for z, y in ((numbers, x), (held_numbers, held)))
    for k, z in enumerate(elements):
        quantiles = [
            d[of == z].quantile(RIM) for d, of in ((own, numbers), (others, held_numbers)) if (of == z).any()
        ]
        rim[k] = torch.stack(quantiles).max().clamp_min(1e-6)
    whole = torch.cat([numbers, held_numbers])
    ends = torch.stack([torch.stack(energies[whole == z].aminmax()) for z in elements])  # (Z, 2)
    middle, half = ends.mean(1), ((ends[:, 1] - ends[:, 0]) / 2).clamp_min(SMALLEST_WIDTH * energy_scale)
    found |= {"rim": rim}
    plain = {name: t.float() if t.is_floating_point() else t for name, t in found.items()}
    # of an energy in float32, the meV would be lost
    return plain | {"energy_middle": middle.double(), "energy_half": half.double()}


def whitening(x: Tensor) -> Tensor:
    """The matrix (F, F) that gives centred x (N, F) unit variance in every direction, as x @ matrix."""
    n, f = x.shape
    spread = x.square().mean(0)
    scale = spread.clamp_min(float(1e-6 * spread.mean())).clamp_min(1e-24).sqrt()
    y = x / scale
    s = y.mT @ y / n
    trace, square = s.trace(), s.square().sum()
    above, below = (1 - 2 / f) * square + trace**2, (n + 1 - 2 / f) * (square - trace**2 / f)
    rho = float((above / below.clamp_min(1e-12)).clamp(0.0, 1.0))
    s = (1 - rho) * s
    s.diagonal().add_((rho + FLOOR) * trace / f + 1e-24)
    values, vectors = torch.linalg.eigh(s)
    return vectors * values.clamp_min(1e-24).rsqrt() / scale[:, None]


def distances(cloud: Mapping[str, Tensor], numbers: Tensor, x: Tensor, scaled: bool = False) -> Tensor:
    """Mahalanobis distance of each atom (N,) from its element's cloud, `scaled` by the cloud's rim; infinite for an
    element without one."""
    out = x.new_full((x.shape[0],), torch.inf)
    for k, z in enumerate(cloud["elements"].tolist()):
        of = (numbers == z).nonzero()[:, 0]
        if of.shape[0]:
            away = x.index_select(0, of) - cloud["mean"][k].to(x)
            d = torch.linalg.vector_norm(away @ cloud["matrix"][cloud["group"][k]].to(x), dim=1)
            out.index_copy_(0, of, d / cloud["rim"][k].to(x) if scaled else d)
    return out


def feature_scores(cloud: Mapping[str, Tensor], numbers: Tensor, x: Tensor) -> Tensor:
    """How far each atom (N,) is from the training atoms by its features (N, F): 1 at the rim of the cloud."""
    return distances(cloud, numbers, x, scaled=True)


class EnergyRange:
    """How far the energies of given atoms are from those of their elements in training: 1 at the range's ends."""

    def __init__(self, cloud: Mapping[str, Tensor], numbers: NDArray[np.int64]) -> None:
        middle, inverse = np.zeros(NUM_ELEMENTS), np.zeros(NUM_ELEMENTS)  # no range, no score
        elements = cloud["elements"].cpu().numpy()
        middle[elements] = cloud["energy_middle"].cpu().numpy()
        inverse[elements] = 1 / cloud["energy_half"].cpu().numpy()
        self._middle, self._inverse = middle[numbers], inverse[numbers]

    def __call__(self, energies: NDArray[np.float64]) -> NDArray[np.float64]:
        """Scores (N,) of energies (N,) [eV]."""
        score = energies - self._middle
        np.abs(score, out=score)
        score *= self._inverse
        return score
