"""Pictures as they are found: written by Pillow, tifffile and SimpleITK, and by nobody who means well."""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import SimpleITK as sitk  # noqa: N813
import tifffile
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from medunet import verbs
from medunet.data import spill, tiff
from medunet.data.pictures import luma, read_header, read_picture, write_picture
from medunet.data.tiff import Tiff
from medunet.data.volume import read_case, read_label, read_volume
from medunet.data.volume import read_header as read_volume_header
from medunet.errors import DatasetError, GeometryError, InputError

Data = Callable[[str], Path]
DRAW = np.random.default_rng(7)
RGB = DRAW.integers(0, 255, (37, 53, 3), dtype=np.uint8)
GREY = RGB[..., 0]


def rows_first(path: Path) -> np.ndarray:
    """(rows, columns) or (rows, columns, components) as other libraries give it."""
    array = read_volume(path).array[..., 0].transpose(2, 1, 0)
    return array[..., 0] if array.shape[-1] == 1 else array


@pytest.mark.parametrize("suffix", [".png", ".bmp", ".tif", ".jpg"])
@pytest.mark.parametrize("pixels", [GREY, RGB], ids=["grey", "rgb"])
def test_pillow_reads_the_same(tmp_path: Path, suffix: str, pixels: np.ndarray) -> None:
    path = tmp_path / f"p{suffix}"
    Image.fromarray(pixels).save(path)
    assert np.array_equal(rows_first(path), np.asarray(Image.open(path)))


@pytest.mark.parametrize("compression", ["raw", "tiff_lzw", "tiff_adobe_deflate", "packbits", "zstd"])
@pytest.mark.parametrize("pixels", [GREY, RGB, GREY.astype(np.uint16) * 257], ids=["grey", "rgb", "deep"])
def test_compressed_tiff_of_pillow(tmp_path: Path, compression: str, pixels: np.ndarray) -> None:
    path = tmp_path / "p.tif"
    Image.fromarray(pixels).save(path, compression=compression)
    assert np.array_equal(rows_first(path), pixels)


@pytest.mark.parametrize("subsampling", [1, 2])
def test_jpeg_in_tiff_is_what_libtiff_makes_of_it(tmp_path: Path, subsampling: int) -> None:
    path, buffer = tmp_path / "p.tif", io.BytesIO()
    smooth = np.repeat(np.repeat(RGB[:4, :6], 16, 0), 16, 1)
    Image.fromarray(smooth).save(buffer, format="JPEG", quality=90, subsampling=subsampling - 1)
    rows, columns = smooth.shape[:2]
    tags = {256: columns, 257: rows, 258: (8, 8, 8), 259: 7, 262: 6, 277: 3, 278: rows, 279: len(buffer.getvalue())}
    path.write_bytes(tiff._wrapped(buffer.getvalue(), {**tags, 530: (subsampling, 1)}))
    assert tifffile.TiffFile(path).pages[0].subsampling == (subsampling, 1)
    assert np.abs(rows_first(path).astype(int) - np.asarray(Image.open(path)).astype(int)).max() <= 2


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    kind=st.sampled_from(["uint8", "int16", "uint16", "int32", "uint32", "float32"]),
    shape=st.tuples(st.integers(1, 70), st.integers(1, 70)),
    bands=st.sampled_from([1, 2, 3, 5]),
    tile=st.sampled_from([None, (16, 16), (32, 48)]),
    compression=st.sampled_from([None, "zlib", "lzma"]),
    predictor=st.booleans(),
    planar=st.booleans(),
    big=st.booleans(),
)
def test_tiff_of_tifffile_comes_back(
    tmp_path: Path, kind: str, shape: tuple[int, int], bands: int, tile: Any, compression: Any, predictor: bool,
    planar: bool, big: bool,
) -> None:  # fmt: skip
    values = np.random.default_rng(bands).integers(0, 200, (*shape, bands)).astype(kind)
    config = ("separate" if planar else "contig") if bands > 1 else None
    stored = values[..., 0] if bands == 1 else np.moveaxis(values, -1, 0) if planar else values
    predicted = predictor and compression in ("zlib", "lzma") and kind != "float32"
    tifffile.imwrite(
        tmp_path / "p.tif", stored, tile=tile, planarconfig=config, photometric="minisblack", rowsperstrip=7,
        compression=compression,
        predictor=None if not predicted else 2, byteorder=">" if big else "<",
    )  # fmt: skip
    volume = read_volume(tmp_path / "p.tif")
    assert np.array_equal(volume.array[..., 0], values.transpose(2, 1, 0))
    header = read_header(tmp_path / "p.tif")
    assert (header.shape, header.components) == (volume.grid.shape, bands)


def test_lzw_with_a_predictor_of_simpleitk(tmp_path: Path) -> None:
    path = tmp_path / "p.tif"
    writer = sitk.ImageFileWriter()
    writer.SetFileName(str(path))
    writer.UseCompressionOn()
    writer.SetCompressor("LZW")
    writer.Execute(sitk.GetImageFromArray(RGB, isVector=True))
    assert int(tifffile.TiffFile(path).pages[0].compression) == 5
    assert np.array_equal(rows_first(path), RGB)


def test_bits_palettes_and_white_as_zero(tmp_path: Path) -> None:
    Image.fromarray(GREY > 99).save(tmp_path / "bits.png")
    Image.fromarray(GREY > 99).save(tmp_path / "bits.tif", compression="group4")
    for name in ("bits.png", "bits.tif"):
        assert np.array_equal(rows_first(tmp_path / name), np.where(GREY > 99, 255, 0))
    indices = Image.fromarray(GREY % 3)
    indices.putpalette([0, 0, 0, 200, 10, 10, 10, 10, 200])
    for suffix in (".png", ".tif"):
        indices.save(tmp_path / f"palette{suffix}")
        assert rows_first(tmp_path / f"palette{suffix}").shape == (*GREY.shape, 3)
        assert np.array_equal(read_label(tmp_path / f"palette{suffix}").array[0, ..., 0].T, GREY % 3)
    tifffile.imwrite(tmp_path / "white.tif", GREY, photometric="miniswhite")
    assert np.array_equal(rows_first(tmp_path / "white.tif"), 255 - GREY)


def test_deep_colour_of_png_is_kept(tmp_path: Path) -> None:
    deep = RGB.astype(np.uint16) * 257
    sitk.WriteImage(sitk.GetImageFromArray(deep, isVector=True), str(tmp_path / "p.png"))
    assert np.array_equal(rows_first(tmp_path / "p.png"), deep)


def test_opaque_alpha_of_tiff_is_dropped_varying_alpha_refused_and_bands_kept(tmp_path: Path) -> None:
    opaque = np.dstack((RGB, np.full_like(GREY, 255)))
    tifffile.imwrite(tmp_path / "a.tif", opaque, photometric="rgb")
    assert np.array_equal(rows_first(tmp_path / "a.tif"), RGB)
    tifffile.imwrite(tmp_path / "v.tif", np.dstack((RGB, GREY)), photometric="rgb")
    with pytest.raises(InputError, match=r"v\.tif: its transparency \(alpha\) varies, .* save it without alpha"):
        read_volume(tmp_path / "v.tif")
    tifffile.imwrite(tmp_path / "b.tif", opaque, photometric="minisblack", planarconfig="contig")
    assert read_volume(tmp_path / "b.tif").array.shape[0] == 4


def test_pages_are_slices_and_pages_of_other_sizes_are_refused(tmp_path: Path) -> None:
    stack = DRAW.integers(0, 255, (5, 20, 30), dtype=np.uint8)
    tifffile.imwrite(tmp_path / "s.tif", stack, photometric="minisblack", compression="zlib")
    assert np.array_equal(read_volume(tmp_path / "s.tif").array[0], stack.transpose(2, 1, 0))
    tifffile.imwrite(tmp_path / "j.tif", stack, imagej=True, metadata={"axes": "ZYX"})
    assert np.array_equal(read_volume(tmp_path / "j.tif").array[0], stack.transpose(2, 1, 0))
    tifffile.imwrite(tmp_path / "c.tif", stack, imagej=True, metadata={"axes": "CYX"})
    assert np.array_equal(read_volume(tmp_path / "c.tif").array[..., 0], stack.transpose(0, 2, 1))
    assert read_volume_header(tmp_path / "c.tif").channels == 5
    for name, options in (("h.tif", {"imagej": True}), ("h.ome.tif", {"ome": True})):
        hyper = stack[:4, None].reshape(2, 2, 20, 30)
        tifffile.imwrite(tmp_path / name, hyper, metadata={"axes": "ZCYX"}, photometric="minisblack", **options)
        with pytest.raises(
            InputError, match="is a hyperstack, its pages are 2 along Z, 2 along C; save a file for each"
        ):
            read_volume(tmp_path / name)
    with tifffile.TiffWriter(tmp_path / "m.tif") as file:
        file.write(stack[0])
        file.write(stack[0, ::2], subfiletype=1)  # a reduced version says so
    assert read_volume(tmp_path / "m.tif").grid.shape == (30, 20, 1)
    with tifffile.TiffWriter(tmp_path / "m.tif") as file:
        file.write(stack[0])
        file.write(stack[0, ::2])
    with pytest.raises(InputError, match=r"m\.tif: has pages of different kinds \(30 x 10 and 30 x 20 pixels\)"):
        read_volume(tmp_path / "m.tif")


@pytest.mark.parametrize(
    ("options", "spacing"),
    [
        ({"resolution": (4000, 2000), "resolutionunit": "CENTIMETER"}, (0.0025, 0.005)),
        ({"resolution": (254, 254), "resolutionunit": "INCH"}, (0.1, 0.1)),
        ({"resolution": (254, 254), "resolutionunit": "NONE"}, None),
        ({"resolution": (4, 4), "imagej": True, "metadata": {"unit": "um"}}, (0.00025, 0.00025)),
        ({}, None),
    ],
)
def test_the_size_of_pixels_is_what_a_tiff_states(tmp_path: Path, options: Any, spacing: Any) -> None:
    tifffile.imwrite(tmp_path / "p.tif", GREY, **options)
    volume = read_volume(tmp_path / "p.tif")
    assert volume.stated == (spacing is not None)
    assert volume.grid.spacing == pytest.approx((*(spacing or (1, 1)), 1))
    assert read_volume_header(tmp_path / "p.tif").grid == volume.grid


def test_the_size_of_pixels_is_what_a_png_states(tmp_path: Path) -> None:
    Image.fromarray(GREY).save(tmp_path / "p.png", dpi=(254, 127))
    assert read_volume(tmp_path / "p.png").grid.spacing == pytest.approx((0.1, 0.2, 1), rel=1e-4)
    Image.fromarray(GREY).save(tmp_path / "p.png")
    assert not read_volume(tmp_path / "p.png").stated


def test_luma_is_that_of_pillow_and_of_the_formula(tmp_path: Path) -> None:
    Image.fromarray(RGB).save(tmp_path / "p.png")
    source = f"{tmp_path / 'p.png'}#channels=grey"
    assert np.array_equal(rows_first(Path(source)), np.asarray(Image.open(tmp_path / "p.png").convert("L")))
    assert read_volume_header(source).channels == 1
    deep = luma(RGB.astype(np.float32))[..., 0]
    assert np.abs(deep - RGB @ np.array([0.299, 0.587, 0.114])).max() < 0.01
    tifffile.imwrite(tmp_path / "p.tif", RGB, photometric="rgb")
    assert np.array_equal(rows_first(Path(f"{tmp_path / 'p.tif'}#channels=grey")), luma(RGB)[..., 0])


@pytest.mark.parametrize("source", ["p.png#channels=red", "p.png#roi=GTV", "v.nii#channels=grey"])
def test_what_cannot_be_asked_of_a_file(tmp_path: Path, source: str) -> None:
    Image.fromarray(RGB).save(tmp_path / "p.png")
    (tmp_path / "v.nii").touch()
    with pytest.raises(InputError, match="cannot be asked of it"):
        read_volume(tmp_path / source)


def test_a_jpeg_whose_exif_states_no_size_states_none(tmp_path: Path) -> None:
    """Pillow makes 72 dots per inch of it."""
    exif = Image.Exif()
    exif[305] = "a camera"
    Image.fromarray(GREY).save(tmp_path / "p.jpg", exif=exif)
    assert not read_volume(tmp_path / "p.jpg").stated
    exif[282], exif[283], exif[296] = 254.0, 254.0, 2
    Image.fromarray(GREY).save(tmp_path / "p.jpg", exif=exif)
    assert read_volume(tmp_path / "p.jpg").grid.spacing == pytest.approx((0.1, 0.1, 1))


def test_channels_that_do_not_both_state_a_size_lie_on_each_other(tmp_path: Path) -> None:
    Image.fromarray(RGB[..., 0]).save(tmp_path / "red.png", dpi=(96, 96))
    for name, pixels in (("green", RGB[..., 1]), ("small", RGB[::2, :, 1])):
        Image.fromarray(pixels).save(tmp_path / f"{name}.png")
    for names in (("red", "green"), ("green", "red"), ("green", "green")):
        array = read_case([tmp_path / f"{name}.png" for name in names]).array
        expected = [RGB[..., ("red", "green").index(name)].T for name in names]
        assert np.array_equal(array[..., 0], expected)
    with pytest.raises(
        GeometryError, match=r"small\.png: has \(53, 19, 1\) pixels and .*red\.png \(53, 37, 1\), and not both"
    ):
        read_case([tmp_path / "red.png", tmp_path / "small.png"])


def test_floating_point_differences_of_tiff(tmp_path: Path) -> None:
    """Predictor 3 (technical note 3), as libtiff writes it."""
    floats = DRAW.normal(size=(37, 53)).astype(np.float32)
    Image.fromarray(floats).save(tmp_path / "p.tif", compression="tiff_adobe_deflate", tiffinfo={317: 3})
    assert int(tifffile.TiffFile(tmp_path / "p.tif").pages[0].predictor) == 3
    assert np.array_equal(rows_first(tmp_path / "p.tif"), floats)


def png_claiming(columns: int, rows: int) -> bytes:
    def chunk(name: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))

    header = struct.pack(">IIBBBBB", columns, rows, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0" * 50)) + chunk(b"IEND", b"")
    )


def peak_of(act: Callable[[], object]) -> int:
    import tracemalloc

    tracemalloc.start()
    with pytest.raises(InputError) as caught:
        act()
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert "\n" not in str(caught.value)
    return peak


def test_claims_of_huge_sizes_are_refused_without_memory(tmp_path: Path) -> None:
    (tmp_path / "p.png").write_bytes(png_claiming(200_000, 200_000))
    assert peak_of(lambda: read_volume(tmp_path / "p.png")) < 5_000_000
    tifffile.imwrite(tmp_path / "p.tif", GREY, compression="zlib", rowsperstrip=37)
    with tifffile.TiffFile(tmp_path / "p.tif", mode="r+") as file:
        for tag in ("ImageWidth", "ImageLength", "RowsPerStrip"):
            file.pages[0].tags[tag].overwrite(60_000)
    assert peak_of(lambda: read_volume(tmp_path / "p.tif")) < 5_000_000
    for bytes_that_it_claims in (2**31, 0):
        with tifffile.TiffFile(tmp_path / "p.tif", mode="r+") as file:
            file.pages[0].tags["StripByteCounts"].overwrite(bytes_that_it_claims)
        assert peak_of(lambda: read_volume(tmp_path / "p.tif")) < 5_000_000


@pytest.mark.parametrize("suffix", ["jpg", "png", "tif"])
def test_pictures_that_are_to_be_turned_are_refused(tmp_path: Path, suffix: str) -> None:
    path, exif = tmp_path / f"a.{suffix}", Image.Exif()
    for orientation in (1, 6):
        exif[274] = orientation
        if suffix == "tif":
            tifffile.imwrite(path, np.zeros((4, 6), np.uint8), extratags=[(274, 3, 1, orientation, True)])
        else:
            Image.fromarray(np.zeros((4, 6), np.uint8)).save(path, exif=exif)
        if orientation == 1:
            assert read_picture(path).array.shape == (1, 6, 4, 1)
    for read in (read_picture, read_header):
        with pytest.raises(InputError, match=rf"a\.{suffix}: is to be turned .* \(orientation 6\).*; save it upright"):
            read(path)


@pytest.mark.parametrize("place", ["behind the pixels", "in a text"])
def test_an_orientation_is_found_wherever_a_png_has_it(tmp_path: Path, place: str) -> None:
    path, exif, text = tmp_path / "a.png", Image.Exif(), PngInfo()
    exif[274] = 6
    if place == "in a text":
        text.add_text("Raw profile type exif", f"\nexif\n{len(exif.tobytes())}\n{exif.tobytes().hex()}\n")
    Image.fromarray(np.zeros((4, 6), np.uint8)).save(path, pnginfo=text)
    if place == "behind the pixels":
        content, own = path.read_bytes(), exif.tobytes()[6:]
        chunk = struct.pack(">I", len(own)) + b"eXIf" + own + struct.pack(">I", zlib.crc32(b"eXIf" + own))
        path.write_bytes(content[:-12] + chunk + content[-12:])
    for read in (read_picture, read_header):
        with pytest.raises(InputError, match=r"\(orientation 6\)"):
            read(path)


def test_deep_grey_with_alpha_is_refused(tmp_path: Path) -> None:
    pixels = np.full((4, 6, 2), 40_000, np.uint16)
    sitk.WriteImage(sitk.GetImageFromArray(pixels, isVector=True), str(tmp_path / "a.png"))
    with pytest.raises(InputError, match="grey of 16 bits with transparency"):
        read_picture(tmp_path / "a.png")


def test_pages_in_a_circle_end(tmp_path: Path) -> None:
    tifffile.imwrite(tmp_path / "c.tif", GREY)
    content = bytearray((tmp_path / "c.tif").read_bytes())
    (first,) = struct.unpack("<I", content[4:8])
    (tags,) = struct.unpack("<H", content[first : first + 2])
    content[first + 2 + 12 * tags : first + 6 + 12 * tags] = content[4:8]
    (tmp_path / "c.tif").write_bytes(content)
    with pytest.raises(InputError, match=r"c\.tif: cannot be read, its pages refer to each other in a circle"):
        read_volume(tmp_path / "c.tif")


def test_a_strip_larger_than_the_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tifffile.imwrite(tmp_path / "p.tif", RGB, photometric="rgb", rowsperstrip=37, compression="zlib")
    monkeypatch.setattr(tiff, "free_memory", lambda: 10_000)
    with pytest.raises(InputError, match=r"p\.tif: its strips take 0\.0 GB each, too much memory; save it with tiles"):
        read_volume(tmp_path / "p.tif")


def test_a_picture_that_unpacks_to_more_than_the_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Image.fromarray(RGB).save(tmp_path / "p.png")
    monkeypatch.setattr(spill, "free_memory", lambda: 10_000)
    with pytest.raises(InputError, match=r"53 x 37 pixels do not fit the memory .* save it as tiled TIFF"):
        read_volume(tmp_path / "p.png")


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.sampled_from(["p.png", "z.tif", "l.tif", "p.bmp", "p.jpg"]), st.data())
def test_damaged_files_are_one_sentence_or_pixels(tmp_path: Path, name: str, data: st.DataObject) -> None:
    path = tmp_path / name
    options = {"z.tif": {"compression": "tiff_adobe_deflate"}, "l.tif": {"compression": "tiff_lzw"}}
    Image.fromarray(RGB).save(path, **options.get(name, {}))
    content = bytearray(path.read_bytes())
    if data.draw(st.booleans()):
        content = content[: data.draw(st.integers(0, len(content) - 1))]
    else:
        for place in data.draw(st.lists(st.integers(0, len(content) - 1), min_size=1, max_size=6)):
            content[place] = data.draw(st.integers(0, 255))
    path.write_bytes(content)
    message, size = "", 0
    try:
        size = read_volume(path).array.size
    except InputError as error:
        message = str(error)
    assert size <= 5_000 * len(content) + 1_000_000
    assert (size > 0) != message.startswith(str(path))
    assert "\n" not in message


@pytest.mark.parametrize("suffix", [".png", ".tif", ".bmp", ".jpg"])
def test_a_truncated_picture_names_itself(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"p{suffix}"
    Image.fromarray(RGB).save(path, **({"compression": "tiff_lzw"} if suffix == ".tif" else {}))
    content = path.read_bytes()
    for size in (0, 3, 100, len(content) // 2):
        path.write_bytes(content[:size])
        with pytest.raises(InputError, match=f"p\\{suffix}: .*copy it again"):
            read_volume(path)


@pytest.mark.parametrize(("high", "kind"), [(200, np.uint8), (60_000, np.uint16), (70_000, np.uint32)])
@pytest.mark.parametrize("suffix", [".png", ".tif"])
def test_label_pictures_come_back_in_the_smallest_type(tmp_path: Path, high: int, kind: Any, suffix: str) -> None:
    labels = np.zeros((600, 520, 1), np.int32)
    labels[3:9, 500:, 0] = high
    path = tmp_path / f"l{suffix}"
    if suffix == ".png" and high > 65535:
        with pytest.raises(InputError, match="label values 0 to 70000 do not fit png; write nifti"):
            write_picture(path, labels, None)
        return
    write_picture(path, labels, (0.25, 0.5))
    back = read_label(path)
    assert np.array_equal(back.array[0], labels)
    assert back.grid.spacing == pytest.approx((0.25, 0.5, 1), rel=1e-3)
    if suffix == ".tif":
        page = tifffile.TiffFile(path).pages[0]
        assert (page.dtype, page.is_tiled, int(page.compression)) == (kind, True, 8)


def test_large_tiff_lies_in_a_file_without_a_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tifffile.imwrite(tmp_path / "p.tif", RGB, photometric="rgb", tile=(16, 16), compression="zlib")
    whole = read_picture(tmp_path / "p.tif").array
    (tmp_path / "scratch").mkdir()
    monkeypatch.setattr(spill, "LARGE", 1000)
    monkeypatch.setattr(spill.tempfile, "tempdir", str(tmp_path / "scratch"))
    mapped = read_picture(tmp_path / "p.tif").array
    assert isinstance(mapped.base, np.memmap) or isinstance(mapped, np.memmap)
    assert np.array_equal(mapped, whole)
    assert not list((tmp_path / "scratch").iterdir())
    assert max(band.values.nbytes for band in Tiff(tmp_path / "p.tif").bands()) == 16 * 53 * 3


def test_a_stated_size_is_lent_to_a_mask_that_states_none(tmp_path: Path) -> None:
    for name in ("images", "masks"):
        (tmp_path / name).mkdir()
    Image.fromarray(RGB).save(tmp_path / "images" / "a.png", dpi=(254, 254))
    Image.fromarray((GREY > 99).astype(np.uint8)).save(tmp_path / "masks" / "a.png")
    index = verbs.index(tmp_path)
    assert (index.channels, index.findings) == (("red", "green", "blue"), ())


def test_mixed_colours_are_told_and_trained_on_as_grey_when_declared(tmp_path: Path) -> None:
    for name in ("images", "masks"):
        (tmp_path / name).mkdir()
    for name, pixels in (("a", RGB), ("b", RGB[::-1]), ("c", GREY)):
        Image.fromarray(pixels).save(tmp_path / "images" / f"{name}.png")
        Image.fromarray((GREY > 99).astype(np.uint8)).save(tmp_path / "masks" / f"{name}.png")
    with pytest.raises(DatasetError, match=r'c: has 1 channel, the dataset 3 .* or declare "channels": \["grey"\]'):
        verbs.index(tmp_path)
    (tmp_path / "dataset.json").write_text('{"channels": ["grey"]}')
    index = verbs.index(tmp_path)
    assert [case.id for case in index.training] == ["a", "b", "c"]
    assert [f.message for f in index.findings] == [
        "a: does not say how large its pixels are: 1 mm here, as in all such pictures",
        "every case counts as a patient of its own; where a patient has several, "
        "say so in a datalist (column patient), or scores of a fold are too good",
    ]


def test_real_nuclei_are_read_as_pillow_reads_them(real_data: Data) -> None:
    for path in sorted((real_data("nuclei") / "images").glob("*.png"))[::20]:
        volume = read_volume(f"{path}#channels=grey")
        assert np.array_equal(volume.array[0, ..., 0].T, np.asarray(Image.open(path).convert("RGB").convert("L")))
