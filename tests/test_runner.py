"""Batches of cases: hard inputs leave the others unharmed, and a killed run leaves nothing broken."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from medunet import verbs
from medunet.data.atomic import remove_stale
from medunet.data.grid import Grid
from medunet.data.volume import read_label, read_volume, write_image
from medunet.inference.quality import Calibration, read_calibrations
from medunet.inference.runner import ahead
from medunet.inference.status import CaseResult, Status
from medunet.inference.weights import weights_digest
from medunet.networks import UNet

KILLED_AT_RANDOM = """
import os, random, signal, sys, time
from pathlib import Path
import monai.bundle, monai.engines
import medunet.inference.windows, medunet.inference.runner
from medunet import verbs
from medunet.data.volume import read_label

bundle, images, out, rounds = sys.argv[1], sys.argv[2], Path(sys.argv[3]), int(sys.argv[4])
random.seed(0)
finished = 0
for _ in range(rounds):
    child = os.fork()
    if child == 0:
        verbs.predict(bundle, [images], out, {"device::name": "cpu", "inferer::backend": "torch"}, probabilities=True)
        os._exit(0)
    time.sleep(random.uniform(0.02, 0.6))
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    written = [p for p in out.rglob("*.nii.gz") if not p.name.startswith(".part-")]
    for path in written:
        read_label(path)
    finished = max(finished, len(written))
print("finished", finished)
verbs.predict(bundle, [images], out, {"device::name": "cpu", "inferer::backend": "torch"}, probabilities=True)
"""


def test_a_batch_killed_at_random_moments_finishes_with_the_same_voxels(
    trained_bundle: Path, phantom_dataset: Path, tmp_path: Path
) -> None:
    images = Path(shutil.copytree(phantom_dataset / "imagesTr", tmp_path / "in"))
    for number in range(3):
        for path in sorted(images.glob("phantom_00?.nii.gz")):
            shutil.copy(path, images / f"copy{number}_{path.name}")
    clean = verbs.predict(
        trained_bundle, [images], tmp_path / "clean", {"inferer::backend": "torch"}, probabilities=True
    )
    assert {result.state for result in clean} == {"done"}
    arguments = [str(trained_bundle), str(images), str(tmp_path / "out"), "20"]
    done = subprocess.run(
        [sys.executable, "-c", KILLED_AT_RANDOM, *arguments], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    for result in clean:
        expected = read_label(tmp_path / "clean" / result.output).array
        assert np.array_equal(read_label(tmp_path / "out" / result.output).array, expected)
        stem = result.output.removesuffix(".nii.gz")
        assert (tmp_path / "out" / f"{stem}_probabilities.npy").is_file()
    content = json.loads((tmp_path / "out" / "status.json").read_text())
    assert len(content["cases"]) == len(clean)


def test_hard_inputs_are_told_and_leave_the_others_unharmed(
    trained_bundle: Path, phantom_dataset: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    source = read_volume(sorted((phantom_dataset / "imagesTr").glob("*.nii.gz"))[0])
    plain, grid = source.array[0], source.grid
    write_image(folder / "good.nii.gz", plain, grid)
    write_image(folder / "one_slice.nii.gz", plain[..., :1], Grid((*plain.shape[:2], 1), grid.affine))
    write_image(folder / "tiny.nii.gz", plain[8:13, 8:12, 8:11], Grid((5, 4, 3), grid.affine))
    broken = plain.astype(np.float32)
    broken[3, 3, 3] = np.nan
    write_image(folder / "nan.nii.gz", broken, grid)
    write_image(folder / "four_d.nii.gz", np.stack([plain, plain]), grid)
    from PIL import Image

    Image.fromarray(np.random.default_rng(0).integers(0, 255, (30, 30, 3)).astype(np.uint8)).save(folder / "rgb.png")
    (folder / "cut.nii.gz").write_bytes((folder / "good.nii.gz").read_bytes()[:100])
    results = {r.name: r for r in verbs.predict(trained_bundle, [folder], tmp_path / "out")}
    words = {
        "one_slice": "is a single slice, the model was trained on volumes",
        "nan": "1 of 9216 voxels are NaN or infinite",
        "four_d": "has 2 channels, the model takes 1; give one per channel",
        "rgb": "is a single slice",
        "cut": "cannot be read",
    }
    for name, message in words.items():
        assert message in results[name].message
        assert not (tmp_path / "out" / results[name].output).exists()
    assert results["good"].state == "done"
    small = {r.name: r for r in verbs.predict(trained_bundle, [folder / "tiny.nii.gz"], tmp_path / "out2", force=True)}
    assert small["tiny"].state == "done"  # smaller than a window
    assert read_label(tmp_path / "out2" / "tiny.nii.gz").array.shape == (1, 5, 4, 3)


def test_results_say_how_long_each_stage_took_and_what_to_expect(
    trained_bundle: Path, phantom_dataset: Path, tmp_path: Path
) -> None:
    bundle = Path(shutil.copytree(trained_bundle, tmp_path / "b"))
    classes = json.loads((bundle / "models" / "quality.json").read_text())["classes"]
    values = Calibration(0.1, 0.5, 0.5, 9, True).as_json()
    content = {"weights": weights_digest(bundle), "fold": 0, "classes": dict.fromkeys(classes, values)}
    (bundle / "models" / "quality.json").write_text(json.dumps(content))
    said: list[str] = []
    images = sorted((phantom_dataset / "imagesTr").glob("*.nii.gz"))[:3]
    results = verbs.predict(bundle, images, tmp_path / "out", say=said.append)
    assert len(said) == 1
    assert said[0].startswith("torch:")
    status = json.loads((tmp_path / "out" / "status.json").read_text())["cases"]
    for result, kept in zip(results, status, strict=True):
        assert set(result.stages) == {"read", "preprocess", "network", "restore", "write"}
        assert 0 <= result.expected_dice <= 1
        assert result.expected_dice == min(q["expected_dice"] for q in result.quality.values())
        assert kept["expected_dice"] == result.expected_dice
    again = verbs.predict(bundle, images, tmp_path / "out")
    assert [r.expected_dice for r in again] == [r.expected_dice for r in results]
    assert read_calibrations(bundle, "other weights") == {}


def test_the_status_file_is_not_written_for_every_case(tmp_path: Path) -> None:
    status = Status(tmp_path, "digest")
    written = []
    for number in range(200):
        status.add(CaseResult(str(number), "done", output=f"{number}.nii.gz"))
        written.append((tmp_path / "status.json").stat().st_mtime_ns)
    assert len(set(written)) < 20
    status.write()
    assert len(Status(tmp_path, "digest").before) == 200
    assert Status(tmp_path, "another model").before == {}


def test_one_item_is_computed_ahead() -> None:
    from concurrent.futures import ThreadPoolExecutor

    started: list[int] = []

    def square(number: int) -> int:
        started.append(number)
        return number * number

    with ThreadPoolExecutor(1) as executor:
        results = ahead(executor, square, range(5))
        assert next(results) == 0
        assert max(started) <= 1
        assert list(results) == [1, 4, 9, 16]
        started.clear()
        results = ahead(executor, square, range(6), 3, lambda square: square < 4)
        assert next(results) == 0  # 0 and 1 are small, 4 is not
        assert max(started) <= 3
        assert list(results) == [1, 4, 9, 16, 25]


def test_small_images_share_forward_passes(trained_bundle: Path, phantom_dataset: Path, tmp_path: Path) -> None:
    """As many as fill a pass; the labels are those of one after the other, and a broken case harms no other."""
    images = sorted((phantom_dataset / "imagesTr").glob("*.nii.gz"))
    broken = tmp_path / "broken.nii.gz"
    broken.write_bytes(images[0].read_bytes()[:300])
    inputs = [*images[:3], broken, *images[3:]]
    sizes: list[int] = []
    forward = UNet.forward

    def counted(network: UNet, windows: torch.Tensor) -> object:
        sizes.append(len(windows))
        return forward(network, windows)

    plain = verbs.predict(trained_bundle, inputs, tmp_path / "one", {"inferer::backend": "torch"})
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(UNet, "forward", counted)
        options = {"inferer::backend": "torch", "inferer::batch_size": 8}
        together = verbs.predict(trained_bundle, inputs, tmp_path / "many", options)
    assert max(sizes) > 1
    assert [r.state for r in together] == [r.state for r in plain] == ["done"] * 3 + ["failed"] + ["done"] * 3
    for result in (r for r in plain if r.state == "done"):
        first, second = (read_label(tmp_path / folder / result.output).array for folder in ("one", "many"))
        assert (first == second).mean() > 0.9999  # a batch may sum in another order


def test_what_a_killed_run_left_is_removed_when_it_is_old(tmp_path: Path) -> None:
    import os
    import time

    old, young = tmp_path / "a" / ".part-old.nii.gz", tmp_path / ".part-young.npy"
    old.parent.mkdir()
    for path in (old, young):
        path.write_bytes(b"x")
    os.utime(old, (time.time() - 7200,) * 2)
    remove_stale(tmp_path)
    assert not old.exists()
    assert young.exists()
