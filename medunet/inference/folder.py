"""The dataset of ``inference.yaml``: the volumes of a folder, looked up when they are first needed."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import Any

from medunet.inference.inputs import find_cases


class FolderInputs(Sequence[dict[str, Any]]):
    """``{"image": path or paths, "output": name}`` per case of `folder`; empty while no folder is given.

    What lies in `output_dir` below it, or was left there by earlier calls, are results and no cases.
    """

    def __init__(self, folder: str | None, channels: Sequence[str], output_dir: str | None = None) -> None:
        self.folder, self.channels, self.output_dir = folder, tuple(channels), output_dir

    @cached_property
    def _items(self) -> list[dict[str, Any]]:
        if not self.folder:
            return []
        cases = find_cases([self.folder], self.channels, output_dir=self.output_dir)
        return [{"image": c.images[0] if len(c.images) == 1 else list(c.images), "output": c.output} for c in cases]

    def __len__(self) -> int:
        return len(self._items)

    def __getitem__(self, index: Any) -> Any:
        return self._items[index]
