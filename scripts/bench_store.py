"""What reading patches costs: file formats, MONAI's PersistentDataset, a training step, and the memory of a large run.

    python scripts/bench_store.py [--quick] [--steps BUNDLE] [--work DIR]

Volumes are 256 x 256 x 200 (an image and its label); every 96 x 96 x 96 and 40 x 56 x 40 patch is read at a random
place, image and label. Cold: the system was asked to forget the files before. zarr and blosc2 are measured where they
are installed. ``--steps`` times a bundle's training steps with patches from the store and from memory. Run it on a
quiet machine; it prints Markdown.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import platform
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

SHAPE = (256, 256, 200)
PATCHES = {"96 x 96 x 96": (96, 96, 96), "40 x 56 x 40": (40, 56, 40)}
LABELS = {"background": 0, "organ": 1, "lesion": 2}
SCHEMES = [{"scheme": "ct", "low": -900.0, "high": 900.0, "mean": 50.0, "std": 200.0}]
Box = tuple[tuple[int, int], ...]


def write_case(folder: Path, seed: int) -> dict[str, str]:
    """A body in air with organs and noise, as int16 in NIfTI, and its label."""
    from scipy import ndimage

    from medunet.data.grid import Grid
    from medunet.data.volume import write_image, write_label

    rng = np.random.default_rng(seed)
    axes = np.meshgrid(*[np.linspace(-1, 1, n, dtype=np.float32) for n in SHAPE], indexing="ij", sparse=True)
    body = (axes[0] / 0.85) ** 2 + (axes[1] / 0.7) ** 2 < 1
    texture = ndimage.zoom(rng.normal(0, 1, [n // 8 for n in SHAPE]).astype(np.float32), 8, order=1)
    image = np.where(body, 50 + 100 * texture + rng.normal(0, 20, SHAPE).astype(np.float32), -1000)
    label = np.where(body & (texture > 0.8), 1 + (texture > 1.5), 0).astype(np.uint8)
    grid, item = Grid(SHAPE, np.eye(4)), {key: str(folder / f"{key}_{seed}.nii.gz") for key in ("image", "label")}
    write_image(item["image"], np.round(image).astype(np.int16), grid)
    write_label(item["label"], label, grid)
    return item


def preprocess() -> Any:
    """The same preprocessing for all."""
    from medunet.data.transforms import Frame, Preprocess

    return Preprocess(Frame("RAS", (1.0, 1.0, 1.0), SCHEMES), LABELS)


def boxes(size: Sequence[int], count: int) -> Iterator[Box]:
    """Random places of a patch."""
    rng = np.random.default_rng(1)
    for _ in range(count):
        yield tuple((s := int(rng.integers(n - p + 1)), s + p) for n, p in zip(SHAPE, size, strict=True))


def slices(box: Box) -> tuple[slice, ...]:
    """As an index of (channels, x, y, z)."""
    return (slice(None), *(slice(*bounds) for bounds in box))


# ---- formats: write(path, image, label) and open(path) -> read(box)


def medunet_format(path: Path, image: np.ndarray, label: np.ndarray) -> None:
    """medunet's store."""
    from medunet.training.entry import write_entry

    write_entry(path / "x.case", image, label[0], (32, 32, 32))


def open_medunet(path: Path) -> Callable[[Box], Any]:
    """medunet's store, checksums included."""
    from medunet.training.entry import Entry

    return Entry(path / "x.case").read


def npy(path: Path, image: np.ndarray, label: np.ndarray, kind: str = "float32") -> None:
    """Plain arrays, last axis fastest."""
    np.save(path / "image.npy", image.astype(kind))
    np.save(path / "label.npy", label)


def npy16(path: Path, image: np.ndarray, label: np.ndarray) -> None:
    """The same in half precision."""
    npy(path, image, label, "float16")


def open_npy(path: Path) -> Callable[[Box], Any]:
    """Memory maps."""
    arrays = [np.load(path / f"{name}.npy", mmap_mode="r") for name in ("image", "label")]
    return lambda box: [
        np.array(a[slices(box)], dtype=np.float32 if a.dtype.kind == "f" else None, order="C") for a in arrays
    ]


def blosc(path: Path, image: np.ndarray, label: np.ndarray) -> None:
    """blosc2, LZ4, chunks of 64 and blocks of 32."""
    import blosc2

    for name, array in (("image", image), ("label", label)):
        blosc2.asarray(
            array, chunks=(1, 64, 64, 64), blocks=(1, 32, 32, 32), urlpath=str(path / f"{name}.b2nd"), mode="w",
            cparams={"codec": blosc2.Codec.LZ4, "clevel": 5, "nthreads": 1},
        )  # fmt: skip


def open_blosc(path: Path) -> Callable[[Box], Any]:
    """blosc2, on one thread."""
    import blosc2

    arrays = [
        blosc2.open(str(path / f"{name}.b2nd"), mode="r", mmap_mode="r", dparams={"nthreads": 1})
        for name in ("image", "label")
    ]
    return lambda box: [a[slices(box)] for a in arrays]


def zarr_format(path: Path, image: np.ndarray, label: np.ndarray) -> None:
    """zarr 3, its own compression, chunks of 64."""
    import zarr

    for name, array in (("image", image), ("label", label)):
        made = zarr.create_array(
            store=str(path / f"{name}.zarr"), shape=array.shape, chunks=(1, 64, 64, 64), dtype=array.dtype
        )
        made[:] = array


def open_zarr(path: Path) -> Callable[[Box], Any]:
    """zarr."""
    import zarr

    arrays = [zarr.open_array(str(path / f"{name}.zarr"), mode="r") for name in ("image", "label")]
    return lambda box: [a[slices(box)] for a in arrays]


FORMATS = {
    "medunet store, float32, blocks of 32": (medunet_format, open_medunet),
    "npy memory map, float32": (npy, open_npy),
    "npy memory map, float16": (npy16, open_npy),
    "blosc2 LZ4, float32, blocks of 32": (blosc, open_blosc),
    "zarr, float32, chunks of 64": (zarr_format, open_zarr),
}


def formats(items: Sequence[dict[str, str]], work: Path, reads: int) -> list[list[str]]:
    """A row per format."""
    missing = {name for name in ("blosc2", "zarr") if importlib.util.find_spec(name) is None}
    done = [preprocess()(item) for item in items]
    arrays = [(d["image"].numpy(), d["label"].numpy()) for d in done]
    rows = []
    for name, (write, opened) in FORMATS.items():
        if name.replace(",", " ").split()[0] in missing:
            continue
        folders = [work / f"format_{number}" for number in range(len(items))]
        start = time.perf_counter()
        for folder, (image, label) in zip(folders, arrays, strict=True):
            folder.mkdir()
            write(folder, image, label)
        seconds = (time.perf_counter() - start) / len(items)
        files = [file for folder in folders for file in folder.rglob("*") if file.is_file()]
        size = sum(file.stat().st_size for file in files) / len(items)
        cold = []
        for patch in PATCHES.values():
            forget(files)
            cold.append(median([opened(folder) for folder in folders], list(boxes(patch, 2 * len(items)))))
        readers = [opened(folder) for folder in folders]
        warm = [median(readers, list(boxes(patch, reads))) for patch in PATCHES.values()]
        del readers
        rows.append([name, *(f"{1e3 * t:.2f}" for t in (*warm, *cold)), f"{seconds:.2f}", f"{size / 1e6:.0f}"])
        for folder in folders:
            shutil.rmtree(folder)
    return rows


def median(readers: Sequence[Callable[[Box], Any]], places: Sequence[Box]) -> float:
    """Seconds per patch."""
    times = []
    for number, box in enumerate(places):
        start = time.perf_counter()
        readers[number % len(readers)](box)
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def forget(files: Sequence[Path]) -> None:
    """Ask the system to drop files from its cache."""
    for path in files:
        with path.open("rb") as file:
            os.fsync(file.fileno())
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


# ---- the whole way to a patch


def ways(items: Sequence[dict[str, str]], work: Path, reads: int) -> list[list[str]]:
    """Patches from medunet's dataset and from MONAI's, places drawn and half of them around a class."""
    from monai.data import PersistentDataset
    from monai.transforms import Compose, RandCropByPosNegLabeld, RandSpatialCropd

    from medunet.training import Augmentation, CutPatch, PatchStore, Sample, StoredPatches
    from medunet.training.augment import PROBABILITIES

    rows = []
    start = time.perf_counter()
    store = PatchStore(str(work / "store"), preprocess())
    store.prepare(items)
    ours = (time.perf_counter() - start) / len(items)
    cached = PersistentDataset(items, Compose([preprocess()]), cache_dir=work / "persistent")
    start = time.perf_counter()
    for number in range(len(items)):
        cached[number]
    theirs = (time.perf_counter() - start) / len(items)
    for label, size in PATCHES.items():
        patches = StoredPatches(
            items, store, CutPatch(size), Augmentation(size, probabilities=dict.fromkeys(PROBABILITIES, 0.0))
        )
        crops = {
            "RandSpatialCropd": RandSpatialCropd(["image", "label"], size, random_size=False),
            "RandCropByPosNegLabeld": RandCropByPosNegLabeld(["image", "label"], "label", size, num_samples=1),
        }
        mine = timed(lambda n, p=patches: p[Sample(n, n % len(items))], reads)
        rows.append(["medunet StoredPatches", label, f"{1e3 * mine:.2f}", "1", f"{ours:.2f}"])
        for name, crop in crops.items():
            other = PersistentDataset(items, Compose([preprocess(), crop]), cache_dir=work / "persistent")
            seconds = timed(lambda n, d=other: d[n % len(items)], max(8, reads // 8))
            words = [f"MONAI PersistentDataset + {name}", label, f"{1e3 * seconds:.2f}", f"{seconds / mine:.0f}"]
            rows.append([*words, f"{theirs:.2f}"])
    return rows


def timed(action: Callable[[int], Any], count: int) -> float:
    """Median seconds of an action, after a first one."""
    times = []
    for number in range(count + 2):
        start = time.perf_counter()
        action(number)
        times.append(time.perf_counter() - start)
    return statistics.median(times[2:])


# ---- a training step


class InMemory:
    """A store that keeps every case in memory."""

    def __init__(self, store: Any, items: Sequence[Any]) -> None:
        self.store = store
        self.cases = {item["image"]: store.read(item, self.whole(item)) for item in items}

    def whole(self, item: Any) -> Box:
        """All of a case."""
        return tuple((0, n) for n in self.store.entry(item).shape)

    def entry(self, item: Any) -> Any:
        """What is known of a case."""
        return self.store.entry(item)

    def read(self, item: Any, box: Box) -> Any:
        """A box, padded where it lies beyond the volume."""
        inner = [(max(a, 0), min(b, n)) for (a, b), n in zip(box, self.entry(item).shape, strict=True)]
        pad = [(0, 0), *((i - a, b - j) for (a, b), (i, j) in zip(box, inner, strict=True))]
        return tuple(np.pad(array[slices(tuple(inner))], pad) for array in self.cases[item["image"]])


def steps(bundle: Path, count: int) -> list[list[str]]:
    """Training steps in turns: patches from memory, from the store, and loaded ahead by one process."""
    from medunet.bundle.running import load_workflow

    runs = {}
    for name, workers in (("in memory", 0), ("store", 0), ("store, a loading process", 1)):
        values = {"device::name": "cpu", "quiet": True, "train::dataloader::num_workers": workers}
        parser = load_workflow(bundle, "train.yaml", "train", values).parser
        dataset = parser.get_parsed_content("train::dataset")
        dataset.prepare()
        if name == "in memory":
            dataset.store = InMemory(dataset.store, dataset.data)
        trainer = parser.get_parsed_content("train::trainer")
        runs[name] = (trainer, iter(trainer.data_loader), [])
    for number in range(count + 1):
        for trainer, batches, times in runs.values():
            start = time.perf_counter()
            batch = next(batches)
            loaded = time.perf_counter()
            trainer.loss_function(trainer.network(batch["image"]), batch["label"]).backward()
            trainer.optimizer.step()
            trainer.optimizer.zero_grad()
            if number:
                times.append((time.perf_counter() - start, loaded - start))
    base = statistics.median(total for total, _ in runs["in memory"][2])
    rows = []
    for name, (_, _, times) in runs.items():
        total, waiting = (statistics.median(column) for column in zip(*times, strict=True))
        rows.append([name, f"{1e3 * total:.0f}", f"{1e3 * waiting:.0f}", f"{total / base:.3f}"])
    return rows


# ---- memory


def memory(items: Sequence[dict[str, str]], work: Path, copies: int) -> list[list[str]]:
    """Anonymous memory of this process and two that load, with `copies` cases of 96 x 96 x 96 patches read."""
    import psutil
    import torch

    from medunet.training import Augmentation, CaseSampler, CutPatch, PatchLoader, PatchStore, StoredPatches
    from medunet.training.augment import PROBABILITIES

    store = PatchStore(str(work / "store"), preprocess())
    store.prepare(items)
    first = sorted((work / "store").glob("*.case"))[0]
    many, keys = [], {}
    for number in range(copies):  # files of their own, so that every case has its own pages and checksums
        path = first.with_name(f"{number:064d}.case")
        shutil.copyfile(first, path)
        many.append({"image": str(number), "label": ""})
        keys[str(number), ""] = path.stem
    store._keys |= keys
    patches = StoredPatches(
        many, store, CutPatch((96, 96, 96)), Augmentation((96, 96, 96), probabilities=dict.fromkeys(PROBABILITIES, 0.0))
    )
    loader = PatchLoader(patches, 2, CaseSampler(many, 2, copies), torch.device("cpu"), 2)
    peak = 0
    for _ in loader:
        processes = [psutil.Process(), *psutil.Process().children(recursive=True)]
        peak = max(peak, sum(anonymous(process.pid) for process in processes))
    gigabytes = copies * first.stat().st_size / 1e9
    return [[str(copies), f"{gigabytes:.1f}", f"{peak / 1e9:.2f}"]]


def anonymous(pid: int) -> int:
    """Bytes of a process that no file backs."""
    lines = Path(f"/proc/{pid}/status").read_text(encoding="utf-8").splitlines()
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("RssAnon")), 0)


def table(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print Markdown."""
    print(f"\n{title}\n\n| {' | '.join(columns)} |\n|{'---|' * len(columns)}")
    for row in rows:
        print(f"| {' | '.join(row)} |", flush=True)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="about two minutes")
    parser.add_argument("--steps", type=Path, metavar="BUNDLE", help="time this bundle's training steps")
    parser.add_argument("--work", type=Path, help="where to write; a folder on the disk that is to be measured")
    options = parser.parse_args()
    cases, reads, copies, count = (2, 24, 20, 8) if options.quick else (6, 96, 100, 30)
    print(f"{platform.machine()}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}, {cases} volumes")
    with tempfile.TemporaryDirectory(dir=options.work) as name:
        work = Path(name)
        items = [write_case(work, seed) for seed in range(cases)]
        times = [f"{label} {state}, ms" for state in ("warm", "cold") for label in PATCHES]
        table("Formats", ["format", *times, "write, s", "size, MB"], formats(items, work, reads))
        head = ["patches from", "patch", "ms", "times medunet's", "prepare, s a case"]
        table("The whole way to a patch", head, ways(items, work, reads))
        head = ["volumes", "GB stored", "anonymous GB, three processes"]
        table("Memory", head, memory(items, work, copies))
    if options.steps:
        head = ["patches", "ms a step", "of it waiting for the patch", "ratio"]
        table("A training step", head, steps(options.steps, count))


if __name__ == "__main__":
    main()
