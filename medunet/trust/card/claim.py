"""The CLAIM checklist for a model card: what the artifacts answer, and what stays open for the author.

Source: CLAIM (Mongan, Moy and Kahn 2020, doi:10.1148/ryai.2020200029) and its 2024 update (Tejani et al. 2024,
doi:10.1148/ryai.240300), which says "reference standard", "internal testing" and "external testing". The items are
named in our own short words and not numbered, since the two versions count differently.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

OPEN = "**open**"

ITEMS: tuple[tuple[str, tuple[tuple[str, str], ...]], ...] = (
    ("Title and summary", (("named as AI work, with its technology", "technology"), ("structured summary", ""))),
    ("Introduction", (("background and clinical role", ""), ("aims and hypotheses", ""))),
    ("Design", (("prospective or retrospective", ""), ("goal of the study", "goal"))),
    (
        "Data",
        (
            ("sources", "source"),
            ("who was included and excluded, when and where", ""),
            ("preprocessing", "preprocessing"),
            ("selection of parts of the data", "selection"),
            ("de-identification", "deidentification"),
            ("missing data", ""),
            ("image acquisition", "acquisition"),
        ),
    ),
    (
        "Reference standard",
        (
            ("definition", "reference"),
            ("why this one", ""),
            ("annotators, their training and tools", ""),
            ("annotation of the test set", ""),
            ("agreement between and within annotators", ""),
        ),
    ),
    (
        "Partitions",
        (
            ("how cases were assigned", "partition"),
            ("level at which the parts are disjoint", "disjoint"),
            ("intended sample size", ""),
        ),
    ),
    (
        "Model and training",
        (
            ("model, in full", "model"),
            ("software with versions", "software"),
            ("how weights were initialised", "initial"),
            ("training, augmentation, hyperparameters", "training"),
            ("how the final model was chosen", "choice"),
            ("ensembles", "ensemble"),
        ),
    ),
    (
        "Evaluation",
        (
            ("metrics", "metrics"),
            ("statistics and uncertainty", "uncertainty"),
            ("robustness or sensitivity", ""),
            ("explanation or interpretation", "explanation"),
            ("internal testing", "internal"),
            ("external testing", ""),
            ("trial registration", ""),
        ),
    ),
    (
        "Results",
        (
            ("numbers included and excluded", "numbers"),
            ("demographic and clinical characteristics", ""),
            ("performance with uncertainty", "performance"),
            ("diagnostic accuracy with its precision", ""),
            ("failures looked into", ""),
        ),
    ),
    ("Discussion", (("limits", "limits"), ("meaning for practice", ""))),
    (
        "Other",
        (
            ("protocol or further technical detail", "detail"),
            ("availability of code, weights and data", "availability"),
            ("funding and role of the funders", ""),
        ),
    ),
)


def rows(facts: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    """(topic, item, answer) of every item; `OPEN` where the artifacts say nothing."""
    answers = _answers(facts)
    return [(topic, item, answers.get(key) or OPEN) for topic, items in ITEMS for item, key in items]


def _answers(facts: Mapping[str, Any]) -> dict[str, str]:
    plan, data, folds = facts["plan"], facts["data"], facts["scores"]["folds"]
    scored = "see Performance" if folds else ""
    return {
        "technology": f"deep learning: a {plan.get('dims', '?')}D U-Net for segmentation" if plan else "",
        "goal": "a segmentation model for research",
        "source": "see Licences" if facts["licence"] else "",
        "preprocessing": "orientation, spacing and intensities as in the plan; one definition for all uses"
        if plan
        else "",
        "selection": "patches, drawn as the plan says" if plan else "",
        "deidentification": "of the bundle: checked by its release gate; of the data before: **open**",
        "acquisition": "modality, spacing and size: see Data; scanners and protocols: **open**" if data else "",
        "reference": "the label maps of the dataset; how they were made: **open**",
        "partition": "by a hash of the patient's name into 5 folds, or as the dataset fixes it" if folds else "",
        "disjoint": "patient, as far as the dataset tells patients apart" if folds else "",
        "model": "`configs/metadata.json` (plan, network)" if plan else "",
        "software": "see Training",
        "initial": "random, by a fixed seed" if plan else "",
        "training": "`configs/train.yaml`; see Training" if plan else "",
        "choice": "best mean Dice on validation cases while training" if folds else "",
        "ensemble": "none; one network",
        "metrics": "Dice, distances and others, defined by medunet's documentation; " + scored if scored else "",
        "uncertainty": "95% percentile bootstrap over cases" if folds else "",
        "explanation": "expected Dice with each prediction" if facts["quality"] else "none",
        "internal": f"validation cases of {len(folds)} fold{'s' * (len(folds) != 1)}; {scored}" if folds else "",
        "numbers": "included: see Data; excluded: **open**" if data else "",
        "performance": scored,
        "limits": "see Limits; add what you know",
        "detail": "this page and `configs/`",
        "availability": "this bundle; see Licences",
    }
