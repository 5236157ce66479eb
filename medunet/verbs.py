"""One function per verb: load what is needed, call the rooms; nothing else. The command line is the same list."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from medunet.errors import BundleError, InputError

if TYPE_CHECKING:
    from medunet.bundle.packing import Packed
    from medunet.data.dicom.scan import Scan
    from medunet.data.examine import Measurement
    from medunet.data.index import Index
    from medunet.inference.status import CaseResult
    from medunet.planning import Budget, Fingerprint, Plan
    from medunet.trust.archive.verifying import Verification
    from medunet.trust.findings import Audit
    from medunet.types import StrPath

Progress = Callable[[int, int], None]


def index(
    dataset: StrPath, on_problem: str = "stop", progress: Progress | None = None, *, allow_gaps: bool = False
) -> Index:
    """Recognise a dataset folder (or a datalist, or an index written before) and check every case.

    Raises:
        DatasetError: nothing is recognised, or cases have problems and `on_problem` is ``stop``.
    """
    return _examined(dataset, on_problem, progress, allow_gaps)[0]


def fingerprint(dataset: StrPath, on_problem: str = "stop", progress: Progress | None = None) -> Fingerprint:
    """Index a dataset and reduce it to the numbers that a plan needs."""
    from medunet import planning

    return planning.fingerprint(*_examined(dataset, on_problem, progress))


def dicom(folder: StrPath, *, allow_gaps: bool = False) -> Scan:
    """What a folder, DICOMDIR, zip or file of DICOM holds, with a geometry verdict for every stack of images.

    Raises:
        InputError: it is missing or a broken archive.
    """
    from medunet.data.dicom.scan import scan

    return scan(folder, allow_gaps=allow_gaps)


def plan(
    dataset: StrPath,
    bundle: StrPath,
    budget: Budget | None = None,
    settings: Mapping[str, Any] | None = None,
    on_problem: str = "stop",
    progress: Progress | None = None,
    *,
    allow_gaps: bool = False,
) -> Plan:
    """Index a dataset, plan a run within `budget`, and write the bundle.

    Raises:
        MedunetError: the dataset, a setting or the bundle's folder does not fit; nothing is written then.
    """
    from medunet import planning
    from medunet.bundle import write_bundle

    indexed, measurements = _examined(dataset, on_problem, progress, allow_gaps)
    data = planning.fingerprint(indexed, measurements)
    result = planning.plan(data, budget or planning.Budget(), settings, _survey)
    write_bundle(result, indexed, data, Path(bundle))
    return result


def _survey(*words: Any) -> Any:
    """`medunet.networks.survey`, loaded for plans with another network than the plain U-Net only."""
    from medunet.networks import survey

    return survey(*words)


def train(bundle: StrPath, fold: int | str = 0, overrides: Mapping[str, Any] | None = None) -> list[Path]:
    """Train a fold, or ``all`` folds that have patients of their own one after the other; the folds' scores.

    `overrides` are MONAI's ``KEY: value`` pairs, such as ``{"optimizer::lr": 0.001, "minutes": 10}``.
    After a fold ``models/model.pt`` is its best network. After ``all`` it is the ensemble of them, and
    ``eval/cross_validation.json`` is the last of the scores. To resume ``all`` is to go on in such a run.

    Raises:
        MedunetError: with one sentence, whatever went wrong.
    """
    root, values = _bundle(bundle), dict(overrides or {})
    from medunet.bundle.folds import train_fold, train_folds

    chosen = values.pop("fold", fold)
    return train_folds(root, values) if chosen == "all" else train_fold(root, values, int(chosen))


def predict(
    bundle: StrPath,
    inputs: Sequence[StrPath],
    output_dir: StrPath,
    overrides: Mapping[str, Any] | None = None,
    *,
    force: bool = False,
    probabilities: bool = False,
    allow_gaps: bool = False,
    report: Callable[[CaseResult], None] = lambda result: None,
    say: Callable[[str], None] = lambda text: None,
) -> list[CaseResult]:
    """Segment inputs with a trained bundle, each onto its own grid; run again, only what is missing is done.

    `overrides` may hold ``"save::output_format"``: ``nifti``, ``dicom-seg`` or ``rtstruct``. `report` is called with
    each case that is finished, `say` with what is known before the first one starts: the backend, and an estimate.

    Raises:
        MedunetError: bundle, inputs or output folder cannot be used at all; a case that fails is told in its result.
    """
    root, output = _bundle(bundle), Path(output_dir)
    if output.exists() and not output.is_dir():
        raise InputError(f"{output}: is a file; give a folder for the results")
    from medunet.bundle import read_plan
    from medunet.bundle.segmenting import load_segmenter
    from medunet.inference.inputs import find_cases
    from medunet.inference.runner import segment_cases

    cases = find_cases(inputs, read_plan(str(root))["channels"], allow_gaps=allow_gaps, output_dir=output)
    segmenter = load_segmenter(root, {"output_dir": str(output), **(overrides or {})})
    return segment_cases(
        segmenter, cases, output, force=force, keep_probabilities=probabilities, report=report, say=say
    )


def evaluate(
    predictions: StrPath,
    references: StrPath,
    output: StrPath,
    labels: Mapping[str, int | list[int]] | None = None,
    *,
    instances: bool = False,
) -> dict[str, Any]:
    """Score a folder of label maps against a folder of references and write JSON and CSV.

    `labels`: the value of each class, or the values of a region; under ``ignore`` that of voxels nobody annotated.
    With `instances` both are maps of numbered objects: F1 at an IoU of 0.5 and SEG are scored beside the masks of all.
    Cases that could not be scored stand under ``failed``.

    Raises:
        InputError: a folder is missing, nothing matches, or `output` would take the place of something else.
    """
    from medunet.evaluation import scores

    scores.require_target(Path(output), Path(references))
    chosen = dict(labels) if labels else None
    content: dict[str, Any] = scores.evaluate(Path(predictions), Path(references), chosen, instances=instances)
    scores.write_scores(Path(output), content)
    return content


def report(source: StrPath, output: StrPath | None = None) -> Path:
    """One HTML file from ``scores.json`` or from a trained bundle: its cross-validation, or its first scored fold.

    Raises:
        InputError: there are no scores.
    """
    from medunet.evaluation import report as room
    from medunet.evaluation import scores

    path = Path(source)
    found = path if path.is_file() else _first_scores(path)
    target = Path(output) if output else found.with_name("report.html")
    place = found.resolve()  # a relative path has too few parents
    block, log = _context(place)
    page = found.with_name(room.SAMPLES)
    values = {key: value for key, value in block.items() if key != "reasons"} if block else None
    room.write_report(
        scores.read_scores(found),
        target,
        title=f"{block['name']}, {_scored(place)}" if block else f"{place.parent.name}, {found.stem}",
        plan=values,
        reasons=block["reasons"] if block else None,
        log=log,
        base=found.parent,
        samples=page.read_bytes() if page.is_file() else None,
    )
    return target


def inspect(source: StrPath) -> Audit:
    """What a bundle folder or zip file would do when it is loaded, found without running anything of it.

    Raises:
        InputError: it is not there or cannot be read.
    """
    from medunet.trust.inspection.audit import audit

    return audit(Path(source))


def pack(
    bundle: StrPath,
    output: StrPath,
    *,
    fix: bool = False,
    key: StrPath | None = None,
    say: Callable[[str], None] = lambda text: None,
) -> Packed:
    """Write what may be shared of a trained bundle as one reproducible archive; sign it with a private `key`.

    Raises:
        UnsafeError: something private or unsafe is in it; `fix` mends what can be mended, in the archive alone.
        MedunetError: the bundle is not complete or cannot be run.
    """
    from medunet.bundle import packing

    return packing.pack(_bundle(bundle), Path(output), fix=fix, key=_optional(key), say=say)


def verify(source: StrPath, key: StrPath | None = None) -> Verification:
    """Check a packed bundle (or what it was unpacked to), as `medunet.trust` and a run of its reference image can.

    Raises:
        InputError: there is no such archive, folder or public `key`; what fails is told in the result.
    """
    from medunet.bundle import receiving

    return receiving.verify(Path(source), _optional(key))


def unpack(source: StrPath, output: StrPath, key: StrPath | None = None) -> Verification:
    """Verify a packed bundle without running it and unpack it to a folder that is new or empty.

    Raises:
        UnsafeError: a check failed; nothing is written then.
        InputError: the archive is missing, or the folder is not empty.
    """
    from medunet.trust.archive import unpacking

    return unpacking.unpack(Path(source), Path(output), _optional(key))


def keygen(output: StrPath) -> str:
    """Write a private key and, with ``.pub`` added to its name, the public one; the fingerprint of the pair.

    Raises:
        InputError: one of the files is there already.
    """
    from medunet.trust.archive import signing

    return signing.keygen(Path(output))


def _optional(path: StrPath | None) -> Path | None:
    return None if path is None else Path(path)


def _examined(
    dataset: StrPath, on_problem: str, progress: Progress | None, allow_gaps: bool = False
) -> tuple[Index, tuple[Measurement, ...]]:
    from medunet.data.examine import examine
    from medunet.data.index import read_index

    return examine(read_index(Path(dataset), allow_gaps=allow_gaps), on_problem=on_problem, progress=progress)


def _bundle(folder: StrPath) -> Path:
    root = Path(folder).resolve()
    if not (root / "configs" / "metadata.json").is_file():
        raise BundleError(f"{folder}: is not a bundle (no configs/metadata.json); write one with medunet plan")
    return root


def _first_scores(bundle: Path) -> Path:
    from medunet.training.folds import cross_validation

    pooled = cross_validation(bundle)
    found = [pooled] if pooled else sorted(bundle.glob("eval/fold_*/scores.json"))
    if not found:
        raise InputError(f"{bundle}: has no scores (eval/fold_*/scores.json); train the bundle or give a scores.json")
    return found[0]


def _scored(found: Path) -> str:
    """What a bundle's scores are of, in words."""
    name = found.stem if found.parent.name == "eval" else found.parent.name
    return name.replace("_", " ").replace("cross validation", "cross-validation")


def _context(found: Path) -> tuple[dict[str, Any] | None, list[dict[str, Any]] | None]:
    """The plan and the training log around a bundle's scores, where there are any."""
    from medunet.bundle import read_plan
    from medunet.data.atomic import read_rows

    log = found.with_name("log.jsonl")
    rows = read_rows(log) if log.is_file() else None
    try:
        return read_plan(str(found.parents[1 if found.parent.name == "eval" else 2])), rows
    except (BundleError, IndexError):
        return None, rows
