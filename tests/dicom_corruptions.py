"""Ways in which a DICOM series arrives broken or hostile: each a function that edits a fresh folder of six slices.

`VARIANTS` lists them with the words of the verdict or error, and whether the volume is read all the same. Where one
slice is broken it is the last one, whose loss leaves no gap that would give it away.
"""

from __future__ import annotations

import os
import struct
import zipfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
from pydicom.datadict import dictionary_VR, tag_for_keyword
from pydicom.uid import JPEG2000Lossless, RLELossless

from tests.dicom_phantom import make_series
from tests.test_dicom_reading import as_dicomdir, enhanced

STORED = np.random.default_rng(5).integers(-1000, 3000, (6, 10, 12)).astype(np.int16)
GB4 = 0xFFFFFFF0
LONG = (b"OB", b"OW", b"SQ", b"UN", b"UT", b"UC")
J2K = str(JPEG2000Lossless).encode()
Edit = Callable[[Path], Path | None]


@dataclass(frozen=True)
class Variant:
    """A named edit; it returns the source to read where that is not the folder itself."""

    edit: Edit
    words: str
    reads: bool
    hostile: bool

    @property
    def name(self) -> str:
        """What is broken."""
        return self.edit.__name__


VARIANTS: list[Variant] = []


def variant(words: str, *, reads: bool = False, hostile: bool = False) -> Callable[[Edit], Edit]:
    """List an edit with a pattern of the words that say what is wrong; `hostile` ones are measured for memory too."""

    def add(edit: Edit) -> Edit:
        VARIANTS.append(Variant(edit, words, reads, hostile))
        return edit

    return add


def files(folder: Path) -> list[Path]:
    return sorted(folder.glob("IM*.dcm"))


def last(folder: Path) -> Path:
    return files(folder)[-1]


def cut(file: Path, size: int) -> None:
    file.write_bytes(file.read_bytes()[:size])


def spans(content: bytes) -> dict[int, tuple[int, int]]:
    """Where each element of a flat explicit little endian file starts and ends."""
    place, found = 132, {}
    while place + 8 <= len(content):
        group, element, vr, length = struct.unpack("<HH2sH", content[place : place + 8])
        start, head = place, 8
        if vr in LONG:
            length, head = struct.unpack("<I", content[place + 8 : place + 12])[0], 12
        place += head + length
        found[group << 16 | element] = (start, place)
    return found


def raw(tag: int, vr: bytes, value: bytes, length: int | None = None) -> bytes:
    """An element as it lies in a file, of whatever length it claims."""
    size = len(value) if length is None else length
    head = struct.pack("<HH2s", tag >> 16, tag & 0xFFFF, vr)
    return head + (struct.pack("<HI", 0, size) if vr in LONG else struct.pack("<H", size)) + value


def put(file: Path, keyword: str | int, value: bytes, vr: bytes = b"", length: int | None = None) -> None:
    """Replace an element, or add it in its place, without asking whether that is allowed."""
    tag = keyword if isinstance(keyword, int) else int(tag_for_keyword(keyword) or 0)
    content = file.read_bytes()
    places = spans(content)
    start, end = places.get(tag) or (min((s for t, (s, _) in places.items() if t > tag), default=len(content)),) * 2
    vr = vr or dictionary_VR(tag).encode()
    file.write_bytes(content[:start] + raw(tag, vr, value, length) + content[end:])


def start_of(file: Path, keyword: str) -> int:
    return spans(file.read_bytes())[int(tag_for_keyword(keyword) or 0)][0]


def every(folder: Path, keyword: str | int, value: bytes, vr: bytes = b"") -> None:
    for file in files(folder):
        put(file, keyword, value, vr)


def edit(file: Path, **values: Any) -> None:
    dataset = pydicom.dcmread(file)
    for keyword, value in values.items():
        if value is None:
            delattr(dataset, keyword)
        else:
            setattr(dataset, keyword, value)
    dataset.save_as(file)


# ---- files that end too early, or are something else


@variant("is empty")
def cut_to_nothing(folder: Path) -> None:
    cut(last(folder), 0)


@variant("is cut off after 131 bytes|is not DICOM")
def cut_in_the_preamble(folder: Path) -> None:
    cut(last(folder), 131)


@variant("header was cut off")
def cut_in_the_file_meta(folder: Path) -> None:
    cut(last(folder), 180)


@variant("has no Rows")
def cut_in_the_header(folder: Path) -> None:
    cut(last(folder), start_of(last(folder), "SeriesNumber"))


@variant("has no Rows|has no ImagePositionPatient")
def cut_in_an_element(folder: Path) -> None:
    cut(last(folder), start_of(last(folder), "ImagePositionPatient") + 14)


@variant("has no pixel data")
def cut_before_the_pixels(folder: Path) -> None:
    cut(last(folder), start_of(last(folder), "PixelData"))


@variant("header is broken")
def cut_in_the_head_of_the_pixels(folder: Path) -> None:
    cut(last(folder), start_of(last(folder), "PixelData") + 9)


@variant("pixel data is cut off, 100 of 240 bytes are missing")
def cut_in_the_pixels(folder: Path) -> None:
    cut(last(folder), last(folder).stat().st_size - 100)


@variant("beside its images may be of it and cannot be used: .* is not DICOM")
def text_named_dcm(folder: Path) -> None:
    (folder / "notes.dcm").write_text("0002 This is a text and not an image.\n" * 20)


@variant("is not DICOM", reads=True)
def text_beside(folder: Path) -> None:
    (folder / "README.txt").write_text("hello")


@variant("beside its images may be of it and cannot be used: .* is not DICOM")
def jpeg_named_dcm(folder: Path) -> None:
    from PIL import Image

    Image.new("L", (12, 10)).save(folder / "picture.jpg")
    (folder / "picture.jpg").replace(last(folder))


@variant("beside its images may be of it and cannot be used: .* is not DICOM")
def overwritten_with_zeros(folder: Path) -> None:
    last(folder).write_bytes(bytes(last(folder).stat().st_size))


@variant("header")
def overwritten_with_noise_after_the_preamble(folder: Path) -> None:
    noise = np.random.default_rng(0).bytes(3000)
    last(folder).write_bytes(last(folder).read_bytes()[:132] + noise)


@variant("cannot be read")
def unreadable(folder: Path) -> None:
    last(folder).unlink()
    last(folder).with_name("IM0005.dcm").symlink_to("/proc/self/mem")


# ---- elements of the wrong kind


@variant("header is broken|has no Rows|not numbers")
def vr_garbage(folder: Path) -> None:
    put(last(folder), "PixelSpacing", b"0.8\\0.7 ", b"?!")


@variant("header|not a whole number|has no Rows")
def vr_of_rows_is_text(folder: Path) -> None:
    put(last(folder), "Rows", b"ten ", b"LO")


@variant("PixelSpacing|header is broken")
def ds_holds_text(folder: Path) -> None:
    every(folder, "PixelSpacing", b"abc\\def ")


@variant("Rows|header is broken")
def us_of_three_bytes(folder: Path) -> None:
    put(last(folder), "Rows", b"\x0a\0\0")


@variant("HighBit")
def high_bit_is_text(folder: Path) -> None:
    every(folder, "BitsStored", struct.pack("<H", 12))
    every(folder, "HighBit", b"high", b"LO")


@variant("HighBit is 200")
def high_bit_out_of_range(folder: Path) -> None:
    every(folder, "BitsStored", struct.pack("<H", 12))
    every(folder, "HighBit", struct.pack("<H", 200))


@variant("PixelRepresentation is 7")
def pixel_representation_7(folder: Path) -> None:
    every(folder, "PixelRepresentation", struct.pack("<H", 7))


@variant("ImageType|header is broken")
def image_type_is_a_number(folder: Path) -> None:
    put(last(folder), "ImageType", struct.pack("<H", 1), b"US")


@variant("colour|header is broken|mix")
def photometric_is_a_list(folder: Path) -> None:
    put(last(folder), "PhotometricInterpretation", b"MONOCHROME2\\MONOCHROME1 ")


@variant("colour")
def palette(folder: Path) -> None:
    every(folder, "PhotometricInterpretation", b"PALETTE COLOR ")


@variant("4 frames are described|header is broken")
def sequence_of_numbers(folder: Path) -> None:
    put(last(folder), "PerFrameFunctionalGroupsSequence", struct.pack("<4H", 1, 2, 3, 4), b"US")


@variant("CT a .*b", reads=True)
def control_characters_in_texts(folder: Path) -> None:
    every(folder, "SeriesDescription", b"a\x1b]0;owned\x07\x1b[2J\nb ")


@variant("not numbers|header is broken|not a whole number")
def control_characters_in_numbers(folder: Path) -> None:
    every(folder, "RescaleSlope", b"1\n\x1b[2J\r\n2")


@variant("header|not a whole number")
def character_set_unknown(folder: Path) -> None:
    put(last(folder), 0x00080005, b"ISO_IR 99999\\nonsense", b"CS")
    put(last(folder), "Rows", b"x" * 8, b"PN")


# ---- elements that are missing


@variant("has no PixelSpacing")
def no_pixel_spacing(folder: Path) -> None:
    edit(last(folder), PixelSpacing=None)


@variant("has no ImagePositionPatient")
def no_position(folder: Path) -> None:
    edit(last(folder), ImagePositionPatient=None)


@variant("has no ImageOrientationPatient")
def no_orientation(folder: Path) -> None:
    edit(last(folder), ImageOrientationPatient=None)


@variant("has no Rows")
def no_rows(folder: Path) -> None:
    edit(last(folder), Rows=None)


@variant("without SeriesInstanceUID")
def no_series_uid_in_one(folder: Path) -> None:
    edit(last(folder), SeriesInstanceUID=None)


@variant("CT", reads=True)
def no_series_uid_at_all(folder: Path) -> None:
    for file in files(folder):
        edit(file, SeriesInstanceUID=None)


@variant("has no pixel data")
def no_pixel_data(folder: Path) -> None:
    edit(last(folder), PixelData=None)


@variant("pixel data has 0 bytes, 240 are needed")
def empty_pixel_data(folder: Path) -> None:
    put(last(folder), "PixelData", b"", b"OW")


@variant("has no BitsAllocated")
def no_bits(folder: Path) -> None:
    edit(last(folder), BitsAllocated=None)


# ---- geometry


@variant("PixelSpacing is 0 x 0.7 mm")
def spacing_zero(folder: Path) -> None:
    every(folder, "PixelSpacing", b"0\\0.7 ")


@variant("PixelSpacing is -0.8 x 0.7 mm")
def spacing_negative(folder: Path) -> None:
    every(folder, "PixelSpacing", b"-0.8\\0.7")


@variant("PixelSpacing is 1e-30")
def spacing_tiny(folder: Path) -> None:
    every(folder, "PixelSpacing", b"1e-30\\1e-30 ")


@variant("PixelSpacing is .*not 2 finite numbers")
def spacing_single(folder: Path) -> None:
    every(folder, "PixelSpacing", b"0.8 ")


@variant("not 3 finite numbers")
def position_nan(folder: Path) -> None:
    put(last(folder), "ImagePositionPatient", b"0\\0\\nan ")


@variant("not 3 finite numbers")
def position_inf(folder: Path) -> None:
    put(last(folder), "ImagePositionPatient", b"0\\-inf\\0")


@variant("not 6 finite numbers")
def orientation_nan(folder: Path) -> None:
    every(folder, "ImageOrientationPatient", b"1\\0\\0\\0\\nan\\0")


@variant("vectors of length 2 and 1, not 1")
def orientation_not_unit(folder: Path) -> None:
    every(folder, "ImageOrientationPatient", b"2\\0\\0\\0\\1\\0 ")


@variant("vectors of length 0 and 0, not 1")
def orientation_zero(folder: Path) -> None:
    every(folder, "ImageOrientationPatient", b"0\\0\\0\\0\\0\\0 ")


@variant("not orthogonal")
def orientation_not_orthogonal(folder: Path) -> None:
    every(folder, "ImageOrientationPatient", b"1\\0\\0\\0.6\\0.8\\0 ")


@variant("beyond all measure", hostile=True)
def positions_far_apart(folder: Path) -> None:
    for number, file in enumerate(files(folder)):
        put(file, "ImagePositionPatient", f"0\\0\\{number}e12 ".encode())


@variant("would take", hostile=True)
def positions_that_drift_sideways(folder: Path) -> None:
    for number, file in enumerate(files(folder)):
        put(file, "ImagePositionPatient", f"{number * 4000}\\{number * 4000}\\{number * 2.5} ".encode())


@variant("all 6 images lie at one place")
def positions_at_one_place(folder: Path) -> None:
    for number, file in enumerate(files(folder)):
        put(file, "ImagePositionPatient", f"0\\0\\{number}e-9 ".encode())


@variant("1 duplicate image left out", reads=True)
def identical_slice_twice(folder: Path) -> None:
    (folder / "IM9.dcm").write_bytes(files(folder)[2].read_bytes())


@variant("several images that differ")
def other_pixels_at_one_place(folder: Path) -> None:
    (folder / "IM9.dcm").write_bytes(files(folder)[2].read_bytes())
    edit(folder / "IM9.dcm", PixelData=bytes(240))


@variant("choose one|axial 12 x 9")
def last_slice_of_another_size(folder: Path) -> None:
    edit(last(folder), Rows=9, PixelData=bytes(216))


@variant("refused.*1 slice missing")
def middle_slice_of_another_size(folder: Path) -> None:
    edit(files(folder)[2], Rows=9, PixelData=bytes(216))


@variant("refused.*1 slice missing")
def middle_slice_of_another_series(folder: Path) -> None:
    edit(files(folder)[2], SeriesInstanceUID="1.2.3")


@variant("holds 2 stacks of images; choose one|CT series 4")
def two_series(folder: Path) -> None:
    make_series(folder, STORED)
    for file in make_series(folder / "other", STORED):
        file.replace(folder / f"IM9{file.name}")


@variant("images of 2 patients share one SeriesInstanceUID")
def two_patients(folder: Path) -> None:
    edit(last(folder), PatientID="Somebody Else")


@variant("mix MONOCHROME1 and MONOCHROME2")
def inverted_and_not(folder: Path) -> None:
    edit(last(folder), PhotometricInterpretation="MONOCHROME1")


@variant("more than .* directions|different planes", hostile=True)
def every_slice_another_plane(folder: Path) -> Path:
    count = 600
    stored = np.zeros((count, 2, 2), np.int16)
    path = enhanced(folder / "many", stored, list(range(count)))
    dataset = pydicom.dcmread(path)
    for number, group in enumerate(dataset.PerFrameFunctionalGroupsSequence):
        measures = pydicom.Dataset()
        measures.PixelSpacing = [1 + number * 0.01, 1]
        group.PixelMeasuresSequence = pydicom.Sequence([measures])
    del dataset.SharedFunctionalGroupsSequence[0].PixelMeasuresSequence
    dataset.save_as(path)
    return path


# ---- pixels that are not what the header says


@variant("pixel data has 200 bytes, 240 are needed")
def pixels_too_short(folder: Path) -> None:
    edit(last(folder), PixelData=bytes(200))


@variant("pixel data has 480 bytes, 240 are needed")
def pixels_too_long(folder: Path) -> None:
    edit(last(folder), PixelData=bytes(480))


@variant("CT", reads=True)
def pixels_padded(folder: Path) -> None:
    for file in files(folder):
        put(file, "PixelData", pydicom.dcmread(file).PixelData + b"\0\0", b"OW")


@variant("65535 x 65535 pixels", hostile=True)
def rows_and_columns_65535(folder: Path) -> None:
    every(folder, "Rows", b"\xff\xff")
    every(folder, "Columns", b"\xff\xff")


@variant("65535 x 65535 pixels", hostile=True)
def rows_and_columns_65535_compressed(folder: Path) -> None:
    compressed(folder)
    every(folder, "Rows", b"\xff\xff")
    every(folder, "Columns", b"\xff\xff")


@variant("compressed pixel data has .* bytes for a picture of 128000000", hostile=True)
def rows_and_columns_8000_compressed(folder: Path) -> None:
    compressed(folder)
    every(folder, "Rows", struct.pack("<H", 8000))
    every(folder, "Columns", struct.pack("<H", 8000))


@variant("has floating point pixels")
def floating_point_pixels(folder: Path) -> None:
    for file in files(folder):
        count = pydicom.dcmread(file).pixel_array.size
        for keyword, value in (("BitsAllocated", 32), ("BitsStored", 32), ("HighBit", 31)):
            put(file, keyword, struct.pack("<H", value))
        content = file.read_bytes()
        start, end = spans(content)[0x7FE00010]
        floats = struct.pack(f"<{count}f", *[1.0] * count)
        file.write_bytes(content[:start] + raw(0x7FE00008, b"OF", floats) + content[end:])


@variant("has 16 of 12 bits|12 of 12 bits")
def bits_12(folder: Path) -> None:
    every(folder, "BitsAllocated", struct.pack("<H", 12))


@variant("of 64 bits per pixel")
def bits_64(folder: Path) -> None:
    every(folder, "BitsAllocated", struct.pack("<H", 64))


@variant("of 0 bits per pixel")
def bits_0(folder: Path) -> None:
    every(folder, "BitsAllocated", struct.pack("<H", 0))


@variant("17 of 16 bits per pixel")
def bits_stored_more_than_allocated(folder: Path) -> None:
    every(folder, "BitsStored", struct.pack("<H", 17))


@variant("colour picture")
def samples_3(folder: Path) -> None:
    for file in files(folder):
        edit(file, SamplesPerPixel=3, PhotometricInterpretation="RGB", PlanarConfiguration=0, PixelData=bytes(720))


@variant("1 of 6 images cannot be used: .* is a colour picture")
def samples_3_in_one(folder: Path) -> None:
    edit(last(folder), SamplesPerPixel=3, PhotometricInterpretation="RGB", PixelData=bytes(720))


@variant("RescaleSlope is 0")
def slope_zero(folder: Path) -> None:
    every(folder, "RescaleSlope", b"0 ")


@variant("RescaleSlope|header is broken")
def slope_text(folder: Path) -> None:
    every(folder, "RescaleSlope", b"one ")


@variant("RescaleSlope|beyond")
def slope_huge(folder: Path) -> None:
    every(folder, "RescaleSlope", b"1e300 ")


@variant("RescaleIntercept|beyond")
def intercept_huge(folder: Path) -> None:
    every(folder, "RescaleIntercept", b"1e300 ")


@variant("RescaleIntercept|beyond")
def intercept_wraps(folder: Path) -> None:
    every(folder, "RescaleIntercept", b"3000000000")


@variant("PET without SUV")
def pet_half_life_tiny(folder: Path) -> None:
    from pydicom import Dataset, Sequence

    for file in files(folder):
        item = Dataset()
        item.RadionuclideTotalDose, item.RadionuclideHalfLife = 3e8, "1e-300"
        item.RadiopharmaceuticalStartTime = "090000"
        edit(
            file, Modality="PT", Units="BQML", CorrectedImage=["ATTN", "DECY"], PatientWeight=70,
            DecayCorrection="START", SeriesDate="20240102", SeriesTime="100000", AcquisitionTime="100000",
            AcquisitionDate="20240102", RadiopharmaceuticalInformationSequence=Sequence([item]),
        )  # fmt: skip


# ---- several frames


def frames_claimed(folder: Path, value: bytes) -> Path:
    path = enhanced(folder / "multi", STORED, list(range(6)))
    content, place = path.read_bytes(), path.read_bytes().index(b"\x28\x00\x08\x00IS")
    length = struct.unpack("<H", content[place + 6 : place + 8])[0]
    path.write_bytes(content[:place] + raw(0x00280008, b"IS", value) + content[place + 8 + length :])
    return path


@variant("NumberOfFrames is 0")
def frames_0(folder: Path) -> Path:
    return frames_claimed(folder, b"0 ")


@variant("NumberOfFrames is -1")
def frames_negative(folder: Path) -> Path:
    return frames_claimed(folder, b"-1")


@variant("NumberOfFrames is 2147483647", hostile=True)
def frames_2_31(folder: Path) -> Path:
    return frames_claimed(folder, b"2147483647")


@variant("NumberOfFrames|header is broken")
def frames_text(folder: Path) -> Path:
    return frames_claimed(folder, b"many")


@variant("NumberOfFrames is 9 and 6 frames are described")
def frames_more_than_groups(folder: Path) -> Path:
    return frames_claimed(folder, b"9 ")


@variant("one object of 3 frames without a position")
def frames_in_a_classic_file(folder: Path) -> None:
    edit(last(folder), NumberOfFrames=3, PixelData=bytes(720))


# ---- lengths and nesting that a parser must survive


@variant("has no Rows|header", hostile=True)
def header_element_of_4_gb(folder: Path) -> None:
    put(last(folder), "StudyID", b"", b"UT", GB4)


@variant("without SeriesInstanceUID", hostile=True)
def wanted_header_element_of_4_gb(folder: Path) -> None:
    put(last(folder), "PatientID", b"", b"UN", GB4)


@variant("larger than|header", hostile=True)
def wanted_header_element_in_a_sparse_file(folder: Path) -> None:
    put(last(folder), "PatientID", b"", b"UN", 3 << 30)
    os.truncate(last(folder), 4 << 30)


@variant("pixel data is cut off", hostile=True)
def pixels_of_4_gb(folder: Path) -> None:
    put(last(folder), "PixelData", bytes(240), b"OW", GB4)


@variant("pixel data has 3221225472 bytes, 240 are needed", hostile=True)
def pixels_in_a_sparse_file(folder: Path) -> None:
    put(last(folder), "PixelData", bytes(240), b"OW", 3 << 30)
    os.truncate(last(folder), 4 << 30)


def nested(depth: int) -> bytes:
    inner = b""
    opening = raw(0x00081140, b"SQ", b"", 0xFFFFFFFF) + struct.pack("<HHI", 0xFFFE, 0xE000, 0xFFFFFFFF)
    closing = struct.pack("<HHIHHI", 0xFFFE, 0xE00D, 0, 0xFFFE, 0xE0DD, 0)
    inner = opening * depth + closing * depth
    return inner[12 : len(inner) - 8]


@variant("header is broken|cannot be read", hostile=True)
def nested_ten_thousand_deep(folder: Path) -> None:
    put(last(folder), 0x00081140, nested(10_000), b"SQ", 0xFFFFFFFF)


@variant("CT", reads=True, hostile=True)
def per_frame_groups_nested_deep(folder: Path) -> None:
    inner = b""
    for _ in range(3000):
        item = struct.pack("<HHI", 0xFFFE, 0xE000, len(inner)) + inner
        inner = raw(0x52009230, b"SQ", item)
    content = last(folder).read_bytes()
    start = start_of(last(folder), "PixelData")
    last(folder).write_bytes(content[:start] + inner + content[start:])


@variant("cannot be read|header is broken")
def sequence_without_end(folder: Path) -> None:
    put(last(folder), 0x00081140, struct.pack("<HHI", 0xFFFE, 0xE000, 0xFFFFFFFF), b"SQ", 0xFFFFFFFF)


# ---- transfer syntaxes


def claim(folder: Path, syntax: bytes) -> None:
    every(folder, 0x00020010, syntax + b"\0" * (len(syntax) % 2), b"UI")


def compressed(folder: Path, syntax: str = RLELossless) -> None:
    for file in files(folder):
        dataset = pydicom.dcmread(file)
        dataset.compress(syntax, encoding_plugin="pydicom" if syntax == RLELossless else "")
        dataset.save_as(file)


@variant("CT", reads=True)
def compression_that_is_fine(folder: Path) -> None:
    compressed(folder)


@variant("transfer syntax is 1.2.3.4.5")
def syntax_unknown(folder: Path) -> None:
    claim(folder, b"1.2.3.4.5")


@variant("JPEG 2000 .*not encapsulated")
def syntax_claims_jpeg_2000(folder: Path) -> None:
    claim(folder, J2K)


@variant("Explicit VR Little Endian.* encapsulated")
def syntax_claims_native_over_fragments(folder: Path) -> None:
    compressed(folder)
    claim(folder, b"1.2.840.10008.1.2.1")


@variant("unknown value representation|header|has no pixel data|is not DICOM")
def syntax_claims_big_endian(folder: Path) -> None:
    claim(folder, b"1.2.840.10008.1.2.2")


@variant("compressed pixel data is cut off")
def fragments_cut_off(folder: Path) -> None:
    compressed(folder)
    cut(last(folder), last(folder).stat().st_size - 60)


@variant("compressed pixels? (data|cannot be decoded)|compressed pixel data")
def fragments_missing(folder: Path) -> None:
    compressed(folder)
    content = last(folder).read_bytes()
    place = content.index(b"\xe0\x7f\x10\x00OB") + 12
    ending = struct.pack("<HHIHHI", 0xFFFE, 0xE000, 0, 0xFFFE, 0xE0DD, 0)
    last(folder).write_bytes(content[:place] + ending)


def jpeg_2000(folder: Path) -> bytearray:
    """Larger slices, all compressed; the last one's content and where its stream is."""
    for file in make_series(folder, np.random.default_rng(5).integers(-1000, 3000, (6, 64, 64)).astype(np.int16)):
        dataset = pydicom.dcmread(file)
        dataset.compress(JPEG2000Lossless)
        dataset.save_as(file)
    return bytearray(last(folder).read_bytes())


@variant("cannot be decoded")
def jpeg_2000_garbage(folder: Path) -> None:
    content = jpeg_2000(folder)
    place = content.index(b"\xff\x4f\xff\x51") + 60
    content[place:-8] = np.random.default_rng(1).bytes(len(content) - 8 - place)
    last(folder).write_bytes(content)


@variant("its compressed picture is .60000, 60000., the header says .64, 64.", hostile=True)
def jpeg_2000_claims_60000(folder: Path) -> None:
    content = jpeg_2000(folder)
    struct.pack_into(">II", content, content.index(b"\xff\x4f\xff\x51") + 8, 60000, 60000)
    last(folder).write_bytes(content)


@variant("its compressed picture is .64, 64., the header says .8000, 8000.", hostile=True)
def jpeg_2000_under_a_header_of_8000(folder: Path) -> None:
    jpeg_2000(folder)
    every(folder, "Rows", struct.pack("<H", 8000))
    every(folder, "Columns", struct.pack("<H", 8000))


@variant("cannot be decoded")
def rle_garbage(folder: Path) -> None:
    compressed(folder)
    content = bytearray(last(folder).read_bytes())
    place = content.index(struct.pack("<I", 2), content.index(b"\xe0\x7f\x10\x00OB") + 12)
    content[place:-8] = b"\xff" * (len(content) - 8 - place)
    last(folder).write_bytes(content)


def deflated(file: Path, packed: Callable[[bytes], bytes]) -> None:
    content = file.read_bytes()
    put(file, 0x00020010, b"1.2.840.10008.1.2.1.99", b"UI")
    start = min(s for tag, (s, _) in spans(file.read_bytes()).items() if tag >> 16 > 2)
    old = min(s for tag, (s, _) in spans(content).items() if tag >> 16 > 2)
    file.write_bytes(file.read_bytes()[:start] + packed(content[old:]))


def deflate(content: bytes) -> bytes:
    packer = zlib.compressobj(9, zlib.DEFLATED, -zlib.MAX_WBITS)
    return packer.compress(content) + packer.flush()


@variant("CT", reads=True)
def deflated_that_is_fine(folder: Path) -> None:
    for file in files(folder):
        deflated(file, deflate)


@variant("deflated|inflat")
def deflated_cut_off(folder: Path) -> None:
    deflated(last(folder), lambda content: deflate(content)[:-40])


@variant("deflated|inflat|header is broken")
def deflated_broken(folder: Path) -> None:
    deflated(last(folder), lambda content: b"\xff" * 300)


def zeros(size: int) -> bytes:
    """Deflated zeros, made without packing them all: whole blocks that stand for themselves."""
    packer = zlib.compressobj(9, zlib.DEFLATED, -zlib.MAX_WBITS)
    packer.compress(b"\0" * 65536)
    packer.flush(zlib.Z_FULL_FLUSH)
    block = packer.compress(bytes(1 << 24)) + packer.flush(zlib.Z_FULL_FLUSH)
    return block * (size >> 24) + packer.flush()


def opened(content: bytes) -> bytes:
    """Deflated bytes to which more may be added."""
    packer = zlib.compressobj(0, zlib.DEFLATED, -zlib.MAX_WBITS)
    return packer.compress(content) + packer.flush(zlib.Z_FULL_FLUSH)


@variant("grow|header", hostile=True)
def deflated_bomb(folder: Path) -> None:
    deflated(last(folder), lambda content: opened(content) + zeros(2 << 30))


@variant("grow|header", hostile=True)
def deflated_bomb_in_an_element(folder: Path) -> None:
    put(last(folder), "PatientID", b"", b"UN", 1 << 30)
    content = last(folder).read_bytes()
    head = content[: content.index(b"\x10\x00\x20\x00UN") + 12]
    put(last(folder), "PatientID", b"x ", b"LO")
    deflated(last(folder), lambda _: opened(head[int(start_of_data(head)) :]) + zeros(2 << 30))


def start_of_data(content: bytes) -> int:
    return min(s for tag, (s, _) in spans(content).items() if tag >> 16 > 2)


# ---- containers


def packed_folder(folder: Path) -> Path:
    archive = folder / "series.zip"
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as file:
        for path in files(folder):
            file.write(path, path.name)
            path.unlink()
    return archive


def add_member(archive: Path, name: str, payload: bytes, size: int, method: int = 8, flags: int = 0) -> None:
    """A member whose directory entry claims what it likes."""
    with zipfile.ZipFile(archive, "a") as file:
        file.writestr(zipfile.ZipInfo(name), payload)
    content = bytearray(archive.read_bytes())
    entry = content.rindex(b"PK\x01\x02")
    offset = struct.unpack("<I", content[entry + 42 : entry + 46])[0]
    for place in (entry + 8, offset + 6):
        struct.pack_into("<HH", content, place, flags, method)
    for place in (entry + 24, offset + 22):
        struct.pack_into("<I", content, place, size)
    archive.write_bytes(content)


@variant("CT", reads=True)
def zip_that_is_fine(folder: Path) -> Path:
    return packed_folder(folder)


@variant("claims to grow to 2147483648 bytes; not unpacked", hostile=True)
def zip_bomb(folder: Path) -> Path:
    archive = packed_folder(folder)
    add_member(archive, "IM9999.dcm", zeros(2 << 30), 2 << 30)
    return archive


@variant("not DICOM|cannot be read|grow", hostile=True)
def zip_bomb_that_lies(folder: Path) -> Path:
    archive = packed_folder(folder)
    add_member(archive, "IM9999.dcm", zeros(2 << 30), 5000)
    return archive


@variant("header|larger|cannot be read|grow", hostile=True)
def zip_bomb_in_an_element(folder: Path) -> Path:
    put(last(folder), "PatientID", b"", b"UN", 1 << 30)
    content = last(folder).read_bytes()
    head = content[: content.index(b"\x10\x00\x20\x00UN") + 12]
    put(last(folder), "PatientID", b"x ", b"LO")
    archive = packed_folder(folder)
    payload = opened(head) + zeros(1 << 30) + np.random.default_rng(0).bytes(200_000)
    add_member(archive, "IM9999.dcm", payload, 1 << 30)
    return archive


@variant("is encrypted")
def zip_encrypted(folder: Path) -> Path:
    archive = packed_folder(folder)
    add_member(archive, "IM9999.dcm", b"x" * 500, 488, flags=1)
    return archive


@variant("method|compression|packed with")
def zip_method_unknown(folder: Path) -> Path:
    archive = packed_folder(folder)
    add_member(archive, "IM9999.dcm", b"x" * 500, 500, method=77)
    return archive


@variant("packed with")
def zip_bzip2(folder: Path) -> Path:
    archive = packed_folder(folder)
    add_member(archive, "IM9999.dcm", b"x" * 500, 500, method=12)
    return archive


@variant("is a zip that is cut off or broken")
def zip_cut_off(folder: Path) -> Path:
    archive = packed_folder(folder)
    cut(archive, archive.stat().st_size // 2)
    return archive


@variant("cannot be read|broken")
def zip_member_broken(folder: Path) -> Path:
    archive = packed_folder(folder)
    content = bytearray(archive.read_bytes())
    content[200:600] = bytes(400)
    archive.write_bytes(content)
    return archive


@variant("not a zip that can be opened|cut off or broken")
def zip_directory_broken(folder: Path) -> Path:
    archive = packed_folder(folder)
    content = bytearray(archive.read_bytes())
    place = content.index(b"PK\x01\x02")
    content[place + 46 : place + 52] = b"\xff\xfe\xfd\xff\xfe\xfd"
    struct.pack_into("<H", content, place + 8, 0x800)
    archive.write_bytes(content)
    return archive


@variant("CT", reads=True)
def zip_member_outside(folder: Path) -> Path:
    archive = packed_folder(folder)
    with zipfile.ZipFile(archive) as source, zipfile.ZipFile(folder / "out.zip", "w") as target:
        for name in source.namelist():
            target.writestr(f"../../x/{name}", source.read(name))
    return folder / "out.zip"


@variant("missing|outside")
def dicomdir_of_absent_files(folder: Path) -> Path:
    directory = as_dicomdir(folder)
    for path in directory.parent.rglob("*"):
        if path.is_file() and path != directory:
            path.unlink()
    return directory


def dicomdir_with(folder: Path, *parts: str) -> Path:
    directory = as_dicomdir(folder)
    dataset = pydicom.dcmread(directory)
    for record in dataset.DirectoryRecordSequence:
        if "ReferencedFileID" in record:
            record.ReferencedFileID = list(parts)
    dataset.save_as(directory)
    return directory


@variant("outside", reads=True)
def dicomdir_with_paths_outside(folder: Path) -> Path:
    return dicomdir_with(folder, "..", "..", "etc", "passwd")


@variant("outside", reads=True)
def dicomdir_with_absolute_paths(folder: Path) -> Path:
    return dicomdir_with(folder, "/etc/passwd")


@variant("missing|cannot", reads=True)
def dicomdir_with_endless_names(folder: Path) -> Path:
    return dicomdir_with(folder, "A" * 4000, "B\x01C")


@variant("DICOMDIR", reads=True)
def dicomdir_with_broken_records(folder: Path) -> Path:
    directory = as_dicomdir(folder)
    content = directory.read_bytes()
    place = content.index(b"\x04\x00\x20\x12SQ")
    directory.write_bytes(content[:place] + raw(0x00041220, b"US", struct.pack("<3H", 1, 2, 3)))
    return directory


@variant("CT", reads=True)
def links_in_circles(folder: Path) -> None:
    (folder / "again").symlink_to(folder)
    (folder / "up").symlink_to(folder.parent)
    (folder / "IM0008.dcm").symlink_to(folder / "IM0009.dcm")
    (folder / "IM0009.dcm").symlink_to(folder / "IM0008.dcm")


@variant("not a file or folder|is not a file")
def pipe_as_source(folder: Path) -> Path:
    os.mkfifo(folder / "IM0008.dcm")
    return folder / "IM0008.dcm"


@variant("CT", reads=True)
def pipe_in_the_folder(folder: Path) -> None:
    os.mkfifo(folder / "IM0008.dcm")


@variant("CT|not DICOM", reads=True)
def names_that_are_no_text(folder: Path) -> None:
    (folder / os.fsdecode(b"notes\xff\xfe\n\x1b[2J.txt")).write_text("x")
