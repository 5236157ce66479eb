"""Certainty does not depend on how a case is cut; calibration is monotone, bounded, and refuses too few cases."""

from __future__ import annotations

import json
import math
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from medunet.inference.quality import Calibration, Certainty, Scored, degrade


def soft(classes: int, shape: tuple[int, ...], seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn((classes, *shape), generator=generator).mul(2).softmax(0)


def features_of(probabilities: torch.Tensor, labels: torch.Tensor) -> list[dict[str, float]]:
    certainty = Certainty(len(probabilities), classes=len(probabilities) > 1)
    certainty.update(probabilities, labels)
    return certainty.features()


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 4), st.lists(st.integers(1, 8), max_size=4), st.permutations(range(5)))
def test_slabs_in_any_split_and_order_give_the_same(classes: int, cuts: list[int], order: list[int]) -> None:
    whole = soft(max(2, classes), (9, 4, 3), seed=classes)
    whole, labels = (whole[1:], (whole[1] > 0.5).int()) if classes == 1 else (whole, whole.argmax(0))
    edges = [0, *sorted(set(cuts)), 9]
    slabs = list(pairwise(edges))
    certainty = Certainty(classes, classes=classes > 1)
    for number in sorted(range(len(slabs)), key=lambda n: order[n]):
        start, stop = slabs[number]
        certainty.update(whole[:, start:stop], labels[start:stop])
    for ours, expected in zip(certainty.features(), features_of(whole, labels), strict=True):
        assert ours == pytest.approx(expected, rel=1e-6)


def test_a_small_case_by_hand() -> None:
    probabilities = torch.tensor([[0.7, 0.2, 0.4], [0.2, 0.8, 0.0], [0.1, 0.0, 0.6]])
    first, second = features_of(probabilities, torch.tensor([0, 1, 2]))
    assert first["voxels"] == 1
    assert second["probability"] == pytest.approx(0.6)
    assert first["soft_dice"] == pytest.approx(2 * 0.8 / (1.0 + 1))
    assert second["soft_dice"] == pytest.approx(2 * 0.6 / (0.7 + 1))
    assert second["entropy"] == pytest.approx(-0.6 * math.log(0.6) - 0.4 * math.log(0.4))


def test_one_output_is_the_second_of_two_classes() -> None:
    foreground = soft(2, (5, 4, 3))[1:]
    labels = (foreground[0] > 0.5).int()
    (one,) = features_of(foreground, labels)
    (two,) = features_of(torch.cat((1 - foreground, foreground)), labels)
    assert one == pytest.approx(two)


def test_perfect_certainty_has_soft_dice_one() -> None:
    labels = torch.arange(60).reshape(5, 4, 3) % 3
    probabilities = torch.nn.functional.one_hot(labels, 3).permute(3, 0, 1, 2).float()
    for features in features_of(probabilities, labels):
        assert (features["soft_dice"], features["entropy"]) == (1, 0)


def test_soft_dice_is_the_expected_dice_of_probabilities_that_are_right() -> None:
    """When every voxel is foreground with its probability, Dice against such references has the soft Dice as mean."""
    foreground = soft(2, (20, 20, 10))[1:]
    labels = foreground[0] > 0.5
    generator = torch.Generator().manual_seed(1)
    dices = []
    for _ in range(20):
        reference = torch.rand(labels.shape, generator=generator) < foreground[0]
        dices.append(float(2 * (labels & reference).sum() / (labels.sum() + reference.sum())))
    assert features_of(foreground, labels.int())[0]["soft_dice"] == pytest.approx(np.mean(dices), abs=0.005)


def test_an_empty_class_has_finite_features() -> None:
    (features,) = features_of(torch.tensor([[1.0, 1.0], [0.0, 0.0]]), torch.tensor([0, 0]))
    assert all(value == 0 for value in features.values())


def scored(soft_dice: float, dice: float | None, present: bool | None = None) -> Scored:
    features = {"voxels": 0.0 if dice is None else 100.0, "soft_dice": soft_dice, "probability": soft_dice}
    return features, dice, dice is not None if present is None else present


def good_and_degraded(count: int, seed: int = 0) -> tuple[list[Any], list[Any]]:
    """Validation cases around Dice 0.87 and the same ones made worse, whose soft Dice is too hopeful."""
    rng = np.random.default_rng(seed)
    good = [scored(0.94 + 0.01 * rng.standard_normal(), 0.87 + 0.02 * rng.standard_normal()) for _ in range(count)]
    worse = [scored(x, 1.8 * x - 0.8 + 0.03 * rng.standard_normal()) for x in rng.uniform(0.75, 0.93, count)]
    return good, worse


@pytest.mark.parametrize("count", [5, 8, 50])
@pytest.mark.parametrize("seed", range(5))
def test_expected_dice_is_monotone_bounded_and_right_where_it_was_fitted(count: int, seed: int) -> None:
    good, worse = good_and_degraded(count, seed)
    calibration = Calibration.fit(good, worse)
    assert calibration is not None
    expected = [calibration.expected_dice(scored(x, 1)[0]) for x in np.linspace(0, 1, 200)]
    assert all(0 <= value <= 1 for value in expected)
    assert all(low <= high for low, high in pairwise(expected))
    assert expected[0] < 0.01 < 0.99 < expected[-1]
    assert calibration.expected_dice(scored(0.94, 1)[0]) == pytest.approx(0.87, abs=0.03)
    assert calibration.expected_dice(scored(0.80, 1)[0]) == pytest.approx(0.64, abs=0.06)


def test_good_cases_alone_move_the_level_and_keep_the_slope() -> None:
    calibration = Calibration.fit(good_and_degraded(8)[0])
    assert calibration is not None
    assert calibration.soft_dice + calibration.probability == pytest.approx(1, abs=0.3)
    assert calibration.expected_dice(scored(0.94, 1)[0]) == pytest.approx(0.87, abs=0.02)


@pytest.mark.parametrize("pair", [(0.94, 0.87), (1.0, 1.0), (0.5, 0.0), (0.0, 0.0)])
def test_constant_features_and_extreme_dice_are_finite(pair: tuple[float, float]) -> None:
    calibration = Calibration.fit([scored(*pair)] * 6)
    assert calibration is not None
    assert math.isfinite(calibration.bias)
    assert math.isfinite(calibration.soft_dice + calibration.probability)
    assert calibration.expected_dice(scored(*pair)[0]) == pytest.approx(pair[1], abs=0.02)


def test_the_weights_stay_positive_where_the_data_say_otherwise() -> None:
    calibration = Calibration.fit([scored(x, 1 - x) for x in np.linspace(0.1, 0.9, 20)])
    assert calibration is not None
    assert min(calibration.soft_dice, calibration.probability) > 0


def test_the_view_that_tells_the_cases_apart_gets_the_weight() -> None:
    """As in a network stopped early, whose soft Dice is nearly the same and wrong in all cases."""
    dices = np.linspace(0.2, 0.9, 12)
    cases = [({"voxels": 9.0, "soft_dice": 0.3 - 0.02 * x, "probability": 0.5 + 0.3 * x}, x, True) for x in dices]
    calibration = Calibration.fit(cases)
    assert calibration is not None
    assert calibration.probability > 4 * calibration.soft_dice
    expected = [calibration.expected_dice(features) for features, *_ in cases]
    assert expected == pytest.approx(dices, abs=0.1)


def test_too_few_cases_are_not_calibrated() -> None:
    good, worse = good_and_degraded(20)
    assert Calibration.fit(good[:4], worse) is None
    assert Calibration.fit([*good[:4], scored(0, None)], worse) is None
    assert Calibration.fit(good[:5]) is not None


def test_nothing_found_is_wrong_only_for_a_class_that_is_always_there() -> None:
    good, worse = good_and_degraded(6)
    always, sometimes = Calibration.fit(good, worse), Calibration.fit([*good, scored(0, None)], worse)
    assert always is not None
    assert sometimes is not None
    assert always.expected_dice(scored(0, None)[0]) == 0
    assert sometimes.expected_dice(scored(0, None)[0]) is None
    found_falsely = Calibration.fit([*good, scored(0.3, 0.0, present=False)], worse)
    assert found_falsely is not None
    assert found_falsely.expected_dice(scored(0, None)[0]) is None


def test_calibration_survives_json() -> None:
    calibration = Calibration.fit(*good_and_degraded(6))
    assert calibration is not None
    assert Calibration.from_json(json.loads(json.dumps(calibration.as_json()))) == calibration


@pytest.mark.parametrize("shape", [(1, 9, 8, 7), (2, 9, 8, 1)])
@pytest.mark.parametrize("number", [0, 1])
def test_degrading_keeps_the_shape_and_can_be_repeated(shape: tuple[int, ...], number: int) -> None:
    image = torch.randn(shape, generator=torch.Generator().manual_seed(5))
    worse = degrade(image, number)
    assert worse.shape == image.shape
    assert not torch.equal(worse, image)
    assert torch.equal(worse, degrade(image, number))
    assert bool((degrade(torch.ones(shape), number) == 1).all())
