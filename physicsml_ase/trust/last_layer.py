"""Uncertainties from the last layer of one trained model (LLPR: Bigi, Chong, Ceriotti & Grasselli, arXiv:2403.02251).

An energy is linear in the last layer's features f, the sums of the atoms' phi (about the means of their elements).
Were only that layer fitted, its weights would be known to (F^T F + zeta^2 I)^-1, and hence, with rows F of the
training energies and forces,
    sigma_E^2 = alpha_E^2 f^T (F^T F + zeta^2 I)^-1 f,  sigma_F^2 = alpha_F^2 (df/dx)^T (F^T F + zeta^2 I)^-1 (df/dx).
Rows of forces are df/dx along random displacements v of all atoms of a structure, E[v v^T] = 1: their mean square is
that of all components at a hundredth of the cost. alpha and zeta are those most likely on the validation set.
Shapes: N atoms, E edges, S structures, P features.
"""

import math
from collections.abc import Iterable
from typing import NamedTuple

import torch
from torch import Tensor

from physicsml_ase.graph import Graph, edge_vectors
from physicsml_ase.nn.features import NUM_ELEMENTS, segment_sum
from physicsml_ase.potential import Potential

STEP = 1e-4
"""Of finite differences, in float64 [Å]."""
ROWS, MOST_PROBES = 256, 8
"""Wanted rows of forces, and displacements of one structure to get them."""
CALIBRATION_PROBES = 2
"""Force components of each validation structure that alpha is found on."""
ZETAS = [10.0 ** (k / 2) for k in range(-20, 3)]
"""zeta^2 tried, in units of the mean eigenvalue."""


class Rows(NamedTuple):
    """Rows of features and the errors that belong to them."""

    features: Tensor  # (K, P)
    errors: Tensor  # (K,)


def last_features(potential: Potential, graph: Graph, r_ij: Tensor | None = None) -> Tensor:
    """What the last linear layer of the energy reads of each atom, (N, P); of a model with its own readout, what
    that reads."""
    scalars = potential.features(graph, r_ij).node_scalars
    return scalars if potential.energy_head is None else potential.energy_head[:-1](scalars)


def sums(potential: Potential, graph: Graph, centre: Tensor | None = None) -> Tensor:
    """The features of each structure, (S, P) float64; of atoms about the mean of their element's, `centre` (119, P),
    which any data settle: else all structures of a composition would be as uncertain as each other."""
    with torch.no_grad():
        phi = last_features(potential, graph).double()
    if centre is not None:
        phi = phi - centre.to(phi).index_select(0, graph.atomic_numbers)
    return segment_sum(phi, graph.batch, graph.num_atoms.shape[0])


def along(potential: Potential, graph: Graph, v: Tensor) -> Tensor:
    """Derivative of each structure's features along displacements v (N, 3), (S, P) [1/Å]."""
    ahead, behind = (graph._replace(positions=graph.positions + step * v) for step in (STEP, -STEP))
    return (sums(potential, ahead) - sums(potential, behind)) / (2 * STEP)


def fit_last_layer(
    potential: Potential, train: Iterable[Graph], validation: Iterable[Graph], seed: int = 0
) -> dict[str, Tensor]:
    """Covariance and calibration, of a potential in float64; empty where there is no error to learn from."""
    train = list(train)
    random = torch.Generator().manual_seed(seed)
    centre = _centre(potential, train)
    energy, forces = _errors(potential, validation, random, centre)
    if not len(energy.errors) and not len(forces.errors):
        return {}
    noise_energy, noise_forces = (max(_rms(rows.errors), 1e-8) for rows in (energy, forces))
    probes = min(max(1, ROWS // max(sum(len(g.num_atoms) for g in train), 1)), MOST_PROBES)
    covariance: Tensor | float = 0.0
    for graph in train:
        n = graph.num_atoms[:, None]
        if len(energy.errors):
            f = sums(potential, graph, centre) / n / noise_energy
            covariance = covariance + f.mT @ f
        for _ in range(probes if len(forces.errors) else 0):
            j = along(potential, graph, _normal(graph, random)) / noise_forces
            covariance = covariance + j.mT @ j / probes
    assert isinstance(covariance, Tensor)
    values, vectors = torch.linalg.eigh(covariance.cpu())
    values, mean = values.clamp_min(0.0), float(values.mean().clamp_min(1e-30))
    found = {"centre": centre.cpu()}
    for name, rows in (("energy", energy), ("forces", forces)):
        if not len(rows.errors):
            continue
        squares, errors = (rows.features.cpu() @ vectors).square(), rows.errors.cpu()
        # each its own: what few energies leave open, many forces settle
        nll, alpha, zeta2 = min((*_calibrated(squares, values, z * mean, errors), z * mean) for z in ZETAS)
        told = {
            "alpha": torch.tensor(alpha),
            "zeta": torch.tensor(math.sqrt(zeta2)),
            "nll": torch.tensor(nll),
        }
        told["root"] = vectors * (values + zeta2).rsqrt()
        found |= {f"{key}_{name}": value for key, value in told.items()}
    return {name: value.double() for name, value in found.items()}


def energy_uncertainty(potential: Potential, graph: Graph) -> Tensor:
    """One standard deviation of each structure's energy, (S,) float64 [eV]."""
    known = potential.trust["last_layer"]
    f = sums(potential, graph, known["centre"])
    return known["alpha_energy"].item() * (f @ known["root_energy"].to(f)).norm(dim=1)


def forces_uncertainty(potential: Potential, graph: Graph) -> Tensor:
    """One standard deviation of each force component, (N, 3) float64 [eV/Å]: one reverse pass for each feature."""
    known = potential.trust["last_layer"]
    i, n = graph.edge_index[0], graph.positions.shape[0]
    with torch.enable_grad():
        r_ij = edge_vectors(graph).requires_grad_()
        phi = last_features(potential, graph, r_ij).double()
        rotated = (phi @ known["root_forces"].to(phi)).sum(0)  # (P,): structures do not see each other
        variance = graph.positions.new_zeros(n, 3)
        for k in range(len(rotated)):
            if not rotated.requires_grad:  # no atom has a neighbour
                break
            (g,) = torch.autograd.grad(rotated[k], r_ij, retain_graph=True)
            variance += segment_sum(g - g.index_select(0, graph.reverse), i, n).square()
    return known["alpha_forces"].item() * variance.sqrt()


def uncertainties(potential: Potential, graph: Graph) -> dict[str, Tensor]:
    """`energy_uncertainty` (S,) and `forces_uncertainty` (N, 3), as far as the model has been calibrated for them."""
    known, out = potential.trust.get("last_layer", {}), {}
    if "alpha_energy" in known:
        out["energy_uncertainty"] = energy_uncertainty(potential, graph)
    if "alpha_forces" in known:
        out["forces_uncertainty"] = forces_uncertainty(potential, graph)
    return out


def _centre(potential: Potential, graphs: Iterable[Graph]) -> Tensor:
    """Mean features of each element's atoms, (119, P) float64; zero where there are none."""
    total, count = torch.zeros(()), torch.zeros(NUM_ELEMENTS, 1, dtype=torch.float64)
    for graph in graphs:
        with torch.no_grad():
            phi = last_features(potential, graph).double().cpu()
        z = graph.atomic_numbers.cpu()
        total = total + segment_sum(phi, z, NUM_ELEMENTS)
        count = count + segment_sum(torch.ones_like(phi[:, :1]), z, NUM_ELEMENTS)
    return total / count.clamp_min(1)


def _errors(
    potential: Potential, graphs: Iterable[Graph], random: torch.Generator, centre: Tensor
) -> tuple[Rows, Rows]:
    """Errors of energies [eV], and of forces along single atoms' random directions [eV/Å], with their features."""
    parts: dict[str, list[Rows]] = {"energy": [], "forces": []}
    for graph in graphs:
        out, targets = potential(graph), graph.targets
        if "energy" in targets:
            parts["energy"].append(Rows(sums(potential, graph, centre), out["energy"] - targets["energy"]))
        for _ in range(CALIBRATION_PROBES if "forces" in targets else 0):
            v = _one_atom_each(graph, random)
            error = ((out["forces"] - targets["forces"]) * v).sum(1)
            # NaN where a force is not known, although v is zero there: only the atom itself counts
            error = torch.where(v.any(1), error, 0.0)
            errors = segment_sum(error, graph.batch, graph.num_atoms.shape[0])
            parts["forces"].append(Rows(along(potential, graph, v), errors))
    return tuple(_joined(rows) for rows in parts.values())  # type: ignore[return-value]


def _joined(parts: list[Rows]) -> Rows:
    if not parts:
        return Rows(torch.zeros(0, 0), torch.zeros(0))
    features, errors = (torch.cat(x) for x in zip(*parts))
    usable = errors.isfinite() & features.any(1)
    return Rows(features[usable], errors[usable])


def _calibrated(squares: Tensor, values: Tensor, zeta2: float, errors: Tensor) -> tuple[float, float]:
    """The mean negative log-likelihood with the most likely alpha, and that alpha."""
    q = (squares / (values + zeta2)).sum(1).clamp_min(1e-300)  # (K,)
    alpha2 = float((errors.square() / q).mean().clamp_min(1e-24))
    return 0.5 * (math.log(2 * math.pi) + 1) + 0.5 * float((alpha2 * q).log().mean()), math.sqrt(alpha2)


def _rms(errors: Tensor) -> float:
    return float(errors.square().mean().sqrt()) if len(errors) else 0.0


def _normal(graph: Graph, random: torch.Generator) -> Tensor:
    shape = graph.positions.shape
    return torch.randn(shape, generator=random, dtype=torch.float64).to(graph.positions.device)


def _one_atom_each(graph: Graph, random: torch.Generator) -> Tensor:
    """Unit vectors (N, 3) of one atom of each structure, zero for the others."""
    n = graph.num_atoms.cpu()
    which = (torch.rand(len(n), generator=random) * n).long().minimum(n - 1) + n.cumsum(0) - n
    v = torch.zeros(graph.positions.shape, dtype=torch.float64)
    v[which] = torch.nn.functional.normalize(
        torch.randn(len(n), 3, generator=random, dtype=torch.float64), dim=1
    )
    return v.to(graph.positions.device)
