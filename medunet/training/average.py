"""An average of the weights over the last steps: what is validated and kept."""

from __future__ import annotations

import copy
from typing import Any

import torch
from ignite.engine import Engine, Events
from torch import nn

from medunet.errors import BundleError
from medunet.training.checkpoints import plain
from medunet.training.schedule import first_step, total_steps


def twin(network: nn.Module, device: torch.device) -> nn.Module:
    """A copy of a network on `device`, with weights of its own."""
    return copy.deepcopy(network).to(device)


class WeightAverage:
    """Keep in `average` an exponential moving average of the weights of `network`, after every step.

    The average looks back over `share` of the run, and over less while the run is young, so that the first weights are
    soon forgotten: after step t over a ninth of the steps so far, or `share` of them where that is more; its decay is
    1 - 1 / min(share x steps, max((10 + t) / 9, share x t)). Running statistics are averaged likewise, so that they
    belong to the averaged weights; counts are copied.

    Source: Polyak and Juditsky 1992 (doi:10.1137/0330046); the warm-up of the decay is TensorFlow's.

    Args:
        network: what is trained; may be wrapped for several devices.
        average: a network of the same kind, with the same weights before the first step.
        share: of all steps; 0: `average` is always the network itself.
    """

    def __init__(self, network: nn.Module, average: nn.Module, share: float = 0.3) -> None:
        if not 0 <= share < 1:
            raise BundleError(f"the share of a run that weights are averaged over is {share}; give 0 to below 1")
        self.network, self.average, self.share = network, average, float(share)

    def attach(self, engine: Engine) -> None:
        """Register with the trainer."""
        self.average.requires_grad_(False)
        engine.state.average_share = self.share
        engine.add_event_handler(Events.ITERATION_COMPLETED, self)

    def __call__(self, engine: Engine) -> None:
        first = first_step(engine)
        self.update(self.decay(engine.state.iteration - first, total_steps(engine) - first))

    def decay(self, step: int, total: int) -> float:
        """How much of the average is kept at a step counted from 1."""
        horizon = min(self.share * total, max((10 + step) / 9, self.share * step))
        return 0.0 if horizon <= 1 else 1 - 1 / horizon

    @torch.no_grad()
    def update(self, decay: float) -> None:
        """Take the present weights into the average."""
        present: dict[str, Any] = plain(self.network).state_dict()
        for name, kept in self.average.state_dict().items():
            if kept.is_floating_point():
                kept.lerp_(present[name], 1 - decay)
            else:
                kept.copy_(present[name])
