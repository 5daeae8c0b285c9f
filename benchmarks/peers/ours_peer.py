"""This package, evaluated as the peers are; it is trained through its command line."""

from pathlib import Path

import common

CONFIGS: dict[str, object] = {}


def calculator(run: Path) -> object:
    """The model of a run."""
    from physicsml_ase import PhysicsMLCalculator

    return PhysicsMLCalculator(str(run / "model.ckpt" if run.is_dir() else run))


if __name__ == "__main__":
    common.main(lambda *_: None, calculator, {"default": None})
