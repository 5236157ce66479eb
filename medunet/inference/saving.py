"""Write a label map on the input's own grid."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from pathlib import Path
from typing import Any

from monai.transforms import MapTransform

from medunet.data.volume import stem_of, write_label
from medunet.inference.restoring import native_grid


class SaveLabeld(MapTransform):
    """Write `pred` (1, X, Y, Z) as NIfTI below `output_dir`, whole or not at all.

    The name is the item's ``output`` where there is one, else the image's name.
    """

    def __init__(self, output_dir: str, keys: Sequence[str] = ("pred",), image_key: str = "image") -> None:
        super().__init__(keys)
        self.output_dir, self.image_key = Path(output_dir), image_key

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        item = dict(data)
        image = item[self.image_key]
        first = source_of(image).split(";")[0]
        name = item.get("output") or f"{stem_of(first)}.nii.gz"
        for key in self.keys:
            write_label(self.output_dir / name, item[key][0].numpy(), native_grid(image), like=first)
        return item


def source_of(image: Any) -> str:
    """The file that a loaded tensor came from; several channels are joined by ``;``."""
    return str(image.meta["filename_or_obj"])
