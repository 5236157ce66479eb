"""From a trained bundle to one archive that may leave the house: what goes in, what stays, and proof that it works."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from medunet.bundle import facts
from medunet.data.atomic import disk_errors
from medunet.errors import BundleError, InputError, UnsafeError
from medunet.trust.archive import signing
from medunet.trust.archive.atomic import atomic_file
from medunet.trust.archive.manifest import manifest
from medunet.trust.archive.names import (
    CARD,
    COMPONENTS,
    DATA,
    MANIFEST,
    METADATA,
    MODEL,
    PROVENANCE,
    QUALITY,
    SBOM,
    SCORES,
    TENSORS,
    purpose,
)
from medunet.trust.archive.slices import Slice
from medunet.trust.archive.strictjson import canonical
from medunet.trust.archive.weights_file import read_torch, write_safetensors
from medunet.trust.archive.zipform import measure, write_archive
from medunet.trust.card.summary import FEWEST
from medunet.trust.findings import Finding
from medunet.trust.gate.mending import blank_dataset_dir

_MADE = {MANIFEST, SBOM, PROVENANCE, SCORES, DATA, MODEL, TENSORS, QUALITY, COMPONENTS}
_PRIVATE = "eval"
_PLAN_PAGE = "## The plan, with its reasons"
_EACH = 3  # files left out of one folder that are named one by one

Say = Callable[[str], None]


@dataclass(frozen=True)
class Packed:
    """An archive that was written."""

    path: str
    name: str
    version: str
    size: int
    sha256: str
    signer: str = ""
    """The fingerprint of the key that signed it."""

    def as_json(self) -> dict[str, Any]:
        """For ``--json``."""
        return asdict(self)


def pack(bundle: Path, output: Path, *, fix: bool = False, key: Path | None = None, say: Say = print) -> Packed:
    """Write what may be shared of a trained bundle as a reproducible archive, and sign it with a private `key`.

    `say` is told what stays behind and what is changed in the packed copy; the bundle itself is left as it is.

    Raises:
        BundleError: the bundle is not complete.
        UnsafeError: something private or unsafe is in it; with `fix`, only where that cannot be mended in the copy.
        MedunetError: the bundle cannot be run, or the archive cannot be written.
    """
    if key is not None:
        signing.sign(signing.Statement("", 0, "", ""), key)  # before any work: a key that is missing or wrong says so
    if output.is_dir():
        raise InputError(f"{output}: is a folder; give the name of the archive, such as {output / 'model.zip'}")
    if output.resolve().is_relative_to(bundle.resolve()):
        raise InputError(f"{output}: lies in the bundle; write the archive elsewhere")
    with _staging(output) as folder:
        staging, archive = folder / "bundle", folder / "archive.zip"
        content = _stage(bundle, staging, say)
        _write_card(bundle, staging, fix, say)
        _release(bundle, staging, fix, say)
        _require_safe(staging)
        _prove(staging)
        packed = _write(staging, archive, content)
        archive.replace(output)
    return _sign(packed, output, key, say)


def _stage(bundle: Path, staging: Path, say: Say) -> dict[str, Any]:
    """Copy and make everything but the reference run and the manifest; the content of ``metadata.json``."""
    content = _metadata(bundle)
    for name in _chosen(bundle, say):
        target = staging / name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(bundle / name, target, follow_symlinks=False)
    _blank_paths(staging, say)
    before = _write_weights(bundle, staging)
    fold = facts.weights_fold(bundle)
    for name in (QUALITY, COMPONENTS):
        _write_of_weights(name, bundle, staging, before, say)
    files = {
        **facts.summaries(bundle),
        PROVENANCE: facts.provenance(bundle, content, fold),
        SBOM: facts.sbom(content["name"], content["version"]),
    }
    for name, data in files.items():
        _put(staging / name, data)
    for line in _of_few(content["plan"], json.loads(files.get(SCORES, b"{}"))):
        say(line)
    return content


def _of_few(plan: Mapping[str, Any], scores: Mapping[str, Any]) -> Iterator[str]:
    """What is of so few cases that it as good as describes one of them."""
    for fold in scores.get("folds", ()):
        if (cases := fold.get("cases", FEWEST)) < FEWEST:
            yield f"note: {SCORES}: fold {fold['fold']} is of {cases} case(s), its means as good as show single ones"
    if (cases := plan.get("seen", {}).get("cases", FEWEST)) < FEWEST:
        yield f"note: {METADATA}: the ranges in plan seen are of {cases} case(s) and as good as show single ones"


def _metadata(bundle: Path) -> dict[str, Any]:
    from medunet.bundle.writer import read_plan

    plan = read_plan(str(bundle))
    region, partners = plan.get("region"), plan.get("partners")
    if partners:
        raise BundleError(
            f"{bundle / METADATA}: the plan averages with other bundles ({', '.join(map(str, partners))}), and an "
            f"archive holds one; set plan partners to []"
        )
    if isinstance(region, Mapping):
        raise BundleError(
            f"{bundle / METADATA}: the plan looks for its region with another bundle ({region['bundle']}), and an "
            f"archive holds one; set plan region to all, or to body in CT"
        )
    content: dict[str, Any] = json.loads((bundle / METADATA).read_text(encoding="utf-8"))
    for field in ("name", "version"):
        if not isinstance(content.get(field), str) or not content[field]:
            raise BundleError(f'{bundle / METADATA}: has no {field}; write one, such as "{field}": "0.1.0"')
    for name in ("LICENSE", CARD, "configs/inference.yaml"):
        if not (bundle / name).is_file() or (bundle / name).is_symlink():
            raise BundleError(f"{bundle / name}: is missing; every packed bundle has it, plan again or write it")
    return content


def _chosen(bundle: Path, say: Say) -> list[str]:
    """The files that are copied as they are; what is left out is said, unless it is made anew or always private."""
    chosen, left = [], []
    for path in sorted(bundle.rglob("*")):
        name = path.relative_to(bundle).as_posix()
        if name in _MADE or (path.is_dir() and not path.is_symlink()):
            continue
        if name.startswith("reference/") and purpose(name):  # made anew
            continue
        if name.split("/")[0] == _PRIVATE:
            continue
        if purpose(name) and not path.is_symlink() and path.is_file():
            chosen.append(name)
        else:
            left.append((name, path.is_symlink()))
    if (bundle / _PRIVATE).is_dir():
        say(f"{_PRIVATE}/ stays here: case list, logs, scores of single cases and predictions are private")
    for line in _left_out(left):
        say(line)
    return chosen


def _left_out(left: list[tuple[str, bool]]) -> Iterator[str]:
    counts = Counter(os.path.dirname(name) for name, _ in left)
    for name, link in left:
        if counts[os.path.dirname(name)] <= _EACH:
            reason = "is a link" if link else "has no place in a packed bundle"
            yield f"left out: {name} ({reason})"
    for folder, count in counts.items():
        if count > _EACH:
            yield f"left out: {count} files in {folder or 'the bundle itself'} (they have no place in a packed bundle)"


def _blank_paths(staging: Path, say: Say) -> None:
    """``dataset_dir`` says where somebody keeps their patients: it is empty in the packed copy."""
    for path in sorted((staging / "configs").glob("*.yaml")):
        text = path.read_text(encoding="utf-8")
        blank = blank_dataset_dir(text)
        if blank != text:
            path.write_text(blank, encoding="utf-8", newline="\n")
            say(f"configs/{path.name}: dataset_dir is blank in the archive, a path is private")


def _write_weights(bundle: Path, staging: Path) -> str:
    """Write ``model.pt`` anew, tensors alone, and ``model.safetensors``; the sha256 of the old ``model.pt``."""
    import torch

    from medunet.inference.weights import read_state

    state: Any = read_state(bundle / MODEL)
    other = _not_tensors(state)
    if other is not None:
        raise BundleError(
            f"{bundle / MODEL}: is not a plain state dict ({other} is no tensor), perhaps a checkpoint; "
            f"save network.state_dict() alone"
        )
    plain = {name: value.detach().contiguous().clone() for name, value in state.items()}
    with atomic_file(staging / MODEL) as file:
        torch.save(plain, file)
    del state, plain
    with (staging / MODEL).open("rb") as source, atomic_file(staging / TENSORS) as file:
        write_safetensors(file, read_torch(Slice.whole(source)))
    with (bundle / MODEL).open("rb") as file:
        return Slice.whole(file).sha256()


def _not_tensors(state: Any) -> str | None:
    import torch

    if not isinstance(state, Mapping) or not state:
        return "its content"
    return next(
        (
            repr(name)
            for name, value in state.items()
            if not isinstance(name, str) or not isinstance(value, torch.Tensor)
        ),
        None,
    )


def _write_of_weights(name: str, bundle: Path, staging: Path, before: str, say: Say) -> None:
    """Copy a calibration or rules when they are of these weights, naming the file that those are in now."""
    path = bundle / name
    if not path.is_file():
        return
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        fits = content["weights"] == before
    except (ValueError, KeyError, TypeError) as error:
        raise BundleError(f"{path}: cannot be read ({error}); remove it or train again") from error
    if not fits:
        say(f"left out: {name} (it is of other weights than {MODEL})")
        return
    with (staging / MODEL).open("rb") as file:
        content["weights"] = Slice.whole(file).sha256()
    try:
        _put(staging / name, canonical(content))
    except ValueError as error:
        raise BundleError(f"{path}: holds a number that is none ({error}); remove it or train again") from error


def _release(bundle: Path, staging: Path, fix: bool, say: Say) -> None:
    """The release gate, on the copy; with `fix`, what can be mended without loss is mended there."""
    from medunet.trust.gate.release import examine_release, fix_release

    index = _index(bundle)
    if index is None:
        say(f"note: there is no {_PRIVATE}/index.json: names of cases and patients could not be looked for")
    findings = examine_release(staging, index)
    if fix:
        left = fix_release(staging, findings)
        for finding in findings:
            if finding not in left:
                say(f"mended in the archive: {finding.place}: {finding.what}")
        findings = left
    for finding in findings:
        if finding.level != "danger":
            say(f"note: {finding.place}: {finding.what}")
    bad = [finding for finding in findings if finding.level == "danger"]
    if bad:
        more = "" if fix else " (--fix mends what can be mended, in the archive alone)"
        raise UnsafeError(f"{bundle}: holds what must not leave the house{more}: {_sentences(bad)}")


def _write_card(bundle: Path, staging: Path, fix: bool, say: Say) -> None:
    """Keep a card whose numbers are right; put one in the place of the page that ``plan`` wrote."""
    from medunet.trust.card.model_card import check_card, facts_of, write_card

    known = facts_of(staging, None)
    text = (staging / CARD).read_text(encoding="utf-8")
    wrong = [finding for finding in check_card(text, known) if finding.level == "danger"]
    if not wrong:
        return
    if not fix and not _is_plan_page(text):
        raise BundleError(f"{bundle / CARD}: {wrong[0].what} (or pack with --fix, which writes it in the archive)")
    _put(staging / CARD, write_card(known).encode("utf-8"))
    say(f"{CARD}: the model card is written in the archive, with the numbers of {SCORES}")


def _is_plan_page(text: str) -> bool:
    """Whether it is the page that the plan template makes, which a card replaces."""
    return _PLAN_PAGE in text and "model card" not in text.split("\n", 1)[0]


def _index(bundle: Path) -> Any:
    path = bundle / _PRIVATE / "index.json"
    try:
        return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None
    except ValueError as error:
        raise BundleError(f"{path}: is not valid JSON ({error}); without it private names cannot be found") from error


def _require_safe(staging: Path) -> None:
    """A bundle that runs code of its own is not packed, whatever it does."""
    from medunet.trust.inspection.audit import audit

    found = audit(staging)
    if found.verdict != "safe":
        bad = [finding for finding in found.findings if finding.level != "note"]
        raise UnsafeError(f"the bundle is not packed, since the audit does not find it safe: {_sentences(bad)}")


def _sentences(findings: list[Finding]) -> str:
    shown = "; ".join(f"{finding.place}: {finding.what}" for finding in findings[:5])
    return shown + (f"; and {len(findings) - 5} more" if len(findings) > 5 else "")


def _prove(staging: Path) -> None:
    from medunet.bundle.reference import check_network, write_reference

    check_network(staging)
    write_reference(staging)


def _write(staging: Path, archive: Path, content: Mapping[str, Any]) -> Packed:
    """Measure, list and archive what was staged; the archive has to pass what its receiver will check."""
    from medunet.trust.archive.verifying import verify_static

    names = [path.relative_to(staging).as_posix() for path in sorted(staging.rglob("*")) if path.is_file()]
    files: dict[str, Path | bytes] = {name: staging / name for name in names}
    members = [measure(name, path) for name, path in files.items()]
    files[MANIFEST] = manifest(content["name"], content["version"], members)
    members.append(measure(MANIFEST, files[MANIFEST]))
    with atomic_file(archive) as file:
        write_archive(file, files, members)
    checked = verify_static(archive)
    failed = [check for check in checked.checks if check.state == "failed" and check.name != "signature"]
    if failed:
        raise UnsafeError(f"the bundle is not packed: {failed[0].name}: {failed[0].what}")
    with archive.open("rb") as file:
        whole = Slice.whole(file)
        return Packed("", content["name"], content["version"], whole.size, whole.sha256())


def _sign(packed: Packed, output: Path, key: Path | None, say: Say) -> Packed:
    """Write the signature beside the archive; one of an earlier archive is removed."""
    packed = replace(packed, path=str(output))
    path = output.with_name(output.name + signing.SUFFIX)
    if key is None:
        if path.is_file():
            path.unlink()
            say(f"removed {path.name}: it was the signature of an earlier archive")
        return packed
    statement = signing.Statement(packed.sha256, packed.size, packed.name, packed.version)
    data = signing.sign(statement, key)
    signer = signing.fingerprint(signing.check_signature(data, statement))
    with atomic_file(path) as file:
        file.write(data)
    return replace(packed, signer=signer)


def _put(path: Path, data: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)


@contextmanager
def _staging(output: Path) -> Iterator[Path]:
    """A folder for the packed copy, beside the archive and gone afterwards."""
    output.parent.mkdir(parents=True, exist_ok=True)
    with disk_errors(output), tempfile.TemporaryDirectory(prefix=".part-", dir=output.parent) as folder:
        yield Path(folder)
