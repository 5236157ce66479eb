"""How good a segmentation probably is: how certain the network was, and which Dice such certainty has meant before.

`Certainty` adds up a case while it is predicted; `Calibration` is fitted once per class on labelled cases that the
network was not trained on, whole and made worse (`degrade`). The expected Dice sorts a batch for human review. It is
an expectation, not a measurement: a network that is sure of a wrong answer is believed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, TypeAlias

import numpy as np
import torch
from scipy.optimize import minimize
from scipy.special import expit, logit
from torch import Tensor

from medunet.types import FloatArray

Features: TypeAlias = Mapping[str, float]
"""What `Certainty.features` says of one class in one case."""

Scored: TypeAlias = tuple[Features, float | None]
"""Features of a class in one case, and its Dice there (None: absent from reference and prediction)."""

FEWEST = 5
"""Cases that a calibration needs; with fewer there is none."""

_LEAST_SLOPE, _RIDGE, _EDGE = 0.1, 0.1, 1e-4


class Certainty:
    """What the probabilities of one case say about each foreground class, added up slab by slab.

    Keeps four numbers per class, whatever the size of the case; neither the order of the slabs nor where they are cut
    matters.

    Args:
        classes: channels of the probabilities, background first; 1 for the foreground probability of a network with
            one output.
    """

    def __init__(self, classes: int) -> None:
        self.classes = int(classes)
        self._sums = torch.zeros((4, max(2, self.classes)), dtype=torch.float64)

    def update(self, probabilities: Tensor, labels: Tensor) -> None:
        """Add a slab that overlaps no other.

        Shapes: probabilities (classes, ...) float32 that sum to one, or (1, ...) of the foreground; labels (...) class
        numbers of the same voxels. On any device that has float64.
        """
        flat = probabilities.detach().reshape(self.classes, -1)
        if self.classes == 1:
            flat = torch.cat((1 - flat, flat))
        winners = labels.reshape(-1)
        inside = winners.nonzero()[:, 0]
        won = winners[inside].long()
        chosen = torch.zeros(won.shape, dtype=torch.float64, device=won.device)
        entropy = torch.zeros_like(chosen)
        for number, channel in enumerate(flat):
            values = channel[inside].double()
            entropy += torch.special.entr(values)
            chosen = torch.where(won == number, values, chosen)
        count = len(flat)
        overlap, unsure = (torch.bincount(won, weights, minlength=count) for weights in (chosen, entropy))
        mass = flat.sum(dim=1).double()
        self._sums += torch.stack((torch.bincount(won, minlength=count), mass, overlap, unsure)).cpu()

    def features(self) -> list[dict[str, float]]:
        """Per foreground class, over all slabs so far; all 0 where the class was not found.

        ``voxels``: predicted voxels; ``soft_dice``: 2 sum(p over them) / (sum(p) + voxels), the Dice that the
        probabilities themselves expect (Li et al. 2022, doi:10.1007/978-3-031-16449-1_66); ``probability`` and
        ``entropy`` (in nats, over all classes): means over the predicted voxels.
        """
        return [_features(*sums) for sums in self._sums[:, 1:].T.tolist()]


def _features(voxels: float, mass: float, overlap: float, entropy: float) -> dict[str, float]:
    divisor = max(voxels, 1.0)
    return {
        "voxels": voxels,
        "soft_dice": 2 * overlap / (divisor + mass),
        "probability": overlap / divisor,
        "entropy": entropy / divisor,
    }


@dataclass(frozen=True)
class Calibration:
    """From the soft Dice of one class to the Dice to expect: sigmoid(bias + slope x logit(soft Dice)).

    This is a logistic regression on shares (Papke and Wooldridge 1996). A weak ridge around slope 1, "as the soft Dice
    says", lets a few equally good cases move the level without flattening the slope, and the slope stays positive: more
    certainty always expects more.

    Args:
        cases: how many undegraded cases it rests on.
        always_present: none of them was without the class, so that finding nothing must be wrong.
    """

    bias: float
    slope: float
    cases: int
    always_present: bool

    @classmethod
    def fit(cls, cases: Sequence[Scored], degraded: Sequence[Scored] = ()) -> Calibration | None:
        """Fit one class on labelled cases that the network was not trained on, and on the same cases degraded.

        Without `degraded`, where all cases are good, the ranking is the same but bad cases are expected too good.
        None, "not calibrated", when the class was found and scored in fewer than `FEWEST` cases.
        """
        whole, worse = _usable(cases), _usable(degraded)
        if len(whole) < FEWEST:
            return None
        table = np.array(whole + worse)
        bias, slope = _regress(_evidence(table[:, 0]), table[:, 1])
        return cls(bias, slope, len(whole), all(dice is not None for _, dice in cases))

    def expected_dice(self, features: Features) -> float | None:
        """The Dice in [0, 1] to expect of a class with these features.

        Where nothing was found: 0 for a class that is always there, None for one that may rightly be absent.
        """
        if not features["voxels"]:
            return 0.0 if self.always_present else None
        return float(expit(self.bias + self.slope * _evidence(features["soft_dice"])))

    def as_json(self) -> dict[str, Any]:
        """Plain values for a JSON file."""
        return asdict(self)

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> Calibration:
        """The calibration that `as_json` described."""
        return cls(**content)


def degrade(image: Tensor, number: int) -> Tensor:
    """A preprocessed (normalised) image made worse, as calibration needs it: noise, or a quarter of the resolution.

    Even numbers give noise with 1.5 times the image's standard deviation, odd ones the resolution; the same number
    gives the same image again. Number the validation cases 0, 1, 2, ... and degrade each once.

    Shapes: (channels, x, y, z) -> the same
    """
    if number % 2 == 0:
        generator = torch.Generator().manual_seed(number)
        noise = torch.randn(image.shape, generator=generator).to(image)
        return image + 1.5 * image.std() * noise
    shape = image.shape[1:]
    small = torch.nn.functional.interpolate(image[None], size=[max(1, n // 4) for n in shape], mode="area")
    return torch.nn.functional.interpolate(small, size=shape, mode="trilinear")[0]


def _usable(scored: Sequence[Scored]) -> list[tuple[float, float]]:
    return [(features["soft_dice"], dice) for features, dice in scored if dice is not None and features["voxels"]]


def _evidence(soft_dice: Any) -> Any:
    return logit(np.clip(soft_dice, _EDGE, 1 - _EDGE))


def _regress(evidence: FloatArray, dice: FloatArray) -> tuple[float, float]:
    """Bias and slope that minimise the cross-entropy of sigmoid(bias + slope x evidence) with `dice`; convex."""

    def loss(values: FloatArray) -> tuple[float, FloatArray]:
        score = values[0] + values[1] * evidence
        error, away = expit(score) - dice, values[1] - 1
        penalty = _RIDGE / 2 * (away**2 + 0.01 * values[0] ** 2)
        gradient = np.array([error.sum() + 0.01 * _RIDGE * values[0], error @ evidence + _RIDGE * away])
        return float((np.logaddexp(0, score) - dice * score).sum() + penalty), gradient

    found = minimize(loss, np.array([0.0, 1.0]), jac=True, bounds=[(None, None), (_LEAST_SLOPE, None)]).x
    return float(found[0]), float(found[1])
