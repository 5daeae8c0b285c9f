"""torchani for architectures.py: one network of ANI-1x's shape with random weights, its plain path, float32."""

from collections.abc import Callable
from pathlib import Path

import torch
from ase import Atoms
from torchani.arch import Assembler


def write(path: Path, elements: list[int]) -> None:
    """A state dict, as for `physicsml-ase import`; it is for H, C, N and O, whatever is asked for."""
    torch.manual_seed(0)
    torch.save(_model().state_dict(), path)


def calculator(path: Path) -> object:
    """In float32."""
    model = _model()
    model.load_state_dict(torch.load(path))
    return model.ase()


def trainer(path: Path, frames: list[Atoms]) -> Callable[[], None]:
    """Mean square errors of energies per atom and forces."""
    model = _model("all_pairs").train()  # the only list that takes batches
    model.load_state_dict(torch.load(path))
    numbers = torch.stack([torch.from_numpy(frame.numbers).long() for frame in frames])
    positions = torch.stack([torch.from_numpy(frame.positions).float() for frame in frames])
    periodic = {}
    if frames[0].pbc.any():
        periodic = {"cell": torch.from_numpy(frames[0].cell.array).float(), "pbc": torch.tensor([True] * 3)}
    energies = torch.tensor([frame.get_potential_energy() for frame in frames])
    forces = torch.stack([torch.from_numpy(frame.get_forces()).float() for frame in frames])
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-4)

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        places = positions.clone().requires_grad_()
        energy = model((numbers, places), **periodic).energies
        (gradient,) = torch.autograd.grad(energy.sum(), places, create_graph=True)
        loss = ((energy - energies) / numbers.shape[1]).square().mean()
        (loss + (gradient + forces).square().mean()).backward()
        optimizer.step()

    return step


def _model(neighborlist: str = "adaptive") -> torch.nn.Module:
    assembler = Assembler(periodic_table_index=True)
    assembler.set_symbols(["H", "C", "N", "O"])
    assembler.set_atomic_networks(ctor="ani1x")
    assembler.set_global_cutoff_fn("cosine")
    assembler.set_aev_computer(angular="ani1x", radial="ani1x", strategy="pyaev")
    assembler.set_neighborlist(neighborlist)
    assembler.set_gsaes_as_self_energies("wb97x-631gd")
    return assembler.assemble(1)
