"""Measures of membrane segmentation: small cases by hand, other implementations, and topology as it is defined."""

from __future__ import annotations

import time
from collections.abc import Callable
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from PIL import Image
from scipy import ndimage
from skimage.metrics import adapted_rand_error, variation_of_information

from medunet.errors import InputError
from medunet.evaluation import em

_FOUR = np.array([[0, 1, 0], [1, 1, 1], [0, 1, 0]])
_EIGHT = np.ones((3, 3), dtype=int)

masks = arrays(bool, st.tuples(st.integers(3, 12), st.integers(3, 12)))


def drawing(*rows: str) -> np.ndarray:
    """Cells are '#', membranes are '.'."""
    return np.array([[letter == "#" for letter in row] for row in rows])


TWO_CELLS = drawing("###.###", "###.###", "###.###")
MERGED = drawing("###.###", "#######", "###.###")
MOVED = drawing("####.##", "####.##", "####.##")


def blobs(seed: int, size: int) -> np.ndarray:
    """Cells with thin membranes between them."""
    noise = ndimage.gaussian_filter(np.random.default_rng(seed).standard_normal((size, size)), 3)
    return np.abs(noise) > 0.015


def test_pixel_errors_by_hand() -> None:
    # 18 cell pixels each; MOVED loses one column (3) and gains one (3)
    assert em.pixel_error(MOVED, TWO_CELLS) == pytest.approx(1 - 2 * 15 / 36)
    assert em.pixel_disagreement(MOVED, TWO_CELLS) == pytest.approx(6 / 21)
    assert em.pixel_error(TWO_CELLS, TWO_CELLS) == 0.0
    assert em.pixel_error(np.zeros((2, 2), bool), np.zeros((2, 2), bool)) == 0.0


def test_rand_error_by_hand() -> None:
    # Reference: two cells of 9, 2 * 36 pairs. Merged: 18 of these pixels together, 153 pairs. In both: 72.
    assert em.rand_error(MERGED, TWO_CELLS) == pytest.approx(1 - 2 * 72 / (72 + 153))
    # A pixel that only the candidate calls membrane is in no pair: MOVED has 9 and 6 pixels of 9 and 9.
    assert em.rand_error(MOVED, TWO_CELLS) == pytest.approx(1 - 2 * (36 + 15) / (36 + 15 + 72))
    assert em.rand_error(TWO_CELLS, TWO_CELLS) == 0.0


def test_split_and_merge_scores_by_hand() -> None:
    # Merged: p = (1/2, 1/2), t = (1/2, 1/2), s = (1)
    assert em.v_rand(MERGED, TWO_CELLS) == em.SplitMerge(1.0, 0.5)
    assert em.v_rand(MERGED, TWO_CELLS).f_score == pytest.approx(2 / 3)
    assert em.v_info(MERGED, TWO_CELLS) == em.SplitMerge(1.0, 0.0)
    assert em.v_info(MERGED, TWO_CELLS).f_score == 0.0
    # Split in two equal parts: the other way round
    halves = np.tile(np.array([1, 2]), (3, 4))
    one = np.ones((3, 8), int)
    assert em.v_rand(halves, one) == em.SplitMerge(0.5, 1.0)
    assert em.v_info(halves, one) == em.SplitMerge(0.0, 1.0)
    # Thinned borders: how wide the candidate draws the membrane between the cells does not count
    wide = drawing("##...##", "##...##", "##...##")
    assert em.v_rand(wide, TWO_CELLS) == em.SplitMerge(1.0, 1.0)
    assert em.v_rand(em.segments(wide), TWO_CELLS).split < 1.0


label_pairs = (
    st.tuples(st.integers(2, 9), st.integers(2, 9))
    .flatmap(
        lambda n: st.tuples(arrays(int, n, elements=st.integers(1, 5)), arrays(int, n, elements=st.integers(0, 4)))
    )
    .filter(lambda pair: np.count_nonzero(pair[1]) > 1)
)


@settings(max_examples=60, deadline=None)
@given(label_pairs)
def test_scores_agree_with_scikit_image_and_with_counting_pairs(pair: tuple[np.ndarray, np.ndarray]) -> None:
    candidate, reference = pair
    inside = reference > 0
    mine, true = candidate[inside], reference[inside]
    together = [(mine[a] == mine[b], true[a] == true[b]) for a, b in combinations(range(len(mine)), 2)]
    agreed = sum(m and t for m, t in together)
    positives = sum(m for m, _ in together) + sum(t for _, t in together)
    assert em.rand_error(candidate, reference) == pytest.approx(1 - 2 * agreed / positives if positives else 0.0)
    if agreed:
        assert em.rand_error(candidate, reference) == pytest.approx(adapted_rand_error(reference, candidate)[0])
    n = len(mine)
    same = [(m, t) for m, t in zip(mine[:, None] == mine[None], true[:, None] == true[None], strict=True)]
    got = em.v_rand(candidate, reference)
    assert got.split == pytest.approx(sum((m & t).sum() for m, t in same) / sum(t.sum() for _, t in same))
    assert got.merge == pytest.approx(sum((m & t).sum() for m, t in same) / sum(m.sum() for m, _ in same))
    # skimage's order: conditional entropies H(candidate | reference), H(reference | candidate)
    split, merge = variation_of_information(reference[inside], candidate[inside])
    entropies = [-(p * np.log2(p)).sum() for p in (np.unique(v, return_counts=True)[1] / n for v in (mine, true))]
    info = em.v_info(candidate, reference)
    assert info.split == pytest.approx(1 - split / entropies[0] if entropies[0] else 1.0, abs=1e-9)
    assert info.merge == pytest.approx(1 - merge / entropies[1] if entropies[1] else 1.0, abs=1e-9)


def test_there_are_116_simple_neighbourhoods() -> None:
    """Their number in two dimensions, for either pair of connectivities."""
    assert em.simple_points().sum() == 116


def test_warping_error_by_hand() -> None:
    assert em.warping_error(MOVED, TWO_CELLS) == 0.0  # a membrane that moved
    assert em.warping_error(MERGED, TWO_CELLS) == pytest.approx(1 / 21)  # one pixel merges
    hole = drawing("#####", "#####", "##.##", "#####", "#####")
    assert em.warping_error(hole, np.ones((5, 5), bool)) == pytest.approx(1 / 25)
    lost = np.zeros((5, 5), bool)
    assert em.warping_error(lost, np.ones((5, 5), bool)) == pytest.approx(1 / 25)  # shrunk to its last pixel
    diagonal = drawing("#..", ".#.", "..#")  # three cells: 4-connected
    assert em.warping_error(diagonal, drawing("###", "...", "...")) > 0


def test_warping_stays_inside_what_is_allowed() -> None:
    allowed = np.zeros(MOVED.shape, bool)
    assert np.array_equal(em.warp(TWO_CELLS, MOVED, allowed), TWO_CELLS)
    allowed[:, 3:5] = True
    assert np.array_equal(em.warp(TWO_CELLS, MOVED, allowed), MOVED)


@settings(max_examples=100, deadline=None)
@given(masks.flatmap(lambda m: st.tuples(st.just(m), arrays(bool, m.shape))))
def test_warping_keeps_topology_and_ends_only_where_nothing_is_simple(pair: tuple[np.ndarray, np.ndarray]) -> None:
    reference, candidate = pair
    warped = em.warp(reference, candidate)
    for image, structure in ((True, _FOUR), (False, _EIGHT)):
        before, after = (ndimage.label(np.pad(m, 2) == image, structure)[1] for m in (reference, warped))
        assert before == after
    assert not ((warped != reference) & (reference == candidate)).any()  # only towards the candidate
    framed = np.pad(warped, 1)
    for y, x in np.argwhere(warped != candidate):
        assert not simple_by_definition(framed, y + 1, x + 1)


def simple_by_definition(framed: np.ndarray, y: int, x: int) -> bool:
    """By counting parts of the 3x3 patch around a pixel, with and without it, and their Euler numbers."""
    patch = np.pad(framed[y - 1 : y + 2, x - 1 : x + 2], 1)
    counts = []
    for value in (True, False):
        patch[2, 2] = value
        ring = patch[1:4, 1:4]
        counts.append((ndimage.label(ring, _FOUR)[1], ndimage.label(~ring, _EIGHT)[1]))
    return counts[0] == counts[1]


def fewest_differences(reference: np.ndarray, candidate: np.ndarray, *, any_direction: bool) -> int:
    """The minimum over all sequences of simple flips by breadth-first search, towards the candidate or anywhere."""
    seen, front = {reference.tobytes()}, [reference]
    best = int((reference != candidate).sum())
    while front:
        following = []
        for image in front:
            framed = np.pad(image, 1)
            for y, x in np.ndindex(image.shape) if any_direction else np.argwhere(image != candidate):
                if em.simple_points()[code_of(framed, y + 1, x + 1)]:
                    flipped = image.copy()
                    flipped[y, x] ^= True
                    if flipped.tobytes() not in seen:
                        seen.add(flipped.tobytes())
                        following.append(flipped)
                        best = min(best, int((flipped != candidate).sum()))
        front = following
    return best


def code_of(framed: np.ndarray, y: int, x: int) -> int:
    clockwise = [(-1, -1), (-1, 0), (-1, 1), (0, 1), (1, 1), (1, 0), (1, -1), (0, -1)]
    return sum(int(framed[y + dy, x + dx]) << bit for bit, (dy, dx) in enumerate(clockwise))


def test_warping_against_all_sequences_of_flips() -> None:
    """Greedy warping never claims less than the true minimum, and mostly finds the best of all greedy orders."""
    draw = np.random.default_rng(0)
    found, greedy, fewest = [], [], []
    for _ in range(60):
        reference, candidate = draw.random((3, 4)) < 0.7, draw.random((3, 4)) < 0.7
        found.append(round(em.warping_error(candidate, reference) * 12))
        greedy.append(fewest_differences(reference, candidate, any_direction=False))
        if len(fewest) < 8:
            fewest.append(fewest_differences(reference, candidate, any_direction=True))
    assert all(f >= g for f, g in zip(found, greedy, strict=True))
    assert all(g >= b for g, b in zip(greedy, fewest, strict=False))
    assert sum(f == g for f, g in zip(found, greedy, strict=True)) >= 50


def test_stacks_are_scored_slice_by_slice() -> None:
    candidate, reference = np.stack([MERGED, MOVED]), np.stack([TWO_CELLS, TWO_CELLS])
    for measure in (em.pixel_error, em.pixel_disagreement, em.rand_error, em.warping_error):
        each = [measure(c, r) for c, r in zip(candidate, reference, strict=True)]
        assert measure(candidate, reference) == pytest.approx(np.mean(each))
    assert em.v_rand(candidate, reference).merge == pytest.approx((0.5 + em.v_rand(MOVED, TWO_CELLS).merge) / 2)


def test_thresholds() -> None:
    probability = np.where(TWO_CELLS, 0.9, 0.35)
    curve = em.threshold_curve(em.rand_error, probability, TWO_CELLS)
    assert curve.thresholds == tuple(n / 10 for n in range(10))
    assert curve.best == (0.4, 0.0)
    assert curve.at(0.3) == pytest.approx(em.rand_error(np.ones((3, 7), bool), TWO_CELLS))
    assert curve.errors[9] == pytest.approx(1.0)  # nothing above 0.9: no pair is found
    with pytest.raises(InputError, match=r"threshold 0.25 is not on the curve"):
        curve.at(0.25)
    with pytest.raises(InputError, match="no threshold is given"):
        em.threshold_curve(em.rand_error, probability, TWO_CELLS, ())


def test_images_that_do_not_fit() -> None:
    with pytest.raises(InputError, match=r"candidate has shape \[3, 7\], reference \[3, 6\]"):
        em.warping_error(TWO_CELLS, TWO_CELLS[:, 1:])
    with pytest.raises(InputError, match="a slice of the reference has no cell"):
        em.v_rand(TWO_CELLS, np.zeros((3, 7), bool))
    with pytest.raises(InputError, match="1 axes"):
        em.segments(np.ones(3, bool))


def test_a_whole_image_takes_seconds() -> None:
    reference, candidate = blobs(0, 512), blobs(1, 512)
    start = time.process_time()
    error = em.warping_error(candidate, reference)
    em.v_rand(candidate, reference)
    assert time.process_time() - start < 5.0
    assert 0 < error < em.pixel_disagreement(candidate, reference)


def test_real_membranes(real_data: Callable[[str], Path]) -> None:
    """A membrane map that is a little too thick keeps its topology by and large; another slice does not."""
    files = sorted((real_data("em_membranes") / "labels").glob("*.png"))
    one, other = (np.asarray(Image.open(files[n]))[:256, :256] > 0 for n in (0, 11))
    thicker = ndimage.binary_erosion(one, border_value=1)
    assert em.warping_error(thicker, one) < 0.1 * em.warping_error(other, one)
    assert em.v_rand(thicker, one).f_score > 0.95 > em.v_rand(other, one).f_score
    assert em.rand_error(thicker, one) > 1 - em.v_rand(thicker, one).f_score  # thick borders cost, thinned they do not
