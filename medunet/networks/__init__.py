"""The U-Net family."""

from medunet.networks.ensemble import Ensemble
from medunet.networks.unet import UNet
from medunet.planning.sizes import nearest_valid_size

__all__ = ["Ensemble", "UNet", "nearest_valid_size"]
