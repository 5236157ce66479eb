"""Several folds: one network of all, cross-validated scores, partners, and rules for components that are proved."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from medunet.errors import BundleError, NetworkError
from medunet.inference.backends import make_backend
from medunet.inference.weights import load_weights
from medunet.networks import Ensemble, UNet
from medunet.networks.ensemble import joined, member_of, members_in
from medunet.networks.receptive import fitting_size, output_margin, spatial_divisor, tile_halo


def unet(seed: int = 0, **options: Any) -> UNet:
    torch.manual_seed(seed)
    return UNet(3, 1, 3, [4, 8], [1, 2], **options).eval()


def of(*networks: nn.Module) -> Ensemble:
    """An ensemble of these, as it comes from a file."""
    ensemble = Ensemble(unet())
    ensemble.load_state_dict(joined(network.state_dict() for network in networks))
    return ensemble.eval()


@pytest.fixture
def window() -> Tensor:
    return torch.randn((2, 1, 16, 16, 16), generator=torch.Generator().manual_seed(0))


@torch.no_grad()
def test_the_file_decides_how_many_networks_there_are(window: Tensor, tmp_path: Path) -> None:
    one, other = unet(1), unet(2)
    ensemble = Ensemble(unet()).eval()
    ensemble.load_state_dict(one.state_dict())
    assert torch.equal(ensemble(window), one(window))
    assert ensemble.state_dict().keys() == one.state_dict().keys()
    torch.save(joined([one.state_dict(), other.state_dict()]), tmp_path / "model.pt")
    load_weights(ensemble, tmp_path / "model.pt")
    assert not ensemble.training
    assert torch.allclose(ensemble(window), (one(window) + other(window)) / 2, atol=1e-6)
    assert members_in(ensemble.state_dict()) == 2
    assert torch.equal(ensemble.state_dict()["members.1.heads.0.bias"], other.heads[0].bias)
    assert member_of(ensemble.state_dict(), 1).keys() == other.state_dict().keys()
    ensemble.load_state_dict(other.state_dict())  # and back to one, without a trace of the others
    assert torch.equal(ensemble(window), other(window))
    ensemble.load_state_dict(joined([one.state_dict()]))
    assert torch.equal(ensemble(window), one(window))


@torch.no_grad()
def test_equal_members_are_one_network(window: Tensor) -> None:
    one = unet(1)
    assert torch.allclose(of(one, one, one)(window), one(window), atol=1e-6)


@pytest.mark.parametrize(
    "keys",
    [
        ["weight"],
        ["members.0.heads.0.bias"],
        [f"members.1.{key}" for key in unet().state_dict()],
        [f"members.{n}.{key}" for n in (0, 2) for key in unet().state_dict()],
        [*unet().state_dict(), "members.0.heads.0.bias"],
    ],
)
def test_weights_of_neither_kind_are_refused(keys: list[str], tmp_path: Path) -> None:
    torch.save({key: torch.zeros(1) for key in keys}, tmp_path / "model.pt")
    with pytest.raises(NetworkError, match="neither of one such network nor of an ensemble of it"):
        Ensemble(unet()).become(keys)
    words = r"weights do not fit the plan's network \(they are neither .* is in one alone\); plan and train again"
    with pytest.raises(BundleError, match=words):
        load_weights(Ensemble(unet()), tmp_path / "model.pt")


def test_what_a_network_says_of_itself_an_ensemble_says_too() -> None:
    valid = {"norm": "none", "downsample": "pooled", "padding": "valid"}
    for network in (unet(norm="none"), unet(**valid), unet(deep_supervision=0)):
        ensemble = Ensemble(network)
        ensemble.become(joined([network.state_dict()] * 2))
        assert spatial_divisor(ensemble, 3) == spatial_divisor(network, 3) == (2, 2, 2)
        assert output_margin(ensemble, 3) == output_margin(network, 3)
        assert fitting_size(ensemble, (21, 22, 23)) == fitting_size(network, (21, 22, 23))
        assert tile_halo(ensemble, 3) == tile_halo(network, 3)
    assert spatial_divisor(Ensemble(nn.Conv3d(1, 1, 1)), 3) == (32, 32, 32)  # it says nothing


@pytest.mark.parametrize("name", ["torch", "openvino", "onnx"])
def test_every_backend_computes_all_members(name: str, window: Tensor) -> None:
    for package in {"openvino": ["openvino"], "onnx": ["onnx", "onnxruntime"]}.get(name, []):
        pytest.importorskip(package)
    one, other = unet(1), unet(2)
    backend = make_backend(name, of(one, other), "cpu", (16, 16, 16), 1)
    with torch.no_grad():
        assert (backend(window) - (one(window) + other(window)) / 2).abs().max() < 1e-4
