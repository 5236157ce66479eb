"""Dice + cross-entropy, on every output of a deeply supervised network."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from monai.losses import DiceCELoss
from torch import Tensor, nn


class DiceCE(nn.Module):
    """The sum of soft Dice loss (Milletari et al. 2016, doi:10.1109/3DV.2016.79) and cross-entropy.

    Dice is computed over the whole batch and without background when there are several classes. A list of outputs of
    falling resolution (deep supervision) is weighted 1, 1/2, 1/4, ... normalised to 1, each against the label sampled
    (nearest) to its size.

    Shapes: logits (batch, classes, *n) or a list of them; label (batch, 1, *n) with classes 0..K-1.
    """

    def __init__(self, classes: int, dice_weight: float = 1.0, ce_weight: float = 1.0) -> None:
        super().__init__()
        self.single = DiceCELoss(
            include_background=classes == 1,
            to_onehot_y=classes > 1,
            softmax=classes > 1,
            sigmoid=classes == 1,
            batch=True,
            lambda_dice=float(dice_weight),
            lambda_ce=float(ce_weight),
        )

    def forward(self, logits: Tensor | Sequence[Tensor], label: Tensor) -> Tensor:
        outputs = [logits] if isinstance(logits, Tensor) else list(logits)
        weights = [0.5**level for level in range(len(outputs))]
        terms = [
            weight / sum(weights) * self.single(output.float(), _sampled(label, output))
            for weight, output in zip(weights, outputs, strict=True)
        ]
        return torch.stack(terms).sum()


def _sampled(label: Tensor, output: Tensor) -> Tensor:
    label = label.float()
    if label.shape[2:] == output.shape[2:]:
        return label
    return nn.functional.interpolate(label, size=output.shape[2:], mode="nearest-exact")
