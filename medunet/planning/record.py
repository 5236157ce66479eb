"""What a plan is made within, and what it is: plain records that are kept as JSON."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from medunet.errors import PlanError

DEFAULT_MEMORY = 8_000_000_000
MEANING = ("channels", "orientation", "spacing", "normalization", "labels", "regions", "ignore")
"""What a network sees and says: the keys of a plan that its weights hold for, beside ``network``."""


@dataclass(frozen=True)
class Budget:
    """What a training run may take: bytes of memory, the device, and minutes or epochs (neither: a default)."""

    memory: int = DEFAULT_MEMORY
    device: str = "cpu"
    minutes: float | None = None
    epochs: int | None = None


@dataclass(frozen=True)
class Plan:
    """Every number of a run. Axes are those of `orientation`; spacing in mm, patch in voxels, memory in bytes."""

    name: str
    dataset_digest: str
    dims: int
    channels: tuple[str, ...]
    labels: dict[str, int]
    codes: dict[str, Any]
    """What each class is in DICOM's terms: category, type and laterality."""
    orientation: str
    spacing: tuple[float, ...]
    normalization: tuple[dict[str, Any], ...]
    patch_size: tuple[int, ...]
    batch_size: int
    network: dict[str, Any]
    learning_rate: float
    weight_decay: float
    warmup_steps: int
    steps_per_epoch: int
    epochs: int
    minutes: float | None
    foreground_fraction: float
    mirror_axes: tuple[int, ...]
    rotation: tuple[float, ...]
    overlap: float
    region: Any
    """Where prediction looks: ``all``, ``body``, or around what a coarser bundle finds."""
    partners: tuple[str, ...]
    """Other bundles whose probabilities are averaged with this one's in prediction."""
    amp: bool
    memory_estimate: int
    seen: dict[str, Any]
    """Ranges of the training data that prediction compares its input with."""
    reasons: dict[str, str] = field(default_factory=dict)
    regions: dict[str, list[int]] = field(default_factory=dict)
    """Of labels that may overlap: the values of label maps that belong to each; `labels` has those that are written."""
    ignore: int | None = None
    """The value in label maps of voxels that nobody annotated."""
    predict_mirror_axes: tuple[int, ...] = ()
    """Axes that prediction averages over mirrored inputs along, in validation as in use."""
    margin: tuple[int, ...] = (0, 0, 0)
    """Voxels that the network's output lacks on either side, along the window's three axes; 0 with padding."""

    @property
    def border(self) -> str:
        """What the network sees beyond an image: its mirror image without padding, as in the U-Net paper, else zero."""
        return "mirror" if any(self.margin) else "constant"

    @property
    def window(self) -> tuple[int, ...]:
        """The patch as a 3D box; a 2D plan has one slice."""
        return (*self.patch_size, 1) if self.dims == 2 else self.patch_size

    def as_json(self) -> dict[str, Any]:
        """Plain lists, numbers and strings."""
        content: dict[str, Any] = plain(asdict(self))
        return content

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> Plan:
        """The inverse of `as_json`.

        Raises:
            PlanError: a field is missing or unknown.
        """
        try:
            values: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in content.items()}
            return cls(**values)
        except TypeError as error:
            raise PlanError(f"the plan cannot be read: {error}; write it again with medunet plan") from error


def in_words(key: str, value: Any) -> str:
    """A value of a plan for people: lists and mappings without quotes, codes as their meaning and number."""
    if key == "codes":
        return "; ".join(
            f"{name}: {code['type'][2]} ({code['type'][1]} {code['type'][0]})" for name, code in value.items()
        )
    if isinstance(value, Mapping):
        return "; ".join(f"{name} {in_words('', item)}" for name, item in value.items())
    if isinstance(value, (list, tuple)):
        return "[" + ", ".join(in_words("", item) for item in value) + "]"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:g}" if isinstance(value, float) and math.isfinite(value) else str(value)


def plain(value: Any) -> Any:
    """Lists for tuples, and keys as text."""
    if isinstance(value, Mapping):
        return {str(k): plain(v) for k, v in value.items()}
    if isinstance(value, (tuple, list)):
        return [plain(v) for v in value]
    return value


def short(value: Any) -> str:
    """A value in a reason."""
    content = plain(value)
    if isinstance(content, list):
        return "[" + ", ".join(f"{v:g}" if isinstance(v, float) else str(v) for v in content) + "]"
    return str(content)
