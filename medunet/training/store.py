"""Cases preprocessed once and kept on disk; training reads only the patches of them.

A case's file is named by a digest of what its sources hold and of the preprocessing: nothing is done twice, whichever
run, fold or bundle asks, and what changed is never served as it was. Files appear whole or not at all; one that is
damaged later is noticed when it is read and made again.
"""

from __future__ import annotations

import hashlib
import json
import logging
import shutil
import tempfile
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import suppress
from importlib.metadata import version
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from medunet.data.atomic import disk_errors, remove_stale
from medunet.data.dicom.source import Source
from medunet.data.resampling import Box
from medunet.data.transforms import Preprocess
from medunet.data.volume import read_header
from medunet.errors import DatasetError, MedunetError, ResourceError
from medunet.training.digests import Digests, missing
from medunet.training.distributed import cores, memory
from medunet.training.entry import VERSION, DamagedEntryError, Entry, entry_bytes, patch_centres, write_entry
from medunet.types import AnyArray, Shape

Item = Mapping[str, Any]
Progress = Callable[[int, int], None]
Made = TypeVar("Made")

_SUFFIX = ".case"
_EDGE, _FLAT_EDGE = (32, 32, 32), (128, 128, 1)
_READERS = ("medunet", "nibabel", "pydicom", "SimpleITK")  # whose other versions may read other voxels
_SPARE = 1.02  # of the bytes that are needed must be free
_BYTES_PER_VOXEL = 24  # that preprocessing a case takes, of its file's and the network's voxels and channels
_log = logging.getLogger(__name__)


class PatchStore:
    """Preprocessed cases in a folder, read a box at a time.

    Args:
        folder: where the files lie; made when the first is written. It may be shared by bundles and by runs at the
            same time. It holds images of patients.
        preprocess: what is done to a case once.
        patch_size: two numbers keep slices apart from each other, else cubes are kept together.
        root: what a relative `folder` is relative to.
        workers: cases preprocessed at a time; by default one per core, as far as the memory allows.
    """

    def __init__(
        self,
        folder: str,
        preprocess: Preprocess,
        patch_size: Sequence[int] = (),
        root: str = ".",
        workers: int | None = None,
    ) -> None:
        self.folder, self.preprocess, self.workers = Path(root) / Path(folder).expanduser(), preprocess, workers
        self.edge: Shape = _FLAT_EDGE if len(patch_size) == 2 else _EDGE
        self._keys: dict[tuple[str, ...], str] = {}
        self._entries: dict[str, Entry] = {}
        self._digests: Digests | None = None

    def prepare(self, items: Sequence[Item], progress: Progress = lambda done, total: None) -> int:
        """Preprocess the cases that are not there yet; how many these were. `progress` hears of these alone.

        Raises:
            ResourceError: the disk has not enough room, told before anything is written.
            MedunetError: a case cannot be read; what was finished before stays.
        """
        self._digests = None  # what another process found is read again
        remove_stale(self.folder)
        with ThreadPoolExecutor(cores()) as pool:
            keys = list(pool.map(self._key, items))
        missing = [item for key, item in dict(zip(keys, items, strict=True)).items() if not self._is_whole(key)]
        if missing:
            self._make_all(missing, progress)
        with suppress(OSError):  # a store that may only be read is as good
            self._digest_cache().save()
        return len(missing)

    def entry(self, item: Item) -> Entry:
        """The stored case, made first where it is not there yet.

        Raises:
            MedunetError: it cannot be made.
        """
        key = self._key(item)
        if key not in self._entries:
            try:
                self._entries[key] = Entry(self._path(key))
            except FileNotFoundError:
                return self._make(item)
            except DamagedEntryError as error:
                return self._make_again(item, error)
        return self._entries[key]

    def read(self, item: Item, box: Box) -> tuple[AnyArray, AnyArray]:
        """Image (channels, ...) float32 and label (1, ...) of a box; see `Entry.read`.

        Raises:
            MedunetError: the stored case is damaged or gone, and cannot be made again.
        """
        return self.using(item, lambda entry: entry.read(box))

    def using(self, item: Item, use: Callable[[Entry], Made]) -> Made:
        """What `use` makes of a stored case; the case is made again, and used once more, where it is damaged or gone.

        Raises:
            MedunetError: it cannot be made again.
        """
        entry = self.entry(item)
        try:
            return use(entry)
        except (DamagedEntryError, FileNotFoundError) as error:
            return use(self._make_again(item, error))

    def require(self, items: Sequence[Item]) -> None:
        """Refuse cases whose files are not there; none is read.

        Raises:
            InputError: the first file that is missing.
        """
        for path in (Source.parse(source).path for item in items for source in _sources(item)):
            if not path.exists():
                raise missing(path)

    # ---- keys

    def _key(self, item: Item) -> str:
        sources = _sources(item)
        if sources not in self._keys:
            digests = [self._digest_cache().source(source) for source in sources]
            done = [type(self.preprocess).__qualname__, self.preprocess.as_text()]
            recipe = [VERSION, [version(name) for name in _READERS], done, list(self.edge), digests]
            self._keys[sources] = hashlib.sha256(json.dumps(recipe).encode()).hexdigest()
        return self._keys[sources]

    def _digest_cache(self) -> Digests:
        if self._digests is None:
            self._digests = Digests(self.folder / "digests.json")
        return self._digests

    def _path(self, key: str) -> Path:
        return self.folder / f"{key}{_SUFFIX}"

    def _is_whole(self, key: str) -> bool:
        try:
            self._entries[key] = Entry(self._path(key))
        except (FileNotFoundError, NotADirectoryError):
            return False
        except DamagedEntryError as error:
            _log.warning("%s (it is made again)", error)
            return False
        return True

    # ---- making

    def _make_all(self, items: Sequence[Item], progress: Progress) -> None:
        sizes = [self._sizes(item) for item in items]
        self._require_room(sum(stored for stored, _ in sizes))
        workers = self.workers or max(1, min(cores(), memory() // (2 * max(work for _, work in sizes))))
        stop = threading.Event()

        def make(item: Item) -> None:
            if not stop.is_set():
                self._make(item)

        with ThreadPoolExecutor(min(workers, len(items))) as pool:
            try:
                for done, task in enumerate(as_completed([pool.submit(make, item) for item in items])):
                    task.result()
                    progress(done + 1, len(items))
            finally:
                stop.set()

    def _make(self, item: Item) -> Entry:
        key = self._key(item)
        done = self.preprocess(dict(item.items()))
        image, label = (np.asarray(done[name].as_tensor()) for name in ("image", "label"))
        self._require_unchanged(item)
        centres = patch_centres(label[0], self.preprocess.members, self.preprocess.ignored)
        write_entry(self._path(key), image, label[0], self.edge, centres)
        self._entries[key] = Entry(self._path(key))
        return self._entries[key]

    def _make_again(self, item: Item, damage: Exception) -> Entry:
        reason = str(damage) if isinstance(damage, MedunetError) else f"{self._path(self._key(item))}: is gone"
        _log.warning("%s (it is made again)", reason)
        try:
            return self._make(item)
        except MedunetError as error:
            raise type(error)(f"{reason}; it cannot be made again: {error}") from error

    def _require_unchanged(self, item: Item) -> None:
        """Refuse a case whose files are not those any more that the key was made of."""
        key, sources = self._key(item), _sources(item)
        del self._keys[sources]
        if self._key(item) != key:
            raise DatasetError(f"{', '.join(sources)}: changed while being read; run again when it is settled")

    # ---- room

    def _sizes(self, item: Item) -> tuple[int, int]:
        """Bytes that a case takes on disk, and about how many in memory while it is preprocessed."""
        images = _sources(item)[:-1]
        header = read_header(images[0])
        channels = max(header.channels, len(images))
        shape = self.preprocess.frame.grid(header.grid).shape
        voxels = max(int(np.prod(shape)), int(np.prod(header.grid.shape)))
        return entry_bytes(shape, channels, self.preprocess.ignored + 1), _BYTES_PER_VOXEL * channels * voxels

    def _require_room(self, needed: int) -> None:
        try:
            with disk_errors(self.folder):
                self.folder.mkdir(parents=True, exist_ok=True)
                tempfile.TemporaryFile(dir=self.folder).close()
        except OSError as error:
            raise ResourceError(
                f"{self.folder}: cannot be written ({error.strerror}); give another folder with --set store=DIR"
            ) from error
        free = shutil.disk_usage(self.folder).free
        if needed * _SPARE <= free:
            return
        stored = self.folder.glob(f"[0-9a-f]*{_SUFFIX}")
        others = sum(path.stat().st_size for path in stored if path.stem not in self._entries)
        hint = f" ({_gigabytes(others)} there are of other data or plans and may be deleted)" if others else ""
        raise ResourceError(
            f"{self.folder}: the preprocessed cases take {_gigabytes(needed)}, the disk has {_gigabytes(free)} free; "
            f"free some space{hint} or give another folder with --set store=DIR"
        )


def _sources(item: Item) -> tuple[str, ...]:
    """The sources of a case: a file per channel or one of all, then the label."""
    images = item["image"]
    several = isinstance(images, Sequence) and not isinstance(images, str)
    if "label" not in item:
        raise DatasetError(f"{item.get('case', images)}: has no label; training cases need one")
    return (*(str(image) for image in (images if several else [images])), str(item["label"]))


def _gigabytes(number: int) -> str:
    return f"{number / 1e9:.1f} GB" if number >= 1e8 else f"{number / 1e6:.1f} MB"
