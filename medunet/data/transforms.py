"""The one preprocessing that training, validation and inference share, as MONAI dictionary transforms.

load -> orient -> resample -> normalise; labels also: stored values -> 0..K-1.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from monai.data import MetaTensor
from monai.transforms import LoadImaged, MapTransform, Orientationd, Spacingd, SpatialPadd
from torch import Tensor

from medunet.data.reader import VolumeReader
from medunet.errors import InputError

Item = dict[Hashable, Any]
_SAME_SPACING = 1e-3  # relative; closer than what scanners write, farther than float32 affines


class Preprocess(MapTransform):
    """Load `image` (and `label`), bring them to the plan's orientation and spacing, and normalise.

    Args:
        orientation: axis codes of the network's space, such as ``RAS``.
        spacing: mm per axis in that orientation.
        normalization: per channel ``{"scheme": "zscore" | "ct" | "none", ...}`` as in the plan.
        labels: stored value per class, background first; given only where a label is read.
        pad_to: smallest size that patches are cut from.

    Output: image float32 (channels, x, y, z); label uint8/int16 (1, x, y, z) with classes 0..K-1.

    Raises:
        InputError: (at call) an unreadable file, non-finite voxels, or another number of channels.
    """

    def __init__(
        self,
        orientation: str,
        spacing: Sequence[float],
        normalization: Sequence[Mapping[str, Any]],
        labels: Mapping[str, int] | None = None,
        pad_to: Sequence[int] | None = None,
    ) -> None:
        keys = ["image"] if labels is None else ["image", "label"]
        super().__init__(keys)
        self.spacing = tuple(float(s) for s in spacing)
        self.normalization = [dict(scheme) for scheme in normalization]
        self.values = None if labels is None else list(labels.values())
        self._load = load_transform(keys)
        self._orient = Orientationd(keys, axcodes=orientation, labels=None)
        modes = ["bilinear", "nearest"][: len(keys)]
        self._resample = Spacingd(keys, self.spacing, mode=modes, padding_mode="border", dtype=torch.float32)
        self._pad = SpatialPadd(keys, pad_to) if pad_to else None

    def __call__(self, data: Mapping[Hashable, Any]) -> Item:
        item = self._load(dict(data))
        self._require_channels(item["image"])
        item["image"].meta["value_ranges"] = [(float(c.min()), float(c.max())) for c in item["image"].as_tensor()]
        item = self._orient(item)
        if not _has_spacing(item["image"], self.spacing):
            item = self._resample(item)
        item["image"] = normalize(item["image"], self.normalization)
        if self.values is not None:
            item["label"] = to_classes(item["label"], self.values)
        return item if self._pad is None else dict(self._pad(item))

    def _require_channels(self, image: MetaTensor) -> None:
        got, want = int(image.shape[0]), len(self.normalization)
        if got != want:
            name = image.meta.get("filename_or_obj", "image")
            raise InputError(
                f"{name}: has {got} channel{'s' * (got != 1)}, the model takes {want}; give one per channel"
            )


class LoadLabel(MapTransform):
    """Load `label` on its own grid with its stored values: what predictions are compared with."""

    def __init__(self, keys: Sequence[str] = ("label",)) -> None:
        super().__init__(keys)
        self._load = load_transform(keys)

    def __call__(self, data: Mapping[Hashable, Any]) -> Item:
        return dict(self._load(dict(data)))


def load_transform(keys: Sequence[str]) -> LoadImaged:
    """MONAI's LoadImaged with our reader; it announces each of its other readers that misses an optional library."""
    logging.getLogger("monai.data.nvimgcodec_pydicom_plugin").setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return LoadImaged(keys, reader=VolumeReader(), ensure_channel_first=True)


def normalize(image: Tensor, schemes: Sequence[Mapping[str, Any]]) -> Tensor:
    """Scale each channel of (channels, x, y, z) in place by its scheme.

    ``ct``: clip to [low, high], subtract mean, divide by std (of the training foreground).
    ``zscore``: clip to the image's percentiles 0.5 and 99.5, then zero mean and unit deviation of this image.
    A constant channel becomes zero.
    """
    plain = image.as_tensor() if isinstance(image, MetaTensor) else image
    for channel, scheme in zip(plain, schemes, strict=True):
        if scheme["scheme"] == "ct":
            channel.clamp_(scheme["low"], scheme["high"]).sub_(scheme["mean"]).div_(scheme["std"])
        elif scheme["scheme"] == "zscore":
            low, high = percentiles(channel.numpy())
            channel.clamp_(low, high)
            std, mean = torch.std_mean(channel.double(), correction=0)
            channel.sub_(float(mean)).div_(max(float(std), 1e-6 * max(abs(float(mean)), 1e-30)))
    return image


def percentiles(values: Any, most: int = 1_000_000) -> tuple[float, float]:
    """Percentiles 0.5 and 99.5, of every n-th voxel where there are more than `most`."""
    flat = np.asarray(values).reshape(-1)
    low, high = np.percentile(flat[:: max(1, flat.size // most)], [0.5, 99.5])
    return float(low), float(high)


def to_classes(label: Tensor, values: Sequence[int]) -> Tensor:
    """Stored label values -> class numbers 0..K-1 in the order of `values`; undeclared values become background."""
    plain = label.as_tensor() if isinstance(label, MetaTensor) else label
    classes = torch.zeros(plain.shape, dtype=torch.uint8 if len(values) < 256 else torch.int16)
    for number, value in enumerate(values):
        if number:
            classes[plain == value] = number
    return MetaTensor(classes, meta=label.meta) if isinstance(label, MetaTensor) else classes


def _has_spacing(image: MetaTensor, spacing: Sequence[float]) -> bool:
    current = image.pixdim.numpy()
    return bool(np.all(np.abs(current - np.array(spacing)) <= _SAME_SPACING * np.array(spacing)))
