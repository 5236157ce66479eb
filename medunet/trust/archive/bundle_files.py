"""The files of a packed bundle, from its archive or from the folder it was unpacked to; nothing is written."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from medunet.errors import InputError, UnsafeError
from medunet.trust.archive.slices import Slice
from medunet.trust.archive.strictjson import LARGEST
from medunet.trust.archive.zipform import Listing, Member, read_archive

_MOST_FILES = 10_000


@dataclass(frozen=True)
class Contents:
    """Files by their names, each with its size, its sha256 and a view of its bytes.

    `listing` is the archive's; None for a folder.
    """

    members: dict[str, Member]
    slices: dict[str, Slice]
    listing: Listing | None

    def read(self, name: str, largest: int = LARGEST) -> bytes:
        """The bytes of a small file.

        Raises:
            UnsafeError: it is missing or larger than `largest`.
        """
        part = self.slice(name)
        if part.size > largest:
            raise UnsafeError(f"{name}: has {part.size:,} bytes, more than the {largest:,} that are read; refuse it")
        return part.read()

    def slice(self, name: str) -> Slice:
        """The bytes of a file, to be read in parts.

        Raises:
            UnsafeError: it is missing.
        """
        if name not in self.slices:
            raise UnsafeError(f"{name}: is missing; get the bundle again, or pack it again")
        return self.slices[name]


@contextmanager
def opened(source: Path) -> Iterator[BinaryIO | None]:
    """An archive, open for reading and the same file until the block ends; None for a folder.

    Raises:
        InputError: there is nothing of that name, or it cannot be read.
        UnsafeError: it is neither a plain file nor a folder.
    """
    try:
        if source.is_dir():
            yield None
            return
        handle = os.open(source, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0))
    except FileNotFoundError as error:
        raise InputError(f"{source}: is missing; give an archive or a folder that medunet made") from error
    except OSError as error:
        raise InputError(f"{source}: cannot be read ({error.strerror}); check its permissions") from error
    with os.fdopen(handle, "rb") as file:
        if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            raise UnsafeError(f"{source}: is not a plain file; give an archive or a folder")
        yield file


def archive_contents(file: BinaryIO) -> Contents:
    """What an archive holds.

    Raises:
        UnsafeError: it is not in the canonical form.
    """
    listing = read_archive(file)
    members = {member.name: member for member in listing.members}
    return Contents(members, {m.name: Slice(file, m.start, m.size) for m in listing.members}, listing)


@contextmanager
def folder_contents(root: Path) -> Iterator[Contents]:
    """What a folder holds, hidden files too; links and anything that is not a plain file are refused.

    Raises:
        UnsafeError: a link, a device, or too many files.
    """
    with ExitStack() as stack:
        members, slices = {}, {}
        for name in sorted(_names(root, "")):
            handle = os.open(root / name, os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0))
            file = stack.enter_context(os.fdopen(handle, "rb"))
            part = Slice.whole(file)
            members[name] = Member(name, part.size, 0, part.sha256())
            slices[name] = part
        yield Contents(members, slices, None)


def _names(root: Path, below: str) -> Iterator[str]:
    count = 0
    with os.scandir(root / below) as entries:
        for entry in entries:
            name = f"{below}{entry.name}"
            if entry.is_symlink():
                raise UnsafeError(f"{name}: is a link; a bundle holds plain files, remove it")
            if entry.is_dir(follow_symlinks=False):
                yield from _names(root, f"{name}/")
            elif entry.is_file(follow_symlinks=False):
                yield name
            else:
                raise UnsafeError(f"{name}: is not a plain file; remove it")
            count += 1
            if count > _MOST_FILES:
                raise UnsafeError(f"{below or root}: holds more than {_MOST_FILES:,} files; refuse it")
