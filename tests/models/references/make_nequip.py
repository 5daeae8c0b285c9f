"""What nequip's NequIP, or Allegro, gives: `python make_nequip.py FILE.npz nequip|allegro [SETTING=JSON ...]`.

In an environment with nequip (and nequip-allegro).
"""

import json
import runpy
import sys
import warnings
from pathlib import Path

import torch
from ase import Atoms
from peer import edges, evaluated, write
from torch import Tensor

DUMP = Path(__file__).parents[3] / "physicsml_ase" / "importers" / "dump_nequip.py"
TYPES = ["O", "H", "C", "N"]  # in no order
COMMON = {
    "seed": 0,
    "model_dtype": "float64",
    "r_max": 4.5,
    "type_names": TYPES,
    "avg_num_neighbors": 17.0,
    "per_type_energy_scales": {"O": 0.7, "H": 1.1, "C": 1.4, "N": 0.9},
    "per_type_energy_shifts": {"O": -3.0, "H": -1.25, "C": 2.5, "N": 0.5},
    "do_derivatives": False,
}
NEQUIP = {
    "num_layers": 3,
    "l_max": 1,
    "parity": True,
    "num_features": 6,
    "radial_mlp_depth": 2,
    "radial_mlp_width": 8,
    "num_bessels": 5,
}
ALLEGRO = {
    "l_max": 1,
    "parity": True,
    "num_layers": 2,
    "num_scalar_features": 8,
    "num_tensor_features": 4,
    "allegro_mlp_hidden_layers_width": 8,
    "scalar_embed_mlp_hidden_layers_width": 8,
    "readout_mlp_hidden_layers_width": 6,
    "radial_chemical_embed": {"_target_": "allegro.nn.TwoBodyBesselScalarEmbed", "num_bessels": 5},
}


def main(path: Path, architecture: str, settings: list[str]) -> None:
    """Random weights, all structures."""
    warnings.filterwarnings("ignore")
    from nequip.utils.global_state import set_global_state

    set_global_state()
    if architecture == "nequip":
        from nequip.model import NequIPGNNModel as Model
    else:
        from allegro.model import AllegroModel as Model
    args = COMMON | (NEQUIP if architecture == "nequip" else ALLEGRO)
    args |= {name: json.loads(value) for name, value in (x.split("=", 1) for x in settings)}
    model = Model(**args, compile_mode="eager").eval()
    for parameter in model.parameters():  # so that files are small
        parameter.data = parameter.data.float().double()
    meta, state = runpy.run_path(str(DUMP))["describe"](model)

    def energy(atoms: Atoms, positions: Tensor, cell: Tensor) -> Tensor:
        index, shift = edges(atoms, args["r_max"])
        images = torch.round(shift @ torch.linalg.pinv(torch.from_numpy(atoms.cell.array)))
        types = torch.tensor([TYPES.index(symbol) for symbol in atoms.symbols])
        data = {"pos": positions, "cell": cell[None], "edge_cell_shift": images, "edge_index": index}
        data |= {
            "atom_types": types,
            "batch": torch.zeros_like(types),
            "num_atoms": torch.tensor([len(atoms)]),
        }
        return model(data)["total_energy"]

    write(path, meta, state, evaluated(energy))


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], sys.argv[3:])
