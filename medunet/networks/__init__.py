"""The U-Net family."""

from medunet.networks.unet import UNet, nearest_valid_size

__all__ = ["UNet", "nearest_valid_size"]
