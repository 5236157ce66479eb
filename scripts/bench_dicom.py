#!/usr/bin/env python
"""Read a CT series of 200 slices of 512 x 512 with medunet and with SimpleITK's ImageSeriesReader, in one run.

    python scripts/bench_dicom.py [--slices 200] [--rounds 7]

The series is generated (uncompressed, int16, headers of about 80 elements). Both readers start from the folder and end
with the voxels in memory; medunet also judges the geometry. They take turns, and the file cache is warm for both. The
second figure of SimpleITK is its reading alone, with the file names already sorted.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

import numpy as np
import SimpleITK as sitk  # noqa: N813

from medunet.data.dicom import scan
from medunet.data.dicom.volumes import read_series
from tests.dicom_phantom import make_series

TEXTS = (
    "InstitutionName", "StationName", "StudyDescription", "SeriesDescription", "ProtocolName", "DeviceSerialNumber",
    "SoftwareVersions", "ConvolutionKernel", "FilterType", "BodyPartExamined", "ContrastBolusAgent", "ImageComments",
    "PatientAge", "OperatorsName", "PerformedProcedureStepDescription", "RequestedProcedureDescription",
)  # fmt: skip
NUMBERS = (
    "KVP", "DataCollectionDiameter", "ReconstructionDiameter", "DistanceSourceToDetector", "DistanceSourceToPatient",
    "GantryDetectorTilt", "TableHeight", "SliceLocation", "FocalSpots", "WindowCenter", "WindowWidth", "PatientWeight",
    "PatientSize", "SingleCollimationWidth", "TotalCollimationWidth", "TableSpeed", "SpiralPitchFactor",
)  # fmt: skip


def main() -> None:
    """Generate, time, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--slices", type=int, default=200)
    parser.add_argument("--rounds", type=int, default=7)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        generate(Path(folder), options.slices)
        readers: dict[str, Callable[[str], object]] = {
            "medunet": with_medunet, "SimpleITK": with_simpleitk, "SimpleITK, names given": with_names(folder),
        }  # fmt: skip
        times: dict[str, list[float]] = {name: [] for name in readers}
        for _ in range(options.rounds + 1):
            for name, read in readers.items():
                start = time.perf_counter()
                read(folder)
                times[name].append(time.perf_counter() - start)
        same = np.array_equal(with_medunet(folder), sitk.GetArrayFromImage(with_simpleitk(folder)).transpose(2, 1, 0))
    medians = {name: statistics.median(values[1:]) for name, values in times.items()}
    print(f"{options.slices} slices of 512 x 512, median of {options.rounds}; voxels equal: {same}")
    for name, value in medians.items():
        print(f"{name:<24}{value:8.3f} s   ratio of medunet to it {medians['medunet'] / value:.2f}")


def generate(folder: Path, slices: int) -> None:
    """A CT series with as much in its headers as scanners write."""
    header: dict[str, object] = {name: "as a scanner writes it" for name in TEXTS if name != "PatientAge"}
    header |= {"PatientAge": "063Y", **dict.fromkeys(NUMBERS, 12.5)}
    array = np.random.default_rng(0).integers(-1000, 2000, (slices, 512, 512)).astype(np.int16)
    make_series(folder, array, (1.0, 0.8, 0.8), RescaleIntercept=-1024, **header)  # type: ignore[arg-type]


def with_medunet(folder: str) -> np.ndarray:
    """Headers, verdict, voxels; nothing is kept from the round before."""
    scan._scanned.cache_clear()
    return read_series(folder).array[0]


def with_simpleitk(folder: str) -> sitk.Image:
    """GDCM sorts the files, then reads them."""
    reader = sitk.ImageSeriesReader()
    reader.SetFileNames(reader.GetGDCMSeriesFileNames(folder))
    return reader.Execute()


def with_names(folder: str) -> Callable[[str], sitk.Image]:
    """Reading alone."""
    names = sitk.ImageSeriesReader().GetGDCMSeriesFileNames(folder)

    def read(_: str) -> sitk.Image:
        reader = sitk.ImageSeriesReader()
        reader.SetFileNames(names)
        return reader.Execute()

    return read


if __name__ == "__main__":
    main()
