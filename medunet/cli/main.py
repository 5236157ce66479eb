"""The ``medunet`` command: arguments and printing; the work is in `medunet.verbs`, imported inside each verb."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from medunet.cli import options, sharing
from medunet.cli.printing import Printer
from medunet.errors import MedunetError, PartialFailureError

app = typer.Typer(
    name="medunet",
    help="From a folder of labelled CT/MRI volumes to a segmentation model that another hospital can check and run.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
state = Printer()
_STOPPED = 130  # by Ctrl-C

DatasetArgument = Annotated[Path, typer.Argument(metavar="DATASET", help="dataset folder, datalist file or index JSON")]
BundleArgument = Annotated[Path, typer.Argument(metavar="BUNDLE", help="bundle folder")]
Set = Annotated[list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="change one value; repeatable")]
Overlays = Annotated[
    list[str] | None,
    typer.Option("--config", metavar="OVERLAY", help="change several values: a file or a shipped name; repeatable"),
]
Device = Annotated[str, typer.Option("--device", help="auto, cpu or cuda")]
Minutes = Annotated[float | None, typer.Option("--minutes", min=0.01, help="fit the whole training into N minutes")]
AllowGaps = Annotated[
    bool, typer.Option("--allow-gaps", help="interpolate missing DICOM slices instead of refusing the series")
]
Epochs = Annotated[int | None, typer.Option("--epochs", min=1, help="train for N epochs")]


@app.callback()
def common(
    debug: Annotated[bool, typer.Option("--debug", help="show trace-backs")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", help="print errors only")] = False,
) -> None:
    """Options that stand before the verb."""
    state.debug, state.quiet = debug, quiet


@app.command()
def index(
    dataset: DatasetArgument,
    json_file: Annotated[Path | None, typer.Option("--json", metavar="FILE", help="write the index here")] = None,
    on_problem: Annotated[str, typer.Option("--on-problem", help="stop, or skip cases with problems")] = "stop",
    allow_gaps: AllowGaps = False,
) -> None:
    """Recognise a dataset and check every case."""
    from medunet import verbs
    from medunet.data.atomic import write_json

    options.one_of("--on-problem", on_problem, ("stop", "skip"))
    found = verbs.index(dataset, on_problem, state.progress("checking cases"), allow_gaps=allow_gaps)
    state.index(found)
    if json_file:
        write_json(json_file, found.as_json())


@app.command()
def plan(
    dataset: DatasetArgument,
    bundle: Annotated[Path, typer.Option("--bundle", metavar="DIR", help="write the bundle here")],
    dims: Annotated[int | None, typer.Option("--dims", help="2 or 3; chosen from the data when not given")] = None,
    device: Annotated[str | None, typer.Option("--device", help="auto, cpu or cuda (auto)")] = None,
    memory: Annotated[str | None, typer.Option("--memory", help="what a training step may take (8GB)")] = None,
    minutes: Minutes = None,
    epochs: Epochs = None,
    config: Overlays = None,
    settings: Set = None,
    explain: Annotated[bool, typer.Option("--explain", help="print the reason for every number")] = False,
    allow_gaps: AllowGaps = False,
) -> None:
    """Plan a run and write it as a MONAI bundle."""
    from medunet import verbs
    from medunet.bundle.writer import explain as rows

    budget, chosen = options.plan_options(dims, device, memory, (minutes, epochs), config or [], settings or [])
    result = verbs.plan(
        dataset, bundle, budget, chosen, progress=state.progress("checking cases"), allow_gaps=allow_gaps
    )
    state.plan(result, bundle, rows(result) if explain else [])


@app.command()
def train(
    bundle: BundleArgument,
    fold: Annotated[str, typer.Option("--fold", metavar="K|all", help="fold to hold out, or all in turn")] = "0",
    minutes: Minutes = None,
    epochs: Epochs = None,
    resume: Annotated[bool, typer.Option("--resume", help="go on from the last checkpoint")] = False,
    init: Annotated[
        Path | None, typer.Option("--init", metavar="BUNDLE", help="begin with the weights of another bundle")
    ] = None,
    device: Device = "auto",
    config: Overlays = None,
    settings: Set = None,
) -> None:
    """Train a bundle.

    Leaves weights, scores and a report in it.
    """
    from medunet import verbs

    overrides = options.train_options((minutes, epochs), resume, device, config or [], settings or [])
    if init is not None:
        overrides["init"] = str(init.resolve())
    overrides.setdefault("quiet", state.quiet)
    for path in verbs.train(bundle, options.fold(fold), overrides):
        state.scores(path)
        if path.with_name("report.html").is_file():
            state.say(f"open {path.with_name('report.html')} in a browser")


@app.command()
def predict(
    bundle: BundleArgument,
    inputs: Annotated[
        list[str], typer.Argument(metavar="INPUT...", help="volumes, DICOM, folders of either, or @list.txt")
    ],
    output: Annotated[Path, typer.Option("-o", metavar="DIR", help="write label maps here")],
    output_format: Annotated[
        str, typer.Option("--format", help="nifti; dicom-seg or rtstruct for DICOM; tiff or png for pictures")
    ] = "nifti",
    labelmap: Annotated[
        bool, typer.Option("--labelmap", help="dicom-seg as a label map; fewer viewers read it")
    ] = False,
    instances: Annotated[
        str | None, typer.Option("--instances", metavar="CLASS", help="number the parts of this class instead")
    ] = None,
    allow_gaps: AllowGaps = False,
    backend: Annotated[str, typer.Option("--backend", help="auto, torch, openvino or onnx")] = "auto",
    device: Device = "auto",
    overlap: Annotated[float | None, typer.Option("--overlap", min=0.0, max=0.95, help="of windows")] = None,
    mirror: Annotated[
        bool, typer.Option("--mirror", help="average over mirrored inputs: slower, often better")
    ] = False,
    probabilities: Annotated[bool, typer.Option("--probabilities", help="also keep class probabilities")] = False,
    force: Annotated[
        bool, typer.Option("--force", help="take inputs that the model was not made for; replace others' results")
    ] = False,
) -> None:
    """Segment volumes, each onto its own grid."""
    from medunet import verbs

    options.one_of("--format", output_format, ("nifti", "dicom-seg", "rtstruct", "tiff", "png"))
    options.one_of("--backend", backend, ("auto", "torch", "openvino", "onnx"))
    overrides = options.predict_options(device, backend, overlap, mirror) | options.save_options(
        output_format, labelmap, instances
    )
    results = verbs.predict(
        bundle, inputs, output, overrides,
        force=force, probabilities=probabilities, allow_gaps=allow_gaps, report=state.case, say=state.say,
    )  # fmt: skip
    failed = [result for result in results if result.state in ("failed", "refused")]
    state.done(results, output)
    if failed:
        raise PartialFailureError(f"{len(failed)} of {len(results)} cases failed; see {output / 'status.json'}")


@app.command()
def evaluate(
    predictions: Annotated[Path, typer.Argument(metavar="PREDICTIONS", help="folder of label maps")],
    references: Annotated[Path, typer.Argument(metavar="REFERENCES", help="folder of label maps, or a dataset")],
    output: Annotated[Path, typer.Option("-o", metavar="scores.json", help="write scores here, and a CSV beside it")],
    labels: Annotated[
        str | None,
        typer.Option(
            "--labels",
            metavar="NAME=ID,...",
            help="classes to score; NAME=1+2 for a region, ignore=ID for voxels nobody annotated",
        ),
    ] = None,
    instances: Annotated[bool, typer.Option("--instances", help="both are maps of numbered objects")] = False,
) -> None:
    """Score label maps against references."""
    from medunet import verbs

    content = verbs.evaluate(predictions, references, output, options.labels(labels), instances=instances)
    state.failed(content["failed"])
    state.scores(output)
    if failed := len(content["failed"]):
        total = failed + len(content["cases"])
        raise PartialFailureError(f"{failed} of {total} cases could not be scored; see {output}")


@app.command()
def report(
    source: Annotated[Path, typer.Argument(metavar="BUNDLE|SCORES", help="trained bundle or scores.json")],
    output: Annotated[Path | None, typer.Option("-o", metavar="report.html", help="write the report here")] = None,
) -> None:
    """Write one HTML file with scores and pictures."""
    from medunet import verbs

    state.say(f"wrote {verbs.report(source, output)}")


@app.command()
def dicom(
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="folder, DICOMDIR, zip or file")],
    json_file: Annotated[Path | None, typer.Option("--json", metavar="FILE", help="write the list here")] = None,
    allow_gaps: AllowGaps = False,
) -> None:
    """List DICOM series, with a verdict on each."""
    from medunet import verbs
    from medunet.data.atomic import write_json

    found = verbs.dicom(folder, allow_gaps=allow_gaps)
    state.scan(folder, found)
    if json_file:
        write_json(json_file, found.as_json())


@app.command()
def inspect(
    source: Annotated[Path, typer.Argument(metavar="BUNDLE|ZIP", help="bundle folder or zip file, from anywhere")],
    json_file: Annotated[Path | None, typer.Option("--json", metavar="FILE", help="write all findings here")] = None,
) -> None:
    """Examine a bundle without running it.

    Any MONAI bundle, folder or zip. Exit code 0: safe to load, 1: loads code, 3: refused.
    """
    from medunet import verbs
    from medunet.data.atomic import write_json
    from medunet.trust.inspection.verdict_text import verdict_text

    found = verbs.inspect(source)
    state.say(verdict_text(found))
    if json_file:
        write_json(json_file, found.as_json())
    if found.exit_code:
        raise typer.Exit(found.exit_code)


@app.command()
def demo(
    output: Annotated[Path, typer.Option("-o", metavar="DIR", help="work here")] = Path("demo-output"),
) -> None:
    """The whole journey on phantom data.

    Plan, train, predict, evaluate and report, in a few minutes.
    """
    from medunet.cli.demo import run_demo

    run_demo(output, state)


sharing.register(app, state)


def main() -> None:
    """Entry point; a user sees one sentence and an exit code, a trace-back only with ``--debug``."""
    try:
        code = app(standalone_mode=False)  # typer gives the code of a Ctrl-C, older ones an Abort
        sys.exit(_fail("stopped", code) if code == _STOPPED else code)
    except MedunetError as error:
        sys.exit(_fail(error, error.exit_code))
    except (KeyboardInterrupt, typer.Abort):
        sys.exit(_fail("stopped", _STOPPED))
    except Exception as error:
        sys.exit(_unexpected(error))


def _fail(error: object, code: int) -> int:
    if state.debug and isinstance(error, BaseException):
        import traceback

        traceback.print_exception(error)
    print(f"medunet: {error}", file=sys.stderr)
    return code


def _unexpected(error: Exception) -> int:
    """Usage errors keep their own words and code; anything else is a defect and is named as one."""
    show: Any = getattr(error, "show", None)
    if show is not None:
        show()
        return int(getattr(error, "exit_code", 2))
    if isinstance(error, OSError) and error.filename and not state.debug:
        path = error.filename2 or error.filename
        return _fail(f"{path}: cannot be read or written ({error.strerror}); give another path", 2)
    return _fail(error if state.debug else f"{type(error).__name__}: {error} (--debug shows where)", 2)
