"""Rules for connected components that cross-validation proved, kept with the weights and applied to label maps."""

from __future__ import annotations

import json
from collections.abc import Hashable, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

from monai.transforms import MapTransform

from medunet.data.transforms import grid_of
from medunet.evaluation.components import Rule, apply_rules
from medunet.inference.weights import COMPONENTS, MODEL, file_digest


class KeepComponentsd(MapTransform):
    """Keep to the bundle's rules for components in `pred` (1, x, y, z), in place; without a file of rules, as it is.

    Rules are of the weights that they were proved for, and stay unused with any others.

    Args:
        labels: stored value per class, background first.
        bundle_root: the bundle, with ``models/components.json``.
        weights: what predicts, below `bundle_root` or absolute.
    """

    def __init__(self, labels: Mapping[str, int], bundle_root: str = ".", weights: str = MODEL) -> None:
        super().__init__(("pred",))
        self.labels, self.bundle_root, self.weights = dict(labels), Path(bundle_root), weights

    @cached_property
    def rules(self) -> dict[str, Rule]:
        """Rule per class."""
        return read_rules(self.bundle_root, self.weights)

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        item = dict(data)
        rules = {name: rule for name, rule in self.rules.items() if name in self.labels}
        if rules:
            apply_rules(item["pred"][0].numpy(), rules, self.labels, grid_of(item["image"]).voxel_volume)
        return item


def read_rules(bundle: Path, weights: str = MODEL) -> dict[str, Rule]:
    """The rules of a bundle's classes; none where they are of other weights than those that predict."""
    path = bundle / COMPONENTS
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        fits = content["weights"] == file_digest(bundle / weights)
        return {name: rule for name, rule in content["rules"].items() if is_rule(rule)} if fits else {}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return {}


def is_rule(rule: Any) -> bool:
    """Whether a value is a rule for components."""
    if not isinstance(rule, dict) or len(rule) != 1:
        return False
    ((key, value),) = rule.items()
    if key == "largest":
        return value is True
    return key == "minimum_mm3" and type(value) in (int, float) and 0 < value < float("inf")
