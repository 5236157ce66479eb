"""A classic CT or MR series made from an array: what a scanner would have stored, small enough for a test."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pydicom
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, MRImageStorage, generate_uid

AXIAL = (1.0, 0.0, 0.0, 0.0, 1.0, 0.0)
CORONAL = (1.0, 0.0, 0.0, 0.0, 0.0, -1.0)
SAGITTAL = (0.0, 1.0, 0.0, 0.0, 0.0, -1.0)


def make_series(
    folder: Path,
    array: np.ndarray,
    spacing: tuple[float, float, float] = (2.5, 0.8, 0.7),
    orientation: tuple[float, ...] = AXIAL,
    origin: tuple[float, float, float] = (-20.0, -30.0, 100.0),
    patient_position: str = "HFS",
    modality: str = "CT",
    tilt: float = 0.0,
    positions: np.ndarray | None = None,
    **attributes: Any,
) -> list[Path]:
    """Write `array` (planes, rows, columns; int16) as one file for each plane, in plane order, and return the files.

    `spacing` is (between planes along the normal, between rows, between columns) in mm; `orientation` the six LPS
    cosines of Image Orientation (Patient); `origin` the LPS position of the first pixel; `tilt` a gantry tilt in
    degrees, which shifts each plane along its columns as scanners do; `positions` (n,) mm along the normal instead of
    regular ones. `attributes` replace header attributes; None removes one. Explicit VR little endian.
    """
    folder.mkdir(parents=True, exist_ok=True)
    along_row, along_column = np.array(orientation[:3]), np.array(orientation[3:])
    normal = np.cross(along_row, along_column)
    depths = np.arange(len(array)) * spacing[0] if positions is None else np.asarray(positions)
    shift = np.tan(np.deg2rad(tilt)) * along_column
    common = _common(array.shape, spacing, orientation, patient_position, modality)
    if tilt:
        common.GantryDetectorTilt = tilt
    files = []
    for index, (plane, depth) in enumerate(zip(array, depths, strict=True)):
        dataset = Dataset()
        dataset.update(common)
        dataset.SOPInstanceUID = generate_uid()
        dataset.InstanceNumber = index + 1
        dataset.ImagePositionPatient = [f"{v:.6f}" for v in np.array(origin) + depth * (normal + shift)]
        dataset.PixelData = np.ascontiguousarray(plane, dtype="<i2").tobytes()
        for keyword, value in attributes.items():
            if value is None:
                dataset.pop(keyword, None)
            else:
                setattr(dataset, keyword, value)
        files.append(_save(folder / f"IM{index:04d}.dcm", dataset))
    return files


def _common(
    shape: tuple[int, ...], spacing: tuple[float, ...], orientation: tuple[float, ...], position: str, modality: str
) -> Dataset:
    dataset = Dataset()
    dataset.SOPClassUID = CTImageStorage if modality == "CT" else MRImageStorage
    dataset.Modality = modality
    dataset.ImageType = ["ORIGINAL", "PRIMARY", "AXIAL"] if modality == "CT" else ["ORIGINAL", "PRIMARY", "M", "ND"]
    for keyword in ("StudyInstanceUID", "SeriesInstanceUID", "FrameOfReferenceUID"):
        setattr(dataset, keyword, generate_uid())
    dataset.PatientName, dataset.PatientID, dataset.PatientBirthDate, dataset.PatientSex = (
        "Test^A",
        "T1",
        "19600102",
        "F",
    )
    dataset.StudyDate, dataset.StudyTime, dataset.StudyID, dataset.AccessionNumber = "20240102", "101112", "7", "A7"
    dataset.SeriesNumber, dataset.AcquisitionNumber, dataset.ReferringPhysicianName = 4, 1, ""
    dataset.Manufacturer, dataset.ManufacturerModelName, dataset.PatientPosition = "Phantom", "Array", position
    dataset.PositionReferenceIndicator, dataset.Laterality, dataset.SamplesPerPixel = "", "", 1
    dataset.Rows, dataset.Columns = shape[1:]
    dataset.PixelSpacing = [f"{spacing[1]:.6f}", f"{spacing[2]:.6f}"]
    dataset.SliceThickness = f"{spacing[0]:.6f}"
    dataset.ImageOrientationPatient = [f"{v:.10f}" for v in orientation]
    dataset.PhotometricInterpretation = "MONOCHROME2"
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit, dataset.PixelRepresentation = 16, 16, 15, 1
    if modality == "CT":
        dataset.RescaleIntercept, dataset.RescaleSlope, dataset.RescaleType, dataset.KVP = 0, 1, "HU", 120
    else:
        dataset.ScanningSequence, dataset.SequenceVariant, dataset.ScanOptions = "GR", "NONE", ""
        dataset.MRAcquisitionType, dataset.EchoTime, dataset.EchoTrainLength, dataset.RepetitionTime = "3D", 3, 1, 8
    return dataset


def _save(path: Path, dataset: Dataset) -> Path:
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset.file_meta.MediaStorageSOPClassUID = dataset.SOPClassUID
    dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID
    pydicom.dcmwrite(path, dataset, enforce_file_format=True)
    return path
