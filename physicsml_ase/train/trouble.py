"""What to tell of a step that failed: a loss that is no number, or a batch that is too large for the memory."""

from collections.abc import Sequence

import torch
from numpy.typing import NDArray
from torch import Tensor

from physicsml_ase.conventions import InputError
from physicsml_ase.graph import Graph
from physicsml_ase.potential import Potential

MOST_NAMED = 8
"""Frames named in one line."""
MOST_SKIPPED = 20
"""Steps skipped one after the other, after which something else is wrong than a frame."""
STANDS_OUT = 1e4
"""Times the median error of a batch."""
NO_MEMORY = ("can't allocate memory", "not enough memory", "out of memory")
"""What torch says, in a RuntimeError, where the memory of the CPU is full."""

Frames = Sequence[tuple[str, NDArray]]
"""(what the data are called, places of the frames in their source), in the order of the batch."""


def in_words(frames: Frames) -> str:
    """ "train data: frames 3, 8", shortened."""
    parts = []
    for name, places in frames:
        shown = ", ".join(map(str, places[:MOST_NAMED].tolist()))
        more = f" and {len(places) - MOST_NAMED} more" if len(places) > MOST_NAMED else ""
        parts.append(f"{name}: frame{'s' if len(places) > 1 else ''} {shown}{more}")
    return "; ".join(parts)


def culprits(potential: Potential, graph: Graph, frames: Frames) -> Frames:
    """Those of a batch's frames that stand out: whose predictions are no numbers, or whose errors are far above the
    others'; all of them if none do or all do."""
    size = graph.num_atoms.shape[0]
    bad = torch.zeros(size, dtype=torch.bool, device=graph.batch.device)
    for name, value in potential(graph).items():
        if name not in graph.targets:
            continue
        error = value.detach().double() - graph.targets[name].double()
        error = torch.where(graph.targets[name].isnan(), 0.0, error)  # an absent label counts as right
        error = error.abs().reshape(error.shape[0], -1).amax(1)
        if error.shape == graph.batch.shape:
            error = error.new_zeros(size).scatter_reduce(0, graph.batch, error, "amax")
        if error.shape == bad.shape:
            bad |= ~(error <= STANDS_OUT * error.nanmedian().clamp_min(1e-6))
    if not bad.any() or bad.all() or sum(len(places) for _, places in frames) != len(bad):
        return frames
    found, start, mask = [], 0, bad.cpu().numpy()
    for title, places in frames:
        chosen = places[mask[start : start + len(places)]]
        start += len(places)
        if len(chosen):
            found.append((title, chosen))
    return found


def not_a_number(what: str, potential: Potential, graph: Graph, frames: Frames) -> InputError:
    """The one line for a loss or gradient that is no number."""
    where = f" in the batch of {in_words(culprits(potential, graph, frames))}" if frames else ""
    return InputError(
        f"{what}{where}; lower the learning rate, set trainer.gradient_clip_val, look for wrong labels in these "
        "frames (physicsml-ase check), or leave such steps out with on_bad_loss=skip"
    )


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory is full, of the GPU or the CPU."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and any(words in str(error) for words in NO_MEMORY)


def out_of_memory(sizes: tuple[int, int, int] | None, device: torch.device) -> InputError:
    """The one line for a batch of so many (structures, atoms, edges) that does not fit."""
    what = "the GPU" if device.type == "cuda" else "this machine"
    batch = "a batch" if sizes is None else "a batch of {} structures, {} atoms and {} edges".format(*sizes)
    limit = "" if sizes is None else f", for example datamodule.train.max_atoms={max(sizes[1] // 2, 1)}"
    return InputError(
        f"{batch} does not fit into the memory of {what}: take smaller ones "
        f"(datamodule.train.batch_size, max_atoms, max_edges{limit}) or a smaller model"
    )


def no_step(potential: Potential) -> Tensor:
    """A loss of zero whose gradient is zero for every weight that is trained, on every rank."""
    trained = (p for p in potential.parameters() if p.requires_grad)
    return torch.stack([torch.nan_to_num(p).sum() * 0 for p in trained]).sum()
