"""Patches loaded ahead of the training step, in the same order whatever loads them."""

from __future__ import annotations

import signal
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset, Sampler, default_collate

from medunet.errors import BundleError, MedunetError, ResourceError, root_cause
from medunet.training.cases import Region, StoredPatches
from medunet.training.distributed import cores

_MOST_WORKERS = 8
_WHERE = ("auto", "workers", "device")


@dataclass(frozen=True)
class _Failure:
    """An error on its way from a loading process: exceptions that travel by themselves lose their sentence."""

    error: MedunetError


class _Guarded(Dataset[Any]):
    """A dataset whose medunet errors are values; with `raw`, of regions that are changed elsewhere."""

    def __init__(self, dataset: Dataset[Any], raw: StoredPatches | None) -> None:
        self.dataset, self.raw = dataset, raw

    def __len__(self) -> int:
        return len(self.dataset)  # type: ignore[arg-type]

    def __getitem__(self, index: Any) -> Any:
        try:
            return self.dataset[index] if self.raw is None else self.raw.region(index)
        except Exception as error:
            cause = root_cause(error)
            if not isinstance(cause, MedunetError):
                raise
            return _Failure(cause)


def _collate(items: Sequence[Any]) -> Any:
    """A batch; regions differ in size and stay a list."""
    failure = next((item for item in items if isinstance(item, _Failure)), None)
    return failure or (list(items) if isinstance(items[0], Region) else default_collate(list(items)))


def _begin_worker(number: int) -> None:
    """Ctrl-C is the training process's to act on; it still needs the patches of the step in hand."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


class PatchLoader(DataLoader[Any]):
    """Batches ``{"image", "label"}``, loaded ahead by processes of their own.

    Loading processes share the store's files and end when the training process does.

    Args:
        num_workers: loading processes; by default as many as there are cores beside the one that trains, at most 8,
            and none where the network runs on the CPU, whose cores are busy as it is.
        device: where the network runs.
        augment_on: where patches are changed: by the loading ``workers``, or, a batch at a time, on the ``device``;
            ``auto``: on CUDA devices. What is drawn is the same; noise has other values on another kind of device. With
            a ``finish`` transform, or a dataset of another kind, always by the workers.

    Raises:
        BundleError: `augment_on` is another word, or the sampler draws batches of another size.
        MedunetError: (while iterating) what went wrong in a loading process, in its own words.
    """

    def __init__(
        self,
        dataset: Dataset[Any],
        batch_size: int,
        sampler: Sampler[Any],
        device: torch.device,
        num_workers: int | None = None,
        augment_on: str = "auto",
    ) -> None:
        if augment_on not in _WHERE:
            raise BundleError(f"augment_on '{augment_on}' is not known; give {', '.join(_WHERE[:-1])} or {_WHERE[-1]}")
        drawn = getattr(sampler, "batch_size", batch_size)
        if drawn != batch_size:
            raise BundleError(
                f"train::sampler::batch_size is {drawn} and train::dataloader::batch_size {batch_size}; give both the "
                f"same number"
            )
        cuda = device.type == "cuda"
        self._device = device
        self._late = _divisible(dataset) if augment_on == "device" or (augment_on == "auto" and cuda) else None
        workers = (min(_MOST_WORKERS, cores() - 1) if cuda else 0) if num_workers is None else int(num_workers)
        super().__init__(
            _Guarded(dataset, self._late), batch_size=int(batch_size), sampler=sampler, num_workers=workers,
            collate_fn=_collate, worker_init_fn=_begin_worker, persistent_workers=workers > 0, pin_memory=cuda,
            generator=torch.Generator(),
        )  # fmt: skip

    def __iter__(self) -> Iterator[Any]:  # type: ignore[override]
        batches = super().__iter__()
        while True:
            try:
                batch = next(batches)
            except StopIteration:
                return
            except RuntimeError as error:
                refuse_lost_worker(error)
                raise
            if isinstance(batch, _Failure):
                raise batch.error
            yield batch if self._late is None else self._changed(batch, self._late)

    def _changed(self, regions: Sequence[Region], dataset: StoredPatches) -> Any:
        """A batch on the device, made of regions that lie in the CPU's memory."""
        return default_collate([dataset.patch(region.to(self._device)) for region in regions])

    def close(self) -> None:
        """End the loading processes; iterating again starts others."""
        running = getattr(self, "_iterator", None)
        self._iterator = None
        if running is not None:
            running._shutdown_workers()


def _divisible(dataset: Dataset[Any]) -> StoredPatches | None:
    """The dataset where reading a patch can be told from changing it."""
    if not isinstance(dataset, StoredPatches) or type(dataset).__getitem__ is not StoredPatches.__getitem__:
        return None
    return dataset if dataset.finish is None else None


def refuse_lost_worker(error: BaseException) -> None:
    """Raise a ResourceError where `error` says that a loading process was killed.

    torch notices that by a signal and raises in the middle of whatever the training process does.
    """
    if any(words in str(error) for words in ("is killed by signal", "exited unexpectedly")):
        raise ResourceError(
            "a loading process was killed, probably for want of memory; "
            "train on with --resume and --set train::dataloader::num_workers=0"
        ) from error
