"""mace-torch: the recipe of its documentation for small sets (Adam 0.01 amsgrad, EMA 0.99, weights 10 and 100).

In the last quarter the energy weighs 1000, which is MACE's stage two.
"""

import json
import sys
import time
from pathlib import Path

import common

CONFIGS = {"32x0e+32x1o": "32x0e + 32x1o", "64x0e": "64x0e"}


class Spent(Exception):
    """The budget is."""


def train(run: Path, data: Path, config: str, batch: int, seconds: float) -> None:
    """Write RUN/model.pt: the averaged weights when the budget is spent, in the middle of an epoch or not."""
    import torch
    from ase.data import atomic_numbers
    from ase.io import read
    from mace.cli import run_train

    budget = common.Budget(seconds, 2.5, run)
    tools, kept = run_train.tools, {}
    loop = sys.modules["mace.tools.train"]
    step, report, fit = loop.take_step, loop.valid_err_log, tools.train

    def take_step(model, loss_fn, batch, optimizer, **rest):
        factor = budget.factor()
        for group in optimizer.param_groups:
            group["lr"] = factor * group.setdefault("budget_lr", group["lr"])
        if budget.fraction() > 0.75:
            loss_fn.energy_weight.fill_(1000.0)
        began = time.process_time()
        out = step(model=model, loss_fn=loss_fn, batch=batch, optimizer=optimizer, **rest)
        budget.count(batch.num_graphs, time.process_time() - began)
        if budget.over():
            raise Spent
        return out

    def valid_err_log(loss, metrics, *rest):
        budget.validated(1000 * metrics["rmse_f"])
        report(loss, metrics, *rest)

    def keeping(model, ema, **rest):
        kept.update(model=model, ema=ema)
        fit(model=model, ema=ema, **rest)

    loop.take_step, loop.valid_err_log, tools.train = take_step, valid_err_log, keeping
    energies = {atomic_numbers[s]: e for s, e in common.reference(data, shifted=False).items()}
    sys.argv = [
        "mace_run_train",
        "--name=m",
        f"--train_file={data}/train.xyz",
        f"--valid_file={data}/validation.xyz",
        f"--E0s={energies}",
        "--model=MACE",
        f"--hidden_irreps={CONFIGS[config]}",
        "--r_max=5.0",
        "--max_ell=3",
        "--correlation=3",
        "--num_interactions=2",
        f"--batch_size={batch}",
        f"--valid_batch_size={batch}",
        "--max_num_epochs=100000",
        "--patience=100000",
        "--scheduler_patience=100000",
        "--ema",
        "--ema_decay=0.99",
        "--amsgrad",
        "--lr=0.01",
        "--energy_weight=10",
        "--forces_weight=100",
        "--default_dtype=float32",
        "--device=cpu",
        "--energy_key=energy",
        "--forces_key=forces",
        "--seed=0",
        "--plot=False",
        "--num_workers=0",
        "--error_table=TotalRMSE",
    ]
    try:
        run_train.main()
    except Spent:
        with kept["ema"].average_parameters():
            torch.save(kept["model"], run / "model.pt")
    budget.write(len(read(data / "train.xyz", ":")))
    (run / "arguments.json").write_text(json.dumps(sys.argv))


def untrained(run: Path, data: Path, config: str) -> None:
    """Write RUN/model.pt with the weights of the start: enough to time a step, of no use for anything else."""
    import numpy as np
    import torch
    from ase.data import atomic_numbers
    from e3nn import o3
    from mace import modules

    energies = {atomic_numbers[s]: e for s, e in common.reference(data, shifted=False).items()}
    elements = sorted(energies)
    blocks = modules.interaction_classes
    torch.manual_seed(0)
    torch.set_default_dtype(torch.float32)
    model = modules.ScaleShiftMACE(
        r_max=5.0,
        num_bessel=8,
        num_polynomial_cutoff=5,
        max_ell=3,
        correlation=3,
        interaction_cls=blocks["RealAgnosticResidualInteractionBlock"],
        interaction_cls_first=blocks["RealAgnosticInteractionBlock"],
        num_interactions=2,
        num_elements=len(elements),
        hidden_irreps=o3.Irreps(CONFIGS[config]),
        MLP_irreps=o3.Irreps("16x0e"),
        gate=torch.nn.functional.silu,
        atomic_energies=np.array([energies[z] for z in elements]),
        atomic_numbers=elements,
        avg_num_neighbors=28.0,
        radial_type="bessel",
        radial_MLP=[64, 64, 64],
        atomic_inter_scale=1.0,
        atomic_inter_shift=0.0,
    )
    torch.save(model, run / "model.pt")


def calculator(run: Path) -> object:
    """In float32, as trained."""
    from mace.calculators import MACECalculator

    return MACECalculator(model_paths=str(run / "model.pt"), device="cpu", default_dtype="float32")


if __name__ == "__main__":
    common.main(train, calculator, CONFIGS, untrained)
