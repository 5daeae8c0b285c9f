"""This package, evaluated as the peers are; it is trained through its command line."""

from pathlib import Path

import common

CONFIGS: dict[str, object] = {}


def calculator(run: Path, backend: str | None = None) -> object:
    """The model of a run, or of a file."""
    from physicsml_ase import PhysicsMLCalculator

    path = str(run / "model.ckpt" if run.is_dir() else run)
    return PhysicsMLCalculator(path) if backend is None else PhysicsMLCalculator(path, backend=backend)


if __name__ == "__main__":
    common.main(lambda *_: None, calculator, {"default": None})
