"""One image on its way through the windows: which window comes next, and what becomes of its logits."""

from __future__ import annotations

import time
from collections.abc import Generator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from medunet.data.resampling import Box, Resampling
from medunet.data.transforms import NetworkImage, WholeImage
from medunet.errors import NetworkError
from medunet.inference.accumulator import Accumulator
from medunet.inference.border import Bordered
from medunet.inference.device import synchronize
from medunet.inference.outputs import are_classes, decide, probabilities
from medunet.inference.placement import Place, Row, Windows
from medunet.inference.quality import Certainty
from medunet.inference.restoring import Restorer, Sink, blank
from medunet.types import AnyArray, Shape

_TOGETHER = 2_000_000  # probabilities that are judged at a time


@dataclass(frozen=True)
class Segmentation:
    """A label map (x, y, z) on the file's grid, and how certain the network was of each class but the background.

    `preprocess` and `restore` are the seconds around the network.
    """

    labels: AnyArray
    certainty: list[dict[str, float]]
    preprocess: float
    restore: float


class Passage:
    """Windows of an image, a few at a time, and the label map that their logits make.

    Of the network's input and of the blended logits only the planes that open windows touch are held.

    Args:
        image: what the network sees.
        border: what lies beyond it.
        windows: where windows lie.
        importance: how much each voxel of a window counts.
        values: stored value per class, background first.
        sink: takes all probabilities on the file's grid, if wanted.

    Raises:
        NetworkError: (while it runs) a probability is not a number.
    """

    def __init__(
        self,
        image: NetworkImage | WholeImage,
        border: Bordered,
        windows: Windows,
        importance: Tensor,
        values: Sequence[int],
        sink: Sink | None = None,
    ) -> None:
        back = Resampling(image.grid, image.native)
        self.input, self.importance = border, importance
        self.windows = windows if back.aligned else windows.in_one_row()  # else any plane may need all planes
        self.labels = blank(image.file.shape, values)
        inside = self.labels[tuple(slice(*bounds) for bounds in image.box)]
        self.sink = None if sink is None else _Inside(sink, image)
        self.restorer = Restorer(back, windows.axis, values, inside, self.sink)
        if self.restorer.takes_labels:
            self.windows = self.windows.in_columns()
        self.columns = self.windows.columns
        self.accumulator: Accumulator | None = None
        self.certainty: Certainty | None = None
        self.preprocess = self.restore = 0.0
        self.classes = True
        self._winners: Tensor | None = None
        self._planes: tuple[int, Tensor] | None = None
        self._constant: tuple[tuple[float, ...], Tensor] | None = None

    def run(self, batch_size: int) -> Generator[Tensor, Tensor, Segmentation]:
        """Yields windows (n, channels, *window), takes their logits (n, classes, *window), returns what they make.

        A window in which every channel is constant, such as clipped air, is only yielded when the one before like it
        was another: the same input has the same logits.
        """
        size, across = self.windows.size, self.windows.across
        for row in self.windows.rows():
            closed = 0
            start = time.perf_counter()
            slab = self._slab(row.start, row.end)
            self.preprocess += time.perf_counter() - start
            waiting: list[Place] = []
            for place in row.places:
                if not waiting:
                    closed = self._finish(row, closed, place[across].first)
                window = self._cut(slab, row, place)
                constant = _constant(window)
                if constant is None:
                    waiting.append(place)
                else:
                    if self._constant is None or self._constant[0] != constant:
                        self._constant = (constant, (yield window[None].contiguous())[0].clone())
                    self._add(self._constant[1], place)
                if len(waiting) == batch_size:
                    yield from self._run(slab, row, waiting)
                    waiting = []
            yield from self._run(slab, row, waiting)
            self._finish(row, closed, size[across])
            self._put_labels()
        certainty = [] if self.certainty is None else self.certainty.features()
        return Segmentation(self.labels, certainty, self.preprocess, self.restore)

    def _run(self, slab: Tensor, row: Row, places: Sequence[Place]) -> Generator[Tensor, Tensor, None]:
        if places:
            logits = yield torch.stack([self._cut(slab, row, place) for place in places])
            for one, place in zip(logits, places, strict=True):
                self._add(one, place)

    def _slab(self, start: int, stop: int) -> Tensor:
        """Planes of the network's input; those that the row before had are not read again."""
        axis = self.windows.axis
        box = [(0, n) for n in self.windows.size]
        first = start
        parts: list[Tensor] = []
        if self._planes is not None:
            before, planes = self._planes
            first = before + planes.shape[1 + axis]
            if start < first:
                parts.append(planes.narrow(1 + axis, start - before, first - start))
            first = max(first, start)
        if first < stop:
            box[axis] = (first, stop)
            parts.append(self.input.read(tuple(box)))
        slab = parts[0] if len(parts) == 1 else torch.cat(parts, dim=1 + axis)
        self._planes = (start, slab)
        return slab

    def _cut(self, slab: Tensor, row: Row, place: Place) -> Tensor:
        starts = [span.start - (row.start if axis == self.windows.axis else 0) for axis, span in enumerate(place)]
        return slab[(slice(None), *(slice(s, s + n) for s, n in zip(starts, self.windows.window, strict=True)))]

    def _add(self, logits: Tensor, place: Place) -> None:
        if self.accumulator is None:
            self.classes = are_classes(logits.shape[0], len(self.restorer.values))
            self.accumulator = Accumulator(self.windows, logits.shape[0], self.importance, logits.device)
            self.certainty = Certainty(logits.shape[0], self.classes)
            if self.sink is not None:
                self.sink.fill(self.classes)
        self.accumulator.add(logits, place)

    def _finish(self, row: Row, closed: int, before: int) -> int:
        """Judge the complete planes of columns that end at `before` or earlier, which no window to come touches.

        `closed` are done already; how many are now.
        """
        accumulator, across = self.accumulator, self.windows.across
        if accumulator is None or closed == len(self.columns) or self.columns[closed][1] > before:
            return closed
        synchronize(accumulator.importance.device)
        clock = time.perf_counter()
        while closed < len(self.columns) and self.columns[closed][1] <= before:
            box = [(0, n) for n in self.windows.size]
            box[self.windows.axis], box[across] = (row.first, row.complete), self.columns[closed]
            complete = accumulator.mean(closed, row)
            for part in _pieces(complete, complete.numel()):
                probabilities(part, self.classes)
            self._hand_over(complete, box)
            accumulator.keep(closed, row)
            closed += 1
        if closed == len(self.columns):
            accumulator.start = row.complete
        synchronize(accumulator.importance.device)
        self.restore += time.perf_counter() - clock
        return closed

    def _hand_over(self, complete: Tensor, box: Sequence[tuple[int, int]]) -> None:
        """What of the probabilities of a box (outputs, ...) lies inside the image."""
        edges = [(b, b + n) for b, n in zip(self.input.before, self.input.inner, strict=True)]
        inner = [(max(a, first), min(b, last)) for (a, b), (first, last) in zip(box, edges, strict=True)]
        if any(first >= last for first, last in inner):
            return
        inside = complete[(slice(None), *(slice(a - f, b - f) for (a, b), (f, _) in zip(inner, box, strict=True)))]
        if not self.restorer.takes_labels:
            self._judge(inside, None)
            self.restorer.put(inside)
            return
        if self._winners is None:
            shape = list(self.input.inner)
            shape[self.windows.axis] = inside.shape[1 + self.windows.axis]
            self._winners = torch.empty(shape, dtype=torch.int16, device=inside.device)
        across = self.windows.across
        first, last = (bound - edges[across][0] for bound in inner[across])
        self._judge(inside, self._winners.narrow(across, first, last - first))

    def _put_labels(self) -> None:
        """Hand over the label numbers of a row's complete planes."""
        if self._winners is not None:
            clock = time.perf_counter()
            self.restorer.put_labels(self._winners)
            self._winners = None
            self.restore += time.perf_counter() - clock

    def _judge(self, inside: Tensor, winners: Tensor | None) -> None:
        """Note how certain the network was, a piece at a time, and label numbers in `winners`."""
        if self.certainty is None:
            return
        numbers = inside.numel()
        into = None if winners is None else iter(_pieces(winners[None], numbers))
        for part in _pieces(inside, numbers):
            part = part.cpu() if part.device.type == "mps" else part  # which has no float64
            labels = decide(part, self.classes)
            self.certainty.update(part, labels)
            if into is not None:
                next(into)[0] = labels
        if not self.certainty.finite:
            raise NetworkError(
                "the network's output is not a number; predict with --backend torch or on the CPU, and train again if "
                "it is so there too"
            )


class _Inside:
    """Hands probabilities of the part of a file that was seen to the sink of the whole; elsewhere all is background."""

    def __init__(self, sink: Sink, image: NetworkImage | WholeImage) -> None:
        self._sink, self._file, self._box = sink, image.file.shape, image.box

    def __call__(self, number: int, box: Box, values: Tensor) -> None:
        place = tuple((first + start, first + stop) for (first, _), (start, stop) in zip(self._box, box, strict=True))
        self._sink(number, place, values)

    def fill(self, classes: bool) -> None:
        """The background of all that was not seen; regions have none and stay 0."""
        for box in around(self._box, self._file) if classes else ():
            self._sink(0, box, torch.ones(()).expand(*(stop - start for start, stop in box)))


def around(box: Box, shape: Shape) -> list[Box]:
    """Boxes that fill a volume without `box`, which they do not touch."""
    rest: list[Box] = []
    for axis, ((start, stop), size) in enumerate(zip(box, shape, strict=True)):
        before, after = box[:axis], tuple((0, n) for n in shape[axis + 1 :])
        rest += [(*before, side, *after) for side in ((0, start), (stop, size)) if side[0] < side[1]]
    return rest


def _pieces(volume: Tensor, numbers: int) -> tuple[Tensor, ...]:
    """(n, x, y, z) cut along x, across which memory runs on, as finely as a volume of so many `numbers` must be."""
    return torch.split(volume, max(1, _TOGETHER * volume.shape[1] // numbers), dim=1)


def _constant(window: Tensor) -> tuple[float, ...] | None:
    """The value of each channel of (channels, *window) when they are constant."""
    first = window[(slice(None), *(slice(0, 1),) * (window.ndim - 1))]
    if not torch.equal(window[..., 0], first[..., 0].expand_as(window[..., 0])):
        return None  # most windows differ within their first plane
    return tuple(first.flatten().tolist()) if bool((window == first).all()) else None
