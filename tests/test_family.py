"""One contract for all descendants of the U-Net, from the overlay to the prediction."""

from __future__ import annotations

import importlib.util
import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from monai.networks import nets
from torch import Tensor, nn

from medunet import verbs
from medunet.data.volume import read_label
from medunet.errors import NetworkError, PlanError
from medunet.networks import FAMILY, DynUNet, NestedUNet, SegResNet, SwinUNETR, UNet, UNETR, VNet, survey
from medunet.networks.mednext import MedNeXtBlock
from medunet.networks.receptive import fitting_size, output_margin, tile_halo
from medunet.networks.residual import PreactivatedBlock, ResidualBlock
from medunet.networks.skips import Attended
from medunet.planning import Budget, Plan, plan
from medunet.trust.inspection.audit import audit
from medunet.training import DiceCE
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
    return FAMILY[str(definition.get("_target_", "medunet.networks.UNet"))](**arguments)


def batch_of(member: str, dims: int) -> int:
    return 1 if dims == 3 and member in ("swinunetr", "efficientnet") else 2


@pytest.mark.parametrize(("member", "dims"), CASES)
def test_contract(member: str, dims: int) -> None:
    torch.manual_seed(0)
    network, made = tiny(member, dims)
    assert (network.axes if hasattr(network, "axes") else ()) and fitting_size(
        network, made.patch_size
    ) == made.patch_size
    loss, optimizer = DiceCE(2), torch.optim.AdamW(network.parameters(), lr=1e-3)
    image = torch.randn(batch_of(member, dims), 1, *made.patch_size)
    label = (image > 0.5).float()
    network.train()
    for _ in range(3 if dims == 2 else 1):
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
