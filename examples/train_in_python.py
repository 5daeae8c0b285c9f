"""Train, evaluate and use a potential from Python, here for molecules with dipoles and charges.

python examples/train_in_python.py
"""

import logging
from pathlib import Path

import ase.io
from ase.build import molecule

from physicsml_ase import load_model

HERE = Path(__file__).parent
MOLECULES = HERE / "data" / "molecules.db"


def main(time: str = "60s", out: Path = Path("molecules-run")) -> None:
    """Train for `time`, then look at the errors and at one molecule."""
    logging.basicConfig(format="%(message)s")
    logging.getLogger("physicsml_ase").setLevel(logging.INFO)

    # a config file, a dict, or nothing for the defaults; then overrides, as on the command line
    model = load_model(HERE / "configs" / "molecules.yaml", [f"trainer.max_time={time}"])
    # data: files, lists of files, lists of Atoms, or several sources by name in a dict
    model.train(
        train_data=f"{MOLECULES}@split=train",
        test_data=ase.io.read(f"{MOLECULES}@split=test"),
        trainer={"default_root_dir": str(out)},
    )
    print(model.evaluate(f"{MOLECULES}@split=test").table())

    model.save(out / "mine.ckpt")  # the same as the run's own model.ckpt
    atoms = molecule("CH3OH")
    atoms.calc = load_model(out / "mine.ckpt").to_ase()
    print("energy [eV]", atoms.get_potential_energy())
    print("dipole [e Å]", atoms.get_dipole_moment())
    print("charges [e]", atoms.get_charges().round(3))
    # many structures at once, in batches
    print("forces of two", [result["forces"].shape for result in model.predict([atoms, molecule("H2O")])])


if __name__ == "__main__":  # data loaders with workers start this file again
    main()
