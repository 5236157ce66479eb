"""From the words of a command line to values; nothing else."""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import medunet
from medunet.errors import MedunetError, PlanError

if TYPE_CHECKING:
    from medunet.planning import Budget

_LEAST = 10**6  # bytes without a unit; below, a unit was forgotten
_UNITS = {"": 1, "kb": 10**3, "mb": 10**6, "gb": 10**9, "kib": 2**10, "mib": 2**20, "gib": 2**30}


def one_of(option: str, value: str, allowed: Sequence[str]) -> None:
    """Raise unless `value` is allowed."""
    if value not in allowed:
        raise MedunetError(f"{option} {value}: is not available; give {' or '.join(allowed)}")


def parse_bytes(text: str) -> int:
    """``8GB`` -> 8_000_000_000; also MB, GiB, MiB.

    >>> parse_bytes("1.5GiB")
    1610612736
    """
    match = re.fullmatch(r"\s*([0-9]+(?:\.[0-9]+)?)\s*([kKmMgG]?[iI]?[bB]?)\s*", text)
    if not match or match[2].lower() not in _UNITS or (not match[2] and float(match[1]) < _LEAST):
        raise MedunetError(f"--memory {text}: is not an amount of memory; give for example 8GB or 500MB")
    return int(float(match[1]) * _UNITS[match[2].lower()])


def parse_settings(pairs: Sequence[str]) -> dict[str, Any]:
    """``["a=1", "b=[1,2]"]`` -> values, read as YAML."""
    import yaml

    values: dict[str, Any] = {}
    for pair in pairs:
        key, equals, text = pair.partition("=")
        if not equals or not key.strip():
            raise MedunetError(f"--set {pair}: is not KEY=VALUE; give for example --set patch_size=[96,96,64]")
        try:
            values[key.strip()] = yaml.load(text, Loader=_loader())
        except yaml.YAMLError as error:
            raise MedunetError(f"--set {pair}: the value is not valid YAML ({error}); quote it") from error
    return values


@cache
def _loader() -> Any:
    """YAML's safe loader, which reads ``1e-3`` as the number that it is in YAML 1.2; in YAML 1.1 it is text."""
    import yaml

    class Loader(yaml.SafeLoader):
        """With the exponents of YAML 1.2 (section 10.3.2) beside those of 1.1."""

    floats = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)[eE][-+]?[0-9]+$")
    Loader.add_implicit_resolver("tag:yaml.org,2002:float", floats, list("-+.0123456789"))
    return Loader


def fold(text: str) -> int | str:
    """A fold number or ``all``."""
    if text == "all":
        return text
    if text not in ("0", "1", "2", "3", "4"):
        raise MedunetError(f"--fold {text}: is not a fold; give 0 to 4, or all")
    return int(text)


def labels(text: str | None) -> dict[str, int | list[int]] | None:
    """``liver=1,whole=1+2`` -> {"liver": 1, "whole": [1, 2]}."""
    if text is None:
        return None
    result: dict[str, int | list[int]] = {}
    for pair in text.split(","):
        name, _, value = pair.partition("=")
        if not name.strip() or not re.fullmatch(r"\s*-?\d+\s*(\+\s*\d+\s*)*", value):
            raise MedunetError(
                f"--labels {text}: '{pair}' is not NAME=ID; give for example liver=1,tumour=2, or whole=1+2"
            )
        values = [int(part) for part in value.split("+")]
        result[name.strip()] = values if len(values) > 1 else values[0]
    return result


def plan_options(
    dims: int | None,
    device: str | None,
    memory: str | None,
    duration: tuple[float | None, int | None],
    overlays: Sequence[str],
    pairs: Sequence[str],
) -> tuple[Budget, dict[str, Any]]:
    """The budget and the chosen settings; ``--set`` wins over options, options over overlays."""
    from medunet.planning import Budget
    from medunet.planning.record import DEFAULT_MEMORY
    from medunet.planning.settings import BUDGET

    _one_duration(duration)
    chosen: dict[str, Any] = {}
    for overlay in overlays:
        chosen.update(read_overlay(overlay, "plan"))
    if dims is not None:
        chosen["dims"] = dims
    limits = {key: chosen.pop(key) for key in BUDGET if key in chosen}
    chosen.update(parse_settings(pairs))
    minutes, epochs = duration if duration != (None, None) else (limits.get("minutes"), limits.get("epochs"))
    amount = parse_bytes(memory or str(limits["memory"])) if memory or "memory" in limits else DEFAULT_MEMORY
    name = device or str(limits.get("device", "auto"))
    return Budget(amount, resolve_device(name), minutes, epochs), chosen


def read_overlay(name: str, kind: str) -> dict[str, Any]:
    """Settings of a ``plan`` or a ``run``: a YAML file, or the name of a shipped one such as ``small``."""
    import yaml

    path = Path(name)
    if not path.is_file():
        path = _shipped(name, kind)
    try:
        content = yaml.load(path.read_text(encoding="utf-8"), Loader=_loader())
    except yaml.YAMLError as error:
        raise PlanError(f"{path}: is not valid YAML ({' '.join(str(error).split())}); mend it") from error
    if not isinstance(content, dict):
        raise PlanError(f"{path}: is not a list of KEY: VALUE lines; write one setting per line")
    return content


def _shipped(name: str, kind: str) -> Path:
    """An overlay of ``configs/plan`` or ``configs/run``: inside an installed package, or beside it in a checkout."""
    package = Path(medunet.__file__).parent
    folders = [place / "configs" / kind for place in (package, package.parent)]
    known = {path.stem: path for folder in folders for path in sorted(folder.glob("*.yaml"))}
    if Path(name).stem not in known or Path(name).name != name:
        raise PlanError(f"{name}: overlay is missing; give a YAML file or one of {', '.join(known)}")
    return known[Path(name).stem]


def train_options(
    duration: tuple[float | None, int | None], resume: bool, device: str, overlays: Sequence[str], pairs: Sequence[str]
) -> dict[str, Any]:
    """MONAI overrides for a training run; ``--set`` wins over options, options over overlays."""
    _one_duration(duration)
    minutes, epochs = duration
    chosen: dict[str, Any] = {"resume": resume, "more": resume and duration != (None, None)}
    if minutes is not None:
        chosen["minutes"] = minutes
    if epochs is not None:
        chosen.update({"minutes": None, "train::trainer::max_epochs": epochs})
    overrides: dict[str, Any] = {}
    shipped = (read_overlay(overlay, "run") for overlay in overlays)
    for layer in (*shipped, chosen, _device(device), parse_settings(pairs)):
        for key, value in layer.items():
            overrides.pop(key, None)  # given later, it acts later: optimizer::lr behind an overlay's whole optimizer
            overrides[key] = value
    return overrides


def predict_options(device: str, backend: str, overlap: float | None, mirror: bool) -> dict[str, Any]:
    """MONAI overrides for a prediction run."""
    overrides = _device(device)
    if backend != "auto":
        overrides["inferer::backend"] = backend
    if overlap is not None:
        overrides["inferer::overlap"] = overlap
    if mirror:
        overrides["inferer::mirror_axes"] = "@_meta_::plan::mirror_axes"
    return overrides


def save_options(output_format: str, labelmap: bool, instances: str | None = None) -> dict[str, Any]:
    """MONAI overrides for what a result is written as."""
    if labelmap and output_format != "dicom-seg":
        raise MedunetError(f"--labelmap: {output_format} has no such kind; give --format dicom-seg with it")
    overrides: dict[str, Any] = {} if output_format == "nifti" else {"save::output_format": output_format}
    if instances is not None:
        overrides["save::instances"] = instances
    return {**overrides, "save::labelmap": True} if labelmap else overrides


def resolve_device(name: str) -> str:
    """``auto`` -> cuda where there is one, else cpu; the plan itself is arithmetic and asks no hardware."""
    if name == "auto":
        from medunet.inference.device import pick_device

        return pick_device(name).type
    if name not in ("cpu", "cuda"):
        raise MedunetError(f"--device {name}: is not known; give auto, cpu or cuda")
    return name


def _device(name: str) -> dict[str, Any]:
    return {} if name == "auto" else {"device::name": name}


def _one_duration(duration: tuple[float | None, int | None]) -> None:
    if None not in duration:
        raise MedunetError("--minutes and --epochs are both given; give one of them")
