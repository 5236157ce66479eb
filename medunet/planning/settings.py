"""The numbers of a plan that a user may choose (``--set``, ``--config``), and what they may be."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from medunet.errors import PlanError
from medunet.planning.sizes import Axis, nearest


@dataclass(frozen=True)
class Setting:
    """What a value must be, in words and as a test."""

    rule: str
    accepts: Callable[[Any], bool]


def _whole(low: int, high: int) -> Setting:
    return Setting(
        f"a whole number from {low} to {high}",
        lambda v: isinstance(v, int) and not isinstance(v, bool) and low <= v <= high,
    )


def _number(low: float, high: float, *, below: bool = False) -> Setting:
    return Setting(
        f"a number from {low:g} to {'below ' if below else ''}{high:g}",
        lambda v: _is_number(v) and low <= v and (v < high if below else v <= high),
    )


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _one_of(*words: str) -> Setting:
    return Setting("one of " + ", ".join(words), lambda v: v in words)


def _list(rule: str, accepts: Callable[[Any], bool], lengths: Sequence[int]) -> Setting:
    return Setting(rule, lambda v: isinstance(v, (list, tuple)) and len(v) in lengths and all(accepts(i) for i in v))


def _positive_int(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0


def _numbers(rule: str) -> Setting:
    return Setting(rule, lambda v: _positive_int(v) or (isinstance(v, (list, tuple)) and all(map(_positive_int, v))))


def _is_orientation(value: Any) -> bool:
    return isinstance(value, str) and sorted("RLAPSI".find(c) // 2 for c in value) == [0, 1, 2]


def _is_region(value: Any) -> bool:
    if isinstance(value, Mapping):
        margin = value.get("margin")
        return set(value) == {"bundle", "margin"} and isinstance(value["bundle"], str) and _is_number(margin)
    return value in ("all", "body")


def _are_folders(value: Any) -> bool:
    return isinstance(value, (list, tuple)) and all(isinstance(folder, str) and folder for folder in value)


SETTINGS: dict[str, Setting] = {
    "dims": Setting("2 or 3", lambda v: v in (2, 3) and not isinstance(v, bool)),
    "orientation": Setting("three axis codes such as RAS", _is_orientation),
    "spacing": _list("three positive numbers in mm", lambda v: _is_number(v) and v > 0, (3,)),
    "patch_size": _list("one positive whole number per axis", _positive_int, (2, 3)),
    "batch_size": _whole(1, 512),
    "base_channels": _whole(1, 256),
    "max_levels": _whole(1, 10),
    "max_channels": _whole(1, 4096),
    "deep_supervision": _whole(0, 8),
    "norm": _one_of("instance", "batch", "group", "none"),
    "activation": _one_of("leaky_relu", "relu", "gelu", "silu"),
    "upsample": _one_of("transposed", "interpolated"),
    "dropout": _number(0, 1, below=True),
    "downsample": _one_of("strided", "pooled"),
    "padding": _one_of("same", "valid"),
    "dropout_in": _one_of("all", "encoder", "end"),
    "checkpointing": Setting("true or false", lambda v: isinstance(v, bool)),
    "convs_per_level": _numbers("a whole number from 1, or a list from full resolution down"),
    "decoder_convs": _numbers("a whole number from 1, or a list from full resolution down"),
    "expansion": _numbers("a whole number from 1, or a list from full resolution down"),
    "block": _one_of("plain", "residual", "preactivated", "mednext"),
    "decoder_block": _one_of("plain", "residual", "preactivated", "mednext"),
    "skip": _one_of("concat", "attention", "sum", "none"),
    "bottleneck": _one_of("plain", "dilated"),
    "widening": _one_of("entering", "leaving"),
    "network": Setting(
        "a mapping {_target_: NAME.OF.A.CLASS, ...} with the arguments that the plan does not give",
        lambda v: isinstance(v, Mapping) and isinstance(v.get("_target_"), str),
    ),
    "learning_rate": _number(1e-7, 1),
    "weight_decay": _number(0, 1),
    "warmup_steps": _whole(0, 100_000),
    "steps_per_epoch": _whole(1, 10_000),
    "foreground_fraction": _number(0, 1),
    "mirror_axes": _list("axis numbers such as [0]", lambda v: v in (0, 1, 2), (0, 1, 2, 3)),
    "predict_mirror_axes": _list("axis numbers such as [0]", lambda v: v in (0, 1, 2), (0, 1, 2, 3)),
    "rotation": _list("largest angle per axis in radians", lambda v: _is_number(v) and v >= 0, (1, 3)),
    "amp": Setting("true or false", lambda v: isinstance(v, bool)),
    "overlap": _number(0, 1, below=True),
    "region": Setting("all, body, or {bundle: PATH, margin: MM}", _is_region),
    "partners": Setting("a list of folders of other bundles", _are_folders),
    "codes": Setting("a mapping from class names to {type: [VALUE, SCT, MEANING]}", lambda v: isinstance(v, dict)),
    "normalization": _list(
        "one {scheme: zscore} or {scheme: ct, low, high, mean, std} per channel",
        lambda v: isinstance(v, dict) and v.get("scheme") in ("zscore", "ct", "none"),
        range(1, 65),
    ),
}
LEVELS = ("base_channels", "max_levels", "max_channels")
"""What the plan makes ``channels`` and ``strides`` of."""
UNSURVEYED = (
    "deep_supervision", "norm", "activation", "upsample", "dropout", "downsample", "padding", "dropout_in",
    "checkpointing",
)  # fmt: skip
"""Arguments of a network that the plan's own arithmetic covers."""
SURVEYED = (
    "convs_per_level", "decoder_convs", "expansion", "block", "decoder_block", "skip", "bottleneck", "widening"
)  # fmt: skip
"""Arguments that make of a U-Net one of its descendants, which must be built to be measured."""
ARGUMENTS = ("base_channels", *UNSURVEYED, *SURVEYED)
BUDGET = ("memory", "device", "minutes", "epochs")
"""Keys that an overlay may hold beside the settings; they are options of ``medunet plan``."""


def validate(chosen: Mapping[str, Any]) -> dict[str, Any]:
    """Check names and values; lists become tuples.

    Raises:
        PlanError: naming the key, what it got, and what it takes.
    """
    result: dict[str, Any] = {}
    for key, value in chosen.items():
        if key not in SETTINGS:
            near = difflib.get_close_matches(key, SETTINGS, 1)
            hint = f"; did you mean {near[0]}?" if near else f"; known are {', '.join(sorted(SETTINGS))}"
            raise PlanError(f"plan setting '{key}' is not known{hint}")
        if not SETTINGS[key].accepts(value):
            raise PlanError(f"plan setting {key}={value!r} does not fit; give {SETTINGS[key].rule}")
        result[key] = tuple(value) if isinstance(value, list) else value
    if result.get("dims") and result.get("patch_size"):
        require_dims(result["patch_size"], result["dims"])
    return result


def require_dims(patch: Sequence[int], dims: int) -> None:
    """Raise a PlanError unless `patch` has one number per axis."""
    if len(patch) != dims:
        raise PlanError(f"plan setting patch_size={list(patch)} does not fit; a {dims}D plan takes {dims} numbers")


def require_divisible(patch: Sequence[int], divisor: Sequence[int], *, levels: int) -> None:
    """Raise a PlanError that names the nearest valid patch unless `patch` is divisible by `divisor`."""
    if any(n % d for n, d in zip(patch, divisor, strict=True)):
        nearest = [max(d, (2 * n + d) // (2 * d) * d) for n, d in zip(patch, divisor, strict=True)]
        raise PlanError(
            f"plan setting patch_size={list(patch)} does not fit; with {levels} levels each size must be divisible by "
            f"{list(divisor)}, the nearest valid value is {nearest}"
        )


def require_place(chosen: Mapping[str, Any], accepts: frozenset[str], target: str) -> None:
    """Raise a PlanError unless every chosen number of the network is one that the network `target` takes."""
    for key in (*LEVELS, *UNSURVEYED, *SURVEYED):
        if key in chosen and key not in accepts and not (key in LEVELS and "channels" in accepts):
            raise PlanError(f"plan setting {key} has no place in {target}; leave it out")


def require_near(patch: Sequence[int], axes: Sequence[Axis], name: str) -> None:
    """Raise a PlanError that names the nearest valid patch unless `patch` passes the network called `name`."""
    if not all(axis.fits(n) for axis, n in zip(axes, patch, strict=True)):
        raise PlanError(
            f"plan setting patch_size={list(patch)} does not fit; {name} takes multiples of "
            f"{[axis.step for axis in axes]} from {[axis.smallest for axis in axes]} on, the nearest valid value is "
            f"{list(nearest(axes, patch))}"
        )


def require_passes(patch: Sequence[int], axes: Sequence[Axis]) -> None:
    """Raise a PlanError that names the nearest valid patches unless `patch` passes a network without padding."""
    if not all(axis.fits(n) for axis, n in zip(axes, patch, strict=True)):
        below = [axis.below(n) for axis, n in zip(axes, patch, strict=True)]
        above = [axis.above(n) for axis, n in zip(axes, patch, strict=True)]
        valid = f"values are {below} below and {above} above"
        if any(low > n for low, n in zip(below, patch, strict=True)):
            lost, out = [2 * axis.margin for axis in axes], [axis.step for axis in axes]
            valid = f"value is {list(nearest(axes, patch))} ({lost} voxels are lost, at least {out} must come out)"
        raise PlanError(
            f"plan setting patch_size={list(patch)} does not pass a network without padding; the nearest valid {valid}"
        )


def require_local(padding: str, norm: str) -> None:
    """Raise a PlanError unless a network without padding depends on no more than its margin shows."""
    if padding == "valid" and norm in ("instance", "group"):
        raise PlanError(
            f"plan setting norm={norm} does not fit padding=valid: every voxel would depend on the whole patch, and "
            f"what tiles give would not fit together; give norm=batch or norm=none"
        )


def require_schemes(schemes: Sequence[Mapping[str, Any]], channels: Sequence[str]) -> None:
    """Raise a PlanError unless there is a complete normalisation scheme per channel."""
    if len(schemes) != len(channels):
        raise PlanError(
            f"plan setting normalization has {len(schemes)} entries; give one per channel ({', '.join(channels)})"
        )
    for scheme in schemes:
        missing = {"low", "high", "mean", "std"} - set(scheme) if scheme["scheme"] == "ct" else set()
        if missing:
            raise PlanError(f"plan setting normalization: scheme ct lacks {', '.join(sorted(missing))}; give all four")


def require_axes(mirror_axes: Sequence[int], predicted: Sequence[int], rotation: Sequence[float], dims: int) -> None:
    """Raise a PlanError unless axes and angles fit a network of `dims` dimensions, and prediction's axes training's."""
    if any(axis >= dims for axis in mirror_axes):
        raise PlanError(
            f"plan setting mirror_axes={list(mirror_axes)} does not fit; a {dims}D plan has axes 0 to {dims - 1}"
        )
    if strange := set(predicted) - set(mirror_axes):
        raise PlanError(
            f"plan setting predict_mirror_axes={list(predicted)} does not fit; training mirrors along "
            f"{list(mirror_axes) or 'no axis'}, and the network knows no mirror images along {sorted(strange)}"
        )
    want = 1 if dims == 2 else 3
    if len(rotation) != want:
        raise PlanError(f"plan setting rotation={list(rotation)} does not fit; a {dims}D plan takes {want} angle(s)")


def levels_taken(key: str, value: Any, levels: int) -> Any:
    """Of a list from full resolution down as many as there are levels, its last number repeated where it is short."""
    if not isinstance(value, tuple):
        return value
    wanted = levels - 1 if key == "decoder_convs" else levels
    return tuple((value + value[-1:] * wanted)[:wanted])
