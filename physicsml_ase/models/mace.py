"""MACE: message passing whose messages are products of many neighbours, by powers of sums over them.

Batatia, Kovács, Simm, Ortner & Csányi, NeurIPS 2022, arXiv:2206.07697; blocks, names and scaling of weights are those
of mace-torch's `ScaleShiftMACE`, so that `physicsml-ase import mace` copies its weights. Shapes: N atoms, P pairs,
R rows of J slots of edges, C channels, M = (max_ell + 1)^2, features of atoms (N, (L + 1)^2, C).
"""

import math
from typing import Literal

import numpy as np
import torch
from pydantic import NonNegativeInt, PositiveFloat, PositiveInt
from torch import Tensor, nn

from physicsml_ase.config import config, register_model
from physicsml_ase.conventions import InputError
from physicsml_ase.domain import Domain
from physicsml_ase.graph import Graph
from physicsml_ase.nn.agnesi import AgnesiTransform
from physicsml_ase.nn.blocks import make_pieces, one_piece
from physicsml_ase.nn.constants import Constants
from physicsml_ase.nn.couplings import parse_irreps
from physicsml_ase.nn.elements import Attributes, ElementIndex
from physicsml_ase.nn.features import Features, lengths_and_directions
from physicsml_ase.nn.harmonics import EdgeHarmonics
from physicsml_ase.nn.mace_layer import SILU, Interaction, Kind
from physicsml_ase.nn.pair_repulsion import PairRepulsion
from physicsml_ase.nn.pair_rows import PairRows, make_pair_rows
from physicsml_ase.nn.radial import BesselBasis

PIECE, PIECE_OF_GPU = 4096, 1 << 18
"""Slots of edges that inference computes at a time: what stays in a CPU's cache, and what keeps a GPU busy."""


@config
class MACEConfig:
    """MACE (arXiv:2206.07697): accurate, with products of many neighbours in each message."""

    name: Literal["mace"] = "mace"
    """Architecture."""
    num_bessel: PositiveInt = 8
    """Bessel functions of each distance."""
    num_polynomial_cutoff: PositiveInt = 5
    """Power p of the envelope that ends them at the cut-off."""
    max_ell: NonNegativeInt = 3
    """Highest degree of the harmonics of the neighbours' directions."""
    num_interactions: PositiveInt = 2
    """Layers; information travels this many cut-offs."""
    hidden_irreps: str = "32x0e+32x1o"
    """Features of each atom between layers: as many channels of each degree, of natural parity."""
    mlp_irreps: str = "16x0e"
    """Hidden layer of the last readout: scalars."""
    avg_num_neighbours: float | None = None
    """Divides sums over neighbours; unset, the mean number of neighbours in the training data."""
    correlation: PositiveInt = 3
    """Powers of the sums over neighbours: body order less one."""
    radial_mlp: tuple[PositiveInt, ...] = (64, 64, 64)
    """Hidden layers of the network that makes radial functions of the Bessel functions."""
    interaction_cls: Kind = "RealAgnosticResidualInteractionBlock"
    """Layers after the first, by mace-torch's names: residual, or with the element's own map of messages; `Density`
    ones divide sums over neighbours by a learned density."""
    interaction_cls_first: Kind = "RealAgnosticInteractionBlock"
    """First layer."""
    distance_transform: Literal["none", "Agnesi"] = "none"
    """What the Bessel functions are of: the distance, or its Agnesi transform by the elements' covalent radii."""
    pair_repulsion: bool = False
    """Add the repulsion of Ziegler, Biersack & Littmark below the sum of covalent radii."""
    repulsion_scale: PositiveFloat | None = None
    """Multiplies the repulsion before it is scaled as energies are. none: so that it is as published; mace-torch has
    1, and so have its models."""


def channels_and_degree(hidden_irreps: str) -> tuple[int, int]:
    """Channels C and highest degree L of features, from irreps such as 32x0e+32x1o."""
    irreps = parse_irreps(hidden_irreps)
    natural = [(l, (-1) ** l) for l in range(len(irreps))]
    if [tuple(ir) for _, ir in irreps] != natural or len({mul for mul, _ in irreps}) != 1:
        raise InputError(
            f"mace: hidden_irreps {hidden_irreps!r}: must be as many channels of each degree, of natural parity, "
            "as 64x0e+64x1o+64x2e"
        )
    return irreps[0].mul, len(irreps) - 1


@register_model(MACEConfig)
class MACE(Constants):
    """Energies, and scalars and vectors of each atom."""

    gives_energy = True
    takes_rows = True
    energy_shift: Tensor

    def __init__(self, config: MACEConfig, domain: Domain) -> None:
        super().__init__()
        c, L = channels_and_degree(config.hidden_irreps)
        (hidden, scalar), *others = parse_irreps(config.mlp_irreps)
        if others or tuple(scalar) != (0, 1):
            raise InputError(f"mace: mlp_irreps {config.mlp_irreps!r}: must be scalars, as 16x0e")
        self.channels, self.cutoff, num = c, domain.cutoff, config.num_interactions
        self.num_node_scalars = num * c
        self.num_node_vectors = (num - 1) * c if L else 0
        self.elements = ElementIndex(domain.elements)
        self.embedding = nn.Parameter(torch.randn(self.elements.num, c))
        self.attrs = Attributes(domain)
        self.attrs_embedding = nn.Parameter(torch.randn(self.attrs.num, c)) if self.attrs.num else None
        self.harmonics = EdgeHarmonics(config.max_ell)
        self.bessel = BesselBasis(config.num_bessel, domain.cutoff, config.num_polynomial_cutoff)
        self.bessel_scale = math.pi * domain.cutoff**-1.5  # as mace-torch normalises them
        self.transform = AgnesiTransform() if config.distance_transform == "Agnesi" else None
        self.repulsion_scale = config.repulsion_scale or 1 / domain.energy_scale
        self.repulsion = PairRepulsion(config.num_polynomial_cutoff) if config.pair_repulsion else None
        self.interactions = nn.ModuleList(
            Interaction(
                kind=config.interaction_cls if k else config.interaction_cls_first,
                l_in=L if k else 0,
                l_edge=config.max_ell,
                l_out=L if k < num - 1 else 0,
                order=config.correlation,
                channels=c,
                num_elements=self.elements.num,
                radial=(config.num_bessel, *config.radial_mlp),
                neighbours=config.avg_num_neighbours or domain.avg_num_neighbors,
            )
            for k in range(num)
        )
        linear = num if num == 1 else num - 1
        self.readouts = nn.ParameterList(torch.randn(c, 1) for _ in range(linear))
        self.readout_in = nn.Parameter(torch.randn(c, hidden)) if num > 1 else None
        self.readout_out = nn.Parameter(torch.randn(hidden, 1)) if num > 1 else None
        self.constant("energy_shift", np.array(domain.energy_shift / domain.energy_scale))

    @property
    def tiled(self) -> ElementIndex:
        """Elements by which atoms are sorted, when this is compiled."""
        return self.elements

    def forward(self, graph: Graph, r_ij: Tensor, rows: PairRows | None = None) -> Features:
        """Of edges r_ij (E, 3); `rows` are theirs, where they are known."""
        rows = make_pair_rows(graph) if rows is None else rows
        elements = self.elements(graph.atomic_numbers, r_ij.dtype)
        num_atoms = graph.atomic_numbers.shape[0]
        d, u = lengths_and_directions(r_ij)
        # mace-torch's edges point from the neighbour to the centre; in padding harmonics are zero
        y = rows.fill(self.harmonics(-u))  # (R, J, M)
        # what padding has for a pair lies at the cut-off, where every radial function is zero
        d = torch.cat([d.index_select(0, rows.edge), d.new_full((1, 1), self.cutoff)])  # (P, 1)
        t = None
        if self.transform is not None:
            z = graph.atomic_numbers
            i, j = (
                torch.cat([ends.index_select(0, rows.edge), ends.new_zeros(1)]) for ends in graph.edge_index
            )
            t = self.transform(d, z.index_select(0, i), z.index_select(0, j))
        radial = self.bessel(d, t) * self.bessel_scale  # (P, K)
        x = elements.pick(self.embedding) * self.embedding.shape[0] ** -0.5
        attrs = self.attrs(graph)
        if attrs is not None and self.attrs_embedding is not None:
            x = x + attrs @ self.attrs_embedding
        x = x[:, None]  # (N, 1, C)
        if rows.blocks is not None:
            pieces = one_piece(rows.slots, rows.blocks, num_atoms)
        else:
            most = PIECE if r_ij.device.type == "cpu" else PIECE_OF_GPU
            most = 0 if self.training else most
            pieces = make_pieces(rows.slots, elements.place, self.elements.num, most)
        energy = self.energy_shift.expand(num_atoms)
        if self.repulsion is not None:
            energy = energy + self.repulsion(graph, r_ij) * self.repulsion_scale
        layers = []
        for k, interaction in enumerate(self.interactions):
            x = interaction(x, radial, y, rows, pieces)  # (N, (L + 1)^2, C)
            layers.append(x)
            if k < len(self.readouts):
                energy = energy + (x[:, 0] @ self.readouts[k])[:, 0] * self.channels**-0.5
        if self.readout_in is not None and self.readout_out is not None:
            hidden = SILU * nn.functional.silu(x[:, 0] @ self.readout_in * self.channels**-0.5)
            energy = energy + (hidden @ self.readout_out)[:, 0] * self.readout_out.shape[0] ** -0.5
        vectors = torch.cat([x[:, 1:4] for x in layers[:-1]], dim=2) if self.num_node_vectors else None
        return Features(torch.cat([x[:, 0] for x in layers], dim=1), vectors, node_energy=energy)
