"""The weight map of borders between cells against its definition, and targets whose cells do not touch."""

from __future__ import annotations

import time

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy import ndimage

from medunet.errors import InputError
from medunet.training.border import BorderWeightsd, balance, border_weights, separate


def by_definition(
    instances: np.ndarray, w0: float, sigma: float, spacing: tuple[float, ...], classes: tuple[float, float]
) -> np.ndarray:
    """Equation 2 of the paper, distance by distance."""
    result = np.where(instances > 0, classes[1], classes[0]).astype(float)
    cells = [np.argwhere(instances == n) * spacing for n in np.unique(instances[instances > 0])]
    for place in np.argwhere(instances == 0):
        distances = sorted(np.sqrt(((cell - place * spacing) ** 2).sum(1).min()) for cell in cells)
        if len(distances) > 1:
            result[tuple(place)] += w0 * np.exp(-((distances[0] + distances[1]) ** 2) / (2 * sigma**2))
    return result


def cells(seed: int, shape: tuple[int, ...], count: int) -> np.ndarray:
    """Cells as the nearest of random points, with gaps of background of several widths."""
    draw = np.random.default_rng(seed)
    points = np.stack([draw.integers(0, n, count) for n in shape], axis=1)
    seeds = np.zeros(shape, np.int32)
    seeds[tuple(points.T)] = draw.permutation(np.arange(1, count + 1)) * 7
    distance, nearest = ndimage.distance_transform_edt(seeds == 0, return_indices=True)
    return np.where(distance < draw.uniform(2, 6) * (3 if count > 100 else 1), seeds[tuple(nearest)], 0)


@pytest.mark.parametrize("shape", [(40, 37), (16, 15, 9)])
@pytest.mark.parametrize("spacing", [1.0, 0.7], ids=["isotropic", "anisotropic"])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_the_map_is_the_papers_formula(shape: tuple[int, ...], spacing: float, seed: int) -> None:
    steps = (spacing, *(1.0,) * (len(shape) - 2), 1 / spacing)
    instances = cells(seed, shape, 3 + 4 * seed)
    sigma = (5.0, 2.0, 1.0)[seed]  # with the last, boxes are much smaller than the image
    expected = by_definition(instances, 10.0, sigma, steps, (0.5, 2.0))
    got = border_weights(instances, 10.0, sigma, steps, (0.5, 2.0))
    assert got.dtype == np.float32
    assert np.abs(got - expected).max() < 1e-5
    assert expected.max() > 0.6


def test_small_maps_by_hand() -> None:
    row = np.array([[1, 0, 2]])
    gap = 10 * np.exp(-4 / 50)  # both cells one pixel away
    assert border_weights(row, class_weights=(1.0, 3.0)).tolist() == [[3.0, pytest.approx(1 + gap), 3.0]]
    assert border_weights(np.array([[1, 0, 1]])).tolist() == [[0.75, 1.5, 0.75]]  # one cell: class balance alone
    assert border_weights(row, w0=0.0).tolist() == [[0.75, 1.5, 0.75]]
    assert border_weights(np.zeros((3, 3), int)).tolist() == [[1.0] * 3] * 3
    assert border_weights(np.ones((2, 2), int)).tolist() == [[1.0] * 2] * 2


@given(arrays(bool, (4, 5)))
def test_balanced_weights_have_mean_one(mask: np.ndarray) -> None:
    background, inside = balance(mask)
    assert np.where(mask, inside, background).mean() == pytest.approx(1.0)
    if 0 < mask.sum() < mask.size:
        assert inside * mask.sum() == pytest.approx(background * (~mask).sum())


def test_a_paper_sized_image_takes_less_than_half_a_second() -> None:
    instances = cells(0, (512, 512), 200)
    assert len(np.unique(instances)) > 190
    assert min(_seconds(instances) for _ in range(3)) < 0.5


def _seconds(instances: np.ndarray) -> float:
    start = time.process_time()
    border_weights(instances)
    return time.process_time() - start


@settings(max_examples=60, deadline=None)
@given(
    st.sampled_from([(9, 8), (5, 4, 4)]).flatmap(lambda n: arrays(np.int32, n, elements=st.sampled_from([0, 1, 2, 5])))
)
def test_separated_cells_do_not_touch(instances: np.ndarray) -> None:
    target = separate(instances)
    assert target.dtype == np.uint8
    parts, count = ndimage.label(target, np.ones((3,) * instances.ndim))
    for part in range(1, count + 1):
        assert len(np.unique(instances[parts == part])) == 1
    dropped = (instances > 0) & (target == 0)
    for place in np.argwhere(dropped):
        around = instances[tuple(slice(max(0, p - 1), p + 2) for p in place)]
        assert set(np.unique(around)) - {0, instances[tuple(place)]}  # only where cells touch
    sizes = {n: (instances == n).sum() for n in np.unique(instances[instances > 0])}
    if sizes:
        smallest = max(sizes, key=lambda n: (-sizes[n], n))
        assert (target[instances == smallest] == 1).all()


def test_the_gap_is_one_voxel_and_the_larger_cell_gives_way() -> None:
    assert separate(np.array([[3, 3, 3, 1, 1]] * 2)).tolist() == [[1, 1, 0, 1, 1]] * 2
    assert separate(np.array([[3, 3, 0, 1, 1]] * 2)).tolist() == [[1, 1, 0, 1, 1]] * 2
    assert separate(np.zeros((2, 3), int)).tolist() == [[0, 0, 0]] * 2


@pytest.mark.parametrize("shape", [(24, 20), (12, 10, 8)])
def test_a_label_gets_its_weights_as_second_channel(shape: tuple[int, ...]) -> None:
    label = np.zeros(shape, np.float32)
    label[2:5], label[7:10] = 1, 2
    item = BorderWeightsd()({"image": torch.zeros(1, *shape), "label": torch.from_numpy(label)[None]})
    assert item["label"].shape == (2, *shape)
    assert torch.equal(item["label"][0], torch.from_numpy(label))
    expected = border_weights(np.where(label == 2, 9, label).astype(int))
    assert torch.equal(item["label"][1], torch.from_numpy(expected))
    assert item["label"][1][5].min() > item["label"][1][-1].max()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"instances": np.ones(4, int)}, "1 axes and 1 spacings; give 2 or 3"),
        ({"instances": np.ones((4, 4), int), "spacing": (1, 1, 1)}, "2 axes and 3 spacings"),
        ({"instances": np.ones((4, 4), int), "sigma": 0.0}, "give lengths above 0"),
        ({"instances": -np.ones((4, 4), int)}, "holds -1; give 0 for background"),
    ],
)
def test_maps_that_do_not_fit(arguments: dict[str, object], words: str) -> None:
    with pytest.raises(InputError, match=words):
        border_weights(**arguments)
