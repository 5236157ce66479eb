"""Pictures larger than the memory: read by region, segmented in rows, written in tiles; the same voxels."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
import torch
from PIL import Image

from medunet import verbs
from medunet.data import spill, tiff
from medunet.data.volume import read_label
from medunet.networks import UNet
from medunet.planning import Budget

WIDE, HIGH = 3000, 2000

CHILD = """
import json, sys, threading, time
from pathlib import Path
import torch
torch.set_num_threads(1)
from medunet import verbs
import medunet.bundle.segmenting, medunet.inference.runner

def anonymous():
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("RssAnon")) * 1024

bundle, image, output = sys.argv[1:4]
before = peak = anonymous()
done = False
def watch():
    global peak
    while not done:
        peak = max(peak, anonymous())
        time.sleep(0.02)
watcher = threading.Thread(target=watch)
watcher.start()
overrides = {"save::output_format": "tiff", "inferer::overlap": 0.0, "inferer::backend": "torch", "device::name": "cpu"}
results = verbs.predict(bundle, [image], output, overrides)
done = True
watcher.join()
print(json.dumps({"peak": peak, "before": before, "state": results[0].state, "message": results[0].message}))
"""


def with_random_weights(root: Path) -> Path:
    """A bundle with a tiny 2D network, planned for the pictures below `root`, that finds something."""
    settings = {"dims": 2, "base_channels": 4, "max_levels": 3, "patch_size": [256, 256], "batch_size": 1}
    verbs.plan(root, root / "bundle", Budget(epochs=1), settings)
    torch.manual_seed(3)
    plan = json.loads((root / "bundle" / "configs" / "metadata.json").read_text())["plan"]
    network = UNet(**{key: value for key, value in plan["network"].items() if key != "_target_"})
    (root / "bundle" / "models").mkdir()
    torch.save(network.state_dict(), root / "bundle" / "models" / "model.pt")
    return root / "bundle"


def write_dataset(root: Path) -> None:
    """Two pictures in colours, and what is red in them."""
    draw = np.random.default_rng(0)
    for folder in ("images", "masks"):
        (root / folder).mkdir()
    for number in range(2):
        pixels = draw.integers(0, 255, (64, 64, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(root / "images" / f"{number}.png")
        Image.fromarray((pixels[..., 0] > 128).astype(np.uint8)).save(root / "masks" / f"{number}.png")


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """For pictures in three colours."""
    root = tmp_path_factory.mktemp("pictures")
    write_dataset(root)
    return with_random_weights(root)


def tiles_of_noise(wide: int, high: int, edge: int) -> Iterator[np.ndarray]:
    """Smooth blobs and noise, a tile at a time, never the whole picture."""
    draw = np.random.default_rng(1)
    for _ in range(-(-high // edge) * -(-wide // edge)):
        coarse = draw.integers(0, 200, (edge // 32, edge // 32, 3), dtype=np.uint8)
        yield np.kron(coarse, np.ones((32, 32, 1), np.uint8)) + draw.integers(0, 50, (edge, edge, 3), dtype=np.uint8)


def write_picture(path: Path, wide: int, high: int, **options: Any) -> None:
    tifffile.imwrite(
        path, tiles_of_noise(wide, high, 256), shape=(high, wide, 3), dtype=np.uint8, tile=(256, 256),
        photometric="rgb", metadata=None, **options,
    )  # fmt: skip


def predict(bundle: Path, image: Path, output: Path, name: str = "tiff") -> Path:
    overrides = {"save::output_format": name, "inferer::overlap": 0.0, "inferer::backend": "torch"}
    (result,) = verbs.predict(bundle, [image], output, {**overrides, "device::name": "cpu"})
    assert result.state == "done", result.message
    return output / result.output


def test_by_region_is_as_in_memory(bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    image = tmp_path / "slide.tif"
    write_picture(image, WIDE, HIGH, compression="zlib", resolution=(20_000, 20_000), resolutionunit="CENTIMETER")
    whole = predict(bundle, image, tmp_path / "whole")
    made: list[tuple[int, ...]] = []
    read: list[int] = []
    bands, memmap = tiff.Tiff.bands, np.memmap

    def noted(self: tiff.Tiff) -> Iterator[tiff.Band]:
        for band in bands(self):
            read.append(band.values.nbytes)
            yield band

    def mapped(*args: Any, **keywords: Any) -> Any:
        made.append(args[4])
        return memmap(*args, **keywords)

    monkeypatch.setattr(spill, "LARGE", 1_000_000)
    monkeypatch.setattr(tiff.Tiff, "bands", noted)
    monkeypatch.setattr(spill.np, "memmap", mapped)
    streamed = predict(bundle, image, tmp_path / "streamed")
    assert made == [(1, HIGH, WIDE, 3), (WIDE, HIGH, 1)]  # the picture and the label map
    assert (len(read), max(read)) == (8, 256 * WIDE * 3)
    assert streamed.read_bytes() == whole.read_bytes()
    label = read_label(streamed)
    assert label.grid.shape == (WIDE, HIGH, 1)
    assert label.grid.spacing == pytest.approx((0.0005, 0.0005, 1))
    assert 0.01 < label.array.mean() < 0.99
    page = tifffile.TiffFile(streamed).pages[0]
    assert (page.dtype, page.is_tiled, int(page.compression)) == (np.uint8, True, 8)


def test_a_result_is_not_written_over_its_image(bundle: Path, tmp_path: Path) -> None:
    write_picture(tmp_path / "a.tif", 300, 280)
    before = (tmp_path / "a.tif").read_bytes()
    overrides = {"save::output_format": "tiff", "inferer::backend": "torch"}
    (result,) = verbs.predict(bundle, [tmp_path / "a.tif"], tmp_path, overrides)
    assert (result.state, "would be written over it" in result.message) == ("failed", True)
    assert (tmp_path / "a.tif").read_bytes() == before


def test_png_results_and_what_is_not_a_picture(bundle: Path, tmp_path: Path, phantom_dataset: Path) -> None:
    write_picture(tmp_path / "a.tif", 300, 280)
    as_png, as_nifti = (predict(bundle, tmp_path / "a.tif", tmp_path / name, name) for name in ("png", "nifti"))
    assert np.array_equal(read_label(as_png).array, read_label(as_nifti).array)
    scan = next(phantom_dataset.rglob("imagesTr/*.nii.gz"))
    (result,) = verbs.predict(bundle, [scan], tmp_path / "v", {"save::output_format": "png"})
    assert "is not a picture; png would not keep where its voxels lie" in result.message


def test_a_model_of_grey_takes_colours_and_grey(tmp_path: Path) -> None:
    write_dataset(tmp_path)
    (tmp_path / "dataset.json").write_text('{"channels": ["grey"]}')
    model = with_random_weights(tmp_path)
    (tmp_path / "in").mkdir()
    pixels = next(tiles_of_noise(256, 256, 256))
    Image.fromarray(pixels).save(tmp_path / "in" / "colour.png")
    Image.fromarray(pixels).convert("L").save(tmp_path / "in" / "grey.tif")
    results = verbs.predict(model, [tmp_path / "in"], tmp_path / "out", {"inferer::backend": "torch"})
    assert [result.state for result in results] == ["done", "done"]
    colour, grey = (read_label(tmp_path / "out" / result.output).array for result in results)
    assert np.array_equal(colour, grey)
    again = verbs.predict(model, [tmp_path / "in"], tmp_path / "out", {"inferer::backend": "torch"})
    assert [result.state for result in again] == ["already done", "already done"]


def peak(bundle: Path, tmp_path: Path, wide: int, high: int) -> int:
    """Anonymous memory of a process that segments such a picture, in bytes."""
    image = tmp_path / f"{wide}x{high}.tif"
    write_picture(image, wide, high, compression="zlib")
    command = [sys.executable, "-c", CHILD, str(bundle), str(image), str(tmp_path / "out")]
    found = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()[-1])
    assert found["state"] == "done", found["message"]
    print(f"{wide} x {high}: {found['peak'] / 2**20:.0f} MiB, {found['before'] / 2**20:.0f} before")
    return int(found["peak"])


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_memory_does_not_grow_with_a_huge_picture(bundle: Path, tmp_path: Path) -> None:
    assert peak(bundle, tmp_path, 20_000, 20_000) < 1.5 * 2**30
