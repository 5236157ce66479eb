"""Learning rate per step: linear warm-up, then constant, or cosine or polynomial decay over the whole run."""

from __future__ import annotations

import math
from typing import Any

from ignite.engine import Engine, Events
from torch.optim import Optimizer

from medunet.errors import BundleError

_AGAIN = 0.5  # of the peak, when a finished run is extended: enough to move on, and what was learnt is kept


class Schedule:
    """Set the learning rate before each step; the run's length is read from the trainer, so overrides stay consistent.

    Args:
        optimizer: its parameter groups keep the ratios of their learning rates.
        warmup_steps: steps of linear rise; at most a tenth of the run.
        decay: ``constant``, ``cosine`` to zero (Loshchilov and Hutter 2017), or ``poly`` with power 0.9 (nnU-Net).
    """

    def __init__(self, optimizer: Optimizer, warmup_steps: int = 50, decay: str = "constant") -> None:
        if decay not in ("constant", "cosine", "poly"):
            raise BundleError(f"schedule decay '{decay}' is not known; give constant, cosine or poly")
        self.optimizer, self.warmup_steps, self.decay = optimizer, int(warmup_steps), decay
        self.peaks = [float(group["lr"]) for group in optimizer.param_groups]

    def attach(self, engine: Engine) -> None:
        """Register with the trainer."""
        engine.state.decay, engine.state.learning_rate = self.decay, self.peaks[0]
        engine.add_event_handler(Events.ITERATION_STARTED, self)

    def __call__(self, engine: Engine) -> None:
        first = first_step(engine)
        factor = self.factor(engine.state.iteration - 1 - first, total_steps(engine) - first)
        if first:
            factor *= _AGAIN
        for group, peak in zip(self.optimizer.param_groups, self.peaks, strict=True):
            group["lr"] = peak * factor

    def factor(self, step: int, total: int) -> float:
        """The fraction of the peak learning rate at a step counted from 0."""
        warmup = min(self.warmup_steps, total // 10)
        if step < warmup:
            return (step + 1) / (warmup + 1)
        done = min(1.0, (step - warmup) / max(1, total - warmup))
        if self.decay == "cosine":
            return 0.5 * (1 + math.cos(math.pi * done))
        return (1 - done) ** 0.9 if self.decay == "poly" else 1.0


def first_step(engine: Any) -> int:
    """The step that the schedule begins at: 0, or where a finished run was extended (warm restart, SGDR)."""
    return int(getattr(engine.state, "cycle", 0))


def total_steps(engine: Any) -> int:
    """Steps of the whole run."""
    return int(engine.state.max_epochs) * int(engine.state.epoch_length or 1)
