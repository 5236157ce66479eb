"""One contract for the U-Net in all its shapes."""

from __future__ import annotations

import io

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from medunet.errors import NetworkError
from medunet.networks import UNet, nearest_valid_size
from medunet.planning.memory import NetworkShape, parameter_count

VARIANTS = [
    {},
    {"norm": "batch"},
    {"norm": "group", "activation": "gelu"},
    {"norm": "none", "activation": "silu"},
    {"activation": "relu", "upsample": "interpolated"},
    {"dropout": 0.2},
    {"dropout": 0.2, "dropout_in": "encoder"},
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


def test_checkpointing_changes_memory_not_results() -> None:
    torch.manual_seed(0)
    plain = UNet.of_depth(3, 4)
    twin = UNet.of_depth(3, 4, checkpointing=True)
    twin.load_state_dict(plain.state_dict())
    x = torch.randn(1, 1, 16, 16, 16)
    for network in (plain, twin):
        network(x).square().mean().backward()
    for a, b in zip(plain.parameters(), twin.parameters(), strict=True):
        assert torch.allclose(a.grad, b.grad, atol=1e-6)


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
        ({"dropout_in": "decoder"}, "give all or encoder"),
        ({"norm": "layer"}, "norm 'layer' is not known; take one of instance"),
        ({"activation": "tanh"}, "activation 'tanh' is not known"),
        ({"upsample": "nearest"}, "upsample 'nearest' is not known"),
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
