"""Write a MONAI bundle from a plan: the configs are fixed texts, the plan stands once in ``metadata.json``."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping
from importlib import resources
from importlib.metadata import version
from pathlib import Path
from typing import Any

from medunet.data.atomic import json_text, write_text
from medunet.data.index import Index
from medunet.errors import BundleError
from medunet.planning import Fingerprint, Plan, in_words
from medunet.planning.record import MEANING
from medunet.planning.surveyed import PLAIN, kind_of, outline

CONFIGS = ("train.yaml", "inference.yaml", "evaluate.yaml", "multi_gpu_train.yaml", "logging.conf")
SCHEMA = "https://github.com/Project-MONAI/MONAI-extra-test-data/releases/download/0.8.1/meta_schema_20240725.json"
_PRIVATE = "eval"


def write_bundle(plan: Plan, index: Index, fingerprint: Fingerprint, folder: Path) -> None:
    """Write ``configs/``, ``docs/``, ``LICENSE`` and, private, the case list and the fingerprint in ``eval/``.

    The files are written aside and moved into place when all are whole.

    Raises:
        BundleError: the folder has trained weights of another plan.
        ResourceError: the disk is full; nothing has changed then.
    """
    _refuse_foreign_weights(plan, folder)
    files = _contents(plan, index, fingerprint)
    folder.mkdir(parents=True, exist_ok=True)
    try:
        with tempfile.TemporaryDirectory(prefix=".part-", dir=folder) as staging:
            for name, text in files.items():
                write_text(Path(staging) / name, text)
            for name in files:
                (folder / name).parent.mkdir(parents=True, exist_ok=True)
                (Path(staging) / name).replace(folder / name)
    finally:
        if not any(folder.iterdir()):
            folder.rmdir()


def _contents(plan: Plan, index: Index, fingerprint: Fingerprint) -> dict[str, str]:
    """Every file of a planned bundle by its path."""
    facts = {"name": index.name, "licence": index.licence, "reference": index.reference}
    configs = {f"configs/{name}": template(name).replace("DATASET_DIR", _quoted(index.root)) for name in CONFIGS}
    return {
        **configs,
        "configs/metadata.json": json_text(metadata(plan)),
        "docs/README.md": _render("README.md.j2", _readme_values(plan)),
        "docs/data_license.txt": _render("data_license.txt.j2", facts),
        "LICENSE": template("LICENSE"),
        f"{_PRIVATE}/index.json": json_text({**index.as_json(), "root": ""}),
        f"{_PRIVATE}/fingerprint.json": json_text(fingerprint.as_json()),
    }


def _quoted(path: str) -> str:
    """A path as YAML text: readable, and of other escapes than JSON's, which are pairs beyond 65,535."""
    text = json.dumps(path, ensure_ascii=False)
    return "".join(letter if letter.isprintable() else f"\\U{ord(letter):08x}" for letter in text)


def metadata(plan: Plan) -> dict[str, Any]:
    """The content of ``metadata.json``: MONAI's required fields, and the plan."""
    outputs = int(plan.network["out_channels"])
    classes = dict(_numbered(tuple(plan.labels)[len(plan.labels) - outputs :]))  # regions have no background
    return {
        "schema": SCHEMA,
        "version": "0.1.0",
        "changelog": {"0.1.0": "planned by medunet"},
        "monai_version": version("monai"),
        "pytorch_version": version("torch").split("+")[0],
        "numpy_version": version("numpy"),
        "required_packages_version": {"medunet": version("medunet"), "pytorch-ignite": version("pytorch-ignite")},
        "name": plan.name,
        "task": f"Segmentation of {_words([n for i, n in enumerate(plan.labels) if i])}",
        "description": f"A {plan.dims}D {kind_of(plan.network)} for {_words(plan.channels)} volumes, "
        "planned by medunet. Research only.",
        "authors": "written by medunet; add yours",
        "copyright": "add yours",
        "intended_use": "Research. Not a medical device.",
        "network_data_format": {
            "inputs": {"image": _tensor_format(plan, "image", len(plan.channels), dict(_numbered(plan.channels)))},
            "outputs": {"pred": _tensor_format(plan, "segmentation", outputs, classes)},
        },
        "plan": plan_block(plan),
    }


def plan_block(plan: Plan) -> dict[str, Any]:
    """The plan as it stands in ``metadata.json``; what the configs refer to as ``@_meta_::plan::...``."""
    block = plan.as_json()
    block["network"] = {"_target_": PLAIN, **block["network"]}
    return {**block, "window": list(plan.window), "border": plan.border}


def read_plan(bundle_root: str) -> dict[str, Any]:
    """The plan block of a bundle.

    Raises:
        BundleError: there is no readable metadata, or it has no plan.
    """
    path = Path(bundle_root) / "configs" / "metadata.json"
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise BundleError(f"{path}: is missing, this is not a bundle; write one with medunet plan") from error
    except ValueError as error:
        raise BundleError(f"{path}: is not valid JSON ({error}); mend it or plan again") from error
    if not isinstance(content, dict) or "plan" not in content:
        raise BundleError(f"{path}: has no plan, the bundle was not written by medunet; run it with monai.bundle")
    block: dict[str, Any] = content["plan"]
    return block


def template(name: str) -> str:
    """A shipped text."""
    return (resources.files("medunet.bundle") / "templates" / name).read_text(encoding="utf-8")


def _refuse_foreign_weights(plan: Plan, folder: Path) -> None:
    """Weights of another network, or of one that sees or says something else, must not end up beside this plan."""
    if not (folder / "models" / "model.pt").is_file():
        return
    before, now = read_plan(str(folder)), plan_block(plan)
    texts = ((key, *(json.dumps(block.get(key)) for block in (before, now))) for key in ("network", *MEANING))
    differing = next((key for key, old, new in texts if old != new), None)  # order counts: it is that of the outputs
    if differing is not None:
        raise BundleError(
            f"{folder}: has weights of another {differing} (models/model.pt); choose another --bundle folder or remove "
            f"them"
        )


def _tensor_format(plan: Plan, kind: str, channels: int, names: Mapping[str, str]) -> dict[str, Any]:
    return {
        "type": "image",
        "format": kind,
        "modality": "/".join(plan.channels) if kind == "image" else "n/a",
        "num_channels": channels,
        "spatial_shape": list(plan.patch_size),
        "dtype": "float32",
        "value_range": [] if kind == "image" else [0, 1],
        "is_patch_data": True,
        "channel_def": dict(names),
    }


def _numbered(names: tuple[str, ...]) -> list[tuple[str, str]]:
    return [(str(number), name) for number, name in enumerate(names)]


def _words(names: Any) -> str:
    listed = list(names)
    return listed[0] if len(listed) == 1 else ", ".join(listed[:-1]) + " and " + listed[-1] if listed else "nothing"


def _readme_values(plan: Plan) -> dict[str, Any]:
    return {
        "plan": plan,
        "kind": kind_of(plan.network),
        "version": version("medunet"),
        "classes": _words([name for number, name in enumerate(plan.labels) if number]),
        "channels": _words(plan.channels),
        "rows": explain(plan),
    }


def explain(plan: Plan) -> list[dict[str, str]]:
    """A row per number of the plan: key, value and reason as words."""
    block = plan.as_json()
    block["network"] = outline(block["network"])
    block["memory_estimate"] = f"{block['memory_estimate'] / 1e9:.2f} GB"
    rows = []
    for key, reason in plan.reasons.items():
        value = block.get(key, plan.network.get(key, ""))
        rows.append({"key": key, "value": in_words(key, value), "reason": reason})
    return rows


def _render(name: str, values: Mapping[str, Any]) -> str:
    import jinja2

    environment = jinja2.Environment(undefined=jinja2.StrictUndefined, keep_trailing_newline=True, autoescape=False)
    return environment.from_string(template(name)).render(**values)
