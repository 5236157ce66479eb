"""Where the network runs."""

from __future__ import annotations

import torch

from medunet.errors import ResourceError


def pick_device(name: str = "auto") -> torch.device:
    """``auto`` takes CUDA where there is one, else the CPU; any other name is taken as it is.

    Raises:
        ResourceError: the device is not on this machine.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    kind = name.split(":")[0]
    present = {
        "cpu": True,
        "cuda": torch.cuda.is_available(),
        "mps": torch.backends.mps.is_available(),
    }
    if not present.get(kind):
        there = ["auto", *(device for device, here in present.items() if here)]
        raise ResourceError(f"device '{name}' is not available on this machine; give {' or '.join(there)}")
    return torch.device(name)
