"""A page of augmented samples: what training shows the network, to be looked at before anybody trusts it."""

from __future__ import annotations

import io
import textwrap
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from medunet.evaluation.pictures import COLOURS
from medunet.training.augment import Augmentation
from medunet.training.cases import StoredPatches
from medunet.training.draws import Draw
from medunet.training.patches import CutPatch, to_tensors
from medunet.types import AnyArray

_PLANES = ((0, 1, 2, "x-y"), (0, 2, 1, "x-z"), (1, 2, 0, "y-z"))
_INK, _PAPER = "#1c2430", "#ffffff"
_HEIGHT = 1.5  # inches of a picture
_WIDEST = 2.6  # times its height
_AROUND = 0.7  # of a patch, read on either side of it for draws that need more


def sample_page(augmentation: Augmentation, image: Tensor, label: Tensor, count: int = 6, seed: int = 0) -> bytes:
    """A PNG: the patch in the middle of a volume as it is, and `count` draws of it, with the outlines of the classes.

    One row per draw; three planes of a 3D patch through its middle voxel, one of a 2D patch; first channel, the grey
    window of the unchanged patch throughout. A caption says what was drawn.

    Args:
        augmentation: draws and applies.
        image: (C, *volume) float32, at least as large as the patch.
        label: (1, *volume) integers.
        count: draws; those that change nothing are passed over.
        seed: the same seed gives the same page.
    """
    draws = [Draw(augmentation.patch, augmentation.patch), *changing_draws(augmentation, count, seed)]
    centre = _centre(label, augmentation.patch)
    patches = [augmentation.apply(draw, *_region(image, label, draw, centre)) for draw in draws]
    grey = patches[0][0][0].numpy()
    low, high = (float(v) for v in np.percentile(grey, [0.5, 99.5]))
    window = (low, high if high > low else low + 1.0)
    captions = ["as it is", *(draw.caption() for draw in draws[1:])]
    rows = [(one[0].cpu().numpy(), classes[0].cpu().numpy()) for one, classes in patches]
    return _page(rows, captions, augmentation.spacing, window)


def page_of(patches: StoredPatches, count: int = 5) -> bytes | None:
    """The page of a training set's first case, around one of its labelled voxels; None for another augmentation."""
    if not isinstance(patches.augment, Augmentation) or not len(patches.data):
        return None
    item, size = patches.data[0], patches.cut.size
    middle = CutPatch(patches.augment.patch, foreground=1.0).draw(np.random.default_rng(0), patches.store.entry(item))
    wide = tuple(n if n == 1 else n + 2 * round(_AROUND * n) for n in size)
    image, label = to_tensors(*patches.read(item, middle.box(wide)), patches.cut.flat)
    label[label == patches.store.preprocess.ignored] = 0
    return sample_page(patches.augment, image, label, count=count, seed=patches.seed)


def changing_draws(augmentation: Augmentation, count: int, seed: int) -> list[Draw]:
    """The first `count` draws that change something; fewer if chances are so small that a thousand tries do not do."""
    found: list[Draw] = []
    for number in range(1000):
        draw = augmentation.draw(np.random.default_rng([seed, number]))
        if draw.caption() != "unchanged":
            found.append(draw)
        if len(found) == count:
            break
    return found


def _centre(label: Tensor, patch: Sequence[int]) -> list[int]:
    """First voxel of the patch around the middle of all labelled voxels, inside the volume."""
    inside = torch.nonzero(label[0])
    shape = label.shape[1:]
    middle = inside.float().mean(0).tolist() if len(inside) else [(n - 1) / 2 for n in shape]
    return [
        int(np.clip(round(m - (p - 1) / 2), 0, max(0, n - p))) for m, p, n in zip(middle, patch, shape, strict=True)
    ]


def _region(image: Tensor, label: Tensor, draw: Draw, start: Sequence[int]) -> tuple[Tensor, Tensor]:
    """The region of a draw around the patch at `start`; beyond the volume the outermost voxels go on."""
    image, label = image.cpu(), label.cpu()
    for axis, (first, extent, patch) in enumerate(zip(start, draw.extent, draw.patch, strict=True), 1):
        places = torch.arange(extent) + first - (extent - patch) // 2
        places = places.clamp_(0, image.shape[axis] - 1)
        image, label = image.index_select(axis, places), label.index_select(axis, places)
    return image, label


def _page(
    rows: Sequence[tuple[AnyArray, AnyArray]],
    captions: Sequence[str],
    spacing: Sequence[float],
    window: tuple[float, float],
) -> bytes:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    shape = rows[0][0].shape
    planes = _PLANES if len(shape) == 3 and min(shape) > 1 else _PLANES[:1]
    widths = [min(_WIDEST, shape[a] * spacing[a] / (shape[d] * spacing[d])) for a, d, _, _ in planes]
    across = max(sum(widths) * _HEIGHT + 0.3, 2.6)
    spare = across / _HEIGHT - sum(widths)
    columns = max(1, min(len(rows) // 2, int(11 / across)))
    deep = -(-len(rows) // columns)
    figure = Figure(figsize=(columns * across, deep * (_HEIGHT + 0.36)), dpi=110, facecolor=_PAPER)
    outer = figure.add_gridspec(deep, columns, left=0.01, right=0.99, top=1.0, bottom=0.01, wspace=0.02, hspace=0.03)
    for number, ((grey, classes), caption) in enumerate(zip(rows, captions, strict=True)):
        cell = outer[number % deep, number // deep].subgridspec(
            2, len(planes) + 1, height_ratios=[0.3, _HEIGHT], width_ratios=[*widths, spare], wspace=0.03, hspace=0.03
        )
        heading = figure.add_subplot(cell[0, :])
        heading.set_axis_off()
        wrapped = "\n".join(textwrap.wrap(caption, int(across * 16), max_lines=2, placeholder=" …"))
        heading.text(0.0, 0.05, wrapped, fontsize=7, color=_INK, va="bottom", transform=heading.transAxes)
        for position, plane in enumerate(planes):
            _picture(figure.add_subplot(cell[1, position]), grey, classes, plane, spacing, window)
    buffer = io.BytesIO()
    FigureCanvasAgg(figure)
    figure.savefig(buffer, format="png", metadata={"Software": None})
    return buffer.getvalue()


def _picture(
    axes: Any,
    grey: AnyArray,
    classes: AnyArray,
    plane: tuple[int, int, int, str],
    spacing: Sequence[float],
    window: tuple[float, float],
) -> None:
    """One plane through the middle: grey values upright (the second axis upwards), outlines on the voxels' borders."""
    across, down, through = plane[:3]
    if grey.ndim == 3:
        middle = grey.shape[through] // 2
        grey, classes = (np.take(array, middle, axis=through) for array in (grey, classes))
    aspect = spacing[down] / spacing[across]
    axes.set_anchor("NW")
    axes.imshow(grey.T, cmap="gray", vmin=window[0], vmax=window[1], origin="lower", aspect=aspect)
    for number, value in enumerate(int(v) for v in np.unique(classes) if v):
        colour = COLOURS[(value - 1) % len(COLOURS)] if value > 0 else COLOURS[number % len(COLOURS)]
        axes.contour((classes == value).T, levels=[0.5], colors=[colour], linewidths=1.0)
    axes.set_axis_off()
