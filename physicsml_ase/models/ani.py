"""ANI: a network for each element, of environment vectors.

Smith, Isayev & Roitberg, Chem. Sci. 8, 3192 (2017), arXiv:1610.02431; the constants of ANI-1x and ANI-1ccx
(arXiv:1801.09319) and ANI-2x (J. Chem. Theory Comput. 16, 4192, 2020). Here it has every kind of cell, stress, and
any elements. Energies depend on atoms within one cut-off, and of angles there are those between near neighbours only.

The cosine cut-off of the original ends with a curvature that jumps; `smooth` is the default, `cosine` is for imported
weights. CELU, the networks' nonlinearity, has a second derivative that jumps where its argument is zero: forces are
continuous, force constants nearly everywhere.

Shapes: N atoms, E edges, F numbers of an environment vector, W the widest last hidden layer.
"""

from collections.abc import Iterable
from typing import Literal, NamedTuple

import torch
from ase.data import atomic_numbers, chemical_symbols
from pydantic import PositiveInt
from torch import Tensor, nn

from physicsml_ase.config import config, register_model
from physicsml_ase.conventions import InputError
from physicsml_ase.domain import Domain
from physicsml_ase.graph import Graph
from physicsml_ase.nn.aev import AEV, AEVConfig
from physicsml_ase.nn.elements import Attributes, ElementIndex
from physicsml_ase.nn.features import Features
from physicsml_ase.nn.pair_rows import PairRows
from physicsml_ase.nn.smearing import CutoffKind

Preset = Literal["ani1x", "ani1ccx", "ani2x"]
WIDTHS = (160, 128, 96)
"""Hidden layers where no preset says otherwise."""


class Published(NamedTuple):
    """Constants of a published model."""

    cutoff: float  # [Å]
    aev: AEVConfig
    widths: dict[str, tuple[int, ...]]  # hidden layers of each element, in the order of environment vectors


ANI1X = Published(
    5.2,
    AEVConfig(),
    {"H": (160, 128, 96), "C": (144, 112, 96), "N": (128, 112, 96), "O": (128, 112, 96)},
)
ANI2X = Published(
    5.1,
    AEVConfig(
        radial_start=0.8,
        radial_eta=19.7,
        angular_start=0.8,
        angular_eta=12.5,
        num_angular=8,
        zeta=14.1,
        num_sections=4,
    ),
    {
        "H": (256, 192, 160),
        "C": (224, 192, 160),
        "N": (192, 160, 128),
        "O": (192, 160, 128),
        "S": WIDTHS,
        "F": WIDTHS,
        "Cl": WIDTHS,
    },
)
PRESETS: dict[Preset, Published] = {"ani1x": ANI1X, "ani1ccx": ANI1X, "ani2x": ANI2X}


@config
class ANIConfig:
    """ANI (arXiv:1610.02431): energies from distances and angles, without messages; no vectors."""

    name: Literal["ani"] = "ani"
    """Architecture."""
    which_ani: Preset | None = None
    """Elements, cut-offs, terms and widths of a published model. none: the data's elements and cut-off."""
    aev: AEVConfig | None = None
    """Terms of the environment vectors where no published model is named. none: those of ANI-1x."""
    hidden_widths: tuple[PositiveInt, ...] | None = None
    """Hidden layers of each element's network. none: the published ones, or 160, 128 and 96."""
    cutoff_function: CutoffKind = "smooth"
    """What ends terms at the cut-offs. cosine: the paper's, whose forces have a kink there."""


class Network(nn.Module):
    """The network of one element, with CELU of parameter 0.1."""

    def __init__(self, widths: tuple[int, ...]) -> None:
        super().__init__()
        self.hidden = nn.ModuleList(nn.Linear(a, b) for a, b in zip(widths, widths[1:]))
        self.final = nn.Linear(widths[-1], 1)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Last hidden layer and energies, (n, F) -> (n, w) and (n, 1)."""
        for layer in self.hidden:
            x = nn.functional.celu(layer(x), 0.1)
        return x, self.final(x)


@register_model(ANIConfig)
class ANI(nn.Module):
    """Energies of the atoms from their environment vectors."""

    gives_energy = True
    num_node_vectors = 0
    takes_rows = True
    most_pairs_of_slots = 1 << 22
    """Of larger structures, the triplets that there are cost less than all pairs of slots in rows."""
    compiles = False  # in training an atom may have several rows, and triplets need all neighbours in one

    def __init__(self, config: ANIConfig, domain: Domain) -> None:
        super().__init__()
        symbols, cutoff, terms, widths = settled(config, domain)
        self.aev = AEV(terms, len(symbols), cutoff, config.cutoff_function)
        self.radial_cutoff = cutoff
        self.index = ElementIndex(tuple(atomic_numbers[symbol] for symbol in symbols))
        self.attrs = Attributes(domain)
        inputs = self.aev.width + self.attrs.num
        self.networks = nn.ModuleDict({s: Network((inputs, *w)) for s, w in zip(symbols, widths)})
        self.num_node_scalars = max(w[-1] for w in widths)
        for network in self.networks.values():
            assert isinstance(network, Network)
            network.final.bias.data.add_(domain.energy_shift / domain.energy_scale)

    @property
    def tiled(self) -> ElementIndex:
        """Elements by which atoms are sorted, when this is compiled."""
        return self.index

    def forward(self, graph: Graph, r_ij: Tensor, rows: PairRows | None = None) -> Features:
        """Energies (N,) and the networks' last layers (N, F), from r_ij (E, 3) [Å], or of edges in given `rows`."""
        if rows is not None:
            return self._of_rows(graph, r_ij, rows)
        i, j = graph.edge_index
        element = self.index.places.index_select(0, graph.atomic_numbers)
        squared = r_ij.detach().square().sum(1)
        inside = ((squared < self.radial_cutoff**2) & (squared > 0)).nonzero()[:, 0]
        if inside.shape[0] < i.shape[0]:
            i, j, r_ij = i.index_select(0, inside), j.index_select(0, inside), r_ij.index_select(0, inside)
        d_ij = r_ij.square().sum(1, keepdim=True).sqrt()
        x = self.aev(i, element, element.index_select(0, j), r_ij, d_ij)
        attrs = self.attrs(graph)
        x = x if attrs is None else torch.cat([x, attrs], dim=1)
        order = element.argsort(stable=True)
        counts = torch.bincount(element, minlength=self.index.num).tolist()
        features, outputs = [], []
        for network, own in zip(self.networks.values(), x.index_select(0, order).split(counts)):
            if own.shape[0]:
                scalars, energies = network(own)
                padding = self.num_node_scalars - scalars.shape[1]
                features.append(nn.functional.pad(scalars, (0, padding)) if padding else scalars)
                outputs.append(energies)
        place = torch.empty_like(order).index_copy_(
            0, order, torch.arange(order.shape[0], device=order.device)
        )
        energy = torch.cat(outputs).index_select(0, place)[:, 0]
        return Features(node_scalars=torch.cat(features).index_select(0, place), node_energy=energy)

    def _of_rows(self, graph: Graph, r_ij: Tensor, rows: PairRows) -> Features:
        """The same, without sizes that depend on values: all networks as wide as the widest, of atoms in tiles."""
        assert rows.blocks is not None
        element = self.index.places.index_select(0, graph.atomic_numbers)
        x, attrs = self.aev.of_rows(element, rows.neighbor, r_ij), self.attrs(graph)
        x = x if attrs is None else torch.cat([x, attrs], dim=1)
        ((elements, _, atoms),) = rows.blocks.blocks
        x = (x if atoms is None else x.index_select(0, atoms)).unflatten(0, (elements.shape[0], -1))
        networks = [network for network in self.networks.values() if isinstance(network, Network)]
        for layers in zip(*(network.hidden for network in networks)):
            x = nn.functional.celu(of_elements(layers, elements, x), 0.1)
        energy = of_elements([network.final for network in networks], elements, x)
        x, energy = x.flatten(0, 1), energy.flatten()
        back = rows.blocks.back
        if back is not None:
            x, energy = x.index_select(0, back), energy.index_select(0, back)
        return Features(node_scalars=x, node_energy=energy)


def of_elements(layers: Iterable[nn.Module], elements: Tensor, x: Tensor) -> Tensor:
    """Each tile's own of some linear layers, one for each element, filled up with zeros to equal widths.

    `elements` (Z,) of tiles, whose n atoms have features x (Z, n, K): (Z, n, F).
    """
    own = [layer for layer in layers if isinstance(layer, nn.Linear)]
    width = max(layer.out_features for layer in own)
    missing = [(x.shape[2] - layer.in_features, width - layer.out_features) for layer in own]
    weights = torch.stack(
        [nn.functional.pad(layer.weight, (0, a, 0, b)) for layer, (a, b) in zip(own, missing)]
    )
    biases = torch.stack([nn.functional.pad(layer.bias, (0, b)) for layer, (_, b) in zip(own, missing)])
    return torch.baddbmm(biases.index_select(0, elements)[:, None], x, weights.index_select(0, elements).mT)


def settled(
    config: ANIConfig, domain: Domain
) -> tuple[list[str], float, AEVConfig, list[tuple[PositiveInt, ...]]]:
    """Elements, radial cut-off [Å], terms, and hidden widths of each element."""
    if config.which_ani is None:
        symbols = [chemical_symbols[z] for z in domain.elements]
        terms = config.aev or AEVConfig()
        return symbols, domain.cutoff, terms, [config.hidden_widths or WIDTHS] * len(symbols)
    published = PRESETS[config.which_ani]
    if config.aev is not None:
        raise InputError(f"model ani: which_ani = {config.which_ani} has its own terms, so leave out aev")
    if domain.cutoff < published.cutoff:
        raise InputError(
            f"model ani: {config.which_ani} needs a cut-off of {published.cutoff} Å, not {domain.cutoff:g}"
        )
    others = [chemical_symbols[z] for z in domain.elements if chemical_symbols[z] not in published.widths]
    if others:
        raise InputError(
            f"model ani: {config.which_ani} knows {', '.join(published.widths)}, not {', '.join(others)};"
            " leave out which_ani for other elements"
        )
    widths = [config.hidden_widths or own for own in published.widths.values()]
    return list(published.widths), published.cutoff, published.aev, widths
