"""The sections of a model card as Markdown; every number comes from the facts and stands in a table."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from medunet.trust.card import claim
from medunet.trust.card.recipe import recipe_rows

METRICS = {
    "dice": ("Dice", 3),
    "hd95_mm": ("HD95, mm", 2),
    "nsd": ("NSD", 3),
    "iou": ("IoU", 3),
    "sensitivity": ("sensitivity", 3),
    "precision": ("precision", 3),
    "assd_mm": ("ASSD, mm", 2),
    "hausdorff_mm": ("Hausdorff, mm", 2),
    "relative_volume_error": ("relative volume error", 3),
    "lesion_sensitivity": ("share of lesions found", 3),
    "false_positive_lesions": ("false lesions per case", 2),
    "pixel_accuracy": ("pixel accuracy", 3),
}
"""Metrics of ``scores.json`` in the order of the card, with their digits."""

_MAIN = ("dice", "hd95_mm", "nsd")
NOT_AVAILABLE = "not available"


def sections(facts: Mapping[str, Any]) -> list[str]:
    """The card, section by section."""
    parts = (
        _head,
        _labels,
        _data,
        _training,
        _performance,
        _expected,
        _components,
        _limits,
        _use,
        _plan,
        _files,
        _licences,
        _claim,
    )
    return [part(facts) for part in parts]


def table(header: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """A Markdown table."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(_cell(value) for value in line) + " |" for line in lines)


def _cell(value: Any) -> str:
    return " ".join(str(value).replace("|", "\\|").replace("<", "&lt;").split())


def number(value: Any, digits: int = 4) -> str:
    """A number as people read it; a dash where there is none."""
    if value is None or (isinstance(value, float) and not math.isfinite(value)):
        return "–"
    if isinstance(value, bool) or not isinstance(value, int | float):
        return str(value)
    return f"{value:,}" if isinstance(value, int) else f"{value:.{digits}g}"


def _words(names: Sequence[str]) -> str:
    listed = [str(name) for name in names]
    return ", ".join(listed[:-1]) + " and " + listed[-1] if len(listed) > 1 else "".join(listed) or "volumes"


def _foreground(facts: Mapping[str, Any]) -> list[str]:
    return [row["name"] for row in facts["labels"] if row["value"] != 0]


def _head(facts: Mapping[str, Any]) -> str:
    plan = facts["plan"]
    classes, channels = _words(_foreground(facts)), _words(plan.get("channels", ()))
    kind = f"{plan.get('dims', '?')}D {_kind(plan.get('network'))}"
    return f"""# {_cell(facts["name"])}: model card

A {kind} that segments {_cell(classes)} in {_cell(channels)}. Version {_cell(facts["version"])}.

**Not a medical device.** No authority has cleared or certified it. It is for research; whoever uses its results answers
for checking them.

## Intended use

{_cell(facts["intended_use"] or "Research.")} It takes images like those it was trained on (see Data) and gives a label
map on each image's own grid, for review by a person who knows the anatomy.

## Out of scope

- Diagnosis, treatment or triage without a qualified reader.
- Other modalities, body parts, ages or protocols than those of the data below, and images of animals or phantoms.
- Findings that are not among the labels: what the network has no name for, it does not report.
- Deciding that a structure is absent. An empty label map is not a negative finding."""


def _labels(facts: Mapping[str, Any]) -> str:
    if any(row["members"] for row in facts["labels"]):
        regions = [(r["value"], r["name"], ", ".join(r["members"]) or "–", r["code"] or "–") for r in facts["labels"]]
        header = ("value", "name", "all values that belong to it", "code in DICOM results")
        return (
            "## Labels\n\nLabels are regions, which may overlap. Of those that a voxel lies in, the value of the last\n"
            "one in this table is written.\n\n" + table(header, regions)
        )
    rows = [(row["value"], row["name"], row["code"] or "–") for row in facts["labels"]]
    return "## Labels\n\n" + table(("value", "name", "code in DICOM results"), rows)


def _data(facts: Mapping[str, Any]) -> str:
    data = facts["data"]
    if not data:
        return f"## Data\n\nCounts and ranges: {NOT_AVAILABLE}."
    rows: list[tuple[Any, ...]] = [("cases", number(data.get("cases")))]
    rows += [("patients", number(data["patients"]))] if "patients" in data else []
    rows += [("cases kept for testing", number(data["test_cases"]))] if data.get("test_cases") else []
    counts = data.get("class_cases", {})
    rows += [(f"cases with {name}", number(counts[name])) for name in _foreground(facts) if name in counts]
    text = [
        f"Modality: {_cell(_words(data.get('modalities', ())))}. Scanners, sites and years: not recorded by medunet."
    ]
    text += [table(("what", "how many"), rows)]
    if data.get("spacing_mm") or data.get("size_voxels"):
        text += [
            table(
                ("left-right × back-front × foot-head", "smallest", "median", "largest"),
                [
                    (what, *(_triple(data[key].get(which)) for which in ("min", "median", "max")))
                    for key, what in (("spacing_mm", "spacing, mm"), ("size_voxels", "size, voxels"))
                    if data.get(key)
                ],
            )
        ]
    else:
        text += ["Too few cases to give ranges of spacing and size without describing a person."]
    return "## Data\n\n" + "\n\n".join(text)


def _triple(values: Any) -> str:
    return " × ".join(number(value) for value in values or ()) or "–"


def _training(facts: Mapping[str, Any]) -> str:
    plan, network = facts["plan"], facts["plan"].get("network", {})
    length = "minutes" if plan.get("minutes") else "epochs"
    rows = [
        ("window, voxels", _triple(plan.get("patch_size"))),
        ("spacing, mm", _triple(plan.get("spacing"))),
        ("features per level", ", ".join(number(n) for n in network.get("channels", ())) or "–"),
        ("batch size", number(plan.get("batch_size"))),
        ("learning rate", number(plan.get("learning_rate"))),
        ("weight decay", number(plan.get("weight_decay"))),
        (f"{length} planned", number(plan.get(length))),
        ("steps per epoch", number(plan.get("steps_per_epoch"))),
        *_shipped_fold(facts),
        *((f"version of {name}", version) for name, version in facts["software"].items()),
    ]
    text = "## Training\n\nAs `configs/train.yaml` says, with these values of the plan and versions:\n\n"
    text += table(("what", "value"), rows)
    runs = [
        (
            fold["fold"],
            number(fold["training"].get("step")),
            number(fold["training"].get("epoch")),
            number(fold["training"].get("minutes")),
            number(fold["training"].get("best", {}).get("step")),
        )
        for fold in facts["scores"]["folds"]
        if fold.get("training")
    ]
    header = ("fold", "steps", "epochs", "minutes", "step of the best validation")
    return text + ("\n\n" + table(header, runs) if runs else "") + _recipes(facts["scores"]["folds"])


def _recipes(folds: Sequence[Mapping[str, Any]]) -> str:
    """What each run trained with, which may be other than what the config and the plan say."""
    names, rows = recipe_rows(folds)
    if not names:
        return "\n\nWhat a run was given instead of these is not recorded." if folds else ""
    shown = [(what, *(number(value) for value in values)) for what, *values in rows]
    return (
        "\n\nWhat the runs trained with, as their logs tell; what this does not name is as in `configs/train.yaml`,\n"
        "unless a run was given another value:\n\n" + table(("what", *names), shown)
    )


def _shipped_fold(facts: Mapping[str, Any]) -> list[tuple[str, Any]]:
    """The fold whose training gave the shipped weights, where ``models/quality.json`` says it; an ensemble has all."""
    pooled = facts["scores"].get("pooled")
    if pooled:
        return [("networks in the ensemble, one per fold", number(len(pooled["of"])))]
    fold = (facts["quality"] or {}).get("fold")
    return [] if fold is None else [("fold of the shipped weights", fold)]


def _performance(facts: Mapping[str, Any]) -> str:
    folds = facts["scores"]["folds"]
    text = ["## Performance"]
    if not folds:
        return (
            f"## Performance\n\nScores: {NOT_AVAILABLE}. The model has not been scored, or its scores were not shipped."
        )
    text += [
        f"""On validation cases, which the network of that fold was not trained on: the mean over cases and, in
brackets, its 95% bootstrap interval over cases. A dash stands where a metric is undefined; there is no interval where
it would rest on one value. `n` counts the values behind the Dice. There was no external test set.{_details(folds)}"""
    ]
    if facts["plan"].get("ignore") is not None:
        text += ["Voxels of the references that nobody annotated count nowhere: what lies there was not scored."]
    if facts["plan"].get("predict_mirror_axes"):
        text += ["Scored are, as in prediction, means over mirrored inputs (`predict_mirror_axes` of the plan)."]
    text += _pooled(facts["scores"].get("pooled"))
    for fold in folds:
        text += [f"### Fold {fold['fold']}", table(("what", "number"), [("validation cases", number(fold["cases"]))])]
        text += [_scores_table(fold)]
    text += ["### By subgroup"]
    if len(folds) > 1:
        header = ("fold", "cases", *(METRICS[m][0] for m in _MAIN))
        rows = [(f["fold"], number(f["cases"]), *(_score(f["summary"].get(m), m) for m in _MAIN)) for f in folds]
        text += ["By fold, mean over classes:", table(header, rows)]
    text += [f"By sex, age, scanner or site: {NOT_AVAILABLE}; medunet does not record them."]
    return "\n\n".join(text)


def _pooled(pooled: Mapping[str, Any] | None) -> list[str]:
    """The cross-validation of an ensemble."""
    if not pooled:
        return []
    return [
        "### Cross-validation",
        """The shipped weights are an ensemble of the networks of all folds. These are the figures of all cases
together, each scored by the one network that was not trained on it. The ensemble itself has seen every case and has no
figures of its own: how much better than one network it is on new cases was not measured.""",
        table(("what", "number"), [("validation cases", number(pooled["cases"]))]),
        _scores_table(pooled),
    ]


def _details(folds: Sequence[Mapping[str, Any]]) -> str:
    """Which tolerance, and which weights were scored."""
    tolerances = sorted({fold["nsd_tolerance_mm"] for fold in folds if "nsd_tolerance_mm" in fold})
    tolerance = _words([number(value) for value in tolerances]) if tolerances else "1 (medunet's default)"
    text = f"\nNSD is taken at a tolerance of {tolerance} mm."
    if any(fold.get("weights") == "final" for fold in folds):
        text += (
            " The scores are of the weights after the last step;\n`models/model.pt` holds the best validated ones, "
            "which may be of an earlier step."
        )
    return text


def _scores_table(fold: Mapping[str, Any]) -> str:
    tables = {**fold["classes"], "mean of classes": fold["summary"]}
    metrics = [metric for metric in METRICS if any(metric in values for values in tables.values())]
    header = ("metric", *tables)
    rows = [(METRICS[metric][0], *(_score(v.get(metric), metric) for v in tables.values())) for metric in metrics]
    counts = ("n", *(number(values.get("dice", {}).get("n")) for values in tables.values()))
    return table(header, [*rows, counts])


def _score(metric: Mapping[str, Any] | None, name: str) -> str:
    """``0.872 (0.861 to 0.883)``; no interval from a single value."""
    if not metric or metric.get("mean") is None:
        return "–"
    digits = METRICS[name][1]
    low, high = metric.get("ci95") or (None, None)
    mean = f"{metric['mean']:.{digits}f}"
    if low is None or high is None or metric.get("n", 0) < 2 or low == high:
        return mean
    return f"{mean} ({low:.{digits}f} to {high:.{digits}f})"


def _expected(facts: Mapping[str, Any]) -> str:
    quality = facts["quality"]
    title = "## Expected Dice of a prediction\n\n"
    if not quality:
        return title + f"Calibration: {NOT_AVAILABLE}; predictions carry no expected Dice."
    rows = [
        (name, number(values["cases"]), "yes" if values.get("always_present") else "no")
        if values
        else (name, "not calibrated", "–")
        for name, values in quality.get("classes", {}).items()
    ]
    return (
        title
        + "`medunet predict` says which Dice to expect of each class, from how certain the network was. It sorts\n"
        "cases for review and does not measure: a network that is sure of a wrong answer is believed.\n\n"
        + table(("class", "cases behind it", "present in all of them"), rows)
    )


def _components(facts: Mapping[str, Any]) -> str:
    content = facts["components"] or {}
    rules, rows = content.get("rules") or {}, []
    for name in _foreground(facts):
        if name not in rules:
            rows.append((name, "every component", *"–" * 4))
            continue
        rule, proof = rules[name], content["evidence"][name]
        words = "the largest alone" if rule.get("largest") else f"those of {number(rule['minimum_mm3'])} mm³ or more"
        dice = (f"{proof[key]:.3f}" for key in ("dice_before", "dice_after"))
        low, high = proof["interval"]
        rows.append((name, words, number(proof["cases"]), *dice, f"{low:.4f} to {high:.4f}"))
    header = ("class", "what stays", "cases", "Dice without the rule", "with it", "95% interval of the gain")
    return (
        "## Connected components\n\n"
        "A rule stands where cross-validation proved that it helps; what goes becomes background. The figures of\n"
        "Performance are without rules; Dice here counts a class that is rightly not found as 1.\n\n"
        + table(header, rows)
    )


def _limits(facts: Mapping[str, Any]) -> str:
    cases = facts["data"].get("cases")
    few = (
        ["- It was trained on few cases; the intervals above say how little is known."]
        if isinstance(cases, int) and cases < 100
        else []
    )
    lines = [
        "- Validation cases come from the same source as the training cases. Expect worse elsewhere; test it there.",
        "- The best weights are picked by the same validation cases while training; a score of them flatters.",
        "- Scores say nothing about what the data do not have: implants, earlier surgery, rare anatomy, children.",
        *few,
        "- Fairness between groups of people was not examined.",
    ]
    return "## Limits\n\n" + "\n".join(lines)


def _use(facts: Mapping[str, Any]) -> str:
    return """## Use

    medunet predict BUNDLE INPUT... -o OUT          # volumes, DICOM, folders of either, or @list.txt
    medunet predict BUNDLE STUDY -o OUT --format dicom-seg      # from DICOM to DICOM; or rtstruct
    medunet train BUNDLE --minutes 60 --fold 0

or with MONAI alone, in this folder:

    python -m monai.bundle run --config_file configs/inference.yaml --dataset_dir FOLDER --output_dir OUT
    python -m monai.bundle run training --config_file configs/train.yaml

The configs hold values, references and component names only: `MONAI_EVAL_EXPR=0` works. Training again needs a case
list of your own (`medunet plan`); the one of these data is private.

## Verify

    medunet verify BUNDLE

checks every file against the manifest and the signature, and reads configs and weights without running them. Do so
before the first use, and do not use a bundle that it refuses. The tables of this card hold the numbers of the shipped
plan and summaries and nothing else, so that a changed number shows."""


def _plan(facts: Mapping[str, Any]) -> str:
    reasons = facts["plan"].get("reasons", {})
    if not reasons:
        return f"## The plan, with its reasons\n\n{NOT_AVAILABLE.capitalize()}."
    rows = []
    for key, reason in reasons.items():
        network = facts["plan"].get("network", {})
        value = facts["plan"].get(key, network.get(key, ""))
        rows.append((key, _plain(key, value), reason))
    return "## The plan, with its reasons\n\n" + table(("number", "value", "reason"), rows)


def _plain(key: str, value: Any) -> str:
    if key == "network" and isinstance(value, Mapping):
        levels = f"features {_plain('', value.get('channels'))}; strides {_plain('', value.get('strides'))}"
        kind = _kind(value)
        return levels if kind == "U-Net" else f"{kind}; {levels}" if "channels" in value else kind
    if key == "codes":
        return "see Labels"
    if key == "memory_estimate":
        return f"{value / 1e9:.2f} GB"
    if isinstance(value, Mapping):
        return "; ".join(f"{name} {_plain('', item)}" for name, item in value.items())
    if isinstance(value, list | tuple):
        return "[" + ", ".join(_plain("", item) for item in value) + "]"
    return f"{value:g}" if isinstance(value, float) and math.isfinite(value) else str(value)


def _kind(network: Any) -> str:
    target = str(network.get("_target_", "")) if isinstance(network, Mapping) else ""
    kind = target.rsplit(".", 1)[-1]
    return "U-Net" if kind in ("", "UNet") else _cell(kind)


def _files(facts: Mapping[str, Any]) -> str:
    rows = (
        ("`configs/metadata.json`", "what goes in and comes out, versions, and the plan: every number, once"),
        ("`configs/train.yaml`, `inference.yaml`", "training and inference as plain MONAI configs"),
        ("`configs/evaluate.yaml`, `multi_gpu_train.yaml`", "overlays on these"),
        ("`models/model.pt`", "weights, a plain state dict"),
        ("`docs/scores.json`, `docs/data.json`", "the summaries behind this card; no single cases"),
        ("`LICENSE`, `docs/data_license.txt`", "terms of the bundle and of the data"),
    )
    return "## Files\n\n" + table(("file", "what"), rows)


def _licences(facts: Mapping[str, Any]) -> str:
    data = "; ".join(_cell(line) for line in facts["licence"] if line.strip()) or f"{NOT_AVAILABLE}: **open**"
    return f"""## Licences

- Code: medunet, Apache-2.0; it is not part of this bundle.
- Configs and this page: see `LICENSE`. Copyright: {_told(facts["copyright"])}.
- Weights: the terms of `LICENSE`, as far as those of the data allow it; whether they do is for the author to say.
- Data: {data}

Authors: {_told(facts["authors"])}."""


def _told(text: str) -> str:
    """What the author wrote; the words that `medunet plan` leaves there are an open question."""
    return claim.OPEN if not text.strip() or "add yours" in text else _cell(text).rstrip(".")


def _claim(facts: Mapping[str, Any]) -> str:
    rows = claim.rows(facts)
    return (
        "## CLAIM checklist\n\n"
        "After the Checklist for Artificial Intelligence in Medical Imaging (Mongan et al. 2020,\n"
        "doi:10.1148/ryai.2020200029; update: Tejani et al. 2024, doi:10.1148/ryai.240300), in our own short words.\n"
        "What the bundle itself can answer is answered; what is **open** is for the author.\n\n"
        + table(("topic", "item", "answer"), rows)
    )
