"""What was drawn for one patch: plain numbers, so that an augmentation can be written down and done again."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

from medunet.errors import InputError


@dataclass(frozen=True)
class Elastic:
    """A smooth random deformation: a cubic B-spline over control points with Gaussian displacements."""

    seed: int
    distance: float
    """Millimetres between control points, the same along every axis."""
    sigma: float
    """Standard deviation of their displacements in millimetres, before they are limited."""


@dataclass(frozen=True)
class Noise:
    """Gaussian noise in units of the normalised image, the same deviation in every channel."""

    seed: int
    std: float


@dataclass(frozen=True)
class Draw:
    """One patch's augmentation. An empty tuple, None, or a zoom of 1 means: left alone.

    `patch` and `extent` are voxels per axis: what comes out, and the region to read around the same centre. Their
    difference is even, so the region starts ``(extent - patch) / 2`` voxels before the patch.
    Tuples of intensities have one entry per channel.
    """

    patch: tuple[int, ...]
    extent: tuple[int, ...]
    rotation: tuple[float, ...] = ()
    """Radians about each axis (one angle in 2D), in millimetre space."""
    zoom: float = 1.0
    """Over 1: things look larger."""
    elastic: Elastic | None = None
    mirror: tuple[int, ...] = ()
    """Spatial axes that are turned round."""
    noise: Noise | None = None
    blur: tuple[tuple[float, ...], ...] = ()
    """Sigma per axis in voxels; an empty tuple for a channel left alone."""
    brightness: tuple[float, ...] = ()
    contrast: tuple[float, ...] = ()
    low_resolution: tuple[float, ...] = ()
    """Voxels kept per axis, as a fraction; 1 for a channel left alone."""
    full_resolution: tuple[int, ...] = ()
    """Spatial axes that keep all of them."""
    gamma_inverted: tuple[float, ...] = ()
    gamma: tuple[float, ...] = ()

    @property
    def warped(self) -> bool:
        """Whether voxels are interpolated; else the patch is cut and mirrored as it is."""
        return bool(self.rotation) or self.zoom != 1.0 or self.elastic is not None

    def as_json(self) -> dict[str, Any]:
        """Lists, numbers and strings."""
        return {key: _plain(value) for key, value in asdict(self).items()}

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> Draw:
        """The inverse of `as_json`.

        Raises:
            InputError: a field is missing or unknown.
        """
        try:
            values = {key: _frozen(value) for key, value in content.items()}
            if values.get("elastic") is not None:
                values["elastic"] = Elastic(**values["elastic"])
            if values.get("noise") is not None:
                values["noise"] = Noise(**values["noise"])
            return cls(**values)
        except TypeError as error:
            known = ", ".join(field.name for field in fields(cls))
            raise InputError(f"the draw cannot be read: {error}; its fields are {known}") from error

    def caption(self) -> str:
        """What was done, in a line for people."""
        words = []
        if self.rotation:
            words.append("rotated " + "/".join(f"{math.degrees(a):.0f}°" for a in self.rotation))
        if self.zoom != 1.0:
            words.append(f"zoom {self.zoom:.2f}")
        if self.elastic:
            words.append(f"elastic {self.elastic.sigma:.1f} mm")
        if self.mirror:
            words.append("mirrored " + "".join("xyz"[axis] for axis in self.mirror))
        if self.noise:
            words.append(f"noise {self.noise.std:.2f}")
        if any(self.blur):
            words.append("blur " + _each("/".join(f"{s:.1f}" for s in sigmas) or "–" for sigmas in self.blur))
        if any(factor != 1 for factor in self.low_resolution):
            words.append("low resolution " + _each(f"{f:.2f}" if f != 1 else "–" for f in self.low_resolution))
        for name in ("brightness", "contrast", "gamma_inverted", "gamma"):
            if getattr(self, name):
                label = name.replace("gamma_inverted", "inverted gamma")
                words.append(f"{label} " + _each(f"{value:.2f}" for value in getattr(self, name)))
        return ", ".join(words) or "unchanged"


def _each(values: Any) -> str:
    return " | ".join(values)


def _plain(value: Any) -> Any:
    return [_plain(v) for v in value] if isinstance(value, tuple) else value


def _frozen(value: Any) -> Any:
    return tuple(_frozen(v) for v in value) if isinstance(value, list) else value
