"""One preprocessed case in one file: cut into blocks, so that a patch costs the same from a small and a large volume.

Layout, little endian::

    b"mdnpatch"  version  length of the header  crc32 of the header       (8 bytes, 3 x uint32)
    header       JSON text; a crc32 per image block and per label block; per class up to 5000 voxels (n, 3) int32
    image        blocks of float32 (channels, x, y, z), last axis fastest; those at the far ends are smaller
    label        blocks of uint8 or int16 (x, y, z)

The header is checked when the file is opened, a block when it is first read. Files are read and not mapped: a mapped
file that cannot be read any further would kill the program.
"""

from __future__ import annotations

import json
import math
import os
import struct
import zlib
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np

from medunet.data.atomic import atomic_path, reserve
from medunet.data.resampling import Box
from medunet.errors import InputError
from medunet.types import AnyArray, IntArray, Shape

VERSION = 1
"""Of the file format; another version is another key, so that old files are never read as new ones."""

_MAGIC = b"mdnpatch"
_HEAD = struct.Struct("<8s3I")
_MOST_LOCATIONS = 5_000  # per class and case
_CHUNK = 4_000_000  # voxels that are searched for classes at a time
_NOWHERE = np.zeros((0, 3), np.int32)


class DamagedEntryError(InputError):
    """A file of the store that is cut short, damaged or of another kind."""


@dataclass(frozen=True)
class Blocks:
    """A volume of `shape` cut into blocks of at most `edge` voxels per axis, stored one after the other."""

    shape: Shape
    edge: Shape

    @property
    def counts(self) -> Shape:
        """Blocks per axis."""
        return tuple(-(-n // e) for n, e in zip(self.shape, self.edge, strict=True))

    def bounds(self, block: Sequence[int]) -> Box:
        """The voxels of a block, given by its number along each axis."""
        return tuple((b * e, min((b + 1) * e, n)) for b, e, n in zip(block, self.edge, self.shape, strict=True))

    def number(self, block: Sequence[int]) -> int:
        """How many blocks are stored before this one."""
        _, y, z = self.counts
        return int((block[0] * y + block[1]) * z + block[2])

    def before(self, block: Sequence[int]) -> int:
        """How many voxels are stored before this block."""
        (x0, x1), (y0, y1), (z0, _) = self.bounds(block)
        return int(x0 * self.shape[1] * self.shape[2] + (x1 - x0) * (y0 * self.shape[2] + (y1 - y0) * z0))

    def rows(self, box: Box) -> Iterator[list[tuple[int, int, int]]]:
        """The blocks that a box inside the volume touches, in rows along the last axis: adjacent in the file."""
        x, y, z = (range(a // e, -(-b // e)) for (a, b), e in zip(box, self.edge, strict=True))
        for i, j in product(x, y):
            yield [(i, j, k) for k in z]


@dataclass(frozen=True)
class Header:
    """What a file holds, without its voxels."""

    channels: int
    blocks: Blocks
    label: str
    classes: Mapping[int, int]
    """How many voxels of each foreground class are noted; under 0 annotated ones, where not all are."""

    @property
    def places(self) -> int:
        """How many blocks there are."""
        return math.prod(self.blocks.counts)

    def as_json(self) -> dict[str, Any]:
        """Plain values."""
        return {
            "channels": self.channels, "shape": list(self.blocks.shape), "block": list(self.blocks.edge),
            "label": self.label, "classes": [[value, count] for value, count in self.classes.items()],
        }  # fmt: skip

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> Header:
        """The inverse of `as_json`."""
        blocks = Blocks(tuple(content["shape"]), tuple(content["block"]))
        return cls(content["channels"], blocks, content["label"], {int(v): int(n) for v, n in content["classes"]})


def class_locations(label: IntArray) -> dict[int, IntArray]:
    """Up to 5000 voxels (n, 3) int32 of each foreground class of a label map (x, y, z), evenly spread in its order."""
    planes = max(1, _CHUNK * label.shape[0] // max(1, label.size))
    slabs = [(start, label[start : start + planes]) for start in range(0, label.shape[0], planes)]
    counts: Counter[int] = Counter()
    for _, slab in slabs:
        values, numbers = np.unique(slab, return_counts=True)
        counts.update(dict(zip(values.tolist(), numbers.tolist(), strict=True)))
    found: dict[int, list[IntArray]] = {value: [] for value in sorted(counts) if value}
    seen: Counter[int] = Counter()
    for start, slab in slabs:
        for value, places in _by_class(slab.ravel()):
            step = -(-counts[value] // _MOST_LOCATIONS)
            voxels = np.stack(np.unravel_index(places[-seen[value] % step :: step], slab.shape), axis=1)
            found[value].append((voxels + np.array([start, 0, 0])).astype(np.int32))
            seen[value] += len(places)
    return {value: np.concatenate(parts) for value, parts in found.items()}


def patch_centres(label: IntArray, members: Sequence[Sequence[int]], ignored: int) -> dict[int, IntArray]:
    """Voxels (n, 3) that patches are centred on: of each class, or of each region, 1 and up.

    Where some voxels are `ignored` (that number of a label map), those that are not are noted under 0.

    Args:
        members: the numbers that belong to each region; empty for classes.
    """
    annotated = label != ignored
    whole = bool(annotated.all())
    if members:
        masks = (np.isin(label, list(numbers)).astype(np.uint8) for numbers in members)
        places = {n: found[1] for n, mask in enumerate(masks, 1) if (found := class_locations(mask))}
    else:
        places = class_locations(label if whole else np.where(annotated, label, 0))
    return places if whole else {0: class_locations(annotated.astype(np.uint8)).get(1, _NOWHERE), **places}


def _by_class(classes: IntArray) -> list[tuple[int, IntArray]]:
    """The places of each class but the background, in order."""
    places = np.flatnonzero(classes)
    present = classes[places]
    order = np.argsort(present, kind="stable")
    values, starts = np.unique(present[order], return_index=True)
    return [] if not len(values) else list(zip(values.tolist(), np.split(places[order], starts[1:]), strict=True))


def entry_bytes(shape: Sequence[int], channels: int, classes: int) -> int:
    """About the size of a file: what a disk must have room for."""
    voxels = math.prod(shape)
    return voxels * (4 * channels + (1 if classes <= 256 else 2)) + classes * _MOST_LOCATIONS * 12 + 65_536


def write_entry(
    path: Path, image: AnyArray, label: IntArray, edge: Shape, centres: Mapping[int, IntArray] | None = None
) -> None:
    """Write a case, whole or not at all: it is on the disk before it has its name.

    Args:
        image: (channels, x, y, z) float32.
        label: (x, y, z), classes 0..K-1.
        edge: size of the blocks.
        centres: voxels that patches are centred on, as from `patch_centres`; by default those of each class.

    Raises:
        ResourceError: the disk is full.
    """
    small: IntArray = label.astype(np.uint8 if label.max(initial=0) < 256 else np.int16)
    places = class_locations(small) if centres is None else centres
    counts = {value: len(voxels) for value, voxels in places.items()}
    header = Header(int(image.shape[0]), Blocks(tuple(label.shape), edge), small.dtype.name, counts)
    with atomic_path(path) as temporary, temporary.open("wb") as file:
        start = _header_bytes(header)
        file.truncate(start + label.size * (4 * header.channels + small.itemsize))
        reserve(temporary)
        file.seek(start)
        sums = [_write_block(file, image, box) for box in _boxes(header.blocks)]
        sums += [_write_block(file, small[None], box) for box in _boxes(header.blocks)]
        text = _text(header)
        content = text + np.array(sums, "<u4").tobytes() + b"".join(v.astype("<i4").tobytes() for v in places.values())
        file.seek(0)
        file.write(_HEAD.pack(_MAGIC, VERSION, len(text), zlib.crc32(content)) + content)


def _boxes(blocks: Blocks) -> Iterator[Box]:
    return (blocks.bounds(block) for block in product(*map(range, blocks.counts)))


def _write_block(file: Any, volume: AnyArray, box: Box) -> int:
    part = volume[(slice(None), *(slice(*bounds) for bounds in box))]
    content = np.ascontiguousarray(part, part.dtype.newbyteorder("<")).data
    file.write(content)
    return zlib.crc32(content)


def _text(header: Header) -> bytes:
    return json.dumps(header.as_json()).encode()


def _header_bytes(header: Header) -> int:
    """Where the voxels begin: after the header, at a multiple of 64 bytes."""
    size = _HEAD.size + len(_text(header)) + 8 * header.places + 12 * sum(header.classes.values())
    return -(-size // 64) * 64


class Entry:
    """A case in a file, read a box at a time; safe to share between threads and processes.

    Raises:
        DamagedEntryError: the file is not whole, or not what it should be.
        FileNotFoundError: there is none.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        with path.open("rb") as file:
            head = file.read(_HEAD.size)
            if len(head) < _HEAD.size:
                raise self._corrupt("it is cut short")
            magic, version, length, checksum = _HEAD.unpack(head)
            if magic != _MAGIC or version != VERSION or length > 10_000_000:
                raise self._corrupt("it does not begin as such a file does")
            text = file.read(length)
            self.header, tail = self._parsed(text)
            rest = file.read(tail)
            if len(rest) < tail or zlib.crc32(rest, zlib.crc32(text)) != checksum:
                raise self._corrupt("the checksum of its header differs")
            size = os.fstat(file.fileno()).st_size
        self._sums = np.frombuffer(rest[: 8 * self.header.places], "<u4")
        self._checked = np.zeros(len(self._sums), bool)
        self._locations = _HEAD.size + len(text) + 8 * self.header.places
        self._image = _header_bytes(self.header)
        voxels = math.prod(self.shape)
        self._label = self._image + 4 * self.channels * voxels
        if size != self._label + np.dtype(self.header.label).itemsize * voxels:
            raise self._corrupt("it has another size than its header says")

    @property
    def shape(self) -> Shape:
        """Voxels per axis."""
        return self.header.blocks.shape

    @property
    def channels(self) -> int:
        """Channels of the image."""
        return self.header.channels

    def _parsed(self, text: bytes) -> tuple[Header, int]:
        """The header, and how many bytes follow its text."""
        try:
            header = Header.from_json(json.loads(text))
            tail = 8 * header.places + 12 * sum(header.classes.values())
        except (ValueError, KeyError, TypeError) as error:
            raise self._corrupt("its header cannot be read") from error
        if not 0 <= tail < 1 << 31:
            raise self._corrupt("its header cannot be read")
        return header, tail

    def voxel(self, value: int, number: int) -> tuple[int, ...]:
        """The place of one of the noted voxels of a class."""
        before = 0
        for other, count in self.header.classes.items():
            if other == value:
                break
            before += count
        with self.path.open("rb", buffering=0) as file:
            file.seek(self._locations + 12 * (before + number))
            content = file.read(12)
        if len(content) < 12:
            raise self._corrupt("it was cut short")
        return tuple(int(n) for n in np.frombuffer(content, "<i4"))

    def read(self, box: Box) -> tuple[AnyArray, AnyArray]:
        """Image (channels, ...) float32 and label (1, ...) of a box; beyond the volume 0, the mean and the background.

        Args:
            box: first and last-plus-one voxel per axis; may begin before the volume and end after it.

        Raises:
            DamagedEntryError: the file was cut short, or a checksum differs.
        """
        size = [b - a for a, b in box]
        image = np.zeros((self.channels, *size), np.float32)
        label = np.zeros((1, *size), self.header.label)
        inner = tuple((max(a, 0), min(b, n)) for (a, b), n in zip(box, self.shape, strict=True))
        if all(a < b for a, b in inner):
            with self.path.open("rb", buffering=0) as file:
                for row in self.header.blocks.rows(inner):
                    self._fill(file, row, inner, box, image, self._image, 0)
                    self._fill(file, row, inner, box, label, self._label, self.header.places)
        return image, label

    def _fill(
        self, file: Any, row: list[tuple[int, int, int]], inner: Box, box: Box, result: AnyArray, start: int, first: int
    ) -> None:
        """Copy a row of blocks of the image or the label, whose checksums begin with number `first`, into `result`."""
        blocks, channels, kind = self.header.blocks, result.shape[0], result.dtype
        bounds = [blocks.bounds(block) for block in row]
        shapes = [(channels, *(b - a for a, b in each)) for each in bounds]
        sizes = [math.prod(shape) * kind.itemsize for shape in shapes]
        content = np.empty(sum(sizes), np.uint8)
        offset = start + blocks.before(row[0]) * channels * kind.itemsize
        file.seek(offset)
        if file.readinto(content) != content.nbytes:
            raise self._corrupt("it was cut short")
        place = 0
        for block, each, shape, size in zip(row, bounds, shapes, sizes, strict=True):
            part = content[place : place + size]
            place += size
            self._check(first + blocks.number(block), part)
            common = [(max(a, c), min(b, d)) for (a, b), (c, d) in zip(each, inner, strict=True)]
            here = (slice(None), *(slice(a - o, b - o) for (a, b), (o, _) in zip(common, each, strict=True)))
            there = (slice(None), *(slice(a - o, b - o) for (a, b), (o, _) in zip(common, box, strict=True)))
            result[there] = part.view(kind.newbyteorder("<")).reshape(shape)[here]

    def _check(self, number: int, content: AnyArray) -> None:
        if self._checked[number]:
            return
        if zlib.crc32(content.data) != self._sums[number]:
            raise self._corrupt(f"the checksum of its block {number} differs")
        self._checked[number] = True

    def _corrupt(self, reason: str) -> DamagedEntryError:
        return DamagedEntryError(f"{self.path}: the stored case is damaged, {reason}")
