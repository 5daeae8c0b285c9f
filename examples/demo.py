"""The whole road on the shipped Cu-Au alloy: train, evaluate, relax a crystal and its cell, run MD, one figure.

    python examples/demo.py --output demo-run

Takes two to three minutes on two CPU cores, of which `--time` is the training. Every step is also a verb of
the command line; the summary at the end names them.
"""

import argparse
import logging
import sys
import time
import warnings
from pathlib import Path

from ase import Atoms
from ase.build import bulk
from ase.calculators.emt import EMT
from rich.console import Console
from rich.table import Table

from physicsml_ase import load_model
from physicsml_ase.evaluate import Evaluation
from physicsml_ase.plots import demo_figure, save
from physicsml_ase.simulate import MDResult, RelaxResult, md, relax

EXAMPLES = Path(__file__).parent
console = Console(highlight=False)


def main() -> None:
    """Run it all."""
    options = parse()
    out: Path = options.output
    began = time.perf_counter()
    speak_plainly()

    console.rule("1  train")
    changes = [f"trainer.max_time={options.time}", *options.changes]
    model = load_model(EXAMPLES / "configs" / "alloy.yaml", changes)
    model.train(EXAMPLES / "data" / "alloy_train.xyz", trainer={"default_root_dir": str(out / "train")})

    console.rule("2  evaluate")
    evaluation = model.evaluate(EXAMPLES / "data" / "alloy_test.xyz", directory=out / "evaluation")
    print(evaluation.table())

    console.rule("3  relax: an L1_0 CuAu crystal, from a cubic cell and displaced atoms")
    calculator, start = model.to_ase(), displaced_cuau()
    relaxed = relax(calculator, start, cell=True, trajectory=out / "relax.traj", log=out / "relax.log")
    reference = relax(EMT(), start, cell=True, optimizer="BFGS", fmax=0.001)
    print(relaxed.in_words())

    console.rule(f"4  molecular dynamics: {options.time_ps:g} ps at 600 K")
    run = md(
        calculator,
        relaxed.atoms.repeat((3, 3, 3)),
        time_ps=options.time_ps,
        timestep_fs=2.0,
        temperature_K=600.0,
        trajectory=out / "md.traj",
        log=out / "md.log",
        every=5,
    )
    print(run.in_words())

    figure = demo_figure(
        evaluation,
        out / "train" / "metrics.csv",
        out / "md.log",
        out / "relax.log",
        title=f"Gaunt-ACE on a Cu-Au alloy: {options.time} of training on 180 structures",
    )
    save(figure, out / "demo.png")
    console.rule("summary")
    console.print(summary(evaluation, relaxed, reference, run))
    console.print(where(out), soft_wrap=True)
    console.print(f"{time.perf_counter() - began:.0f} s in all")


def parse() -> argparse.Namespace:
    """What can be said on the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--output", type=Path, default=Path("demo-run"), help="folder of the results")
    parser.add_argument("--time", default="75s", help="length of the training")
    parser.add_argument("--time-ps", type=float, default=1.0, help="length of the dynamics [ps]")
    parser.add_argument("changes", nargs="*", help="of the config: model.channels=64")
    return parser.parse_args()


def speak_plainly() -> None:
    """Show what physicsml_ase says, and not what Lightning says of hardware and tips."""
    logging.basicConfig(level=logging.WARNING, format="%(message)s", stream=sys.stdout)
    logging.getLogger("physicsml_ase").setLevel(logging.INFO)
    import lightning.pytorch

    logging.getLogger(lightning.pytorch.__name__).setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", module=r"(lightning|torch)\..*")


def displaced_cuau() -> Atoms:
    """Layers of copper and gold on an fcc lattice, whose cell is cubic and whose atoms are off their sites."""
    atoms = bulk("Cu", "fcc", a=3.8, cubic=True)
    atoms.symbols[:] = ["Cu", "Au", "Au", "Cu"]  # the second and third are half a cell up
    atoms.rattle(0.1, seed=1)
    return atoms


def summary(evaluation: Evaluation, relaxed: RelaxResult, reference: RelaxResult, run: MDResult) -> Table:
    """The numbers in a few lines."""
    errors = {
        name: evaluation.quantities[name].errors()[f"{name}_rmse"]
        for name in ("energy_per_atom", "forces", "stress")
    }
    table = Table(show_header=False, box=None)
    table.add_row("test RMSE", "energy", f"{1e3 * errors['energy_per_atom']:.1f} meV/atom")
    table.add_row("", "forces", f"{1e3 * errors['forces']:.1f} meV/Å")
    table.add_row("", "stress", f"{1e3 * errors['stress']:.2f} meV/Å³")
    table.add_row("L1_0 CuAu", "a, c, c/a", f"{axes(relaxed.atoms)}, {relaxed.steps} steps")
    table.add_row("", "by EMT itself", axes(reference.atoms))
    table.add_row(
        "dynamics", f"{run.time_ps:g} ps", f"{len(run.atoms)} atoms, {run.temperature_K:.0f} K on average"
    )
    table.add_row("", "speed", f"{run.atom_steps_per_s:.3g} atoms·steps/s")
    return table


def axes(atoms: Atoms) -> str:
    """Lattice constants of the tetragonal crystal."""
    x, y, c = atoms.cell.lengths()
    a = (x + y) / 2
    return f"{a:.3f} Å, {c:.3f} Å, {c / a:.3f}"


def where(out: Path) -> str:
    """Where things are, and what to try with them."""
    data = EXAMPLES / "data" / "alloy_test.xyz"
    return f"""
figure      {out}/demo.png
model       {out}/train/model.ckpt
errors      {out}/evaluation/   tables, metrics.json, parity plots, predictions.xyz
structures  {out}/relax.traj, {out}/md.traj   (ase gui)

next        physicsml-ase info {out}/train/model.ckpt
            physicsml-ase evaluate {out}/train/model.ckpt {data}
            physicsml-ase md {out}/train/model.ckpt {data}@0 -T 300 --time-ps 1 -o mine.traj
            physicsml-ase relax {out}/train/model.ckpt {data}@0 --cell -o mine.xyz
            physicsml-ase train --train YOURS.xyz --time 10m -o yours
"""


if __name__ == "__main__":
    main()
