"""Whole volumes through a network, a window at a time, in memory that does not grow with the number of slices."""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import closing, nullcontext
from dataclasses import dataclass
from functools import partial
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import torch
from monai.data import MetaTensor
from monai.inferers import Inferer
from torch import Tensor, nn

from medunet.data.grid import Grid
from medunet.data.resampling import Resampling
from medunet.data.transforms import Frame, NetworkImage, WholeImage
from medunet.errors import InputError, NetworkError, ResourceError
from medunet.inference.backends import NAMES, Backend, OpenVinoBackend, TorchBackend, choose_backend, make_backend
from medunet.inference.border import Bordered
from medunet.inference.device import one_thread, synchronize
from medunet.inference.partners import Partners
from medunet.inference.passage import Passage, Segmentation
from medunet.inference.placement import Windows, importance, overlapping, tiles
from medunet.inference.region import Region, Rule
from medunet.inference.restoring import Sink
from medunet.networks.receptive import Halo, fitting_size, output_margin, spatial_divisor, tile_halo
from medunet.types import AnyArray, Shape

COMPILED = "models/compiled"
"""Where a bundle keeps networks that were converted for a backend."""

_BATCH = {"cpu": 1, "cuda": 4}
_FLAT_BATCH = {"cpu": 1, "cuda": 32}
_AHEAD = 32  # windows of several images that a backend may take side by side
_MANY = 20  # windows that are worth timing one beforehand
_SMALL = 500_000  # voxels around which a second thread saves less than its waiting costs
_NO_MEMORY = (
    "out of memory",
    "can't allocate memory",
    "cudnn_status_alloc_failed",
    "cublas_status_alloc_failed",
)  # in what torch says, in small letters
_GROUP = 8  # slices of a 2D network that are held at a time


@dataclass(frozen=True)
class Workload:
    """What an image asks for: windows, flips of each, seconds (0 for few windows), and bytes beside the network.

    Partners are not counted.
    """

    windows: int
    flips: int
    seconds: float
    memory: int


class WindowInferer(Inferer):
    """From an image as it was read to its label map on the same grid; windows are blended with Gaussian weights.

    Windows run in rows. Finished planes become probabilities, are interpolated onto the file's grid, and the most
    probable class is written.

    Args:
        frame: what the network sees of an image.
        labels: stored value per class, background first.
        patch_size: the window in voxels; two numbers for a 2D network, which then runs slice by slice along z.
        overlap: fraction of a window shared with the next.
        batch_size: windows per forward pass, halved when the device runs out of memory; null: by the device.
        mirror_axes: spatial axes to average over mirrored inputs (test-time augmentation); none by default.
        blend: ``gaussian``, ``constant``, or ``exact``: windows of a patch and all that its result depends on, each
            voxel computed once, equal to the whole volume in one pass; for networks that have such a bound. Those
            without padding always run so; a patch is then what a tile sees, and `border` what it sees at the ends.
        border: what lies beyond an image smaller than a window: ``constant``, ``edge`` or ``mirror``.
        amp: mixed precision where the device has it.
        backend: ``torch``, ``openvino``, ``onnx``, or ``auto``: what is fastest here.
        bundle_root: converted networks are kept in its ``models/compiled``; null: nowhere.
        partners: folders of other bundles of the same labels, below `bundle_root` or absolute, whose probabilities are
            averaged with those of this one on the file's grid.
        scratch: where a temporary file of all probabilities lies while partners are averaged; null: the system's place.
        region: where windows lie: ``all``; ``body``: over the box of all that is denser than air, in CT; or
            ``{"bundle": PATH, "margin": MM}``: around all that a coarser bundle finds. The rest is background.
        channels, regions: the plan's; partners must have the same, a coarser bundle the same channels; null: not
            compared.

    Shapes: MetaTensor (1, channels, x, y, z) -> MetaTensor (1, 1, x, y, z) of stored label values, on the CPU.

    Raises:
        InputError: (at call) another number of channels, or several volumes.
        NetworkError: (at call) ``exact`` with a network whose output depends on all of its input, or an output that is
            not a number.
        ResourceError: (at call) one window alone does not fit the memory, or the backend is not installed.
    """

    def __init__(
        self,
        frame: Frame,
        labels: Mapping[str, int],
        patch_size: Sequence[int],
        overlap: float = 0.5,
        batch_size: int | None = None,
        mirror_axes: Sequence[int] = (),
        blend: str = "gaussian",
        border: str = "constant",
        amp: bool = False,
        backend: str = "torch",
        bundle_root: str | None = None,
        region: Rule = "all",
        partners: Sequence[str] = (),
        scratch: str | None = None,
        channels: Sequence[str] | None = None,
        regions: Mapping[str, Sequence[int]] | None = None,
    ) -> None:
        super().__init__()
        self.frame, self.values = frame, list(labels.values())
        self.flat = len(patch_size) == 2
        self.patch = (*(int(n) for n in patch_size), 1) if self.flat else tuple(int(n) for n in patch_size)
        self.overlap, self.batch_size, self.mirror_axes = float(overlap), batch_size, tuple(mirror_axes)
        if not set(self.mirror_axes) <= set(range(len(patch_size))):
            raise InputError(
                f"mirror_axes is {list(self.mirror_axes)}; give spatial axes, some of {list(range(len(patch_size)))}"
            )
        self.blend, self.border, self.amp, self.backend = blend, border, bool(amp), backend
        self.cache = None if bundle_root is None else Path(bundle_root) / COMPILED
        self.region = Region(region, frame, bundle_root, channels)
        self.partners = [Path(bundle_root or ".") / str(partner) for partner in partners]
        options = {"backend": backend, "amp": self.amp, "mirror": bool(self.mirror_axes)}
        facts = {"channels": channels, "regions": regions}
        self._partners = Partners(self.partners, labels, facts, None if scratch is None else Path(scratch), options)
        self.importance = importance(self.patch, "constant" if blend == "exact" else blend)
        self.expected = 1
        """How many images like the first are to come: ``auto`` tries more backends for many."""
        self.choice = ""
        """What ``auto`` took and why."""
        self._ready: tuple[Any, Shape, Backend] | None = None
        self._torch: TorchBackend | None = None
        self._halo: tuple[Any, Halo] | None = None
        self._margin: Shape = (0, 0, 0)
        self._seconds: float | None = None  # a window

    def __call__(self, inputs: MetaTensor, network: Callable[..., Tensor], *args: Any, **kwargs: Any) -> MetaTensor:
        image = self.see(_alone(inputs), network)
        return self.label_tensor(self.segment([image], network)[0].labels, image.file)

    def see(self, image: MetaTensor, network: Any) -> NetworkImage:
        """What the network is to see of an image (channels, x, y, z)."""
        return self.crop(self.frame.see(image), network)

    def crop(self, image: NetworkImage, network: Any) -> NetworkImage:
        """The part of an image that is worth a look."""
        device = device_of(network) if isinstance(network, nn.Module) else torch.device("cpu")
        return self.region.crop(image, device, self.patch)

    @staticmethod
    def label_tensor(labels: AnyArray, grid: Grid) -> MetaTensor:
        """Labels (x, y, z) as (1, 1, x, y, z) on `grid`."""
        return MetaTensor(torch.from_numpy(labels)[None, None], affine=torch.from_numpy(np.array(grid.affine)))

    @torch.no_grad()
    def segment(
        self,
        images: Sequence[NetworkImage | WholeImage],
        network: Callable[..., Tensor],
        sinks: Sequence[Sink | None] = (),
    ) -> list[Segmentation]:
        """Segment images, each onto its file's grid; their windows share forward passes, unless there are partners."""
        sinks = list(sinks) or [None] * len(images)
        if not self.partners:
            return self._alone(images, network, sinks)
        device = device_of(network) if isinstance(network, nn.Module) else torch.device("cpu")
        made = []
        for image, sink in zip(images, sinks, strict=True):
            if isinstance(image, WholeImage):
                raise InputError("partners see a file's own voxels, and this image was resampled before")
            own = partial(self._with_sink, image, network)
            made.append(self._partners.segment(own, image, device, sink))
        return made

    def _with_sink(self, image: NetworkImage, network: Callable[..., Tensor], sink: Sink) -> Segmentation:
        return self._alone([image], network, [sink])[0]

    def _alone(
        self, images: Sequence[NetworkImage | WholeImage], network: Callable[..., Tensor], sinks: Sequence[Sink | None]
    ) -> list[Segmentation]:
        passages = []
        for image, sink in zip(images, sinks, strict=True):
            border, windows = self.windows(image, network)
            weights = self.importance if windows.window == self.patch else torch.ones(windows.window)
            passages.append(Passage(image, border, windows, weights, self.values, sink))
        backend = self.prepare(images[0], network)
        small = all(math.prod(image.grid.shape) <= _SMALL for image in images)
        with one_thread() if small and backend.name in NAMES[1:] else nullcontext():
            return self._drive([p.run(self._at_once(backend)) for p in passages], backend)

    def windows(self, image: NetworkImage | WholeImage, network: Any) -> tuple[Bordered, Windows]:
        """Where windows lie over an image, enlarged to hold one."""
        size = image.grid.shape
        self._margin = output_margin(network, 2 if self.flat else 3)
        if self.blend != "exact" and not any(self._margin):
            border = Bordered(image.read, size, self.patch, self.border)
            return border, overlapping(border.size, self.patch, self.overlap, _GROUP)
        return self._tiles(image, network)

    def _tiles(self, image: NetworkImage | WholeImage, network: Any) -> tuple[Bordered, Windows]:
        """Exact tiles. A network without padding takes in windows of a patch; others of a patch and its halo."""
        size, dims = image.grid.shape, 2 if self.flat else 3
        halo, divisor = self._halo_of(network, image.channels), spatial_divisor(network, dims)
        room = [0 if any(self._margin) else sum(h) for h in halo]
        whole = fitting_size(network, [n + 2 * m for n, m in zip(size, self._margin, strict=False)])
        wanted = fitting_size(network, [p + r for p, r in zip(self.patch, room, strict=False)])
        window = tuple(min(n, w) for n, w in zip(whole, wanted, strict=True))
        if self.flat:
            halo, divisor = (*halo, (0, 0)), (*divisor, 1)
            whole, window = (*whole, size[2]), (*window, 1)
        border = Bordered(image.read, size, whole, self.border)
        return border, tiles(border.size, window, halo, divisor)

    def workload(self, image: NetworkImage | WholeImage, network: Any) -> Workload:
        """What an image asks for; of many windows one is timed, unless the choice of a backend has told."""
        border, windows = self.windows(image, network)
        backend = self.prepare(image, network)
        flips = 2 ** len(self.mirror_axes)
        if self._seconds is None and windows.count * flips >= _MANY:
            for _ in range(2):  # the first is slower
                start = time.perf_counter()
                self._forward(torch.zeros((1, image.channels, *windows.window)), backend)
                synchronize(backend.device)
                self._seconds = time.perf_counter() - start
        if Resampling(image.grid, image.native).rearranges:
            windows = windows.in_columns()
        plane = math.prod(border.size) // border.size[windows.axis]
        held = 4 * (windows.held * (len(self.values) + 1) + plane * windows.depth * image.channels)
        return Workload(windows.count, flips, (self._seconds or 0.0) * windows.count * flips, held)

    def prepare(self, image: NetworkImage | WholeImage, network: Any) -> Backend:
        """What computes logits; chosen and compiled once per network and window."""
        if not isinstance(network, nn.Module):
            return _Function(network)
        device = device_of(network)
        if self.backend == "torch":
            if self._torch is None or self._torch.network is not network or self._torch.device != device:
                self._torch = TorchBackend(network, device, self.amp)
            elif network.training:
                network.eval()
            return self._torch
        _, windows = self.windows(image, network)
        window = windows.window[:2] if self.flat else windows.window
        if self._ready is None or self._ready[0] is not network or self._ready[1] != window:
            channels = image.channels
            if self.backend == "auto":
                count = windows.count * 2 ** len(self.mirror_axes) * self.expected
                chosen = choose_backend(
                    network, device, window, channels, amp=self.amp, cache=self.cache, windows=count
                )
                backend, self.choice, self._seconds = chosen.backend, chosen.sentence, chosen.seconds
            else:
                backend = make_backend(self.backend, network, device, window, channels, amp=self.amp, cache=self.cache)
            self._ready = (network, tuple(window), backend)
        return self._ready[2]

    def together(self, network: Any) -> int:
        """How many windows share a forward pass; small images are worth collecting until there are so many."""
        if self.blend == "exact" or any(output_margin(network, 2 if self.flat else 3)):
            return 1  # images of different sizes have different windows
        if self.flat and self.backend != "torch" and _runs_on(network, "cpu"):
            return _AHEAD
        return self._batch(device_of(network) if isinstance(network, nn.Module) else torch.device("cpu"))

    def _batch(self, device: torch.device) -> int:
        return self.batch_size or (_FLAT_BATCH if self.flat else _BATCH).get(device.type, 1)

    def _at_once(self, backend: Backend) -> int:
        """How many windows of one image a backend is given."""
        return self.batch_size or max(self._batch(backend.device), backend.streams)

    def _halo_of(self, network: Any, channels: int) -> Halo:
        if self._halo is None or self._halo[0] is not network:
            halo = tile_halo(network, 2 if self.flat else 3, channels)
            if halo is None:
                mend = "plan it with norm batch or none" if any(self._margin) else "take blend: gaussian"
                raise NetworkError(
                    f"the network's output depends on all of its input (as with instance normalisation), there are no "
                    f"exact tiles; {mend}"
                )
            self._halo = (network, halo)
        return self._halo[1]

    def _drive(self, runs: Sequence[Generator[Tensor, Tensor, Segmentation]], backend: Backend) -> list[Segmentation]:
        """Run the passages of several images side by side."""
        results: dict[int, Segmentation] = {}
        numbers = list(range(len(runs)))
        asked: Iterator[Tensor] = map(next, runs)  # an image is looked at when it is its turn
        while numbers:
            following: dict[int, Tensor] = {}
            with closing(self._answers(asked, backend)) as answers:
                for number, answer in zip(numbers, answers, strict=True):
                    try:
                        following[number] = runs[number].send(answer)
                    except StopIteration as done:
                        results[number] = done.value
            del answer  # before the next ones are made
            numbers, asked = list(following), iter(following.values())
        return [results[number] for number in range(len(runs))]

    def _answers(self, batches: Iterator[Tensor], backend: Backend) -> Generator[Tensor]:
        """Logits of each batch, in one forward pass, or the next ones while an answer is used."""
        if isinstance(backend, OpenVinoBackend) and backend.streams > 1 and not (self.mirror_axes or any(self._margin)):
            yield from _ahead(batches, backend)
            return
        waiting = list(batches)
        yield from torch.split(self._logits(torch.cat(waiting), backend), [len(batch) for batch in waiting])

    def _logits(self, batch: Tensor, backend: Backend) -> Tensor:
        """Mean logits over the mirrored versions of (n, channels, *window)."""
        axes = self.mirror_axes
        flips = [[axis + 2 for axis in f] for n in range(1, len(axes) + 1) for f in combinations(axes, n)]
        total = self._forward(batch, backend)
        if not flips:
            return total
        total = total.clone()  # a backend's logits last until its next call
        for dims in flips:
            total = total + self._forward(batch.flip(dims), backend).flip(dims)
        return total / (1 + len(flips))

    def _forward(self, batch: Tensor, backend: Backend) -> Tensor:
        """Logits of (n, channels, *window), in smaller batches when memory runs out."""
        size = self._at_once(backend)
        done: list[Tensor] = []
        while (first := sum(map(len, done))) < len(batch):
            try:
                part = _sent(batch[first : first + size], backend.device)
                logits = backend(part[..., 0])[..., None] if self.flat else backend(part)
                done.append(logits if len(part) == len(batch) else logits.clone())  # they last until the next call
            except (torch.OutOfMemoryError, RuntimeError) as error:
                if not is_out_of_memory(error):
                    raise
                if size == 1:
                    raise ResourceError(
                        f"one window of {list(batch.shape[2:])} voxels does not fit the memory of {backend.device}; "
                        f"close other programs, use --device cpu, or plan a smaller patch_size"
                    ) from error
                self.batch_size = size = size // 2
        return _as_large(done[0] if len(done) == 1 else torch.cat(done), batch, self._margin)


def _ahead(batches: Iterator[Tensor], backend: OpenVinoBackend) -> Generator[Tensor]:
    """Logits of each batch (n, channels, x, y, 1), which is only asked for when there is room for its windows."""
    counts: deque[int] = deque()

    def windows() -> Iterator[Tensor]:
        for batch in batches:
            counts.append(len(batch))
            yield from torch.split(batch[..., 0], 1)

    answers = backend.ahead(windows())
    for first in answers:
        count = counts.popleft()
        if count > 1:  # each lasts until the next is taken
            first = torch.cat([first.clone(), *(next(answers).clone() for _ in range(count - 1))])
        yield first[..., None]


def _sent(windows: Tensor, device: torch.device) -> Tensor:
    """Windows on a device; to CUDA from pinned memory, without waiting for the copy."""
    return windows.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else windows.to(device)


class _Function:
    """A plain function in place of a network."""

    name, device, streams = "function", torch.device("cpu"), 1

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        self._function = function

    def __call__(self, windows: Tensor) -> Tensor:
        return self._function(windows)


def _alone(batch: MetaTensor) -> MetaTensor:
    """The only volume of a batch, without copying it.

    Raises:
        InputError: there are several.
    """
    if len(batch) != 1:
        raise InputError(f"a batch has {len(batch)} volumes, and they go one by one; set dataloader::batch_size to 1")
    affine = torch.as_tensor(batch.affine).reshape(-1, 4, 4)[0]
    return MetaTensor(batch.as_tensor()[0], affine=affine)


def _as_large(logits: Tensor, batch: Tensor, margin: Sequence[int]) -> Tensor:
    """Logits of a network without padding with a margin of zeros, which no tile counts: as large as its window."""
    around = [*margin, 0][: batch.ndim - 2]
    if any(w - n != 2 * m for w, n, m in zip(batch.shape[2:], logits.shape[2:], around, strict=True)):
        raise NetworkError(
            f"the network makes {list(logits.shape[2:])} of a window of {list(batch.shape[2:])} voxels; its attribute "
            f"margin must say how many voxels it leaves out on either side"
        )
    return nn.functional.pad(logits, [m for m in reversed(around) for _ in "<>"]) if any(around) else logits


def _runs_on(network: Any, kind: str) -> bool:
    return isinstance(network, nn.Module) and device_of(network).type == kind


def device_of(network: nn.Module) -> torch.device:
    """Where a network's weights are."""
    first = next(network.parameters(), None)
    return torch.device("cpu") if first is None else first.device


def is_out_of_memory(error: BaseException) -> bool:
    """Whether torch ran out of device or host memory."""
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return True
    text = str(error).lower()
    return isinstance(error, RuntimeError) and any(words in text for words in _NO_MEMORY)
