"""How good a segmentation probably is: how certain the network was, and which Dice such certainty has meant before.

`Certainty` adds up a case while it is predicted; `Calibration` is fitted once per class on labelled cases that the
network was not trained on, whole and made worse (`degrade`). The expected Dice sorts a batch for human review. It is
an expectation, not a measurement: a network that is sure of a wrong answer is believed.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import torch
from scipy.optimize import minimize
from scipy.special import expit, logit
from torch import Tensor

from medunet.types import FloatArray

Features: TypeAlias = Mapping[str, float]
"""What `Certainty.features` says of one class in one case."""

Scored: TypeAlias = tuple[Features, float | None, bool]
"""Features of a class in one case, its Dice there (None: absent from reference and prediction), and whether the
reference has it."""

QUALITY = "models/quality.json"
"""Where a bundle keeps its calibration; it holds for the weights of the digest that it names."""

FEWEST = 5
"""Cases that a calibration needs; with fewer there is none."""

_EDGE = 1e-4
_LEAST_WEIGHT = 0.02
_RIDGE = np.array([0.001, 0.1, 0.1])


class Certainty:
    """What the probabilities of one case say about each foreground class, added up slab by slab.

    Keeps four numbers per class, whatever the size of the case; neither the order of the slabs nor where they are cut
    matters.

    Args:
        outputs: channels of the probabilities.
        classes: whether they exclude each other, background first; else they are regions without a background.
    """

    def __init__(self, outputs: int, classes: bool) -> None:
        self.outputs, self.classes = int(outputs), classes
        self._sums = torch.zeros((4, self.outputs + (not classes)), dtype=torch.float64)

    def update(self, probabilities: Tensor, labels: Tensor) -> None:
        """Add a slab that overlaps no other.

        Shapes: probabilities (outputs, ...) float32; labels (...) class numbers of the same voxels, not needed of
        regions. On any device that has float64.
        """
        flat = probabilities.detach().reshape(self.outputs, -1)
        if self.classes:
            self._sums += self._tally(flat, labels.reshape(-1))
            return
        for number, region in enumerate(flat, 1):
            self._sums[:, number] += self._tally(torch.stack((1 - region, region)), region > 0.5)[:, 1]

    @staticmethod
    def _tally(flat: Tensor, winners: Tensor) -> Tensor:
        """(4, classes): voxels, probability everywhere, probability and entropy over the voxels that a class won."""
        inside = winners.nonzero()[:, 0]
        won = winners[inside].long()
        values = flat[:, inside]
        chosen, entropy = values.gather(0, won[None])[0], torch.special.entr(values).sum(dim=0)
        count = len(flat)
        overlap, unsure = (torch.bincount(won, weights.double(), minlength=count) for weights in (chosen, entropy))
        mass = flat.sum(dim=1, dtype=torch.float64)
        return torch.stack((torch.bincount(won, minlength=count), mass, overlap, unsure)).cpu()

    @property
    def finite(self) -> bool:
        """Whether all probabilities so far were numbers."""
        return bool(torch.isfinite(self._sums).all())

    def features(self) -> list[dict[str, float]]:
        """Per foreground class, over all slabs so far; all 0 where the class was not found.

        ``voxels``: predicted voxels; ``soft_dice``: 2 sum(p over them) / (sum(p) + voxels), the Dice that the
        probabilities themselves expect (Li et al. 2022, doi:10.1007/978-3-031-16449-1_66); ``probability`` and
        ``entropy`` (in nats, over all classes, or a region and its outside): means over the predicted voxels.
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
    """From two views of a network on itself to the Dice of one class: sigmoid(bias + sum of weight x logit(view)).

    The views are the soft Dice and the mean probability of the predicted voxels. The soft Dice is the better one of a
    well trained network; of one stopped early it drowns in small probabilities all over the background. The data
    choose: a logistic regression on shares (Papke and Wooldridge 1996) with a weak ridge around "half and half, as they
    say", which lets a few equally good cases move the level without flattening the slope. Both weights stay positive:
    more certainty always expects more.

    Args:
        bias, soft_dice, probability: the level, and the weights of the two views.
        cases: how many undegraded cases it rests on.
        always_present: no reference was without the class, so that finding nothing must be wrong.
    """

    bias: float
    soft_dice: float
    probability: float
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
        evidence = np.array([_evidence(features) for features, _ in whole + worse])
        fitted = _regress(evidence, np.array([dice for _, dice in whole + worse]))
        return cls(*fitted, len(whole), all(present for *_, present in cases))

    def expected_dice(self, features: Features) -> float | None:
        """The Dice in [0, 1] to expect of a class with these features.

        Where nothing was found: 0 for a class that is always there, None for one that may rightly be absent.
        """
        if not features["voxels"]:
            return 0.0 if self.always_present else None
        soft_dice, probability = _evidence(features)
        return float(expit(self.bias + self.soft_dice * soft_dice + self.probability * probability))

    def as_json(self) -> dict[str, Any]:
        """Plain values for a JSON file."""
        return asdict(self)

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> Calibration:
        """The calibration that `as_json` described.

        Raises:
            ValueError: a number is none.
        """
        found = cls(**content)
        if not all(math.isfinite(value) for value in (found.bias, found.soft_dice, found.probability)):
            raise ValueError("a calibration of numbers that are none")
        return found


def read_calibrations(bundle: Path, digest: str) -> dict[str, Calibration]:
    """The calibrations of a bundle's classes that have one; none where they are of other weights than `digest`.

    A broken file counts as none.
    """
    try:
        content = json.loads((bundle / QUALITY).read_text(encoding="utf-8"))
        if content["weights"] != digest:
            return {}
        return {name: Calibration.from_json(values) for name, values in content["classes"].items() if values}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return {}


def expected_quality(
    certainty: Sequence[Features], classes: Sequence[str], calibrations: Mapping[str, Calibration]
) -> dict[str, dict[str, float | None]]:
    """Certainty of each class but the background, with its ``expected_dice`` (None: not calibrated, or not found)."""
    return {
        name: {"expected_dice": calibrations[name].expected_dice(seen) if name in calibrations else None, **seen}
        for name, seen in zip(classes, certainty, strict=False)
    }


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


def _usable(scored: Sequence[Scored]) -> list[tuple[Features, float]]:
    return [(features, dice) for features, dice, _ in scored if dice is not None and features["voxels"]]


def _evidence(features: Features) -> tuple[float, float]:
    soft_dice, probability = logit(np.clip([features["soft_dice"], features["probability"]], _EDGE, 1 - _EDGE))
    return float(soft_dice), float(probability)


def _regress(evidence: FloatArray, dice: FloatArray) -> tuple[float, float, float]:
    """Bias and two weights that minimise the cross-entropy of the expected with the real Dice; convex, so unique."""

    def loss(values: FloatArray) -> tuple[float, FloatArray]:
        score = values[0] + evidence @ values[1:]
        error, away = expit(score) - dice, (values - start) * _RIDGE
        gradient = np.concatenate(([error.sum()], error @ evidence)) + away
        return float((np.logaddexp(0, score) - dice * score).sum() + (values - start) @ away / 2), gradient

    start = np.array([0.0, 0.5, 0.5])
    bounds = [(None, None), (_LEAST_WEIGHT, None), (_LEAST_WEIGHT, None)]
    bias, soft_dice, probability = minimize(loss, start, jac=True, bounds=bounds, method="L-BFGS-B").x.tolist()
    return bias, soft_dice, probability
