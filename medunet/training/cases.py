"""The cases of a fold as MONAI datasets: looked up lazily, preprocessed once, sampled by weight."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from monai.data import Dataset
from torch.utils.data import Sampler

from medunet.data.index import Case, Index
from medunet.errors import BundleError, DatasetError

INDEX_FILE = "eval/index.json"
"""Where a bundle keeps its case list. The folder ``eval/`` is private: it never leaves the house."""


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
        part: ``training``, ``validation`` or ``test``.
    """

    def __init__(self, bundle_root: str, dataset_dir: str, fold: int, part: str) -> None:
        if part not in ("training", "validation", "test"):
            raise BundleError(f"part '{part}' is not known; give training, validation or test")
        self.bundle_root, self.dataset_dir, self.fold, self.part = bundle_root, dataset_dir, int(fold), part

    @cached_property
    def _items(self) -> list[dict[str, Any]]:
        index = load_index(self.bundle_root, self.dataset_dir)
        training, validation = index.split(self.fold)
        chosen = {"training": training, "validation": validation, "test": index.test}[self.part]
        return [_item(index, case) for case in chosen]

    def __len__(self) -> int:
        return len(self._items)

    def __getitem__(self, index: Any) -> Any:
        return self._items[index]


def _item(index: Index, case: Case) -> dict[str, Any]:
    images, label = index.paths(case)
    paths = [str(path) for path in images]
    item = {"image": paths[0] if len(paths) == 1 else paths, "case": case.id, "weight": case.weight}
    return item if label is None else {**item, "label": str(label)}


class CachedCases(Dataset):
    """Preprocessed cases kept in memory up to `memory` bytes; each access draws a random patch of one.

    Cases beyond the limit are preprocessed again at each access.

    Args:
        data: items as from `FoldCases`.
        transform: ``preprocess`` (deterministic) and ``augment`` (random), as a `PatchPipeline`.
        memory: bytes that the cache may take.
    """

    def __init__(self, data: Sequence[Any], transform: PatchPipeline, memory: int = 4_000_000_000) -> None:
        super().__init__(data, transform)
        self.pipeline = transform  # MONAI's Dataset keeps it inside a Compose
        self.memory, self._used = int(memory), 0
        self._cache: dict[int, Any] = {}

    def prepare(self, progress: Callable[[int, int], None] = lambda done, total: None) -> None:
        """Preprocess ahead everything that fits the cache."""
        for number in range(len(self.data)):
            self._prepared(number)
            progress(number + 1, len(self.data))
            if number not in self._cache:
                break

    def _prepared(self, number: int) -> Any:
        if number in self._cache:
            return self._cache[number]
        item = self.pipeline.preprocess(self.data[number])
        size = sum(v.nbytes for v in item.values() if hasattr(v, "nbytes"))
        if self._used + size <= self.memory:
            self._cache[number] = item
            self._used += size
        return item

    def _transform(self, index: int) -> Any:
        return self.pipeline.augment(dict(self._prepared(index)))


class PatchPipeline:
    """Preprocessing that is done once per case, and augmentation that is drawn anew for each patch."""

    def __init__(self, preprocess: Callable[[Any], Any], augment: Callable[[Any], Any]) -> None:
        self.preprocess, self.augment = preprocess, augment

    def __call__(self, data: Mapping[Any, Any]) -> Any:
        return self.augment(self.preprocess(data))


class CaseSampler(Sampler[int]):
    """Draw `batch_size` x `steps` cases per pass, with probability by weight, from a generator of its own.

    When all weights are equal the draws of all passes together are one sequence of shuffled rounds through the cases:
    every case is drawn equally often to within one. What is drawn depends on the seed and the number of the pass alone.
    With several processes each takes every n-th draw, so that no draw is used twice.
    """

    def __init__(self, data: Sequence[Any], batch_size: int, steps: int, seed: int = 0) -> None:
        self.data, self.draws, self.seed, self.passes = data, int(batch_size) * int(steps), int(seed), 0
        self.rank, self.processes = _rank_and_size()

    def __len__(self) -> int:
        return self.draws

    def __iter__(self) -> Iterator[int]:
        if not len(self.data):
            raise DatasetError("the fold has no training case; take another --fold or add cases")
        total = self.draws * self.processes
        first = self.passes * total
        self.passes += 1
        weights = torch.tensor([float(item.get("weight", 1.0)) for item in self.data])
        if bool((weights == weights[0]).all()):
            order = self._rounds(first, first + total)
        else:
            order = torch.multinomial(weights, total, replacement=True, generator=self._generator(first)).tolist()
        return iter(order[self.rank :: self.processes])

    def _rounds(self, start: int, stop: int) -> list[int]:
        """Positions `start` to `stop` in the endless sequence of shuffled rounds."""
        cases = len(self.data)
        rounds = range(start // cases, -(-stop // cases))
        sequence = [n for r in rounds for n in torch.randperm(cases, generator=self._generator(r)).tolist()]
        offset = rounds.start * cases
        return sequence[start - offset : stop - offset]

    def _generator(self, number: int) -> torch.Generator:
        return torch.Generator().manual_seed(self.seed * 1_000_003 + number)


def _rank_and_size() -> tuple[int, int]:
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        return torch.distributed.get_rank(), torch.distributed.get_world_size()
    return 0, 1
