"""The rules of MONAI's bundle format, checked without MONAI, a network or a schema file.

Source of the field rules: the schemas ``meta_schema_20220324.json`` and ``meta_schema_20240725.json`` that MONAI
publishes; the ``schema`` field of a bundle says which. Source of the ids: ``monai/bundle/properties.py`` and
``ConfigWorkflow.check_properties`` of MONAI 1.6.1. Tests compare both with the originals.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import PurePosixPath
from typing import Any

from medunet.trust.findings import Finding, Place

FILE = "configs/metadata.json"

_TEXT = (
    "schema", "version", "monai_version", "pytorch_version", "numpy_version", "task", "description", "authors",
    "copyright", "data_source", "data_type", "image_classes", "label_classes", "pred_classes", "intended_use",
)  # fmt: skip
_OBJECTS = ("changelog", "eval_metrics")
_REQUIRED = ("schema", "version", "monai_version", "pytorch_version", "numpy_version", "task", "description", "authors",
             "copyright", "network_data_format")  # fmt: skip
_TENSOR = {
    "type": "text", "format": "text", "num_channels": "integer", "spatial_shape": "list", "dtype": "text",
    "value_range": "numbers", "is_patch_data": "boolean", "channel_def": "object",
}  # fmt: skip
_TENSOR_REQUIRED = ("type", "format", "num_channels", "spatial_shape", "dtype", "value_range")
_NETWORKS = re.compile(r"^[_a-zA-Z0-9]+_data_format$")
_OLD = "20220324"

Check = Callable[[Any], bool]


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _is_integer(value: Any) -> bool:
    return _is_number(value) and (isinstance(value, int) or value.is_integer())


def _is_old_integer(value: Any) -> bool:
    """JSON schema draft 4 does not take 1.0 for an integer, later drafts do."""
    return isinstance(value, int) and not isinstance(value, bool)


_KINDS: dict[str, tuple[str, Check]] = {
    "text": ("text", lambda value: isinstance(value, str)),
    "object": ("an object of names and values", lambda value: isinstance(value, dict)),
    "boolean": ("true or false", lambda value: isinstance(value, bool)),
    "list": ("a list", lambda value: isinstance(value, list)),
    "integer": ("a whole number", _is_integer),
    "old integer": ("a whole number", _is_old_integer),
    "numbers": ("a list of numbers", lambda value: isinstance(value, list) and all(map(_is_number, value))),
    "texts": ("a list of texts", lambda value: isinstance(value, list) and all(isinstance(v, str) for v in value)),
    "shape": (
        "a list of whole numbers and texts",
        lambda value: isinstance(value, list) and all(isinstance(v, str) or _is_integer(v) for v in value),
    ),
}


def check_metadata(content: Mapping[str, Any]) -> tuple[Finding, ...]:
    """What `content` of ``metadata.json`` breaks of the published schema that it names, each with its key.

    A bundle that names no schema, or an unknown one, is held to the newest.
    """
    old = _OLD in str(content.get("schema", ""))
    return tuple(
        Finding("note", "metadata", Place(FILE, key), what) for key, what in _faults(content, old)
    )  # fmt: skip


def _faults(content: Mapping[str, Any], old: bool) -> Iterator[tuple[str, str]]:
    packages = "optional_packages_version" if old else "required_packages_version"
    kinds = dict.fromkeys(_TEXT, "text") | dict.fromkeys((*_OBJECTS, packages), "object")
    kinds["references"] = "list" if old else "texts"
    if not old:
        kinds["supported_apps"] = "object"
    yield from _object("", content, kinds, (*_REQUIRED, packages))
    for key in content:
        if key == "network_data_format":
            yield from (_old_network if old else _network)(key, content[key])
        elif not old and isinstance(key, str) and _NETWORKS.search(key):
            yield from _network(key, content[key])


def _object(
    prefix: str, content: Any, kinds: Mapping[str, str], required: tuple[str, ...]
) -> Iterator[tuple[str, str]]:
    """Missing keys and values of another kind."""
    if not isinstance(content, Mapping):
        yield prefix, f"{prefix}: is {_shown(content)}; write an object of names and values"
        return
    for key in required:
        if key not in content:
            yield _join(prefix, key), f"{_join(prefix, key)}: is missing; the bundle format requires it, add it"
    for key, kind in kinds.items():
        words, fits = _KINDS[kind]
        if key in content and not fits(content[key]):
            yield _join(prefix, key), f"{_join(prefix, key)}: is {_shown(content[key])}; write {words}"


def _network(key: str, value: Any) -> Iterator[tuple[str, str]]:
    """Inputs and outputs by any name: a plain value or a tensor each."""
    yield from _object(key, value, {}, ("inputs", "outputs"))
    for side in ("inputs", "outputs", "post_processed_outputs"):
        if not isinstance(value, Mapping) or side not in value:
            continue
        yield from _object(_join(key, side), value[side], {}, ())
        for name, tensor in value[side].items() if isinstance(value[side], Mapping) else ():
            if re.search("^.+$", name) and not (isinstance(tensor, str | bool) or _is_number(tensor)):
                kinds = {**_TENSOR, "spatial_shape": "shape"}
                yield from _object(_join(key, side, name), tensor, kinds, _TENSOR_REQUIRED)


def _old_network(key: str, value: Any) -> Iterator[tuple[str, str]]:
    """One input ``image`` (and perhaps ``label``), one output ``pred``."""
    yield from _object(key, value, {}, ("inputs", "outputs"))
    for side, names, needed in (("inputs", ("image", "label"), ("image",)), ("outputs", ("pred",), ("pred",))):
        if not isinstance(value, Mapping) or side not in value:
            continue
        yield from _object(_join(key, side), value[side], {}, needed)
        for name in names:
            if isinstance(value[side], Mapping) and name in value[side]:
                kinds = {**_TENSOR, "num_channels": "old integer"}
                yield from _object(_join(key, side, name), value[side][name], kinds, _TENSOR_REQUIRED)


def _join(*parts: str) -> str:
    return "::".join(part for part in parts if part)


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 40 else f"{text[:37]}..."


REQUIRED_IDS: dict[str, tuple[str, ...]] = {
    "train": (
        "bundle_root", "device", "dataset_dir", "train::trainer", "train::trainer::max_epochs", "train::dataset",
        "train::inferer",
    ),
    "infer": ("bundle_root", "device", "dataset_dir", "dataset", "evaluator", "network_def", "inferer"),
    "meta": ("version", "monai_version", "pytorch_version", "numpy_version"),
}  # fmt: skip
"""Ids that a training config, an inference config and the metadata must have (MONAI's ``REQUIRED`` properties)."""

REFERRED_IDS: dict[str, dict[str, str]] = {
    "train": {
        "train::handlers": "train::trainer::train_handlers",
        "train::preprocessing": "train::dataset::transform",
        "train::postprocessing": "train::trainer::postprocessing",
        "train::key_metric": "train::trainer::key_train_metric",
        "validate::handlers": "validate::evaluator::val_handlers",
        "validate::dataset": "validate::dataloader::dataset",
        "validate::inferer": "validate::evaluator::inferer",
        "validate::preprocessing": "validate::dataset::transform",
        "validate::postprocessing": "validate::evaluator::postprocessing",
        "validate::key_metric": "validate::evaluator::key_val_metric",
    },
    "infer": {
        "handlers": "evaluator::val_handlers",
        "preprocessing": "dataset::transform",
        "postprocessing": "evaluator::postprocessing",
        "key_metric": "evaluator::key_val_metric",
    },
}
"""Optional ids: where the place on the right has a value, it must be a reference to the id on the left."""

_STEMS = {"train": "train", "inference": "infer", "infer": "infer", "metadata": "meta"}


def check_workflow_ids(configs: Mapping[str, Mapping[str, Any]]) -> tuple[Finding, ...]:
    """Which ids MONAI's workflow properties ask for and the configs lack.

    `configs` maps file names to plain contents; ``train``, ``inference`` and ``metadata`` are checked, others
    (overlays) are not, since they are no whole configs.
    """
    findings = []
    for file, content in configs.items():
        kind = _STEMS.get(PurePosixPath(file).stem, "")
        for key, what in _missing(content, kind) if kind else ():
            findings.append(Finding("note", "workflow-id", Place(file, key), what))
    return tuple(findings)


def _missing(content: Mapping[str, Any], kind: str) -> Iterator[tuple[str, str]]:
    for wanted in REQUIRED_IDS[kind]:
        reached, rest = _look(content, wanted)
        if rest and isinstance(reached, str) and reached.startswith("@"):
            yield wanted, f"{wanted}: stands behind the reference '{reached}', where MONAI does not look; write it out"
        elif rest:
            yield wanted, f"{wanted}: is missing; MONAI's workflow properties require it, add it"
    for wanted, place in REFERRED_IDS.get(kind, {}).items():
        value, rest = _look(content, place)
        if not rest and value is not None and value != f"@{wanted}":
            yield place, f"{place}: is {_shown(value)}; MONAI expects the reference '@{wanted}', write that"


def _look(content: Any, wanted: str) -> tuple[Any, str]:
    """The value at an id and "", or what was reached and the rest of the id."""
    parts = wanted.split("::")
    for number, part in enumerate(parts):
        if not isinstance(content, Mapping) or part not in content:
            return content, "::".join(parts[number:])
        content = content[part]
    return content, ""
