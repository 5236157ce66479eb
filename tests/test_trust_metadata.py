"""Our table of the metadata rules gives jsonschema's verdict; our ids are MONAI's."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from medunet.trust.card.metadata import REFERRED_IDS, REQUIRED_IDS, check_metadata, check_workflow_ids

TENSOR = {
    "type": "image", "format": "image", "num_channels": 1, "spatial_shape": [16, "*"], "dtype": "float32",
    "value_range": [0, 1.5], "is_patch_data": True, "channel_def": {"0": "CT"},
}  # fmt: skip
GOOD: dict[str, Any] = {
    "schema": "https://example.org/meta_schema_20240725.json", "version": "0.1.0", "changelog": {"0.1.0": "first"},
    "monai_version": "1.6.1", "pytorch_version": "2.13.0", "numpy_version": "2.4.0", "required_packages_version": {},
    "task": "t", "description": "d", "authors": "a", "copyright": "c", "references": ["r"], "supported_apps": {},
    "data_source": "x", "eval_metrics": {"dice": 0.9}, "intended_use": "u",
    "network_data_format": {
        "inputs": {"image": TENSOR, "label": TENSOR},
        "outputs": {"pred": TENSOR},
        "post_processed_outputs": {"pred": TENSOR, "n": 1},
    },
    "second_data_format": {"inputs": {}, "outputs": {"x": "text", "y": True}},
}  # fmt: skip
OLD = {**GOOD, "schema": "https://example.org/meta_schema_20220324.json", "optional_packages_version": {}}
VALUES = st.sampled_from(
    [
        *(None, True, 0, 1, 1.0, 1.5, "", "text", [], [1], [1.0], [1.5]),
        *(["a"], [True], [None], {}, {"a": 1}, {"image": {}}, TENSOR),
    ]
)  # fmt: skip
KEYS = [
    "image",
    "pred",
    "new",
    "",
    "a\n",
    "inputs",
    "third_data_format",
    "bad-data_format",
    "references",
    "channel_def",
]


def places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [path, *[place for key, item in inner for place in places(item, (*path, key))]]


@st.composite
def mutated(draw: st.DrawFn, base: dict[str, Any]) -> dict[str, Any]:
    """The metadata with up to three values changed, removed or added."""
    content: Any = json.loads(json.dumps(base))
    for _ in range(draw(st.integers(0, 3))):
        path = draw(st.sampled_from([place for place in places(content) if place]))
        parent = content
        for part in path[:-1]:
            parent = parent[part]
        action = draw(st.sampled_from(["change", "remove", "add"]))
        if action == "change":
            parent[path[-1]] = copy.deepcopy(draw(VALUES))
        elif action == "remove" and path[-1] != "schema":
            del parent[path[-1]]
        elif isinstance(parent, dict):
            parent[draw(st.sampled_from(KEYS))] = copy.deepcopy(draw(VALUES))
    if not isinstance(content.get("schema"), str):
        content["schema"] = base["schema"]
    return content  # type: ignore[no-any-return]


@pytest.mark.parametrize("base", [GOOD, OLD], ids=["20240725", "20220324"])
def test_same_verdict_as_jsonschema(real_data: Callable[[str], Path], base: dict[str, Any]) -> None:
    file = "meta_schema_20220324.json" if base is OLD else "meta_schema_20240725.json"
    schema = json.loads((real_data("schema") / file).read_text())
    validator = jsonschema.validators.validator_for(schema)(schema)
    verdicts = set()

    @settings(max_examples=1500, suppress_health_check=list(HealthCheck))
    @given(mutated(base))
    def compare(content: dict[str, Any]) -> None:
        if content["schema"] not in (base["schema"], "text", ""):
            return
        if base is OLD:
            content["schema"] = base["schema"]
        valid = validator.is_valid(content)
        verdicts.add(valid)
        assert (check_metadata(content) == ()) == valid, content

    compare()
    assert verdicts == {True, False}


def test_what_medunet_writes_is_valid(planned_bundle: Path) -> None:
    assert check_metadata(json.loads((planned_bundle / "configs" / "metadata.json").read_text())) == ()


def test_a_finding_names_key_value_and_remedy() -> None:
    content = json.loads(json.dumps(GOOD))
    content["network_data_format"]["inputs"]["image"]["num_channels"] = "one"
    del content["network_data_format"]["outputs"]["pred"]["dtype"]
    del content["task"]
    texts = {finding.place.key: finding.what for finding in check_metadata(content)}
    assert texts == {
        "task": "task: is missing; the bundle format requires it, add it",
        "network_data_format::inputs::image::num_channels": (
            "network_data_format::inputs::image::num_channels: is 'one'; write a whole number"
        ),
        "network_data_format::outputs::pred::dtype": (
            "network_data_format::outputs::pred::dtype: is missing; the bundle format requires it, add it"
        ),
    }


def test_the_ids_are_monais() -> None:
    from monai.bundle.properties import InferProperties, MetaProperties, TrainProperties
    from monai.utils import BundleProperty as Property
    from monai.utils import BundlePropertyConfig as Config

    for kind, table in (("train", TrainProperties), ("infer", InferProperties), ("meta", MetaProperties)):
        required = {p[Config.ID] for p in table.values() if p[Property.REQUIRED]}
        assert required == {f"_meta_::{name}" if kind == "meta" else name for name in REQUIRED_IDS[kind]}
        referred = {
            p[Config.ID]: p[Config.REF_ID]
            for name, p in table.items()
            if p.get(Config.REF_ID) and name not in ("evaluator", "val_interval")  # arguments of a handler
            and not (kind == "infer" and name == "evaluator")
        }  # fmt: skip
        assert referred == REFERRED_IDS.get(kind, {})


def configs_of(bundle: Path) -> dict[str, Any]:
    found = {path.name: yaml.safe_load(path.read_text()) for path in bundle.glob("configs/*.yaml")}
    return {**found, "metadata.json": json.loads((bundle / "configs" / "metadata.json").read_text())}


def test_what_medunet_writes_has_every_id(planned_bundle: Path) -> None:
    assert check_workflow_ids(configs_of(planned_bundle)) == ()


def test_missing_ids_are_named(planned_bundle: Path) -> None:
    configs = configs_of(planned_bundle)
    del configs["train.yaml"]["train"]["inferer"]
    configs["train.yaml"]["train"]["trainer"] = "@trainer"
    configs["inference.yaml"]["evaluator"]["val_handlers"] = "@other"
    del configs["inference.yaml"]["network_def"]
    del configs["metadata.json"]["monai_version"]
    texts = {(f.place.file, f.place.key): f.what for f in check_workflow_ids(configs)}
    assert set(texts) == {
        ("train.yaml", "train::inferer"),
        ("train.yaml", "train::trainer::max_epochs"),
        ("inference.yaml", "evaluator::val_handlers"),
        ("inference.yaml", "network_def"),
        ("metadata.json", "monai_version"),
    }
    assert "stands behind the reference '@trainer'" in texts["train.yaml", "train::trainer::max_epochs"]
    assert "expects the reference '@handlers'" in texts["inference.yaml", "evaluator::val_handlers"]
    assert "network_def: is missing" in texts["inference.yaml", "network_def"]
