"""What a dataset declares of its pictures, written into the sources of its cases, where reading finds it.

``"channels": ["grey"]``: colours become their luma (``IMAGE#channels=grey``).
``"instances": true`` (or ``"apart"``, ``"border"``): label files number objects, and what is trained on are the classes
that `medunet.data.instances` makes of them (``LABEL#instances=apart``).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from medunet.data import pictures
from medunet.data.dicom.source import Source
from medunet.data.index import Case, Index
from medunet.data.instances import KINDS
from medunet.errors import DatasetError

_CELL, _BORDER = "cell", "border"


def settle(index: Index, facts: Mapping[str, Any]) -> Index:
    """The index with sources, channels and labels as the dataset, or every source by itself, declares them.

    Raises:
        DatasetError: ``instances`` is something else, or some sources declare what others do not.
    """
    kind = _kind(index, facts.get("instances"))
    grey = index.channels == pictures.GREY or (not index.channels and _all_grey(index))
    if kind is None and not grey:
        return index
    training, test = (tuple(_case(case, kind, grey) for case in side) for side in (index.training, index.test))
    labels = index.labels if kind is None else _labels(index.labels, kind)
    channels = pictures.GREY if grey else index.channels
    return replace(index, channels=channels, labels=labels, training=training, test=test)


def as_grey(source: str) -> str:
    """The source of a picture, to be read as luma; any other as it is."""
    parsed = Source.parse(source)
    if not parsed.path.name.lower().endswith(pictures.SUFFIXES) or parsed.options:
        return source
    return str(parsed.with_options(channels="grey"))


def _kind(index: Index, declared: Any) -> str | None:
    """How objects become classes; null where labels are classes."""
    own = {_option(case.label) for case in (*index.training, *index.test) if case.label}
    if declared in (None, False):
        if len(own) > 1:
            raise DatasetError(
                f"{index.root}: some labels have #instances= and others not, or another; give all the same"
            )
        return own.pop() if own else None
    kind = KINDS[0] if declared is True else str(declared)
    if kind not in KINDS or not own <= {None, kind}:
        raise DatasetError(f"{index.root}: instances {declared!r} is not known; give true, {' or '.join(KINDS)}")
    return kind


def _option(label: str) -> str | None:
    return Source.parse(label).options.get("instances")


def _all_grey(index: Index) -> bool:
    return bool(index.training) and all(
        Source.parse(image).options.get("channels") == "grey" for case in index.training for image in case.images
    )


def _case(case: Case, kind: str | None, grey: bool) -> Case:
    images = tuple(as_grey(image) for image in case.images) if grey and len(case.images) == 1 else case.images
    label = case.label
    if kind is not None and label is not None:
        label = str(Source.parse(label).with_options(instances=kind))
    return replace(case, images=images, label=label)


def _labels(declared: Mapping[str, int], kind: str) -> dict[str, int]:
    """Background, the objects under their declared name, and the border where it is a class."""
    background = next((name for name, value in declared.items() if value == 0), "background")
    cell = next((name for name, value in declared.items() if value != 0 and name != _BORDER), _CELL)
    return {background: 0, cell: 1, **({_BORDER: 2} if kind == "border" else {})}
