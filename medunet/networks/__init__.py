"""The U-Net family."""

from medunet.networks.sizes import nearest_valid_size
from medunet.networks.unet import UNet

__all__ = ["UNet", "nearest_valid_size"]
