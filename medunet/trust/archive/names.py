"""Which files a packed bundle may hold, what each is for, and which names a member may have."""

from __future__ import annotations

import re

MANIFEST = "MANIFEST.json"
METADATA = "configs/metadata.json"
CARD = "docs/README.md"
SCORES = "docs/scores.json"
MODEL = "models/model.pt"
TENSORS = "models/model.safetensors"
QUALITY = "models/quality.json"
COMPONENTS = "models/components.json"
DATA = "docs/data.json"
SBOM = "sbom.json"
PROVENANCE = "provenance.json"
EXPECTED = "reference/expected.safetensors"

FACTS = (METADATA, SCORES, DATA, QUALITY, COMPONENTS, "docs/data_license.txt")
"""What the numbers of the card come from."""

REQUIRED = ("LICENSE", METADATA, "configs/inference.yaml", CARD, MODEL, TENSORS, MANIFEST, SBOM, PROVENANCE, EXPECTED)
"""What every packed bundle holds, beside at least one reference image."""

_DOCUMENTS = "md|txt|rst|bib|cff|json|csv|png|jpg|jpeg|gif|pdf"
_ALLOWED = (
    (r"LICENSE", "terms of the code and the weights"),
    (r"configs/.+\.(yaml|yml|json)|configs/logging\.conf", "how to train and run: plain MONAI configs"),
    (rf"docs/.+\.({_DOCUMENTS})", "what to know before use; scores.json has the scores without any case"),
    (re.escape(MODEL), "the weights, a plain state dict"),
    (re.escape(TENSORS), "the same weights in a format that cannot hold code"),
    (re.escape(QUALITY), "what the network's certainty has meant on validation cases"),
    (re.escape(COMPONENTS), "which connected components stay, as cross-validation proved it"),
    (re.escape(MANIFEST), "size and sha256 of every other file"),
    (re.escape(SBOM), "the software the bundle was packed with (CycloneDX)"),
    (re.escape(PROVENANCE), "digests of plan and data, versions, seed, fold, steps"),
    (r"reference/input(_[0-9]{4})?\.nii", "a synthetic image, one file per channel"),
    (re.escape(EXPECTED), "the labels and probabilities that the image must give"),
)
_SEGMENT = re.compile(r"[A-Za-z0-9_](?:[A-Za-z0-9._+-]*[A-Za-z0-9_+-])?")
_RESERVED = re.compile(r"(?i)(con|prn|aux|nul|com[0-9]|lpt[0-9])(\..*)?")  # devices on Windows, whatever the suffix
_LONGEST = 200


def purpose(name: str) -> str | None:
    """What a file of a packed bundle is for; None for one that has no place in it.

    >>> purpose("models/model.pt"), purpose("models/checkpoint_last.pt")
    ('the weights, a plain state dict', None)
    """
    if name_problem(name):
        return None
    return next((what for pattern, what in _ALLOWED if re.fullmatch(pattern, name)), None)


def name_problem(name: str) -> str:
    """Why a name cannot be a member's: absolute, climbing, hidden, not plain ASCII, a device; empty when it can.

    >>> name_problem("configs/../../x"), name_problem("docs/README.md")
    ("has a part '..' that is hidden, climbs or is not plain ASCII", '')
    """
    if len(name) > _LONGEST:
        return f"has more than {_LONGEST} characters"
    for part in name.split("/"):
        if not _SEGMENT.fullmatch(part):
            return f"has a part {part!r} that is hidden, climbs or is not plain ASCII"
        if _RESERVED.fullmatch(part):
            return f"has a part {part!r} that is a device on some systems"
    return ""
