"""What keeps a run from going astray, and says so where it did."""

from __future__ import annotations

import torch
from ignite.engine import Engine, Events
from torch import Tensor
from torch.optim import Optimizer

from medunet.errors import BundleError, TrainingError


class Guards:
    """Shorten gradients whose norm over all weights exceeds `clip`, and end a run that is not of numbers any more.

    Both act on the gradients in the optimiser, behind the unscaling of mixed precision, which passes over steps that
    overflow and halves its scale: one such step leaves the weights as they were and ends nothing, a scale below 1 says
    that none was of numbers. Loss and gradients are looked at after every step on the CPU, on other devices and with a
    scale after every epoch and when the run ends within one, before a checkpoint is written.

    Args:
        clip: largest norm (nnU-Net: 12); 0: gradients stay as they are.

    Raises:
        TrainingError: (while training) the loss, or a gradient that the weights were changed by, is not finite.
    """

    def __init__(self, optimizer: Optimizer, clip: float = 12.0) -> None:
        if not clip >= 0:
            raise BundleError(f"clip, the largest norm of the gradients, is {clip}; give 0 (none) or more")
        self.optimizer, self.clip = optimizer, float(clip)
        self._broken: dict[str, Tensor] = {}

    def attach(self, engine: Engine) -> None:
        """Register with the trainer; before the handler of checkpoints."""
        engine.state.clip = self.clip
        self.optimizer.register_step_pre_hook(self._before_step)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self._after_step)
        engine.add_event_handler(Events.EPOCH_COMPLETED, self._require_finite)
        engine.add_event_handler(Events.COMPLETED, self._require_finite)

    def _before_step(self, optimizer: Optimizer, *args: object) -> None:
        """Shorten the gradients; an optimiser that unscales them itself (``fused``) has them longer by its scale."""
        weights = [w for group in optimizer.param_groups for w in group["params"] if w.grad is not None]
        norm = torch.nn.utils.get_total_norm([weight.grad for weight in weights])
        scale = getattr(optimizer, "grad_scale", None)
        if self.clip > 0:
            limit = self.clip if scale is None else self.clip * float(scale)
            torch.nn.utils.clip_grads_with_norm_(weights, limit, norm)
        if getattr(optimizer, "found_inf", None) is None:  # else it passes over such a step itself
            self._note("gradient", norm)

    def _after_step(self, engine: Engine) -> None:
        self._note("loss", engine.state.output["loss"].detach())
        if self._broken["loss"].device.type == "cpu" and _scale(engine) is None:
            self._require_finite(engine)

    def _note(self, what: str, value: Tensor) -> None:
        broken, before = ~torch.isfinite(value).all(), self._broken.get(what)
        self._broken[what] = broken if before is None else before | broken

    def _require_finite(self, engine: Engine) -> None:
        broken = [name for name in ("loss", "gradient") if name in self._broken and bool(self._broken[name])]
        scale = _scale(engine)
        if scale is not None:
            if broken == ["loss"] and self._has_numbers():
                broken = []
                self._broken.clear()
            if scale < 1:
                broken.append("gradient")
        if broken:
            raise TrainingError(
                f"step {engine.state.iteration}: the {broken[0]} is not a number, the checkpoints are from before; "
                f"train on with --resume and a smaller learning rate (--set optimizer::lr=...; with --fold all begin "
                f"anew with it), or without amp; broken in its first epoch, a run has no checkpoint: train without "
                f"--resume then"
            )

    def _has_numbers(self) -> bool:
        weights = (weight for group in self.optimizer.param_groups for weight in group["params"])
        return all(bool(torch.isfinite(weight).all()) for weight in weights)


def _scale(engine: Engine) -> float | None:
    """Of the loss in mixed precision; None without one (MONAI makes one everywhere, which is off without CUDA)."""
    scaler = getattr(engine, "scaler", None)
    return float(scaler.get_scale()) if scaler is not None and scaler.is_enabled() else None
