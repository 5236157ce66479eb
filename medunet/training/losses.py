"""Losses on every output of a network; which to take when is in docs/losses.md.

All take logits (batch, classes, *n), one class being read with a sigmoid and several with a softmax, or a list of them
of falling resolution (deep supervision), and a label (batch, 1, *n) with classes 0..K-1. All compute in float32
whatever the precision around them. Overlaps (Dice, Jaccard, Tversky) are those of the whole batch, without background
when there are several classes.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from monai.losses import DiceCELoss, DiceLoss, FocalLoss, GeneralizedDiceLoss, LogHausdorffDTLoss, TverskyLoss
from monai.networks.utils import one_hot
from torch import Tensor, nn

from medunet.errors import InputError

_SMALLEST_ERROR = 1e-6  # a power below 1 has no finite slope at 0


class DeepLoss(nn.Module):
    """A loss on each of a network's outputs, weighted 1, 1/2, 1/4, ... normalised to 1.

    Where the first output ends before the label (no padding), the label's middle counts. Each further output meets the
    label sampled (nearest) to its size. Subclasses give `term`.
    """

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.classes = int(classes)

    def forward(self, logits: Tensor | Sequence[Tensor], label: Tensor) -> Tensor:
        outputs = [logits] if isinstance(logits, Tensor) else list(logits)
        label = _middle(label.float(), outputs[0].shape[2:])
        weights = [0.5**level for level in range(len(outputs))]
        with torch.autocast(outputs[0].device.type, enabled=False):
            terms = [
                weight / sum(weights) * self.term(output.float(), _sampled(label, output))
                for weight, output in zip(weights, outputs, strict=True)
            ]
        return torch.stack(terms).sum()

    def term(self, logits: Tensor, label: Tensor) -> Tensor:
        """The loss of one output, float32."""
        raise NotImplementedError

    @property
    def reading(self) -> dict[str, bool]:
        """How MONAI's losses are to read logits and label."""
        several = self.classes > 1
        return {"include_background": not several, "to_onehot_y": several, "softmax": several, "sigmoid": not several}


class DiceCE(DeepLoss):
    """The sum of soft Dice loss (Milletari et al. 2016, doi:10.1109/3DV.2016.79) and cross-entropy."""

    def __init__(self, classes: int, dice_weight: float = 1.0, ce_weight: float = 1.0) -> None:
        super().__init__(classes)
        weights = {"lambda_dice": float(dice_weight), "lambda_ce": float(ce_weight)}
        self.single = DiceCELoss(**self.reading, batch=True, **weights)

    def term(self, logits: Tensor, label: Tensor) -> Tensor:
        """The loss of one output."""
        result: Tensor = self.single(logits, label)
        return result


class DiceBCE(DeepLoss):
    """The sum of soft Dice loss and binary cross-entropy of each class against the rest, on the same probabilities."""

    def __init__(self, classes: int, dice_weight: float = 1.0, bce_weight: float = 1.0) -> None:
        super().__init__(classes)
        self.dice = DiceLoss(**self.reading, batch=True)
        self.dice_weight, self.bce_weight = float(dice_weight), float(bce_weight)

    def term(self, logits: Tensor, label: Tensor) -> Tensor:
        """The loss of one output."""
        target = label if self.classes == 1 else one_hot(label, self.classes)
        entropy = nn.functional.binary_cross_entropy_with_logits(against_the_rest(logits), target)
        result: Tensor = self.dice_weight * self.dice(logits, label)
        return result + self.bce_weight * entropy


class DiceFocal(DeepLoss):
    """`dice_weight` times soft Dice loss and `focal_weight` times focal loss.

    Focal loss (Lin et al. 2017, doi:10.1109/ICCV.2017.324) is cross-entropy in which a voxel counts by (1 - p)^gamma,
    p the probability of its class: easy voxels hardly count. `alpha` weighs the classes, background included; all alike
    when not given.
    """

    def __init__(
        self,
        classes: int,
        dice_weight: float = 1.0,
        focal_weight: float = 1.0,
        gamma: float = 2.0,
        alpha: float | Sequence[float] | None = None,
    ) -> None:
        super().__init__(classes)
        self.dice = DiceLoss(**self.reading, batch=True)
        several = self.classes > 1
        self.focal = FocalLoss(gamma=float(gamma), alpha=alpha, use_softmax=several, to_onehot_y=several)
        self.dice_weight, self.focal_weight = float(dice_weight), float(focal_weight)

    def term(self, logits: Tensor, label: Tensor) -> Tensor:
        """The loss of one output."""
        result: Tensor = self.focal_weight * self.focal(logits, label)
        return result + self.dice_weight * self.dice(logits, label) if self.dice_weight else result


class Tversky(DeepLoss):
    """(1 - TP / (TP + alpha FP + beta FN))^power per class (Salehi et al. 2017, doi:10.1007/978-3-319-67389-9_44).

    beta above alpha asks for sensitivity; 0.5 and 0.5 make it Dice. A power below 1 is focal Tversky loss, which looks
    longer at classes that are nearly right; 0.75 in Abraham and Khan 2019 (doi:10.1109/ISBI.2019.8759329).
    """

    def __init__(self, classes: int, alpha: float = 0.3, beta: float = 0.7, power: float = 1.0) -> None:
        super().__init__(classes)
        self.single = TverskyLoss(**self.reading, alpha=float(alpha), beta=float(beta), batch=True, reduction="none")
        self.power = float(power)

    def term(self, logits: Tensor, label: Tensor) -> Tensor:
        """The loss of one output."""
        errors: Tensor = self.single(logits, label)
        return errors.mean() if self.power == 1 else errors.clamp(min=_SMALLEST_ERROR).pow(self.power).mean()


class Jaccard(DeepLoss):
    """Soft Jaccard loss, 1 - intersection over union."""

    def __init__(self, classes: int) -> None:
        super().__init__(classes)
        self.single = DiceLoss(**self.reading, batch=True, jaccard=True)

    def term(self, logits: Tensor, label: Tensor) -> Tensor:
        """The loss of one output."""
        result: Tensor = self.single(logits, label)
        return result


class GeneralizedDice(DeepLoss):
    """Dice loss in which classes count by the inverse square of their volume, background included.

    Source: Sudre et al. 2017 (doi:10.1007/978-3-319-67558-9_28). A class that is absent from a
    batch counts like the rarest one present.
    """

    def __init__(self, classes: int) -> None:
        super().__init__(classes)
        self.single = GeneralizedDiceLoss(**{**self.reading, "include_background": True}, batch=True)

    def term(self, logits: Tensor, label: Tensor) -> Tensor:
        """The loss of one output."""
        result: Tensor = self.single(logits, label)
        return result


class WeightedCE(DeepLoss):
    """Cross-entropy with a weight per voxel: equation 1 of Ronneberger et al. 2015, as a mean over voxels.

    Shapes: label (batch, 2, *n): classes, and the weights that `BorderWeightsd` appends.

    Raises:
        InputError: (at call) the label has no weights.
    """

    def term(self, logits: Tensor, label: Tensor) -> Tensor:
        """The loss of one output."""
        if label.shape[1] != 2:
            raise InputError(
                f"the label has {label.shape[1]} channel, WeightedCE needs classes and weights; add "
                f"medunet.training.BorderWeightsd as train::finish (see configs/run/loss_border.yaml)"
            )
        classes, weights = label[:, :1], label[:, 1]
        if self.classes == 1:
            entropy = nn.functional.binary_cross_entropy_with_logits(logits, classes, reduction="none")[:, 0]
        else:
            entropy = nn.functional.cross_entropy(logits, classes[:, 0].long(), reduction="none")
        return (weights * entropy).mean()


class DiceHausdorff(DeepLoss):
    """Soft Dice loss and, for the boundary, the logarithm of the distance-transform estimate of Hausdorff distance.

    Errors count by the squared distance (`alpha` 2) to the boundaries of label and prediction, in voxels (Karimi and
    Salcudean 2020, doi:10.1109/TMI.2019.2930068). Distance transforms run on the CPU, once per class and patch: slow.
    """

    def __init__(
        self, classes: int, dice_weight: float = 1.0, hausdorff_weight: float = 0.1, alpha: float = 2.0
    ) -> None:
        super().__init__(classes)
        self.dice = DiceLoss(**self.reading, batch=True)
        self.hausdorff = LogHausdorffDTLoss(**self.reading, alpha=float(alpha))
        self.dice_weight, self.hausdorff_weight = float(dice_weight), float(hausdorff_weight)

    def term(self, logits: Tensor, label: Tensor) -> Tensor:
        """The loss of one output."""
        result: Tensor = self.dice_weight * self.dice(logits, label)
        result += self.hausdorff_weight * self.hausdorff(logits, label)
        return result


def against_the_rest(logits: Tensor) -> Tensor:
    """Logits whose sigmoid is each class's softmax probability: z_k - log of the sum of exp(z) over the others.

    Shapes: (batch, classes, *n) -> the same; a single class is already so.
    """
    classes = logits.shape[1]
    if classes == 1:
        return logits
    rest = [
        torch.logsumexp(torch.cat((logits[:, :k], logits[:, k + 1 :]), dim=1), dim=1, keepdim=True)
        for k in range(classes)
    ]
    return logits - torch.cat(rest, dim=1)


def _middle(label: Tensor, size: Sequence[int]) -> Tensor:
    """The middle of a label, as large as the output of a network without padding."""
    for axis, n in enumerate(size, 2):
        if label.shape[axis] > n:
            label = label.narrow(axis, (label.shape[axis] - n) // 2, n)
    return label


def _sampled(label: Tensor, output: Tensor) -> Tensor:
    if label.shape[2:] == output.shape[2:]:
        return label
    return nn.functional.interpolate(label, size=output.shape[2:], mode="nearest-exact")
