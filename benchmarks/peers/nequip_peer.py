"""nequip: the recipe of its documentation (Adam 0.01, EMA 0.99, per-atom energy and force MSE)."""

import sys
from pathlib import Path

import common

CONFIGS = {
    "l1_3x32": {"l_max": 1, "num_layers": 3, "num_features": 32},
    "l1_3x32_compiled": {"l_max": 1, "num_layers": 3, "num_features": 32, "compile_mode": "compile"},
}
BUDGET: common.Budget  # of the run, which Hydra's config can only name
FRAMES = 0


def keeper() -> object:
    """The callback, made by nequip from the config."""
    import __main__

    return common.lightning_callback(__main__.BUDGET, __main__.FRAMES, "val0_epoch/forces_rmse")


def train(run: Path, data: Path, config: str, batch: int, seconds: float) -> None:
    """Write RUN/last.ckpt."""
    global BUDGET, FRAMES
    import yaml
    from ase.io import read

    BUDGET, FRAMES = common.Budget(seconds, 3.0, run), len(read(data / "train.xyz", ":"))
    (run / "config.yaml").write_text(yaml.safe_dump(_config(run, data, config, batch), sort_keys=False))
    sys.argv = ["nequip-train", "-cp", str(run), "-cn", "config", f"hydra.run.dir={run}/hydra"]
    from nequip.scripts.train import main

    main()
    BUDGET.write(FRAMES)


def calculator(run: Path) -> object:
    """Eager; AOTInductor if it is given a package that `nequip-compile` made."""
    from nequip.integrations.ase import NequIPCalculator

    if run.suffix == ".pt2":
        return NequIPCalculator.from_compiled_model(str(run), device="cpu")
    return NequIPCalculator._from_saved_model(str(run / "last.ckpt"), device="cpu")


def _config(run: Path, data: Path, config: str, batch: int) -> dict:
    energies = common.reference(data, shifted=True)
    types = list(energies)
    loader = {"_target_": "torch.utils.data.DataLoader", "batch_size": batch, "num_workers": 0}
    metrics = {
        "_target_": "nequip.train.EnergyForceMetrics",
        "coeffs": {"total_energy_rmse": 1.0, "forces_rmse": 1.0},
    }
    return {
        "run": ["train"],
        "data": {
            "_target_": "nequip.data.datamodule.ASEDataModule",
            "seed": 0,
            "train_file_path": str(data / "train.xyz"),
            "val_file_path": str(data / "validation.xyz"),
            "transforms": [
                {
                    "_target_": "nequip.data.transforms.ChemicalSpeciesToAtomTypeMapper",
                    "model_type_names": types,
                },
                {"_target_": "nequip.data.transforms.NeighborListTransform", "r_max": 5.0},
            ],
            "train_dataloader": {**loader, "shuffle": True},
            "val_dataloader": {**loader, "shuffle": False},
            "stats_manager": {
                "_target_": "nequip.data.CommonDataStatisticsManager",
                "dataloader_kwargs": {"batch_size": 10},
                "type_names": types,
            },
        },
        "trainer": {
            "_target_": "lightning.Trainer",
            "accelerator": "cpu",
            "max_epochs": 100000,
            "enable_progress_bar": False,
            "logger": {"_target_": "lightning.pytorch.loggers.CSVLogger", "save_dir": str(run)},
            "callbacks": [
                {
                    "_target_": "lightning.pytorch.callbacks.ModelCheckpoint",
                    "dirpath": str(run),
                    "filename": "epoch",
                    "save_last": True,
                },
                {"_target_": "nequip_peer.keeper"},
            ],
        },
        "training_module": {
            "_target_": "nequip.train.EMALightningModule",
            "ema_decay": 0.99,
            "loss": {
                "_target_": "nequip.train.EnergyForceLoss",
                "per_atom_energy": True,
                "coeffs": {"total_energy": 1.0, "forces": 1.0},
            },
            "val_metrics": metrics,
            "train_metrics": metrics,
            "optimizer": {"_target_": "torch.optim.Adam", "lr": 0.01},
            "model": {
                "_target_": "nequip.model.NequIPGNNModel",
                "compile_mode": "eager",
                "seed": 0,
                "model_dtype": "float32",
                "type_names": types,
                "r_max": 5.0,
                "num_bessels": 8,
                "polynomial_cutoff_p": 6,
                "parity": True,
                "radial_mlp_depth": 2,
                "radial_mlp_width": 64,
                **CONFIGS[config],
                "avg_num_neighbors": "${training_data_stats:num_neighbors_mean}",
                "per_type_energy_scales": "${training_data_stats:per_type_forces_rms}",
                "per_type_energy_shifts": energies,
                "per_type_energy_scales_trainable": False,
                "per_type_energy_shifts_trainable": False,
            },
        },
    }


if __name__ == "__main__":
    common.main(train, calculator, CONFIGS)
