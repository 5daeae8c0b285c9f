"""This package for architectures.py, with the weights that it imports from the peer.

Freed memory is kept in the process, as `physicsml-ase md` and `train` do.
"""

import os
from collections.abc import Callable
from pathlib import Path

import torch
from ase import Atoms


def calculator(path: Path) -> object:
    """In float32, by the backend OURS_BACKEND, or eager: every architecture has that."""
    from physicsml_ase import PhysicsMLCalculator
    from physicsml_ase.cli.options import keep_memory

    keep_memory()
    return PhysicsMLCalculator(str(path), dtype="float32", backend=os.environ.get("OURS_BACKEND", "eager"))


def trainer(path: Path, frames: list[Atoms]) -> Callable[[], None]:
    """Mean square errors of energies per atom and forces; compiled where OURS_BACKEND is given."""
    from physicsml_ase.atoms import to_graph
    from physicsml_ase.checkpoint import load_potential
    from physicsml_ase.cli.options import keep_memory
    from physicsml_ase.graph import collate
    from physicsml_ase.train.compiled import CompiledPotential

    keep_memory()
    potential = load_potential(path, dtype="float32").requires_grad_(True).train()
    graph = collate([to_graph(frame, potential.domain.cutoff) for frame in frames])
    energies = torch.tensor([frame.get_potential_energy() for frame in frames], dtype=torch.float64)
    forces = torch.cat([torch.from_numpy(frame.get_forces().copy()) for frame in frames])
    optimizer = torch.optim.Adam(potential.parameters(), lr=1e-4)
    predict = CompiledPotential(potential, True) if "OURS_BACKEND" in os.environ else potential

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        out = predict(graph)
        energy = ((out["energy"] - energies) / graph.num_atoms).square().mean()
        (energy + (out["forces"] - forces).square().mean()).backward()
        optimizer.step()

    return step
