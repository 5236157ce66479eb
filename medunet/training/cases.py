"""The cases of a fold: looked up lazily, preprocessed once, drawn by weight, read a patch at a time."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterator, Sequence
from functools import cached_property, partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset, Sampler

from medunet.data.index import FOLDS, Case, Index
from medunet.data.resampling import Box
from medunet.errors import BundleError, DatasetError
from medunet.inference.border import fold
from medunet.training.distributed import rank_and_size
from medunet.training.entry import Entry
from medunet.training.patches import Augment, Cut, CutPatch, to_tensors
from medunet.training.store import PatchStore
from medunet.types import AnyArray

INDEX_FILE = "eval/index.json"
"""Where a bundle keeps its case list. The folder ``eval/`` is private: it never leaves the house."""
_log = logging.getLogger(__name__)
_WEIGHTED_ROUND = 1024  # draws, where cases have different weights


def load_index(bundle_root: str, dataset_dir: str) -> Index:
    """The bundle's case list, with the dataset now at `dataset_dir`.

    Raises:
        BundleError: the bundle has no case list.
        DatasetError: the dataset folder is not there.
    """
    path = Path(bundle_root) / INDEX_FILE
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise BundleError(f"{path}: is missing, the bundle has no case list; write it with medunet plan") from error
    if not Path(dataset_dir).is_dir():
        raise DatasetError(f"{dataset_dir}: dataset folder is missing; give its new place with --set dataset_dir=PATH")
    return Index.from_json({**content, "root": str(dataset_dir)})


class FoldCases(Sequence[dict[str, Any]]):
    """``{"image", "label", "case", "weight"}`` per case of one side of a fold; read when first needed.

    Args:
        part: ``training``, ``validation`` or ``test`` (those that are labelled).
    """

    def __init__(self, bundle_root: str, dataset_dir: str, fold: int, part: str) -> None:
        if part not in ("training", "validation", "test"):
            raise BundleError(f"part '{part}' is not known; give training, validation or test")
        if fold not in range(FOLDS):
            raise BundleError(f"fold is {fold}; give 0 to {FOLDS - 1}")
        self.bundle_root, self.dataset_dir, self.fold, self.part = bundle_root, dataset_dir, int(fold), part

    @cached_property
    def _items(self) -> list[dict[str, Any]]:
        index = load_index(self.bundle_root, self.dataset_dir)
        training, validation = index.split(self.fold)
        if self.part == "validation" and len(index.training) > 1 and training == validation:
            _log.warning("all %d cases are of one patient: they are trained on and scored alike", len(training))
        if self.part == "test":
            return [_item(index, case) for case in _labelled(index.test)]
        return [_item(index, case) for case in (training if self.part == "training" else validation)]

    def others(self) -> FoldCases:
        """The fold's training cases."""
        return FoldCases(self.bundle_root, self.dataset_dir, self.fold, "training")

    def __len__(self) -> int:
        return len(self._items)

    def __getitem__(self, index: Any) -> Any:
        return self._items[index]


def _labelled(test: Sequence[Case]) -> list[Case]:
    """Those that can be scored; test cases often come without labels."""
    labelled = [case for case in test if case.label is not None]
    if not labelled:
        raise BundleError(
            f"none of {len(test)} test cases has a label to compare with; give labels to some and plan again, or take "
            f"another part"
        )
    if len(labelled) < len(test):
        _log.warning("%d of %d test cases have no label and are left out", len(test) - len(labelled), len(test))
    return labelled


def _item(index: Index, case: Case) -> dict[str, Any]:
    images, label = index.paths(case)
    paths = [str(path) for path in images]
    item = {"image": paths[0] if len(paths) == 1 else paths, "case": case.id, "weight": case.weight}
    return item if label is None else {**item, "label": str(label)}


class Sample(NamedTuple):
    """Which draw of the run this is, counted over all processes from 0, and the case that it is of."""

    number: int
    case: int


class Region(NamedTuple):
    """What a patch is made of: voxels as they were read, (channels, *extent) and (1, *extent), and what was drawn."""

    image: Tensor
    label: Tensor
    draw: Any

    def to(self, device: torch.device) -> Region:
        """The same with its voxels on `device`."""
        pinned = device.type == "cuda"
        image, label = (voxels.to(device, non_blocking=pinned) for voxels in (self.image, self.label))
        return Region(image, label, self.draw)


class StoredPatches(Dataset[dict[str, Tensor]]):
    """Random patches of stored cases, each by chance of its own: of the seed and the number of the draw alone.

    So a run that is resumed goes on as if it had never stopped, however many processes load ahead.

    Args:
        data: items as from `FoldCases`.
        store: where the preprocessed cases are, or will be.
        cut: draws where the patch lies.
        augment: draws what becomes of it, then does it; reads as large a region as it needs.
        border: what lies beyond a volume: ``constant`` (the mean, and background), ``edge`` or ``mirror``.
        finish: a last transform of ``{"image", "label"}``, such as `BorderWeightsd`.
    """

    def __init__(
        self,
        data: Sequence[Any],
        store: PatchStore,
        cut: CutPatch,
        augment: Augment,
        seed: int = 0,
        border: str = "constant",
        finish: Callable[[dict[str, Tensor]], dict[str, Tensor]] | None = None,
    ) -> None:
        self.data, self.store, self.cut, self.augment, self.seed = data, store, cut, augment, int(seed)
        self.border, self.finish = border, finish

    def __len__(self) -> int:
        return len(self.data)

    def prepare(self, progress: Callable[[int, int], None] = lambda done, total: None) -> None:
        """Preprocess what the store does not have yet; of several processes each does its share."""
        rank, processes = rank_and_size()
        items = list(self.data)
        self.store.prepare(items[rank::processes], progress)
        if processes > 1:
            torch.distributed.barrier()
            self.store.prepare(items)

    def __getitem__(self, index: int | Sample) -> dict[str, Tensor]:
        patch = self.patch(self.region(index))
        return patch if self.finish is None else self.finish(patch)

    def region(self, index: int | Sample) -> Region:
        """Draw a patch's place and changes and read its region; nothing is changed yet."""
        sample = index if isinstance(index, Sample) else Sample(int(index), int(index))
        item = self.data[sample.case]
        cut, draw = self.store.using(item, partial(self._draw, sample.number))
        extent = (*draw.extent, 1) if self.cut.flat else draw.extent
        return Region(*to_tensors(*self.read(item, cut.box(extent)), self.cut.flat), draw)

    def _draw(self, number: int, entry: Entry) -> tuple[Cut, Any]:
        generator = np.random.default_rng((self.seed, number))
        return self.cut.draw(generator, entry), self.augment.draw(generator)

    def patch(self, region: Region) -> dict[str, Tensor]:
        """Do what was drawn, on the device where the region's voxels are."""
        image, label = self.augment.apply(region.draw, region.image, region.label)
        return {"image": image, "label": self.store.preprocess.targets(label)}

    def read(self, item: Any, box: Box) -> tuple[AnyArray, AnyArray]:
        """Image and label of a box that may reach beyond the volume."""
        if self.border == "constant":
            return self.store.read(item, box)
        shape = self.store.entry(item).shape
        folded = [fold(np.arange(a, b), n, self.border) for (a, b), n in zip(box, shape, strict=True)]
        inside = tuple((int(f.min()), int(f.max()) + 1) for f in folded)
        image, label = self.store.read(item, inside)
        x, y, z = np.ix_(*(f - first for f, (first, _) in zip(folded, inside, strict=True)))
        # an index of several axes leaves the channels innermost, and what changes intensities wants them outermost
        return np.ascontiguousarray(image[:, x, y, z]), np.ascontiguousarray(label[:, x, y, z])


class CaseSampler(Sampler[Sample]):
    """Draw `batch_size` x `steps` cases per pass, with probability by weight, each draw with its number in the run.

    When all weights are equal the draws of all passes together are one sequence of shuffled rounds through the cases:
    every case is drawn equally often to within one. What is drawn depends on the seed and the number of the draw alone.
    With several processes each takes every n-th draw, so that no draw is used twice.
    """

    def __init__(self, data: Sequence[Any], batch_size: int, steps: int, seed: int = 0) -> None:
        self.data, self.batch_size, self.draws, self.seed = (
            data,
            int(batch_size),
            int(batch_size) * int(steps),
            int(seed),
        )
        self.next = 0
        self.rank, self.processes = rank_and_size()

    def begin(self, step: int) -> None:
        """Let the next pass begin with the draws of a training step, counted from 0."""
        self.next = step * self.batch_size * self.processes

    def __len__(self) -> int:
        return self.draws

    def __iter__(self) -> Iterator[Sample]:
        if not len(self.data):
            raise DatasetError("the fold has no training case; take another --fold or add cases")
        first = self.next
        self.next += self.draws * self.processes
        weights = torch.tensor([float(item.get("weight", 1.0)) for item in self.data])
        order = self._rounds(weights, first, self.next)
        samples = [Sample(first + number, case) for number, case in enumerate(order)]
        return iter(samples[self.rank :: self.processes])

    def _rounds(self, weights: Tensor, start: int, stop: int) -> list[int]:
        """Positions `start` to `stop` in the endless sequence of rounds."""
        equal = bool((weights == weights[0]).all())
        length = len(weights) if equal else _WEIGHTED_ROUND
        rounds = range(start // length, -(-stop // length))
        sequence: list[int] = []
        for number in rounds:
            generator = torch.Generator().manual_seed(self.seed * 1_000_003 + number)
            drawn = (
                torch.randperm(length, generator=generator)
                if equal
                else torch.multinomial(weights, length, replacement=True, generator=generator)
            )
            sequence += drawn.tolist()
        offset = rounds.start * length
        return sequence[start - offset : stop - offset]
