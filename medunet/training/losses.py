"""Losses on every output of a network; which to take when is in docs/losses.md.

All take logits (batch, outputs, *n), or a list of them of falling resolution (deep supervision), and a label: classes
0..K-1 (batch, 1, *n), or a mask 0/1 for each of the outputs (batch, outputs, *n), which are then regions that may
overlap. Classes are read with a softmax, regions and a single output with a sigmoid. Numbers beyond the classes, and 2
in a mask, are voxels nobody annotated: they do not count. All compute in float32 whatever the precision around them.
Overlaps (Dice, Jaccard, Tversky) are those of the whole batch, without background when there are several classes. Where
several processes train, the batch is what all of them hold, and the loss is the same in each.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from monai.losses import FocalLoss, HausdorffDTLoss
from monai.networks.utils import one_hot
from torch import Tensor, nn

from medunet.errors import InputError
from medunet.training.distributed import total

_SMOOTH = 0.5e-5  # voxels that overlap in any case, so that a class that is absent and not predicted costs nothing
_SMALLEST_ERROR = 1e-6  # a power below 1 has no finite slope at 0
_CLASSES = {"include_background": False, "to_onehot_y": True, "softmax": True, "sigmoid": False}
_MASKS = {"include_background": True, "to_onehot_y": False, "softmax": False, "sigmoid": True}
_CERTAIN = 200.0  # a logit whose probability is 1, that of its opposite 0
OF_REGIONS = "DiceCE, DiceBCE, DiceFocal, Tversky, Jaccard, GeneralizedDice or DiceHausdorff"
"""The losses that take regions, for a message."""


class DeepLoss(nn.Module):
    """A loss on each of a network's outputs, weighted 1, 1/2, 1/4, ... normalised to 1.

    Where the first output ends before the label (no padding), the label's middle counts. Each further output meets the
    label sampled (nearest) to its size: a voxel there counts when the one it is sampled from does. Subclasses give
    `term`.

    Raises:
        InputError: (at call) the label has neither one channel nor one per output.
    """

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.classes = int(classes)

    def forward(self, logits: Tensor | Sequence[Tensor], label: Tensor) -> Tensor:
        self.require(label)
        outputs = [logits] if isinstance(logits, Tensor) else list(logits)
        label = _middle(label.float(), outputs[0].shape[2:])
        weights = [0.5**level for level in range(len(outputs))]
        with torch.autocast(outputs[0].device.type, enabled=False):
            terms = [
                weight / sum(weights) * self.counted(output.float(), _sampled(label, output))
                for weight, output in zip(weights, outputs, strict=True)
            ]
        return torch.stack(terms).sum()

    def require(self, label: Tensor) -> None:
        """Refuse a label that this loss cannot read."""
        if label.shape[1] not in (1, self.classes):
            raise InputError(
                f"the label has {label.shape[1]} channels and the network {self.classes} outputs; give classes in one "
                f"channel, or a mask per output"
            )

    def counted(self, logits: Tensor, label: Tensor) -> Tensor:
        """The loss of one output over the annotated voxels: they alone, in a row, are what `term` sees."""
        annotated = self.annotated(label)
        if bool(annotated.all()):
            return self.term(logits, label)
        return self.term(_those(logits, annotated), _those(label, annotated))

    def annotated(self, label: Tensor) -> Tensor:
        """Which voxels (batch, *n) somebody annotated."""
        masks = label.shape[1] == self.classes or self.classes == 1
        return label[:, 0] < (2 if masks else self.classes)

    def term(self, logits: Tensor, label: Tensor) -> Tensor:
        """The loss of one output, float32; the voxels are in any order and number, 0 too where nothing is annotated."""
        raise NotImplementedError


class _Either(nn.Module):
    """One of MONAI's losses, made once to read classes and once to read masks; the label says which it is."""

    def __init__(
        self, kind: Callable[..., nn.Module], classes: dict[str, Any], masks: dict[str, Any], **options: Any
    ) -> None:
        super().__init__()
        self.classes, self.masks = kind(**classes, **options), kind(**masks, **options)

    def forward(self, logits: Tensor, label: Tensor) -> Tensor:
        result: Tensor = (self.masks if _are_masks(logits, label) else self.classes)(logits, label)
        return result


class DiceCE(DeepLoss):
    """The sum of soft Dice loss (Milletari et al. 2016, doi:10.1109/3DV.2016.79) and cross-entropy.

    Of regions the cross-entropy is binary, for each by itself.
    """

    def __init__(self, classes: int, dice_weight: float = 1.0, ce_weight: float = 1.0) -> None:
        super().__init__(classes)
        self.dice_weight, self.ce_weight = float(dice_weight), float(ce_weight)

    def term(self, logits: Tensor, label: Tensor) -> Tensor:
        """The loss of one output."""
        return self.dice_weight * _errors(logits, label).mean() + self.ce_weight * _mean(_entropy(logits, label))


class DiceBCE(DeepLoss):
    """The sum of soft Dice loss and binary cross-entropy of each class against the rest, on the same probabilities.

    Of regions the same as `DiceCE`.
    """

    def __init__(self, classes: int, dice_weight: float = 1.0, bce_weight: float = 1.0) -> None:
        super().__init__(classes)
        self.dice_weight, self.bce_weight = float(dice_weight), float(bce_weight)

    def term(self, logits: Tensor, label: Tensor) -> Tensor:
        """The loss of one output."""
        masks = _are_masks(logits, label)
        target, own = (label, logits) if masks else (one_hot(label, self.classes), against_the_rest(logits))
        entropy = nn.functional.binary_cross_entropy_with_logits(own, target, reduction="none")
        return self.dice_weight * _errors(logits, label).mean() + self.bce_weight * _mean(entropy)


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
        readings = ({"use_softmax": several, "to_onehot_y": several} for several in (True, False))
        self.focal = _Either(FocalLoss, *readings, gamma=float(gamma), alpha=alpha, reduction="none")
        self.dice_weight, self.focal_weight = float(dice_weight), float(focal_weight)

    def term(self, logits: Tensor, label: Tensor) -> Tensor:
        """The loss of one output."""
        result = self.focal_weight * _mean(self.focal(logits, label))
        return result + self.dice_weight * _errors(logits, label).mean() if self.dice_weight else result


class Tversky(DeepLoss):
    """(1 - TP / (TP + alpha FP + beta FN))^power per class (Salehi et al. 2017, doi:10.1007/978-3-319-67389-9_44).

    beta above alpha asks for sensitivity; 0.5 and 0.5 make it Dice. A power below 1 is focal Tversky loss, which looks
    longer at classes that are nearly right; 0.75 in Abraham and Khan 2019 (doi:10.1109/ISBI.2019.8759329).
    """

    def __init__(self, classes: int, alpha: float = 0.3, beta: float = 0.7, power: float = 1.0) -> None:
        super().__init__(classes)
        self.alpha, self.beta, self.power = float(alpha), float(beta), float(power)

    def term(self, logits: Tensor, label: Tensor) -> Tensor:
        """The loss of one output."""
        errors = _errors(logits, label, self.alpha, self.beta)
        return errors.mean() if self.power == 1 else errors.clamp(min=_SMALLEST_ERROR).pow(self.power).mean()


class Jaccard(DeepLoss):
    """Soft Jaccard loss, 1 - intersection over union."""

    def term(self, logits: Tensor, label: Tensor) -> Tensor:
        """The loss of one output."""
        return _errors(logits, label, 1.0, 1.0).mean()


class GeneralizedDice(DeepLoss):
    """Dice loss in which classes count by the inverse square of their volume, background included.

    Source: Sudre et al. 2017 (doi:10.1007/978-3-319-67558-9_28). A class that is absent from a
    batch counts like the rarest one present; where no region has a voxel, each counts like one voxel.
    """

    def term(self, logits: Tensor, label: Tensor) -> Tensor:
        """The loss of one output."""
        hits, predicted, true = _volumes(logits, label, background=True)
        weights = torch.where(true > 0, true.clamp(min=1).pow(-2), 0)
        rarest = weights.max()
        weights = torch.where(true > 0, weights, torch.where(rarest > 0, rarest, 1))
        both = (weights * (predicted + true)).sum()
        return 1 - (2 * (weights * hits).sum() + 2 * _SMOOTH) / (both + 2 * _SMOOTH)


class WeightedCE(DeepLoss):
    """Cross-entropy with a weight per voxel: equation 1 of Ronneberger et al. 2015, as a mean over voxels.

    Shapes: label (batch, 2, *n): classes, and the weights that `BorderWeightsd` appends.

    Raises:
        InputError: (at call) the label has no weights, or regions.
    """

    def require(self, label: Tensor) -> None:
        """Refuse a label without weights."""
        if label.shape[1] > 1 and not label.is_floating_point():
            raise InputError(
                f"the label has {label.shape[1]} regions that may overlap, WeightedCE reads classes; take {OF_REGIONS}"
            )
        if label.shape[1] != 2:
            raise InputError(
                f"the label has {label.shape[1]} channel, WeightedCE needs classes and weights; add "
                f"medunet.training.BorderWeightsd as train::finish (see configs/run/loss_border.yaml)"
            )

    def term(self, logits: Tensor, label: Tensor) -> Tensor:
        """The loss of one output."""
        classes, weights = label[:, :1], label[:, 1:]
        return _mean(weights * _entropy(logits, classes))


class DiceHausdorff(DeepLoss):
    """Soft Dice loss and, for the boundary, the logarithm of the distance-transform estimate of Hausdorff distance.

    Errors count by the squared distance (`alpha` 2) to the boundaries of label and prediction, in voxels (Karimi and
    Salcudean 2020, doi:10.1109/TMI.2019.2930068). Distance transforms run on the CPU, once per class and patch: slow.
    Voxels nobody annotated are background to the distance transforms, in label and prediction alike.
    """

    def __init__(
        self, classes: int, dice_weight: float = 1.0, hausdorff_weight: float = 0.1, alpha: float = 2.0
    ) -> None:
        super().__init__(classes)
        self.hausdorff = _Either(HausdorffDTLoss, _CLASSES, _MASKS, alpha=float(alpha))
        self.dice_weight, self.hausdorff_weight = float(dice_weight), float(hausdorff_weight)

    def counted(self, logits: Tensor, label: Tensor) -> Tensor:
        """The loss of one output over the annotated voxels, which keep their places."""
        annotated = self.annotated(label)
        kept = annotated[:, None]
        outside = logits.new_full((1, logits.shape[1], *(1,) * (logits.ndim - 2)), -_CERTAIN)
        if not _are_masks(logits, label):
            outside[:, 0] = _CERTAIN
        mean: Tensor = self.hausdorff(torch.where(kept, logits, outside), label * kept)
        errors, voxels = total(torch.stack((mean * annotated.numel(), annotated.sum().float())))
        dice = _errors(_those(logits, annotated), _those(label, annotated)).mean()
        return self.dice_weight * dice + self.hausdorff_weight * torch.log(errors / voxels.clamp(min=1) + 1)


def _are_masks(logits: Tensor, label: Tensor) -> bool:
    """Whether a label has a mask per output; one output has one mask."""
    return label.shape[1] == logits.shape[1]


def _volumes(logits: Tensor, label: Tensor, background: bool = False) -> tuple[Tensor, Tensor, Tensor]:
    """Voxels per class: of both, of the prediction, of the label; each as its probability, over all processes."""
    if _are_masks(logits, label):
        probability, target = logits.sigmoid(), label
    else:
        first = 0 if background else 1
        probability, target = logits.softmax(1)[:, first:], one_hot(label, logits.shape[1])[:, first:]
    axes = [0, *range(2, logits.ndim)]
    sums = torch.stack(((probability * target).sum(axes), probability.sum(axes), target.sum(axes)))
    hits, predicted, true = total(sums)
    return hits, predicted, true


def _errors(logits: Tensor, label: Tensor, alpha: float = 0.5, beta: float = 0.5) -> Tensor:
    """1 - TP / (TP + alpha FP + beta FN) per class: of Dice with 1/2 and 1/2, of Jaccard with 1 and 1."""
    hits, predicted, true = _volumes(logits, label)
    errors: Tensor = 1 - (hits + _SMOOTH) / (hits + alpha * (predicted - hits) + beta * (true - hits) + _SMOOTH)
    return errors


def _mean(values: Tensor) -> Tensor:
    """The mean of the values of all processes; 0 where there are none."""
    both = total(torch.stack((values.sum(), values.new_full((), float(values.numel())))))
    return both[0] / both[1].clamp(min=1)


def _entropy(logits: Tensor, label: Tensor) -> Tensor:
    """Cross-entropy of classes (batch, 1, *n), or binary of each mask, per voxel."""
    if _are_masks(logits, label):
        return nn.functional.binary_cross_entropy_with_logits(logits, label, reduction="none")
    return nn.functional.cross_entropy(logits, label[:, 0].long(), reduction="none")[:, None]


def _those(values: Tensor, kept: Tensor) -> Tensor:
    """(batch, channels, *n) and (batch, *n) -> (1, channels, voxels that are kept)."""
    return values.movedim(1, -1)[kept].T[None]


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
