"""What a training run would take, estimated from what runs took elsewhere."""

ATOMS_PER_SECOND = 11_000
"""Atoms that the default model trains on in a second of one CPU core: 10,400 to 13,400 on molecules, elements and
oxides with 12 to 50 neighbours (benchmarks/results/training.csv)."""
EPOCHS = 300
"""After which errors of such sets were near their end."""


def cost(train_atoms: int) -> dict[str, float]:
    """Seconds of an epoch and of a usual run, on one core."""
    epoch = train_atoms / ATOMS_PER_SECOND
    return {"seconds_per_epoch": epoch, "epochs": EPOCHS, "seconds": EPOCHS * epoch}


def in_time(seconds: float) -> str:
    """'40 s', '12 min', '3.1 h'"""
    if seconds < 90:
        return f"{seconds:.2g} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.2g} h"
