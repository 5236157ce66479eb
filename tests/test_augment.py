"""Augmentation: what is drawn, that it is done exactly, once, and the same way again."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage, stats
from torch import Tensor

from medunet.errors import GeometryError, InputError, PlanError
from medunet.training.augment import PROBABILITIES, Augmentation
from medunet.training.deform import Warp, bspline, control_points, free_axes, resample
from medunet.training.draws import Draw, Elastic, Noise
from medunet.training.samples import changing_draws, sample_page

PATCH = (20, 24, 16)
KINDS = ("rotation", "zoom", "elastic", "noise", "blur", "brightness", "contrast", "low_resolution", "gamma")
ALWAYS = dict.fromkeys(PROBABILITIES, 1.0)


def augmentation(patch: tuple[int, ...] = PATCH, **settings: Any) -> Augmentation:
    angles = (0.5,) * 3 if len(patch) == 3 else (0.5,)
    return Augmentation(patch, **{"rotation": angles, "mirror_axes": (0, 2)[: len(patch) - 1], **settings})


def sample(extent: tuple[int, ...], channels: int = 1, seed: int = 0) -> tuple[Tensor, Tensor]:
    """A smooth image with a label that is its values over two thresholds."""
    random = np.random.default_rng(seed)
    image = np.stack([ndimage.gaussian_filter(random.standard_normal(extent), 2) for _ in range(channels)])
    image = image / image.std()
    label = (image[:1] > 0.3).astype(np.int16) * 2 + (image[:1] > 1.2).astype(np.int16) * 3
    return torch.from_numpy(image.astype(np.float32)), torch.from_numpy(label)


def places(draw: Draw, made: Augmentation) -> np.ndarray:
    """(d, *patch) positions in the region along the free axes."""
    warp = Warp.of(draw, made.spacing)
    region = [draw.extent[a] for a in warp.free]
    result = np.zeros((len(warp.patch), *warp.patch))
    for box, found in warp.positions(region, torch.device("cpu")):
        result[(slice(None), *box)] = torch.stack(found).numpy()
    return result


# ---- one resample -----------------------------------------------------------------------------------------------


def test_nothing_drawn_is_the_patch_itself() -> None:
    made = augmentation(probabilities=dict.fromkeys(PROBABILITIES, 0.0))
    draw = made.draw(np.random.default_rng(0))
    image, label = sample(draw.extent)
    kept = image.clone()
    out, out_label = made.apply(draw, image, label)
    assert draw == Draw(PATCH, PATCH)
    assert torch.equal(out, image)
    assert torch.equal(out_label, label)
    out.zero_()
    assert torch.equal(image, kept)


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_a_quarter_turn_is_rot90(axis: int) -> None:
    made = augmentation((18, 18, 18))
    angles = tuple(math.pi / 2 if a == axis else 0.0 for a in range(3))
    draw = made.fitted(Draw(made.patch, made.patch, rotation=angles))
    assert draw.extent == made.patch
    image, label = sample(draw.extent)
    out, out_label = made.apply(draw, image, label)
    plane = [a + 1 for a in range(3) if a != axis]
    turned = [k for k in (1, -1) if torch.allclose(out, image.rot90(k, plane), atol=1e-4)]
    assert len(turned) == 1
    assert torch.equal(out_label, label.rot90(turned[0], plane))


@pytest.mark.parametrize("axes", [(0,), (2,), (0, 1, 2)])
@pytest.mark.parametrize("warped", [False, True])
def test_mirroring_is_a_flip(axes: tuple[int, ...], warped: bool) -> None:
    made = augmentation(mirror_axes=(0, 1, 2))
    bend = Elastic(3, 6.0, 1.5) if warped else None
    draw = made.fitted(Draw(PATCH, PATCH, rotation=(0.1, 0.3, -0.2) if warped else (), elastic=bend))
    image, label = sample(draw.extent, 1)
    plain, mirrored = made.apply(draw, image, label), made.apply(replace(draw, mirror=axes), image, label)
    for one, other in zip(plain, mirrored, strict=True):
        assert torch.equal(one.flip([a + 1 for a in axes]), other)


def test_rotation_and_zoom_agree_with_scipy() -> None:
    made = augmentation(spacing=(1.0, 1.5, 2.0))
    draw = made.fitted(Draw(PATCH, PATCH, rotation=(0.3, -0.2, 0.4), zoom=0.8))
    image, label = sample(draw.extent)
    out, _ = made.apply(draw, image, label)
    warp = Warp.of(draw, made.spacing)
    offset = (np.array(draw.extent) - 1) / 2 - warp.matrix @ ((np.array(PATCH) - 1) / 2)
    wanted = ndimage.affine_transform(image[0].double().numpy(), warp.matrix, offset, PATCH, order=1, cval=np.nan)
    np.testing.assert_allclose(out[0], wanted, atol=2e-5)


def test_rotation_keeps_millimetres() -> None:
    made = augmentation(spacing=(1.0, 1.5, 2.0))
    matrix = Warp.of(Draw(PATCH, PATCH, rotation=(0.3, -0.2, 0.4)), made.spacing).matrix
    scale = np.diag(made.spacing)
    in_mm = scale @ matrix @ np.linalg.inv(scale)
    np.testing.assert_allclose(in_mm @ in_mm.T, np.eye(3), atol=1e-12)
    assert np.linalg.det(in_mm) == pytest.approx(1)


def test_zoom_over_one_makes_things_larger() -> None:
    made = augmentation((32, 32), mirror_axes=())
    image, label = torch.zeros(1, 32, 32), torch.zeros(1, 32, 32, dtype=torch.uint8)
    label[:, 12:20, 12:20] = 1
    draw = made.fitted(Draw((32, 32), (32, 32), zoom=2.0))
    assert int(made.apply(draw, image, label)[1].sum()) == 16 * 16


@pytest.mark.parametrize("patch", [PATCH, (30, 34)])
def test_elastic_agrees_with_scipy_and_its_spline(patch: tuple[int, ...]) -> None:
    spacing = (1.0, 1.3, 2.0)
    made = augmentation(patch, spacing=spacing)
    elastic = Elastic(5, 8.0, 2.0)
    draw = made.fitted(Draw(patch, patch, elastic=elastic))
    basis = [bspline(n, s / 8.0) for n, s in zip(patch, spacing, strict=False)]
    field = control_points(elastic, [b.shape[1] for b in basis])
    for axis, weights in enumerate(basis, 1):
        field = np.moveaxis(np.tensordot(weights, field, axes=(1, axis)), 0, axis)
    field = field / np.array(spacing[: len(patch)]).reshape(-1, *(1,) * len(patch))
    where = np.stack(np.meshgrid(*map(np.arange, patch), indexing="ij")) + field
    where += ((np.array(draw.extent) - patch) / 2).reshape(-1, *(1,) * len(patch))
    image, label = sample(draw.extent)
    out, _ = made.apply(draw, image, label)
    wanted = ndimage.map_coordinates(image[0].double().numpy(), where, order=1, cval=np.nan)
    np.testing.assert_allclose(out[0], wanted, atol=2e-5)
    assert np.abs(field).max() > 0.5


def test_the_spline_sums_to_one_and_is_smooth() -> None:
    weights = bspline(40, 0.13)
    np.testing.assert_allclose(weights.sum(1), 1)
    assert (weights >= 0).all()
    np.testing.assert_allclose(weights, weights[::-1, ::-1], atol=1e-12)


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 2**40), st.floats(2.5, 30), st.booleans())
def test_elastic_never_folds(seed: int, distance: float, flat: bool) -> None:
    """The determinant of the position's derivative stays positive however wild the control points are."""
    made = augmentation((24, 28) if flat else PATCH)
    draw = made.fitted(Draw(made.patch, made.patch, elastic=Elastic(seed, distance, 10 * distance)))
    gradient = np.stack([np.stack(np.gradient(axis)) for axis in places(draw, made).astype(np.float64)])
    jacobian = np.linalg.det(np.moveaxis(gradient, (0, 1), (-2, -1)))
    assert jacobian.min() > 0


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**32), st.sampled_from([PATCH, (24, 10, 9), (31, 20), (40, 36, 8), (12, 12, 12)]))
def test_the_extent_is_enough_and_centred(seed: int, patch: tuple[int, ...]) -> None:
    made = augmentation(patch, spacing=(1.0, 0.8, 2.5), probabilities={"rotation": 0.7, "zoom": 0.7, "elastic": 0.7})
    draw = made.draw(np.random.default_rng(seed))
    assert all(e >= p and (e - p) % 2 == 0 for e, p in zip(draw.extent, patch, strict=True))
    if not draw.warped:
        assert draw.extent == patch
        return
    region = np.array([draw.extent[a] for a in made.free])
    found = places(draw, made).reshape(len(region), -1)
    assert (found.min(1) >= -1e-4).all()
    assert (found.max(1) <= region - 1 + 1e-4).all()
    image, label = sample(draw.extent)
    border = torch.nn.functional.pad(image, (3, 3) * len(patch), value=math.nan)
    inner = border[(slice(None), *(slice(3, -3) for _ in patch))]
    assert not torch.isnan(made.apply(draw, inner, label)[0]).any()


def test_the_extent_is_not_wasteful() -> None:
    made = augmentation((40, 40, 40))
    draw = made.fitted(Draw(made.patch, made.patch, rotation=(0.0, 0.0, math.pi / 4)))
    assert draw.extent == (58, 58, 40)  # 39 * sqrt(2) = 55.2 voxels between the outer centres


# ---- labels ------------------------------------------------------------------------------------------------------


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**32), st.sampled_from([PATCH, (30, 34), (30, 30, 7)]))
def test_labels_are_the_heaviest_class_of_linear_weights(seed: int, patch: tuple[int, ...]) -> None:
    """The same as interpolating every class's mask and taking the largest, and no class appears that was not there."""
    made = augmentation(patch, probabilities=ALWAYS)
    draw = made.draw(np.random.default_rng(seed))
    random = np.random.default_rng(seed)
    label = torch.from_numpy(random.choice([0, 3, 7, 90], (1, *draw.extent), p=[0.7, 0.1, 0.1, 0.1]).astype(np.int16))
    _, out = made.apply(draw, torch.zeros(1, *draw.extent), label)
    masks = torch.cat([label == value for value in (0, 3, 7, 90)]).float()
    still = replace(draw, noise=None, blur=(), brightness=(), contrast=(), low_resolution=(), gamma=())
    linear = Augmentation(patch, 4, rotation=made.rotation, mirror_axes=made.mirror_axes)
    weights, _ = linear.apply(replace(still, gamma_inverted=()), masks, label)
    best = torch.tensor([0, 3, 7, 90])[weights.argmax(0)]
    most = weights.sort(0).values
    sure = most[-1] - most[-2] > 1e-4
    assert sure.float().mean() > 0.9
    assert torch.equal(out[0][sure].long(), best[sure])
    assert set(out.unique().tolist()) <= {0, 3, 7, 90}


def test_image_and_label_move_together() -> None:
    made = augmentation(rotation=(0.5,) * 3, probabilities=ALWAYS)
    for seed in range(5):
        draw = made.draw(np.random.default_rng(seed))
        draw = replace(draw, noise=None, blur=(), brightness=(), contrast=(), low_resolution=(), gamma=())
        image, _ = sample(draw.extent, seed=seed)
        image = torch.from_numpy(ndimage.gaussian_filter(image, (0, 2, 2, 2)))
        out, out_label = made.apply(replace(draw, gamma_inverted=()), image, (image > 0).to(torch.uint8))
        both = ((out > 0) & (out_label == 1)).sum() * 2 / ((out > 0).sum() + out_label.sum())
        assert both > 0.95


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int16, torch.int32, torch.int64])
def test_the_label_keeps_its_type(dtype: torch.dtype) -> None:
    made = augmentation(probabilities=ALWAYS)
    draw = made.draw(np.random.default_rng(1))
    image, label = sample(draw.extent)
    assert made.apply(draw, image, label.to(dtype))[1].dtype == dtype


# ---- anisotropy ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("patch", "spacing", "free"),
    [
        ((40, 40, 40), (1, 1, 1), (0, 1, 2)),
        ((40, 40, 40), (0.5, 0.5, 2.0), (0, 1)),
        ((40, 40, 10), (1, 1, 1), (0, 1)),
        ((10, 40, 40), (3, 1, 1), (1, 2)),
        ((40, 40, 1), (1, 1, 1), (0, 1)),
        ((40, 40, 14), (1, 1, 3), (0, 1, 2)),
        ((40, 1, 1), (1, 1, 1), ()),
        ((200, 40), (1, 1), (0, 1)),
        ((40, 40), (1, 4), ()),
    ],
)
def test_coarse_and_flat_axes_are_kept(patch: Any, spacing: Any, free: tuple[int, ...]) -> None:
    assert free_axes(patch, spacing) == free


@pytest.mark.parametrize("coarse", [0, 1, 2])
def test_slices_are_not_smeared(coarse: int) -> None:
    """Slices with a number each keep it, whatever is drawn, and are all moved alike."""
    spacing = tuple(4.0 if a == coarse else 1.0 for a in range(3))
    made = augmentation((12, 12, 12), spacing=spacing, mirror_axes=(), probabilities=ALWAYS)
    draw = made.draw(np.random.default_rng(2))
    assert draw.extent[coarse] == 12
    assert [axis for axis, angle in enumerate(draw.rotation) if angle] == [coarse]
    line = torch.arange(12.0).view([12 if a == coarse else 1 for a in range(3)])
    image = line.expand(draw.extent)[None].contiguous()
    slices, label = resample(Warp.of(draw, spacing), image, image.to(torch.int16))
    assert torch.equal(slices[0], line.expand(12, 12, 12))
    assert torch.equal(label[0].float(), line.expand(12, 12, 12))
    same = sample(tuple(e for a, e in enumerate(draw.extent) if a != coarse))[0][0].unsqueeze(coarse)
    moved, _ = resample(Warp.of(draw, spacing), same.expand(draw.extent)[None].contiguous(), image.to(torch.int16))
    assert torch.equal(moved[0], moved[0].narrow(coarse, 0, 1).expand(12, 12, 12))


def test_a_single_voxel_axis_and_a_single_line_survive() -> None:
    for patch in ((12, 12, 1), (12, 1, 1), (12, 1)):
        made = Augmentation(patch, 2, rotation=(0.5,) * (3 if len(patch) == 3 else 1), probabilities=ALWAYS)
        draw = made.draw(np.random.default_rng(0))
        image, label = torch.randn(2, *draw.extent), torch.ones(1, *draw.extent, dtype=torch.uint8)
        out, _ = made.apply(draw, image, label)
        assert out.shape == (2, *patch)
        assert torch.isfinite(out).all()


# ---- draws ---------------------------------------------------------------------------------------------------------


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**32), st.sampled_from([PATCH, (22, 26)]))
def test_a_draw_is_json_and_replays(seed: int, patch: tuple[int, ...]) -> None:
    made = augmentation(patch, channels=2, probabilities=dict.fromkeys(PROBABILITIES, 0.6))
    draw = made.draw(np.random.default_rng(seed))
    again = Draw.from_json(json.loads(json.dumps(draw.as_json())))
    assert again == draw
    assert made.draw(np.random.default_rng(seed)) == draw
    image, label = sample(draw.extent, 2)
    for one, other in zip(made.apply(draw, image, label), made.apply(again, image, label), strict=True):
        assert torch.equal(one, other)


def test_a_draw_that_does_not_fit_is_refused() -> None:
    with pytest.raises(InputError, match=r"draw cannot be read.*its fields are patch, extent"):
        Draw.from_json({"patch": [3, 3], "turn": 1})


@pytest.mark.parametrize("shape", [(50, 60, 47), (330, 310)])
def test_threads_do_not_change_a_bit(shape: tuple[int, ...]) -> None:
    made = augmentation(shape, channels=2, probabilities=ALWAYS)
    draw = made.draw(np.random.default_rng(4))
    image, label = torch.randn(2, *draw.extent), (torch.randn(1, *draw.extent) > 1).to(torch.int16)
    before, results = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            results.append(made.apply(draw, image, label))
    finally:
        torch.set_num_threads(before)
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


def test_a_view_of_a_volume_gives_the_same_bits() -> None:
    made = augmentation(channels=2, probabilities=ALWAYS)
    draw = made.draw(np.random.default_rng(5))
    volume, labels = sample(tuple(n + 7 for n in draw.extent), 2)
    box = (slice(None), *(slice(3, 3 + n) for n in draw.extent))
    views = made.apply(draw, volume[box], labels[box])
    copies = made.apply(draw, volume[box].contiguous(), labels[box].contiguous())
    assert all(torch.equal(a, b) for a, b in zip(views, copies, strict=True))


def test_every_chance_is_as_configured() -> None:
    made = augmentation(channels=2, mirror_axes=(0, 2))
    draws = [made.draw(np.random.default_rng(seed)) for seed in range(4000)]
    hits = {
        "rotation": sum(bool(d.rotation) for d in draws),
        "zoom": sum(d.zoom != 1 for d in draws),
        "elastic": sum(d.elastic is not None for d in draws),
        **{name: sum(bool(getattr(d, name)) for d in draws) for name in (*KINDS[3:], "gamma_inverted")},
    }
    for name, count in hits.items():
        assert stats.binomtest(count, len(draws), PROBABILITIES[name]).pvalue > 1e-4, name
    for axis in (0, 2):
        assert stats.binomtest(sum(axis in d.mirror for d in draws), len(draws), 0.5).pvalue > 1e-4
    assert not any(1 in d.mirror for d in draws)
    channels = [bool(sigmas) for d in draws for sigmas in d.blur]
    assert stats.binomtest(sum(channels), len(channels), 0.5).pvalue > 1e-4
    factors = [factor < 1 for d in draws for factor in d.gamma]
    assert stats.binomtest(sum(factors), len(factors), 0.5).pvalue > 1e-4


def test_kinds_are_drawn_apart() -> None:
    """Switching one kind on does not tie it to another: both of two kinds as often as their product."""
    made = augmentation(probabilities={"rotation": 0.5, "gamma": 0.5})
    draws = [made.draw(np.random.default_rng(seed)) for seed in range(2000)]
    both = sum(bool(d.rotation) and bool(d.gamma) for d in draws)
    assert stats.binomtest(both, len(draws), 0.25).pvalue > 1e-4


def test_no_spatial_axis_no_warp() -> None:
    made = Augmentation((40, 40), spacing=(1, 4), rotation=(1.0,), probabilities=ALWAYS)
    assert not made.draw(np.random.default_rng(0)).warped


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"probabilities": {"rotate": 1}}, "no chance 'rotate'; it has rotation, zoom"),
        ({"probabilities": {"zoom": 2}}, "chance of zoom is 2; give 0 to 1"),
        ({"ranges": {"zoom": (0.0, 1.0)}}, "range of zoom"),
        ({"ranges": {"low_resolution": (0.5, 2.0)}}, "give at most 1"),
        ({"mirror_axes": (3,)}, r"mirror_axes \(3,\) are not axes .* give some of 0 to 2"),
        ({"rotation": (0.1,)}, "give 3 angles in 3D"),
        ({"spacing": (1.0, 1.0)}, "give millimetres per axis"),
    ],
)
def test_settings_that_do_not_fit_are_refused(settings: dict[str, Any], words: str) -> None:
    with pytest.raises(PlanError, match=words):
        Augmentation(PATCH, **settings)


def test_regions_that_do_not_fit_are_refused() -> None:
    made = augmentation()
    image, label = sample(PATCH)
    with pytest.raises(GeometryError, match=r"needs image \(1, 20, 24, 16\).*got \(1, 19, 24, 16\)"):
        made.apply(Draw(PATCH, PATCH), image[:, 1:], label)
    with pytest.raises(GeometryError, match="image must be float32"):
        made.apply(Draw(PATCH, PATCH), image.double(), label)


# ---- intensities --------------------------------------------------------------------------------------------------


def change(image: Tensor, **fields: Any) -> Tensor:
    patch = tuple(image.shape[1:])
    made = Augmentation(patch, len(image))
    return made.apply(Draw(patch, patch, **fields), image, torch.zeros(1, *patch, dtype=torch.uint8))[0]


@pytest.mark.parametrize("name", ["gamma", "gamma_inverted"])
@pytest.mark.parametrize("value", [0.7, 1.5])
@pytest.mark.parametrize("offset", [0.0, 40.0])
def test_gamma_is_a_power_that_keeps_mean_and_deviation(name: str, value: float, offset: float) -> None:
    image = sample((40, 50, 30))[0] + offset
    out = change(image, **{name: (value,)})
    x = image.double().numpy() * (-1 if name == "gamma_inverted" else 1)
    y = ((x - x.min()) / (x.max() - x.min())) ** value
    y = (y - y.mean()) / y.std() * x.std() + x.mean()
    np.testing.assert_allclose(out, y * (-1 if name == "gamma_inverted" else 1), atol=2e-4)
    assert float(out.mean()) == pytest.approx(float(image.mean()), abs=1e-4)
    assert float(out.std()) == pytest.approx(float(image.std()), rel=1e-3)
    assert not torch.allclose(out, image, atol=1e-2)


def test_contrast_scales_about_the_mean_within_the_range() -> None:
    image = sample(PATCH, 2)[0]
    out = change(image, contrast=(0.75, 1.25))
    mean = image.mean(dim=(1, 2, 3), keepdim=True)
    wanted = mean + (image - mean) * torch.tensor([0.75, 1.25]).view(2, 1, 1, 1)
    torch.testing.assert_close(out[0], wanted[0])
    torch.testing.assert_close(out[1], wanted[1].clamp(image[1].min(), image[1].max()))
    assert float(out[0].mean()) == pytest.approx(float(image[0].mean()), abs=1e-5)


def test_brightness_multiplies() -> None:
    image = sample(PATCH, 2)[0]
    torch.testing.assert_close(change(image, brightness=(0.8, 1.2)), image * torch.tensor([0.8, 1.2]).view(2, 1, 1, 1))


def test_noise_has_the_deviation_asked_for() -> None:
    image = torch.zeros(2, 40, 50, 40)
    out = change(image, noise=Noise(7, 0.2))
    assert float(out.std()) == pytest.approx(0.2, rel=0.02)
    assert abs(float(out.mean())) < 0.005
    assert not torch.equal(out[0], out[1])
    assert torch.equal(out, change(image, noise=Noise(7, 0.2)))
    assert not torch.equal(out, change(image, noise=Noise(8, 0.2)))


@pytest.mark.parametrize("patch", [(60, 50, 40), (300, 200)])
def test_blur_is_scipys_per_channel_and_axis(patch: tuple[int, ...]) -> None:
    image = torch.randn(2, *patch)
    sigmas = (0.5, 0.8, 1.0)[: len(patch)]
    out = change(image, blur=(sigmas, ()))
    wanted = image[0].double().numpy()
    for axis, sigma in enumerate(sigmas):
        wanted = ndimage.gaussian_filter1d(wanted, sigma, axis, mode="mirror", radius=int(3 * sigma + 0.5))
    np.testing.assert_allclose(out[0], wanted, atol=1e-5)
    assert torch.equal(out[1], image[1])


@pytest.mark.parametrize("patch", [(40, 56, 30), (200, 301)])
@pytest.mark.parametrize("factor", [0.5, 0.73])
def test_low_resolution_is_nearest_down_and_linear_up(patch: tuple[int, ...], factor: float) -> None:
    image = torch.randn(2, *patch)
    out = change(image, low_resolution=(1.0, factor))
    exact = image[None, 1:].double()
    small = torch.nn.functional.interpolate(exact, [round(n * factor) for n in patch], mode="nearest-exact")
    wanted = torch.nn.functional.interpolate(small, patch, mode="trilinear" if len(patch) == 3 else "bilinear")
    torch.testing.assert_close(out[1], wanted[0, 0].float(), atol=1e-5, rtol=1e-5)
    assert torch.equal(out[0], image[0])


@pytest.mark.parametrize(("spacing", "kept"), [((1.0, 1.0, 5.0), (2,)), ((1.0, 1.0, 1.0), ())])
def test_low_resolution_takes_no_slice_away(spacing: tuple[float, ...], kept: tuple[int, ...]) -> None:
    """As nnU-Net's ignores the axis that its "dummy 2D" augmentation keeps."""
    none = dict.fromkeys(ALWAYS, 0.0)
    chances = {**none, "low_resolution": 1.0, "low_resolution_channel": 1.0}
    made = Augmentation((20, 20, 20), 1, spacing=spacing, probabilities=chances, ranges={"low_resolution": (0.5, 0.5)})
    draw = made.draw(np.random.default_rng(0))
    assert draw.full_resolution == kept
    slices = (torch.arange(20) % 2).float().expand(1, 20, 20, 20).contiguous()
    out, _ = made.apply(draw, slices.clone(), torch.zeros(1, 20, 20, 20, dtype=torch.uint8))
    assert torch.equal(out, slices) == bool(kept)
    assert Draw.from_json(draw.as_json()) == draw


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**32), st.sampled_from([0.0, -3.25, 1e-20, 1e6]))
def test_constant_images_survive(seed: int, value: float) -> None:
    made = augmentation((9, 10, 8), channels=2, probabilities={**ALWAYS, "noise": 0.0})
    draw = made.draw(np.random.default_rng(seed))
    label = torch.zeros(1, *draw.extent, dtype=torch.uint8)
    out, _ = made.apply(draw, torch.full((2, *draw.extent), value), label)
    assert torch.isfinite(out).all()
    for channel, factor in zip(out, draw.brightness, strict=True):
        np.testing.assert_allclose(channel, value * factor, rtol=1e-4)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**32))
def test_everything_at_once_is_finite_and_near_the_image(seed: int) -> None:
    made = augmentation(channels=2, probabilities=ALWAYS)
    draw = made.draw(np.random.default_rng(seed))
    image, label = sample(draw.extent, 2)
    out, _ = made.apply(draw, image, label)
    assert torch.isfinite(out).all()
    assert float(out.abs().max()) < 3 * float(image.abs().max())


# ---- the page of samples -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("patch", [PATCH, (30, 34)])
def test_a_page_shows_the_draws_and_is_the_same_again(patch: tuple[int, ...]) -> None:
    made = augmentation(patch)
    image, label = sample(tuple(n + 6 for n in patch))
    page = sample_page(made, image, label, count=3, seed=1)
    assert page.startswith(b"\x89PNG")
    assert page == sample_page(made, image, label, count=3, seed=1)
    assert page != sample_page(made, image, label, count=3, seed=2)
    assert len(changing_draws(made, 3, 1)) == 3
    assert changing_draws(augmentation(patch, probabilities=dict.fromkeys(PROBABILITIES, 0.0)), 3, 1) == []


def test_a_caption_says_what_was_drawn() -> None:
    draw = Draw(PATCH, PATCH, rotation=(0.0, 0.0, math.pi / 15), zoom=1.2, gamma=(0.8,), mirror=(0,))
    assert draw.caption() == "rotated 0°/0°/12°, zoom 1.20, mirrored x, gamma 0.80"
    assert Draw(PATCH, PATCH, blur=((), ()), low_resolution=(1.0, 1.0)).caption() == "unchanged"


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_gpu_gives_the_same_patch() -> None:
    made = augmentation(channels=2, probabilities={**ALWAYS, "noise": 0.0})
    draw = made.draw(np.random.default_rng(0))
    image, label = sample(draw.extent, 2)
    host, device = made.apply(draw, image, label), made.apply(draw, image.cuda(), label.cuda())
    torch.testing.assert_close(host[0], device[0].cpu(), atol=1e-3, rtol=1e-3)
    assert (host[1] == device[1].cpu()).float().mean() > 0.999
