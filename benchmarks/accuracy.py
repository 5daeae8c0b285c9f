"""Errors of the recipe's model after a number of steps, and what they cost in CPU seconds.

    python benchmarks/accuracy.py train.xyz test.xyz --steps 6000 [key=value ...]

Steps, and not seconds, so that a busy machine gives the same model; the CPU time of the process is printed
beside the errors. Run it with OMP_NUM_THREADS=1 for the figures of one core.
"""

import argparse
import tempfile
import time
from pathlib import Path

from physicsml_ase.checkpoint import load_potential
from physicsml_ase.config import load, validate
from physicsml_ase.evaluate import evaluate
from physicsml_ase.recipe import merge, with_length, with_recipe
from physicsml_ase.train.run import Data, start
from physicsml_ase.train.settings import RunConfig


def main() -> None:
    """Train, evaluate, print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("train")
    parser.add_argument("test")
    parser.add_argument("overrides", nargs="*", metavar="key=value")
    parser.add_argument("--steps", type=int, default=6000)
    arguments = parser.parse_intermixed_args()
    given = merge(load(None, arguments.overrides), {"trainer": {"max_steps": arguments.steps}})
    config = validate(RunConfig, with_length(with_recipe(given)))
    with tempfile.TemporaryDirectory() as folder:
        began = time.process_time()
        start(config, Data(arguments.train), Path(folder) / "run")
        spent = time.process_time() - began
        evaluation = evaluate(load_potential(Path(folder) / "run" / "model.ckpt"), arguments.test)
    print(evaluation.table())
    print(f"{arguments.steps} steps, {spent:.0f} CPU seconds")


if __name__ == "__main__":
    main()
