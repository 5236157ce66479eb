"""Bundles: written from a plan, run through MONAI."""

from medunet.bundle.writer import read_plan, write_bundle

__all__ = ["read_plan", "write_bundle"]
