"""graph-pes: PaiNN with its defaults, AdamW, RMSE of energies per atom (weight 10) and of forces."""

import sys
from pathlib import Path

import common

CONFIGS = {"PaiNN": 0.005, "PaiNN_lr0.001": 0.001}  # learning rates
BUDGET: common.Budget  # of the run, which the YAML config can only name
FRAMES = 0


def keeper() -> object:
    """The callback, made by graph-pes from the config."""
    import __main__

    return common.lightning_callback(__main__.BUDGET, __main__.FRAMES, "valid/metrics/forces_rmse")


def train(run: Path, data: Path, config: str, batch: int, seconds: float) -> None:
    """Write RUN/run/model.pt."""
    global BUDGET, FRAMES
    import graph_pes.scripts.train as graph_pes
    import yaml
    from ase.io import read

    BUDGET, FRAMES = common.Budget(seconds, 4.0, run), len(read(data / "train.xyz", ":"))
    (run / "config.yaml").write_text(yaml.safe_dump(_config(run, data, config, batch), sort_keys=False))
    sys.argv = ["graph-pes-train", str(run / "config.yaml")]
    graph_pes.test_with_lightning = lambda *_, **__: None  # errors are measured outside the budget
    graph_pes.update_summary = lambda *_: None  # fails where a metric was NaN
    graph_pes.main()
    BUDGET.write(FRAMES)


def calculator(run: Path) -> object:
    """With its default skin."""
    import torch
    from graph_pes.models import load_model

    torch.set_default_dtype(torch.float32)
    return load_model(run / "run" / "model.pt").ase_calculator()


def _config(run: Path, data: Path, config: str, batch: int) -> dict:
    return {
        "general": {
            "seed": 0,
            "run_id": "run",
            "root_dir": str(run),
            "progress": "logged",
            "torch": {"dtype": "float32", "float32_matmul_precision": "highest"},
        },
        "model": {
            "offset": {"+FixedOffset": common.reference(data, shifted=True)},
            "many-body": {"+PaiNN": {"cutoff": 5.0}},
        },
        "data": {"train": str(data / "train.xyz"), "valid": str(data / "validation.xyz")},
        "loss": [{"+PerAtomEnergyLoss": {"weight": 10.0}}, "+ForceRMSE()"],
        "fitting": {
            "trainer_kwargs": {"max_epochs": 100000, "accelerator": "cpu"},
            "optimizer": {"name": "AdamW", "lr": CONFIGS[config]},
            "loader_kwargs": {"batch_size": batch, "num_workers": 0, "persistent_workers": False},
            "callbacks": ["+graphpes_peer.keeper()"],
        },
        "wandb": None,
    }


if __name__ == "__main__":
    common.main(train, calculator, CONFIGS)
