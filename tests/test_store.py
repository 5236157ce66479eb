"""The store of preprocessed cases: what is read is what was stored, what changed is made again, no half is served."""

from __future__ import annotations

import logging
import multiprocessing
import os
import pickle
import random
import resource
import shutil
import signal
import time
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from medunet.data.grid import Grid
from medunet.data.spill import free_memory
from medunet.data.transforms import Frame, Preprocess
from medunet.data.volume import write_image, write_label
from medunet.errors import BundleError, DatasetError, InputError, ResourceError
from medunet.inference.border import Bordered
from medunet.training import Augmentation, CaseSampler, CutPatch, PatchLoader, PatchStore, Sample, StoredPatches
from medunet.training import entry as entries
from medunet.training import store as stores
from medunet.training.augment import PROBABILITIES
from medunet.training.cases import Region
from medunet.training.distributed import memory
from medunet.training.draws import Draw, Noise
from medunet.training.entry import DamagedEntryError, Entry, class_locations, write_entry
from medunet.training.loading import refuse_lost_worker
from tests.dicom_phantom import make_series

LABELS = {"background": 0, "a": 1, "b": 3}
GRID = Grid((40, 37, 35), np.diag([2.0, 2.0, 2.0, 1.0]))


def make_case(folder: Path, name: str, seed: int = 0, channels: int = 1) -> dict[str, Any]:
    rng = np.random.default_rng(seed)
    paths = [folder / f"{name}_{channel}.nii.gz" for channel in range(channels)]
    for path in paths:
        write_image(path, rng.normal(100, 30, GRID.shape).astype(np.float32), GRID)
    write_label(folder / f"{name}_label.nii.gz", rng.choice([0, 1, 3], GRID.shape, p=[0.9, 0.07, 0.03]), GRID)
    images = [str(path) for path in paths]
    return {"image": images if channels > 1 else images[0], "label": str(folder / f"{name}_label.nii.gz")}


def make_store(folder: Path, spacing: float = 2.0, channels: int = 1, **options: Any) -> PatchStore:
    frame = Frame("RAS", (spacing,) * 3, [{"scheme": "zscore"}] * channels)
    return PatchStore(str(folder), Preprocess(frame, LABELS), **options)


def whole(store: PatchStore, item: dict[str, Any]) -> tuple[np.ndarray, np.ndarray]:
    return store.read(item, tuple((0, n) for n in store.entry(item).shape))


def files(folder: Path) -> list[Path]:
    return sorted(folder.glob("[0-9a-f]*.case"))


# ---- what is read


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_any_box_equals_the_slice_of_a_padded_volume(tmp_path: Path, data: st.DataObject) -> None:
    shape = data.draw(st.tuples(*[st.integers(1, 20)] * 3))
    edge = data.draw(st.tuples(*[st.integers(1, 9)] * 3))
    channels = data.draw(st.integers(1, 3))
    box = tuple(
        (start, start + data.draw(st.integers(1, 15))) for start in data.draw(st.tuples(*[st.integers(-12, 25)] * 3))
    )
    rng = np.random.default_rng(0)
    image = rng.normal(size=(channels, *shape)).astype(np.float32)
    label = rng.integers(0, data.draw(st.sampled_from([3, 300])), shape)
    write_entry(tmp_path / "x.case", image, label, edge)
    stored = Entry(tmp_path / "x.case")
    got_image, got_label = stored.read(box)
    pad = [(0, 0)] + [(40, 40)] * 3
    part = (slice(None), *(slice(a + 40, b + 40) for a, b in box))
    assert np.array_equal(got_image, np.pad(image, pad)[part])
    assert np.array_equal(got_label, np.pad(label[None], pad)[part])
    for value, count in stored.header.classes.items():
        assert label[stored.voxel(value, count - 1)] == value


@pytest.mark.parametrize("channels", [1, 2])
def test_the_store_holds_what_preprocessing_makes(tmp_path: Path, channels: int) -> None:
    item = make_case(tmp_path, "x", channels=channels)
    store = make_store(tmp_path / "s", 1.7, channels)
    assert store.prepare([item]) == 1
    done = store.preprocess(item)
    image, label = whole(store, item)
    assert image.dtype == np.float32
    assert np.array_equal(image, done["image"].numpy())
    assert np.array_equal(label, done["label"].numpy())
    assert set(store.entry(item).header.classes) == {1, 2}


def test_beyond_the_volume_is_what_an_inference_window_sees(tmp_path: Path) -> None:
    """Training patches and inference windows that are larger than the volume have equal voxels."""
    item = make_case(tmp_path, "x")
    store = make_store(tmp_path / "s")
    image = store.preprocess(item)["image"].as_tensor()
    size = (48, 20, 64)
    border = Bordered(lambda box: image[(slice(None), *(slice(*b) for b in box))].clone(), GRID.shape, size, "constant")
    cut = CutPatch(size, 0.5).draw(np.random.default_rng(3), store.entry(item))
    start = [s + b for s, b in zip(cut.start, border.before, strict=True)]
    seen = border.read(tuple((s, s + n) for s, n in zip(start, size, strict=True)))
    assert np.array_equal(store.read(item, cut.box(size))[0], seen.numpy())


def test_locations_are_spread_over_each_class_however_large_the_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    label = np.random.default_rng(0).choice([0, 1, 2, 7], (60, 50, 40), p=[0.5, 0.3, 0.1999, 0.0001]).astype(np.uint8)
    found = class_locations(label)
    assert set(found) == {1, 2, 7}
    for value, places in found.items():
        every = np.argwhere(label == value)
        assert np.array_equal(places, every[:: -(-len(every) // 5000)])
    monkeypatch.setattr(entries, "_CHUNK", 3000)
    assert all(np.array_equal(places, found[value]) for value, places in class_locations(label).items())
    assert class_locations(np.zeros((4, 4, 4), np.uint8)) == {}


def test_a_2d_patch_is_a_slice_and_reads_little(tmp_path: Path) -> None:
    item = make_case(tmp_path, "x")
    store = make_store(tmp_path / "s", patch_size=(16, 12))
    patches = StoredPatches([item], store, CutPatch((16, 12)), Augmentation((16, 12)))
    patch = patches[Sample(5, 0)]
    assert (patch["image"].shape, patch["label"].shape) == ((1, 16, 12), (1, 16, 12))
    assert store.entry(item).header.blocks.counts == (1, 1, 35)


@pytest.mark.parametrize("border", ["mirror", "edge"])
def test_a_volume_is_continued_as_a_network_without_padding_needs_it(tmp_path: Path, border: str) -> None:
    """Patches reach a margin beyond the volume, and see there what inference shows the network."""
    item = make_case(tmp_path, "x")
    store = make_store(tmp_path / "s")
    entry = store.entry(item)
    margin, size = (4, 3, 2), (24, 16, 12)
    plain = Augmentation(size, probabilities=dict.fromkeys(PROBABILITIES, 0.0))
    patches = StoredPatches([item], store, CutPatch(size, 0.5, margin), plain, border=border)
    image, label = (array[0] for array in store.read(item, tuple((0, n) for n in entry.shape)))
    whole = {"mirror": "reflect", "edge": "edge"}[border]
    starts = []
    for number in range(40):
        cut = patches.cut.draw(np.random.default_rng((0, number)), entry)
        starts.append(cut.start)
        patch = patches[Sample(number, 0)]
        widths = [(16, 16)] * 3
        box = tuple(slice(a + 16, a + 16 + n) for a, n in zip(cut.start, size, strict=True))
        assert np.array_equal(patch["image"][0].numpy(), np.pad(image, widths, mode=whole)[box])
        assert np.array_equal(patch["label"][0].numpy(), np.pad(label, widths, mode=whole)[box])
    for axis, (n, p, m) in enumerate(zip(entry.shape, size, margin, strict=True)):
        along = [start[axis] for start in starts]
        assert -m <= min(along) < 0
        assert n - p < max(along) <= max(n + m - p, -m)


def test_a_region_lies_around_its_patch() -> None:
    class Case:
        shape, header = (30, 30, 30), type("Header", (), {"classes": {}})()

    cut = CutPatch((8, 9, 10)).draw(np.random.default_rng(0), Case())  # type: ignore[arg-type]
    inner, outer = cut.box((8, 9, 10)), cut.box((12, 13, 16))
    assert [b - a for a, b in outer] == [12, 13, 16]
    assert [a - o for (a, _), (o, _) in zip(inner, outer, strict=True)] == [2, 2, 3]


# ---- nothing twice, nothing stale


def test_nothing_is_done_twice_and_what_changed_is_done_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    items = [make_case(tmp_path, "x", 1), make_case(tmp_path, "y", 2)]
    heard: list[tuple[int, int]] = []
    assert make_store(tmp_path / "s").prepare(items, lambda *n: heard.append(n)) == 2
    assert heard == [(1, 2), (2, 2)]
    assert make_store(tmp_path / "s").prepare(items) == 0
    moved = Path(shutil.copytree(tmp_path, tmp_path.parent / f"{tmp_path.name}_moved", ignore=lambda *_: ["s"]))
    elsewhere = [{key: str(moved / Path(path).name) for key, path in item.items()} for item in items]
    assert make_store(tmp_path / "s").prepare(elsewhere) == 0
    assert make_store(tmp_path / "s", spacing=1.9).prepare(items) == 2
    assert make_store(tmp_path / "s", patch_size=(8, 8)).prepare(items) == 2
    twin = {**items[0], "label": items[1]["label"]}
    assert make_store(tmp_path / "s").prepare([items[0], twin]) == 1
    monkeypatch.setattr("medunet.data.transforms._PREPROCESSING", -1)  # as a commit that mends it would
    assert make_store(tmp_path / "s").prepare(items) == 2


@pytest.mark.parametrize("key", ["image", "label"])
def test_changed_content_is_noticed_though_size_and_time_are_as_before(tmp_path: Path, key: str) -> None:
    item = make_case(tmp_path, "x", 1)
    path = Path(item[key])
    shutil.copy(path, tmp_path / "plain.nii.gz")
    store = make_store(tmp_path / "s")
    stores_time = path.stat().st_mtime - 1000
    os.utime(path, (stores_time, stores_time))
    store.prepare([item])
    before = whole(store, item)
    content = bytearray(path.read_bytes())
    content[4:8] = b"\1\2\3\4"  # the time in a gzip header: other bytes, equal voxels
    path.write_bytes(content)
    os.utime(path, (stores_time, stores_time))
    again = make_store(tmp_path / "s")
    assert again.prepare([item]) == 1
    assert all(np.array_equal(a, b) for a, b in zip(before, whole(again, item), strict=True))


def test_files_are_read_again_only_when_they_changed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from medunet.training import digests

    item = make_case(tmp_path, "x")
    monkeypatch.setattr(digests, "_SETTLED_SECONDS", -1e9)  # as if the files were old
    make_store(tmp_path / "s").prepare([item])
    assert "x_0" not in (tmp_path / "s" / "digests.json").read_text()

    def refuse(path: Path) -> str:
        raise AssertionError(f"{path} was read")

    monkeypatch.setattr(digests, "_content", refuse)
    assert make_store(tmp_path / "s").prepare([item]) == 0
    (tmp_path / "s" / "digests.json").write_text("{ damaged")
    with pytest.raises(AssertionError, match="was read"):
        make_store(tmp_path / "s").prepare([item])


def test_detached_headers_and_dicom_folders_count_with_their_files(tmp_path: Path) -> None:
    from medunet.training.digests import Digests

    (tmp_path / "x.mhd").write_text("ElementDataFile = voxels.raw\n")
    (tmp_path / "voxels.raw").write_bytes(b"one")
    make_series(tmp_path / "series", np.zeros((4, 6, 5), np.int16))
    sources = [tmp_path / "x.mhd", tmp_path / "series", f"{tmp_path / 'series'}#series=1.2"]
    first = [Digests(tmp_path / "d.json").source(source) for source in sources]
    assert len(set(first)) == 3
    same = Digests(tmp_path / "d.json")
    assert [same.source(source) for source in sources] == first
    (tmp_path / "voxels.raw").write_bytes(b"two")
    file = sorted((tmp_path / "series").iterdir())[0]
    file.write_bytes(file.read_bytes() + b"\0\0")
    for digests in (Digests(tmp_path / "d.json"), same):
        assert not set(first) & {digests.source(source) for source in sources}


def test_dicom_cases_are_stored(tmp_path: Path) -> None:
    make_series(tmp_path / "series", np.random.default_rng(0).integers(-500, 500, (6, 12, 10)).astype(np.int16))
    from medunet.data.volume import read_header

    grid = read_header(tmp_path / "series").grid
    write_label(tmp_path / "label.nii.gz", np.ones(grid.shape, np.uint8), grid)
    item = {"image": str(tmp_path / "series"), "label": str(tmp_path / "label.nii.gz")}
    store = make_store(tmp_path / "s", 3.0)
    assert (store.prepare([item]), store.prepare([item])) == (1, 0)
    assert whole(store, item)[1].max() == 1


# ---- damage


def cut_short(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


def empty(path: Path) -> None:
    path.write_bytes(b"")


def flip(path: Path, place: int) -> None:
    content = bytearray(path.read_bytes())
    content[place] ^= 4
    path.write_bytes(content)


DAMAGE = {
    "cut short": cut_short, "empty": empty, "another kind": partial(flip, place=3), "version": partial(flip, place=8),
    "length": partial(flip, place=15), "header": partial(flip, place=30), "locations": partial(flip, place=1000),
    "voxel": partial(flip, place=200_000), "label": partial(flip, place=-1),
}  # fmt: skip


@pytest.mark.parametrize("kind", DAMAGE)
def test_a_damaged_file_is_made_again_and_says_so(tmp_path: Path, kind: str, caplog: pytest.LogCaptureFixture) -> None:
    item = make_case(tmp_path, "x")
    store = make_store(tmp_path / "s")
    store.prepare([item])
    good, content = whole(store, item), files(tmp_path / "s")[0].read_bytes()
    DAMAGE[kind](files(tmp_path / "s")[0])
    again = make_store(tmp_path / "s")
    with caplog.at_level(logging.WARNING):
        again.prepare([item])
        assert all(np.array_equal(a, b) for a, b in zip(good, whole(again, item), strict=True))
    assert "the stored case is damaged" in caplog.text
    assert "it is made again" in caplog.text
    assert files(tmp_path / "s")[0].read_bytes() == content


def test_damage_while_training_is_mended_and_said_when_the_source_is_gone(tmp_path: Path) -> None:
    item = make_case(tmp_path, "x")
    store = make_store(tmp_path / "s")
    store.prepare([item])
    path = files(tmp_path / "s")[0]
    cut_short(path)
    whole(store, item)
    path.unlink()
    whole(store, item)
    Path(item["image"]).unlink()
    whole(store, item)  # the store has all that training needs
    cut_short(path)
    with pytest.raises(InputError, match=r"damaged, it was cut short.*cannot be made again: .*x_0.nii.gz: is missing"):
        whole(store, item)
    with pytest.raises(InputError, match=r"x_0.nii.gz: is missing; give the dataset's place"):
        make_store(tmp_path / "s").prepare([item])


def test_a_source_that_changed_during_the_run_is_refused(tmp_path: Path) -> None:
    item = make_case(tmp_path, "x", 1)
    store = make_store(tmp_path / "s")
    store.prepare([item])
    make_case(tmp_path, "x", 2)
    files(tmp_path / "s")[0].unlink()
    with pytest.raises(DatasetError, match="changed while being read; run again when it is settled"):
        whole(store, item)


def test_an_unreadable_case_stops_the_run_and_what_is_finished_stays(tmp_path: Path) -> None:
    items = [make_case(tmp_path, name, seed) for seed, name in enumerate("abc")]
    cut_short(Path(items[2]["label"]))
    with pytest.raises(InputError, match=r"c_label.nii.gz: cannot be read, the file is truncated or corrupt"):
        make_store(tmp_path / "s", workers=1).prepare(items)
    assert make_store(tmp_path / "s").prepare(items[:2]) == 0


def test_a_case_without_a_label_is_told(tmp_path: Path) -> None:
    item = {"image": make_case(tmp_path, "x")["image"], "case": "x"}
    with pytest.raises(DatasetError, match="x: has no label; training cases need one"):
        make_store(tmp_path / "s").prepare([item])


def test_a_disk_without_room_is_told_before_anything_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    item = make_case(tmp_path, "x")
    make_store(tmp_path / "s", spacing=1.9).prepare([item])
    usage = shutil.disk_usage(tmp_path)._replace(free=100_000)
    monkeypatch.setattr(stores.shutil, "disk_usage", lambda _: usage)
    words = (
        r"take 0\.\d MB, the disk has 0\.1 MB free; free some space "
        r"\(0\.\d MB there are of other data or plans and may be deleted\) or give another folder with --set store=DIR"
    )
    with pytest.raises(ResourceError, match=words):
        make_store(tmp_path / "s").prepare([item])
    assert len(files(tmp_path / "s")) == 1


def test_a_folder_that_cannot_be_written_is_told(tmp_path: Path) -> None:
    item = make_case(tmp_path, "x")
    (tmp_path / "s").write_text("a file is in the way")
    with pytest.raises(ResourceError, match=r"s: cannot be written \(.+\); give another folder with --set store=DIR"):
        make_store(tmp_path / "s").prepare([item])


def prepare_all(folder: Path, items: list[dict[str, Any]], limit: int | None = None) -> None:
    """What a child process does; its exit code is 7 for a full disk."""
    torch.set_num_threads(1)
    if limit is not None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
    try:
        make_store(folder).prepare(items)
    except ResourceError as error:
        (folder.parent / "error.txt").write_text(str(error))
        os._exit(7)
    os._exit(0)


def preparing(folder: Path, items: list[dict[str, Any]], limit: int | None = None) -> Any:
    process = multiprocessing.get_context("fork").Process(target=prepare_all, args=(folder, items, limit))
    process.start()
    return process


def test_a_full_disk_leaves_no_part_of_a_case(tmp_path: Path) -> None:
    process = preparing(tmp_path / "s", [make_case(tmp_path, "x")], 150_000)
    process.join(60)
    assert process.exitcode == 7
    assert "cannot be written, the disk is full" in (tmp_path / "error.txt").read_text()
    assert not list((tmp_path / "s").iterdir())


def test_killed_while_writing_leaves_whole_cases_or_none(tmp_path: Path) -> None:
    """SIGKILL at ten random moments of the writing; what is there afterwards is right to the last voxel."""
    items = [make_case(tmp_path, f"{number:02d}", number) for number in range(12)]
    expected = [make_store(tmp_path / "other").preprocess(item) for item in items]
    folder, rng, cases = tmp_path / "s", random.Random(0), len(items)
    begin = time.monotonic()
    preparing(folder, items).join(60)
    seconds = time.monotonic() - begin
    assert len(files(folder)) == cases
    interrupted = 0
    for _ in range(10):
        for path in files(folder):
            path.unlink()
        process = preparing(folder, items)
        time.sleep(rng.random() * seconds)
        process.kill()
        process.join()
        left = files(folder)
        interrupted += len(left) < cases
        for path in left:
            Entry(path).read(tuple((0, n) for n in GRID.shape))
        store = make_store(folder)
        assert store.prepare(items) == cases - len(left)
        for item, want in zip(items, expected, strict=True):
            assert np.array_equal(whole(store, item)[0], want["image"].numpy())
    assert interrupted >= 3


def test_two_processes_may_prepare_the_same_store(tmp_path: Path) -> None:
    items = [make_case(tmp_path, f"{number:02d}", number) for number in range(8)]
    both = [preparing(tmp_path / "s", items), preparing(tmp_path / "s", items[::-1])]
    for process in both:
        process.join(60)
        assert process.exitcode == 0
    assert len(files(tmp_path / "s")) == 8
    assert not list((tmp_path / "s").glob(".part-*"))
    assert make_store(tmp_path / "s").prepare(items) == 0


# ---- drawing and loading


def make_patches(folder: Path, count: int = 3) -> StoredPatches:
    items = [make_case(folder, f"{number}", number) for number in range(count)]
    augment = Augmentation((24, 16, 48), mirror_axes=(0,), rotation=(0.5, 0.0, 0.0))
    return StoredPatches(items, make_store(folder / "s"), CutPatch((24, 16, 48)), augment, seed=4)


def test_channels_beyond_a_border_can_be_mirrored_and_changed(tmp_path: Path) -> None:
    """What was read keeps the channels outermost: noise is added to flat views of it."""
    item, size = make_case(tmp_path, "0", channels=2), (24, 16, 48)
    augment = Augmentation(size, channels=2, mirror_axes=(0,))
    store = make_store(tmp_path / "s", channels=2)
    patches = StoredPatches([item], store, CutPatch(size, margin=(4, 4, 4)), augment, border="mirror")
    image, label = patches.read(item, ((-3, 21), (0, 16), (-9, 39)))
    draw = Draw(size, size, mirror=(0,), noise=Noise(seed=1, std=1e-6))
    made = patches.patch(Region(torch.from_numpy(image), torch.from_numpy(label), draw))
    assert np.allclose(made["image"].numpy(), image[:, ::-1], atol=1e-4)
    assert (made["label"].numpy() == label[:, ::-1]).all()


OFTEN = dict.fromkeys(PROBABILITIES, 0.6)


def loader(patches: StoredPatches, workers: int, steps: int = 6) -> PatchLoader:
    sampler = CaseSampler(patches.data, 2, steps, seed=4)
    return PatchLoader(patches, 2, sampler, torch.device("cpu"), workers)


def workers_of(ahead: PatchLoader) -> list[psutil.Process]:
    assert ahead._iterator is not None
    return [psutil.Process(worker.pid) for worker in ahead._iterator._workers]  # type: ignore[attr-defined]


def test_patches_are_the_same_whoever_loads_them_and_wherever_one_begins(tmp_path: Path) -> None:
    patches = make_patches(tmp_path)
    alone = list(loader(patches, 0))
    assert alone[0]["image"].shape == (2, 1, 24, 16, 48)
    for workers in (1, 2):
        for mine, theirs in zip(alone, loader(patches, workers), strict=True):
            assert all(bool((mine[key] == theirs[key]).all()) for key in ("image", "label"))
    late = loader(patches, 1, steps=2)
    late.sampler.begin(3)  # type: ignore[attr-defined]
    for _ in range(1):
        assert bool((next(iter(late))["image"] == alone[3]["image"]).all())
    first, other = patches[Sample(0, 1)], patches[Sample(1, 1)]
    assert not bool((first["image"] == other["image"]).all())


@pytest.mark.parametrize("workers", [0, 1])
def test_patches_that_are_changed_on_the_device_are_those_of_the_workers(tmp_path: Path, workers: int) -> None:
    patches = make_patches(tmp_path)
    patches.augment = Augmentation((24, 16, 48), mirror_axes=(0,), rotation=(0.5, 0.0, 0.0), probabilities=OFTEN)

    def made(augment_on: str, count: int, first: int = 0) -> list[Any]:
        sampler = CaseSampler(patches.data, 2, 6, seed=4)
        sampler.begin(first)
        ahead = PatchLoader(patches, 2, sampler, torch.device("cpu"), workers, augment_on)
        batches = list(islice(iter(ahead), count))
        ahead.close()
        return batches

    by_workers, on_device = made("workers", 6), made("device", 6)
    for mine, theirs in zip(by_workers, on_device, strict=True):
        assert torch.allclose(mine["image"], theirs["image"], atol=1e-6)
        assert bool((mine["label"] == theirs["label"]).all())
    assert bool((made("device", 1, first=3)[0]["image"] == on_device[3]["image"]).all())  # as a run that is resumed
    assert [patches.region(Sample(n, 0)).draw for n in range(9)] == [
        patches.region(Sample(n, 0)).draw for n in range(9)
    ]


def test_where_patches_are_changed_is_chosen_by_a_word(tmp_path: Path) -> None:
    patches, cpu = make_patches(tmp_path), torch.device("cpu")
    sampler = CaseSampler(patches.data, 2, 6)
    moved: list[tuple[int, ...]] = []

    class Here(Augmentation):
        def apply(self, draw: Any, image: Any, label: Any) -> Any:
            moved.append((os.getpid(), *image.shape))
            return super().apply(draw, image, label)

    patches.augment = Here((24, 16, 48))
    for word, seen in (("auto", 0), ("workers", 0), ("device", 2)):
        moved.clear()
        ahead = PatchLoader(patches, 2, sampler, cpu, 1, word)
        next(iter(ahead))
        ahead.close()
        assert len(moved) == seen  # in this process
    patches.finish = lambda patch: {**patch, "label": patch["label"] + 1}
    moved.clear()
    ahead = PatchLoader(patches, 2, sampler, cpu, 1, "device")
    assert int(next(iter(ahead))["label"].min()) == 1  # a last transform runs on the CPU
    ahead.close()
    assert not moved
    with pytest.raises(BundleError, match="augment_on 'gpu' is not known; give auto, workers or device"):
        PatchLoader(patches, 2, sampler, cpu, 1, "gpu")


def test_a_dataset_travels_to_processes_that_are_not_forked(tmp_path: Path) -> None:
    patches = make_patches(tmp_path)
    patches.prepare()
    twin = pickle.loads(pickle.dumps(patches))
    assert bool((twin[Sample(3, 1)]["image"] == patches[Sample(3, 1)]["image"]).all())


def test_a_loader_goes_on_after_a_pass_that_was_left(tmp_path: Path) -> None:
    """As the calibration of a run does: it takes a few batches, then training begins at the first."""
    ahead = loader(make_patches(tmp_path), 1)
    first = next(iter(ahead))
    ahead.sampler.begin(0)  # type: ignore[attr-defined]
    assert bool((next(iter(ahead))["image"] == first["image"]).all())


@pytest.mark.parametrize("workers", [0, 1])
def test_what_goes_wrong_while_loading_is_one_sentence(tmp_path: Path, workers: int) -> None:
    patches = make_patches(tmp_path)
    patches.prepare()
    for path in files(tmp_path / "s"):
        cut_short(path)
    for item in patches.data:
        Path(item["image"]).unlink()
    patches.store._entries.clear()
    with pytest.raises(InputError, match=r"cannot be made again: .*_0.nii.gz: is missing") as caught:
        list(loader(patches, workers))
    assert "Traceback" not in str(caught.value)


def test_the_cores_are_shared_by_the_processes_of_a_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    from medunet.training.distributed import cores

    monkeypatch.delenv("LOCAL_WORLD_SIZE", raising=False)
    every = cores()
    monkeypatch.setenv("LOCAL_WORLD_SIZE", str(every))
    assert cores() == 1


class Broken(Augmentation):
    def apply(self, draw: Any, image: Any, label: Any) -> Any:
        raise RuntimeError("a transform of a method developer fails")


def test_errors_that_are_not_ours_keep_their_words(tmp_path: Path) -> None:
    patches = make_patches(tmp_path)
    patches.augment = Broken((24, 16, 48))
    with pytest.raises(RuntimeError, match="a transform of a method developer fails"):
        list(loader(patches, 1))


def test_closing_ends_the_loading_processes(tmp_path: Path) -> None:
    ahead = loader(make_patches(tmp_path), 2)
    first = next(iter(ahead))
    children = workers_of(ahead)
    assert len(children) == 2
    ahead.close()
    assert not psutil.wait_procs(children, timeout=20)[1]
    ahead.sampler.begin(0)  # type: ignore[attr-defined]
    assert bool((next(iter(ahead))["image"] == first["image"]).all())


def test_a_killed_loading_process_is_told(tmp_path: Path) -> None:
    ahead = loader(make_patches(tmp_path), 1, steps=400)
    batches = iter(ahead)
    next(batches)
    (worker,) = workers_of(ahead)

    def train() -> None:
        try:
            worker.kill()
            for _ in batches:
                time.sleep(0.001)
        except RuntimeError as error:  # torch's, from a signal handler, wherever the process was
            ahead.close()  # as the budget does; torch would tell again at the next signal
            refuse_lost_worker(error)

    with pytest.raises(ResourceError, match="a loading process was killed, probably for want of memory"):
        train()
    ahead.close()


def load_and_wait(folder: Path) -> None:
    batches = iter(loader(make_patches(folder), 2, steps=1000))
    next(batches)
    (folder / "ready").touch()
    time.sleep(600)


def test_loading_processes_end_with_the_process_that_trains(tmp_path: Path) -> None:
    process = multiprocessing.get_context("fork").Process(target=load_and_wait, args=(tmp_path,))
    process.start()
    deadline = time.monotonic() + 60
    while not (tmp_path / "ready").exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    children = psutil.Process(process.pid).children(recursive=True)
    assert len(children) >= 2
    process.kill()
    process.join()
    assert not psutil.wait_procs(children, timeout=30)[1]


def test_an_entry_is_no_guess(tmp_path: Path) -> None:
    (tmp_path / "x.case").write_bytes(b"something else that is long enough")
    with pytest.raises(DamagedEntryError, match=r"x.case: the stored case is damaged, it does not begin as such"):
        Entry(tmp_path / "x.case")


@pytest.mark.parametrize(
    ("groups", "free"),
    [
        ({}, 16_000_000),
        ({"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/memory.max": "max\n"}, 16_000_000),
        (
            {
                "proc/self/cgroup": "0::/job/step\n",
                "sys/fs/cgroup/job/step/memory.max": "max",
                "sys/fs/cgroup/job/step/memory.current": "1000000",
                "sys/fs/cgroup/job/memory.max": "9000000",
                "sys/fs/cgroup/job/memory.current": "4000000",
                "sys/fs/cgroup/job/memory.stat": "anon 3000000\ninactive_file 500000\n",
            },
            5_500_000,
        ),
        (
            {
                "proc/self/cgroup": "5:cpu,memory:/elsewhere\n1:name=systemd:/x\n",
                "sys/fs/cgroup/memory/memory.limit_in_bytes": "3000000",
                "sys/fs/cgroup/memory/memory.usage_in_bytes": "3500000",
            },
            0,
        ),
    ],
    ids=["none", "no limit", "v2, a job of its own", "v1, within a container"],
)
def test_free_memory_is_what_the_control_group_leaves(tmp_path: Path, groups: dict[str, str], free: int) -> None:
    meminfo = "MemTotal: 32000 kB\nMemAvailable:   15625 kB\n"
    for name, text in {"proc/meminfo": meminfo, **groups}.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    assert free_memory(tmp_path) == free
    assert free_memory(tmp_path / "nowhere") == 8_192_000_000


def test_processes_on_one_machine_share_its_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("medunet.training.distributed.free_memory", lambda: 8_000)
    assert memory() == 8_000
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    assert memory() == 2_000
