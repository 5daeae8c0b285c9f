"""Gaunt-ACE: atomic cluster expansion with products on a grid on the sphere, and messages between neighbours.

Densities of neighbours (Drautz, Phys. Rev. B 99, 014104, 2019) are mixed into channels, whose products of any order
are Gaunt products (Luo et al., arXiv:2401.10216), taken pointwise on a quadrature grid; messages of low order
carry them to neighbours as in MACE (arXiv:2206.07697). No Clebsch-Gordan coefficients and no radial network: the
radial functions enter linearly, so that harmonics and radial functions are constants of a structure. The energy's
gradient is written out beside the energy: no automatic differentiation for forces, and none twice in training.
Weights of short radial waves and of high degrees are drawn small and trained by small steps: a prior of smoothness,
as fits of ACE have it (Witt et al., arXiv:2309.03161).

    D_i,lm,q = n^(-1/2) sum_j Y_lm(r_ij) B_q(d_ij, z_j)                          density
    A_i,lm,c = a_zi,l,c (sum_q W_l,q,c D_i,lm,q d_zi,l,q + sum_c' V_l,c,c' S_i,lm,c')    mixed, S = 0 in layer 1
    m_i,c    = s_zi,c [A, A^2, ..., A^nu]_i,c                                     products on the sphere
    x_i      = [m_i,00, h_i,00],  E_i += MLP(x_i)                                 readout
    h_i,lm,c = sum_c' U_l,c,c' m_i,lm,c' + b_zi,c                                 up to order L
    S_i,lm,c = n^(-1/2) sum_j Y_lm(r_ij) sum_l R_l,c(d_ij) (Y_l(r_ji) . h_j,l,c)      messages

Shapes: N atoms, E edges, R rows of J slots (`nn.slots`), M = (lmax + 1)^2, C channels, q density channels; atoms'
features are lm-major, (M, N, C).
"""

import copy
from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Annotated, Any, ClassVar, Literal, NamedTuple, Self

import torch
from pydantic import Field, NonNegativeFloat, PositiveFloat, PositiveInt, model_validator
from torch import Tensor, nn

from physicsml_ase.config import config, register_model
from physicsml_ase.domain import Domain
from physicsml_ase.graph import Graph
from physicsml_ase.nn.elements import Attributes, ElementIndex, Elements, ElementTable, gated
from physicsml_ase.nn.explicit import DegreeLinear, Readout
from physicsml_ase.nn.features import Features
from physicsml_ase.nn.geometry import EdgeGeometry, Geometry
from physicsml_ase.nn.messages import Message, Sent
from physicsml_ase.nn.slots import Slots, make_slots
from physicsml_ase.nn.sphere import SphereProduct, angular_power

CONSTANTS = "edge_constants"
"""Input of a graph that holds `GauntACE.constants` of its edges, made when batches are prepared."""
FEW_ELEMENTS = 6
"""Up to so many elements each has its own density; of more, learned mixtures are made."""
LMAX, MOST_LMAX, SHARE = 3, 6, 0.4
"""Degrees that serve most data, and at most; the share of the angular power up to MOST_LMAX that they must hold."""
MOST_LAYERS = MOST_CORRELATION = 4


@config
class GauntACEConfig:
    """Gaunt-product ACE: the default, most accurate for its cost on a CPU."""

    name: Literal["gaunt_ace"] = "gaunt_ace"
    """Architecture."""
    channels: PositiveInt = 32
    """Channels of each atom, C."""
    max_ell: Annotated[int, Field(ge=1, le=MOST_LMAX)] | None = None
    """Largest degree of the spherical harmonics, lmax. none: a training takes it from its data, by how atoms are
    surrounded: 3 as a rule, 4 to 6 in crystals as symmetric as metals; 3 where there are no data."""
    correlation: Annotated[int, Field(ge=1, le=MOST_CORRELATION)] = 3
    """Largest power of the density, nu: energies of one layer are of body order nu + 1."""
    layers: Annotated[int, Field(ge=1, le=MOST_LAYERS)] = 2
    """Layers; information travels this many cut-offs. 1 is strictly local."""
    message_ell: Annotated[int, Field(ge=0, le=2)] = 1
    """Largest degree of what neighbours tell each other, L."""
    num_radial: PositiveInt = 8
    """Radial functions of each distance."""
    radial_scale: PositiveFloat = 2.0
    """Distance [Å] below which the radial functions are stretched, so that they resolve the repulsive wall."""
    hidden: PositiveInt = 32
    """Hidden units of each layer's readout."""
    smoothness: NonNegativeFloat = 1.0
    """How smooth energies are taken to be before they are known: weights of radial functions fall with this power of
    their number of waves, and up to max_ell = 3 those of degree l with that of l + 1. They are drawn in these
    proportions, and MuonAdam trains them in the same ones. 0: all alike. It changes no figures of a trained model."""
    element_channels: PositiveInt | None = None
    """Learned channels of the neighbours' elements. none: one channel for each of up to 6 elements, else 8."""

    left_to_data: ClassVar = ("max_ell",)
    """What none leaves to the data of a training."""
    only_in_training: ClassVar = ("smoothness",)
    """What changes no figures of a trained model."""

    @model_validator(mode="after")
    def _possible(self) -> Self:
        if self.layers > 1 and self.message_ell > self.lmax:
            raise ValueError(f"message_ell: {self.message_ell}: must be at most max_ell, {self.lmax}")
        return self

    def relatives(self) -> list[tuple[Self, float]]:
        """Models that err unlike this one, for committees, and what a step of each costs in steps of this one."""
        own = replace(self, max_ell=self.lmax, message_ell=min(self.message_ell, self.lmax))
        wide = {"channels": 2 * own.channels, "message_ell": min(own.message_ell + 1, 2, own.lmax)}
        more = own.lmax < MOST_LMAX
        changes: list[tuple[dict[str, Any], float]] = [(wide, 2.2)]
        changes.append(({"max_ell": own.lmax + 1}, 1.3) if more else ({"max_ell": own.lmax - 1}, 0.8))
        if own.layers < MOST_LAYERS:
            changes.append(({"layers": own.layers + 1}, 3.5 if own.layers == 1 else 1.5))
        if own.correlation < MOST_CORRELATION:
            changes.append(({"correlation": own.correlation + 1}, 1.2))
        return [(replace(own, **change), cost) for change, cost in changes]

    @property
    def lmax(self) -> int:
        """Largest degree of the spherical harmonics."""
        return LMAX if self.max_ell is None else self.max_ell

    def for_data(self, batches: Iterable[Graph], cutoff: float) -> Self:
        """The config with what it left to the data, of which these are batches; cut-off [Å]."""
        return self if self.max_ell is not None else replace(self, max_ell=lmax_for(batches, cutoff))


def lmax_for(batches: Iterable[Graph], cutoff: float) -> int:
    """The lowest degree, from 3 to 6, up to which surroundings within the cut-off [Å] show what is angular in them.

    At a site of cubic symmetry the density of neighbours has no degrees but 0, 4, 6, ...: bcc molybdenum has a fifth
    of its angular power up to degree 5, and forces learned up to degree 3 have errors a third larger than up to 6.
    """
    power = angular_power(batches, cutoff, MOST_LMAX)
    held = power.cumsum(0) >= SHARE * power.sum()
    return next(degree for degree in range(LMAX, MOST_LMAX + 1) if held[degree - 1])


class Layer(nn.Module):
    """One layer: mixing, products, readout and, unless it is the last, what is told to neighbours."""

    message: Message | None
    mix_density: DegreeLinear
    mix_message: DegreeLinear | None
    mix_gate: ElementTable
    product: SphereProduct
    product_gate: ElementTable
    readout: Readout
    send: DegreeLinear | None
    send_bias: nn.Parameter | None

    def __init__(
        self,
        config: GauntACEConfig,
        density: int,
        domain: Domain,
        geometry: EdgeGeometry,
        first: bool,
        last: bool,
    ) -> None:
        super().__init__()
        c, lmax, nu = config.channels, config.lmax, config.correlation
        elements, attrs = len(domain.elements), len(domain.attr_shifts)
        ell = 0 if last else config.message_ell
        size, factor = 1.0 if first else 0.5**0.5, domain.avg_num_neighbors**-0.5
        self.message = None if first else Message(c, config.num_radial, config.message_ell, geometry)
        self.mix_density = DegreeLinear(lmax, density, c, size, factor)
        self.mix_message = None if first else DegreeLinear(lmax, c, c, size, factor)
        self.mix_gate = ElementTable(elements, lmax, c)
        self.product = SphereProduct(lmax, nu, ell)
        self.product_gate = ElementTable(elements, 0, nu * c)
        self.readout = Readout(nu * c + (0 if first else c), config.hidden, elements, attrs)
        self.send = None if last else DegreeLinear(ell, nu * c, c)
        self.send_bias = None if last else nn.Parameter(torch.zeros(elements, c))


class Pass(NamedTuple):
    """What the reverse pass of one layer needs."""

    sent: Sent | None
    mix_gate: Tensor | None
    on_grid: list[Tensor]
    product_gate: Tensor | None
    g_readout: Tensor  # (N, F)


@register_model(GauntACEConfig, default=True)
class GauntACE(nn.Module):
    """Energies of the atoms and the energy's gradient to the pair vectors, in one pass."""

    gives_gradient = True
    constants_name = CONSTANTS

    def __init__(self, config: GauntACEConfig, domain: Domain) -> None:
        super().__init__()
        lmax, num = config.lmax, len(domain.elements)
        self.geometry = EdgeGeometry(lmax, config.num_radial, domain.cutoff, config.radial_scale)
        self.index, self.attrs = ElementIndex(domain.elements), Attributes(domain)
        self.scale = domain.avg_num_neighbors**-0.5
        width = config.element_channels or (num if num <= FEW_ELEMENTS else 8)
        self.neighbor_channels = None
        if width != num or num > FEW_ELEMENTS:
            self.neighbor_channels = nn.Parameter(torch.randn(num, width) * width**-0.5)
        density = width * config.num_radial
        self.density_gate = ElementTable(num, lmax, density)
        last = config.layers - 1
        self.layers = nn.ModuleList(
            Layer(config, density, domain, self.geometry, first=k == 0, last=k == last)
            for k in range(config.layers)
        )
        self.num_node_scalars = self.in_order()[-1].readout.width
        self.num_node_vectors, self.smoothness = config.channels, config.smoothness
        for weight, size in self.expected_sizes():
            weight.data.mul_(size)
        # nothing is left to learn of what all atoms have in common
        self.in_order()[0].readout.energy_bias.data.add_(domain.energy_shift / domain.energy_scale)
        self.core: Callable[..., Any] | None = None
        """What computes in place of `on_slots` for the moment: the same, compiled."""
        self.fused: Callable[[Graph, Tensor], tuple[Tensor, Tensor]] | None = None
        """What computes energies and gradient for the moment, of a potential without other heads."""

    def expected_sizes(self) -> list[tuple[nn.Parameter, Tensor]]:
        """Weights of smooth functions first: which are smaller than others, and sizes that can be broadcast to them.

        Weights are drawn in these proportions, and MuonAdam's steps are in the same ones.
        """
        power, channels, lmax = self.smoothness, self.num_node_vectors, self.geometry.sphere.lmax
        waves = torch.arange(1.0, 1 + self.geometry.num_radial) ** -power
        waves = waves / waves.square().mean().sqrt()
        # more than LMAX are there because they matter, as at a metal's sites, which have nothing but 4, 6, ...
        of_degrees = torch.arange(1.0, 2 + lmax) ** (-power if lmax <= LMAX else 0.0)
        sizes = []
        for layer in self.in_order():
            density = layer.mix_density.weight
            of_density = waves.repeat(density.shape[1] // len(waves))
            sizes.append((density, of_degrees[:, None, None] * of_density[:, None]))
            if layer.message is not None and layer.mix_message is not None:
                sizes.append((layer.mix_message.weight, of_degrees[:, None, None]))
                told = of_degrees[layer.message.degrees].repeat_interleave(channels)
                sizes.append((layer.message.radial, waves[:, None] * told))
        return sizes

    def frozen(self) -> Self:
        """A copy for inference, which has computed what depends on the weights alone."""
        copied = copy.deepcopy(self)
        for module in copied.modules():
            if isinstance(module, DegreeLinear):
                module.freeze()
        return copied

    def in_order(self) -> list[Layer]:
        """The layers, first to last."""
        return [layer for layer in self.layers if isinstance(layer, Layer)]

    def constants(self, r_ij: Tensor) -> Tensor:
        """What the model computes of edges (E, 3) alone, (E, F): constant while atoms stay where they are."""
        return self.geometry(r_ij)

    def forward(self, graph: Graph, r_ij: Tensor, gradient: bool = True) -> Features:
        """Features of a batch with `node_energy` (N,) and `edge_gradient` (E, 3), in units of the energy scale."""
        if self.fused is not None:
            energies, gradients = self.fused(graph, r_ij)
            return Features(energies[:, None], node_energy=energies, edge_gradient=gradients)
        slots, edges = make_slots(graph), graph.inputs.get(CONSTANTS)
        if edges is None or edges.dtype != r_ij.dtype:
            geometry = self.geometry.of_slots(r_ij, slots)
        else:
            geometry = self.geometry.in_slots(edges, slots)
        elements = self.index(graph.atomic_numbers, r_ij.dtype)
        channels = self._of_neighbors(elements, graph.edge_index[1])
        edge_channels = None if channels is None else slots.fill(channels)
        energies, g_slots, scalars, vectors = (self.core or self.on_slots)(
            geometry, edge_channels, slots, elements, self.attrs(graph), gradient
        )
        g = None if g_slots is None else g_slots.index_select(0, slots.slot)
        return Features(scalars, vectors, node_energy=energies, edge_gradient=g)

    def _of_neighbors(self, elements: Elements, j: Tensor) -> Tensor | None:
        """Element channels of each edge's neighbour (E, W); None where there is one element."""
        of_atoms = (
            elements.one_hot if self.neighbor_channels is None else elements.pick(self.neighbor_channels)
        )
        if of_atoms is None or (self.neighbor_channels is None and of_atoms.shape[1] == 1):
            return None
        return of_atoms.index_select(0, j)

    def on_slots(
        self,
        geometry: Geometry,
        channels: Tensor | None,
        slots: Slots,
        elements: Elements,
        attrs: Tensor | None,
        gradient: bool,
    ) -> tuple[Tensor, Tensor | None, Tensor, Tensor]:
        """Energies (N,), their sum's gradient to the pair vectors (R J, 3), and the last layer's features."""
        n = elements.place.shape[0]
        radial = geometry.radial
        if channels is not None:
            radial = (channels[..., :, None] * radial[..., None, :]).flatten(-2)  # (R, J, q)
        density = slots.per_atom(torch.bmm(geometry.harmonics.mT, radial), n)
        density = density.transpose(0, 1)  # (M, N, q)
        density_gate = self.density_gate(elements)
        gated_density = gated(density, density_gate)
        energies, h, passes = None, None, list[Pass]()
        for layer in self.in_order():
            a, sent = layer.mix_density(gated_density), None
            if layer.message is not None and layer.mix_message is not None and h is not None:
                s, sent = layer.message(h, geometry, slots)
                a = layer.mix_message(s, a)
            mix_gate = layer.mix_gate(elements)
            a = gated(a, mix_gate)
            product, on_grid = layer.product(a)
            product_gate = layer.product_gate(elements)
            product = gated(product, product_gate)
            x = product[0] if h is None else torch.cat([product[0], h[0]], dim=-1)  # (N, F)
            e, g_readout = layer.readout(x, elements, attrs)
            energies = e if energies is None else energies + e
            passes.append(Pass(sent, mix_gate, on_grid, product_gate, g_readout))
            if layer.send is not None and layer.send_bias is not None:
                h = layer.send(product)
                h[0].add_(elements.pick(layer.send_bias))
        assert energies is not None
        first, end = self.geometry.spans[1]
        vectors = a[first:end].transpose(0, 1)  # (N, 3, C)
        g_slots = None
        if gradient:
            g_slots = self._reverse(geometry, channels, radial, slots, density_gate, passes)
        return energies, g_slots, x, vectors

    def _reverse(
        self,
        geometry: Geometry,
        channels: Tensor | None,
        radial: Tensor,
        slots: Slots,
        density_gate: Tensor | None,
        passes: list[Pass],
    ) -> Tensor:
        """Gradient of the energy to the pair vectors in slots, (R J, 3)."""
        g_density = g_h = g_harmonics = g_radial = None
        for layer, kept in zip(reversed(self.in_order()), reversed(passes)):
            width = layer.product.nu * layer.mix_density.weight.shape[-1]
            g_product = kept.g_readout[None, :, :width]
            if layer.send is not None and g_h is not None:
                sent_on = layer.send.reverse(g_h)
                sent_on[0].add_(g_product[0])
                g_product = sent_on
            g_a = layer.product.reverse(kept.on_grid, gated(g_product, kept.product_gate))
            g_a = gated(g_a, kept.mix_gate)
            g_d = layer.mix_density.reverse(g_a)
            g_density = g_d if g_density is None else g_density + g_d
            if layer.message is not None and layer.mix_message is not None and kept.sent is not None:
                g_s = layer.mix_message.reverse(g_a)
                g_h, g_y, g_b = layer.message.reverse(kept.sent, g_s, geometry, slots)
                g_h[0].add_(kept.g_readout[:, width:])
                g_harmonics = g_y if g_harmonics is None else g_harmonics + g_y
                g_radial = g_b if g_radial is None else g_radial + g_b
        assert g_density is not None
        g_rows = slots.per_row(gated(g_density, density_gate).transpose(0, 1))  # (R, M, q)
        g_b = torch.bmm(geometry.harmonics, g_rows)
        if channels is not None:
            g_b = (g_b.unflatten(-1, (channels.shape[-1], -1)) * channels[..., None]).sum(-2)
        if g_harmonics is None or g_radial is None:
            g_y = torch.bmm(radial, g_rows.mT)
        else:
            g_y, g_b = torch.baddbmm(g_harmonics, radial, g_rows.mT), g_b + g_radial
        return self.geometry.gradient(geometry, g_y, g_b)
