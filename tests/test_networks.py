"""One contract for the U-Net in all its shapes."""

from __future__ import annotations

import io
import math
import subprocess
import sys
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from monai.data import MetaTensor
from torch import nn

import medunet.networks
from medunet import verbs
from medunet.data.transforms import Frame
from medunet.data.volume import read_label
from medunet.errors import NetworkError, PlanError
from medunet.inference import WindowInferer
from medunet.inference.placement import tiles
from medunet.inference.restoring import FLOOR
from medunet.networks import UNet, nearest_valid_size, survey
from medunet.networks.receptive import fitting_size, receptive_field, tile_halo
from medunet.planning import Budget, Fingerprint, plan
from medunet.planning.fingerprint import ChannelIntensity
from medunet.planning.memory import NetworkShape, parameter_count
from medunet.planning.sizes import axes_of

VARIANTS = [
    {},
    {"norm": "batch"},
    {"norm": "group", "activation": "gelu"},
    {"norm": "none", "activation": "silu"},
    {"activation": "relu", "upsample": "interpolated"},
    {"dropout": 0.2},
    {"dropout": 0.2, "dropout_in": "encoder"},
    {"dropout": 0.2, "dropout_in": "end", "downsample": "pooled"},
    {"convs_per_level": 1},
    {"checkpointing": True},
    {"deep_supervision": 1},
]


@pytest.mark.parametrize("dims", [2, 3])
@pytest.mark.parametrize("options", VARIANTS, ids=str)
def test_contract(dims: int, options: dict[str, object]) -> None:
    torch.manual_seed(0)
    network = UNet.of_depth(3, 4, dims, in_channels=2, out_channels=3, **options)
    x = torch.randn(2, 2, *[16] * dims)
    outputs = network.train()(x)
    outputs = outputs if isinstance(outputs, list) else [outputs]
    assert [o.shape[2] for o in outputs] == [16, 8][: len(outputs)]
    assert len(outputs) == 1 + network.auxiliary_outputs
    sum(o.square().mean() for o in outputs).backward()
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in network.parameters())
    network.eval()
    with torch.no_grad():
        before = network(x)
        buffer = io.BytesIO()
        torch.save(network.state_dict(), buffer)
        buffer.seek(0)
        twin = UNet.of_depth(3, 4, dims, in_channels=2, out_channels=3, **options).eval()
        twin.load_state_dict(torch.load(buffer, weights_only=True))
        assert torch.equal(before, twin(x))
        assert before.shape == (2, 3, *[16] * dims)


@pytest.mark.parametrize(
    "options", [{}, {"dropout": 0.3}, {"dropout": 0.3, "norm": "batch"}, {"deep_supervision": 1}], ids=str
)
@pytest.mark.parametrize("dims", [2, 3])
def test_checkpointing_changes_memory_not_results(dims: int, options: dict[str, Any]) -> None:
    """The same outputs, gradients, running statistics and chance afterwards."""
    plain = UNet.of_depth(3, 4, dims, **options)
    twin = UNet.of_depth(3, 4, dims, **options, checkpointing=True)
    twin.load_state_dict(plain.state_dict())
    x, ends = torch.randn(2, 1, *[16] * dims), []
    for network in (plain, twin):
        torch.manual_seed(3)
        for _ in range(2):
            outputs = network(x)
            sum(o.square().mean() for o in (outputs if isinstance(outputs, list) else [outputs])).backward()
        ends.append((outputs, torch.rand(1)))
    assert ends[0][1] == ends[1][1]
    for a, b in zip(plain.parameters(), twin.parameters(), strict=True):
        assert torch.allclose(a.grad, b.grad, atol=1e-6)
    for name, values in twin.state_dict().items():
        assert torch.allclose(values, plain.state_dict()[name], atol=1e-6), name


def test_checkpointing_keeps_fewer_activations_and_none_in_evaluation() -> None:
    """What autograd saves for the backward pass, in bytes."""

    def saved(network: UNet) -> int:
        total = 0

        def note(tensor: torch.Tensor) -> torch.Tensor:
            nonlocal total
            total += tensor.nbytes
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
            network(torch.randn(1, 1, 32, 32, 32, requires_grad=True))
        return total

    plain, less = (UNet.of_depth(3, 8, checkpointing=on) for on in (False, True))
    assert saved(less) < 0.5 * saved(plain)
    assert saved(less.eval()) == saved(plain.eval())  # not in evaluation, as it is exported


def test_lists_give_each_level_its_own_stride_and_kernel() -> None:
    network = UNet(3, 1, 2, [4, 8, 8], [1, [2, 2, 1], [2, 2, 2]], [[3, 3, 1], [3, 3, 3], 3])
    assert network.spatial_divisor == (4, 4, 2)
    assert network(torch.randn(1, 1, 12, 8, 6)).shape == (1, 2, 12, 8, 6)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"strides": [1, 2]}, "strides has 2 levels, channels has 3"),
        ({"kernel_sizes": [3, 3]}, "kernel_sizes has 2 levels, channels has 3"),
        ({"kernel_sizes": [3, 2, 3]}, "even number"),
        ({"strides": [2, 2, 2]}, r"strides\[0\] is \[2, 2, 2\]"),
        ({"strides": [1, [2, 2], 2]}, "give 3 numbers"),
        ({"deep_supervision": 2}, "3 levels allow 0 to 1"),
        ({"dropout": 1.0}, "dropout is 1.0"),
        ({"dropout_in": "decoder"}, "give all, encoder or end"),
        ({"norm": "layer"}, "norm 'layer' is not known; take one of instance"),
        ({"activation": "tanh"}, "activation 'tanh' is not known"),
        ({"upsample": "nearest"}, "upsample 'nearest' is not known"),
        ({"downsample": "blurred"}, "downsample 'blurred' is not known"),
        ({"padding": "full"}, "padding is 'full'; give same or valid"),
        ({"padding": "valid"}, "padding valid with downsample strided and upsample transposed"),
        (
            {"padding": "valid", "downsample": "pooled", "upsample": "interpolated"},
            "upsample interpolated would look beyond its input",
        ),
        ({"padding": "valid", "downsample": "pooled", "deep_supervision": 1}, "padding valid allows 0"),
        ({"spatial_dims": 4}, "spatial_dims is 4"),
    ],
)
def test_definitions_that_do_not_fit(arguments: dict[str, object], words: str) -> None:
    base = {"spatial_dims": 3, "in_channels": 1, "out_channels": 2, "channels": [4, 8, 8], "strides": [1, 2, 2]}
    with pytest.raises(NetworkError, match=words):
        UNet(**{**base, **arguments})


def test_sizes_that_do_not_fit_name_the_nearest() -> None:
    network = UNet.of_depth(5, 2)
    with pytest.raises(
        NetworkError, match=r"\[96, 96, 61\] is not divisible by .* nearest that fits is \[96, 96, 64\]"
    ):
        network(torch.zeros(1, 1, 96, 96, 61))
    with pytest.raises(NetworkError, match="2 spatial axes; this is a 3D"):
        network(torch.zeros(1, 1, 96, 96))
    with pytest.raises(NetworkError, match="depth is 0"):
        UNet.of_depth(0)


@given(
    st.lists(st.integers(1, 300), min_size=3, max_size=3),
    st.lists(st.sampled_from([1, 2, 4, 16]), min_size=3, max_size=3),
)
def test_nearest_valid_size_is_valid_and_nearest(size: list[int], divisor: list[int]) -> None:
    for n, d, got in zip(size, divisor, nearest_valid_size(size, divisor), strict=True):
        assert got % d == 0
        assert got >= d
        assert abs(got - n) <= max(d / 2, d - n)


@settings(max_examples=15, deadline=None)
@given(
    st.sampled_from([2, 3]), st.integers(1, 4), st.integers(1, 9), st.integers(1, 3), st.integers(2, 5),
    st.integers(1, 3), st.data(),
)  # fmt: skip
def test_parameters_are_counted_without_building(
    dims: int, depth: int, base: int, inputs: int, outputs: int, convs: int, data: st.DataObject
) -> None:
    supervision = data.draw(st.integers(0, max(0, depth - 2)))
    channels = tuple(base * 2**level for level in range(depth))
    strides = ((1,) * dims, *((2,) * dims for _ in range(depth - 1)))
    kernels = tuple(tuple(data.draw(st.sampled_from([1, 3])) for _ in range(dims)) for _ in range(depth))
    network = UNet(
        dims, inputs, outputs, channels, strides, kernels, convs_per_level=convs, deep_supervision=supervision
    )
    shape = NetworkShape(inputs, outputs, channels, strides, kernels, convs, supervision)
    assert parameter_count(shape) == sum(p.numel() for p in network.parameters())


# Figure 1 of the paper, read from the left: feature channels and edge of each convolution's output.
FIGURE_1 = [
    (64, 570), (64, 568), (128, 282), (128, 280), (256, 138), (256, 136), (512, 66), (512, 64), (1024, 30), (1024, 28),
    (512, 56), (512, 54), (512, 52), (256, 104), (256, 102), (256, 100), (128, 200), (128, 198), (128, 196),
    (64, 392), (64, 390), (64, 388), (2, 388),
]  # fmt: skip


def test_the_network_of_2015_is_figure_1() -> None:
    with torch.device("meta"):
        network = UNet.of_2015()
    shapes: list[tuple[int, int]] = []
    for layer in network.modules():
        if isinstance(layer, (nn.Conv2d, nn.ConvTranspose2d)):
            layer.register_forward_hook(lambda _, __, output: shapes.append((output.shape[1], output.shape[2])))
    with torch.device("meta"):
        output = network(torch.empty(1, 1, 572, 572))
    assert shapes == FIGURE_1
    assert output.shape == (1, 2, 388, 388)
    assert network.margin == (92, 92)
    # Two 3x3 convolutions per level, 2x2 up-convolutions, a 1x1 head, all with biases.
    widths = [1, 64, 128, 256, 512, 1024]
    down = sum(9 * a * b + b + 9 * b * b + b for a, b in pairwise(widths))
    up = sum(4 * 2 * b * b + b + 9 * 2 * b * b + b + 9 * b * b + b for b in widths[1:-1])
    assert sum(p.numel() for p in network.parameters()) == down + up + 2 * 64 + 2 == 31_030_658


@pytest.mark.parametrize("dims", [2, 3])
def test_the_network_of_2015_starts_as_the_paper_says(dims: int) -> None:
    torch.manual_seed(0)
    network = UNet.of_2015(dims, base_channels=8)
    assert not [m for m in network.modules() if "Norm" in type(m).__name__]
    for layer in network.modules():
        if isinstance(layer, (nn.Conv2d, nn.Conv3d, nn.ConvTranspose2d, nn.ConvTranspose3d)):
            transposed = isinstance(layer, (nn.ConvTranspose2d, nn.ConvTranspose3d))
            incoming = layer.in_channels * (1 if transposed else math.prod(layer.kernel_size))
            if layer.weight.numel() > 3000:
                assert float(layer.weight.detach().std()) == pytest.approx(math.sqrt(2 / incoming), rel=0.05)
            assert not layer.bias.any()
    dropped = [[type(layer).__name__ for layer in block].count("Dropout") for block in network.encoder]
    assert dropped == [0, 0, 0, 1, 1]
    size = fitting_size(network, [1] * dims)
    assert size == (188,) * dims
    if dims == 2:
        x = torch.randn(1, 1, *size)
        assert not torch.equal(network.train()(x), network(x))
        assert torch.equal(network.eval()(x), network(x))


@settings(max_examples=25)
@given(
    st.integers(2, 3), st.integers(1, 4), st.integers(1, 2), st.lists(st.integers(1, 120), min_size=3, max_size=3),
    st.data(),
)  # fmt: skip
def test_sizes_without_padding(dims: int, depth: int, convs: int, wanted: list[int], data: st.DataObject) -> None:
    """What `fitting_size` gives passes, nothing between it and what was wanted does; two margins less come out."""
    strides = [1, *(tuple(data.draw(st.sampled_from([1, 2, 3])) for _ in range(dims)) for _ in range(depth - 1))]
    kernels = [tuple(data.draw(st.sampled_from([1, 3])) for _ in range(dims)) for _ in range(depth)]
    with torch.device("meta"):
        network = UNet(
            dims, 1, 2, [1] * depth, strides, kernels,
            convs_per_level=convs, norm="none", downsample="pooled", padding="valid",
        )  # fmt: skip
        size = network.fitting_size(wanted[:dims])
        output = network(torch.empty(1, 1, *size))
    assert tuple(output.shape[2:]) == tuple(n - 2 * m for n, m in zip(size, network.margin, strict=True))
    for axis, (n, want) in enumerate(zip(size, wanted, strict=False)):
        assert n >= want
        smaller = [m for m in range(1, n) if network.axes[axis].fits(m)]
        assert not smaller or smaller[-1] < want
        for below in range(max(1, n - network.spatial_divisor[axis]), n):
            if below not in smaller:
                with torch.device("meta"), pytest.raises((NetworkError, RuntimeError)):
                    layers_alone(network, torch.empty(1, 1, *(below if a == axis else m for a, m in enumerate(size))))


def layers_alone(network: UNet, x: torch.Tensor) -> torch.Tensor:
    """The layers without the check of the size: pooling must come out even and every level must keep a voxel."""
    skips = []
    for block, stride in zip(network.encoder, network.strides, strict=True):
        if any(n % s for n, s in zip(x.shape[2:], stride, strict=True)):
            raise NetworkError("odd")
        x = block(x)
        skips.append(x)
    skips.pop()
    for up, block in zip(network.ups, network.decoder, strict=True):
        x, skip = up(x), skips.pop()
        middle = tuple(slice((m - n) // 2, (m - n) // 2 + n) for n, m in zip(x.shape[2:], skip.shape[2:], strict=True))
        x = block(torch.cat((x, skip[(slice(None), slice(None), *middle)]), 1))
    return x


def test_sizes_that_do_not_pass_without_padding_name_both_neighbours() -> None:
    network = UNet.of_2015(base_channels=1)
    words = (
        r"\[570, 572\] does not pass .* \[556, 572\] below and \[572, 572\] above; the output is \[184, 184\] smaller"
    )
    with pytest.raises(NetworkError, match=words):
        network(torch.zeros(1, 1, 570, 572))
    with pytest.raises(NetworkError, match=r"\[188, 188\] below and \[188, 188\] above"):
        network(torch.zeros(1, 1, 100, 100))


def test_how_far_a_network_without_padding_sees() -> None:
    torch.manual_seed(0)
    network = UNet.of_2015(base_channels=2, depth=3)
    assert network.margin == (20, 20)
    field = receptive_field(network, 2)
    padded = UNet(2, 1, 2, [2, 4, 8], [1, 2, 2], norm="none", activation="relu", downsample="pooled", padding="same")
    assert field == receptive_field(padded, 2)  # the same layers look equally far
    assert field[0][0] >= 20
    assert network.training
    assert tile_halo(network, 2) == ((20, 20), (20, 20))  # but its results have all that they depend on
    assert tile_halo(padded, 2) == field


@pytest.mark.parametrize(
    ("dims", "shape", "patch"),
    [(2, (97, 61, 3), (76, 60)), (2, (30, 200, 1), (60, 92)), (3, (33, 47, 21), (44, 60, 44))],
)
def test_overlap_tile_is_the_whole_image_in_one_pass(dims: int, shape: tuple[int, ...], patch: tuple[int, ...]) -> None:
    """Figure 2 of the paper: mirrored at the border, in tiles, each pixel counted once, seamless."""
    torch.manual_seed(0)
    network = UNet.of_2015(dims, base_channels=4, depth=3, out_channels=3).eval()
    values = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    image = MetaTensor(torch.from_numpy(values)[None], affine=torch.eye(4, dtype=torch.float64))
    frame = Frame("RAS", (1, 1, 1), [{"scheme": "none"}])
    engine = WindowInferer(frame, {"0": 0, "1": 1, "2": 2}, patch, border="mirror", blend="exact")
    seen = frame.see(image)
    _, windows = engine.windows(seen, network)
    assert windows.count >= 4
    counted = np.zeros(windows.size, int)
    for row in windows.rows():
        for place in row.places:
            counted[tuple(slice(span.first, span.stop) for span in place)] += 1
    assert (counted == 1).all()

    before = [(n - m) // 2 for n, m in zip(windows.size, shape, strict=True)]
    around = [(b, n - m - b) for n, m, b in zip(windows.size, shape, before, strict=True)]
    mirrored = torch.from_numpy(np.pad(values, around, mode="reflect"))[None, None]
    with torch.no_grad():
        if dims == 2:
            logits = torch.stack([network(mirrored[..., z])[0] for z in range(mirrored.shape[-1])], -1)
        else:
            logits = network(mirrored)[0]
    inner = [slice(b - m, b - m + n) for b, m, n in zip(before, (*network.margin, 0), shape, strict=False)]
    expected = logits[(slice(None), *inner)].log_softmax(0).clamp(FLOOR).softmax(0)
    assert (expected.std((1, 2, 3)) > 0.02).all()
    got = torch.full((3, *shape), torch.nan)

    def keep(number: int, box: Any, part: torch.Tensor) -> None:
        got[(number, *(slice(*bounds) for bounds in box))] = part

    engine.segment([seen], network, [keep])
    assert torch.allclose(got, expected, atol=1e-5)


def test_networks_without_padding_need_no_option() -> None:
    """Whatever the blending, they run in exact tiles; those that normalise over the image are refused."""
    frame = Frame("RAS", (1, 1, 1), [{"scheme": "none"}])
    image = MetaTensor(torch.randn(1, 70, 50, 2), affine=torch.eye(4, dtype=torch.float64))[None]
    network = UNet.of_2015(2, base_channels=2, depth=3).eval()
    results = [
        WindowInferer(frame, {"0": 0, "1": 1}, (60, 60), blend=blend)(image, network) for blend in ("gaussian", "exact")
    ]
    assert torch.equal(*results)
    with pytest.raises(
        NetworkError, match=r"makes \[28, 28, 1\] of a window of \[30, 30, 1\] voxels; its attribute margin"
    ):
        WindowInferer(frame, {"0": 0, "1": 1}, (30, 30))(image, nn.Conv2d(1, 2, 3))
    seeing_all = UNet(2, 1, 2, [2, 4], [1, 2], norm="instance", downsample="pooled", padding="valid")
    with pytest.raises(NetworkError, match=r"depends on all of its input .*; plan it with norm batch or none"):
        WindowInferer(frame, {"0": 0, "1": 1}, (60, 60))(image, seeing_all)


def test_the_overlay_plans_the_network_of_2015() -> None:
    overlay = yaml.safe_load((Path(__file__).parents[1] / "configs" / "plan" / "unet2015.yaml").read_text())
    intensity = ChannelIntensity("EM", 120.0, 40.0, 0.0, 255.0, 0.0, 255.0)
    data = Fingerprint(
        name="em", digest="d", cases=30, channels=(intensity,), labels={"membrane": 0, "cell": 1},
        spacings=((1.0, 1.0, 1.0),) * 30, shapes=((512, 512, 1),) * 30, class_voxels={"membrane": 1, "cell": 1},
        class_cases={"membrane": 30, "cell": 30}, pictures=True,
    )  # fmt: skip
    made = plan(data, Budget(), overlay)
    assert made.patch_size == (572, 572)
    assert made.margin == (92, 92, 0)
    assert made.border == "mirror"
    with torch.device("meta"):
        network, twin = UNet(**made.network), UNet.of_2015()
    assert str(network) == str(twin)
    assert sum(p.numel() for p in network.parameters()) == 31_030_658
    assert "31,030,658 parameters" in made.reasons["network"]
    with pytest.raises(PlanError, match=r"\[512, 512\] does not pass .* \[508, 508\] below and \[524, 524\] above"):
        plan(data, Budget(), {**overlay, "patch_size": (512, 512)})
    with pytest.raises(PlanError, match="give more memory"):  # no smaller patch passes five levels for ever
        plan(data, Budget(memory=10**8), {k: v for k, v in overlay.items() if k != "patch_size"})


@settings(max_examples=60, deadline=None)
@given(
    levels=st.integers(1, 5), convs=st.integers(1, 3), kernel=st.sampled_from([1, 3, 5]), more=st.integers(0, 300),
    size=st.integers(1, 900),
)  # fmt: skip
def test_every_window_that_a_plan_takes_tiles_any_image(
    levels: int, convs: int, kernel: int, more: int, size: int
) -> None:
    (axis,) = axes_of([[1], *[[2]] * (levels - 1)], [[kernel]] * levels, convs, "valid")
    window = axis.tiling.above(axis.smallest + more)
    assert axis.fits(window)
    whole = max(window, axis.above(size + 2 * axis.margin))
    (spans,) = tiles([whole], [window], [(axis.margin, axis.margin)], [axis.step]).spans
    assert spans[-1].stop == whole


def test_a_patch_from_which_too_little_comes_out_is_refused() -> None:
    intensity = ChannelIntensity("MRI", 120.0, 40.0, 0.0, 255.0, 0.0, 255.0)
    data = Fingerprint(
        name="hip", digest="d", cases=4, channels=(intensity,), labels={"background": 0, "hippocampus": 1},
        spacings=((1.0, 1.0, 1.0),) * 4, shapes=((96, 96, 96),) * 4, class_voxels={"background": 1, "hippocampus": 1},
        class_cases={"background": 4, "hippocampus": 4}, pictures=False,
    )  # fmt: skip
    overlay = yaml.safe_load((Path(__file__).parents[1] / "configs" / "plan" / "unet3d2016.yaml").read_text())
    overlay |= {"base_channels": 4, "max_channels": 32}
    with pytest.raises(PlanError, match=r"\[92, 100, 100\] does not .* nearest valid value is \[100, 100, 100\]"):
        plan(data, Budget(), {**overlay, "patch_size": (92, 100, 100)}, survey)
    assert plan(data, Budget(), {**overlay, "patch_size": (100, 100, 100)}, survey).margin == (44, 44, 44)


@pytest.mark.parametrize("dims", [2, 3])
def test_without_padding_from_plan_to_prediction(dims: int, phantom_dataset: Path, tmp_path: Path) -> None:
    bundle = tmp_path / "bundle"
    chosen = {
        "dims": dims, "padding": "valid", "norm": "none", "activation": "relu", "base_channels": 4, "max_levels": 2,
        "dropout": 0.1, "dropout_in": "end", "steps_per_epoch": 3,
    }  # fmt: skip
    made = verbs.plan(phantom_dataset, bundle, Budget(epochs=1), chosen)
    assert made.network["downsample"] == "pooled"
    assert min(made.margin[:dims]) > 0
    verbs.train(bundle, 0, {"quiet": True, "device::name": "cpu"})
    assert (bundle / "models" / "model.pt").is_file()
    image = sorted((phantom_dataset / "imagesTr").glob("*.nii.gz"))[0]
    results = verbs.predict(bundle, [str(image)], tmp_path / "out", {"inferer::batch_size": 8})
    assert [r.state for r in results] == ["done"]
    engine = WindowInferer(Frame("RAS", (1, 1, 1), [{"scheme": "zscore"}]), made.labels, made.patch_size, batch_size=8)
    assert engine.together(UNet(**made.network)) == 1  # windows follow the size of the image
    (made_of,) = (tmp_path / "out").glob("*.nii.gz")
    assert read_label(made_of).array.shape == read_label(image).array.shape


def test_networks_of_our_own_need_no_monai() -> None:
    code = "import sys; import medunet.networks as n; assert 'monai' not in sys.modules; n.VNet(2, 1, 2)"
    subprocess.run([sys.executable, "-c", code], check=True)
    with pytest.raises(AttributeError, match="has no attribute 'Unet'"):
        medunet.networks.Unet  # noqa: B018
