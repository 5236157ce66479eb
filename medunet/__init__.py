"""medunet: labelled CT/MRI volumes to a segmentation model that can be checked, run and trusted."""

__version__ = "0.1.0"
