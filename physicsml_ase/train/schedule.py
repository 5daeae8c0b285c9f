"""The learning rate over a run whose end is known in steps, in seconds, or in both."""

import math
import time
from collections.abc import Callable, Mapping

from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from physicsml_ase.conventions import InputError


def _alone(progress: float) -> float:
    return progress


class Budget:
    """How long a run may be: a number of optimizer steps, of seconds, or whichever is used up first.

    The seconds count from `started_at` (on `time.monotonic`'s clock, so that start-up can be included) and
    over all the sessions of a run that is resumed. With several processes, `agree` turns each one's progress
    into that of the first (`trainer.strategy.broadcast`), since their clocks differ and their steps must not.
    """

    def __init__(
        self,
        total_steps: int | None = None,
        seconds: float | None = None,
        *,
        started_at: float | None = None,
        agree: Callable[[float], float] = _alone,
    ) -> None:
        for name, value in (("total_steps", total_steps), ("seconds", seconds)):
            if value is not None and not 0 < value < math.inf:
                raise InputError(f"{name}: {value!r}: must be > 0")
        self.total_steps, self.seconds = total_steps, seconds
        self.started_at = time.monotonic() if started_at is None else started_at
        self.agree = agree
        self._before = 0.0  # seconds used by earlier sessions
        self._start = 0.0  # fraction of the seconds that was gone when training began

    @property
    def has_end(self) -> bool:
        """Whether there is any limit."""
        return self.total_steps is not None or self.seconds is not None

    @property
    def elapsed(self) -> float:
        """Seconds used so far, in all sessions."""
        return self._before + time.monotonic() - self.started_at

    @property
    def started_in(self) -> float:
        """Seconds that were gone when training began, or by now if it has not."""
        return self.elapsed if self.seconds is None else self._start * self.seconds

    def progress(self, step: int) -> float:
        """Fraction of the training that is over after `step` optimizer steps, in [0, 1].

        Where only steps limit the run this depends on nothing else. Start-up and the first step, in which
        code is compiled, use up seconds and yet are no progress: the warm-up belongs to what follows them.
        """
        done = 0.0 if self.total_steps is None else step / self.total_steps
        if self.seconds is not None:
            gone = self.agree(self.elapsed / self.seconds)
            if step <= 1:
                self._start = min(gone, 1.0)
            left = 1.0 - self._start
            done = max(done, (gone - self._start) / left if left > 0 else 1.0)
        return min(done, 1.0)

    def state_dict(self) -> dict[str, float]:
        """Plain data that `load_state_dict` takes."""
        return {"elapsed": self.elapsed, "start": self._start}

    def load_state_dict(self, state: Mapping[str, float]) -> None:
        """Count the seconds of the earlier sessions too."""
        self._before, self._start = state["elapsed"], state["start"]


class WarmupCosine(LRScheduler):
    """Linear warm-up, then half a cosine down to a small fraction, over the progress of the whole run.

    Loshchilov & Hutter, arXiv:1608.03983, without restarts. Its step is the optimizer's step.
    """

    _SAVED = ("last_epoch", "_step_count", "base_lrs", "_last_lr")

    def __init__(
        self,
        optimizer: Optimizer,
        budget: Budget,
        warmup: float = 0.02,
        start: float = 0.05,
        final: float = 0.01,
    ) -> None:
        """`warmup`: share of the run; `start`, `final`: fractions of the learning rate at both ends."""
        if not budget.has_end:
            raise InputError("needs the end of the run: set trainer.max_epochs, max_steps or a time")
        for name, value, most in (("warmup", warmup, 0.999), ("start", start, 1.0), ("final", final, 1.0)):
            if not 0 <= value <= most:
                raise InputError(f"{name}: {value!r}: must be from 0 to {most}")
        self.budget, self.warmup, self.start, self.final = budget, warmup, start, final
        super().__init__(optimizer)

    def factor(self, progress: float) -> float:
        """Fraction of the learning rate at a progress in [0, 1]."""
        if progress < self.warmup:
            return self.start + (1 - self.start) * progress / self.warmup
        angle = math.pi * (progress - self.warmup) / (1 - self.warmup)
        return self.final + (1 - self.final) * 0.5 * (1 + math.cos(angle))

    def get_lr(self) -> list[float | Tensor]:
        """Learning rate of each parameter group."""
        factor = self.factor(self.budget.progress(self.last_epoch))
        return [lr * factor for lr in self.base_lrs]

    def state_dict(self) -> dict[str, object]:
        """Plain data: the step, the learning rates and the time used."""
        own = {name: getattr(self, name) for name in self._SAVED}
        return {**own, "budget": self.budget.state_dict()}

    def load_state_dict(self, state: Mapping[str, object]) -> None:
        """Continue from a saved state; the learning rates themselves are the optimizer's to restore."""
        for name in self._SAVED:
            setattr(self, name, state[name])
        budget = state["budget"]
        assert isinstance(budget, Mapping)
        self.budget.load_state_dict(budget)
