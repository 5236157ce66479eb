"""One contract for all descendants of the U-Net, from the overlay to the prediction."""

from __future__ import annotations

import importlib.util
import io
import json
import re
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from monai.networks import nets
from torch import Tensor, nn

from medunet import verbs
from medunet.bundle.writer import plan_block
from medunet.data.volume import read_label
from medunet.errors import NetworkError, PlanError
from medunet.inference.backends import make_backend
from medunet.networks import UNETR, DynUNet, Ensemble, NestedUNet, SegResNet, SwinUNETR, UNet, VNet, survey
from medunet.networks import member as family_member
from medunet.networks.mednext import MedNeXtBlock
from medunet.networks.receptive import fitting_size, output_margin, tile_halo
from medunet.networks.residual import PreactivatedBlock, ResidualBlock
from medunet.networks.skips import Attended
from medunet.planning import Budget, Plan, plan
from medunet.training import DiceCE
from medunet.trust.inspection.audit import audit
from tests.test_planning import make

OVERLAYS = {path.stem: path for path in sorted((Path(__file__).parents[1] / "configs" / "plan").glob("*.yaml"))}
NOT_NETWORKS = {"large", "regularised", "slices", "small"}
MEMBERS = sorted(set(OVERLAYS) - NOT_NETWORKS)
TRANSFORMERS = ("unetr", "swinunetr")
TINY: dict[str, dict[str, Any]] = {
    "unetr": {"base_channels": 4, "hidden_size": 24, "mlp_dim": 48, "num_heads": 4},
    "swinunetr": {"base_channels": 12, "window_size": 4},
    "segresnet": {"base_channels": 8},
    "vnet": {},
    "efficientnet": {},
}
"""Arguments that make a network small; the others take ``base_channels`` and ``max_levels`` of the plan."""
ONLY = {"unet2015": (2,), "unet3d2016": (3,)}
SIZES = {"efficientnet": 64, "swinunetr": 64, "unetr": 32, "vnet": 32, "unet3d2016": 52, "unet2015": 44}
CASES = [(member, dims) for member in MEMBERS for dims in ONLY.get(member, (2, 3))]


def tiny_settings(member: str, dims: int) -> dict[str, Any]:
    """An overlay with the smallest numbers."""
    if member in TRANSFORMERS:
        pytest.importorskip("einops")
    settings = {"dims": dims, **yaml.safe_load(OVERLAYS[member].read_text()), "batch_size": 2, "steps_per_epoch": 2}
    settings["patch_size"] = [SIZES.get(member, 16)] * dims
    if member in TINY:
        return {**settings, "network": {**settings["network"], **TINY[member]}}
    return {**settings, "base_channels": 4, "max_levels": 3}


def tiny(member: str, dims: int) -> tuple[nn.Module, Plan]:
    """The network of an overlay as a plan would have it."""
    made = plan(make((1.0, 1.0, 1.0), (96, 96, 96)), Budget(), tiny_settings(member, dims), survey)
    return built(made.network), made


def built(definition: Mapping[str, Any]) -> nn.Module:
    arguments = {key: value for key, value in definition.items() if key != "_target_"}
    return family_member(str(definition.get("_target_", "medunet.networks.UNet")))(**arguments)


def batch_of(member: str, dims: int) -> int:
    return 1 if dims == 3 and member in ("swinunetr", "efficientnet") else 2


@pytest.mark.parametrize(("member", "dims"), CASES)
def test_contract(member: str, dims: int) -> None:
    torch.manual_seed(0)
    network, made = tiny(member, dims)
    assert fitting_size(network, made.patch_size) == made.patch_size
    loss, optimizer = DiceCE(2), torch.optim.AdamW(network.parameters(), lr=1e-3)
    image = torch.randn(batch_of(member, dims), 1, *made.patch_size)
    label = (image > 0.5).float()
    network.train()
    for _ in range(3):
        outputs = network(image)
        optimizer.zero_grad()
        value = loss(outputs, label)
        assert torch.isfinite(value)
        value.backward()
        optimizer.step()
    unused = [name for name, p in network.named_parameters() if p.grad is None or not torch.isfinite(p.grad).all()]
    assert unused == []
    listed = outputs if isinstance(outputs, list) else [outputs]
    assert len(listed) == 1 + network.auxiliary_outputs
    assert [o.shape[2] for o in listed] == sorted((o.shape[2] for o in listed), reverse=True)
    inner = tuple(n - 2 * m for n, m in zip(made.patch_size, output_margin(network, dims), strict=True))
    assert listed[0].shape == (len(image), 2, *inner)
    network.eval()
    with torch.no_grad():
        before = network(image[:1])
        buffer = io.BytesIO()
        torch.save(network.state_dict(), buffer)
        buffer.seek(0)
        twin = built(made.network).eval()
        twin.load_state_dict(torch.load(buffer, weights_only=True))
        assert isinstance(before, Tensor)
        assert torch.equal(before, twin(image[:1]))


@pytest.mark.parametrize(
    ("member", "dims"),
    [
        pytest.param(member, dims, marks=[pytest.mark.slow] if dims != min(ONLY.get(member, (2,))) else [])
        for member, dims in CASES
    ],
)
def test_from_overlay_to_prediction(
    member: str, dims: int, phantom_dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MONAI_EVAL_EXPR", "0")
    bundle = tmp_path / "bundle"
    made = verbs.plan(phantom_dataset, bundle, Budget(epochs=1), tiny_settings(member, dims))
    assert made.memory_estimate > 0
    assert audit(bundle).verdict == "safe"
    verbs.train(bundle, 0, {"quiet": True, "device::name": "cpu"})
    assert (bundle / "models" / "model.pt").is_file()
    image = sorted((phantom_dataset / "imagesTr").glob("*.nii.gz"))[0]
    results = verbs.predict(bundle, [str(image)], tmp_path / "out", {"inferer::backend": "torch"})
    assert [r.state for r in results] == ["done"]
    (found,) = (tmp_path / "out").glob("*.nii.gz")
    assert read_label(found).array.shape == read_label(image).array.shape


# --- exporting

CANNOT = {("unetr", 2): "does not compute what PyTorch does", ("swinunetr", 2): "cannot run this network",
          ("swinunetr", 3): "cannot run this network"}  # fmt: skip
"""What OpenVINO cannot do, as docs/networks.md says."""


@pytest.mark.parametrize(
    ("member", "dims"),
    [
        pytest.param(m, d, marks=[pytest.mark.slow] if d == 3 or m not in ("attention", "unetplusplus") else [])
        for m, d in CASES
    ],
)
def test_onnx_and_openvino_compute_the_same(member: str, dims: int) -> None:
    pytest.importorskip("openvino")
    pytest.importorskip("onnxruntime")
    torch.manual_seed(0)
    network, made = tiny(member, dims)
    network.eval()
    image = torch.randn(1, 1, *made.patch_size)
    with torch.no_grad():
        expected = network(image)
    for backend in ("onnx", "openvino"):
        if backend == "openvino" and (member, dims) in CANNOT:
            with pytest.raises(NetworkError, match=re.escape(CANNOT[member, dims])):
                make_backend(backend, network, "cpu", made.patch_size, 1)
            continue
        logits = make_backend(backend, network, "cpu", made.patch_size, 1)(image)
        assert torch.allclose(logits, expected, atol=1e-3)


# --- sizes


@pytest.mark.parametrize(
    ("member", "size", "words"),
    [
        (
            "attention",
            [18, 16],
            r"\[18, 16\] does not fit; UNet takes multiples of \[4, 4\] .* is \[20, 16\]",
        ),
        ("swinunetr", [96, 33, 96], r"takes multiples of \[32, 32, 32\] from \[64, 64, 64\] on, .* is \[96, 64, 96\]"),
        ("efficientnet", [100, 100], r"EfficientUNet takes multiples of \[32, 32\] .* is \[96, 96\]"),
        ("unetr", [40, 57, 40], r"UNETR takes multiples of \[16, 16, 16\] .* is \[48, 64, 48\]"),
        ("vnet", [24, 24], r"VNet takes multiples of \[16, 16\] .* is \[32, 32\]"),
        ("segresnet", [20, 20], r"SegResNet takes multiples of \[8, 8\] .* is \[24, 24\]"),
    ],
)
def test_impossible_patches_are_refused_with_the_nearest(member: str, size: list[int], words: str) -> None:
    settings = {**tiny_settings(member, len(size)), "patch_size": size}
    with pytest.raises(PlanError, match=words):
        plan(make(), Budget(), settings, survey)


def test_impossible_inputs_are_refused_with_the_nearest() -> None:
    pytest.importorskip("einops")
    swin, unetr = SwinUNETR(2, 1, 2, 12), UNETR(2, 1, 2, [32, 48], 4, 24, 48, 4)
    words = r"\[40, 96\] is not divisible by \[32, 32\] or is below \[64, 64\]; the nearest that fits is \[64, 96\]"
    with pytest.raises(NetworkError, match=words):
        swin(torch.zeros(1, 1, 40, 96))
    with pytest.raises(NetworkError, match=r"\[48, 48\] does not pass; this UNETR was made for \[32, 48\]"):
        unetr(torch.zeros(1, 1, 48, 48))
    with pytest.raises(NetworkError, match=r"takes inputs of \[32, 48\] alone, not \[33, 48\]"):
        unetr.fitting_size([33, 48])
    with pytest.raises(NetworkError, match=r"\[40, 32\] is not divisible by \[16, 16\]; .* is \[48, 32\]"):
        UNETR(2, 1, 2, [40, 32])
    with pytest.raises(NetworkError, match="3 spatial axes; this is a 2D SwinUNETR"):
        swin(torch.zeros(1, 1, 64, 64, 64))
    nested = NestedUNet(2, 1, 2, [2, 4, 4], [1, 2, 2])
    with pytest.raises(NetworkError, match=r"\[18, 16\] is not divisible by \[4, 4\]; .* is \[20, 16\]"):
        nested(torch.zeros(1, 1, 18, 16))
    assert tile_halo(swin, 2) is None
    assert tile_halo(unetr, 2) is None
    assert tile_halo(Ensemble(unetr), 2) is None


def test_patches_follow_the_network_when_none_is_chosen() -> None:
    pytest.importorskip("einops")
    data = make((1.0, 1.0, 1.0), (40, 57, 43))
    for member, patch in (("unetr", (48, 64, 48)), ("segresnet", (40, 64, 48))):
        settings = {k: v for k, v in tiny_settings(member, 3).items() if k != "patch_size"}
        made = plan(data, Budget(), settings, survey)
        assert made.patch_size == patch
        assert "inputs of multiples of" in made.reasons["network"]
        assert f"{sum(p.numel() for p in built(made.network).parameters()):,} parameters" in made.reasons["network"]
    assert built(plan(data, Budget(), tiny_settings("unetr", 3), survey).network).img_size == (32, 32, 32)


def test_an_axis_that_cannot_shrink_leaves_it_to_the_others() -> None:
    """A thin volume has the smallest patch across; what does not fit the memory is cut in the plane."""
    settings = {k: v for k, v in tiny_settings("efficientnet", 3).items() if k != "patch_size"}
    made = plan(make((1.0, 1.0, 1.0), (256, 256, 8)), Budget(memory=3 * 10**9), settings, survey)
    assert made.patch_size[2] == 64
    assert 64 <= made.patch_size[0] < 192
    assert made.memory_estimate <= 3 * 10**9
    with pytest.raises(PlanError, match="GB; give more memory, a smaller patch_size or another network"):
        plan(make((1.0, 1.0, 1.0), (256, 256, 8)), Budget(memory=3 * 10**8), settings, survey)


@pytest.mark.parametrize(
    ("member", "chosen", "words"),
    [
        ("vnet", {"norm": "batch"}, r"plan setting norm has no place in medunet.networks.VNet; leave it out"),
        ("vnet", {"base_channels": 8}, "base_channels has no place"),
        ("unetplusplus", {"padding": "valid"}, "padding has no place"),
        ("attention", {"skip": "max"}, "one of concat, attention, sum, none"),
        ("attention", {"network": {"name": "x"}}, "a mapping {_target_: NAME.OF.A.CLASS"),
        ("attention", {"memory_": 1}, "is not known"),
        ("mednext", {"base_channels": 64, "patch_size": [256, 256, 256]}, "give more memory"),
    ],
)
def test_settings_without_a_place_are_refused(member: str, chosen: dict[str, Any], words: str) -> None:
    with pytest.raises(PlanError, match=words):
        plan(make(), Budget(), {**tiny_settings(member, 3), **chosen}, survey)


@pytest.mark.parametrize(
    ("definition", "words"),
    [
        ({"_target_": "medunet.networks.Nothing"}, "medunet.networks.Nothing is not there .* full name of a class"),
        ({"_target_": "medunet.networks.VNet", "depth": 3}, "cannot be built with .* unexpected keyword"),
        ({"_target_": "medunet.networks.nearest_valid_size", "size": [1], "divisor": [1]}, "is no torch.nn.Module"),
        ({"_target_": "medunet.networks.SegResNet", "base_channels": 12}, "multiples of 8, not 12; the nearest is 16"),
        ({"_target_": "medunet.networks.EfficientUNet", "backbone": "resnet10"}, "backbone 'resnet10' is not known"),
        ({"_target_": "medunet.networks.SegResNet", "blocks_up": [1]}, "one fewer than blocks_down"),
    ],
)
def test_networks_that_cannot_be_built(definition: dict[str, Any], words: str) -> None:
    with pytest.raises(NetworkError, match=words):
        plan(make(), Budget(), {"network": definition}, survey)


def test_a_plan_with_another_network_needs_a_survey() -> None:
    with pytest.raises(PlanError, match=r"needs a survey; give medunet\.networks\.survey"):
        plan(make(), Budget(), {"skip": "sum"})
    with pytest.raises(NetworkError, match="cannot with in_channels=3; give 1, 2, 4, 8 or 16"):
        VNet(3, 3, 2)


def test_any_network_can_be_planned(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ten lines of a stranger, without our protocol: sizes are multiples of 32, the plan gives what is asked for."""
    (tmp_path / "stranger.py").write_text(
        "from torch import nn\n"
        "class Net(nn.Sequential):\n"
        "    def __init__(self, spatial_dims, in_channels, out_channels, channels, extra=1):\n"
        "        super().__init__(nn.Conv3d(in_channels, channels[0] * extra, 1), nn.ReLU(),\n"
        "                         nn.Conv3d(channels[0] * extra, out_channels, 1))\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    made = plan(make(), Budget(), {"network": {"_target_": "stranger.Net", "extra": 3}, "base_channels": 5}, survey)
    assert made.network["_target_"] == "stranger.Net"
    assert made.network["channels"][0] == 5
    assert all(n % 32 == 0 for n in made.patch_size)
    assert made.reasons["network"].endswith("62 parameters")


STRANGER = """
import torch
from torch import nn
class Net(nn.Conv3d):
    spatial_divisor = (4, 4, 4)
    def __init__(self, in_channels, out_channels, way="same", kernel=1):
        super().__init__(in_channels, out_channels, kernel)
        self.way, self.other = way, torch.ones(1)
        self.margin = (kernel // 2,) * 3
        if way == "odd":
            self.spatial_divisor = (3, 3, 3)
    def fitting_size(self, size):
        return [max(2, -(-(n - 2) // 4) * 4 + 2) for n in size]
    def forward(self, x):
        assert all((n - 2) % 4 == 0 for n in x.shape[2:]), x.shape
        y = super().forward(x)
        return {"item": lambda: y * y.sum().item(), "cpu": lambda: y * self.other, "dict": lambda: {"y": y}}.get(
            self.way, lambda: y)()
"""


@pytest.fixture
def stranger(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Plan]:
    """A plan with somebody's network that takes sizes of 4k + 2; arguments are the network's."""
    (tmp_path / "sized_stranger.py").write_text(STRANGER)
    monkeypatch.syspath_prepend(str(tmp_path))
    return lambda **own: plan(make(), Budget(), {"network": {"_target_": "sized_stranger.Net", **own}}, survey)


def test_a_network_says_which_sizes_pass_and_what_is_lost(stranger: Callable[..., Plan]) -> None:
    padded, valid = stranger(), stranger(kernel=5)
    assert all(n % 4 == 2 for made in (padded, valid) for n in made.patch_size)
    assert (padded.margin, padded.border) == ((0, 0, 0), "constant")
    assert (valid.margin, valid.border) == ((2, 2, 2), "mirror")
    assert plan_block(valid)["margin"] == [2, 2, 2]


@pytest.mark.parametrize(
    ("way", "words"),
    [
        ("item", r"network Net cannot be measured with an input of .*item.*; its forward must work without numbers"),
        ("cpu", "network Net cannot be measured with .*; its forward must work without numbers"),
        ("dict", "network Net cannot be measured with .* give a tensor or a list"),
        ("odd", r"takes \[2, 2, 2\] and not \[5, 5, 5\], with a spatial_divisor of \[3, 3, 3\]"),
    ],
)
def test_a_network_that_cannot_be_measured_says_why(stranger: Callable[..., Plan], way: str, words: str) -> None:
    with pytest.raises(NetworkError, match=words):
        stranger(way=way)


# --- what the papers say


def test_the_network_of_2016_is_figure_2() -> None:
    with torch.device("meta"):
        network = UNet.of_2016()
        output = network(torch.empty(2, 3, 132, 132, 116))
    assert output.shape == (2, 3, 44, 44, 28)
    count = sum(p.numel() for p in network.parameters())
    norms = sum(p.numel() for m in network.modules() if isinstance(m, nn.BatchNorm3d) for p in m.parameters())
    ups = sum(m.bias.numel() for m in network.modules() if isinstance(m, nn.ConvTranspose3d))
    # The paper's number leaves out batch normalisation and the biases of up-convolutions.
    assert count - norms - ups == 19_069_955
    widths = [(m.in_channels, m.out_channels) for m in network.modules() if isinstance(m, nn.Conv3d)]
    assert widths[:8] == [(3, 32), (32, 64), (64, 64), (64, 128), (128, 128), (128, 256), (256, 256), (256, 512)]
    assert (768, 256) in widths


def test_resenc_has_the_parameters_of_nnunet() -> None:
    """dynamic-network-architectures 0.4: ResidualEncoderUNet(1, 4, [8, 16, 32, 64], Conv3d, 3, [1, 2, 2, 2],
    [1, 3, 4, 6], 3, 1, conv_bias=True, InstanceNorm3d affine, LeakyReLU, deep_supervision=True)."""
    network = UNet(
        3, 1, 3, [8, 16, 32, 64], [1, 2, 2, 2], convs_per_level=[1, 3, 4, 6], decoder_convs=1, block="residual",
        decoder_block="plain", deep_supervision=2,
    )  # fmt: skip
    assert sum(p.numel() for p in network.parameters()) == 1_621_681
    made = plan(make(), Budget(), yaml.safe_load(OVERLAYS["resenc"].read_text()), survey)
    assert made.network["convs_per_level"] == [1, 3, 4, 6, 6][: len(made.network["channels"])]


@pytest.mark.parametrize("dims", [2, 3])
def test_mednext_computes_what_monais_does(dims: int) -> None:
    torch.manual_seed(0)
    theirs = nets.MedNeXt(
        dims, 4, 2, 3, kernel_size=3, use_residual_connection=True, blocks_down=(1, 2), blocks_bottleneck=2,
        blocks_up=(2, 1),
    ).eval()  # fmt: skip
    ours = UNet(
        dims, 2, 3, [4, 8, 16], [1, 2, 2], convs_per_level=[1, 2, 2], block="mednext", skip="sum", activation="gelu"
    ).eval()

    def take(own: Any, other: Any) -> None:
        for mine, his in zip(own.layers[::1], (other.conv1, other.norm, other.conv2, None, other.conv3), strict=True):
            if his is not None:
                mine.load_state_dict(his.state_dict())
        if hasattr(other, "res_conv"):
            shortcut = own.shortcut[0] if isinstance(own.shortcut, nn.Sequential) else own.shortcut
            shortcut.load_state_dict(other.res_conv.state_dict())

    ours.encoder[0][0].load_state_dict(theirs.stem.state_dict())
    stages = [*theirs.enc_stages, theirs.bottleneck]
    for level, stage in enumerate(stages):
        if level:
            take(ours.encoder[level][0], theirs.down_blocks[level - 1])
        for own, other in zip(ours.encoder[level][1:], stage, strict=True):
            take(own, other)
    for own_up, up, own_stage, stage in zip(ours.ups, theirs.up_blocks, ours.decoder, theirs.dec_stages, strict=True):
        take(own_up, up)
        for own, other in zip(own_stage, stage, strict=True):
            take(own, other)
    head = theirs.out_0.conv_out
    ours.heads[0].load_state_dict({"weight": head.weight.transpose(0, 1), "bias": head.bias})
    image = torch.randn(2, 2, *[16] * dims)
    with torch.no_grad():
        assert torch.allclose(ours(image), theirs(image), atol=1e-5)


@pytest.mark.parametrize("dims", [2, 3])
def test_adapters_compute_what_monais_networks_do(dims: int) -> None:
    torch.manual_seed(0)
    pairs: list[tuple[Any, nn.Module, int]] = [
        (SegResNet(dims, 1, 2, 8), nets.SegResNet(dims, 8, 1, 2, blocks_down=(1, 2, 2, 4)), 16),
        (VNet(dims, 1, 2), nets.VNet(dims, 1, 2), 16),
        (
            DynUNet(dims, 1, 2, [4, 8, 8], [1, 2, 2], deep_supervision=1),
            nets.DynUNet(dims, 1, 2, [3] * 3, [1, 2, 2], [2, 2], [4, 8, 8], deep_supervision=True),
            16,
        ),
    ]
    if importlib.util.find_spec("einops"):
        size = [32] * dims
        pairs.append(
            (UNETR(dims, 1, 2, size, 4, 24, 48, 4), nets.UNETR(1, 2, size, 4, 24, 48, 4, spatial_dims=dims), 32)
        )
    for ours, theirs, edge in pairs:
        missing = ours.net.load_state_dict(theirs.state_dict(), strict=False)
        assert missing.missing_keys == []
        assert all("norm_cross_attn" in key for key in missing.unexpected_keys)
        image = torch.randn(1, 1, *[edge] * dims)
        with torch.no_grad():
            assert torch.equal(ours.eval()(image), theirs.eval()(image))


@pytest.mark.parametrize(("dims", "count"), [(2, 9_358_730), (3, 45_597_898)])
def test_vnets_parameters(dims: int, count: int) -> None:
    """MONAI's V-Net of one channel and two classes."""
    assert sum(p.numel() for p in VNet(dims, 1, 2).parameters()) == count


def test_unetr_is_as_large_as_its_paper_says() -> None:
    """92.58 million parameters (table 4 of the paper) for 96 x 96 x 96, feature size 16, 14 classes."""
    pytest.importorskip("einops")
    with torch.device("meta"):
        network = UNETR(3, 1, 14, [96, 96, 96])
    assert sum(p.numel() for p in network.parameters()) == pytest.approx(92.58e6, rel=0.01)


def test_unetplusplus_is_dense() -> None:
    network = NestedUNet(2, 1, 2, [2, 4, 6, 8], [1, 2, 2, 2], deep_supervision=2)
    assert set(network.nodes) == {f"{i}_{j}" for i in range(4) for j in range(4 - i)}
    for name, node in network.nodes.items():
        level, column = map(int, name.split("_"))
        if column:
            assert node[0].in_channels == (column + 1) * [2, 4, 6, 8][level]
    image = torch.randn(1, 1, 16, 16)
    outputs = network(image)
    assert [tuple(o.shape) for o in outputs] == [(1, 2, 16, 16)] * 3
    for column in (3, 2, 1):  # an output sees the nodes of its column and before, and none behind
        network.zero_grad()
        outputs[3 - column].sum().backward(retain_graph=True)
        reached = {name for name, node in network.nodes.items() if node[0].weight.grad is not None}
        assert reached == {name for name in network.nodes if sum(map(int, name.split("_"))) <= column}


@pytest.mark.parametrize(("dims", "stride"), [(2, (2, 2)), (3, (2, 2, 1))])
def test_attention_gates_are_weights(dims: int, stride: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    join = Attended(dims, 4, 6, stride)
    nn.init.constant_(join.psi.bias, -3.0)
    skip, below = 20 * torch.randn(2, 4, *[8] * dims), 20 * torch.randn(2, 6, *[8 // s for s in stride])
    gate = join.gate(skip, below)
    assert gate.shape == (2, 1, *[8] * dims)
    assert 0 <= float(gate.min()) < 0.1 < 0.9 < float(gate.max()) <= 1
    up = torch.randn(2, 4, *[8] * dims)
    assert torch.equal(join(up, skip, below), torch.cat((up, skip * gate), 1))
    nn.init.zeros_(join.psi.weight)
    nn.init.zeros_(join.psi.bias)
    assert torch.allclose(join.gate(skip, below), torch.full_like(gate, 0.5))


@pytest.mark.parametrize("dims", [2, 3])
def test_residual_blocks_without_weights_are_the_identity(dims: int) -> None:
    size, options = ((3,) * dims, (1,) * dims), {"norm": "instance", "act": "leaky_relu", "dropout": 0.0}
    image = torch.randn(2, 4, *[6] * dims)
    before = image.clone()
    for block in (
        ResidualBlock(dims, 4, 4, *size, **options),
        PreactivatedBlock(dims, 4, 4, *size, **{**options, "norm": "none"}),
        MedNeXtBlock(dims, 4, 4, *size, expansion=2, **options),
    ):
        for parameter in block.parameters():
            nn.init.zeros_(parameter)
        expected = nn.functional.leaky_relu(image, 0.01) if isinstance(block, ResidualBlock) else image
        assert torch.equal(block(image), expected)
        assert torch.equal(image, before)


def test_what_crosses_the_skip_connections() -> None:
    """With a dead bottom only skip connections tell anything of the image."""
    image = torch.randn(1, 1, 16, 16)
    for skip, sees in (("concat", True), ("sum", True), ("attention", True), ("none", False)):
        torch.manual_seed(0)
        network = UNet(2, 1, 2, [4, 8, 8], [1, 2, 2], skip=skip, norm="none").eval()
        for parameter in network.encoder[-1].parameters():
            nn.init.zeros_(parameter)
        with torch.no_grad():
            apart = float((network(image) - network(-image)).abs().max())
        assert (apart > 1e-4) is sees


def test_a_dilated_bottom_sees_farther() -> None:
    plain, dilated = (
        tile_halo(UNet(2, 1, 2, [2, 4, 4], [1, 2, 2], norm="none", bottleneck=kind), 2) for kind in ("plain", "dilated")
    )
    assert plain is not None
    assert dilated is not None
    assert dilated[0][0] - plain[0][0] == 4 * 4  # four taps of the largest rate on a grid of four voxels


@pytest.mark.parametrize(
    "options", [{"block": "residual"}, {"block": "mednext", "skip": "sum"}, {"skip": "attention"}, "nested"]
)
def test_checkpointing_changes_memory_not_results(options: Any) -> None:
    torch.manual_seed(0)
    kind, arguments = (NestedUNet, {}) if options == "nested" else (UNet, dict(options))
    plain, twin = (kind(2, 1, 2, [4, 8, 8], [1, 2, 2], checkpointing=c, **arguments) for c in (False, True))
    twin.load_state_dict(plain.state_dict())
    image = torch.randn(1, 1, 16, 16)
    for network in (plain, twin):
        network(image).square().mean().backward()
    for a, b in zip(plain.parameters(), twin.parameters(), strict=True):
        assert torch.allclose(a.grad, b.grad, atol=1e-6)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"block": "dense"}, "block 'dense' is not known; take one of plain, residual, preactivated, mednext"),
        ({"skip": "max"}, "skip 'max' is not known"),
        ({"bottleneck": "wide"}, "bottleneck 'wide' is not known; take plain or dilated"),
        ({"widening": "never"}, "widening 'never' is not known"),
        ({"widening": "leaving", "skip": "sum"}, "widening leaving needs plain blocks"),
        ({"widening": "leaving", "block": "residual"}, "widening leaving needs plain blocks"),
        ({"convs_per_level": [1, 2]}, r"convs_per_level is \[1, 2\]; give a number >= 1, or one for each of 3 levels"),
        ({"decoder_convs": [1, 0]}, r"decoder_convs is \[1, 0\]"),
        ({"block": "mednext", "expansion": [2]}, "one for each of 3 levels"),
        ({"block": "residual", "downsample": "blurred"}, "downsample 'blurred' is not known"),
        ({"padding": "valid", "downsample": "pooled", "block": "residual"}, "residual blocks.* would look beyond"),
        ({"padding": "valid", "downsample": "pooled", "skip": "attention"}, "skip attention .* would look beyond"),
        ({"padding": "valid", "downsample": "pooled", "bottleneck": "dilated"}, "bottleneck dilated would look"),
        ({"padding": "valid", "downsample": "pooled", "convs_per_level": [1, 2, 2]}, "takes one number of conv"),
    ],
)
def test_definitions_that_do_not_fit(arguments: dict[str, Any], words: str) -> None:
    with pytest.raises(NetworkError, match=words):
        UNet(2, 1, 2, [4, 8, 8], [1, 2, 2], **arguments)


@pytest.mark.parametrize("options", [{"skip": "sum"}, {"skip": "none"}, {"widening": "leaving"}])
def test_descendants_without_padding(options: dict[str, Any]) -> None:
    network = UNet(2, 1, 2, [4, 8], [1, 2], norm="none", downsample="pooled", padding="valid", **options)
    size = network.fitting_size([20, 20])
    assert network(torch.zeros(1, 1, *size)).shape[2:] == tuple(
        n - 2 * m for n, m in zip(size, network.margin, strict=True)
    )


# --- memory and papers

MEASURE = """
import json, sys, torch
from medunet.networks import member
from medunet.training.losses import DiceCE
torch.set_num_threads(1)
definition, batch, patch = json.loads(sys.argv[1])
network = member(definition.pop("_target_", "medunet.networks.UNet"))(**definition)
loss, optimizer = DiceCE(2), torch.optim.AdamW(network.parameters())
def kept(key):  # of this program: ru_maxrss would count what started it
    return int(open('/proc/self/status').read().split(key + ':')[1].split()[0]) * 1024
before = kept('RssAnon') - 4 * sum(p.numel() for p in network.parameters())
for _ in range(2):
    label = torch.randint(0, 2, (batch, 1, *patch), dtype=torch.uint8)
    loss(network(torch.randn(batch, 1, *patch)), label).backward()
    optimizer.step(); optimizer.zero_grad()
print(kept('VmHWM') - kept('RssFile') - before)  # libraries' pages come and go
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("member", "patch"),
    [
        ("attention", [64, 64, 64]), ("resenc", [64, 64, 64]), ("mednext", [48, 48, 48]),
        ("unetplusplus", [48, 48, 48]), ("segresnet", [64, 64, 64]), ("dynunet", [64, 64, 64]),
        ("swinunetr", [128, 128]),
    ],
)  # fmt: skip
@pytest.mark.skipif(sys.platform != "linux", reason="peak memory is read in Linux's units")
def test_the_memory_estimate_is_what_a_step_takes(member: str, patch: list[int]) -> None:
    if member in TRANSFORMERS:
        pytest.importorskip("einops")
    overlay = yaml.safe_load(OVERLAYS[member].read_text())
    made = plan(make(), Budget(), {**overlay, "dims": len(patch), "patch_size": patch, "batch_size": 2}, survey)
    words = json.dumps([made.as_json()["network"], 2, patch])
    done = subprocess.run([sys.executable, "-c", MEASURE, words], capture_output=True, text=True, check=True)
    assert 0.7 < made.memory_estimate / float(done.stdout) < 1.4


def test_a_survey_leaves_no_trace() -> None:
    """Neither chance nor the network's mode changes, and two surveys agree."""
    torch.manual_seed(0)
    first = torch.rand(1)
    torch.manual_seed(0)
    results = [plan(make(), Budget(), tiny_settings("attention", 2), survey) for _ in range(2)]
    assert torch.equal(torch.rand(1), first)
    assert results[0] == results[1]
    larger = plan(make(), Budget(), {**tiny_settings("attention", 2), "patch_size": [64, 64]}, survey)
    assert larger.memory_estimate > 4 * results[0].memory_estimate


def test_the_page_lists_every_overlay() -> None:
    page = (Path(__file__).parents[1] / "docs" / "networks.md").read_text()
    words, table = page.split("<!-- table: scripts/network_table.py -->")
    for member in MEMBERS:
        assert f"| `{member}` |" in words
        for dims in ONLY.get(member, (2, 3)):
            assert f"| {member} | {dims}D |" in table
        first = OVERLAYS[member].read_text()
        assert first.startswith("# ")
        assert "doi:" in first or "arXiv:" in first or member == "noskip"


def test_papers_and_command_line_name_the_network(phantom_dataset: Path, tmp_path: Path) -> None:
    verbs.plan(phantom_dataset, tmp_path / "b", Budget(epochs=1), tiny_settings("segresnet", 2))
    text = (tmp_path / "b" / "docs" / "README.md").read_text()
    assert "A 2D SegResNet that segments" in text
    assert "kind SegResNet" in text
    metadata = json.loads((tmp_path / "b" / "configs" / "metadata.json").read_text())
    assert metadata["plan"]["network"]["_target_"] == "medunet.networks.SegResNet"
    assert metadata["description"].startswith("A 2D SegResNet for")
