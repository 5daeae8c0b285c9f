"""nequip for architectures.py: l_max 1, 3 layers, 32 features of each irrep, cut-off 5 Å, float32.

Eager, or with NEQUIP_COMPILED=1 in the environment by its own torch.compile.
"""

import os
import runpy
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from ase import Atoms
from ase.data import chemical_symbols

CUTOFF = 5.0
DUMP = Path(__file__).parents[2] / "physicsml_ase" / "importers" / "dump_nequip.py"
MODE = "compile" if os.environ.get("NEQUIP_COMPILED") == "1" else "eager"


def arguments(elements: list[int]) -> dict[str, object]:
    """Those of `NequIPGNNModel`."""
    return {
        "seed": 0,
        "model_dtype": "float32",
        "r_max": CUTOFF,
        "type_names": [chemical_symbols[z] for z in elements],
        "num_layers": 3,
        "l_max": 1,
        "parity": True,
        "num_features": 32,
        "radial_mlp_depth": 2,
        "radial_mlp_width": 64,
        "num_bessels": 8,
        "avg_num_neighbors": 28.0,
        "per_type_energy_scales": 1.0,
        "per_type_energy_shifts": 0.0,
    }


def built(given: dict[str, object], mode: str) -> torch.nn.Module:
    """A model with random weights."""
    from nequip.model import NequIPGNNModel
    from nequip.utils.global_state import set_global_state

    set_global_state()
    return NequIPGNNModel(**given, compile_mode=mode)


def write(path: Path, elements: list[int]) -> None:
    """What `physicsml-ase import` reads, and beside it what this reads."""
    given = arguments(elements)
    model = built(given, "eager")
    meta, state = runpy.run_path(str(DUMP))["describe"](model)
    original = {"arguments": given, "state_dict": model.state_dict()}
    torch.save({"meta": meta, "state": state, "original": original}, path)


def opened(path: Path) -> tuple[torch.nn.Module, list[Callable]]:
    """The model, and what makes its input of a structure."""
    from nequip.data.transforms import ChemicalSpeciesToAtomTypeMapper, NeighborListTransform

    original = torch.load(path, weights_only=True)["original"]
    model = built(original["arguments"], MODE)
    model.load_state_dict(original["state_dict"])
    names = original["arguments"]["type_names"]
    return model, [ChemicalSpeciesToAtomTypeMapper(names), NeighborListTransform(CUTOFF)]


def calculator(path: Path) -> object:
    """In float32."""
    from nequip.integrations.ase import NequIPCalculator

    model, transforms = opened(path)
    return NequIPCalculator(model.eval(), "cpu", transforms=transforms)


def trainer(path: Path, frames: list[Atoms]) -> Callable[[], None]:
    """Mean square errors of energies per atom and forces."""
    from nequip.data import AtomicDataDict, from_ase

    model, transforms = opened(path)
    model.train()
    graphs = [from_ase(Atoms(x.numbers, x.positions, cell=x.cell, pbc=x.pbc)) for x in frames]
    for transform in transforms:
        graphs = [transform(graph) for graph in graphs]
    given = AtomicDataDict.batched_from_list(graphs)
    energies = torch.tensor([frame.get_potential_energy() for frame in frames], dtype=torch.float64)[:, None]
    forces = torch.from_numpy(np.concatenate([frame.get_forces() for frame in frames]))
    atoms = torch.tensor([len(frame) for frame in frames])[:, None]
    optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=1e-4)

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        out = model(dict(given))
        energy = ((out["total_energy"] - energies) / atoms).square().mean()
        (energy + (out["forces"] - forces).square().mean()).backward()
        optimizer.step()

    return step
