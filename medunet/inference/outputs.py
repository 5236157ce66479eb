"""What a network's outputs mean: classes of which one holds, or regions that may overlap.

As many outputs as labels (with the background) are classes: soft-max, the most probable one. One output less are
regions, one per label but the background: a sigmoid each, those above one half, later labels over earlier ones.
"""

from __future__ import annotations

import torch
from torch import Tensor

from medunet.errors import NetworkError


def are_classes(outputs: int, labels: int) -> bool:
    """Whether a network's outputs exclude each other.

    Args:
        outputs: the network's channels.
        labels: the plan's labels, with the background.

    Raises:
        NetworkError: they are neither classes nor regions.
    """
    if outputs not in (labels, labels - 1):
        raise NetworkError(
            f"the network has {outputs} outputs and the plan {labels} labels; give it {labels} outputs for classes, or "
            f"{labels - 1} for regions that may overlap"
        )
    return outputs == labels


def probabilities(logits: Tensor, classes: bool) -> Tensor:
    """Probabilities (outputs, ...) of logits, in place."""
    if not classes:
        return logits.sigmoid_()
    logits.sub_(logits.amax(dim=0)).exp_()
    return logits.div_(logits.sum(dim=0))


def decide(probabilities: Tensor, classes: bool) -> Tensor:
    """Label numbers (...) of probabilities (outputs, ...)."""
    if not classes:
        return overlaid(probabilities, 0.5)
    best = probabilities[0].clone()
    winner = torch.zeros(best.shape, dtype=torch.int16, device=best.device)
    for number, candidate in enumerate(probabilities[1:], 1):  # torch's arg-max over the first axis is far slower
        winner.masked_fill_(candidate > best, number)
        torch.maximum(best, candidate, out=best)
    return winner


def overlaid(regions: Tensor, threshold: float) -> Tensor:
    """Label numbers 1.. of regions (n, ...) above a threshold, later ones over earlier ones; 0 elsewhere."""
    label = torch.zeros(regions.shape[1:], dtype=torch.int16, device=regions.device)
    for number, region in enumerate(regions, 1):
        label.masked_fill_(region > threshold, number)
    return label
