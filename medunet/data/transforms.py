"""The one preprocessing that training, validation and inference share, and MONAI dictionary transforms around it.

load -> orient and resample -> normalise; labels also: stored values -> 0..K-1.
"""

from __future__ import annotations

import json
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from monai.data import MetaTensor
from monai.transforms import MapTransform
from torch import Tensor

from medunet.data.grid import Grid, label_differs
from medunet.data.labelling import Declared, in_words, stored_values
from medunet.data.reader import STATED, VolumeReader, sources_of
from medunet.data.resampling import Box, Resampling, network_grid
from medunet.data.spill import slabs
from medunet.errors import GeometryError, InputError
from medunet.types import AnyArray

Item = dict[Hashable, Any]
_MOST_SAMPLED = 1_000_000  # voxels that percentiles are taken of
_PREPROCESSING = 2
"""One more with every change to what `Preprocess` makes of a case: stored cases of before are made again."""


@dataclass(frozen=True)
class Scale:
    """How a channel's values become a network's: clip to [low, high], subtract `mean`, divide by `std`."""

    low: float
    high: float
    mean: float
    std: float

    def apply(self, values: Tensor) -> None:
        """Scale float32 values in place."""
        values.clamp_(self.low, self.high).sub_(self.mean).div_(self.std)


class Frame:
    """What a network sees of a file: the plan's orientation, spacing and normalisation. The one place that says so.

    Args:
        orientation: axis codes of the network's space, such as ``RAS``.
        spacing: mm per axis in that orientation.
        normalization: per channel ``{"scheme": "zscore" | "ct" | "none", ...}`` as in the plan.
    """

    def __init__(self, orientation: str, spacing: Sequence[float], normalization: Sequence[Mapping[str, Any]]) -> None:
        self.orientation, self.spacing = orientation, tuple(float(s) for s in spacing)
        self.normalization = [dict(scheme) for scheme in normalization]

    def grid(self, native: Grid) -> Grid:
        """The grid of the network's input for an image on `native`."""
        return network_grid(native, self.orientation, self.spacing)

    def see(self, image: MetaTensor) -> NetworkImage:
        """The image as the network sees it, to be read a box at a time.

        Raises:
            InputError: it has another number of channels.
        """
        got, want = int(image.shape[0]), len(self.normalization)
        if got != want:
            name = image.meta.get("filename_or_obj", "image")
            raise InputError(
                f"{name}: has {got} channel{'s' * (got != 1)}, the model takes {want}; give one per channel"
            )
        native = grid_of(image)
        values = image.as_tensor()
        scales = [scale_of(channel.numpy(), scheme) for channel, scheme in zip(values, self.normalization, strict=True)]
        return NetworkImage(values, Resampling(native, self.grid(native)), scales, native, _all_of(native))

    def part(self, image: NetworkImage, box: Box) -> NetworkImage:
        """A part of an image's file, as a network sees it when it gets no more; the whole file sets the scale."""
        values = image.values[(slice(None), *(slice(*bounds) for bounds in box))]
        native = image.file.part(box)
        return NetworkImage(values, Resampling(native, self.grid(native)), image.scales, image.file, box, image.entire)


class WholeImage:
    """An image that was brought onto a network's `grid` before; all else is as with `like`."""

    def __init__(self, values: Tensor, like: NetworkImage) -> None:
        self.values, self.channels = values, int(values.shape[0])
        self.grid, self.native, self.file, self.box = like.grid, like.native, like.file, like.box

    def read(self, box: Box) -> Tensor:
        """(channels, ...) float32 of a box of the network's grid; a tensor of its own."""
        return self.values[(slice(None), *(slice(*bounds) for bounds in box))].clone()


class NetworkImage:
    """An image on a network's grid, resampled and normalised when a box of it is read.

    Args:
        values: (channels, x, y, z) as stored, on the source of `resampling`.
        scales: what becomes of each channel's values.
        file: the grid of the whole file.
        box: where in it `values` are.
        entire: the image that this is a part of; null: it is all of it.
    """

    def __init__(
        self,
        values: Tensor,
        resampling: Resampling,
        scales: Sequence[Scale | None],
        file: Grid,
        box: Box,
        entire: NetworkImage | None = None,
    ) -> None:
        self.values, self.resampling, self.scales = values, resampling, list(scales)
        self.channels, self.file, self.box = int(values.shape[0]), file, box
        self._entire = entire

    @property
    def grid(self) -> Grid:
        """The network's grid."""
        return self.resampling.target

    @property
    def entire(self) -> NetworkImage:
        """All of the file that this is a part of."""
        return self if self._entire is None else self._entire

    @property
    def native(self) -> Grid:
        """The grid of the file, or of the part of it that the network sees."""
        return self.resampling.source

    def read(self, box: Box) -> Tensor:
        """(channels, ...) float32 of a box of the network's grid; a tensor of its own."""
        needed = self.resampling.needs(box)
        part = self.values[(slice(None), *(slice(*bounds) for bounds in needed))]
        plain = torch.from_numpy(part.numpy().astype(np.float32))  # torch does not resample every integer type
        result = self.resampling(plain, [start for start, _ in needed], box)
        for channel, scale in zip(result, self.scales, strict=True):
            if scale is not None:
                scale.apply(channel)
        return result.contiguous()

    def whole(self) -> Tensor:
        """All of it."""
        return self.read(tuple((0, n) for n in self.grid.shape))


class LoadVolumed(MapTransform):
    """Load files with medunet's reader as (channels, x, y, z) in RAS, in the file's own type; no other reader steps in.

    Uncompressed NIfTI stays on disk until it is read (memory-mapped). ``label`` is read as a label map; where it is a
    picture that does not say how large its pixels are, and as large as ``image``, it lies on the image's grid.

    Raises:
        GeometryError: (at call) the label's grid is not the image's.
        InputError: (at call) a file that cannot be read, or voxels that are not finite.
    """

    def __init__(self, keys: Sequence[str] = ("image",)) -> None:
        super().__init__(keys)
        self._readers = {False: VolumeReader(), True: VolumeReader(label=True)}

    def __call__(self, data: Mapping[Hashable, Any]) -> Item:
        item = dict(data)
        for key in self.keys:
            reader = self._readers[key == "label"]
            array, meta = reader.get_data(reader.read(item[key]))
            forward = array if min(array.strides) > 0 else np.ascontiguousarray(array)  # torch has no negative strides
            item[key] = MetaTensor(torch.from_numpy(forward), meta=meta)
        if {"image", "label"} <= set(self.keys):
            _align(item["label"], item["image"])
            if words := label_differs(grid_of(item["image"]), grid_of(item["label"])):
                raise GeometryError(f"{sources_of(item['label'])[0]}: {words}; resample the label or remove the case")
        return item


class Preprocess(MapTransform):
    """Load `image` and `label` and bring them onto the network's grid; the image is normalised.

    Args:
        frame: orientation, spacing and normalisation.
        labels: stored value per class, background first.
        regions: the values of each region, where labels may overlap; a label's numbers are then those of
            `stored_values`, and `targets` makes masks of them.
        ignore: the value of voxels nobody annotated; they get the number after the last.

    Output: image float32 (channels, x, y, z); label uint8/int16 (1, x, y, z) with classes 0..K-1, K for ignored voxels.

    Raises:
        InputError: (at call) an unreadable file, non-finite voxels, another number of channels, or a label value that
            is not declared.
    """

    def __init__(
        self,
        frame: Frame,
        labels: Mapping[str, int],
        regions: Mapping[str, Sequence[int]] | None = None,
        ignore: int | None = None,
    ) -> None:
        super().__init__(("image", "label"))
        self.frame, self.values, self.ignore = frame, stored_values(labels, regions or {}), ignore
        self.declared = Declared(dict(labels), {name: list(values) for name, values in (regions or {}).items()}, ignore)
        self.members = [[self.values.index(value) for value in values] for values in (regions or {}).values()]
        self._load = LoadVolumed(self.keys)

    @property
    def ignored(self) -> int:
        """The number of voxels nobody annotated."""
        return len(self.values)

    def targets(self, label: Tensor) -> Tensor:
        """What a loss reads of a label (1, ...): the same for classes; of regions a mask each, 2 where it is ignored.

        Shapes: (1, ...) -> (1, ...), or uint8 (regions, ...)
        """
        if not self.members:
            return label
        table = torch.zeros((len(self.members), self.ignored + 1), dtype=torch.uint8, device=label.device)
        table[:, self.ignored] = 2
        for row, numbers in zip(table, self.members, strict=True):
            row[numbers] = 1
        return table[:, label[0].long()]

    def as_text(self) -> str:
        """What the result depends on beside the files: equal texts, equal results."""
        frame = self.frame
        labels = [self.values, self.members, self.ignore]
        return json.dumps(
            [_PREPROCESSING, frame.orientation, frame.spacing, frame.normalization, labels], sort_keys=True
        )

    def __call__(self, data: Mapping[Hashable, Any]) -> Item:
        item = self._load(data)
        image, label = self.frame.see(item["image"]), item["label"]
        item["image"] = on_grid(image.whole(), item["image"], image.grid)
        classes = to_classes(label.as_tensor(), self.values, self.ignore)
        require_declared(label.numpy(), self.declared, sources_of(label)[0])
        placed = Resampling(grid_of(label), image.grid).whole(classes, nearest=True).contiguous()
        item["label"] = on_grid(placed, label, image.grid)
        return item


def _all_of(grid: Grid) -> Box:
    return tuple((0, n) for n in grid.shape)


def on_grid(values: Tensor, like: MetaTensor, grid: Grid) -> MetaTensor:
    """`values` on `grid`, with the meta data of `like`."""
    return MetaTensor(values, affine=torch.from_numpy(np.array(grid.affine)), meta=_meta(like))


def _meta(image: MetaTensor) -> dict[str, Any]:
    return {key: value for key, value in image.meta.items() if key != "affine"}


def grid_of(image: MetaTensor) -> Grid:
    """The grid that a tensor (channels, x, y, z), alone or as a batch of one, lies on."""
    affine = np.asarray(image.affine).reshape(-1, 4, 4)[0]
    return Grid(tuple(int(n) for n in image.shape[-3:]), affine)


def _align(label: MetaTensor, image: MetaTensor) -> None:
    """See `medunet.data.volume.aligned`."""
    if not label.meta.get(STATED, True) and label.shape[1:] == image.shape[1:]:
        label.affine = image.affine


def require_declared(label: AnyArray, known: Declared, where: str) -> None:
    """Refuse a label map that was given another value since the plan: its voxels would pass for background.

    Raises:
        InputError: with the value and what is declared.
    """
    values = [*stored_values(known.labels, known.regions), *([] if known.ignore is None else [known.ignore])]
    others = label[~np.isin(label, values)]
    if len(others):
        raise InputError(
            f"{where}: label value {float(others.min()):g} is not declared ({in_words(known)}); declare it "
            f"(medunet plan) or correct the label"
        )


def without_voxels(image: MetaTensor) -> MetaTensor:
    """What is known of an image, without the memory of its voxels."""
    return MetaTensor(torch.zeros(1).expand(image.shape), affine=image.affine, meta=_meta(image))


def scale_of(channel: AnyArray, scheme: Mapping[str, Any]) -> Scale | None:
    """The scale of a channel (x, y, z) as stored.

    ``ct``: clip to [low, high], subtract mean, divide by std (of the training foreground).
    ``zscore``: clip to the image's percentiles 0.5 and 99.5, then zero mean and unit deviation of this image, all of
    the voxels as they are stored. Where nearly all voxels are equal, so that those percentiles are, nothing is clipped;
    a constant channel becomes zero.
    """
    if scheme["scheme"] == "ct":
        return Scale(*(float(scheme[key]) for key in ("low", "high", "mean", "std")))
    if scheme["scheme"] == "none":
        return None
    low, high = percentiles(channel)
    if low == high:
        low, high = float(channel.min()), float(channel.max())
    mean, std = _moments(channel, low, high)
    return Scale(low, high, mean, max(std, 1e-6 * max(abs(mean), 1e-30)))


def percentiles(values: AnyArray) -> tuple[float, float]:
    """Percentiles 0.5 and 99.5, of every n-th voxel along each axis where there are more than a million."""
    axes = sum(n > 1 for n in values.shape) or 1
    step = max(1, int(np.ceil((values.size / _MOST_SAMPLED) ** (1 / axes))))
    low, high = np.percentile(values[::step, ::step, ::step], [0.5, 99.5])
    return float(low), float(high)


def _moments(values: AnyArray, low: float, high: float) -> tuple[float, float]:
    """Mean and deviation of the values clipped to [low, high], a chunk of planes at a time, in float64."""
    total = squares = 0.0
    centre = (low + high) / 2
    for part in slabs(values):
        chunk = np.clip(part.astype(np.float64), low, high) - centre
        total += float(chunk.sum())
        squares += float(np.square(chunk, out=chunk).sum())
    mean = total / values.size
    return mean + centre, float(np.sqrt(max(squares / values.size - mean * mean, 0.0)))


def to_classes(label: Tensor, values: Sequence[int], ignore: int | None = None) -> Tensor:
    """Stored label values -> class numbers 0..K-1 in the order of `values`; `ignore` -> K; others become background."""
    stored = label.numpy()
    numbered = [*values] if ignore is None else [*values, ignore]
    classes = np.zeros(stored.shape, dtype=np.uint8 if len(numbered) <= 256 else np.int16)
    for number, value in enumerate(numbered):
        if number:
            classes[stored == value] = number
    return torch.from_numpy(classes)
