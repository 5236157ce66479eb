"""Mixed precision of training: on the processor, in float32 wherever it counts."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from medunet.inference.device import multiplies_bfloat16
from medunet.networks import UNet
from medunet.training import DiceCE, MixedInferer, by_trainer
from medunet.training.precision import sees_less

CPU = torch.device("cpu")


def unet(supervision: int = 0) -> UNet:
    torch.manual_seed(0)
    return UNet.of_depth(3, 4, 2, in_channels=1, out_channels=3, deep_supervision=supervision).train()


@pytest.fixture(params=[True, False], ids=["with bfloat16", "without"])
def able(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_bf16": request.param})
    monkeypatch.setattr("medunet.inference.device.bfloat16_pays", lambda: True)
    return bool(request.param)


def kinds(network: UNet) -> list[torch.dtype]:
    """The types that convolutions give, in a forward pass to come."""
    seen: list[torch.dtype] = []
    for module in network.modules():
        if isinstance(module, torch.nn.Conv2d):
            module.register_forward_hook(lambda _module, _inputs, output: seen.append(output.dtype))
    return seen


@pytest.mark.parametrize("supervision", [0, 1])
@pytest.mark.parametrize("amp", [True, False])
def test_convolutions_compute_in_bfloat16_where_the_processor_does(able: bool, amp: bool, supervision: int) -> None:
    network, x = unet(supervision), torch.randn(2, 1, 32, 32, generator=torch.Generator().manual_seed(0))
    seen = kinds(network)
    logits: Any = MixedInferer(CPU, amp)(x, network)
    assert set(seen) == {torch.bfloat16 if able and amp else torch.float32}
    outputs = logits if supervision else [logits]
    assert [type(logits), len(outputs)] == [list if supervision else torch.Tensor, 1 + supervision]
    assert all(output.dtype == torch.float32 for output in outputs)
    DiceCE(3)(logits, torch.zeros(2, 1, 32, 32)).backward()
    assert all(weight.dtype == weight.grad.dtype == torch.float32 for weight in network.parameters())
    assert not torch.is_autocast_enabled("cpu")


def test_gradients_are_those_of_float32_but_for_rounding(able: bool) -> None:
    x, label = torch.randn(2, 1, 32, 32, generator=torch.Generator().manual_seed(0)), torch.ones(2, 1, 32, 32)
    found = []
    for amp in (False, True):
        network = unet()
        DiceCE(3)(MixedInferer(CPU, amp)(x, network), label).backward()
        found.append(torch.cat([weight.grad.flatten() for weight in network.parameters() if weight.grad is not None]))
    away = float((found[1] - found[0]).norm() / found[0].norm())
    assert (1e-4 < away < 0.1) if able else away == 0


def test_the_trainer_scales_the_loss_on_cuda_alone() -> None:
    assert [by_trainer(torch.device(kind), amp=True) for kind in ("cuda", "cpu", "mps")] == [True, False, False]
    assert not by_trainer(torch.device("cuda"), amp=False)


@pytest.mark.parametrize(("edge", "less"), [(8, True), (12, False), (16, False)])
def test_convolutions_that_see_less_than_their_kernel_compute_in_float32(able: bool, edge: int, less: bool) -> None:
    """oneDNN's gradient of their weights in bfloat16 is of memory that nobody wrote; three levels, kernels of 3."""
    network, x = unet(), torch.randn(2, 1, edge, 32)
    before = {name: value.clone() for name, value in network.state_dict().items()}
    seen = kinds(network)
    assert sees_less(network, x.shape) == less
    assert seen == []
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    MixedInferer(CPU, amp=True)(x, network)
    assert set(seen) == {torch.bfloat16 if able and not less else torch.float32}


@pytest.mark.skipif(not multiplies_bfloat16(), reason="no bfloat16 on this processor")
@pytest.mark.parametrize(("edge", "kernel"), [(3, 3), (4, 3), (5, 5), (7, 5), (2, 2)])
def test_gradients_of_convolutions_that_see_their_kernel_are_right(edge: int, kernel: int) -> None:
    torch.manual_seed(0)
    x, stride, padding = torch.randn(2, 16, edge, edge, edge), 1 + (kernel == 2), kernel // 2 * (kernel != 2)
    weight = 0.1 * torch.randn(16, 16, kernel, kernel, kernel)
    grads = []
    for dtype in (torch.float32, torch.bfloat16):
        leaf = weight.to(dtype).clone().requires_grad_()
        del_me = [torch.full((1 << n,), torch.nan) for n in range(8, 22)]  # what unwritten memory may hold
        del del_me
        torch.nn.functional.conv3d(x.to(dtype), leaf, None, stride, padding).float().square().sum().backward()
        assert leaf.grad is not None
        grads.append(leaf.grad.float())
    assert (grads[1] - grads[0]).abs().max() < 0.03 * grads[0].abs().max()
