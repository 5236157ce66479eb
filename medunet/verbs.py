"""One function per verb: load what is needed, call the rooms; nothing else. The command line is the same list."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from medunet.errors import BundleError, InputError

if TYPE_CHECKING:
    from medunet.data.dicom.scan import Scan
    from medunet.data.examine import Measurement
    from medunet.data.index import Index
    from medunet.inference.runner import Segmenter
    from medunet.inference.status import CaseResult
    from medunet.planning import Budget, Fingerprint, Plan
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
    result = planning.plan(data, budget or planning.Budget(), settings)
    write_bundle(result, indexed, data, Path(bundle))
    return result


def train(bundle: StrPath, fold: int | str = 0, overrides: Mapping[str, Any] | None = None) -> list[Path]:
    """Train a fold, or ``all`` folds that have patients of their own one after the other; the folds' scores.

    `overrides` are MONAI's ``KEY: value`` pairs, such as ``{"optimizer::lr": 0.001, "minutes": 10}``.
    The weights that stay in ``models/model.pt`` are those of the last fold trained.

    Raises:
        MedunetError: with one sentence, whatever went wrong.
    """
    from medunet.bundle.running import train_bundle
    from medunet.training.cases import load_index

    root = _bundle(bundle)
    folds = [fold]
    if fold == "all":
        dataset_dir = (overrides or {}).get("dataset_dir") or _config_value(root, "train.yaml", "dataset_dir")
        folds = list(load_index(str(root), dataset_dir).filled_folds())
    for number in folds:
        train_bundle(root, {"fold": int(number), **(overrides or {})})
    return [root / "eval" / f"fold_{number}" / "scores.json" for number in folds]


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
        MedunetError: the bundle or the inputs cannot be used at all; a case that fails is told in its result.
    """
    from medunet.inference.inputs import find_cases
    from medunet.inference.runner import segment_cases

    root = _bundle(bundle)
    output = Path(output_dir)
    from medunet.bundle import read_plan

    cases = find_cases(inputs, read_plan(str(root))["channels"], allow_gaps=allow_gaps)
    segmenter = _segmenter(root, {"output_dir": str(output), **(overrides or {})})
    return segment_cases(
        segmenter, cases, output, force=force, keep_probabilities=probabilities, report=report, say=say
    )


def evaluate(
    predictions: StrPath, references: StrPath, output: StrPath, labels: Mapping[str, int] | None = None
) -> dict[str, Any]:
    """Score a folder of label maps against a folder of references and write JSON and CSV.

    Raises:
        InputError: a folder is missing or nothing matches.
    """
    from medunet.evaluation import scores

    content: dict[str, Any] = scores.evaluate(Path(predictions), Path(references), dict(labels) if labels else None)
    scores.write_scores(Path(output), content)
    return content


def report(source: StrPath, output: StrPath | None = None) -> Path:
    """One HTML file from ``scores.json`` or from a trained bundle (its first scored fold).

    Raises:
        InputError: there are no scores.
    """
    from medunet.evaluation import report as room
    from medunet.evaluation import scores

    path = Path(source)
    found = path if path.is_file() else _first_scores(path)
    target = Path(output) if output else found.with_name("report.html")
    block, log = _context(found)
    values = {key: value for key, value in block.items() if key != "reasons"} if block else None
    room.write_report(
        scores.read_scores(found),
        target,
        title=f"{block['name']}, {found.parent.name.replace('_', ' ')}"
        if block
        else f"{found.resolve().parent.name}, {found.stem}",
        plan=values,
        reasons=block["reasons"] if block else None,
        log=log,
        base=found.parent,
    )
    return target


def inspect(source: StrPath) -> Audit:
    """What a bundle folder or zip file would do when it is loaded, found without running anything of it.

    Raises:
        InputError: it is not there or cannot be read.
    """
    from medunet.trust.audit import audit

    return audit(Path(source))


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


def _config_value(root: Path, config: str, key: str) -> Any:
    import yaml

    return yaml.safe_load((root / "configs" / config).read_text(encoding="utf-8"))[key]


def _segmenter(root: Path, overrides: Mapping[str, Any]) -> Segmenter:
    from medunet.bundle import read_plan
    from medunet.bundle.running import explained, load_workflow
    from medunet.inference.quality import read_calibrations
    from medunet.inference.runner import Segmenter
    from medunet.inference.weights import model_digest, weights_digest

    with explained(root / "configs" / "inference.yaml"):
        parser = load_workflow(root, "inference.yaml", "infer", overrides).parser
        parser.get_parsed_content("weights").load()
        part = parser.get_parsed_content
        return Segmenter(
            plan=read_plan(str(root)),
            network=part("network").eval(),
            preprocessing=part("preprocessing"),
            inferer=part("inferer"),
            postprocessing=part("postprocessing"),
            device=part("device"),
            digest=model_digest(root, overrides),
            output_format=part("save").output_format,
            calibrations=read_calibrations(root, weights_digest(root)),
        )


def _first_scores(bundle: Path) -> Path:
    found = sorted(bundle.glob("eval/fold_*/scores.json"))
    if not found:
        raise InputError(f"{bundle}: has no scores (eval/fold_*/scores.json); train the bundle or give a scores.json")
    return found[0]


def _context(found: Path) -> tuple[dict[str, Any] | None, list[dict[str, Any]] | None]:
    """The plan and the training log around a bundle's scores, where there are any."""
    from medunet.bundle import read_plan

    log = found.with_name("log.jsonl")
    rows = [json.loads(line) for line in log.read_text(encoding="utf-8").splitlines()] if log.is_file() else None
    try:
        return read_plan(str(found.parents[2])), rows
    except (BundleError, IndexError):
        return None, rows
