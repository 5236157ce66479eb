"""What a plan knows of a network that its own arithmetic does not cover, and who tells it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from medunet.planning.sizes import Axis

PLAIN = "medunet.networks.UNet"


@dataclass(frozen=True)
class Surveyed:
    """A network that was built and looked at."""

    name: str
    definition: dict[str, Any]
    """``_target_`` and all arguments, plain values."""
    accepts: frozenset[str]
    """Names of the arguments that the target takes."""
    axes: tuple[Axis, ...]
    parameters: int
    held: Callable[[Sequence[int]], tuple[int, int]]
    """Patch size -> bytes that one patch adds to a training step before the loss, and the number of its logits."""

    @property
    def padding(self) -> str:
        """``valid`` where the output is smaller than the input."""
        return "valid" if any(axis.margin for axis in self.axes) else "same"

    @property
    def strides(self) -> tuple[tuple[int, ...], ...]:
        """By how much valid sizes differ, as the strides of a single level."""
        return (tuple(axis.step for axis in self.axes),)


Survey = Callable[[Mapping[str, Any], Mapping[str, Any], Sequence[int]], Surveyed]
"""A definition with ``_target_``, a plan's numbers by name, a patch size -> what the network is like."""


def kind_of(network: Mapping[str, Any]) -> str:
    """The name of a plan's network for people."""
    target = str(network.get("_target_", PLAIN)).rsplit(".", 1)[-1]
    return "U-Net" if target == "UNet" else target


def outline(network: Mapping[str, Any]) -> dict[str, Any]:
    """What is worth telling of a plan's network: its levels, or its name and numbers."""
    if "channels" in network:
        shown = {"channels": network["channels"], "strides": network["strides"]}
        return shown if kind_of(network) == "U-Net" else {"kind": kind_of(network), **shown}
    return {"kind": kind_of(network), **{k: v for k, v in network.items() if k != "_target_"}}
