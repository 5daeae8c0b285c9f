"""A small model of hot water and methanol, trained for a moment, with what it knows of its training data."""

from pathlib import Path

import numpy as np
from ase import Atoms
from ase.build import molecule
from ase.calculators.emt import EMT
from ase.calculators.singlepoint import SinglePointCalculator

from physicsml_ase.api import PhysicsMLModel, load_model

SMALL = {
    "model": {"name": "painn", "channels": 8, "layers": 2, "num_radial": 6},
    "datamodule": {
        "cut_off": 4.0,
        "pre_batch": "in_memory",
        "train": {"batch_size": 8},
        "validation": {"batch_size": 20},
    },
    "optimizer": {"config": {"lr": 1e-2}},
}


def frames(count: int, seed: int = 0, size: float = 0.05) -> list[Atoms]:
    """Rattled molecules with EMT's energies and forces."""
    rng, result = np.random.default_rng(seed), []
    for k in range(count):
        atoms = molecule(("H2O", "CH3OH")[k % 2])
        atoms.positions += size * rng.normal(size=atoms.positions.shape)
        calculator = EMT()
        calculator.calculate(atoms, ["energy", "forces"])
        kept = {name: calculator.results[name] for name in ("energy", "forces")}
        atoms.calc = SinglePointCalculator(atoms, **kept)
        result.append(atoms)
    return result


def trained(root: Path, seed: int = 0, epochs: int = 4, **sections: object) -> PhysicsMLModel:
    """A model in the folder `root`."""
    trainer = {
        "accelerator": "cpu",
        "devices": 1,
        "max_epochs": epochs,
        "enable_progress_bar": False,
        "default_root_dir": str(root),
    }
    model = load_model({**SMALL, "seed": seed, "trainer": trainer, **sections})
    return model.train(train_data=frames(40), validation_data=frames(20, seed=1))
