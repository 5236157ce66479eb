"""Backends: the same logits from each, conversions kept and mended, and a choice that is measured and remembered."""

from __future__ import annotations

import contextlib
import copy
import importlib.util
import os
import shutil
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from medunet.errors import InputError, NetworkError, ResourceError
from medunet.inference.backends import (
    NAMES,
    Backend,
    OpenVinoBackend,
    TorchBackend,
    build,
    choice,
    choose_backend,
    make_backend,
    network_digest,
)
from medunet.inference.device import bfloat16_pays, mixed_type, multiplies_bfloat16
from medunet.inference.windows import _ahead
from medunet.networks import UNet

PACKAGES = {"openvino": ["openvino"], "onnx": ["onnxruntime", "onnx"], "torch": []}
WINDOWS = {2: (32, 24), 3: (16, 8, 16)}
CHANNELS = 2


def missing(name: str) -> list[str]:
    return [package for package in PACKAGES[name] if importlib.util.find_spec(package) is None]


def backend_marks(names: tuple[str, ...]) -> list[object]:
    return [
        pytest.param(n, marks=pytest.mark.skipif(bool(missing(n)), reason=f"not installed: {missing(n)}"))
        for n in names
    ]


EVERY = backend_marks(NAMES)
COMPILED = backend_marks(("openvino", "onnx"))
needs_both = pytest.mark.skipif(bool(missing("openvino") + missing("onnx")), reason="needs openvino and onnxruntime")


def unet(dims: int = 2, seed: int = 0, **options: object) -> UNet:
    torch.manual_seed(seed)
    return UNet.of_depth(3, 4, dims, in_channels=CHANNELS, out_channels=3, **options)


def windows(dims: int, n: int) -> Tensor:
    return torch.randn((n, CHANNELS, *WINDOWS[dims]), generator=torch.Generator().manual_seed(n))


def logits_of(network: nn.Module, x: Tensor) -> Tensor:
    with torch.no_grad():
        result: Tensor = copy.deepcopy(network).eval()(x)
    return result


def make(name: str, network: nn.Module, dims: int = 2, cache: Path | None = None) -> Backend:
    return make_backend(name, network, "cpu", WINDOWS[dims], CHANNELS, cache=cache)


def choose(network: nn.Module, count: int, cache: Path | None = None) -> tuple[Backend, str]:
    chosen = choose_backend(network, "cpu", WINDOWS[2], CHANNELS, cache=cache, windows=count)
    return chosen.backend, chosen.sentence


def forbid(*_: object, **__: object) -> None:
    raise RuntimeError("nothing should be converted or measured here")


@pytest.fixture
def no_conversion(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.jit, "trace", forbid)
    monkeypatch.setattr(torch.onnx, "export", forbid)


@pytest.fixture
def without(monkeypatch: pytest.MonkeyPatch) -> Iterator[pytest.MonkeyPatch]:
    """Openvino and onnxruntime look as if they were not installed."""
    for package in ("openvino", "onnxruntime", "onnx"):
        monkeypatch.setitem(sys.modules, package, None)
    return monkeypatch


@pytest.mark.parametrize("name", EVERY)
@pytest.mark.parametrize(
    ("dims", "options"),
    [
        (2, {}),
        (2, {"norm": "batch", "activation": "gelu"}),
        (3, {"deep_supervision": 1}),
        (3, {"norm": "group", "upsample": "interpolated", "dropout": 0.2}),
    ],
)
def test_every_backend_gives_the_logits_of_the_network(name: str, dims: int, options: dict[str, object]) -> None:
    network = unet(dims, **options)
    backend = make(name, network, dims)
    assert (backend.name, backend.device) == (name, torch.device("cpu"))
    for n in (1, 3, 2):
        x = windows(dims, n)
        before = x.clone()
        logits = backend(x)
        assert logits.dtype == torch.float32
        assert (logits - logits_of(network, x)).abs().max() < 1e-4
        kept = logits.clone()
        logits.mul_(2)  # callers weight logits in place
        assert torch.equal(backend(x), kept)
        assert torch.equal(x, before)


@pytest.mark.parametrize("name", EVERY)
def test_windows_may_be_views(name: str) -> None:
    network = unet()
    x = windows(2, 3).flip([2]).transpose(2, 3).contiguous().transpose(2, 3)[1:]
    assert (make(name, network)(x) - logits_of(network, x)).abs().max() < 1e-4


def test_torch_sees_later_weights_and_keeps_those_there_are() -> None:
    network = unet(deep_supervision=1).train()
    digest = network_digest(network)
    backend = TorchBackend(network, "cpu")
    first = backend(windows(2, 1))
    assert network_digest(network) == digest
    with torch.no_grad():
        network.heads[0].bias.add_(1.0)
    assert torch.allclose(backend(windows(2, 1)), first + 1.0, atol=1e-5)


@pytest.mark.parametrize("name", COMPILED)
def test_compiled_backends_keep_the_weights_they_were_made_with(name: str) -> None:
    network = unet().train()
    backend = make(name, network)
    first = backend(windows(2, 1))
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.zero_()
    assert network.training
    assert torch.equal(backend(windows(2, 1)), first)


def test_digest_covers_weights_and_structure() -> None:
    network = unet()
    assert network_digest(network) == network_digest(unet())
    others = [unet(seed=1), unet(activation="relu"), unet(upsample="interpolated"), nn.Sequential(network)]
    others.append(copy.deepcopy(network).to(torch.bfloat16))
    assert len({network_digest(n) for n in [network, *others]}) == 1 + len(others)


@pytest.mark.parametrize("name", COMPILED)
def test_a_network_that_cannot_be_converted_is_said_so(name: str, tmp_path: Path) -> None:
    with pytest.raises(NetworkError, match=f"backend '{name}' cannot run this network .*give --backend torch"):
        make(name, Unexportable(), cache=tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", COMPILED)
def test_a_second_start_converts_nothing(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    network, x = unet(), windows(2, 2)
    expected = make(name, network, cache=tmp_path)(x)
    (file,) = tmp_path.iterdir()
    state, content = file.stat(), file.read_bytes()
    monkeypatch.setattr(torch.jit, "trace", forbid)
    monkeypatch.setattr(torch.onnx, "export", forbid)
    assert torch.equal(make(name, network, cache=tmp_path)(x), expected)
    assert file.stat().st_mtime_ns == state.st_mtime_ns
    assert file.read_bytes() == content
    for other in (unet(seed=1), unet(activation="relu")):
        with pytest.raises(NetworkError, match="nothing should be converted"):
            make(name, other, cache=tmp_path)


@pytest.mark.parametrize("name", COMPILED)
@pytest.mark.parametrize("damage", ["truncated", "flipped", "empty", "not a zip", "a folder", "foreign"])
def test_a_broken_file_is_made_again(name: str, damage: str, tmp_path: Path) -> None:
    network, x = unet(), windows(2, 1)
    expected = make(name, network, cache=tmp_path)(x)
    (file,) = tmp_path.iterdir()
    whole = file.read_bytes()
    break_file(file, whole, damage)
    assert torch.equal(make(name, network, cache=tmp_path)(x), expected)
    assert [path.name for path in tmp_path.iterdir()] == [file.name]
    if damage != "a folder":
        with zipfile.ZipFile(file) as archive:
            assert archive.testzip() is None
            assert all(info.file_size > 100 for info in archive.infolist())


def break_file(file: Path, whole: bytes, damage: str) -> None:
    middle = len(whole) // 2
    contents = {
        "truncated": whole[:middle],
        "flipped": whole[:middle] + bytes([whole[middle] ^ 255]) + whole[middle + 1 :],
        "empty": b"",
        "not a zip": b"x" * 1000,
    }
    if damage == "a folder":
        file.unlink()
        file.mkdir()
    elif damage == "foreign":
        with zipfile.ZipFile(file, "w") as archive:
            for member in ("model.xml", "model.bin", "model.onnx"):
                archive.writestr(member, b"of something else")
    else:
        file.write_bytes(contents[damage])


@pytest.mark.parametrize("name", COMPILED)
def test_a_cache_that_cannot_be_written_is_done_without(name: str, tmp_path: Path) -> None:
    network, x = unet(), windows(2, 1)
    in_the_way = tmp_path / "file"
    in_the_way.write_text("no folder")
    folders = [in_the_way / "cache"]
    if os.geteuid():
        locked = tmp_path / "locked"
        locked.mkdir(mode=0o555)
        folders.append(locked)
    for folder in folders:
        assert (make(name, network, cache=folder)(x) - logits_of(network, x)).abs().max() < 1e-4
    assert in_the_way.read_text() == "no folder"


@pytest.mark.parametrize("name", ["openvino", "onnx"])
def test_a_missing_package_is_named(name: str, without: pytest.MonkeyPatch) -> None:
    with pytest.raises(ResourceError, match=rf"backend '{name}' is not installed; pip install 'medunet\[{name}\]'"):
        make(name, unet())
    backend, sentence = choose(unet(), 4)
    assert (backend.name, sentence) == ("torch", "torch: 4 windows are too few to try another way")


def test_names_and_devices_are_checked() -> None:
    with pytest.raises(InputError, match="backend 'tensorrt' is not known; give auto, torch, openvino, onnx"):
        make("tensorrt", unet())
    with pytest.raises(InputError, match="backend 'onnx' runs on the CPU, not on cuda; give --device cpu"):
        make_backend("onnx", unet(), "cuda", WINDOWS[2], CHANNELS)


@needs_both
def test_a_small_job_takes_torch(tmp_path: Path, no_conversion: None) -> None:
    backend, sentence = choose(unet(), 4, tmp_path)
    assert backend.name == "torch"
    assert sentence == "torch: 4 windows are too few to prepare another backend"
    assert "a window; 40 windows are too few to prepare another backend" in choose(unet(), 40, tmp_path)[1]
    assert not list(tmp_path.iterdir())


@needs_both
def test_a_large_job_is_measured_and_the_choice_remembered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    network, x = unet(), windows(2, 2)
    backend, sentence = choose(network, 10**7, tmp_path)
    assert sentence.startswith(f"{backend.name}: ")
    assert "a window" in sentence
    assert all(name in sentence for name in NAMES)
    assert (backend(x) - logits_of(network, x)).abs().max() < 1e-4
    monkeypatch.setattr(torch.jit, "trace", forbid)
    monkeypatch.setattr(torch.onnx, "export", forbid)
    monkeypatch.setattr(choice, "_timed", forbid)
    again, repeated = choose(network, 10**7, tmp_path)
    assert (again.name, repeated) == (backend.name, f"{sentence}, as measured before")
    with pytest.raises(RuntimeError, match="nothing should be"):
        choose(unet(seed=1), 10**7, tmp_path)
    threads = torch.get_num_threads()
    torch.set_num_threads(threads + 1)
    try:
        with pytest.raises(RuntimeError, match="nothing should be"):
            choose(network, 10**7, tmp_path)
    finally:
        torch.set_num_threads(threads)


@needs_both
def test_a_remembered_network_is_compared_unless_it_was_made_here(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What lies in the folder may have come with it."""
    network, other = unet(), unet(seed=1)
    choose(network, 10**7, tmp_path)
    make("onnx", network, cache=tmp_path)
    with monkeypatch.context() as here:
        here.setattr(build, "_difference", forbid)
        make("onnx", network, cache=tmp_path)
        here.setenv("MEDUNET_HOME", str(tmp_path / "of another user"))
        with pytest.raises(NetworkError, match="nothing should be"):
            make("onnx", network, cache=tmp_path)
    assert not (tmp_path / "of another user").exists()
    job = choice._Job(network, WINDOWS[2], CHANNELS, tmp_path, network_digest(network), mixed=False)
    choice.write_choice(
        job.choice_file(["openvino", "onnx"]),
        {"backend": "openvino", "sentence": "as it came", "seconds": {"openvino": 0.1}},
    )
    assert choose(network, 10**7, tmp_path)[1] == "as it came, as measured before"
    kept = choice.COMPILED["openvino"].file(tmp_path, job.digest, WINDOWS[2], CHANNELS)
    make("openvino", other, cache=tmp_path / "other")
    assert kept is not None
    shutil.copy(next((tmp_path / "other").iterdir()), kept)
    backend, sentence = choose(network, 10**7, tmp_path)
    assert "openvino left out: its logits differ" in sentence
    assert (backend(windows(2, 2)) - logits_of(network, windows(2, 2))).abs().max() < 1e-4


@pytest.mark.parametrize(("supported", "dtype"), [(True, torch.bfloat16), (False, torch.float16)])
def test_mixed_precision_is_what_the_card_computes_in(
    supported: bool, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Older cards emulate bfloat16, slower than float32; and each card is asked for itself."""
    asked: list[torch.device] = []

    def on(device: torch.device) -> contextlib.AbstractContextManager[None]:
        asked.append(device)
        return contextlib.nullcontext()

    monkeypatch.setattr(torch.cuda, "device", on)
    monkeypatch.setattr(
        torch.cuda, "is_bf16_supported", lambda including_emulation=True: including_emulation or supported
    )
    assert mixed_type(torch.device("cuda:1")) == dtype
    assert asked == [torch.device("cuda:1")]


@pytest.mark.parametrize(
    ("able", "pays", "dtype"),
    [
        ({"avx512_bf16": True, "amx_bf16": False}, True, torch.bfloat16),
        ({"avx512_bf16": False, "amx_bf16": True}, True, torch.bfloat16),
        ({"avx512_bf16": True, "amx_bf16": False}, False, None),
        ({"bf16": True, "sve": False}, True, None),
        ({"avx512_f": True, "avx512_bf16": False, "amx_bf16": False}, True, None),
        ({}, True, None),
    ],
)
def test_a_processor_mixes_only_what_it_multiplies_and_faster(
    able: dict[str, bool], pays: bool, dtype: torch.dtype | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: able)
    monkeypatch.setattr("medunet.inference.device.bfloat16_pays", lambda: pays)
    assert mixed_type(torch.device("cpu")) is dtype
    assert mixed_type(torch.device("mps")) is None
    network, x = unet(), windows(2, 2)
    backend = TorchBackend(network, "cpu", amp=True)
    logits, expected = backend(x), logits_of(network, x)
    assert logits.dtype == torch.float32
    away = (logits - expected).square().mean().sqrt() / (expected.max() - expected.min())
    assert (1e-4 < away < build.MIXED_AGREEMENT) if dtype else away < 1e-6


@pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="torch without oneDNN")
@pytest.mark.parametrize("padding_mode", ["zeros", "replicate"])
def test_small_3d_convolutions_of_one_window_run_by_onednn(padding_mode: str) -> None:
    """ATen computes them several times slower; nothing else of the network changes."""
    torch.manual_seed(0)
    network = nn.Sequential(
        nn.Conv3d(1, 4, 3, padding=1, padding_mode=padding_mode), nn.InstanceNorm3d(4), nn.Conv3d(4, 6, 2, 2),
        nn.Conv3d(6, 6, 3, padding="same", groups=2), nn.ConvTranspose3d(6, 4, 2, 2), nn.Conv3d(4, 3, 1),
    ).eval()  # fmt: skip

    def run(act: Callable[[Tensor], Tensor], window: Tensor) -> tuple[Tensor, int]:
        with torch.no_grad(), torch.profiler.profile() as profile:
            logits = act(window)
        return logits, sum(e.count for e in profile.key_averages() if e.key == "aten::mkldnn_convolution")

    for count, more in ((1, 2), (2, 0)):
        window = torch.randn((count, 1, 8, 10, 12), generator=torch.Generator().manual_seed(1))
        expected, plain = run(network, window)
        logits, own = run(TorchBackend(network, "cpu"), window)
        assert torch.allclose(logits, expected, atol=1e-5)
        assert own == plain + more
        assert logits.dtype == torch.float32
        assert not logits.requires_grad


@pytest.mark.parametrize(("mixed", "pays"), [(0.5, True), (0.75, True), (0.85, False), (2.0, False)])
def test_bfloat16_pays_where_a_convolution_takes_clearly_less_time(
    mixed: float, pays: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By a clock that only convolutions move, so that the answer is not this machine's."""
    clock = [0.0]

    def convolve(image: torch.Tensor, *given: Any, **options: Any) -> None:
        clock[0] += mixed if image.dtype == torch.bfloat16 else 1.0

    monkeypatch.setattr(torch.nn.functional, "conv2d", convolve)
    monkeypatch.setattr("medunet.inference.device.time.perf_counter", lambda: clock[0])
    assert bfloat16_pays.__wrapped__() is pays


needs_bfloat16 = pytest.mark.skipif(not multiplies_bfloat16(), reason="no bfloat16 on this processor")


@needs_bfloat16
@pytest.mark.skipif(bool(missing("openvino")), reason="not installed: openvino")
def test_a_converted_network_computes_in_bfloat16_when_asked_and_is_compared_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("medunet.inference.device.bfloat16_pays", lambda: True)
    network, x = unet(), windows(2, 2)

    def made(amp: bool) -> Backend:
        return make_backend("openvino", network, "cpu", WINDOWS[2], CHANNELS, amp=amp, cache=tmp_path)

    plain, mixed = made(amp=False)(x), made(amp=True)(x)
    assert 1e-4 < (mixed - plain).square().mean().sqrt() / (plain.max() - plain.min()) < build.MIXED_AGREEMENT
    assert len(list(tmp_path.glob("openvino-*.zip"))) == 1  # one file for both
    found: list[bool] = []
    monkeypatch.setattr(build, "_difference", lambda *given: found.append(given[-1]) or "")
    made(amp=False)
    assert found == []  # made and compared in float32 here; never in bfloat16
    made(amp=True)
    assert found == [True]


def test_mixed_precision_is_told_from_a_mistake_by_what_all_logits_say() -> None:
    """Rounding puts one of many logits far away; a wrong border or a shifted class moves all of them a little."""
    expected = 10 * torch.rand((1, 3, 64, 64), generator=torch.Generator().manual_seed(0))
    rounded = expected + 0.008 * torch.randn(expected.shape, generator=torch.Generator().manual_seed(1))
    rounded[0, 0, 0, 0] = expected[0, 0, 0, 0] + 0.4
    assert build.disagreement(rounded, expected, True) == ""
    assert "differ by 4.0% of their range (root mean square 0.0" in build.disagreement(rounded, expected, False)
    border, shifted, lone, none = (expected.clone() for _ in range(4))
    border[..., 0] += 0.4
    shifted[:, 1] += 0.06
    lone[0, 0, 5, 5] += 1.5
    none[0, 0, 5, 5] = float("nan")
    for wrong, words in ((border, "4.0%"), (shifted, "0.6%"), (lone, "15.0%"), (none, "nan%")):
        assert f"its logits differ by {words} of their range" in build.disagreement(wrong, expected, True)
    assert build.disagreement(expected + 0.005, expected, False) == ""


@pytest.fixture
def three_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    yield
    torch.set_num_threads(before)


@pytest.mark.skipif(bool(missing("openvino")), reason="not installed: openvino")
def test_flat_windows_run_side_by_side_and_come_in_order(three_threads: None) -> None:
    backend = make("openvino", unet())
    assert isinstance(backend, OpenVinoBackend)
    assert [backend.streams, len(backend.requests)] == [3, 4]
    many = [torch.randn((1, CHANNELS, *WINDOWS[2]), generator=torch.Generator().manual_seed(n)) for n in range(11)]
    alone = [backend(window).clone() for window in many]
    for count in (1, 3, 4, 11):
        answers = backend.ahead(many[:count])
        for number, logits in enumerate(answers):
            assert torch.equal(logits, alone[number])
            logits.fill_(7.0)  # changed in place before the next is asked for
        assert torch.equal(backend(torch.cat(many[:count])), torch.cat(alone[:count]))
    first = next(backend.ahead(many))  # left in the middle
    assert torch.equal(first, alone[0])
    assert torch.equal(backend(many[5]), alone[5])
    places = [[0, 1], [2], [3, 4, 5]]  # what three images ask for
    batches = (torch.cat([many[n] for n in numbers])[..., None] for numbers in places)
    for numbers, logits in zip(places, _ahead(batches, backend), strict=True):
        assert torch.equal(logits, torch.cat([alone[n] for n in numbers])[..., None])
    deep = make("openvino", unet(3), dims=3)
    assert deep.streams == 1


@needs_bfloat16
@needs_both
def test_auto_measures_bfloat16_for_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("medunet.inference.device.bfloat16_pays", lambda: True)
    network = unet()
    assert "bfloat16" not in choose(network, 10**7, tmp_path)[1]
    chosen = choose_backend(network, "cpu", WINDOWS[2], CHANNELS, amp=True, cache=tmp_path, windows=10**7)
    assert ("bfloat16" in chosen.sentence) == (chosen.backend.name != "onnx")  # which stays in float32
    assert "left out" not in chosen.sentence
    assert len(list(tmp_path.glob("choice-*.json"))) == 2


@needs_both
@pytest.mark.parametrize("content", ["", "[1]", '{"backend": "tensorrt"}', '{"sentence": 3}'])
def test_a_broken_memory_is_measured_again(content: str, tmp_path: Path) -> None:
    network = unet()
    job = choice._Job(network, WINDOWS[2], CHANNELS, tmp_path, network_digest(network), mixed=False)
    path = job.choice_file(["openvino", "onnx"])
    assert path is not None
    path.write_text(content)
    assert "are too few" in choose(network, 4, tmp_path)[1]


@pytest.mark.parametrize(
    ("dims", "way"), [(2, "channels-last"), (3, "channels-last"), pytest.param(2, "compiled", marks=pytest.mark.slow)]
)
def test_the_ways_of_torch_agree(dims: int, way: str) -> None:
    if way == "compiled" and not shutil.which("g++"):
        pytest.skip("torch.compile needs a C++ compiler")
    network, x = unet(dims), windows(dims, 3)
    expected = logits_of(network, x)
    before = {key: value.clone() for key, value in network.state_dict().items()}
    backend = TorchBackend(network, "cpu", way=way)
    assert backend.name == f"torch, {way}"
    assert (backend(x) - expected).abs().max() < 1e-4
    after = network.state_dict()
    assert list(after) == list(before)
    assert all(torch.equal(after[key], before[key]) for key in before)


def test_a_compiled_network_sees_few_sizes_of_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each would be compiled for a minute, and after eight torch gives up silently."""
    seen: list[int] = []

    def compiled(network: nn.Module, **_: object) -> Callable[[Tensor], Tensor]:
        def run(x: Tensor) -> Tensor:
            if len(x) > 6:
                raise RuntimeError("CUDA error: out of memory")
            seen.append(len(x))
            return network(x)

        return run

    monkeypatch.setattr(torch, "compile", compiled)
    network = unet()
    backend = TorchBackend(network, "cpu", way="compiled")
    with pytest.raises(RuntimeError, match="out of memory"):
        backend(windows(2, 7))  # a size that did not run is not one to fill up to
    for n in (1, 4, 3, 2, 1, 6, 5, 4):
        x = windows(2, n)
        logits = backend(x)
        assert logits.shape[0] == n
        assert (logits - logits_of(network, x)).abs().max() < 1e-4
    assert seen == [1, 4, 4, 4, 1, 6, 6, 4]


def test_the_fastest_way_is_measured_where_the_job_pays(monkeypatch: pytest.MonkeyPatch) -> None:
    network = unet()
    plain, example = TorchBackend(network, "cpu"), windows(2, 1)
    monkeypatch.setitem(choice.TRIED, "cpu", choice.WAYS[1:])
    few = choice.fastest_way(plain, False, example, 30)
    assert few.backend is plain
    assert few.sentence == "torch: 30 windows are too few to try another way"
    some = choice.fastest_way(plain, False, example, 40)
    assert "torch, channels-last" in some.sentence
    assert "compiled" not in some.sentence
    assert some.seconds is not None
    monkeypatch.setattr(build, "AGREEMENT", -1.0)
    none = choice.fastest_way(plain, False, example, 40)
    assert none.backend is plain
    assert "channels-last left out: its logits differ by 0.0% of their range" in none.sentence
    assert all(parameter.is_contiguous() for parameter in network.parameters())


def test_a_compiled_network_is_timed_when_it_is_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first call compiles and, on CUDA, the second records a graph."""
    calls: list[int] = []

    def compiled(network: nn.Module, **_: object) -> Callable[[Tensor], Tensor]:
        answers: list[Tensor] = []

        def run(x: Tensor) -> Tensor:
            calls.append(len(calls))
            if len(calls) <= 2:
                time.sleep(1.1)
                answers[:] = [network(x)]
            return answers[0]

        return run

    monkeypatch.setattr(torch, "compile", compiled)
    monkeypatch.setitem(choice.COMPILE_SECONDS, "cpu", 0.0)
    chosen = choice.fastest_way(TorchBackend(unet(), "cpu"), False, windows(2, 1), 10**6)
    assert chosen.backend.name == "torch, compiled"
    assert chosen.seconds is not None
    assert chosen.seconds < 0.1


class Unexportable(nn.Module):
    """Depends on what the converters cannot know."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Conv2d(CHANNELS, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        if torch.jit.is_tracing():
            raise RuntimeError("this network cannot be traced\nat all")
        result: Tensor = self.layer(x)
        return result


class Deceiving(Unexportable):
    """Computes something else when it is traced."""

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.layer(x)
        return result * 1.01 if torch.jit.is_tracing() else result


@needs_both
@pytest.mark.parametrize(
    ("network", "reason"),
    [(Unexportable(), "cannot be traced"), (Deceiving(), "its logits differ by")],
)
def test_what_cannot_be_trusted_is_left_out(network: nn.Module, reason: str, tmp_path: Path) -> None:
    backend, sentence = choose(network, 10**8, tmp_path)
    assert backend.name == "torch"
    assert "openvino left out: " in sentence
    assert "onnx left out: " in sentence
    assert reason in sentence
    assert "\n" not in sentence
    assert choose(network, 10**8, tmp_path)[1] == f"{sentence}, as measured before"


class Remembering(Unexportable):
    """Answers every window with what tracing saw, once it is traced."""

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.layer(x)
        return result + float(x.mean()) * 100


@needs_both
@pytest.mark.parametrize(
    ("name", "network"), [("openvino", Deceiving()), ("openvino", Remembering()), ("onnx", Remembering())]
)
def test_a_chosen_backend_that_computes_something_else_is_refused(name: str, network: nn.Module) -> None:
    network.train()
    with pytest.raises(
        NetworkError, match=f"'{name}' does not compute what PyTorch does: .* differ .*; give --backend"
    ):
        make(name, network)
    assert network.training


@pytest.mark.skipif(bool(missing("openvino")), reason="openvino is not installed")
def test_openvino_computes_in_float32() -> None:
    network = unet()
    backend = OpenVinoBackend(network, WINDOWS[2], CHANNELS, None, network_digest(network))
    compiled = backend.requests[0].get_compiled_model()
    assert "32" in str(compiled.get_property("INFERENCE_PRECISION_HINT"))


@pytest.mark.skipif(bool(missing("openvino")), reason="openvino is not installed")
def test_packages_are_imported_late_and_openvino_without_reports_to_its_makers() -> None:
    program = (
        "import sys; from medunet.inference.backends.openvino import import_openvino; "
        "print({'openvino', 'onnxruntime', 'onnx'} & set(sys.modules)); import_openvino(); "
        "print([name for name in sys.modules if 'telemetry' in name])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    before, after = done.stdout.splitlines()
    assert before == "set()"
    assert "openvino_telemetry" not in after
    assert "telemetry_stub" in after
