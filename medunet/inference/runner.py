"""Segment case after case: the only part of inference that knows files.

While a case is computed the next one is read and the one before is written, each by a thread of its own.
Leaves a label map per case and ``status.json`` in the output folder. Run again, it does only what is missing.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, ExitStack, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any

import torch

from medunet.data.atomic import PART, disk_errors, remove_stale
from medunet.data.dicom.source import Source
from medunet.data.marks import Marks
from medunet.data.transforms import NetworkImage, without_voxels
from medunet.data.volume import Header, read_header, require_nifti
from medunet.errors import (
    DiskFullError,
    GeometryError,
    InputError,
    MedunetError,
    MismatchError,
    NetworkError,
    root_cause,
)
from medunet.inference.compare import Concern, compare_grid, compare_intensity, compare_modality
from medunet.inference.inputs import InputCase
from medunet.inference.passage import Segmentation
from medunet.inference.quality import Calibration, expected_quality
from medunet.inference.queues import ahead, behind
from medunet.inference.restoring import Sink
from medunet.inference.saving import output_name, probability_file, require_elsewhere, require_writable
from medunet.inference.status import CaseResult, Status
from medunet.inference.windows import WindowInferer, is_out_of_memory

_LONG = 5.0  # seconds of computing that are worth an announcement
_ROOM = 16_000_000  # voxels of the images that wait, unless it is one alone
_LARGE_PICTURE = 100_000_000  # pixels


@dataclass
class Segmenter:
    """The parts of a bundle that turn files into a label map, as its ``inference.yaml`` defines them."""

    plan: Mapping[str, Any]
    network: torch.nn.Module
    preprocessing: Callable[[Any], Any]
    inferer: WindowInferer
    postprocessing: Callable[[Any], Any]
    digest: str
    output_format: str = "nifti"
    calibrations: Mapping[str, Calibration] = field(default_factory=dict)


@dataclass
class Work:
    """A case on its way: what is known of it, and its image and label map while they are needed."""

    case: InputCase
    result: CaseResult
    item: dict[Any, Any] = field(default_factory=dict)
    windows: int = 0

    @property
    def voxels(self) -> int:
        """Of the image, while there is one."""
        return self.item["image"].numel() if self.item else 0


def segment_cases(
    segmenter: Segmenter,
    cases: Sequence[InputCase],
    output_dir: Path,
    *,
    force: bool = False,
    keep_probabilities: bool = False,
    report: Callable[[CaseResult], None] = lambda result: None,
    say: Callable[[str], None] = lambda text: None,
) -> list[CaseResult]:
    """Segment every case that is not done yet; a case that fails leaves the others unharmed.

    `force` takes inputs that the model was not made for, and replaces results of other inputs.
    `report` is called when a case is written, from another thread; `say` before the first case is computed.

    Raises:
        InputError: the output folder cannot be written.
        DiskFullError: the disk of the output folder is full (every further case would fail too).
    """
    _require_folder(output_dir)
    remove_stale(output_dir)
    segmenter.inferer.expected = len(cases)
    run = _Run(segmenter, output_dir, force, keep_probabilities, (report, say))
    run.claim(cases)
    with ThreadPoolExecutor(1) as reader, ThreadPoolExecutor(1) as writer:
        opened = ahead(reader, run.open, cases, run.together, _ROOM, lambda work: work.voxels)
        try:
            done = (work for group in run.groups(opened) for work in run.segment(group))
            return list(behind(writer, run.save, done, run.together, _ROOM, lambda work: work.voxels))
        finally:
            opened.close()
            writer.submit(run.status.write).result()


class _Run:
    """The three stages of a case; what goes wrong in one is told in the case's result and ends it."""

    def __init__(
        self,
        segmenter: Segmenter,
        output_dir: Path,
        force: bool,
        keep_probabilities: bool,
        tell: tuple[Callable[[CaseResult], None], Callable[[str], None]],
    ) -> None:
        self.segmenter, self.output_dir, self.force = segmenter, output_dir, force
        self.keep_probabilities = keep_probabilities
        self.report, self.say = tell
        self._told = False
        self.together = segmenter.inferer.together(segmenter.network)
        self.status = Status(output_dir, segmenter.digest)
        self.marks = Marks(output_dir)
        self._foreign: set[str] = set()

    def claim(self, cases: Iterable[InputCase]) -> None:
        """Note whose the results will be; those that are there and of others are not replaced unless forced."""
        self._foreign = self.status.claim((self._waiting(case) for case in cases), self.force)

    def _waiting(self, case: InputCase) -> CaseResult:
        images = [str(Source.parse(image).absolute()) for image in case.images]
        return CaseResult(
            case.name, "waiting", output=output_name(case.output, self.segmenter.output_format), images=images
        )

    def open(self, case: InputCase) -> Work:
        """Read a case and compare it with what the model was made for."""
        result = self._waiting(case)
        result.mark = self.marks.of(result.images)
        old = self.status.before.get(result.output, {})
        if self._is_done(case, result, old):
            result = CaseResult(case.name, "already done", output=result.output, warnings=old.get("warnings", []))
            result.expected_dice = old.get("expected_dice")
            return Work(case, result)
        work = Work(case, result)
        self._attempt(work, "read", self._open)
        return work

    def _is_done(self, case: InputCase, result: CaseResult, old: Mapping[str, Any]) -> bool:
        """Whether an earlier call made this result, of these very files, and kept what is wanted."""
        if not result.mark or any(old.get(key) != getattr(result, key) for key in ("images", "mark")):
            return False
        kept = not self.keep_probabilities or (old.get("probabilities") and self._probability_path(case).is_file())
        return bool(kept) and (self.output_dir / result.output).is_file()

    def groups(self, opened: Iterable[Work]) -> Iterator[list[Work]]:
        """Cases in their order, as many at a time as fill a forward pass with their windows."""
        group: list[Work] = []
        for work in opened:
            if work.item:
                self._attempt(work, "preprocess", self._look)
            group.append(work)
            if sum(w.windows for w in group) >= self.together or sum(w.voxels for w in group) >= _ROOM:
                yield group
                group = []
        if group:
            yield group

    def segment(self, group: list[Work]) -> list[Work]:
        """Compute the label maps; when that fails, one by one, so that a case cannot harm another."""
        todo = [work for work in group if work.item]
        if len(todo) > 1:
            try:
                self._segment(todo)
            except Exception:
                todo = [work for work in group if work.item]
            else:
                return group
        for work in todo:
            self._attempt(work, None, lambda one: self._segment([one]))  # which notes its stages itself
        return group

    def save(self, work: Work) -> CaseResult:
        """Write the label map and tell of the case."""
        if work.item:
            self._attempt(work, "write", self._save)
        self.status.add(work.result)
        self.report(work.result)
        return work.result

    def _attempt(self, work: Work, stage: str | None, act: Callable[[Work], None]) -> None:
        start = time.perf_counter()
        try:
            act(work)
        except Exception as error:
            work.item = {}
            cause = root_cause(error)
            if isinstance(cause, DiskFullError) and _is_below(Path(cause.place), self.output_dir):
                raise cause from error
            self._fail(work, cause)
        _spent(work.result, {stage: time.perf_counter() - start} if stage else {})

    def _fail(self, work: Work, cause: BaseException) -> None:
        """Tell what went wrong, and that a result of an earlier call is still there."""
        result = work.result
        result.state = "refused" if isinstance(cause, (MismatchError, GeometryError)) else "failed"
        result.message = _sentence(work.case, cause)
        result.earlier = result.output in self.status.kept and (self.output_dir / result.output).is_file()
        if result.earlier:
            result.message += f" ({result.output} is of an earlier call)"

    def _open(self, work: Work) -> None:
        case, plan = work.case, self.segmenter.plan
        output = self.output_dir / work.result.output
        require_elsewhere(output, case.images)
        if work.result.output in self._foreign:
            work.result.output = ""
            raise MismatchError(
                f"{case.images[0]}: the result would replace {output}, which is of another input or not of medunet; "
                f"give another folder with -o, or --force"
            )
        if self.segmenter.output_format != "nifti":
            require_writable(case.images[0], self.segmenter.output_format)
        header = read_header(case.images[0])
        if self.segmenter.output_format == "nifti":
            require_nifti(case.images[0], header.grid)
        work.result.warnings += whole_reading(case.images[0], header)
        work.result.geometry = None if header.verdict is None else dict(header.verdict)
        for image, channel in zip(case.images, plan["channels"], strict=False):
            verdict = header.verdict if image == case.images[0] else read_header(image).verdict
            self._heed(work, compare_modality(verdict, channel))
        self._heed(work, compare_grid(header.grid, plan))
        images = case.images[0] if len(case.images) == 1 else list(case.images)
        item = self.segmenter.preprocessing({"image": images, "output": case.output})
        seen = self.segmenter.inferer.frame.see(item["image"])
        ranges = [(float(channel.min()), float(channel.max())) for channel in item["image"].as_tensor().numpy()]
        self._heed(work, compare_intensity(ranges, plan))
        work.item = {**item, "seen": seen}

    def _look(self, work: Work) -> None:
        """Find the part that is worth a look, and how many windows it has."""
        inferer, network = self.segmenter.inferer, self.segmenter.network
        seen = inferer.crop(work.item["seen"], network)
        work.item["seen"], work.windows = seen, inferer.windows(seen, network)[1].count

    def _segment(self, group: Sequence[Work]) -> None:
        """Compute cases whose windows share forward passes."""
        inferer, network = self.segmenter.inferer, self.segmenter.network
        images = [work.item["seen"] for work in group]
        self._tell(group[0].case.name, images[0])
        start = time.perf_counter()
        with ExitStack() as files:
            sinks = [files.enter_context(self._sink(work)) for work in group]
            made = inferer.segment(images, network, sinks)
        around = sum(one.preprocess + one.restore for one in made)
        computed = (time.perf_counter() - start - around) / len(group)
        for work, one in zip(group, made, strict=True):
            self._keep(work, one)
            _spent(work.result, {"preprocess": one.preprocess, "network": computed, "restore": one.restore})

    def _sink(self, work: Work) -> AbstractContextManager[Sink | None]:
        if not self.keep_probabilities:
            return nullcontext()
        plan = self.segmenter.plan
        outputs = len(plan.get("regions") or plan["labels"])
        return probability_file(self._probability_path(work.case), (outputs, *work.item["seen"].file.shape))

    def _keep(self, work: Work, made: Segmentation) -> None:
        """What is left of a case for the writer."""
        classes = list(self.segmenter.plan["labels"])[1:]
        work.result.quality = expected_quality(made.certainty, classes, self.segmenter.calibrations)
        expected = [q["expected_dice"] for q in work.result.quality.values() if q["expected_dice"] is not None]
        work.result.expected_dice = min(expected, default=None)
        seen = work.item.pop("seen")
        work.item["pred"] = self.segmenter.inferer.label_tensor(made.labels, seen.file)[0]
        work.item["image"] = without_voxels(work.item["image"])

    def _tell(self, name: str, seen: NetworkImage) -> None:
        """Before the first case: what computes, and what it will take where that is more than a few seconds."""
        if self._told:
            return
        self._told = True
        inferer = self.segmenter.inferer
        load = inferer.workload(seen, self.segmenter.network)
        if inferer.choice:
            self.say(inferer.choice)
        if load.seconds > _LONG:
            flips = f" x {load.flips} flips" if load.flips > 1 else ""
            others = ", partners not counted" if inferer.partners else ""
            self.say(
                f"{name}: {load.windows} windows{flips}, about {in_words(load.seconds)}, "
                f"{max(0.1, load.memory / 1e9):.1f} GB beside the network{others}"
            )

    def _save(self, work: Work) -> None:
        work.result.probabilities = self.keep_probabilities
        if work.result.output in self.status.kept and not self.keep_probabilities:
            self._probability_path(work.case).unlink(missing_ok=True)  # they are of the label map that goes
        work.result.warnings += self.segmenter.postprocessing(work.item).get("warnings", [])
        work.item, work.result.state = {}, "done"

    def _probability_path(self, case: InputCase) -> Path:
        return self.output_dir / f"{case.name}_probabilities.npy"

    def _heed(self, work: Work, concerns: Sequence[Concern]) -> None:
        """Note warnings; raise a MismatchError at a fatal concern unless forced."""
        for concern in concerns:
            message = f"{work.case.images[0]}: {concern.message}"
            if concern.fatal and not self.force:
                raise MismatchError(f"{message} (--force predicts all the same)")
            work.result.warnings.append(message)


def _require_folder(folder: Path) -> None:
    """Make the output folder, and refuse one that nothing can be written into."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with disk_errors(folder), TemporaryFile(prefix=PART, dir=folder):
            pass
    except OSError as error:
        raise InputError(f"{folder}: cannot be written ({error.strerror}); give another folder with -o") from error


def _is_below(path: Path, folder: Path) -> bool:
    return path.resolve().is_relative_to(folder.resolve())


def whole_reading(image: str, header: Header) -> list[str]:
    """What to know of a large picture whose format cannot be read by region."""
    path, pixels = Source.parse(image).path, math.prod(header.grid.shape)
    if pixels < _LARGE_PICTURE or not path.name.lower().endswith((".png", ".bmp", ".jpg", ".jpeg")):
        return []
    return [
        f"{image}: is read whole into memory ({pixels * header.channels / 1e9:.1f} GB); tiled TIFF is read by region"
    ]


def _spent(result: CaseResult, seconds: Mapping[str, float]) -> None:
    """Add to the seconds of a case's stages."""
    for stage, more in seconds.items():
        result.stages[stage] = round(result.stages.get(stage, 0.0) + more, 4)
    result.seconds = round(sum(result.stages.values()), 3)


def in_words(seconds: float) -> str:
    """A duration for reading.

    >>> in_words(42), in_words(1300), in_words(9000)
    ('42 s', '22 min', '2.5 h')
    """
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"


def _sentence(case: InputCase, cause: BaseException) -> str:
    if isinstance(cause, NetworkError):  # which knows no file
        return f"{case.images[0]}: {cause}"
    if isinstance(cause, MedunetError):
        return str(cause)
    if is_out_of_memory(cause):
        return f"{case.images[0]}: does not fit the memory; close other programs or use a machine with more"
    return f"{case.images[0]}: {type(cause).__name__}: {cause}"
