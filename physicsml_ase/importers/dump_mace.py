"""Write a model of mace-torch as plain data: python dump_mace.py THEIR.model DUMP.pt

Runs where mace-torch is installed, and needs nothing of physicsml_ase. A whole saved module can only be opened by
unpickling it, which runs code that the file names: dump only files whose origin you trust. The dump itself is plain
data: the config, the weights, and energies, forces and stresses of a few structures, by which `physicsml-ase import`
checks what it makes of them.
"""

import os
import sys
from typing import Any

FORMAT = "mace-torch as plain data"


def config_of(model: Any) -> dict[str, Any]:
    """The hyperparameters that the module was built with, as plain numbers and words."""
    embedding, last = model.radial_embedding, model.readouts[-1]
    transform = getattr(embedding, "distance_transform", None)
    interactions, products = list(model.interactions), list(model.products)
    gate = getattr(getattr(last, "non_linearity", None), "acts", [None])[0]
    return {
        "class": type(model).__name__,
        "r_max": float(model.r_max),
        "atomic_numbers": [int(z) for z in model.atomic_numbers],
        "heads": list(getattr(model, "heads", None) or ["Default"]),
        "num_bessel": int(embedding.out_dim),
        "num_polynomial_cutoff": int(embedding.cutoff_fn.p),
        "radial_type": type(embedding.bessel_fn).__name__,
        "distance_transform": None if transform is None else type(transform).__name__,
        "apply_cutoff": bool(getattr(embedding, "apply_cutoff", True)),
        "max_ell": int(model.spherical_harmonics.irreps_out.lmax),
        "sh_irreps": str(model.spherical_harmonics.irreps_out),
        "hidden_irreps": [str(i.hidden_irreps) for i in interactions],
        "mlp_irreps": str(getattr(last, "hidden_irreps", "")),
        "interactions": [type(i).__name__ for i in interactions],
        "readouts": [type(r).__name__ for r in model.readouts],
        "avg_num_neighbors": [float(i.avg_num_neighbors) for i in interactions],
        "radial_MLP": [list(getattr(i, "radial_MLP", [64, 64, 64])) for i in interactions],
        "edge_irreps": [str(getattr(i, "edge_irreps", i.node_feats_irreps)) for i in interactions],
        "node_feats_irreps": [str(i.node_feats_irreps) for i in interactions],
        "use_sc": [bool(p.use_sc) for p in products],
        "agnostic_product": any(getattr(p, "use_agnostic_product", False) for p in products),
        "correlation": [_correlation(p) for p in products],
        "gate": "silu" if gate is None else _name(gate),
        "pair_repulsion": hasattr(model, "pair_repulsion_fn"),
        "joint_embedding": hasattr(model, "joint_embedding"),
    }


def _correlation(product: Any) -> int | None:
    contractions = getattr(product.symmetric_contractions, "contractions", None)
    return None if contractions is None else int(contractions[0].correlation)


def _name(act: Any) -> str:
    f = getattr(act, "f", act)
    return getattr(f, "__name__", type(f).__name__)


def structures(numbers: Any) -> list[Any]:
    """Clusters and a crystal of the model's elements, with distances that models know."""
    import numpy as np
    from ase import Atoms
    from ase.data import covalent_radii

    rng = np.random.default_rng(0)
    out = []
    few = list(rng.permutation(numbers)[:6])
    for num, periodic in ((1, False), (5, False), (12, False), (8, True)):
        species = [few[k % len(few)] for k in range(num)]
        spacing = 1.8 * float(np.max(covalent_radii[species]))
        sites = [[a, b, c] for a in range(3) for b in range(2) for c in range(2)][:num]
        positions = spacing * np.array(sites, float) + rng.normal(0, 0.06 * spacing, (num, 3))
        cell = None
        if periodic:
            sites = [[a, b, c] for a in range(2) for b in range(2) for c in range(2)]
            positions = spacing * np.array(sites, float) + rng.normal(0, 0.06 * spacing, (num, 3))
            cell = 2 * spacing * (np.eye(3) + rng.normal(0, 0.05, (3, 3)))
        out.append(Atoms(species, positions, cell=cell, pbc=periodic))
    return out


def results(model: Any, head: str, frames: list[Any]) -> list[dict[str, Any]]:
    """Energies, forces and stresses of the structures, in float64."""
    import torch
    from mace.calculators import MACECalculator

    calculator = MACECalculator(models=[model], device="cpu", default_dtype="float64", head=head)
    out = []
    for atoms in frames:
        atoms = atoms.copy()
        atoms.calc = calculator
        frame = {"numbers": atoms.numbers, "positions": atoms.positions, "cell": atoms.cell.array}
        frame |= {"forces": atoms.get_forces()}
        if atoms.pbc.all():
            frame["stress"] = atoms.get_stress(voigt=False)
        frame = {k: torch.from_numpy(v.copy()) for k, v in frame.items()}
        energy = torch.tensor(float(atoms.get_potential_energy()), dtype=torch.float64)
        out.append(frame | {"pbc": torch.from_numpy(atoms.pbc.copy()), "energy": energy})
    return out


def dump(model: Any, path: str) -> None:
    """Write an opened model to `path`."""
    import torch

    config = config_of(model)
    state = {k: v.detach().cpu().clone() for k, v in model.state_dict().items()}
    frames = structures(config["atomic_numbers"])
    model = model.double().eval()
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    checks = {head: results(model, head, frames) for head in config["heads"]}
    torch.save({"format": FORMAT, "config": config, "state_dict": state, "checks": checks}, path)


def main() -> None:
    """The command line."""
    # beside this file there is a mace.py, which is not theirs
    sys.path[:] = [p for p in sys.path if os.path.abspath(p) != os.path.dirname(os.path.abspath(__file__))]
    if len(sys.argv) != 3:
        sys.exit("usage: python dump_mace.py THEIR.model DUMP.pt")
    os.environ.setdefault("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")  # e3nn 0.4 reads its tables so
    import torch

    try:
        import mace  # noqa: F401
    except ImportError:
        sys.exit(f"mace-torch is not installed for {sys.executable}: it is needed to open {sys.argv[1]}")
    dump(torch.load(sys.argv[1], map_location="cpu", weights_only=False), sys.argv[2])


if __name__ == "__main__":
    main()
