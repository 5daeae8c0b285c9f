"""Structures that peers and we compute, and files of what peers found. Runs in a peer's environment.

A file holds `meta` (JSON), weights as `state/NAME`, and of each structure `NAME/numbers`, `positions`, `cell`, `pbc`,
`energy`, `forces` and, of crystals, `stress`, in the peer's units.
"""

import json
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import torch
from ase import Atoms
from ase.build import bulk, molecule
from ase.neighborlist import neighbor_list


def structures() -> dict[str, Atoms]:
    """A molecule, a crystal whose cell is smaller than the cut-off, and a triclinic cell, of H, C, N and O."""
    ethanol = molecule("CH3CH2OH")
    ammonia = molecule("NH3")
    ammonia.positions += [0.3, 3.0, 0.4]
    crystal = bulk("C", "diamond", a=3.6, cubic=True)
    crystal.numbers[[1, 4]] = [7, 8]
    ice = molecule("H2O")
    ice += Atoms("NCH", [[2.1, 0.2, 1.9], [2.4, 2.3, 0.3], [0.2, 2.2, 2.4]])
    ice.set_cell([[3.9, 0, 0], [0.6, 4.1, 0], [-0.5, 0.8, 4.3]])
    ice.pbc = True
    result = {"molecule": ethanol + ammonia, "crystal": crystal, "triclinic": ice}
    for seed, atoms in enumerate(result.values()):
        atoms.rattle(0.05, seed=seed)
    return result


def edges(atoms: Atoms, cutoff: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Centres and neighbours (2, E), and shifts (E, 3) [Å]."""
    i, j, shift = neighbor_list("ijS", atoms, cutoff)
    return torch.from_numpy(np.stack([i, j])), torch.from_numpy(shift @ atoms.cell.array)


def evaluated(energy: Callable[[Atoms, torch.Tensor, torch.Tensor], torch.Tensor]) -> dict[str, np.ndarray]:
    """What `energy` of atoms, positions (N, 3) and cell (3, 3), which may be strained, gives for all structures."""
    out = {}
    for name, atoms in structures().items():
        strain = torch.zeros(3, 3, dtype=torch.float64, requires_grad=True)
        positions = torch.from_numpy(atoms.positions).requires_grad_()
        deformation = torch.eye(3, dtype=torch.float64) + (strain + strain.T) / 2
        cell = torch.from_numpy(atoms.cell.array) @ deformation
        e = energy(atoms, positions @ deformation, cell)
        g, virial = torch.autograd.grad(e.sum(), [positions, strain])
        out |= {f"{name}/numbers": atoms.numbers, f"{name}/positions": atoms.positions}
        out |= {f"{name}/cell": atoms.cell.array, f"{name}/pbc": atoms.pbc}
        out |= {f"{name}/energy": e.detach().numpy().sum(), f"{name}/forces": -g.numpy()}
        if atoms.pbc.any():
            out[f"{name}/stress"] = virial.numpy() / abs(np.linalg.det(atoms.cell.array))
    return out


def write(path: Path, meta: Mapping[str, object], state: Mapping[str, torch.Tensor], found: dict) -> None:
    """One file; weights that are float32 numbers are written as such."""
    arrays = {"meta": np.array(json.dumps(meta))} | found
    for name, value in state.items():
        array = value.detach().numpy()
        small = array.dtype == np.float64 and (array.astype(np.float32) == array).all()
        arrays["state/" + name] = array.astype(np.float32) if small else array
    np.savez_compressed(path, **arrays)
