"""``auto``: the backend that is fastest on this machine, measured on one window."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn

from medunet.inference.backends.build import COMPILED, compared, disagreement, first_line
from medunet.inference.backends.cache import (
    is_kept,
    key_of,
    network_digest,
    note_proved,
    processor,
    read_choice,
    version,
    write_choice,
)
from medunet.inference.backends.protocol import Backend, Conversion, example_window
from medunet.inference.backends.pytorch import WAYS, TorchBackend
from medunet.inference.device import synchronize

CONVERT_SECONDS, CONVERT_WINDOWS = 2.0, 3
"""About what converting a network costs: seconds, and as long as so many windows take in PyTorch (measured: half)."""
START_SECONDS = 0.3
"""About what starting a converted network from the cache costs (measured: 0.1 to 0.2)."""
COMPILE_SECONDS = {"cpu": 15.0, "cuda": 60.0}
"""About what ``torch.compile`` costs."""
TRIED = {"cpu": WAYS[2:], "cuda": WAYS[1:]}
"""Which ways of PyTorch are tried; on the CPU channels last alone are slower (measured)."""
_TRIAL_WINDOWS = 3
_STARTS = 3  # runs until a compiled network with CUDA graphs is as fast as it will be
_FIRST_SHARE, _FURTHER_SHARE = 0.4, 0.1
"""Of the whole job in torch: what trying the first other backend may cost, and what trying two may."""
_ENOUGH_SECONDS, _LONG_SECONDS = 0.3, 1.0


@dataclass(frozen=True)
class Choice:
    """What was taken, one sentence that says why, and seconds a window where they were measured."""

    backend: Backend
    sentence: str
    seconds: float | None = None


@dataclass(frozen=True)
class _Job:
    network: nn.Module
    window: Sequence[int]
    channels: int
    cache: Path | None
    digest: str
    mixed: bool

    def file(self, name: str) -> Path | None:
        """Where the converted network lies, once it is converted."""
        return COMPILED[name].file(self.cache, self.digest, self.window, self.channels)

    def make(self, name: str) -> Conversion:
        """The compiled backend called `name`."""
        return COMPILED[name].make(self.network, self.window, self.channels, self.cache, self.digest, self.mixed)

    def choice_file(self, names: Sequence[str]) -> Path | None:
        """Where the choice among `names` is remembered: it holds for these versions, threads and processor."""
        versions = [f"{package} {version(package)}" for package in ("medunet", "torch")]
        versions += [f"{name} {version(COMPILED[name].packages[0])}" for name in names]
        versions += ["mixed precision"] if self.mixed else []
        key = key_of(self.digest, self.window, self.channels, [*versions, torch.get_num_threads(), processor()])
        return None if self.cache is None else Path(self.cache) / f"choice-{key}.json"


def choose_backend(
    network: nn.Module,
    device: torch.device | str,
    window: Sequence[int],
    channels: int,
    *,
    amp: bool = False,
    cache: Path | None = None,
    windows: int,
) -> Choice:
    """The fastest backend for about `windows` windows, and why.

    On the CPU each installed backend runs one window, as far as the job pays for their conversion. Logits must agree
    with PyTorch's (`disagreement`). What was measured is remembered in `cache`. On CUDA, and where no other
    backend is installed, the ways in which PyTorch can run the network are tried likewise.

    Args:
        network: the network with its weights.
        device: where to run; anything but the CPU runs in PyTorch.
        window: spatial size of the network's input, 2 or 3 numbers.
        channels: image channels.
        amp: mixed precision where the device has it; ONNX Runtime stays in float32.
        cache: folder for converted networks and choices, or None.
        windows: about how many windows there are to run.
    """
    plain = TorchBackend(network, device, amp)
    names = [name for name, compiled in COMPILED.items() if compiled.installed]
    if plain.device.type not in COMPILE_SECONDS:
        return Choice(plain, f"torch: the backend for {plain.device.type}")
    if plain.device.type == "cuda" or not names:
        return fastest_way(plain, amp, example_window(window, channels), windows)
    job = _Job(network, window, channels, cache, network_digest(network), plain.mixed)
    return _remembered(job, plain, names) or _measured(job, plain, names, windows)


def fastest_way(plain: TorchBackend, amp: bool, example: Tensor, windows: int) -> Choice:
    """The fastest of PyTorch's own ways for about `windows` windows like `example`, as far as the job pays to try."""
    if windows * _FURTHER_SHARE <= _TRIAL_WINDOWS:
        return Choice(plain, f"torch: {_counted(windows)} too few to try another way")
    logits, _ = _timed(plain, example)  # the first run of a device is slower
    logits, seconds = _timed(plain, example)
    device = plain.device.type
    pays = windows * seconds * _FURTHER_SHARE > COMPILE_SECONDS[device]
    worth = [way for way in TRIED[device] if pays or way != WAYS[2]]
    best: Backend = plain
    times, refused = {plain.name: seconds}, []
    for way in worth:
        make = partial(_started, plain, amp, way, example)
        tried = _trial(make, example, logits, plain.mixed)
        if isinstance(tried, str):
            refused.append(f"{way} left out: {tried}")
            continue
        backend, seconds = tried
        times[backend.name] = seconds
        best = backend if seconds < times[best.name] else best
    if best is plain:
        plain.arrange()
    return Choice(best, _sentence(best.name, times, refused), times[best.name])


def _started(plain: TorchBackend, amp: bool, way: str, example: Tensor) -> Backend:
    """Another way of the same network, past its first runs: they compile, choose algorithms and record graphs."""
    backend = TorchBackend(plain.network, plain.device, amp, way)
    for _ in range(_STARTS):
        backend(example)
    return backend


def _remembered(job: _Job, plain: TorchBackend, names: Sequence[str]) -> Choice | None:
    kept = read_choice(job.choice_file(names))
    name, sentence = str(kept.get("backend")), f"{kept.get('sentence')}, as measured before"
    if name != plain.name and (name not in names or not is_kept(job.file(name))):
        return None
    try:
        seconds = float(kept["seconds"][name])
        if name == plain.name:
            return Choice(plain, sentence, seconds)
        backend, found = compared(name, job.network, job.window, job.channels, job.cache, job.digest, job.mixed)
        return None if found else Choice(backend, sentence, seconds)
    except Exception:  # it ran when it was chosen: measure again
        return None


def _measured(job: _Job, plain: TorchBackend, names: Sequence[str], windows: int) -> Choice:
    if windows * _FIRST_SHARE <= _TRIAL_WINDOWS:
        return Choice(plain, f"torch: {_counted(windows)} too few to prepare another backend")
    example = example_window(job.window, job.channels, seed=1)  # one that no conversion has seen
    logits, seconds = _timed(plain, example)
    worth = _worth(job, names, windows, seconds)
    if worth and seconds < _LONG_SECONDS:  # the first run of a short window is slower
        logits, seconds = _timed(plain, example)
        worth = _worth(job, worth, windows, seconds)
    if not worth:
        sentence = f"torch: {duration(seconds)} a window; {_counted(windows)} too few to prepare another backend"
        return Choice(plain, sentence, seconds)
    best: Backend = plain
    times, refused = {plain.name: seconds}, []
    for name in worth:
        tried = _trial(partial(job.make, name), example, logits, job.mixed)
        if isinstance(tried, str):
            refused.append(f"{name} left out: {tried}")
            continue
        backend, times[name] = tried
        if getattr(backend, "converted", False):
            note_proved(job.file(name), job.mixed)
        best = backend if times[name] < times[best.name] else best
    sentence = _sentence(best.name, times, refused) + ("; in bfloat16" if getattr(best, "mixed", False) else "")
    write_choice(job.choice_file(names), {"backend": best.name, "sentence": sentence, "seconds": times})
    return Choice(best, sentence, times[best.name])


def _counted(windows: int) -> str:
    return "one window is" if windows == 1 else f"{windows} windows are"


def _worth(job: _Job, names: Sequence[str], windows: int, seconds: float) -> list[str]:
    """The backends, in their order, whose preparation (conversion, trial windows) the job in torch pays for."""
    worth: list[str] = []
    cost = 0.0
    for name in names:
        start = START_SECONDS if is_kept(job.file(name)) else CONVERT_SECONDS + CONVERT_WINDOWS * seconds
        cost += start + _TRIAL_WINDOWS * seconds
        if cost < (_FURTHER_SHARE if worth else _FIRST_SHARE) * windows * seconds:
            worth.append(name)
    return worth


def _trial(make: Callable[[], Backend], example: Tensor, expected: Tensor, mixed: bool) -> tuple[Backend, float] | str:
    """A backend and its seconds for a window, or why it is left out."""
    try:
        backend = make()
        logits, seconds = _timed(backend, example)
        if seconds < _LONG_SECONDS:
            logits, seconds = _timed(backend, example)
    except Exception as error:  # the converters raise whatever they like
        return f"it cannot run this network ({first_line(error)})"
    return disagreement(logits, expected, mixed) or (backend, seconds)


def _timed(backend: Backend, example: Tensor) -> tuple[Tensor, float]:
    """The logits, and the seconds of the fastest of up to five runs: short ones are repeated, since they scatter.

    Where windows run side by side, the seconds are of as many of them, shared.
    """
    best, spent = math.inf, 0.0
    example = example.expand(backend.streams, *example.shape[1:])
    for _ in range(5):
        synchronize(backend.device)
        start = time.perf_counter()
        logits = backend(example)
        synchronize(backend.device)
        seconds = time.perf_counter() - start
        best, spent = min(best, seconds / backend.streams), spent + seconds
        if spent > _ENOUGH_SECONDS:
            break
    return logits[:1], best


def _sentence(best: str, times: dict[str, float], refused: Sequence[str]) -> str:
    others = ", ".join(f"{name} {duration(seconds)}" for name, seconds in times.items() if name != best)
    measured = f"{best}: {duration(times[best])} a window" + (f" ({others})" if others else "")
    return "; ".join([measured, *refused])


def duration(seconds: float) -> str:
    """A duration for reading.

    >>> duration(2.13), duration(0.0721), duration(0.0004)
    ('2.1 s', '72 ms', '0.4 ms')
    """
    if seconds >= 1:
        return f"{seconds:.1f} s"
    return f"{seconds * 1000:.0f} ms" if seconds >= 0.01 else f"{seconds * 1000:.1f} ms"
