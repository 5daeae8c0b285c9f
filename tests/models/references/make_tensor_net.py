"""What torchmd-net's TensorNet gives: `python make_tensor_net.py FILE.npz [SETTING=VALUE ...]` in its environment.

The neighbours are found by ASE, since torchmd-net's own list needs large cells; every atom is its own neighbour too.
An atom must not see its own images, whose directions torchmd-net does not normalise: no cell is shorter than the
cut-off.
"""

import sys
from pathlib import Path

import torch
from ase import Atoms
from peer import edges, evaluated, write
from torch import Tensor
from torchmdnet.models import tensornet
from torchmdnet.models.model import create_model

ARGS = {
    "model": "tensornet",
    "precision": 64,
    "embedding_dimension": 8,
    "num_layers": 2,
    "num_rbf": 6,
    "rbf_type": "expnorm",
    "trainable_rbf": False,
    "activation": "silu",
    "cutoff_lower": 0.0,
    "cutoff_upper": 3.5,
    "max_z": 10,
    "max_num_neighbors": 64,
    "equivariance_invariance_group": "O(3)",
    "derivative": False,
    "atom_filter": -1,
    "prior_model": None,
    "output_model": "Scalar",
    "reduce_op": "sum",
}


class Given(torch.nn.Module):
    """Takes the place of torchmd-net's list: edges of `atoms`, and of each atom to itself."""

    atoms: Atoms
    cell: Tensor

    def __init__(self, cutoff: float) -> None:
        super().__init__()
        self.cutoff = cutoff

    def forward(self, positions: Tensor, batch: Tensor, box: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        """As `OptimizedDistance`."""
        index, shift = edges(self.atoms, self.cutoff)
        images = torch.round(shift @ torch.linalg.pinv(torch.from_numpy(self.atoms.cell.array)))
        r = positions[index[0]] - positions[index[1]] - images @ self.cell
        d, n = r.square().sum(1).sqrt(), len(positions)
        index = torch.cat([index, torch.arange(n).expand(2, n)], dim=1)
        return index, torch.cat([d, d.new_zeros(n)]), torch.cat([r, r.new_zeros(n, 3)])


def main(path: Path, settings: list[str]) -> None:
    """Random weights, all structures."""
    tensornet.OPT = False  # constants of the other kernels are rounded to float32
    for name in ("compose_tensor", "decompose_tensor", "tensor_matmul_o3", "tensor_matmul_so3"):
        setattr(tensornet, name, getattr(tensornet, "_" + name))
    args = dict(ARGS)
    for name, value in (setting.split("=") for setting in settings):
        args[name] = type(ARGS[name])(value)
    torch.manual_seed(0)
    model = create_model(dict(args)).double().eval()
    for parameter in model.parameters():  # biases are not zero, and files are small
        if parameter.ndim == 1:
            parameter.data += 0.1 * torch.randn_like(parameter)
        parameter.data = parameter.data.float().double()
    model.representation_model.distance = given = Given(args["cutoff_upper"])

    def energy(atoms: Atoms, positions: Tensor, cell: Tensor) -> Tensor:
        given.atoms, given.cell = atoms, cell
        return model(torch.from_numpy(atoms.numbers).long(), positions)[0]

    state = {k: v for k, v in model.state_dict().items() if "distance.box" not in k}
    write(path, args, state, evaluated(energy))


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
