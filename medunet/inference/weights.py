"""Weights from a plain state dict, loaded when a run starts and never by unpickling code."""

from __future__ import annotations

import hashlib
import json
import pickle
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from medunet.errors import BundleError, NetworkError

MODEL = "models/model.pt"
COMPONENTS = "models/components.json"
"""Where a bundle keeps rules for components; they hold for the weights of the digest that they name."""

_METADATA = "configs/metadata.json"
_NO_MATTER = ("output_dir", "device", "device::name", "save::output_format")


class Weights:
    """Load ``BUNDLE/models/model.pt`` into a network when the engine starts (or on `load`).

    Raises:
        BundleError: (at load) the file is missing, broken, or made for another network.
    """

    def __init__(self, network: nn.Module, bundle_root: str, path: str = MODEL) -> None:
        self.network, self.path = network, Path(bundle_root) / path

    def attach(self, engine: Any) -> None:
        """Register with an Ignite engine."""
        from ignite.engine import Events

        engine.add_event_handler(Events.STARTED, lambda _: self.load())

    def load(self) -> None:
        """Load the weights now."""
        load_weights(self.network, self.path)


def load_weights(network: nn.Module, path: Path) -> None:
    """Load a plain state dict with ``weights_only=True``; keys and shapes must match exactly.

    Raises:
        BundleError: the file is missing, broken, or made for another network.
    """
    state = read_state(path)
    try:
        network.load_state_dict(state)
    except (RuntimeError, NetworkError) as error:
        first = str(error).splitlines()[1].strip() if "\n" in str(error) else str(error)
        raise BundleError(f"{path}: weights do not fit the plan's network ({first}); plan and train again") from error


def read_state(path: Path) -> dict[str, Any]:
    """The content of a ``.pt`` file, tensors and plain values only.

    Raises:
        BundleError: the file is missing, truncated, or would run code.
    """
    if not path.is_file():
        raise BundleError(f"{path}: is missing; train the bundle first (medunet train BUNDLE)")
    try:
        state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    except (RuntimeError, EOFError, pickle.UnpicklingError, OSError) as error:
        reason = str(error).splitlines()[0][:120]
        raise BundleError(f"{path}: cannot be loaded as plain weights ({reason}); get the file again") from error
    return state


def weights_digest(bundle: Path) -> str:
    """sha256 of a bundle's ``models/model.pt``."""
    return file_digest(bundle / MODEL)


def file_digest(path: Path) -> str:
    """sha256 of a file, read a part at a time."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def plan_digest(bundle: Path, keys: Sequence[str] = ()) -> str:
    """sha256 of a bundle's plan, or of some of its `keys`, whatever else ``metadata.json`` says.

    The order within a key counts: it is that of the network's outputs in labels and regions.
    """
    plan = json.loads((bundle / _METADATA).read_bytes())["plan"]
    plan = {key: plan.get(key) for key in keys} if keys else plan
    return hashlib.sha256(json.dumps(plan).encode()).hexdigest()


def model_digest(bundle: Path, overrides: Mapping[str, Any], weights: Path | None = None) -> str:
    """What labels depend on beside their input: weights, configs and overrides (not where and as what they go).

    A coarser bundle that tells the region and partners, with coarser ones of their own, count too.
    `weights`: the file, where it is not the bundle's ``models/model.pt``.
    """
    digest = hashlib.sha256()
    for name in (weights or MODEL, "configs/inference.yaml", _METADATA):
        digest.update((bundle / name).read_bytes())
    digest.update((bundle / COMPONENTS).read_bytes() if (bundle / COMPONENTS).is_file() else b"")
    plan = json.loads((bundle / _METADATA).read_bytes())["plan"]
    coarser = _coarser(bundle, overrides.get("inferer::region", plan.get("region")))
    partners = [bundle / str(partner) for partner in overrides.get("inferer::partners", plan.get("partners", ()))]
    theirs = [folder for partner in partners for folder in _coarser(partner, _plan_of(partner).get("region"))]
    for path in (folder / name for folder in (*coarser, *partners, *theirs) for name in (MODEL, _METADATA)):
        digest.update(path.read_bytes() if path.is_file() else b"")
    relevant = {key: value for key, value in overrides.items() if key not in _NO_MATTER}
    digest.update(json.dumps(relevant, sort_keys=True, default=str).encode())
    return digest.hexdigest()


def _coarser(bundle: Path, region: Any) -> list[Path]:
    """The bundle that tells the region of another one, if any does."""
    return [bundle / str(region["bundle"])] if isinstance(region, Mapping) and "bundle" in region else []


def _plan_of(bundle: Path) -> Mapping[str, Any]:
    """Another bundle's plan; nothing where it cannot be read, which is told when it is asked for an answer."""
    try:
        plan: Any = json.loads((bundle / _METADATA).read_bytes())["plan"]
    except (OSError, ValueError, KeyError, TypeError):
        return {}
    return plan if isinstance(plan, Mapping) else {}
