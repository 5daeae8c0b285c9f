"""Where a training runs that may run on a GPU: small batches of Gaunt-ACE are quicker by the kernel on a CPU.

A step on a GPU is a thousand launches, which take as long for a hundred atoms as for ten thousand.
"""

import copy
import dataclasses
import logging
import os
import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor

from physicsml_ase.backends.crew import TRIES
from physicsml_ase.data.datamodule import DataModule
from physicsml_ase.graph import Graph
from physicsml_ase.potential import Potential
from physicsml_ase.train.fused import FusedPotential, fused_reason
from physicsml_ase.train.settings import RunConfig

log = logging.getLogger("physicsml_ase")
WARM_UP, STEPS = 2 * TRIES + 2, 5


def settled(config: RunConfig, potential: Potential, datamodule: DataModule, new: bool = True) -> RunConfig:
    """The config, with the CPU as its accelerator where that was left open and a training step is quicker there.

    A run that is continued, and not `new`, stays where it was.
    """
    if not new or not _left_open(config) or fused_reason(potential) is not None:
        return config
    on_cpu, on_gpu = measured(potential, datamodule.first_batch())
    torch.cuda.empty_cache()
    quicker = "CPU" if on_cpu < on_gpu else "GPU"
    log.info(
        "training on the %s: for these batches a step takes %.3g ms by the CPU's kernel and %.3g ms on the GPU; "
        "trainer.accelerator=cpu or gpu decides otherwise",
        *(quicker, 1e3 * on_cpu, 1e3 * on_gpu),
    )
    if quicker == "GPU":
        return config
    return dataclasses.replace(config, trainer=dataclasses.replace(config.trainer, accelerator="cpu"))


def _left_open(config: RunConfig) -> bool:
    """Whether neither the place nor its number of processes was given, here or by what started this process."""
    trainer = config.trainer
    alone = not any(os.environ.get(name, "1") != "1" for name in ("WORLD_SIZE", "SLURM_NTASKS"))
    return (
        alone
        and torch.cuda.is_available()
        and torch.cuda.device_count() == 1
        and config.compile == "auto"
        and trainer.accelerator == "auto"
        and trainer.devices == "auto"
        and trainer.strategy == "auto"
        and trainer.num_nodes == 1
        and trainer.precision == 32
        and "LOCAL_RANK" not in os.environ
    )


def measured(potential: Potential, batch: Graph) -> tuple[float, float]:
    """Seconds of a step by the CPU's kernel, and on the GPU."""
    on_cpu = seconds_of_a_step(FusedPotential(copy.deepcopy(potential).train()), batch)
    try:
        gpu = torch.device("cuda", torch.cuda.current_device())
        return on_cpu, seconds_of_a_step(copy.deepcopy(potential).to(gpu).train(), batch.to(gpu))
    except torch.OutOfMemoryError:
        return on_cpu, float("inf")


def seconds_of_a_step(predict: Callable[[Graph], dict[str, Tensor]], batch: Graph) -> float:
    """Median time of energies, forces and the gradient of a loss of them, without the optimizer."""
    times = []
    for _ in range(WARM_UP + STEPS):
        start = time.perf_counter()
        out = predict(batch)
        loss = out["energy"].sum() + out["forces"].square().sum()
        loss.backward()
        if batch.positions.is_cuda:
            torch.cuda.synchronize()
        times.append(time.perf_counter() - start)
    return statistics.median(times[WARM_UP:])
