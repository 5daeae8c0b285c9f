"""What torchani gives: `python make_ani.py FILE.npz WHICH [MEMBERS]` in the environment of torchani, 2 or older.

WHICH is ani1x or ani2x, with random weights, which are not in the file: `numpy_weights` makes them again. Or it is
`published-ani1x`, the first member of the published ensemble, which is in the package of torchani 2.2.4. Energies are
in Hartree.
"""

import sys
from pathlib import Path

import numpy as np
import torch
import torchani
from ase import Atoms
from peer import evaluated, write
from torch import Tensor


def random_weights(which: str, members: int) -> torch.nn.Module:
    """An ensemble of torchani 2."""
    from torchani.arch import Assembler

    assembler = Assembler(periodic_table_index=True)
    assembler.set_symbols({"ani1x": "H C N O", "ani2x": "H C N O S F Cl"}[which].split())
    assembler.set_atomic_networks(ctor=which)
    assembler.set_global_cutoff_fn("cosine")
    assembler.set_aev_computer(angular=which, radial=which, strategy="pyaev")
    assembler.set_neighborlist("all_pairs")
    assembler.set_gsaes_as_self_energies("wb97x-631gd")
    return assembler.assemble(members)


class Published(torch.nn.Module):
    """The first member of a published ensemble, with the names that the ensemble has."""

    def __init__(self, which: str) -> None:
        super().__init__()
        from torchani import neurochem

        folder = Path(torchani.__file__).parent / "resources" / f"{which.replace('ani', 'ani-')}_8x"
        constants = neurochem.Constants(str(next(folder.glob("*.params"))))
        self.aev_computer = torchani.AEVComputer(**constants)
        self.neural_networks = neurochem.load_model(constants.species, str(folder / "train0" / "networks"))
        self.energy_shifter = neurochem.load_sae(str(folder / "sae_linfit.dat"))
        self.species_converter = torchani.SpeciesConverter(constants.species)

    def forward(self, numbers_positions: tuple[Tensor, Tensor], **periodic: Tensor) -> Tensor:
        """As torchani's models."""
        species = self.species_converter(numbers_positions)
        return self.energy_shifter(self.neural_networks(self.aev_computer(species, **periodic)))


def numpy_weights(shapes: dict[str, list[int]]) -> dict[str, Tensor]:
    """Weights for networks whose parameters have these names and shapes, float64."""
    made = {}
    for k, name in enumerate(sorted(shapes)):
        bound = shapes[name][-1] ** -0.5
        values = np.random.default_rng(k).uniform(-bound, bound, shapes[name])
        made[name] = torch.from_numpy(values)
    return made


def main(path: Path, which: str, members: int = 1) -> None:
    """All structures; of an ensemble, the weights of all members and the values of the last."""
    torch.manual_seed(0)
    made = which.startswith("published-")
    model = Published(which.removeprefix("published-")) if made else random_weights(which, members)
    model = model.double()
    shapes = {name: list(x.shape) for name, x in model.state_dict().items() if "networks" in name}
    if not made:
        model.load_state_dict(numpy_weights(shapes), strict=False)
    one = model[members - 1] if members > 1 else model

    def energy(atoms: Atoms, positions: Tensor, cell: Tensor) -> Tensor:
        periodic = {"cell": cell, "pbc": torch.tensor([True] * 3)} if atoms.pbc.any() else {}
        numbers = torch.from_numpy(atoms.numbers).long()[None]
        return one((numbers, positions[None]), **periodic).energies

    state = model.state_dict()
    if not made:
        state = {name: value for name, value in state.items() if name not in shapes}
    meta = {"member": members - 1, "shapes": {} if made else shapes}
    write(path, meta, state, evaluated(energy))


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], *map(int, sys.argv[3:]))
