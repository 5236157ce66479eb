"""Whole volumes through a network, a window at a time, in memory that does not grow with the number of slices."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import combinations
from typing import Any

import numpy as np
import torch
from monai.data import MetaTensor
from monai.inferers import Inferer
from torch import Tensor

from medunet.data.grid import Grid
from medunet.data.resampling import Resampling
from medunet.data.transforms import Frame, NetworkImage
from medunet.errors import ResourceError
from medunet.inference.accumulator import Accumulator
from medunet.inference.border import Bordered
from medunet.inference.placement import Place, Row, Windows, importance, overlapping
from medunet.inference.restoring import Restorer, Sink
from medunet.types import AnyArray


class WindowInferer(Inferer):
    """From an image as it was read to its label map on the same grid; windows are blended with Gaussian weights.

    Windows run in rows. Of the network's input and its blended logits only the planes that open windows touch are held;
    finished ones become probabilities, are interpolated onto the file's grid, and the most probable class is written.

    Args:
        frame: what the network sees of an image.
        labels: stored value per class, background first.
        patch_size: the window in voxels; two numbers for a 2D network, which then runs slice by slice along z.
        overlap: fraction of a window shared with the next.
        batch_size: windows per forward pass; halved when the device runs out of memory.
        mirror_axes: spatial axes to average over mirrored inputs (test-time augmentation); none by default.
        blend: ``gaussian`` or ``constant``.
        amp: mixed precision on CUDA.
        border: what lies beyond an image smaller than a window: ``constant``, ``edge`` or ``mirror``.

    Shapes: MetaTensor (1, channels, x, y, z) -> MetaTensor (1, 1, x, y, z) of stored label values, on the CPU.

    Raises:
        InputError: (at call) another number of channels.
        ResourceError: (at call) one window alone does not fit the memory.
    """

    def __init__(
        self,
        frame: Frame,
        labels: Mapping[str, int],
        patch_size: Sequence[int],
        overlap: float = 0.5,
        batch_size: int = 1,
        mirror_axes: Sequence[int] = (),
        blend: str = "gaussian",
        border: str = "constant",
        amp: bool = False,
    ) -> None:
        super().__init__()
        self.frame, self.values = frame, list(labels.values())
        self.flat = len(patch_size) == 2
        self.window = (*(int(n) for n in patch_size), 1) if self.flat else tuple(int(n) for n in patch_size)
        self.overlap, self.batch_size, self.mirror_axes = float(overlap), int(batch_size), tuple(mirror_axes)
        self.amp = bool(amp)
        self.importance, self.border = importance(self.window, blend), border

    def __call__(self, inputs: MetaTensor, network: Callable[..., Tensor], *args: Any, **kwargs: Any) -> MetaTensor:
        image = self.frame.see(_alone(inputs))
        return self.label_tensor(self.segment(image, network), image.native)

    @staticmethod
    def label_tensor(labels: AnyArray, grid: Grid) -> MetaTensor:
        """Labels (x, y, z) as (1, 1, x, y, z) on `grid`."""
        return MetaTensor(torch.from_numpy(labels)[None, None], affine=torch.from_numpy(np.array(grid.affine)))

    @torch.inference_mode()
    def segment(self, image: NetworkImage, network: Callable[..., Tensor], sink: Sink | None = None) -> AnyArray:
        """The label map (x, y, z) of an image on the file's grid."""
        return _Case(self, image, network, sink).run()


class _Case:
    """One image on its way through the windows."""

    def __init__(self, inferer: WindowInferer, image: NetworkImage, network: Any, sink: Sink | None) -> None:
        self.inferer, self.device = inferer, device_of(network)
        self.network = network
        self.input = Bordered(image.read, image.grid.shape, inferer.window, inferer.border)
        self.windows = overlapping(self.input.size, inferer.window, inferer.overlap, group=8)
        back = Resampling(image.grid, image.native)
        if not back.aligned:  # a plane of the file needs all planes of the network's grid
            self.windows = self._in_one_row(self.windows)
        self.restorer = Restorer(back, self.windows.axis, inferer.values, sink)
        self.accumulator: Accumulator | None = None
        self._planes: tuple[int, Tensor] | None = None
        self._constant: tuple[tuple[float, ...], Tensor] | None = None

    def _in_one_row(self, windows: Windows) -> Windows:
        return Windows(windows.size, windows.window, windows.spans, windows.axis, len(windows.spans[windows.axis]))

    def run(self) -> AnyArray:
        """Row after row; the label map."""
        for row in self.windows.rows():
            self._finish(row.first)
            self._run(row)
        self._finish(self.windows.size[self.windows.axis])
        return self.restorer.labels

    def _run(self, row: Row) -> None:
        slab = self._slab(row.start, row.end)
        waiting: list[Place] = []
        for place in row.places:
            if not self._repeat(slab, row, place):
                waiting.append(place)
            if len(waiting) == self.inferer.batch_size:
                self._add(slab, row, waiting)
                waiting = []
        if waiting:
            self._add(slab, row, waiting)

    def _slab(self, start: int, stop: int) -> Tensor:
        """Planes of the network's input; those of the row before are not read again."""
        box = [(0, n) for n in self.windows.size]
        first = start
        parts: list[Tensor] = []
        if self._planes is not None:
            before, planes = self._planes
            first = before + planes.shape[1 + self.windows.axis]
            parts = (
                [planes.narrow(1 + self.windows.axis, start - before, max(first - start, 0))] if start < first else []
            )
            first = max(first, start)
        if first < stop:
            box[self.windows.axis] = (first, stop)
            parts.append(self.input.read(tuple(box)))
        slab = parts[0] if len(parts) == 1 else torch.cat(parts, dim=1 + self.windows.axis)
        self._planes = (start, slab)
        return slab

    def _cut(self, slab: Tensor, row: Row, place: Place) -> Tensor:
        starts = [span.start - (row.start if axis == self.windows.axis else 0) for axis, span in enumerate(place)]
        return slab[(slice(None), *(slice(s, s + n) for s, n in zip(starts, self.windows.window, strict=True)))]

    def _repeat(self, slab: Tensor, row: Row, place: Place) -> bool:
        """Add a window in which every channel is constant, such as clipped air, from the one before like it: exact."""
        window = self._cut(slab, row, place)
        low, high = torch.aminmax(window.flatten(1), dim=1)
        if not torch.equal(low, high):
            return False
        key = tuple(low.tolist())
        if self._constant is None or self._constant[0] != key:
            self._constant = (key, self._logits(window[None])[0])
        self._sum(self._constant[1], place)
        return True

    def _add(self, slab: Tensor, row: Row, places: Sequence[Place]) -> None:
        batch = torch.stack([self._cut(slab, row, place) for place in places])
        for logits, place in zip(self._logits(batch), places, strict=True):
            self._sum(logits, place)

    def _sum(self, logits: Tensor, place: Place) -> None:
        if self.accumulator is None:
            self.accumulator = Accumulator(self.windows, logits.shape[0], self.inferer.importance, logits.device)
        self.accumulator.add(logits, place)

    def _logits(self, batch: Tensor) -> Tensor:
        """Mean logits over the mirrored versions of (n, channels, *window)."""
        axes = self.inferer.mirror_axes
        flips = [[axis + 2 for axis in f] for n in range(1, len(axes) + 1) for f in combinations(axes, n)]
        total = self._forward(batch)
        for dims in flips:
            total = total + self._forward(batch.flip(dims)).flip(dims)
        return total / (1 + len(flips)) if flips else total

    def _forward(self, batch: Tensor) -> Tensor:
        """Logits of (n, channels, *window), in smaller batches when memory runs out."""
        inferer = self.inferer
        done: list[Tensor] = []
        while (first := sum(map(len, done))) < len(batch):
            part = batch[first : first + inferer.batch_size].to(self.device)
            try:
                done.append(self._run_network(part))
            except (torch.OutOfMemoryError, RuntimeError) as error:
                if not is_out_of_memory(error):
                    raise
                if inferer.batch_size == 1:
                    raise ResourceError(
                        f"one window of {list(inferer.window)} voxels does not fit the memory of {self.device}; "
                        f"close other programs, use --device cpu, or plan a smaller patch_size"
                    ) from error
                inferer.batch_size //= 2
        return done[0] if len(done) == 1 else torch.cat(done)

    def _run_network(self, windows: Tensor) -> Tensor:
        with torch.autocast("cuda", enabled=self.inferer.amp and self.device.type == "cuda"):
            logits: Tensor = self.network(windows[..., 0])[..., None] if self.inferer.flat else self.network(windows)
        return logits.float()

    def _finish(self, stop: int) -> None:
        """Hand over the planes before `stop`: no window touches them any more."""
        accumulator, axis = self.accumulator, self.windows.axis
        if accumulator is None or accumulator.start >= stop:
            return
        start, planes = accumulator.start, stop - accumulator.start
        complete = probabilities(accumulator.mean(planes))
        inner = [slice(b, b + n) for b, n in zip(self.input.before, self.input.inner, strict=True)]
        inner[axis] = slice(max(0, inner[axis].start - start), min(planes, inner[axis].stop - start))
        if inner[axis].start < inner[axis].stop:
            self.restorer.put(complete[(slice(None), *inner)])
        accumulator.advance(planes)


def _alone(batch: MetaTensor) -> MetaTensor:
    """The only volume of a batch, without copying it."""
    affine = torch.as_tensor(batch.affine).reshape(-1, 4, 4)[0]
    return MetaTensor(batch.as_tensor()[0], affine=affine)


def probabilities(logits: Tensor) -> Tensor:
    """Soft-max over the classes (first axis), or a sigmoid where there is one output; in place."""
    if logits.shape[0] == 1:
        return logits.sigmoid_()
    logits.sub_(logits.amax(dim=0)).exp_()
    return logits.div_(logits.sum(dim=0))


def device_of(network: Any) -> torch.device:
    """Where a network's weights are; the CPU for a function without."""
    parameters = network.parameters() if isinstance(network, torch.nn.Module) else iter(())
    first = next(parameters, None)
    return torch.device("cpu") if first is None else first.device


def is_out_of_memory(error: BaseException) -> bool:
    """Whether torch ran out of device or host memory."""
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return True
    text = str(error).lower()
    return isinstance(error, RuntimeError) and ("out of memory" in text or "can't allocate memory" in text)
