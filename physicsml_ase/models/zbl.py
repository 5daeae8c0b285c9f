"""The screened nuclear repulsion of Ziegler, Biersack & Littmark (The Stopping and Range of Ions in Matter, 1985).

    V = k Z Z' / d phi(d / a), a = 0.8854 a0 / (Z^0.23 + Z'^0.23)

for each pair of atoms, switched off smoothly before the cut-off. This is the whole model; what other models have
below distances they have not seen is in `nn.wall` (`short_range: zbl`). The constants can be learned.

Shapes: N atoms, E edges.
"""

from typing import ClassVar, Literal

import torch
from ase.units import Bohr
from pydantic import PositiveFloat
from torch import Tensor, nn

from physicsml_ase.config import config, register_model
from physicsml_ase.domain import Domain
from physicsml_ase.graph import Graph
from physicsml_ase.nn.features import Features
from physicsml_ase.nn.pair_energies import (
    apart,
    half_to_atoms,
    refuse_attributes,
    settled_onset,
    smooth_switch,
)
from physicsml_ase.nn.wall import COULOMB, FACTORS, RATES

LENGTH, POWER = 0.8854 * Bohr, 0.23
"""Of the screening length a [Å]."""


@config
class ZBLConfig:
    """ZBL: repulsion of nuclei alone, for tests and collisions; no vectors."""

    name: Literal["zbl"] = "zbl"
    """Architecture."""
    trainable: bool = False
    """Whether the constants of the universal screening function are learned."""

    only_in_training: ClassVar = ("trainable",)
    """What changes no figures of a trained model."""
    onset: PositiveFloat | None = None
    """Up to where the repulsion is as published [Å]; it ends at the cut-off. none: half of the cut-off."""


@register_model(ZBLConfig)
class ZBL(nn.Module):
    """Energies of the atoms, half of each of their pairs'."""

    gives_energy = True
    takes_slots = True
    num_node_scalars, num_node_vectors = 1, 0

    def __init__(self, config: ZBLConfig, domain: Domain) -> None:
        super().__init__()
        refuse_attributes("zbl", domain)
        self.cutoff, self.scale = domain.cutoff, domain.energy_scale
        self.shift = domain.energy_shift / domain.energy_scale
        self.onset = settled_onset("zbl", config.onset, domain.cutoff, 0.5)
        self.factors = nn.Parameter(torch.tensor(FACTORS), config.trainable)
        self.rates = nn.Parameter(torch.tensor(RATES), config.trainable)
        self.length = nn.Parameter(torch.tensor([LENGTH]), config.trainable)
        self.power = nn.Parameter(torch.tensor([POWER]), config.trainable)

    def forward(self, graph: Graph, r_ij: Tensor) -> Features:
        """Energies of the atoms (N,) in units of the energy scale, from r_ij (E, 3) [Å]."""
        d, two = apart(r_ij, self.cutoff)
        z = graph.atomic_numbers.to(d.dtype)
        zi, zj = (z.index_select(0, k) for k in graph.edge_index)
        a = self.length / (zi**self.power + zj**self.power)
        screening = torch.exp(-(d / a)[:, None] * self.rates) @ self.factors  # (E,)
        energy = COULOMB * zi * zj / d * screening * smooth_switch(d, self.onset, self.cutoff)
        energies = half_to_atoms(energy, two, graph) / self.scale + self.shift
        return Features(node_scalars=energies[:, None], node_energy=energies)
