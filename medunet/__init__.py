"""medunet: labelled CT/MRI volumes to a segmentation model that can be checked, run and trusted.

The verbs of the command line are functions here, imported when they are first used: ``medunet.plan(...)``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from medunet.verbs import (
        dicom,
        evaluate,
        fingerprint,
        index,
        inspect,
        keygen,
        pack,
        plan,
        predict,
        report,
        train,
        unpack,
        verify,
    )  # fmt: skip

__version__ = "0.1.0"
__all__ = [
    "__version__", "dicom", "evaluate", "fingerprint", "index", "inspect", "keygen", "pack", "plan", "predict",
    "report", "train", "unpack", "verify",
]  # fmt: skip


def __getattr__(name: str) -> Any:
    if name in __all__:
        from medunet import verbs

        return getattr(verbs, name)
    raise AttributeError(f"module 'medunet' has no attribute '{name}'")
