"""Write a label map on the input's own grid, in the format that is asked for."""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from monai.transforms import MapTransform
from torch import Tensor

from medunet.data.atomic import atomic_path, reserve, write_json
from medunet.data.dicom.source import Source, is_dicom
from medunet.data.grid import Grid
from medunet.data.instances import numbered
from medunet.data.pictures import SUFFIXES as SUFFIXES_OF_PICTURES
from medunet.data.pictures import write_picture
from medunet.data.reader import STATED, geometry_of, sources_of
from medunet.data.resampling import Box
from medunet.data.transforms import grid_of
from medunet.data.volume import read_header, stem_of, write_label
from medunet.errors import InputError
from medunet.inference.restoring import Sink
from medunet.inference.weights import MODEL, model_digest
from medunet.types import IntArray, Shape

SUFFIXES = {
    "nifti": ".nii.gz", "dicom-seg": "_seg.dcm", "rtstruct": "_rtstruct.dcm", "tiff": ".tif", "png": ".png"
}  # fmt: skip
"""What is added to a case's name, by output format."""
PICTURES = ("tiff", "png")
"""Formats for results of pictures."""


class SaveLabeld(MapTransform):
    """Write `pred` (1, X, Y, Z) below `output_dir`, whole or not at all; name: the item's ``output``, else the image's.

    A result of DICOM images has its geometry verdict beside it (``NAME_geometry.json``). ``dicom-seg`` and ``rtstruct``
    are written on the images' own planes, also where reading had to resample them; ``dicom-seg`` with a report of
    volumes (``NAME_report.dcm``). Warnings are added to the item as ``warnings``.

    Args:
        labels: stored value per class, background first.
        codes: a plan's codes per class (category, type, laterality).
        output_format: ``nifti``; ``dicom-seg`` or ``rtstruct`` for DICOM; ``tiff`` or ``png`` for pictures.
        labelmap: write ``dicom-seg`` as Label Map Segmentation instead of BINARY.
        model: name of the model, for the object's algorithm identification.
        bundle_root: its digest, of configs and weights, identifies the algorithm.
        weights: what predicts, below `bundle_root` or absolute.
        regions: the values of each region, where labels may overlap; of those a DICOM object has what is visible.
        instances: a class whose connected parts (faces) are numbered from 1 and written instead of the classes; voxels
            of a class ``border`` go to the nearest part within two voxels. Null: classes are written.
    """

    def __init__(
        self,
        output_dir: str,
        labels: Mapping[str, int] | None = None,
        codes: Mapping[str, Any] | None = None,
        output_format: str = "nifti",
        labelmap: bool = False,
        model: str = "medunet",
        version: str = "",
        bundle_root: str = ".",
        weights: str = MODEL,
        regions: Mapping[str, Sequence[int]] | None = None,
        instances: str | None = None,
    ) -> None:
        super().__init__(("pred",))
        if output_format not in SUFFIXES:
            raise InputError(f"output_format '{output_format}' is not known; give {', '.join(SUFFIXES)}")
        self.output_dir, self.output_format, self.labelmap = Path(output_dir), output_format, labelmap
        self.labels, self.codes = dict(labels or {}), dict(codes or {})
        self.covered = covered(regions or {})
        self.model, self.version, self.bundle_root, self.weights = model, version, Path(bundle_root), Path(weights)
        self.instances = instances
        if instances is not None and (instances not in self.labels or output_format in ("dicom-seg", "rtstruct")):
            raise InputError(
                f"instances '{instances}' cannot be numbered in {output_format}; give one of the classes "
                f"{', '.join(self.labels)}, and nifti, tiff or png"
            )

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        item = dict(data)
        image = item["image"]
        sources = sources_of(image)
        first = sources[0]
        name = str(item.get("output") or stem_of(Source.parse(first).path)).removesuffix(".nii.gz")
        grid, labels = grid_of(image), item["pred"][0].numpy()
        if self.instances is not None:
            labels = numbered(labels, self.labels[self.instances], self.labels.get("border"))
        target = self.output_dir / output_name(name, self.output_format)
        require_elsewhere(target, sources)
        if self.output_format == "nifti":
            write_label(target, labels, grid, like=first)
        elif self.output_format in PICTURES:
            x, y, _ = grid.spacing
            write_picture(target, labels, (x, y) if image.meta.get(STATED, True) else None)
        else:
            item["warnings"] = self._write_dicom(target, labels, grid, first)
        geometry = geometry_of(image)
        if geometry is not None:
            write_json(self.output_dir / f"{name}_geometry.json", geometry)
        return item

    def _write_dicom(self, target: Path, labels: IntArray, grid: Grid, source: str) -> list[str]:
        """Write the object; what should be known of it."""
        from medunet.data.dicom.objects import Algorithm
        from medunet.data.dicom.results import segments_of, write_result

        segments, warnings = segments_of(self.labels, self.codes)
        algorithm = Algorithm(self.model, self.version, self._digest)
        series = require_writable(source, self.output_format)
        write_result(target, labels, grid, series, segments, algorithm, self.output_format, labelmap=self.labelmap)
        return warnings + [
            f"region '{name}' is written without what lies in {', '.join(above)} too; write nifti, which has both"
            for name, above in self.covered.items()
        ]

    @cached_property
    def _digest(self) -> str:
        return model_digest(self.bundle_root, {}, self.weights)


def require_writable(source: str, output_format: str) -> Any:
    """The DICOM series that a result can be written for, None for a picture; asked before a case is computed.

    Raises:
        InputError: the source is not DICOM, or not a picture.
        GeometryError: its images lack what the format needs.
    """
    if output_format in PICTURES:
        _require_picture(source, output_format)
        return None
    if not is_dicom(source):
        raise InputError(f"{source}: is not DICOM, so {output_format} has nothing to refer to; write nifti")
    from medunet.data.dicom import results
    from medunet.data.dicom.volumes import find_series

    series = find_series(source)
    results.require_writable(series, output_format)
    return series


def require_elsewhere(output: Path, images: Sequence[str]) -> None:
    """Refuse to write a result over its image.

    Raises:
        InputError: it would be.
    """
    for path in (Source.parse(image).path for image in images):
        if path.resolve() == output.resolve() or (output.exists() and path.exists() and path.samefile(output)):
            raise InputError(f"{path}: the result would be written over it; give another output folder with -o")


def covered(regions: Mapping[str, Sequence[int]]) -> dict[str, list[str]]:
    """The regions that a single-valued label map does not show whole, each with those that lie over it.

    >>> covered({"whole": [1, 2], "core": [2], "vessel": [3]})
    {'whole': ['core']}
    """
    names = list(regions)
    above = {n: [o for o in names[p + 1 :] if set(regions[n]) & set(regions[o])] for p, n in enumerate(names)}
    return {name: others for name, others in above.items() if others}


def _require_picture(source: str, output_format: str) -> None:
    if not Source.parse(source).path.name.lower().endswith(SUFFIXES_OF_PICTURES):
        raise InputError(
            f"{source}: is not a picture; {output_format} would not keep where its voxels lie; write nifti"
        )
    pages = read_header(source).grid.shape[2]
    if pages > 1 and output_format == "png":
        raise InputError(f"{source}: has {pages} pages and a PNG has one; write tiff")


def output_name(name: str, output_format: str) -> str:
    """The file of a case, below the output folder.

    >>> output_name("a/scan.nii.gz", "dicom-seg")
    'a/scan_seg.dcm'
    """
    return name.removesuffix(".nii.gz") + SUFFIXES[output_format]


@contextmanager
def probability_file(path: Path, shape: Shape) -> Iterator[Sink]:
    """A ``.npy`` file of float16 (classes, x, y, z), filled box by box; read it with ``np.load(path, mmap_mode="r")``.

    Raises:
        ResourceError: the disk is full.
    """
    with atomic_path(path) as temporary:
        content = np.lib.format.open_memmap(temporary, mode="w+", dtype=np.float16, shape=shape)
        reserve(temporary)

        def write(number: int, box: Box, values: Tensor) -> None:
            (x0, x1), (y0, y1), (z0, z1) = box
            content[number, x0:x1, y0:y1, z0:z1] = values.cpu().numpy()

        yield write
        content.flush()
