"""The elements of a header that matter here, each converted once: a scan asks for them again and again."""

from __future__ import annotations

from typing import Any

from pydicom.tag import BaseTag, Tag

from medunet.data.dicom.location import one_line

_KEYWORDS = (
    "AcquisitionDate", "AcquisitionDateTime", "AcquisitionNumber", "AcquisitionTime", "BitsAllocated", "BitsStored",
    "Columns", "ConcatenationUID", "ConvolutionKernel", "CorrectedImage", "DecayCorrection", "DiffusionBValue",
    "DirectoryRecordSequence", "EchoNumbers", "EchoTime", "FrameOfReferenceUID", "HighBit", "ImageOrientationPatient",
    "ImagePositionPatient", "ImageType", "InConcatenationNumber", "InConcatenationTotalNumber", "InversionTime",
    "LossyImageCompression", "Modality", "ModalityLUTSequence", "NumberOfFrames", "PatientID", "PatientWeight",
    "PerFrameFunctionalGroupsSequence", "PhotometricInterpretation", "PixelRepresentation", "PixelSpacing",
    "RadiopharmaceuticalInformationSequence", "RescaleIntercept", "RescaleSlope", "RescaleType", "Rows",
    "SamplesPerPixel", "SeriesDate", "SeriesDescription", "SeriesInstanceUID", "SeriesNumber", "SeriesTime",
    "SharedFunctionalGroupsSequence", "SliceThickness", "SOPClassUID", "SOPInstanceUID", "StackID", "StudyInstanceUID",
    "SUVType", "TemporalPositionIdentifier", "TimezoneOffsetFromUTC", "TriggerTime", "Units",
)  # fmt: skip
_MOST_TEXT = 128  # characters: DICOM allows 64 (PS3.5 section 6.2)
PHILIPS_SUV, PHILIPS_ACTIVITY, GE_SCAN_TIME = Tag(0x7053, 0x1000), Tag(0x7053, 0x1009), Tag(0x0009, 0x100D)
_TAG_OF: dict[str, BaseTag] = {keyword: Tag(keyword) for keyword in _KEYWORDS}
TAGS = [*_TAG_OF.values(), Tag(0x7053, 0x0010), PHILIPS_SUV, PHILIPS_ACTIVITY, Tag(0x0009, 0x0010), GE_SCAN_TIME]
"""What is read of a header; private creators included, which tell pydicom the meaning of private elements."""


class Header:
    """A pydicom data set of the elements in `TAGS`; a value that cannot be converted raises as pydicom does."""

    __slots__ = ("_dataset", "_tags", "_values", "file_meta")

    def __init__(self, dataset: Any) -> None:
        self._dataset, self.file_meta = dataset, dataset.file_meta
        self._tags = frozenset(dataset.keys())
        self._values: dict[str, Any] = {}

    def __contains__(self, keyword: str) -> bool:
        return _TAG_OF.get(keyword) in self._tags

    def get(self, keyword: str, default: Any = None) -> Any:
        """The value of an element, or `default` where there is none."""
        if keyword not in self._values:
            if keyword not in self:
                return default
            self._values[keyword] = self._dataset[_TAG_OF[keyword]].value
        return self._values[keyword]

    def private(self, tag: BaseTag) -> Any:
        """The value of a private element, or None."""
        return self._dataset[tag].value if tag in self._tags else None

    def __getattr__(self, keyword: str) -> Any:
        if keyword.startswith("_") or keyword not in self:
            raise AttributeError(keyword)
        return self.get(keyword)


def text(header: Any, keyword: str) -> str:
    """A value as a message may hold it; empty where there is none, or none that pydicom can convert."""
    try:
        return one_line(header.get(keyword) or "", _MOST_TEXT)
    except Exception:
        return ""
