"""The LightningModule: a potential, its loss, its averaged weights, and what is kept of the best of them."""

import logging
import math
from collections.abc import Callable, Mapping
from typing import Any, Literal, NamedTuple

import lightning.pytorch as pl
import torch
import torch.distributed as dist
from torch import Tensor
from torch.optim import Optimizer

from physicsml_ase.checkpoint import FORMAT, describe_potential
from physicsml_ase.conventions import InputError
from physicsml_ase.data.datamodule import DataModule
from physicsml_ase.graph import Graph
from physicsml_ase.potential import Potential
from physicsml_ase.train.batches import Batch, as_one, count_steps
from physicsml_ase.train.compiled import CompiledPotential
from physicsml_ase.train.ema import Ema, EmaConfig
from physicsml_ase.train.fused import FusedPotential
from physicsml_ase.train.losses import Loss, LossTerm
from physicsml_ase.train.metrics import Errors
from physicsml_ase.train.muon import MuonAdam
from physicsml_ase.train.optim import OptimizerConfig, SchedulerConfig, build_optimizer, build_scheduler
from physicsml_ase.train.schedule import Budget
from physicsml_ase.train.trouble import MOST_SKIPPED, Frames, no_step, not_a_number

log = logging.getLogger("physicsml_ase")


def quicker(
    potential: Potential, compile: bool | str | Mapping[str, Any]
) -> FusedPotential | CompiledPotential | None:
    """What computes training steps in the potential's place."""
    if compile == "kernel":
        return FusedPotential(potential)
    return CompiledPotential(potential, compile) if compile and not isinstance(compile, str) else None


def learned(optimizer: Optimizer) -> list[Tensor]:
    """The weights that it changes."""
    return [p for group in optimizer.param_groups for p in group["params"]]


class Asked(NamedTuple):
    """What is asked of the loop: of this process, and of all, which must do it together after the same step."""

    stop_here: bool = False
    save_here: bool = False
    stop: bool = False
    save: bool = False


class PotentialModule(pl.LightningModule):
    """Trains a potential; validates, selects and tests its averaged weights."""

    def __init__(
        self,
        potential: Potential,
        loss: Mapping[str, LossTerm],
        optimizer: OptimizerConfig | None = None,
        scheduler: SchedulerConfig | None = None,
        *,
        budget: Budget | None = None,
        ema: EmaConfig | None = None,
        config: Mapping[str, Any] | None = None,
        compile: bool | str | Mapping[str, Any] = False,
        on_bad_loss: Literal["stop", "skip"] = "stop",
        keep: Literal["best", "last"] = "best",
    ) -> None:
        """`config` is plain data that goes into training checkpoints; `budget` ends the schedule on time.

        `keep` says which weights are kept for the end: the best, by validation, or the last ones.

        `compile` is "kernel" for steps by the C++ kernel, or whether and how torch.compile takes them.
        """
        super().__init__()
        self.potential, self.loss = potential, Loss(loss)
        self.compiled = quicker(potential, compile)
        self.optimizer, self.scheduler = optimizer or OptimizerConfig(), scheduler
        self.budget = budget or Budget()
        labels = tuple(label for label in potential.labels if label.name in loss)
        self.errors = Errors(labels)
        self.ema = Ema(potential, ema.decay) if ema and ema.decay > 0 else None
        self.config = dict(config or {})
        self.best: dict[str, Any] = {}
        """{"score", "epoch", "step", "errors", "weights"} of the best validation so far, or of the last one."""
        self.keep = keep
        self.asked = Asked()
        self.seen_labels = False
        """Whether the last evaluation had any label of the loss."""
        self._told_unlabelled = False
        self.on_bad_loss = on_bad_loss
        self.batch_sizes: tuple[int, int, int] | None = None
        """Structures, atoms and edges of the last training batch."""
        self._graph: Graph | None = None  # of the present step
        self._skipped = 0  # steps, one after the other
        self._norm: Tensor | None = None  # of the present gradient
        self._left_out = False  # whether the present step is
        self._sums: list[Tensor] = []
        self._epoch: Tensor | None = None  # (2, T): sums and counts of the training epoch so far
        self._rng: Tensor | None = None

    def forward(self, graph: Graph) -> dict[str, Tensor]:
        """What the potential predicts for a batch."""
        return self.potential(graph)

    def configure_optimizers(self) -> Any:
        """The optimizer, and its schedule where there is one, as Lightning wants them."""
        optimizer = build_optimizer(self.optimizer, self.potential.named_parameters())
        expected = getattr(self.potential.model, "expected_sizes", None)
        if isinstance(optimizer, MuonAdam) and expected is not None:
            optimizer.expect(expected())
        if self.trainer.world_size > 1:
            self.budget.agree = self.trainer.strategy.broadcast
        if self.scheduler is None:
            return optimizer
        epochs = self.trainer.max_epochs
        num_epochs = epochs if epochs is not None and epochs > 0 else None
        num_steps = count_steps(self.trainer, num_epochs)
        self.budget.total_steps = num_steps
        schedule = build_scheduler(self.scheduler, optimizer, num_steps, num_epochs, self.budget)
        return {"optimizer": optimizer, "lr_scheduler": schedule}

    # --- steps

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """The loss of a batch, of all ranks; one without a gradient where it is not finite and is to be skipped."""
        graph = self._graph = as_one(batch)
        self.batch_sizes = (graph.num_atoms.shape[0], graph.batch.shape[0], graph.reverse.shape[0])
        sums, counts = self.loss((self.compiled or self.potential)(graph), graph)
        whole, ranks = self._of_all_ranks(torch.stack([sums.detach(), counts]))
        # the mean over ranks, which DDP takes of the gradients, makes this the loss of the whole batch
        total = self.loss.total(sums * ranks / whole[1].clamp_min(1))
        if torch.isfinite(whole[0]).all():
            self._epoch = whole if self._epoch is None else self._epoch + whole
            return total
        means = whole[0] / whole[1].clamp_min(1)
        became = f"the loss became {self.loss.total(means):g} at step {self.global_step}"
        self._refuse_or_skip(f"{became} ({self._terms_in_words(means)})")
        return no_step(self.potential)

    def on_before_optimizer_step(self, optimizer: Optimizer) -> None:
        """A gradient that is no number would make all weights no numbers."""
        self._norm = None
        if getattr(self.trainer.precision_plugin, "scaler", None) is not None:
            return  # of 16-mixed, which finds its scale by such gradients, and leaves out their steps itself
        gradients = [p.grad for p in learned(optimizer) if p.grad is not None]
        norm = torch.nn.utils.get_total_norm(gradients)
        if not torch.isfinite(norm):
            self._refuse_or_skip(f"the loss's gradient became {norm.item():g} at step {self.global_step}")
            self._leave_out(optimizer)
            return
        if norm > 0:
            self._skipped = 0
        elif self._skipped:
            self._leave_out(optimizer)
            return
        self._norm = norm

    def _leave_out(self, optimizer: Optimizer) -> None:
        """A step without gradients, at which optimizers do nothing: of zeros, momentum and decay would make steps."""
        for weight in learned(optimizer):
            weight.grad = None
        self._left_out = True

    def configure_gradient_clipping(
        self,
        optimizer: Optimizer,
        gradient_clip_val: float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        """As Lightning does, by the norm that is known already."""
        if self._norm is None or not gradient_clip_val or gradient_clip_algorithm not in (None, "norm"):
            self.clip_gradients(optimizer, gradient_clip_val, gradient_clip_algorithm)
        else:
            torch.nn.utils.clip_grads_with_norm_(learned(optimizer), gradient_clip_val, self._norm)

    def _refuse_or_skip(self, what: str) -> None:
        """Raise, or say that a step is left out."""
        assert self._graph is not None
        error = not_a_number(what, self.potential, self._graph, self._frames())
        self._skipped += 1
        if self.on_bad_loss == "stop":
            raise error
        if self._skipped >= MOST_SKIPPED:
            raise InputError(f"{MOST_SKIPPED} steps one after the other had to be left out: {error}")
        log.warning("left out: %s", str(error).partition(";")[0])

    def _frames(self) -> Frames:
        """The frames of the present batch."""
        datamodule = getattr(self.trainer, "datamodule", None)
        return datamodule.present_frames("train") if isinstance(datamodule, DataModule) else []

    def _of_all_ranks(self, sums: Tensor) -> tuple[Tensor, int]:
        """Sums added up over the ranks, which agree on what was asked on the way; and the number of ranks."""
        if not dist.is_initialized():
            self.asked = self.asked._replace(stop=self.asked.stop_here, save=self.asked.save_here)
            return sums, 1
        asked = [float(self.asked.stop_here), float(self.asked.save_here)]
        shared = torch.cat([sums.flatten(), sums.new_tensor(asked)])
        dist.all_reduce(shared)
        stop, save = (shared[-2:] > 0).tolist()
        self.asked = self.asked._replace(stop=stop, save=save)
        return shared[:-2].view_as(sums), dist.get_world_size()

    def on_train_epoch_end(self) -> None:
        if self._epoch is not None:
            self.log_dict(self._in_names("train", self._epoch), rank_zero_only=False, sync_dist=False)
        self._epoch = None

    def validation_step(self, batch: Batch, batch_idx: int, dataloader_idx: int = 0) -> None:
        quick = self.compiled if isinstance(self.compiled, FusedPotential) else None
        self._evaluation_step(batch, quick.evaluate if quick else self.potential)

    def test_step(self, batch: Batch, batch_idx: int, dataloader_idx: int = 0) -> None:
        self._evaluation_step(batch, self.potential, capped=False)

    def predict_step(self, batch: Batch, batch_idx: int, dataloader_idx: int = 0) -> dict[str, Tensor]:
        return self.potential(as_one(batch))

    def _evaluation_step(
        self, batch: Batch, predict: Callable[[Graph], dict[str, Tensor]], capped: bool = True
    ) -> None:
        graph = as_one(batch)
        with torch.no_grad():
            predictions = predict(graph)
            self._sums.append(torch.stack(self.loss(predictions, graph, capped=capped)))
            self.errors.update(predictions, graph)

    # --- averaged weights

    def on_fit_start(self) -> None:
        if self.ema:
            self.ema.follow()

    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        """As Lightning does, and count the weights into their average, unless the step was left out."""
        self._left_out = False
        super().optimizer_step(*args, **kwargs)
        if (
            self.ema and not self._left_out
        ):  # here, and not in a later hook, so that a checkpoint of this step holds it
            self.ema.update()

    def on_validation_epoch_start(self) -> None:
        self._start_evaluation()

    def on_test_epoch_start(self) -> None:
        self._start_evaluation()

    def on_predict_epoch_start(self) -> None:
        if self.ema:
            self.ema.put_on()

    def on_predict_epoch_end(self) -> None:
        if self.ema:
            self.ema.take_off()

    def _start_evaluation(self) -> None:
        self._sums.clear()
        self.errors.reset()
        if self.ema:
            self.ema.put_on()

    def on_validation_epoch_end(self) -> None:
        """Log the epoch, and keep the weights where they are the best."""
        values = self._end_evaluation("val")
        if not self.trainer.sanity_checking and self.trainer.state.fn == "fit":
            if self.seen_labels:
                self.keep_if_best(values)
            elif not self._told_unlabelled:
                self._told_unlabelled = True
                log.warning(
                    "no validation structure has a label of the loss (%s): the last weights are kept, not the best",
                    ", ".join(self.loss.labels),
                )

    def on_test_epoch_end(self) -> None:
        self._end_evaluation("test")

    def _end_evaluation(self, stage: str) -> dict[str, float]:
        """Log the losses and errors of the epoch, the same on every rank."""
        sums, counts = torch.stack(self._sums).sum(0) if self._sums else self.loss_nothing()
        both = torch.stack([sums, counts])
        if dist.is_initialized():
            dist.all_reduce(both)
        self.seen_labels = bool(both[1].any())
        values = self._in_names(stage, both)
        values |= {f"{stage}/{name}": value for name, value in self.errors.compute().items()}
        self.log_dict(values, rank_zero_only=False, sync_dist=False)
        if self.ema:
            self.ema.take_off()
        return values

    def _in_names(self, stage: str, sums: Tensor) -> dict[str, float]:
        """The losses, and their total, of sums and counts (2, T)."""
        means = sums[0] / sums[1].clamp_min(1)
        values = {f"{stage}/{name}/loss": m for name, m in zip(self.loss.labels, means.tolist())}
        return values | {f"{stage}/total/loss": self.loss.total(means).item()}

    def loss_nothing(self) -> Tensor:
        """Sums and counts (2, T) of no batch at all."""
        return torch.zeros(2, len(self.loss.terms), dtype=torch.float64, device=self.device)

    def keep_if_best(self, values: Mapping[str, float]) -> bool:
        """Keep the averaged weights if their validation loss is the lowest so far, or if the last ones are kept."""
        score = values["val/total/loss"]
        most = math.inf if self.keep == "last" else self.best.get("score", math.inf)
        if not score < most:  # nor is NaN better
            return False
        errors = {k.removeprefix("val/"): v for k, v in values.items() if not k.endswith("loss")}
        self.best = {
            "score": score,
            "epoch": self.current_epoch,
            "step": self.global_step,
            "errors": errors,
            "weights": {k: v.clone() for k, v in self.averaged_weights().items()},
        }
        return True

    @property
    def training_losses(self) -> list[float] | None:
        """The means of the loss's terms over this epoch's steps so far; None before the first."""
        if self._epoch is None:
            return None
        return (self._epoch[0] / self._epoch[1].clamp_min(1)).tolist()

    def averaged_weights(self) -> Mapping[str, Tensor]:
        """The averaged weights, or without averaging the present ones."""
        if self.ema:
            return self.ema.weights
        return {name: p.detach() for name, p in self.potential.named_parameters()}

    # --- saving and restarting

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add what a run continues from, and what says how to build the potential."""
        checkpoint[FORMAT] = describe_potential(self.potential)
        checkpoint["config"] = self.config
        checkpoint["best"] = self.best
        checkpoint["rng"] = torch.get_rng_state()
        checkpoint["epoch_sums"] = self._epoch
        checkpoint["budget"] = self.budget.state_dict()
        if self.ema:
            checkpoint["ema"] = self.ema.state_dict()
            for name, value in self.ema.own_weights.items():  # also if saved while validating
                checkpoint["state_dict"][f"potential.{name}"] = value.detach().clone()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Take back what `on_save_checkpoint` added."""
        self.best = checkpoint["best"]
        self._rng = checkpoint["rng"]
        self._epoch = checkpoint["epoch_sums"]
        self.budget.load_state_dict(checkpoint["budget"])
        if self.ema and "ema" in checkpoint:
            self.ema.load_state_dict(checkpoint["ema"])

    def on_train_start(self) -> None:
        if self._rng is not None:
            torch.set_rng_state(self._rng.cpu())
            self._rng = None
        if self._epoch is not None:
            self._epoch = self._epoch.to(self.device)

    def _terms_in_words(self, means: Tensor) -> str:
        return ", ".join(f"{name} {m.item():.3g}" for name, m in zip(self.loss.labels, means))
