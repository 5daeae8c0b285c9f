"""From mace-torch's weights to those of `models.mace`.

Weights are copied; only the symmetric contraction has another basis here, without the redundant polynomials of
mace-torch's, to which its weights are brought by their coefficients. Which paths a layer has, and in which order
theirs are, is told where they are permuted. Shapes: Z elements, C channels, K polynomials.
"""

from collections.abc import Mapping, Sequence
from itertools import permutations
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ase import Atoms
from torch import Tensor

from physicsml_ase.atoms import to_graph
from physicsml_ase.conventions import InputError
from physicsml_ase.domain import Domain
from physicsml_ase.importers.learned import LEARNED
from physicsml_ase.importers.opening import plain_data
from physicsml_ase.models.mace import MACEConfig, channels_and_degree
from physicsml_ase.nn.couplings import MulIrrep, irreps_text, parse_irreps
from physicsml_ase.nn.polynomials import monomials, symmetric_basis
from physicsml_ase.nn.tensor_messages import natural_paths
from physicsml_ase.potential import Potential

FORMAT = "mace-torch as plain data"
CLOSE = 1e-4
"""Agreement with mace-torch that is asked for: its tables are rounded to float32 in models of that type."""
State = Mapping[str, Tensor]


def import_mace(path: Path, head: str | None = None) -> Potential:
    """The potential in a file that `dump_mace.py` wrote; it must give what mace-torch gave there."""
    content = plain_data(path)
    if content is None or content.get("format") != FORMAT:
        script = Path(__file__).with_name("dump_mace.py")
        raise InputError(
            f"{path} is not what {script.name} writes; where mace-torch is installed, run: "
            f"python {script} THEIR.model DUMP.pt"
        )
    potential = from_mace(content["config"], content["state_dict"], head)
    for check in content["checks"][head or content["config"]["heads"][0]]:
        atoms = Atoms(*(check[k].numpy() for k in ("numbers", "positions")), cell=check["cell"].numpy())
        atoms.pbc = check["pbc"].numpy()
        out = potential(to_graph(atoms, potential.domain.cutoff))
        forces = float(
            (out["forces"] - check["forces"]).abs().max() / check["forces"].abs().max().clamp_min(1e-3)
        )
        energy = float((out["energy"][0] - check["energy"]).abs() / check["energy"].abs().clamp_min(1.0))
        if not (forces <= CLOSE and energy <= CLOSE):
            raise InputError(
                f"{path}: for {atoms.get_chemical_formula()} the energy differs from mace-torch's by a part of "
                f"{energy:.1e} and forces by {forces:.1e}: this model has something that is not known here"
            )
    given = next(v for v in content["state_dict"].values() if v.is_floating_point()).dtype
    return potential.to(given)


def from_mace(config: Mapping[str, Any], state: State, head: str | None = None) -> Potential:
    """The potential of a dump's config and weights, in float64; of several heads, the named one."""
    heads = list(config["heads"])
    if head is None and len(heads) > 1:
        raise InputError(f"the model has several heads: choose one of {', '.join(heads)} (--head)")
    if head is not None and head not in heads:
        raise InputError(f"the model has no head {head!r}: it has {', '.join(heads)}")
    place = heads.index(head) if head is not None else 0
    _refuse_unknown(config)
    numbers = list(config["atomic_numbers"])
    order = sorted(range(len(numbers)), key=lambda k: numbers[k])
    state = {name: value.double() if value.is_floating_point() else value for name, value in state.items()}
    energies = torch.atleast_2d(state["atomic_energies_fn.atomic_energies"])[place]
    scaled = "scale_shift.scale" in state
    scale, shift = (
        float(torch.atleast_1d(state[f"scale_shift.{name}"])[place]) if scaled else default
        for name, default in (("scale", 1.0), ("shift", 0.0))
    )
    if config["pair_repulsion"] and not scaled:
        scale, shift = 1.0, 0.0
    domain = Domain(
        cutoff=float(config["r_max"]),
        elements=tuple(numbers[k] for k in order),
        avg_num_neighbors=float(config["avg_num_neighbors"][0]),
        atomic_energies={numbers[k]: float(energies[k]) for k in range(len(numbers))},
        energy_scale=scale,
        energy_shift=shift,
        short_range="none",
    )
    ours = _config(config)
    potential = Potential(ours, domain, LEARNED).double()
    weights = _weights(ours, state, order, place, len(heads))
    potential.model.load_state_dict(weights)
    return potential.eval()


def _refuse_unknown(config: Mapping[str, Any]) -> None:
    """Raise for a model that has parts which ours has not."""
    wanted = {
        "class": ("ScaleShiftMACE", "MACE"),
        "radial_type": ("BesselBasis",),
        "distance_transform": (None, "AgnesiTransform"),
        "apply_cutoff": (True,),
        "agnostic_product": (False,),
        "joint_embedding": (False,),
        "gate": ("silu", "SiLU"),
    }
    for key, values in wanted.items():
        if config[key] not in values:
            raise InputError(f"this MACE has {key} {config[key]}, which is not supported (only {values[0]})")
    if None in config["correlation"] or len(set(config["correlation"])) != 1:
        raise InputError(
            "this MACE has no plain symmetric contraction of one correlation: if it was made for cuequivariance, "
            "bring it back with mace_cueq_to_e3nn first"
        )
    if config["edge_irreps"] != config["node_feats_irreps"]:
        raise InputError("this MACE has edge_irreps, which are not supported")
    kinds = config["interactions"]
    if len(set(kinds[1:])) > 1:
        raise InputError(f"this MACE has layers of several kinds: {', '.join(kinds)}")
    layers = len(kinds)
    readouts = ["LinearReadoutBlock"] * max(layers - 1, 1) + ["NonLinearReadoutBlock"] * (layers > 1)
    if config["readouts"] != readouts:
        raise InputError(
            f"this MACE has the readouts {', '.join(config['readouts'])}, not {', '.join(readouts)}"
        )


def _config(config: Mapping[str, Any]) -> MACEConfig:
    kinds, mlp = config["interactions"], "16x0e"
    if len(kinds) > 1:
        irreps = parse_irreps(config["mlp_irreps"])  # the heads' side by side
        mlp = irreps_text(tuple(MulIrrep(mul // len(config["heads"]), ir) for mul, ir in irreps))
    return MACEConfig(
        num_bessel=config["num_bessel"],
        num_polynomial_cutoff=config["num_polynomial_cutoff"],
        max_ell=config["max_ell"],
        num_interactions=len(kinds),
        hidden_irreps=config["hidden_irreps"][0],
        mlp_irreps=mlp,
        avg_num_neighbours=config["avg_num_neighbors"][0],
        correlation=config["correlation"][0],
        radial_mlp=tuple(config["radial_MLP"][0]),
        interaction_cls_first=kinds[0],
        interaction_cls=kinds[-1] if len(kinds) > 1 else "RealAgnosticResidualInteractionBlock",
        pair_repulsion=config["pair_repulsion"],
        repulsion_scale=1.0 if config["pair_repulsion"] else None,
        distance_transform="Agnesi" if config["distance_transform"] else "none",
    )


def _weights(
    config: MACEConfig, state: State, order: Sequence[int], head: int, num_heads: int
) -> dict[str, Tensor]:
    """Our model's state dict from theirs."""
    c, L = channels_and_degree(config.hidden_irreps)
    z, layers = len(order), config.num_interactions
    out = {"embedding": state["node_embedding.linear.weight"].view(z, c)[list(order)]}
    for k in range(layers):
        theirs, ours = f"interactions.{k}", f"interactions.{k}"
        l_in, l_out = (L if k else 0), (L if k < layers - 1 else 0)
        out[f"{ours}.up"] = state[f"{theirs}.linear_up.weight"].view(l_in + 1, c, c)
        paths = natural_paths(l_in, config.max_ell, config.max_ell)
        by_result = sorted(range(len(paths)), key=lambda p: paths[p][2])  # theirs: by l3 first
        depth = len(config.radial_mlp)
        for layer in range(depth + 1):
            weight = state[f"{theirs}.conv_tp_weights.layer{layer}.weight"]
            if layer == depth:
                weight = weight.unflatten(1, (len(paths), c))[:, np.argsort(by_result)].flatten(1)
            out[f"{ours}.radial.{layer}"] = weight
        if f"{theirs}.density_fn.layer0.weight" in state:
            out[f"{ours}.density"] = state[f"{theirs}.density_fn.layer0.weight"]
        counts = [sum(p[2] == l for p in paths) for l in range(config.max_ell + 1)]
        linear = state[f"{theirs}.linear.weight"].view(-1, c).split([n * c for n in counts])
        out |= {f"{ours}.linear.{l}": weight for l, weight in enumerate(linear)}
        # theirs (channel, element, channel) for each degree
        skip = state[f"{theirs}.skip_tp.weight"].view(-1, c, z, c).transpose(1, 2)
        out[f"{ours}.skip"] = skip[:, list(order)]
        out[f"{ours}.product"] = state[f"products.{k}.linear.weight"].view(l_out + 1, c, c)
        for l in range(l_out + 1):
            prefix = f"products.{k}.symmetric_contractions.contractions.{l}"
            for nu in range(1, config.correlation + 1):
                weight = state[f"{prefix}.weights_max"]
                if nu < config.correlation:
                    weight = state[f"{prefix}.weights.{config.correlation - 1 - nu}"]
                change = _change_of_basis(state[f"{prefix}.U_matrix_{nu}"], config.max_ell, nu, l)
                if change.shape[1]:
                    contracted = torch.einsum("zkc,kq->zcq", weight[list(order)], change)
                    out[f"{ours}.contraction.weights.{nu}_{l}"] = contracted
    for k in range(max(layers - 1, 1)):
        out[f"readouts.{k}"] = state[f"readouts.{k}.linear.weight"].view(c, num_heads)[:, [head]]
    if layers > 1:
        first = state[f"readouts.{layers - 1}.linear_1.weight"].view(c, num_heads, -1)
        second = state[f"readouts.{layers - 1}.linear_2.weight"].view(num_heads, -1, num_heads)
        out["readout_in"] = first[:, head]
        # theirs divides by the root of all heads' widths
        out["readout_out"] = second[head][:, [head]] * num_heads**-0.5
    return {name: value.contiguous() for name, value in out.items()}


def _change_of_basis(u: Tensor, lmax: int, order: int, degree: int) -> Tensor:
    """From weights of their polynomials to those of ours, (K theirs, K ours)."""
    size = (lmax + 1) ** 2
    basis = symmetric_basis(lmax, order, degree)
    tensors = u.double().reshape(2 * degree + 1, size**order, -1).numpy()
    coefficients = np.zeros((tensors.shape[-1], *basis.shape[1:]))
    for p, term in enumerate(monomials(size, order)):
        for index in set(permutations(term)):
            place = int(np.ravel_multi_index(index, [size] * order))
            coefficients[:, :, p] += tensors[:, place].T
    flat = coefficients.reshape(len(coefficients), -1)
    change = np.linalg.lstsq(basis.reshape(len(basis), -1).T, flat.T, rcond=None)[0].T
    lost = np.abs(change @ basis.reshape(len(basis), -1) - flat).max()
    if lost > 1e-5 * max(np.abs(flat).max(), 1.0):
        raise InputError(f"a symmetric contraction of order {order} is not one of natural parity")
    return torch.from_numpy(change)
