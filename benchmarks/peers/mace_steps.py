"""mace-torch for architectures.py: 32x0e+32x1o, max_ell 3, correlation 3, two interactions, cut-off 5 Å, float32."""

import os
from collections.abc import Callable
from pathlib import Path

os.environ.setdefault("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")  # e3nn 0.4 reads its tables so

import numpy as np
import torch
from ase import Atoms

CUTOFF = 5.0


def write(path: Path, elements: list[int]) -> None:
    """Random weights."""
    from e3nn import o3
    from mace import modules

    torch.manual_seed(0)
    torch.set_default_dtype(torch.float32)
    model = modules.ScaleShiftMACE(
        r_max=CUTOFF,
        num_bessel=8,
        num_polynomial_cutoff=5,
        max_ell=3,
        correlation=3,
        interaction_cls=modules.interaction_classes["RealAgnosticResidualInteractionBlock"],
        interaction_cls_first=modules.interaction_classes["RealAgnosticInteractionBlock"],
        num_interactions=2,
        num_elements=len(elements),
        hidden_irreps=o3.Irreps("32x0e + 32x1o"),
        MLP_irreps=o3.Irreps("16x0e"),
        gate=torch.nn.functional.silu,
        atomic_energies=np.zeros(len(elements)),
        atomic_numbers=elements,
        avg_num_neighbors=28.0,
        radial_MLP=[64, 64, 64],
        atomic_inter_scale=1.0,
        atomic_inter_shift=0.0,
    )
    torch.save(model, path)


def calculator(path: Path) -> object:
    """In float32."""
    from mace.calculators import MACECalculator

    return MACECalculator(model_paths=str(path), device="cpu", default_dtype="float32")


def trainer(path: Path, frames: list[Atoms]) -> Callable[[], None]:
    """Mean square errors of energies per atom and forces."""
    from mace.data import AtomicData, KeySpecification, config_from_atoms
    from mace.tools import AtomicNumberTable, torch_geometric

    torch.set_default_dtype(torch.float32)
    model = torch.load(path, weights_only=False).float().train()
    table = AtomicNumberTable([int(z) for z in model.atomic_numbers])
    keys = KeySpecification(info_keys={"energy": "e"}, arrays_keys={"forces": "f"})
    for frame in frames:
        frame.info["e"], frame.arrays["f"] = frame.get_potential_energy(), frame.get_forces()
    configs = [config_from_atoms(frame, key_specification=keys) for frame in frames]
    graphs = [AtomicData.from_config(config, z_table=table, cutoff=CUTOFF) for config in configs]
    batch = next(iter(torch_geometric.dataloader.DataLoader(graphs, batch_size=len(graphs))))
    given, atoms = batch.to_dict(), batch.ptr[1:] - batch.ptr[:-1]
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-4)

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        out = model(dict(given), training=True, compute_force=True)
        energy = ((out["energy"] - batch.energy) / atoms).square().mean()
        (energy + (out["forces"] - batch.forces).square().mean()).backward()
        optimizer.step()

    return step
