"""One DICOM file as a data set, or one sentence that says why not."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from medunet.data.dicom.location import Location, one_line
from medunet.errors import InputError
from medunet.types import StrPath

if TYPE_CHECKING:
    from pydicom.dataset import Dataset

RTSTRUCT = "1.2.840.10008.5.1.4.1.1.481.3"
SEGMENTATION = "1.2.840.10008.5.1.4.1.1.66.4"
LABEL_MAP_SEGMENTATION = "1.2.840.10008.5.1.4.1.1.66.7"

LPS_TO_RAS = np.array([-1.0, -1.0, 1.0])
"""DICOM's patient axes point left, posterior, superior (PS3.3 C.7.6.2.1.1), ours right, anterior, superior."""


def open_dataset(path: StrPath, *, pixels: bool = True) -> Dataset:
    """A DICOM file, with or without preamble.

    Raises:
        InputError: the file is missing, not DICOM, or cut short.
    """
    from medunet.data.dicom.files import read_full_header, read_whole

    if not Path(path).is_file():
        raise InputError(f"{path}: is not a file; give a DICOM file")
    try:
        location = Location(Path(path))
        dataset: Dataset = read_whole(location) if pixels else read_full_header(location)
        known = "SOPClassUID" in dataset
    except Exception as error:  # pydicom raises many kinds on broken files
        reason = one_line(error, 160) or type(error).__name__
        raise InputError(f"{path}: cannot be read as DICOM ({reason}); export it again") from error
    if not known:
        raise InputError(f"{path}: is not a DICOM object, it names no SOP class; give an RTSTRUCT or SEG file")
    return dataset


def sop_class(dataset: Dataset) -> str:
    """The SOP Class UID, empty where there is none."""
    return str(dataset.get("SOPClassUID", ""))


def items(dataset: Dataset, keyword: str) -> list[Any]:
    """The items of a sequence, none when it is absent or empty."""
    return list(dataset.get(keyword) or [])


def text(dataset: Dataset, keyword: str) -> str:
    """A single value as stripped text, empty when it is absent or empty."""
    value = dataset.get(keyword)
    return "" if value is None else str(value).strip()


def distinct(values: Iterable[str]) -> tuple[str, ...]:
    """The values that are not empty, each once, in order."""
    return tuple(dict.fromkeys(value for value in values if value))
