"""What mace-torch's ScaleShiftMACE gives: `python make_mace.py FILE.npz [SETTING=VALUE ...]` in its environment.

FILE.model is the model as mace-torch saves it, where `save=1` is among the settings.
"""

import os
import sys
from pathlib import Path

os.environ.setdefault("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")  # e3nn 0.4 reads its tables so

import numpy as np
import torch
from ase import Atoms
from e3nn import o3
from mace import modules
from peer import edges, evaluated, write
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parents[3] / "physicsml_ase" / "importers"))
from dump_mace import config_of

SETTINGS = {
    "hidden": "4x0e+4x1o",
    "mlp": "3x0e",
    "ell": 2,
    "correlation": 3,
    "layers": 2,
    "radial": "6,5",
    "first": "RealAgnosticInteractionBlock",
    "other": "RealAgnosticResidualInteractionBlock",
    "heads": "Default",
    "zbl": 0,
    "transform": "None",
    "save": 0,
}
NUMBERS = [1, 8, 6, 7]  # not in order: columns of weights follow this list
CUTOFF = 3.7


def build(settings: dict) -> torch.nn.Module:
    """Random weights, which are float32 numbers so that files are small."""
    heads, numbers = settings["heads"].split(","), np.array(NUMBERS)
    energies = np.stack([-1.5 * numbers - k for k in range(len(heads))])
    scales, shifts = [0.8 + 0.25 * k for k in range(len(heads))], [0.125 - k for k in range(len(heads))]
    one = len(heads) == 1
    torch.manual_seed(0)
    torch.set_default_dtype(torch.float64)
    model = modules.ScaleShiftMACE(
        r_max=CUTOFF,
        num_bessel=5,
        num_polynomial_cutoff=5,
        max_ell=settings["ell"],
        correlation=settings["correlation"],
        interaction_cls=modules.interaction_classes[settings["other"]],
        interaction_cls_first=modules.interaction_classes[settings["first"]],
        num_interactions=settings["layers"],
        num_elements=len(NUMBERS),
        hidden_irreps=o3.Irreps(settings["hidden"]),
        MLP_irreps=o3.Irreps(settings["mlp"]),
        gate=torch.nn.functional.silu,
        atomic_energies=energies[0] if one else energies,
        atomic_numbers=NUMBERS,
        avg_num_neighbors=8.0,
        radial_MLP=[int(width) for width in settings["radial"].split(",")],
        heads=heads,
        pair_repulsion=bool(settings["zbl"]),
        distance_transform=settings["transform"],
        atomic_inter_scale=scales[0] if one else scales,
        atomic_inter_shift=shifts[0] if one else shifts,
    )
    for parameter in model.parameters():
        parameter.data = parameter.data.float().double()
    return model.eval()


def main(path: Path, given: list[str]) -> None:
    """Random weights, all structures; of several heads, the last."""
    settings = dict(SETTINGS)
    for name, value in (setting.split("=", 1) for setting in given):
        settings[name] = type(SETTINGS[name])(value)
    model = build(settings)
    if settings["save"]:
        torch.save(model, path.with_suffix(".model"))
    last = settings["heads"].count(",")

    def energy(atoms: Atoms, positions: Tensor, cell: Tensor) -> Tensor:
        index, shift = edges(atoms, CUTOFF)
        images = torch.round(shift @ torch.linalg.pinv(torch.from_numpy(atoms.cell.array)))
        # theirs go from the neighbour to the centre
        data = {
            "positions": positions,
            "edge_index": index.flip(0),
            "shifts": -images @ cell,
            "unit_shifts": -images,
            "cell": cell,
            "node_attrs": (torch.from_numpy(atoms.numbers)[:, None] == torch.tensor(NUMBERS)).double(),
            "batch": torch.zeros(len(atoms), dtype=torch.long),
            "ptr": torch.tensor([0, len(atoms)]),
            "head": torch.tensor([last]),
        }
        return model(data, compute_force=False)["energy"]

    write(path, {"config": config_of(model), "settings": settings}, model.state_dict(), evaluated(energy))


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
