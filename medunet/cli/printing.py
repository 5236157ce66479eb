"""What the command line shows: plain lines, aligned, nothing when ``--quiet``."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

_DOUBTFUL = 0.7


class Printer:
    """Prints results; `quiet` silences everything but errors."""

    def __init__(self) -> None:
        self.debug, self.quiet = False, False

    def say(self, text: str = "") -> None:
        """One line."""
        if not self.quiet:
            print(text, flush=True)

    def progress(self, what: str) -> Callable[[int, int], None]:
        """A counter on a terminal, silence elsewhere."""

        def show(done: int, total: int) -> None:
            if self.quiet or not sys.stderr.isatty():
                return
            end = "\n" if done == total else ""
            print(f"\r{what}: {done} of {total}", end=end, file=sys.stderr, flush=True)

        return show

    def index(self, found: Any) -> None:
        """What a dataset holds and what was noticed."""
        from medunet.data.labelling import Declared, in_words

        self.say(f"{found.name}: {len(found.training)} training and {len(found.test)} test cases ({found.layout})")
        self.say(f"  channels  {', '.join(found.channels)}")
        self.say(f"  labels    {in_words(Declared(found.labels, found.regions, found.ignore))}")
        folds = [sum(found.fold_of(case) == fold for case in found.training) for fold in range(5)]
        self.say(f"  folds     {', '.join(map(str, folds))} cases, by patient")
        for finding in found.findings:
            self.say(f"  note      {finding.message}")

    def scan(self, folder: Path, found: Any) -> None:
        """Every stack of images with its verdict, then label objects and what was set aside."""
        patients = len({series.patient for series in found.series})
        counts = [
            _counted(len(found.series), "stack of images", "stacks of images"), _counted(patients, "patient"),
            _counted(len(found.labels), "label object"), f"{_counted(len(found.aside), 'file')} set aside",
        ]  # fmt: skip
        self.say(f"{folder}: {', '.join(counts)}")
        for series in found.series:
            grid = series.layout.grid
            size = f"  {' x '.join(map(str, grid.shape))} voxels of {_spacing(grid.spacing)} mm" if grid else ""
            images = _counted(len(series.frames), "image")
            self.say(f"  {series.verdict.state:<9} {series.patient or '-'}  {series.name}  {images}{size}")
            for reason in (*series.verdict.reasons, *series.verdict.notes):
                self.say(f"{'':<12}{reason}")
        for label in found.labels:
            self.say(f"  {label.kind.lower():<9} {label.patient or '-'}  {label.path}")
        for reason, number, first in _grouped(found.aside):
            self.say(f"  {'aside':<9} {first}{f' and {number - 1} more' if number > 1 else ''}: {reason}")

    def plan(self, result: Any, bundle: Path, rows: Sequence[dict[str, str]]) -> None:
        """The plan in a few lines, or with every reason."""
        if rows:
            widest = max(len(row["key"]) for row in rows)
            for row in rows:
                self.say(f"{row['key']:<{widest}}  {row['value']}\n{'':<{widest}}  because: {row['reason']}")
        else:
            patch = " x ".join(map(str, result.patch_size))
            spacing = " x ".join(f"{s:g}" for s in result.spacing)
            from medunet.planning.surveyed import kind_of

            channels = result.network.get("channels")
            levels = f", {len(channels)} levels from {channels[0]} channels" if channels else ""
            self.say(f"{result.name}: {result.dims}D {kind_of(result.network)}{levels}")
            self.say(f"  patch {patch} at {spacing} mm, batch {result.batch_size}, "
                     f"about {_bytes(result.memory_estimate)} a step")  # fmt: skip
        self.say(f"wrote {bundle}    next: medunet train {bundle}")

    def scores(self, path: Path) -> None:
        """Mean Dice with its interval, and per class."""
        if not path.is_file():
            self.say(f"no scores were written ({path}): the run was stopped before its end")
            return
        from medunet.evaluation.scores import read_scores

        content = read_scores(path)
        dice = content["summary"].get("dice", {})
        if dice.get("mean") is None:
            self.say("Dice: no case has a class to score")
        else:
            (low, high), count = dice["ci95"], len(content["cases"])
            interval = f" (95% CI {low:.4f} to {high:.4f})" if count > 1 else ""
            self.say(f"Dice {dice['mean']:.4f}{interval} over {_counted(count, 'case')}")
        for name, values in content["classes"].items():
            self.say(f"  {name:<20} {_mean_of(values, 'dice')}")
            if "instance_f1" in values:
                self.say(f"    objects: F1 {_mean_of(values, 'instance_f1')}, SEG {_mean_of(values, 'seg')}")
        if content.get("unpredicted"):
            self.say(f"{_counted(content['unpredicted'], 'training case')} of the references have no prediction")
        self.say(f"wrote {path}")

    def failed(self, cases: Sequence[dict[str, str]]) -> None:
        """One line per case that could not be scored."""
        for case in cases:
            print(f"medunet: failed: {case['message']}", file=sys.stderr)

    def case(self, result: Any) -> None:
        """One line per predicted case."""
        for warning in result.warnings if result.state == "done" else []:
            print(f"medunet: warning: {warning}", file=sys.stderr)
        if result.state in ("failed", "refused"):
            print(f"medunet: {result.state}: {result.message}", file=sys.stderr)
        else:
            expected = "" if result.expected_dice is None else f"  expected Dice {result.expected_dice:.2f}"
            self.say(f"{result.state:>12}  {result.output}  {result.seconds:.2f} s{expected}")
            geometry = result.geometry or {}
            for reason in geometry.get("reasons", []):
                self.say(f"{'':>14}{geometry['verdict']}: {reason}")

    def done(self, results: Sequence[Any], output: Path) -> None:
        """The count at the end of a batch."""
        good = sum(result.state in ("done", "already done") for result in results)
        self.say(f"{good} of {len(results)} cases in {output}")
        expected = [(r.expected_dice, r.name) for r in results if r.expected_dice is not None]
        doubtful = sorted(pair for pair in expected if pair[0] < _DOUBTFUL)
        if doubtful:
            names = ", ".join(name for _, name in doubtful[:8]) + (", ..." if len(doubtful) > 8 else "")
            self.say(f"look first at {names}: expected (not measured) Dice below {_DOUBTFUL}")


def _mean_of(values: Any, metric: str) -> str:
    mean = values[metric]["mean"]
    return "-" if mean is None else f"{mean:.4f}"


def _counted(number: int, noun: str, plural: str = "") -> str:
    return f"{number} {noun if number == 1 else plural or noun + 's'}"


def _bytes(number: int) -> str:
    return f"{number / 1e9:.1f} GB" if number >= 1e8 else f"{number / 1e6:.0f} MB"


def _spacing(spacing: Sequence[float]) -> str:
    return " x ".join(f"{s:.3g}" for s in spacing)


def _grouped(aside: Sequence[Any]) -> list[tuple[str, int, str]]:
    """(reason, how many, the first) of what was set aside."""
    groups: dict[str, list[str]] = {}
    for item in aside:
        groups.setdefault(item.reason, []).append(item.location)
    return [(reason, len(places), places[0]) for reason, places in groups.items()]
