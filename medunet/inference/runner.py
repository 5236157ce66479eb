"""Segment case after case: the only part of inference that knows files.

Leaves a label map per case and ``status.json`` in the output folder. Run again, it does only what is missing.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from medunet.data.atomic import write_json, write_with
from medunet.data.dicom.source import Source
from medunet.data.volume import read_header
from medunet.errors import GeometryError, MedunetError, MismatchError, ResourceError, root_cause
from medunet.inference.compare import Concern, compare_grid, compare_intensity, compare_modality
from medunet.inference.inputs import InputCase
from medunet.inference.restoring import current_grid, native_grid, restore_probabilities
from medunet.inference.saving import output_name, require_writable
from medunet.inference.windows import is_out_of_memory

STATUS = "status.json"


@dataclass
class Segmenter:
    """The parts of a bundle that turn files into a label map, as its ``inference.yaml`` defines them."""

    plan: Mapping[str, Any]
    network: torch.nn.Module
    preprocessing: Callable[[Any], Any]
    inferer: Callable[..., torch.Tensor]
    postprocessing: Callable[[Any], Any]
    device: torch.device
    digest: str
    output_format: str = "nifti"


@dataclass
class CaseResult:
    """What became of one case."""

    name: str
    state: str
    message: str = ""
    warnings: list[str] = field(default_factory=list)
    seconds: float = 0.0
    output: str = ""
    images: list[str] = field(default_factory=list)
    geometry: dict[str, Any] | None = None


def segment_cases(
    segmenter: Segmenter,
    cases: Sequence[InputCase],
    output_dir: Path,
    *,
    force: bool = False,
    keep_probabilities: bool = False,
    report: Callable[[CaseResult], None] = lambda result: None,
) -> list[CaseResult]:
    """Segment every case that is not done yet; a case that fails leaves the others unharmed.

    Raises:
        ResourceError: the disk is full (every further case would fail too).
    """
    before = read_status(output_dir, segmenter.digest)
    results: list[CaseResult] = []
    for case in cases:
        output = output_name(case.output, segmenter.output_format)
        old = before.get(output)
        if old and (output_dir / output).is_file() and not _lacks_probabilities(output_dir, case, keep_probabilities):
            results.append(CaseResult(case.name, "already done", output=output, warnings=old.get("warnings", [])))
        else:
            results.append(_attempt(segmenter, case, output_dir, force, keep_probabilities))
        write_status(output_dir, segmenter.digest, results, before)
        report(results[-1])
    return results


def read_status(output_dir: Path, digest: str) -> dict[str, Any]:
    """Cases that were finished before with the same model, by output name; a broken status file counts as none."""
    try:
        content = json.loads((output_dir / STATUS).read_text(encoding="utf-8"))
        if content["model"] != digest:
            return {}
        return {case["output"]: case for case in content["cases"] if case["state"] == "done"}
    except (OSError, ValueError, KeyError, TypeError):
        return {}


def write_status(output_dir: Path, digest: str, results: Sequence[CaseResult], before: Mapping[str, Any]) -> None:
    """Write what is known of every case so far, those of earlier calls included."""
    known = dict(before)
    for result in results:
        if result.state != "already done":
            known[result.output] = vars(result)
    write_json(output_dir / STATUS, {"model": digest, "cases": list(known.values())})


def _lacks_probabilities(output_dir: Path, case: InputCase, wanted: bool) -> bool:
    return wanted and not _probability_path(output_dir, case).is_file()


def _probability_path(output_dir: Path, case: InputCase) -> Path:
    return output_dir / f"{case.name}_probabilities.npz"


def _attempt(
    segmenter: Segmenter, case: InputCase, output_dir: Path, force: bool, keep_probabilities: bool
) -> CaseResult:
    images = [str(Source.parse(image).absolute()) for image in case.images]
    output = output_name(case.output, segmenter.output_format)
    result = CaseResult(case.name, "done", output=output, images=images)
    start = time.perf_counter()
    try:
        _segment(segmenter, case, output_dir, force, keep_probabilities, result)
    except Exception as error:
        cause = root_cause(error)
        if isinstance(cause, ResourceError) and "disk is full" in str(cause):
            raise cause from error
        result.state = "refused" if isinstance(cause, (MismatchError, GeometryError)) else "failed"
        result.message = _sentence(case, cause)
    result.seconds = round(time.perf_counter() - start, 3)
    return result


def _sentence(case: InputCase, cause: BaseException) -> str:
    if isinstance(cause, MedunetError):
        return str(cause)
    if is_out_of_memory(cause):
        return f"{case.images[0]}: does not fit the memory; close other programs or use a machine with more"
    return f"{case.images[0]}: {type(cause).__name__}: {cause}"


@torch.inference_mode()
def _segment(
    segmenter: Segmenter,
    case: InputCase,
    output_dir: Path,
    force: bool,
    keep_probabilities: bool,
    result: CaseResult,
) -> None:
    if segmenter.output_format != "nifti":
        require_writable(case.images[0], segmenter.output_format)
    header = read_header(case.images[0])
    result.geometry = None if header.verdict is None else dict(header.verdict)
    for image, channel in zip(case.images, segmenter.plan["channels"], strict=False):
        verdict = header.verdict if image == case.images[0] else read_header(image).verdict
        _heed(case, compare_modality(verdict, channel), force, result)
    _heed(case, compare_grid(header.grid, segmenter.plan), force, result)
    images = case.images[0] if len(case.images) == 1 else list(case.images)
    item = segmenter.preprocessing({"image": images, "output": case.output})
    _heed(case, compare_intensity(item["image"].meta["value_ranges"], segmenter.plan), force, result)
    image = item["image"]
    batch = image.as_tensor()[None].to(segmenter.device)
    item["pred"] = segmenter.inferer(batch, segmenter.network)[0].cpu()
    if keep_probabilities:
        restored = restore_probabilities(item["pred"], current_grid(image), native_grid(image)).half().numpy()
        write_with(_probability_path(output_dir, case), lambda path: _save_array(path, restored))
    result.warnings += segmenter.postprocessing(item).get("warnings", [])


def _save_array(path: Path, array: Any) -> None:
    with path.open("wb") as file:
        np.savez_compressed(file, probabilities=array)


def _heed(case: InputCase, concerns: Sequence[Concern], force: bool, result: CaseResult) -> None:
    """Note warnings; raise a MismatchError at a fatal concern unless forced."""
    for concern in concerns:
        if concern.fatal and not force:
            raise MismatchError(f"{case.images[0]}: {concern.message} (--force predicts all the same)")
        result.warnings.append(f"{case.images[0]}: {concern.message}")
