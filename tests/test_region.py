"""Where prediction looks: the box of a body, or what a coarser bundle finds; the rest is background."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from monai.data import MetaTensor
from torch import nn

import medunet
from medunet.data.grid import Grid
from medunet.data.transforms import Frame
from medunet.data.volume import read_volume
from medunet.errors import BundleError, PlanError
from medunet.inference import WindowInferer
from medunet.inference.passage import around
from medunet.inference.region import as_large, bounds_of, wider
from medunet.inference.weights import model_digest
from medunet.networks import UNet
from medunet.planning.settings import validate

CT = {"scheme": "ct", "low": -200, "high": 300, "mean": 0, "std": 100}
LABELS = {"background": 0, "a": 1, "b": 7}


def a_body(shape: tuple[int, int, int], box: Any, grid: Grid | None = None, seed: int = 0) -> MetaTensor:
    """Air with noise, and tissue in a box."""
    rng = np.random.default_rng(seed)
    values = rng.integers(-1020, -980, (1, *shape)).astype(np.int16)
    inside = (0, *(slice(*bounds) for bounds in box))
    values[inside] = rng.integers(-100, 300, values[inside].shape)
    affine = np.eye(4) if grid is None else np.array(grid.affine)
    return MetaTensor(torch.from_numpy(values), affine=torch.from_numpy(affine))


def engine(region: Any, spacing: tuple[float, ...] = (1, 1, 1), **options: Any) -> WindowInferer:
    return WindowInferer(Frame("RAS", spacing, [CT]), LABELS, (16, 16, 16), region=region, **options)


def test_windows_lie_over_the_body_and_the_rest_is_background() -> None:
    image = a_body((70, 60, 50), ((30, 41), (12, 30), (20, 44)))
    torch.manual_seed(0)
    network = nn.Conv3d(1, 3, 1).eval()
    everywhere, body = engine("all"), engine("body")
    seen = body.see(image, network)
    assert seen.box == ((19, 54), (0, 42), (7, 50))  # looked for every 4 mm; 10 mm around it, inside the image
    assert body.windows(seen, network)[1].count < everywhere.windows(everywhere.see(image, network), network)[1].count
    inside = tuple(slice(*bounds) for bounds in seen.box)
    whole, part = (e(image[None], network)[0, 0].as_tensor() for e in (everywhere, body))
    assert torch.equal(part[inside], whole[inside])  # no context: the same voxel has the same label
    part[inside] = 0
    assert not part.any()


@settings(max_examples=40, deadline=None)
@given(
    spacing=st.tuples(*[st.floats(0.4, 6.0)] * 3),
    low=st.tuples(*[st.integers(0, 29)] * 3),
    size=st.tuples(*[st.integers(1, 30)] * 3),
)
def test_no_voxel_of_a_body_is_lost(spacing: Any, low: Any, size: Any) -> None:
    """Also where the body is thinner than the steps at which it is looked for, unless it is missed altogether."""
    grid = Grid.from_spacing((30, 30, 30), spacing)
    box = tuple((a, min(30, a + n)) for a, n in zip(low, size, strict=True))
    image = a_body(grid.shape, box, grid)
    seen = engine("body").see(image, nn.Conv3d(1, 3, 1))
    assert all(a <= low and high <= b for (a, b), (low, high) in zip(seen.box, box, strict=True))
    values = image.as_tensor()[(slice(None), *(slice(*b) for b in seen.box))]
    assert torch.equal(seen.values, values)
    assert np.allclose(seen.native.to_world(np.zeros((1, 3))), grid.to_world(np.array([[a for a, _ in seen.box]])))


class Context(nn.Module):
    """Every voxel's logits depend on all of its window."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Conv3d(1, 3, 1)

    def forward(self, windows: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = self.layer(windows - 3 * windows.mean(dim=(2, 3, 4), keepdim=True))
        return result


@pytest.mark.parametrize("mm", [(1.5, 3.0, 4.0), (3.0, 1.5, 1.5)])
@pytest.mark.parametrize("flip", [False, True])
def test_around_a_small_find_lies_what_the_image_has(mm: tuple[float, float, float], flip: bool) -> None:
    """The part is as large as a window, so that nothing is filled up where the image goes on."""
    torch.manual_seed(0)
    network, spacing = Context().eval(), (4.0, 3.0, 2.0)
    affine = np.diag([-mm[0] if flip else mm[0], *mm[1:], 1.0])[:, [1, 0, 2, 3]]
    shape = (70, 70, 70)
    image = a_body(shape, ((30, 34), (0, 4), (60, 64)), Grid(shape, affine))
    body = engine("body", spacing)
    seen = body.see(image, network)
    border, windows = body.windows(seen, network)
    assert border.size == border.inner
    assert seen.box != tuple((0, n) for n in shape)
    assert windows.count < 30


def test_a_find_has_the_context_of_the_whole_image() -> None:
    torch.manual_seed(0)
    network = Context().eval()
    image = a_body((16, 16, 16), ((7, 9),) * 3, Grid.from_spacing((16, 16, 16), (5.0, 5.0, 5.0)))
    everywhere, body = (engine(rule, (5, 5, 5))(image[None], network) for rule in ("all", "body"))
    assert everywhere.any()
    assert torch.equal(everywhere.as_tensor(), body.as_tensor())


def test_an_image_without_a_body_stays_whole() -> None:
    image = a_body((20, 20, 20), ((0, 0), (0, 0), (0, 0)))
    assert engine("body").see(image, nn.Conv3d(1, 3, 1)).box == ((0, 20),) * 3


def test_probabilities_outside_are_those_of_background() -> None:
    image = a_body((40, 30, 30), ((5, 15), (10, 20), (10, 20)))
    torch.manual_seed(0)
    network, body = nn.Conv3d(1, 3, 1).eval(), engine("body")
    result = torch.full((3, 40, 30, 30), torch.nan)

    def keep(number: int, box: Any, values: torch.Tensor) -> None:
        place = (number, *(slice(*bounds) for bounds in box))
        assert torch.isnan(result[place]).all(), "a voxel is written once"
        result[place] = values

    seen = body.see(image, network)
    made = body.segment([seen], network, [keep])[0]
    outside = torch.ones((40, 30, 30), dtype=torch.bool)
    outside[tuple(slice(*bounds) for bounds in seen.box)] = False
    assert outside.any()
    assert bool((result[0][outside] == 1).all())
    assert bool(torch.isnan(result[1:, outside]).all())  # the file of zeros is not written there
    assert torch.equal(result.nan_to_num(0).argmax(0), torch.from_numpy(made.labels == 1) + 2 * (made.labels == 7))


@settings(max_examples=50, deadline=None)
@given(st.lists(st.tuples(st.integers(1, 6), st.integers(0, 5), st.integers(1, 6)), min_size=3, max_size=3))
def test_boxes_around_a_box_fill_the_rest_once(axes: Any) -> None:
    shape = tuple(n for n, _, _ in axes)
    box = tuple((min(a, n - 1), max(min(a, n - 1) + 1, min(n, a + s))) for n, a, s in axes)
    count = np.zeros(shape, int)
    for part in [*around(box, shape), box]:
        count[tuple(slice(*bounds) for bounds in part)] += 1
    assert (count == 1).all()


def test_bounds_and_margins() -> None:
    mask = np.zeros((5, 6, 7), bool)
    assert bounds_of(mask) is None
    mask[2, 1:4, 6] = True
    bounds = bounds_of(mask)
    assert bounds is not None
    assert bounds.tolist() == [[2, 3], [1, 4], [6, 7]]
    assert wider(bounds, Grid.from_spacing((5, 6, 7), (1.0, 2.0, 0.5)), 1.0) == ((1, 4), (0, 5), (4, 7))


COARSE = {"norm": "none", "activation": "relu", "max_levels": 1}


def bundle_with_weights(folder: Path, dataset: Path, chosen: dict[str, Any]) -> tuple[Path, dict[str, Any]]:
    """A planned bundle of a tiny network as it was initialised, and its plan."""
    tiny = {"base_channels": 4, "max_levels": 2, "patch_size": [16, 16, 16]}
    medunet.plan(dataset, folder, settings={**tiny, **chosen})
    plan = json.loads((folder / "configs" / "metadata.json").read_text())["plan"]
    torch.manual_seed(3)
    network = UNet(**{key: value for key, value in plan["network"].items() if key != "_target_"})
    (folder / "models").mkdir()
    torch.save(network.state_dict(), folder / "models" / "model.pt")
    return folder, plan


def make_threshold(folder: Path, plan: dict[str, Any], threshold: float) -> None:
    """Give a U-Net without normalisation weights that find class 1 where normalised values are above a threshold."""
    network = UNet(**{key: value for key, value in plan["network"].items() if key != "_target_"})
    state = {name: torch.zeros_like(values) for name, values in network.state_dict().items()}
    for name, values in state.items():
        if name.endswith("weight") and values.ndim == 5:
            values[1 if name.startswith("heads") else 0, 0][tuple(n // 2 for n in values.shape[2:])] = 1.0
    head = state["heads.0.bias"]
    head[:] = -100.0
    head[:2] = torch.tensor([threshold, 0.0])
    torch.save(state, folder / "models" / "model.pt")


def test_a_coarser_bundle_tells_where_to_look(tmp_path: Path, phantom_dataset: Path) -> None:
    """The plan asks for it; both are whole bundles, each with a spacing and a network of its own."""
    scan = sorted((phantom_dataset / "imagesTr").glob("*.nii.gz"))[0]
    coarse, plan = bundle_with_weights(tmp_path / "coarse", phantom_dataset, {**COARSE, "spacing": [10.0, 10.0, 10.0]})
    make_threshold(coarse, plan, 0.8)
    region = {"bundle": "../coarse", "margin": 4.0}
    fine, plan_of = bundle_with_weights(tmp_path / "fine", phantom_dataset, {"region": region})
    medunet.predict(coarse, [scan], tmp_path / "found")
    image = read_volume(scan)
    found = bounds_of(read_volume(tmp_path / "found" / scan.name).array[0] != 0)
    assert found is not None
    box = wider(found, image.grid, 4.0)
    sizes = [math.ceil(15 * wanted / s) + 1 for wanted, s in zip(plan_of["spacing"], image.grid.spacing, strict=True)]
    box = as_large(box, image.grid.shape, sizes)
    assert math.prod(b - a for a, b in box) < math.prod(image.grid.shape)
    (result,) = medunet.predict(fine, [scan], tmp_path / "out")
    assert result.state == "done", result.message
    labels = read_volume(tmp_path / "out" / scan.name).array[0]
    assert labels.any()
    labels[tuple(slice(*bounds) for bounds in box)] = 0
    assert not labels.any()
    assert [r.state for r in medunet.predict(fine, [scan], tmp_path / "out")] == ["already done"]
    make_threshold(coarse, plan, 100.0)  # it finds nothing now, so that all of the image is looked at
    assert [r.state for r in medunet.predict(fine, [scan], tmp_path / "out")] == ["done"]
    assert model_digest(fine, {}) != model_digest(fine, {"inferer::region": "all"})


def test_a_coarser_bundle_imports_nothing(tmp_path: Path, phantom_dataset: Path) -> None:
    coarse, _ = bundle_with_weights(tmp_path / "coarse", phantom_dataset, {})
    path = coarse / "configs" / "metadata.json"
    path.write_text(path.read_text().replace("medunet.networks.UNet", "os.system"))
    image = a_body((20, 20, 20), ((5, 10),) * 3)
    with pytest.raises(BundleError, match=r"its network is os\.system; a bundle that tells a region has one of"):
        engine({"bundle": "coarse", "margin": 5}, bundle_root=str(tmp_path)).see(image, nn.Conv3d(1, 3, 1))


@pytest.mark.parametrize(
    ("rule", "words"),
    [("liver", "region 'liver' is not known; give all, body, or"), ({"bundle": "x"}, "is not known; give all")],
)
def test_an_unknown_rule_is_told(rule: Any, words: str) -> None:
    with pytest.raises(BundleError, match=words):
        engine(rule)
    with pytest.raises(PlanError, match="give all, body, or"):
        validate({"region": rule})


def test_a_body_needs_hounsfield_units() -> None:
    with pytest.raises(BundleError, match="region body needs a CT channel"):
        WindowInferer(Frame("RAS", (1, 1, 1), [{"scheme": "zscore"}]), LABELS, (16, 16, 16), region="body")


def test_a_missing_coarser_bundle_is_told(tmp_path: Path) -> None:
    image = a_body((20, 20, 20), ((5, 10),) * 3)
    lost = engine({"bundle": "coarse", "margin": 5}, bundle_root=str(tmp_path))
    with pytest.raises(BundleError, match="the plan looks for its region with this bundle, and it is missing"):
        lost.see(image, nn.Conv3d(1, 3, 1))
