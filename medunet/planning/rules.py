"""Rules of a plan that look at the data alone."""

from __future__ import annotations

import math
from typing import Any

from medunet.data.dicom.codes import first_sided
from medunet.planning import geometry
from medunet.planning.fingerprint import Fingerprint


def normalization(data: Fingerprint) -> tuple[tuple[dict[str, Any], ...], str]:
    """CT: clip to the foreground's percentiles, then its mean and deviation; else z-score per image (nnU-Net).

    Ours clips each other image to its own percentiles 0.5 and 99.5 first: one bright artefact cannot set the scale.
    """
    schemes: list[dict[str, Any]] = []
    for channel in data.channels:
        if channel.name.strip().upper() == "CT":
            values = {"low": channel.low, "high": channel.high, "mean": channel.mean, "std": max(channel.std, 1e-6)}
            schemes.append({"scheme": "ct", **values})
        else:
            schemes.append({"scheme": "zscore"})
    names = ", ".join(f"{c.name}: {s['scheme']}" for c, s in zip(data.channels, schemes, strict=True))
    return tuple(schemes), f"{names} (CT has calibrated units; other images are scaled each by itself)"


def mirror_axes(data: Fingerprint, frame: geometry.Frame) -> tuple[tuple[int, ...], str]:
    """Only axes along which anatomy may be mirrored; nnU-Net mirrors all."""
    sided = first_sided(data.labels)
    if sided is not None:
        return (), f"label '{sided}' tells left from right, a mirrored patch would be wrong"
    if data.pictures:
        return tuple(range(frame.dims)), "pictures have no anatomical axes"
    axis = next(i for i, code in enumerate(frame.orientation) if code in "RL")
    if axis >= frame.dims:
        return (), "the left-right axis is not in the plane"
    return (axis,), "left-right only: bodies are about symmetric along it and along no other axis"


def rotation(patch: tuple[int, ...], frame: geometry.Frame) -> tuple[tuple[float, ...], str]:
    """Largest rotation about each axis in radians: 15 degrees in-plane when a patch is flat (nnU-Net), else 30."""
    full = round(math.radians(30), 6)
    if frame.dims == 2:
        return (round(math.pi, 6) if min(patch) * 1.5 > max(patch) else full,), "in the plane"
    if max(patch) / patch[-1] > 3:
        return (0.0, 0.0, round(math.pi, 6)), "in the plane only: the patch is more than three times flatter than wide"
    return (full,) * 3, "up to 30 degrees about every axis (nnU-Net)"
