"""Broken and hostile DICOM: a verdict or one sentence for each, never another exception, and never much memory."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tracemalloc
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from monai.transforms import LoadImaged

import medunet.cli.main as cli
from medunet.data.dicom.scan import Scan, scan
from medunet.data.dicom.volumes import read_series
from medunet.data.reader import VolumeReader
from medunet.errors import InputError, MedunetError, root_cause
from tests.dicom_corruptions import STORED, VARIANTS, Variant, compression_that_is_fine, deflated_that_is_fine, last
from tests.dicom_phantom import make_series

pytestmark = pytest.mark.timeout(20)
MOST = 200_000_000
VOLUME = STORED.transpose(2, 1, 0)
MEASURE = """
import json, sys
from pathlib import Path
from medunet.data.dicom.scan import scan
from medunet.data.dicom.volumes import read_series
import pydicom, pydicom.pixels.decoders, medunet.data.dicom.suv
def memory(name):
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(name))
peaks = {}
for source in json.loads(sys.stdin.read()):
    before = memory("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # starts the peak (VmHWM) anew
    for read in (scan, read_series):
        try: read(source)
        except Exception: pass
    peaks[source] = memory("VmHWM") - before
print(json.dumps(peaks))
"""


def is_sentence(text: str) -> bool:
    return text.isprintable() and len(text) < 1500


def required(text: str, source: Path) -> str:
    assert is_sentence(text)
    assert str(source) in text or str(source.parent) in text
    return text


def caught(read: Callable[[], Any]) -> Any:
    """What a reader gives, or the sentence of the medunet error that it raises; any other error goes on."""
    try:
        return read()
    except Exception as error:
        cause = root_cause(error)
        if not isinstance(cause, MedunetError):
            raise
        return cause


def told(source: Path) -> str:
    """All that a scan says of a source; it raises InputErrors only, and every stack has a verdict."""
    try:
        found: Scan = scan(source)
    except InputError as error:
        return required(str(error), source)
    lines = []
    for series in found.series:
        verdict = series.verdict
        assert verdict.state == "accepted" or verdict.reasons
        assert (verdict.state == "refused") or series.layout.grid is not None
        lines += [series.name, f"{verdict.state}: {'; '.join((*verdict.reasons, *verdict.notes))}"]
    lines += [f"{item.location}: {item.reason}" for item in found.aside]
    assert all(is_sentence(line) for line in lines), lines
    json.dumps(found.as_json())
    return " | ".join(lines)


@lru_cache(maxsize=1)
def loader() -> Any:
    return LoadImaged(["image"], reader=VolumeReader(), ensure_channel_first=True)


def read_both(source: Path) -> Any:
    """A volume or an error; MONAI's LoadImaged gives the same as our own reader."""
    ours = caught(lambda: read_series(source))
    monai = caught(lambda: loader()({"image": str(source)})["image"])
    if isinstance(ours, MedunetError):
        assert isinstance(monai, MedunetError), "another reader stepped in"
        required(str(ours), source)
        return ours
    assert not isinstance(monai, MedunetError), monai
    assert np.array_equal(monai.numpy(), ours.array.astype(np.float32))
    assert np.allclose(monai.affine.numpy(), ours.grid.affine)
    return ours


def run_cli(monkeypatch: pytest.MonkeyPatch, *words: object) -> int:
    monkeypatch.setattr(sys, "argv", ["medunet", *map(str, words)])
    monkeypatch.setattr(cli.state, "debug", False)
    monkeypatch.setattr(cli.state, "quiet", False)
    try:
        cli.main()
    except SystemExit as stop:
        return int(stop.code or 0)
    return 0


def broken(variant: Variant, folder: Path) -> Path:
    make_series(folder, STORED)
    return variant.edit(folder) or folder


@pytest.mark.parametrize("variant", VARIANTS, ids=lambda variant: variant.name)
def test_right_or_not_at_all(
    variant: Variant, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    source = broken(variant, tmp_path / "series")
    tracemalloc.start()
    try:
        words = told(source)
        result = read_both(source)
        assert tracemalloc.get_traced_memory()[1] < MOST
    finally:
        tracemalloc.stop()
    assert re.search(variant.words, words if variant.reads else f"{words} | {result}"), f"{words} | {result}"
    if variant.reads:
        assert not isinstance(result, MedunetError), result
        assert np.array_equal(result.array[0], VOLUME)
    else:
        assert isinstance(result, MedunetError), "a volume was read"
        assert re.search(variant.words, str(result)), result
    assert run_cli(monkeypatch, "dicom", source) in (0, 2)
    output = "".join(capsys.readouterr())
    assert "Traceback" not in output
    assert not re.search(r"medunet: \w+:", output)
    assert output.replace("\n", "").isprintable()


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="peaks are measured through Linux's /proc")
def test_hostile_files_take_little_memory(tmp_path: Path) -> None:
    sources = {str(broken(v, tmp_path / v.name / "series")): v.name for v in VARIANTS if v.hostile}
    done = subprocess.run(
        [sys.executable, "-c", MEASURE], input=json.dumps(list(sources)), capture_output=True, text=True, check=True
    )
    peaks = {sources[source]: peak for source, peak in json.loads(done.stdout).items()}
    assert len(peaks) == len(sources)
    assert {name: peak for name, peak in peaks.items() if peak > MOST} == {}, peaks


changes = st.lists(
    st.tuples(st.sampled_from(["flip", "insert", "delete", "cut"]), st.floats(0, 1), st.binary(min_size=1, max_size=9)),
    min_size=1,
    max_size=6,
)


def altered(content: bytes, what: str, where: float, by: bytes) -> bytes:
    place = int(where * len(content))
    if what == "flip":
        return (
            content[:place]
            + bytes(a ^ b for a, b in zip(content[place:], by, strict=False))
            + content[place + len(by) :]
        )
    if what == "insert":
        return content[:place] + by + content[place:]
    return content[:place] + (content[place + len(by) :] if what == "delete" else b"")


def plain(folder: Path) -> None:
    """Native pixels."""


@pytest.mark.parametrize("packed", [plain, compression_that_is_fine, deflated_that_is_fine])
def test_random_damage_to_a_slice(packed: Callable[[Path], None], tmp_path: Path) -> None:
    make_series(tmp_path, STORED)
    packed(tmp_path)
    slice_file = last(tmp_path)
    original = slice_file.read_bytes()

    @settings(max_examples=60, derandomize=True)
    @given(changes)
    def damage(edits: list[tuple[str, float, bytes]]) -> None:
        content = original
        for change in edits:
            content = altered(content, *change)
        slice_file.write_bytes(content)
        told(tmp_path)
        result = read_both(tmp_path)
        assert isinstance(result, MedunetError) or result.grid.shape == VOLUME.shape

    damage()
