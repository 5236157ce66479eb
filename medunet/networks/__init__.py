"""The U-Net family."""

from torch import nn

from medunet.networks.adapted import UNETR, DynUNet, EfficientUNet, SegResNet, SwinUNETR, VNet
from medunet.networks.ensemble import Ensemble
from medunet.networks.nested import NestedUNet
from medunet.networks.survey import survey
from medunet.networks.unet import UNet
from medunet.planning.sizes import nearest_valid_size

FAMILY: dict[str, type[nn.Module]] = {
    f"medunet.networks.{kind.__name__}": kind
    for kind in (UNet, NestedUNet, VNet, UNETR, SwinUNETR, SegResNet, DynUNet, EfficientUNet)
}
"""Networks that are built from plain values alone, by the name that a config gives them."""

__all__ = [
    "FAMILY", "UNETR", "DynUNet", "EfficientUNet", "Ensemble", "NestedUNet", "SegResNet", "SwinUNETR", "UNet", "VNet",
    "nearest_valid_size", "survey",
]  # fmt: skip
