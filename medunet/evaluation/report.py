"""One self-contained HTML file: scores worst first, curves, pictures of each case, the plan and its reasons."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

from medunet.data.atomic import write_text
from medunet.evaluation import charts
from medunet.evaluation.pictures import COLOURS, Plane, case_planes
from medunet.planning import in_words
from medunet.planning.surveyed import outline

_SHOWN = (
    "dice", "nsd", "hd95_mm", "assd_mm", "sensitivity", "precision", "volume_error_ml", "lesion_sensitivity",
    "instance_f1", "seg",
)  # fmt: skip
_HEADINGS = {
    "dice": "Dice", "nsd": "NSD", "hd95_mm": "HD95 mm", "assd_mm": "ASSD mm", "sensitivity": "sensitivity",
    "precision": "precision", "volume_error_ml": "volume error ml", "lesion_sensitivity": "lesions found",
    "instance_f1": "F1 of objects", "seg": "SEG",
}  # fmt: skip
MOST_PICTURES = 60
SAMPLES = "samples.png"
"""Augmented training patches, beside the scores of a fold."""


def write_report(
    scores: Mapping[str, Any],
    output: Path,
    *,
    title: str,
    plan: Mapping[str, Any] | None = None,
    reasons: Mapping[str, str] | None = None,
    log: Sequence[Mapping[str, Any]] | None = None,
    base: Path | None = None,
    samples: bytes | None = None,
) -> None:
    """Write the report of `scores` to `output`.

    Args:
        plan: the plan block of a bundle, with `reasons` per key.
        log: rows of ``log.jsonl`` for the learning curves.
        base: folder that relative picture paths in `scores` start from.
        samples: PNG of augmented training patches.

    The pictures of at most 60 cases are drawn, the worst ones.
    """
    import jinja2

    names = list(scores["classes"])
    cases = sorted(scores["cases"], key=_mean_dice)
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True)
    text = (resources.files("medunet.evaluation") / "templates" / "report.html.j2").read_text(encoding="utf-8")
    environment.filters["number"] = _format
    page = environment.from_string(text).render(
        title=title,
        scores=scores,
        names=names,
        colours={name: COLOURS[number % len(COLOURS)] for number, name in enumerate(names)},
        metrics=[m for m in _SHOWN if m in scores["summary"]],
        headings=_HEADINGS,
        cases=cases,
        pictures=_pictures(cases, scores, names, plan, base),
        boxes=_boxes(cases, names),
        curves=_curves(log or [], names),
        samples=None if samples is None else base64.b64encode(samples).decode(),
        scatter=_scatter(cases, names),
        plan_rows=_plan_rows(plan or {}, reasons or {}),
        most=MOST_PICTURES,
        geometry=_geometry(cases),
        expected=any("expected_dice" in case for case in cases),
    )
    write_text(output, page)


def _mean_dice(case: Mapping[str, Any]) -> float:
    values = [v["dice"] for v in case["classes"].values() if v["dice"] is not None]
    return sum(values) / len(values) if values else 2.0


def _pictures(
    cases: Sequence[Mapping[str, Any]],
    scores: Mapping[str, Any],
    names: Sequence[str],
    plan: Mapping[str, Any] | None,
    base: Path | None,
) -> list[dict[str, Any]]:
    known = {**((plan or {}).get("labels") or scores.get("labels") or {}), **((plan or {}).get("regions") or {})}
    labels = {name: known[name] for name in names if name in known}
    shown: list[dict[str, Any]] = []
    for case in cases[:MOST_PICTURES]:
        planes: list[Plane]
        planes, note = case_planes(case, labels, base, instances=bool(scores.get("instances")))
        shown.append({"case": case, "planes": planes, "note": note})
    return shown


def _geometry(cases: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Verdicts on DICOM geometry: how many, and the cases of which there is something to say."""
    judged = [case for case in cases if case.get("geometry")]
    told = [case for case in judged if case["geometry"]["reasons"] or case["geometry"]["notes"]]
    return {"count": len(judged), "told": sorted(told, key=lambda case: case["geometry"]["verdict"] == "accepted")}


def _boxes(cases: Sequence[Mapping[str, Any]], names: Sequence[str]) -> str:
    values = {
        name: [(str(c["id"]), c["classes"][name]["dice"]) for c in cases if c["classes"][name]["dice"] is not None]
        for name in names
    }
    return charts.box_plots(values)


def _curves(log: Sequence[Mapping[str, Any]], names: Sequence[str]) -> list[str]:
    losses = [(row["step"], row["loss"]) for row in log if row["event"] == "train"]
    checks = [row for row in log if row["event"] == "validate" and row["dice"] is not None]
    lines = {
        name: [(r["step"], r["classes"][name]) for r in checks if r["classes"].get(name) is not None] for name in names
    }
    lines["mean"] = [(row["step"], row["dice"]) for row in checks]
    drawn = [charts.curves({"loss": losses}, "training loss", unit=False)]
    return [chart for chart in [*drawn, charts.curves(lines, "validation Dice", unit=True)] if chart]


def _scatter(cases: Sequence[Mapping[str, Any]], names: Sequence[str]) -> str:
    values = {
        name: [
            (str(c["id"]), c["classes"][name]["reference_volume_ml"], c["classes"][name]["volume_ml"])
            for c in cases
            if "volume_ml" in c["classes"][name]
        ]
        for name in names
    }
    return charts.volume_scatter(values)


def _plan_rows(plan: Mapping[str, Any], reasons: Mapping[str, str]) -> list[tuple[str, str, str]]:
    network = plan.get("network", {})
    rows = []
    for key, reason in reasons.items():
        value = plan.get(key, network.get(key, ""))
        if key == "network":
            value = outline(network)
        elif key == "memory_estimate":
            value = f"{value / 1e9:.2f} GB"
        rows.append((key.replace("_", " "), in_words(key, value), reason))
    return rows


def _format(value: Any) -> str:
    if value is None:
        return "–"
    return f"{value:.3f}" if abs(value) < 10 else f"{value:.1f}"
