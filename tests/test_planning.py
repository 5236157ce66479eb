"""Fingerprint and plan: rules, budgets, hand edits."""

from __future__ import annotations

import math
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from medunet import verbs
from medunet.data.grid import Grid
from medunet.data.resampling import network_grid
from medunet.errors import PlanError
from medunet.networks import UNet
from medunet.planning import Budget, Fingerprint, Plan, plan
from medunet.planning.fingerprint import ChannelIntensity
from medunet.planning.geometry import in_frame, in_world, pooling
from medunet.planning.memory import NetworkShape, training_bytes

CT = ChannelIntensity("CT", 80.0, 60.0, -100.0, 300.0, -1024.0, 3000.0)
MR = ChannelIntensity("MRI", 500.0, 100.0, 10.0, 900.0, 0.0, 40000.0)


def make(
    spacing: tuple[float, float, float] = (1.0, 1.0, 1.0),
    shape: tuple[int, int, int] = (160, 160, 120),
    cases: int = 20,
    channels: tuple[ChannelIntensity, ...] = (CT,),
    labels: tuple[str, ...] = ("background", "liver"),
    pictures: bool = False,
) -> Fingerprint:
    named = {name: number for number, name in enumerate(labels)}
    return Fingerprint(
        name="t", digest="d", cases=cases, channels=channels, labels=named, spacings=(spacing,) * cases,
        shapes=(shape,) * cases, class_voxels=dict.fromkeys(labels, 1), class_cases=dict.fromkeys(labels, cases),
        pictures=pictures,
    )  # fmt: skip


fingerprints = st.builds(
    make,
    spacing=st.tuples(*[st.floats(0.3, 8).map(lambda v: round(v, 3))] * 3),
    shape=st.tuples(st.integers(8, 400), st.integers(8, 400), st.integers(1, 300)).flatmap(st.permutations).map(tuple),
    cases=st.integers(1, 60),
    channels=st.sampled_from([(CT,), (MR,), (MR, CT)]),
    labels=st.sampled_from([("background", "a"), ("background", "left kidney", "right kidney")]),
)


@settings(max_examples=60, deadline=None)
@given(fingerprints, st.sampled_from(["cpu", "cuda"]), st.sampled_from([2, 4, 8, 24]))
def test_every_plan_fits_its_network_and_its_budget(data: Fingerprint, device: str, gigabytes: int) -> None:
    budget = Budget(memory=gigabytes * 10**9, device=device)
    result = plan(data, budget)
    assert result == plan(data, budget)
    assert Plan.from_json(result.as_json()).as_json() == result.as_json()
    strides = result.network["strides"]
    divisor = [math.prod(s[a] for s in strides) for a in range(result.dims)]
    assert len(result.patch_size) == result.dims
    assert all(n % d == 0 for n, d in zip(result.patch_size, divisor, strict=True))
    assert result.memory_estimate <= budget.memory
    assert result.batch_size >= 1
    assert len(result.window) == 3
    assert result.dims == 3 or min(result.seen["median_shape"][:2]) >= 8, "a network in 2D sees whole slices"
    assert sorted("RLAPSI".index(c) // 2 for c in result.orientation) == [0, 1, 2]
    assert set(result.reasons) >= {"dims", "spacing", "patch_size", "batch_size", "network", "normalization"}
    assert all(result.reasons.values())


@settings(max_examples=8, deadline=None)
@given(fingerprints)
def test_planned_networks_can_be_built(data: Fingerprint) -> None:
    result = plan(data, Budget(), {"base_channels": 2})
    assert UNet(**result.network).spatial_dims == result.dims


@given(st.permutations("RAS"), st.tuples(*[st.floats(0.1, 9)] * 3))
def test_frames_go_back_and_forth(codes: list[str], values: tuple[float, float, float]) -> None:
    assert in_world(in_frame(values, "".join(codes)), "".join(codes)) == values


def test_anisotropic_data_keep_their_slices() -> None:
    result = plan(make((0.8, 0.8, 6.0), (300, 300, 20)), Budget())
    assert result.orientation == "RAS"
    assert result.spacing == (0.8, 0.8, 6.0)
    assert result.network["strides"][1] == (2, 2, 1)
    assert result.network["kernel_sizes"][0] == (3, 3, 1)
    assert result.rotation[:2] == (0.0, 0.0) or max(result.patch_size) / result.patch_size[-1] <= 3


def test_sagittal_slices_go_last() -> None:
    result = plan(make((5.0, 0.9, 0.9), (24, 250, 250)), Budget())
    assert result.orientation == "ASR"
    assert result.spacing == (0.9, 0.9, 5.0)


def test_strongly_anisotropic_spacing_takes_the_tenth_percentile() -> None:
    data = make((0.8, 0.8, 6.0), (300, 300, 20))
    mixed = replace(data, spacings=((0.8, 0.8, 3.0),) * 4 + ((0.8, 0.8, 6.0),) * 16)
    assert plan(mixed, Budget()).spacing == (0.8, 0.8, 3.0)


@pytest.mark.parametrize("chosen", [{"norm": "instance"}, {"norm": "group"}, {}])
def test_without_padding_nothing_depends_on_the_whole_patch(chosen: dict[str, str]) -> None:
    """Instance and group normalisation see all of it: such a plan would be trained, and refused in prediction."""
    settings = {"padding": "valid", "max_levels": 2, "base_channels": 4, **chosen}
    if not chosen:
        assert plan(make(), Budget(), settings).network["norm"] == "batch"
        return
    with pytest.raises(PlanError, match=f"norm={chosen['norm']} does not fit padding=valid: .* give norm=batch or"):
        plan(make(), Budget(), settings)


def test_pictures_become_2d() -> None:
    result = plan(make((1.0, 1.0, 1.0), (512, 384, 1), channels=(MR,), pictures=True), Budget())
    assert result.dims == 2
    assert result.mirror_axes == (0, 1)
    assert len(result.patch_size) == 2
    assert plan(make(), Budget(), {"dims": 2}).dims == 2


@pytest.mark.parametrize("depth", [120, 1])
@pytest.mark.parametrize(
    ("names", "sided"),
    [
        (["left kidney"], "left kidney"),
        (["liver", "LeftLung"], "LeftLung"),
        (["Lung_L", "Lung_R"], "Lung_L"),  # TG-263
        (["skull", "kidney (r)"], "kidney (r)"),
        (["Lunge links"], "Lunge links"),
        (["lh.cortex"], "lh.cortex"),
        (["body", "lkid", "rkid"], "lkid"),
        (["kidl 1", "liver", "kidr 1"], "kidl 1"),
        (["RV", "LV"], "RV"),
        (["liver", "L1 vertebra", "vertebra_L2", "rib", "gland", "all"], None),
    ],
)
def test_left_and_right_are_not_mirrored(names: list[str], sided: str | None, depth: int) -> None:
    """In volumes and in pictures, such as radiographs."""
    shape = (160, 160, depth)
    data = make(shape=shape, channels=(MR,), labels=("background", *names), pictures=depth == 1)
    result = plan(data, Budget())
    assert result.mirror_axes == (() if sided else (0,) if depth > 1 else (0, 1))
    assert (f"label '{sided}' tells left from right" in result.reasons["mirror_axes"]) == (sided is not None)


@pytest.mark.parametrize(("axis", "codes"), [(0, "ASR"), (1, "RSA"), (2, "RAS")])
def test_single_slices_are_seen_as_slices_in_any_direction(axis: int, codes: str) -> None:
    shape = [256, 240, 256]
    shape[axis] = 1
    result = plan(make((1.0, 1.0, 1.0), (shape[0], shape[1], shape[2])), Budget())
    assert (result.dims, result.orientation) == (2, codes)
    assert min(result.patch_size) > 200
    assert result.mirror_axes == (() if axis == 0 else (0,)), "anatomy, not a picture"


@pytest.mark.parametrize("pixel", [0.00025, 0.0000325, 0.00065, 0.0846667])
def test_pixels_of_microscopes_and_printers_keep_their_size(pixel: float) -> None:
    result = plan(make((pixel, pixel, 1.0), (4000, 3000, 1), channels=(MR,), pictures=True), Budget())
    assert result.spacing == (pixel, pixel, 1.0)
    native = Grid.from_spacing((4000, 3000, 1), (pixel, pixel, 1.0))
    assert network_grid(native, result.orientation, result.spacing) == native, "nothing is interpolated"


def test_ct_uses_the_foreground_and_others_their_own_scale() -> None:
    schemes = plan(make(channels=(CT, MR)), Budget()).normalization
    assert schemes[0] == {"scheme": "ct", "low": -100.0, "high": 300.0, "mean": 80.0, "std": 60.0}
    assert schemes[1] == {"scheme": "zscore"}


def test_less_memory_means_a_smaller_patch_or_batch() -> None:
    large, small = (plan(make(), Budget(memory=m, device="cuda")) for m in (24 * 10**9, 3 * 10**9))
    assert math.prod(small.patch_size) * small.batch_size < math.prod(large.patch_size) * large.batch_size


def test_pooling_follows_the_spacing() -> None:
    strides, kernels = pooling((64, 64, 16), (1.0, 1.0, 4.0), 7)
    assert strides[1:3] == ((2, 2, 1), (2, 2, 1))
    assert kernels[0] == (3, 3, 1)
    assert kernels[-1] == (3, 3, 3)


@pytest.mark.parametrize(
    ("chosen", "words"),
    [
        ({"patch_size": [96, 96, 61]}, r"nearest valid value is \[96, 96, 64\]"),
        ({"patch_size": [96, 96]}, "a 3D plan takes 3 numbers"),
        ({"dims": 2, "patch_size": [96, 96, 96]}, "a 2D plan takes 2 numbers"),
        ({"overlap": 1.0}, "below 1"),
        ({"normalization": [{"scheme": "zscore"}] * 2}, r"has 2 entries; give one per channel \(CT\)"),
        ({"normalization": [{"scheme": "ct", "low": 0, "high": 1}]}, "scheme ct lacks mean, std"),
        ({"dims": 2, "mirror_axes": [2]}, "a 2D plan has axes 0 to 1"),
        ({"mirror_axes": [0], "predict_mirror_axes": [0, 1]}, r"mirrors along \[0\], .* no mirror images along \[1\]"),
        ({"mirror_axes": [], "predict_mirror_axes": [0]}, "training mirrors along no axis"),
        ({"rotation": [0.1]}, r"a 3D plan takes 3 angle\(s\)"),
        ({"norm": "layer"}, "one of instance, batch, group, none"),
        ({"learning_rat": 0.1}, "did you mean learning_rate"),
        ({"colour": 1}, "known are "),
        ({"orientation": "RAA"}, "three axis codes"),
        ({"patch_size": [512, 512, 512]}, "takes about .* GB, the budget is 8.0 GB"),
    ],
)
def test_hand_edits_are_checked(chosen: dict[str, object], words: str) -> None:
    with pytest.raises(PlanError, match=words):
        plan(make(), Budget(), chosen)


def test_hand_edits_are_kept_and_everything_else_follows() -> None:
    result = plan(make(), Budget(), {"patch_size": [32, 32, 32], "base_channels": 8, "spacing": [2.0, 2.0, 2.0]})
    assert result.patch_size == (32, 32, 32)
    assert result.network["channels"][0] == 8
    assert result.reasons["patch_size"].startswith("chosen by the user")


def test_activations_are_recomputed_before_the_patch_shrinks() -> None:
    """The same data with less and less memory: first the batch, then recomputing, then the patch."""

    def planned(gigabytes: float, **chosen: object) -> Plan:
        return plan(make(), Budget(memory=int(gigabytes * 1e9), device="cuda"), chosen)

    ample, tight, tighter = planned(24), planned(16), planned(3)
    assert (ample.patch_size, ample.network["checkpointing"]) == ((160, 160, 128), False)
    assert "checkpointing" not in ample.reasons
    assert (tight.patch_size, tight.batch_size, tight.network["checkpointing"]) == (ample.patch_size, 2, True)
    assert "computed again in the backward pass, about a third more time" in tight.reasons["checkpointing"]
    assert "a batch of 2 would take 17.9 GB without" in tight.reasons["checkpointing"]
    assert math.prod(tighter.patch_size) < math.prod(tight.patch_size)
    assert tighter.memory_estimate <= 3e9
    assert tighter.reasons["patch_size"] == "the largest in the data's proportions that fits 3 GB of memory"
    assert ample.reasons["patch_size"].startswith("the median case, ")
    refused = planned(16, checkpointing=False)
    assert not refused.network["checkpointing"]
    assert math.prod(refused.patch_size) < math.prod(tight.patch_size)
    chosen = planned(24, checkpointing=True)
    assert chosen.network["checkpointing"]
    assert chosen.batch_size >= ample.batch_size
    kept = planned(16, patch_size=[160, 160, 128], batch_size=2)
    assert kept.network["checkpointing"]


def test_the_fingerprint_of_real_mr(real_data: Callable[[str], Path]) -> None:
    data = verbs.fingerprint(real_data("hippocampus"))
    assert data.cases == 208
    assert data.median_spacing == (1.0, 1.0, 1.0)
    assert data.labels == {"background": 0, "Anterior": 1, "Posterior": 2}
    assert plan(data, Budget()).patch_size == (40, 56, 40)


MEASURE = """
import json, sys, torch
from medunet.networks import UNet
from medunet.training.losses import DiceCE
torch.set_num_threads(1)
base, depth, supervision, batch, patch, less = json.loads(sys.argv[1])
network = UNet.of_depth(depth, base, len(patch), out_channels=3, deep_supervision=supervision, checkpointing=less)
loss, optimizer = DiceCE(3), torch.optim.AdamW(network.parameters())
def kept(key):  # of this program: ru_maxrss would count what started it
    return int(open('/proc/self/status').read().split(key + ':')[1].split()[0]) * 1024
def step(size, batch):
    label = torch.randint(0, 3, (batch, 1, *size), dtype=torch.uint8)
    loss(network(torch.randn(batch, 1, *size)), label).backward()
    optimizer.step(); optimizer.zero_grad()
step([32] * len(patch), 1)
before = kept('RssAnon') - 16 * sum(p.numel() for p in network.parameters())
for _ in range(2): step(patch, batch)
print(kept('VmHWM') - kept('RssFile') - before)  # libraries' pages come and go
"""


@pytest.mark.parametrize(
    ("base", "depth", "supervision", "batch", "patch", "checkpointing"),
    [
        (16, 4, 2, 4, [40, 56, 40], False),
        pytest.param(32, 4, 0, 2, [64, 64, 64], False, marks=pytest.mark.slow),
        (16, 5, 2, 8, [256, 256], False),
        (32, 4, 0, 2, [64, 64, 64], True),
        (16, 5, 2, 8, [256, 256], True),
    ],
)
@pytest.mark.skipif(sys.platform != "linux", reason="peak memory is read in Linux's units")
def test_the_memory_estimate_is_what_a_step_takes(
    base: int, depth: int, supervision: int, batch: int, patch: list[int], checkpointing: bool
) -> None:
    import json

    words = json.dumps([base, depth, supervision, batch, patch, checkpointing])
    done = subprocess.run([sys.executable, "-c", MEASURE, words], capture_output=True, text=True, check=True)
    dims = len(patch)
    shape = NetworkShape(
        1, 3, tuple(base * 2**i for i in range(depth)), tuple((1 if i == 0 else 2,) * dims for i in range(depth)),
        ((3,) * dims,) * depth, 2, supervision, checkpointing=checkpointing,
    )  # fmt: skip
    ratio = training_bytes(shape, patch, batch, "cpu") / float(done.stdout)
    assert 0.8 < ratio < 1.3
