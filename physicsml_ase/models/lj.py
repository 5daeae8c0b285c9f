"""Lennard-Jones: 4 epsilon ((sigma / d)^12 - (sigma / d)^6) for each pair of atoms, the parameters learned or given.

A baseline, and a quick stand-in for tests of everything around a model. Beside the pairs' energies each element has
one of its own. The energy is brought to zero at the cut-off by a switching function: `smooth` has two continuous
derivatives, `xplor` is ASE's with `smooth=True`, whose curvature jumps; `shift` is ASE's without, whose forces jump.

Shapes: N atoms, E edges, Z elements.
"""

from itertools import combinations_with_replacement
from typing import ClassVar, Literal

import numpy as np
import torch
from ase.data import chemical_symbols, covalent_radii
from pydantic import Field, PositiveFloat
from torch import Tensor, nn

from physicsml_ase.config import config, register_model
from physicsml_ase.conventions import InputError
from physicsml_ase.domain import Domain
from physicsml_ase.graph import Graph
from physicsml_ase.nn.constants import Constants
from physicsml_ase.nn.elements import ElementIndex
from physicsml_ase.nn.features import Features
from physicsml_ase.nn.pair_energies import (
    SwitchKind,
    apart,
    half_to_atoms,
    refuse_attributes,
    settled_onset,
    smooth_switch,
    xplor_switch,
)

DEPTH = 0.1
"""Epsilon where none is given [eV]."""


@config
class LJConfig:
    """Lennard-Jones between all pairs: a baseline; no vectors."""

    name: Literal["lj"] = "lj"
    """Architecture."""
    epsilon: dict[str, PositiveFloat] = Field(default_factory=dict)
    """Depths [eV] of pairs such as "H-O", of others 0.1; as they are at first, if they are learned."""
    sigma: dict[str, PositiveFloat] = Field(default_factory=dict)
    """Distances [Å] of zero energy; of others that with the minimum at the sum of covalent radii."""
    trainable: bool = True
    """Whether depths, distances and the elements' own energies are learned."""

    only_in_training: ClassVar = ("trainable",)
    """What changes no figures of a trained model."""
    switch: SwitchKind = "smooth"
    """What ends energies at the cut-off. xplor and shift: ASE's, with and without smooth=True."""
    onset: PositiveFloat | None = None
    """Where switching begins [Å]. none: 0.66 of the cut-off."""


@register_model(LJConfig)
class LJ(Constants):
    """Energies of the atoms, half of each of their pairs'."""

    gives_energy = True
    takes_slots = True
    num_node_scalars, num_node_vectors = 1, 0
    pairs: Tensor

    def __init__(self, config: LJConfig, domain: Domain) -> None:
        super().__init__()
        refuse_attributes("lj", domain)
        self.cutoff, self.scale, self.switch = domain.cutoff, domain.energy_scale, config.switch
        self.onset = settled_onset("lj", config.onset, domain.cutoff, 0.66)
        self.index = ElementIndex(domain.elements)
        pairs = list(combinations_with_replacement(domain.elements, 2))
        places = np.zeros((len(domain.elements),) * 2, np.int64)
        a, b = np.triu_indices(len(domain.elements))
        places[a, b] = places[b, a] = np.arange(len(pairs))
        self.constant("pairs", places.ravel())
        closest = {pair: float(covalent_radii[list(pair)].sum()) for pair in pairs}
        sigma = given("sigma", config.sigma, {p: 2 ** (-1 / 6) * d for p, d in closest.items()})
        epsilon = given("epsilon", config.epsilon, dict.fromkeys(pairs, DEPTH))
        own = torch.full((len(domain.elements),), domain.energy_shift / domain.energy_scale)
        self.sigma = nn.Parameter(torch.tensor(sigma), config.trainable)
        self.epsilon = nn.Parameter(torch.tensor(epsilon), config.trainable)
        self.own = nn.Parameter(own, config.trainable)

    def forward(self, graph: Graph, r_ij: Tensor) -> Features:
        """Energies of the atoms (N,) in units of the energy scale, from r_ij (E, 3) [Å]."""
        element = self.index.places.index_select(0, graph.atomic_numbers)
        i, j = graph.edge_index
        kind = element.index_select(0, i) * self.index.num + element.index_select(0, j)
        pair = self.pairs.index_select(0, kind)
        sigma, epsilon = self.sigma.index_select(0, pair), self.epsilon.index_select(0, pair)
        d, two = apart(r_ij, self.cutoff)
        energy = lennard_jones(d, sigma, epsilon)
        if self.switch == "shift":
            at_end = lennard_jones(torch.full_like(d, self.cutoff), sigma, epsilon)
            energy = torch.where(d < self.cutoff, energy - at_end, 0.0)
        else:
            switch = smooth_switch if self.switch == "smooth" else xplor_switch
            energy = energy * switch(d, self.onset, self.cutoff)
        energies = half_to_atoms(energy, two, graph) / self.scale + self.own.index_select(0, element)
        return Features(node_scalars=energies[:, None], node_energy=energies)


def lennard_jones(d: Tensor, sigma: Tensor, epsilon: Tensor) -> Tensor:
    """Energies [eV] at distances [Å], (E,) each."""
    power = (sigma / d).square() ** 3
    return 4 * epsilon * (power.square() - power)


def given(name: str, values: dict[str, PositiveFloat], default: dict[tuple[int, int], float]) -> list[float]:
    """A value for each pair of atomic numbers, from those given by symbols and the default."""
    wanted = dict(default)
    names = {"-".join(chemical_symbols[z] for z in pair): pair for pair in default}
    names |= {"-".join(chemical_symbols[z] for z in reversed(pair)): pair for pair in default}
    for key, value in values.items():
        if key not in names:
            raise InputError(f"model lj: {name} of {key!r}, but the pairs are {', '.join(sorted(names))}")
        wanted[names[key]] = value
    return list(wanted.values())
