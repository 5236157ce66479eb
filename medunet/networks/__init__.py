"""The U-Net family. Those that come from MONAI are imported when they are first asked for."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from torch import nn

from medunet.networks.ensemble import Ensemble
from medunet.networks.nested import NestedUNet
from medunet.networks.survey import survey
from medunet.networks.unet import UNet
from medunet.planning.sizes import nearest_valid_size

if TYPE_CHECKING:
    from medunet.networks.adapted import UNETR, DynUNet, EfficientUNet, SegResNet, SwinUNETR, VNet

_OWN: dict[str, type[nn.Module]] = {"UNet": UNet, "NestedUNet": NestedUNet}
_ADAPTED = ("VNet", "UNETR", "SwinUNETR", "SegResNet", "DynUNet", "EfficientUNet")
FAMILY = tuple(f"medunet.networks.{name}" for name in (*_OWN, *_ADAPTED))
"""Networks that are built from plain values alone, by the name that a config gives them."""

__all__ = [
    "FAMILY", "UNETR", "DynUNet", "EfficientUNet", "Ensemble", "NestedUNet", "SegResNet", "SwinUNETR", "UNet", "VNet",
    "member", "nearest_valid_size", "survey",
]  # fmt: skip


def __getattr__(name: str) -> Any:
    if name in _ADAPTED:
        from medunet.networks import adapted

        return getattr(adapted, name)
    raise AttributeError(f"module 'medunet.networks' has no attribute '{name}'")


def member(target: str) -> type[nn.Module]:
    """The class that a name of FAMILY stands for.

    Raises:
        KeyError: it is no name of FAMILY.
    """
    if target not in FAMILY:
        raise KeyError(target)
    name = target.rsplit(".", 1)[1]
    kind: type[nn.Module] = _OWN[name] if name in _OWN else __getattr__(name)
    return kind
