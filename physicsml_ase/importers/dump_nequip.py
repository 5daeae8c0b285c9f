"""What a model of `nequip` or `nequip-allegro` is made of, in plain numbers: run in an environment that has them.

    python dump_nequip.py MODEL.ckpt|MODEL.nequip.zip OUT.pt

Its checkpoints and packages can be read only by their own code, which this calls; OUT.pt holds {"meta": plain data,
"state": tensors} and needs none. Nothing of physicsml_ase is needed here. Weights are written by what they do, with
e3nn's normalisation multiplied in, so that they do not depend on how a version lays them out.
"""

import sys
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

FORMAT = "physicsml_ase nequip 1"


def main(model: str, output: str) -> None:
    """Read a saved model, write what `describe` says of it."""
    here = Path(__file__).resolve().parent  # whose nequip.py is another one
    sys.path[:] = [place for place in sys.path if Path(place).resolve() != here]
    from nequip.model.saved_models.load_utils import load_saved_model
    from nequip.utils.global_state import set_global_state

    set_global_state()
    meta, state = describe(load_saved_model(model))
    torch.save({"meta": meta, "state": state}, output)


def describe(model: nn.Module) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Hyperparameters as plain data, and weights by name."""
    network: Any = model
    while not (isinstance(network, nn.Sequential) or hasattr(network, "per_type_energy_scale_shift")):
        network = getattr(network, "model", None) or network.func
    parts = dict(network.named_children())
    meta: dict[str, Any] = {"format": FORMAT, "unknown": []}
    meta["dtype"] = str(next(model.parameters()).dtype).removeprefix("torch.")
    state: dict[str, Tensor] = {}
    of_layers = [name for name in parts if name.endswith("_convnet")]
    meta["architecture"] = "allegro" if "allegro" in parts else "nequip"
    meta["avg_num_neighbors"] = []
    for name, part in parts.items():
        if name in of_layers:
            convnet(part, int(name.removeprefix("layer").removesuffix("_convnet")), meta, state)
        elif name in DESCRIBED:
            DESCRIBED[name](part, meta, state)
        elif name != "total_energy_sum":
            meta["unknown"].append(name)
    return meta, {name: value.detach().clone() for name, value in state.items()}


def mlp(module: Any, name: str, state: dict[str, Tensor]) -> list[str]:
    """Its matrices (inputs, outputs) under `NAME.K`; the names of its nonlinearities."""
    inner = module.mlp
    if hasattr(inner, "weights"):  # several linear layers, multiplied into one
        product = inner.weights[0]
        for weight in inner.weights[1:]:
            product = product @ weight
        state[f"{name}.0"] = product * inner.alpha
        return []
    linear = [part for part in inner if hasattr(part, "alpha")]
    for k, part in enumerate(linear):
        state[f"{name}.{k}"] = part.weight * part.alpha
        if part.bias is not None:
            state[f"{name}.{k}.bias"] = part.bias
    return [type(part).__name__ for part in inner if not hasattr(part, "alpha")]


def linear(module: Any, name: str, state: dict[str, Tensor]) -> None:
    """Of e3nn's Linear the matrix (inputs, outputs) of each irrep."""
    first = 0
    for step in module.instructions:
        size = step.path_shape[0] * step.path_shape[1]
        block = module.weight[first : first + size].view(step.path_shape)
        state[f"{name}.{module.irreps_in[step.i_in].ir}"] = block * step.path_weight
        first += size


def connection(module: Any, name: str, state: dict[str, Tensor]) -> None:
    """Of e3nn's FullyConnectedTensorProduct with scalars the weights (scalars, inputs, outputs) of each irrep."""
    first = 0
    for step in module.instructions:
        a, b, c = step.path_shape
        ir = module.irreps_in1[step.i_in1].ir
        block = module.weight[first : first + a * b * c].view(a, b, c)
        state[f"{name}.{ir}"] = (block * step.path_weight / ir.dim**0.5).transpose(0, 1)
        first += a * b * c


def convnet(part: Any, k: int, meta: dict[str, Any], state: dict[str, Tensor]) -> None:
    """One layer of NequIP."""
    conv, name = part.conv, f"layer{k}"
    linear(conv.linear_1, name + ".send", state)
    linear(conv.linear_2, name + ".receive", state)
    if conv.sc is not None:
        connection(conv.sc, name + ".connection", state)
    layer = {
        "hidden": str(part.feature_irreps_hidden),
        "resnet": bool(part.resnet),
        "self_connection": conv.sc is not None,
        "nonlinearity": type(part.equivariant_nonlin).__name__,
        "radial": mlp(conv.edge_mlp, name + ".radial", state),
    }
    meta.setdefault("layers", []).append(layer)
    average(conv.avg_num_neighbors_norm, meta)


def average(part: Any, meta: dict[str, Any]) -> None:
    """Mean numbers of neighbours, one for all or one for each type."""
    for value in part.norm_const.flatten().double().tolist():
        if value not in meta["avg_num_neighbors"]:
            meta["avg_num_neighbors"].append(value)


def type_embed(part: Any, meta: dict[str, Any], state: dict[str, Tensor]) -> None:
    """NequIP's numbers of each type."""
    state["embedding"] = part.embed_module.weight
    if getattr(part, "do_categorical_graph_field_embed", False):
        meta["unknown"].append("categorical_graph_field_embed")


def spharm(part: Any, meta: dict[str, Any], state: dict[str, Tensor]) -> None:
    """Spherical harmonics of edges."""
    meta["harmonics"] = str(part.irreps_edge_sh)


def edge_norm(part: Any, meta: dict[str, Any], state: dict[str, Tensor]) -> None:
    """The cut-off."""
    meta["r_max"] = float(part.r_max)
    if getattr(part, "_per_edge_type", False):
        meta["unknown"].append("per_edge_type_cutoff")


def bessel_encode(part: Any, meta: dict[str, Any], state: dict[str, Tensor]) -> None:
    """The radial basis."""
    state["bessel"] = part.bessel_weights[0]
    meta |= {"bessel_trainable": bool(part.trainable), "polynomial_cutoff_p": float(part.cutoff.p)}


def factor(part: Any, meta: dict[str, Any], state: dict[str, Tensor]) -> None:
    """What the radial basis is multiplied by."""
    meta["bessel_factor"] = float(part.factor)


def readout(part: Any, meta: dict[str, Any], state: dict[str, Tensor]) -> None:
    """From features to an energy."""
    meta["readout"] = mlp(part.mlp_module, "readout", state)


def scale_shift(part: Any, meta: dict[str, Any], state: dict[str, Tensor]) -> None:
    """Scales and shifts of the energies of each type, or of all."""
    meta["type_names"] = list(part.type_names)
    if part.has_scales:
        state["scales"] = part.scales.flatten()
    if part.has_shifts:
        state["shifts"] = part.shifts.flatten()


def pair_potential(part: Any, meta: dict[str, Any], state: dict[str, Tensor]) -> None:
    """A pair potential beside the network: ZBL is known."""
    if type(part).__name__ != "ZBL":
        meta["unknown"].append(f"pair_potential {type(part).__name__}")
        return
    meta["zbl"] = {"p": float(part.cutoff.p), "unit": 2 * float(part._qqr2exesquare)}


def radial_chemical_embed(part: Any, meta: dict[str, Any], state: dict[str, Tensor]) -> None:
    """Allegro's first numbers of an edge: Bessel functions times numbers of both types."""
    inner = dict(part.named_children())
    if set(inner) != {"bessel_encode", "type_embed"}:
        meta["unknown"].append(f"radial_chemical_embed {type(part).__name__}")
        return
    bessel_encode(inner["bessel_encode"], meta, state)
    state["center"] = inner["type_embed"].center_embed.weight
    state["neighbor"] = inner["type_embed"].neighbor_embed.weight
    mlp(inner["type_embed"].basis_linear, "basis", state)


def scalar_embed_mlp(part: Any, meta: dict[str, Any], state: dict[str, Tensor]) -> None:
    """Allegro's network of these."""
    meta["two_body"] = mlp(part.mlp_module, "two_body", state)


def tensor_embed(part: Any, meta: dict[str, Any], state: dict[str, Tensor]) -> None:
    """Allegro's first tensors of an edge."""
    meta["harmonics"] = str(part.irreps_out[part.tensor_basis_out_field])
    mlp(part.env_embed_linear, "tensors", state)
    if not part._edge_weighter.weight_individual_irreps:
        meta["unknown"].append("weight_individual_irreps = False")


def allegro(part: Any, meta: dict[str, Any], state: dict[str, Tensor]) -> None:
    """Allegro's layers."""
    mlp(part.first_layer_env_embed_projection, "first", state)
    average(part.avg_num_neighbors_norm, meta)
    meta |= {"scalar_features": part.num_scalar_features, "tensor_features": part.num_tensor_features}
    meta["layers"] = []
    for k, (latent, product) in enumerate(zip(part.latents, part.tps)):
        weights = product.weights if product.num_paths > 1 else product.weights[..., None]
        state[f"layer{k}.paths"] = weights  # (channels, paths), or (paths,)
        layer: dict[str, Any] = {"latent": mlp(latent, f"layer{k}.latent", state)}
        layer |= {"in": str(product.irreps_in1), "out": str(product.irreps_out)}
        meta["layers"].append(layer)


def edge_eng_sum(part: Any, meta: dict[str, Any], state: dict[str, Tensor]) -> None:
    """Allegro's sum of the energies of edges."""
    average(part.norm_module, meta)


DESCRIBED = {
    "type_embed": type_embed,
    "spharm": spharm,
    "edge_norm": edge_norm,
    "bessel_encode": bessel_encode,
    "factor": factor,
    "per_atom_energy_readout": readout,
    "per_type_energy_scale_shift": scale_shift,
    "pair_potential": pair_potential,
    "radial_chemical_embed": radial_chemical_embed,
    "scalar_embed_mlp": scalar_embed_mlp,
    "tensor_embed": tensor_embed,
    "allegro": allegro,
    "edge_readout": readout,
    "edge_eng_sum": edge_eng_sum,
}

if __name__ == "__main__":
    main(*sys.argv[1:])
