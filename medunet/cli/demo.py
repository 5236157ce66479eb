"""The whole journey on phantom data."""

from __future__ import annotations

from pathlib import Path

from medunet.cli.printing import Printer

_CASES, _TEST, _MINUTES = 12, 3, 1.5


def run_demo(folder: Path, printer: Printer) -> None:
    """Phantoms -> index -> plan -> train -> predict -> evaluate -> report, everything below `folder`."""
    from medunet import verbs
    from medunet.data.phantom import write_dataset
    from medunet.planning import Budget

    dataset, unseen, bundle = folder / "dataset", folder / "unseen", folder / "bundle"
    predictions, scores = folder / "predictions", folder / "scores.json"
    printer.say(f"1. {_CASES} CT-like phantoms with labels -> {dataset}")
    write_dataset(dataset, cases=_CASES, seed=0)
    write_dataset(unseen, cases=_TEST, seed=1000)
    printer.say("2. index and plan")
    indexed = verbs.index(dataset)
    printer.index(indexed)
    result = verbs.plan(dataset, bundle, Budget(device="cpu", minutes=_MINUTES))
    printer.plan(result, bundle, [])
    printer.say(f"3. train for {_MINUTES:g} minutes")
    for path in verbs.train(bundle, 0, {"quiet": printer.quiet}):
        printer.scores(path)
    printer.say(f"4. predict {_TEST} unseen phantoms")
    results = verbs.predict(bundle, [unseen / "imagesTr"], predictions, report=printer.case)
    printer.done(results, predictions)
    printer.say("5. evaluate and report")
    labels = {name: value for name, value in indexed.labels.items() if value}
    verbs.evaluate(predictions, unseen / "labelsTr", scores, labels)
    printer.scores(scores)
    printer.say(f"open {verbs.report(scores)} and {bundle / 'eval' / 'fold_0' / 'report.html'} in a browser")
