"""How a case goes through a MONAI evaluator without being copied."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


class OnHost:
    """``prepare_batch`` that leaves the volumes where they are: the inferer moves windows, not volumes."""

    def __call__(self, batchdata: Mapping[str, Any], *args: Any, **kwargs: Any) -> tuple[Any, Any]:
        return batchdata["image"], batchdata.get("label")
