"""How a case names what it is read from: ``PATH``, or ``PATH#OPTION=VALUE&...`` as in a web address.

Images: ``FOLDER#series=UID&part=echo 2&allow_gaps=1`` chooses a stack among several.
Labels: ``FILE.dcm#on=../image&GTV_Mass=1`` says on which image a label object lies and which of its structures has
which value (and ``threshold=0.5`` from which share on a FRACTIONAL segment's pixel counts). What a dataset's index
resolved stands there to be read; nothing is searched for again when training.
Pictures: ``IMAGE.png#channels=grey`` is read as its luma, ``LABEL.png#instances=apart`` (or ``border``) as classes.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import quote, unquote

from medunet.data.volume import VOLUME_SUFFIXES
from medunet.types import StrPath

_CONTAINERS = (".zip",)


@dataclass(frozen=True)
class Source:
    """A path and its options, in order."""

    path: Path
    options: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def parse(cls, text: StrPath) -> Source:
        """The inverse of `str`; a ``#`` in the name of a file or folder is part of the name.

        `str` leaves no ``#`` in options, so that the last one parts them from the path; where people wrote one in an
        option, only the path before an earlier one is there.
        """
        whole = str(text)
        marks = [place for place, letter in enumerate(whole) if letter == "#"]
        if not marks or os.path.exists(whole):
            return cls(Path(whole))
        mark = next((place for place in reversed(marks) if os.path.exists(whole[:place])), marks[-1])
        head, tail = whole[:mark], whole[mark + 1 :]
        pairs = (pair.partition("=") for pair in tail.split("&") if pair)
        return cls(Path(head), {unquote(key): unquote(value) for key, _, value in pairs})

    def __str__(self) -> str:
        if not self.options:
            return str(self.path)
        pairs = "&".join(
            f"{quote(key, safe=' ')}={quote(value, safe=' /' if key == 'on' else ' ')}"  # paths lose one of two slashes
            for key, value in self.options.items()
        )
        return f"{self.path}#{pairs}"

    def absolute(self) -> Source:
        """With the file's absolute path; the options stay as they are (``on`` is relative to the file)."""
        return Source(self.path.resolve(), self.options)

    def stack(self) -> tuple[str, str | None, str | None]:
        """What tells one stack of images from another, however it is read."""
        return str(self.path.resolve()), self.options.get("series"), self.options.get("part")

    def with_options(self, **options: str) -> Source:
        """With more options."""
        return Source(self.path, {**self.options, **options})


def is_dicom(text: StrPath) -> bool:
    """Whether a source is read as DICOM: a folder, a zip, a DICOMDIR or a file that starts as DICOM does."""
    path = Source.parse(text).path
    if path.is_dir() or path.name.upper() == "DICOMDIR" or path.name.lower().endswith(_CONTAINERS):
        return True
    if path.name.lower().endswith(VOLUME_SUFFIXES) or not path.is_file():
        return False
    from medunet.data.dicom.files import is_dicom_file

    return is_dicom_file(path)
