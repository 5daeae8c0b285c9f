"""torchmd-net's TensorNet for architectures.py: 64 channels, 2 layers, 32 radial functions, cut-off 5 Å, float32.

With its Warp kernels; neighbours are found by its own list, as its calculator for ASE does.
"""

from collections.abc import Callable
from pathlib import Path

import torch
from ase import Atoms
from torchmdnet.models.model import create_model, load_model

ARGS = {
    "model": "tensornet",
    "precision": 32,
    "embedding_dimension": 64,
    "num_layers": 2,
    "num_rbf": 32,
    "rbf_type": "expnorm",
    "trainable_rbf": False,
    "activation": "silu",
    "cutoff_lower": 0.0,
    "cutoff_upper": 5.0,
    "max_z": 100,
    "max_num_neighbors": 64,
    "equivariance_invariance_group": "O(3)",
    "derivative": False,
    "atom_filter": -1,
    "prior_model": None,
    "output_model": "Scalar",
    "reduce_op": "sum",
}


def write(path: Path, elements: list[int]) -> None:
    """Random weights, in a checkpoint as its training leaves it."""
    torch.manual_seed(0)
    state = {f"model.{name}": value for name, value in create_model(dict(ARGS)).state_dict().items()}
    torch.save({"hyper_parameters": ARGS, "state_dict": state}, path)


def calculator(path: Path) -> object:
    """In float32; of forces only, it has no stress."""
    from torchmdnet.calculators import TMDNETCalculator

    class Neutral(TMDNETCalculator):
        """It asks every structure for its charge."""

        def calculate(self, atoms: Atoms, *rest: object) -> None:
            """As its parent."""
            atoms.info["charge"] = 0
            super().calculate(atoms, *rest)

    return Neutral(str(path))


def trainer(path: Path, frames: list[Atoms]) -> Callable[[], None]:
    """Mean square errors of energies per atom and forces."""
    model = load_model(str(path), derivative=True).train()
    numbers = torch.cat([torch.from_numpy(frame.numbers).long() for frame in frames])
    positions = torch.cat([torch.from_numpy(frame.positions).float() for frame in frames])
    batch = torch.repeat_interleave(torch.tensor([len(frame) for frame in frames]))
    box = torch.from_numpy(frames[0].cell.array).float() if frames[0].pbc.any() else None
    energies = torch.tensor([frame.get_potential_energy() for frame in frames])
    forces = torch.cat([torch.from_numpy(frame.get_forces()).float() for frame in frames])
    atoms = torch.bincount(batch)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-4)

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        energy, force = model(numbers, positions.clone(), batch, box)
        loss = ((energy[:, 0] - energies) / atoms).square().mean()
        (loss + (force - forces).square().mean()).backward()
        optimizer.step()

    return step
