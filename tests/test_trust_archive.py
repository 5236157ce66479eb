"""Packed bundles: equal bytes for equal content, every change found, nothing written outside, nothing run."""

from __future__ import annotations

import ast
import io
import json
import os
import random
import re
import shutil
import stat
import subprocess
import sys
import textwrap
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from trust_forging import files_of, forged, pickled_call, sha256

import medunet
from medunet import verbs
from medunet.bundle import facts, packing
from medunet.bundle.facts import commit_of
from medunet.data.volume import read_label
from medunet.errors import BundleError, InputError, UnsafeError
from medunet.inference.quality import read_calibrations
from medunet.inference.weights import weights_digest
from medunet.trust.archive import content_checks
from medunet.trust.archive.bundle_files import archive_contents
from medunet.trust.archive.manifest import compare_manifest, read_manifest
from medunet.trust.archive.names import name_problem, purpose
from medunet.trust.archive.strictjson import canonical
from medunet.trust.archive.verifying import STATIC, Verification, verify_static
from medunet.trust.archive.zipform import measure, read_archive, write_archive

ROOT = Path(medunet.__file__).parents[1]


@pytest.fixture(autouse=True)
def _own_senders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MEDUNET_HOME", str(tmp_path / "home"))


def states(result: Verification) -> dict[str, str]:
    return {check.name: check.state for check in result.checks}


def refused(archive: Path, words: str) -> Verification:
    """Both verbs refuse, with these words, and leave nothing behind."""
    result = verify_static(archive)
    assert result.exit_code == 3
    with pytest.raises(UnsafeError, match=words):
        verbs.unpack(archive, archive.parent / "unpacked")
    assert not (archive.parent / "unpacked").exists()
    assert not list(archive.parent.glob(".part-*"))
    return result


def test_pack_verify_unpack_predict_gives_the_same_voxels(
    packed_bundle: Path, trained_bundle: Path, phantom_dataset: Path, tmp_path: Path
) -> None:
    result = verbs.verify(packed_bundle)
    assert result.verified
    assert [name for name, state in states(result).items() if state == "not run"] == ["signature"]
    assert "all labels are equal (100 %)" in result.checks[-1].what
    verbs.unpack(packed_bundle, tmp_path / "unpacked")
    inputs = sorted((phantom_dataset / "imagesTr").glob("*.nii.gz"))[:2]
    for name, bundle in (("before", trained_bundle), ("after", tmp_path / "unpacked")):
        verbs.predict(bundle, inputs, tmp_path / name, {"device::name": "cpu", "inferer::backend": "torch"})
    for path in inputs:
        before, after = (read_label(tmp_path / where / path.name).array for where in ("before", "after"))
        assert (before == after).all()


def test_what_was_unpacked_verifies_and_packs_to_the_same_bytes(packed_bundle: Path, tmp_path: Path) -> None:
    verbs.unpack(packed_bundle, tmp_path / "unpacked")
    result = verify_static(tmp_path / "unpacked")
    assert result.verified
    assert states(result)["form"] == "not run"
    verbs.pack(tmp_path / "unpacked", tmp_path / "again.zip")
    assert (tmp_path / "again.zip").read_bytes() == packed_bundle.read_bytes()


def test_packing_elsewhere_and_later_gives_the_same_bytes(trained_bundle: Path, tmp_path: Path) -> None:
    """Packed one after the other: an archive names the commit of this checkout, and a commit may be made meanwhile."""
    bundle = tmp_path / "somewhere else" / "bundle"
    shutil.copytree(trained_bundle, bundle)
    packed = tmp_path / "here.zip"
    verbs.pack(trained_bundle, packed)
    for path in bundle.rglob("*"):
        os.utime(path, (1e9, 1e9))
        path.chmod(0o755)
    code = f"""
        import os; os.umask(0o077)
        from medunet import verbs
        verbs.pack({str(bundle)!r}, {str(tmp_path / "other.zip")!r})
    """
    environment = {
        **os.environ,
        "TZ": "Pacific/Auckland",
        "LC_ALL": "C",
        "PYTHONHASHSEED": "7",
        "PYTHONPATH": str(ROOT),
    }
    subprocess.run([sys.executable, "-c", textwrap.dedent(code)], env=environment, check=True, capture_output=True)
    with zipfile.ZipFile(tmp_path / "other.zip") as other, zipfile.ZipFile(packed) as first:
        assert [n for n in first.namelist() if n not in other.namelist() or other.read(n) != first.read(n)] == []
    assert (tmp_path / "other.zip").read_bytes() == packed.read_bytes()
    assert stat.S_IMODE((tmp_path / "other.zip").stat().st_mode) == 0o600


def test_only_what_is_needed_here_is_a_component(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """setuptools puts copies of other packages on the path when it is imported, some of them for older Pythons."""
    needs = ["new-one>=1", 'old; python_version < "3"', 'plot; extra == "plots"', "Both[fast]>=2", "absent"]
    for name, required in {"root": needs, "new_one": ["root"], "old": [], "plot": [], "both": []}.items():
        folder = tmp_path / f"{name}-2.0.dist-info"
        folder.mkdir()
        lines = ["Metadata-Version: 2.1", f"Name: {name}", "Version: 2.0", *(f"Requires-Dist: {r}" for r in required)]
        (folder / "METADATA").write_text("\n".join(lines))
    monkeypatch.syspath_prepend(tmp_path)
    assert [d.metadata["Name"] for d in facts._dependencies("root")] == ["both", "new_one", "root"]


def test_only_what_is_listed_leaves_the_house(trained_bundle: Path, phantom_dataset: Path, tmp_path: Path) -> None:
    bundle = tmp_path / "bundle"
    shutil.copytree(trained_bundle, bundle)
    (bundle / ".secret").write_text("x")
    (bundle / "models" / "compiled").mkdir(exist_ok=True)
    for number in range(5):
        (bundle / "models" / "compiled" / f"{number}.bin").write_text("x")
    (bundle / "notes.ipynb").write_text("{}")
    (bundle / "docs" / "link.md").symlink_to(bundle / "LICENSE")
    (bundle / "reference").mkdir()
    (bundle / "reference" / "mine.nii").write_text("x")
    said: list[str] = []
    verbs.pack(bundle, tmp_path / "b.zip", say=said.append)
    files = files_of(tmp_path / "b.zip")
    assert all(purpose(name) for name in files)
    assert not [name for name in files if name.startswith(("eval", "models/c", "notes", ".")) or "link" in name]
    assert not [name for name, data in files.items() if str(phantom_dataset).encode() in data]
    assert b'\ndataset_dir: ""  ' in files["configs/train.yaml"]
    told = "\n".join(said)
    for words in (
        "eval/ stays here", "left out: notes.ipynb", "left out: .secret", "5 files in models/compiled",
        "left out: docs/link.md (is a link)",
        "left out: reference/mine.nii", "configs/train.yaml: dataset_dir is blank", "models/checkpoint_last.pt",
    ):  # fmt: skip
        assert words in told


def test_means_of_one_case_are_told() -> None:
    few, many = {"fold": 0, "cases": 1}, {"fold": 1, "cases": 3}
    first, second = packing._of_few({"seen": {"cases": 2}}, {"folds": [few, many]})
    assert first.startswith("note: docs/scores.json: fold 0 is of 1 case(s)")
    assert second.startswith("note: configs/metadata.json: the ranges in plan seen are of 2 case(s)")
    assert list(packing._of_few({"seen": {"cases": 3}}, {"folds": [many]})) == []


def test_the_commit_is_read_as_git_keeps_it(tmp_path: Path) -> None:
    def git(*words: str, folder: Path) -> str:
        command = ["git", "-c", "user.name=a", "-c", "user.email=a@b.c", "-C", str(folder), *words]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()

    if shutil.which("git") is None:
        pytest.skip("git is not installed")
    main, linked = tmp_path / "main", tmp_path / "linked"
    main.mkdir()
    assert commit_of(main) is None
    git("init", "-q", folder=main)
    assert commit_of(main) is None
    git("commit", "-q", "--allow-empty", "-m", "x", folder=main)
    commit = git("rev-parse", "HEAD", folder=main)
    git("worktree", "add", "-q", "-b", "other", str(linked), folder=main)
    assert commit_of(main) == commit_of(linked) == commit
    git("pack-refs", "--all", folder=main)
    assert commit_of(main) == commit_of(linked) == commit
    git("checkout", "-q", "--detach", folder=main)
    assert commit_of(main) == commit


def test_what_the_archive_says_of_itself(packed_bundle: Path, trained_bundle: Path) -> None:
    files = files_of(packed_bundle)
    ours, private = json.loads(files["docs/scores.json"]), trained_bundle / "eval" / "fold_0" / "scores.json"
    theirs = json.loads(private.read_text())
    (ours,) = ours["folds"]
    assert ours["fold"] == json.loads(files["provenance.json"])["fold"] == 0
    assert ours["cases"] == len(theirs["cases"])
    assert ours["classes"]["liver"]["dice"]["mean"] == theirs["classes"]["liver"]["dice"]["mean"]
    assert ours["classes"]["liver"]["dice"]["ci95"] == theirs["classes"]["liver"]["dice"]["ci95"]
    assert not [case["id"] for case in theirs["cases"] if case["id"].encode() in files["docs/scores.json"]]
    provenance = json.loads(files["provenance.json"])
    plan = json.loads(files["configs/metadata.json"])["plan"]
    assert provenance["dataset_sha256"] == plan["dataset_digest"]
    assert provenance["plan_sha256"] == sha256(canonical(plan))
    assert provenance["seed"] == 0
    assert provenance["commit"] == commit_of(Path(__file__).parents[1])

    sbom = json.loads(files["sbom.json"])
    versions = {c["name"]: c["version"] for c in sbom["components"]}
    assert versions["torch"] == torch.__version__
    assert {"medunet", "monai", "numpy"} <= set(versions)
    assert all(c["purl"].startswith(f"pkg:pypi/{c['name']}@") for c in sbom["components"])


def test_the_calibration_follows_the_weights(trained_bundle: Path, tmp_path: Path) -> None:
    bundle = tmp_path / "bundle"
    shutil.copytree(trained_bundle, bundle)
    path = bundle / "models" / "quality.json"
    one = {"bias": 0.1, "soft_dice": 0.5, "probability": 0.5, "cases": 9, "always_present": True}
    path.write_text(json.dumps({"weights": weights_digest(bundle), "fold": 0, "classes": {"liver": one}}))
    verbs.pack(bundle, tmp_path / "b.zip")
    verbs.unpack(tmp_path / "b.zip", tmp_path / "out")
    assert weights_digest(tmp_path / "out") != weights_digest(bundle)
    assert "liver" in read_calibrations(tmp_path / "out", weights_digest(tmp_path / "out"))
    path.write_text(json.dumps({"weights": "0" * 64, "fold": 0, "classes": {}}))
    said: list[str] = []
    verbs.pack(bundle, tmp_path / "c.zip", say=said.append)
    assert "left out: models/quality.json (it is of other weights" in "\n".join(said)
    assert "models/quality.json" not in files_of(tmp_path / "c.zip")


def test_a_checkpoint_is_not_packed(trained_bundle: Path, tmp_path: Path) -> None:
    bundle = tmp_path / "bundle"
    shutil.copytree(trained_bundle, bundle)
    shutil.copy(bundle / "models" / "checkpoint_last.pt", bundle / "models" / "model.pt")
    with pytest.raises(BundleError, match=r"model\.pt: is not a plain state dict \('model' is no tensor\)"):
        verbs.pack(bundle, tmp_path / "b.zip")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bundle"]


def test_weights_of_another_network_are_not_packed(trained_bundle: Path, tmp_path: Path) -> None:
    bundle = tmp_path / "bundle"
    shutil.copytree(trained_bundle, bundle)
    torch.save({"w": torch.zeros(3)}, bundle / "models" / "model.pt")
    with pytest.raises(UnsafeError, match="the weights are not of this network"):
        verbs.pack(bundle, tmp_path / "b.zip")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bundle"]


def changed_bundle(trained_bundle: Path, tmp_path: Path, name: str, old: str, new: str) -> Path:
    """A copy with one text replaced."""
    bundle = tmp_path / "bundle"
    shutil.copytree(trained_bundle, bundle)
    text = (bundle / name).read_text()
    assert old in text
    (bundle / name).write_text(text.replace(old, new))
    return bundle


@pytest.mark.parametrize(
    ("name", "old", "new", "words"),
    [
        ("configs/inference.yaml", "handlers: ['@weights']", "handlers: [$__import__('os')]", "does not find it safe"),
        ("configs/inference.yaml", "torch.nn.Module.to", "os.system", "does not find it safe: .*os.system"),
        ("docs/data_license.txt", "Licence stated", "Ask /home/jane/data. Licence stated", "must not leave the house"),
    ],
)
def test_what_is_unsafe_or_private_is_not_packed(
    trained_bundle: Path, tmp_path: Path, name: str, old: str, new: str, words: str
) -> None:
    bundle = changed_bundle(trained_bundle, tmp_path, name, old, new)
    for fix in (False, True):
        with pytest.raises(UnsafeError, match=words):
            verbs.pack(bundle, tmp_path / "b.zip", fix=fix)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bundle"]


def test_what_can_be_mended_is_mended_in_the_archive_alone(trained_bundle: Path, tmp_path: Path) -> None:
    line = "fold: 0                         # of 5, by patient"
    bundle = changed_bundle(trained_bundle, tmp_path, "configs/train.yaml", line, "fold: 0  # see /home/jane/notes")
    with pytest.raises(UnsafeError, match=r"configs/train\.yaml.*--fix|--fix.*configs/train\.yaml"):
        verbs.pack(bundle, tmp_path / "b.zip")
    said: list[str] = []
    verbs.pack(bundle, tmp_path / "b.zip", fix=True, say=said.append)
    assert "mended in the archive: configs/train.yaml" in "\n".join(said)
    assert b"jane" not in files_of(tmp_path / "b.zip")["configs/train.yaml"]
    assert "jane" in (bundle / "configs" / "train.yaml").read_text()


def test_the_card_says_what_the_scores_say(packed_bundle: Path, trained_bundle: Path, tmp_path: Path) -> None:
    card = files_of(packed_bundle)["docs/README.md"].decode()
    assert "model card" in card
    cells = re.search(r"\| Dice \| ([\d.]+)", card)
    assert cells
    wrong = card.replace(cells[0], "| Dice | 0.999", 1)
    assert (
        "docs/README.md"
        in verify_static(forged(packed_bundle, tmp_path / "b.zip", {"docs/README.md": wrong.encode()})).failure
    )
    bundle = tmp_path / "bundle"
    shutil.copytree(trained_bundle, bundle)
    (bundle / "docs" / "README.md").write_text(
        card.replace("## Out of scope", "Ask the ward first.\n\n## Out of scope")
    )
    verbs.pack(bundle, tmp_path / "c.zip")
    assert b"Ask the ward first." in files_of(tmp_path / "c.zip")["docs/README.md"]
    (bundle / "docs" / "README.md").write_text(wrong)
    with pytest.raises(BundleError, match=r"docs/README\.md: .*0\.999.*pack with --fix"):
        verbs.pack(bundle, tmp_path / "d.zip")
    verbs.pack(bundle, tmp_path / "d.zip", fix=True)
    assert files_of(tmp_path / "d.zip")["docs/README.md"].decode() == card


@pytest.mark.parametrize(
    ("name", "old", "new", "words"),
    [
        ("configs/metadata.json", '"monai_version"', '"monai"', "configs/metadata.json .*monai_version"),
        ("configs/train.yaml", "    max_epochs:", "    epochs:", "train::trainer::max_epochs"),
        ("configs/metadata.json", '"version": "0.1.0"', '"version": "0.2.0"', "version is '0.2.0', the manifest says"),
    ],
)  # fmt: skip
def test_metadata_that_monai_would_refuse_is_refused(
    packed_bundle: Path, tmp_path: Path, name: str, old: str, new: str, words: str
) -> None:
    text = files_of(packed_bundle)[name].decode()
    assert old in text
    changed = forged(packed_bundle, tmp_path / "b.zip", {name: text.replace(old, new).encode()})
    assert not verify_static(changed).verified
    with changed.open("rb") as file:
        contents = archive_contents(file)
        with pytest.raises(content_checks.Failed, match=words):
            content_checks.metadata(contents, read_manifest(contents.read("MANIFEST.json")))


def test_versions_are_told_and_never_a_failure(packed_bundle: Path, tmp_path: Path) -> None:
    text = files_of(packed_bundle)["configs/metadata.json"].decode()
    newer = re.sub(r'"monai_version": "[^"]*"', '"monai_version": "99.0.0"', text)
    result = verify_static(forged(packed_bundle, tmp_path / "b.zip", {"configs/metadata.json": newer.encode()}))
    told = {check.name: check for check in result.checks}["versions"]
    assert told.state == "passed"
    assert re.search(r"monai here is [\d.]+, older than the bundle's 99\.0\.0", told.what)


def test_the_archive_is_not_written_into_the_bundle(trained_bundle: Path) -> None:
    with pytest.raises(InputError, match="lies in the bundle; write the archive elsewhere"):
        verbs.pack(trained_bundle, trained_bundle / "b.zip")


def test_a_thousand_flipped_bits_are_all_found(packed_bundle: Path) -> None:
    data = bytearray(packed_bundle.read_bytes())
    rng = random.Random(0)
    for _ in range(1000):
        place, bit = rng.randrange(len(data)), 1 << rng.randrange(8)
        data[place] ^= bit
        assert not is_sound(bytes(data)), place
        data[place] ^= bit
    assert is_sound(bytes(data))


def is_sound(data: bytes) -> bool:
    """The checks 'form' and 'manifest', in memory."""
    try:
        contents = archive_contents(io.BytesIO(data))
        return not compare_manifest(read_manifest(contents.read("MANIFEST.json")), contents.members)
    except UnsafeError:
        return False


def test_every_bit_of_a_small_archive_matters() -> None:
    files = {"LICENSE": b"", "docs/a.md": b"hello", "docs/b.md": b"\0" * 40}
    file = io.BytesIO()
    write_archive(file, dict(files), [measure(name, data) for name, data in files.items()])
    data = file.getvalue()
    assert zipfile.ZipFile(file).testzip() is None
    listing = read_archive(io.BytesIO(data))
    assert (listing.sha256, listing.size) == (sha256(data), len(data))
    for place in range(8 * len(data)):
        flipped = bytearray(data)
        flipped[place // 8] ^= 1 << place % 8
        with pytest.raises(UnsafeError):
            read_archive(io.BytesIO(flipped))
    for cut in range(len(data)):
        with pytest.raises(UnsafeError):
            read_archive(io.BytesIO(data[:cut]))


@pytest.mark.slow
def test_large_members_are_zip64_that_others_read(tmp_path: Path) -> None:
    large = tmp_path / "large"
    with large.open("wb") as file:
        file.truncate(2**32 + 5)
    target = tmp_path / "large.zip"
    files: dict[str, Path | bytes] = {"docs/a.md": b"first", "models/model.pt": large, "sbom.json": b"last"}
    members = [measure(name, content) for name, content in files.items()]
    with target.open("wb") as file:
        write_archive(file, files, members)
    large.unlink()
    with target.open("rb") as file:
        assert {m.name: m.sha256 for m in read_archive(file).members} == {m.name: m.sha256 for m in members}
    with zipfile.ZipFile(target) as theirs:
        assert theirs.read("sbom.json") == b"last"
        assert theirs.getinfo("models/model.pt").file_size == 2**32 + 5


def rewritten(archive: Path, target: Path, change: Callable[[zipfile.ZipFile, dict[str, bytes]], None]) -> Path:
    """The same members by Python's zipfile, and whatever `change` adds."""
    files = files_of(archive)
    with zipfile.ZipFile(target, "w") as made:
        for name, data in files.items():
            made.writestr(zipfile.ZipInfo(name), data)
        change(made, files)
    return target


def _link(made: zipfile.ZipFile, files: dict[str, bytes]) -> None:
    entry = zipfile.ZipInfo("docs/link.md")
    entry.create_system, entry.external_attr = 3, 0o120777 << 16
    made.writestr(entry, "/etc/passwd")


def _twice(made: zipfile.ZipFile, files: dict[str, bytes]) -> None:
    made.writestr(zipfile.ZipInfo("LICENSE"), files["LICENSE"])


def _climbing(made: zipfile.ZipFile, files: dict[str, bytes]) -> None:
    made.writestr(zipfile.ZipInfo("../../canary"), "out")


def _comment(made: zipfile.ZipFile, files: dict[str, bytes]) -> None:
    made.comment = b"hello"


@pytest.mark.filterwarnings("ignore:Duplicate name")
@pytest.mark.parametrize("change", [_link, _twice, _climbing, _comment])
def test_archives_of_other_programs_are_refused(
    packed_bundle: Path, tmp_path: Path, change: Callable[..., None]
) -> None:
    refused(rewritten(packed_bundle, tmp_path / "b.zip", change), "nothing was unpacked")
    assert not list(tmp_path.rglob("canary"))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda data: b"MZ" + data, "does not begin with a member|members"),
        (lambda data: data + b"x", "bytes follow the end|members"),
        (lambda data: data + data, "follow the end|members"),
        (lambda data: data[:-10], "cut short|members"),
        (lambda data: data[: len(data) // 2], "cut short|members"),
        (lambda data: b"", "members|does not begin"),
        (lambda data: b"\x89PNG\r\n", "members|does not begin"),
    ],
)
def test_cut_and_lengthened_archives_are_refused(
    packed_bundle: Path, tmp_path: Path, change: Callable[[bytes], bytes], words: str
) -> None:
    (tmp_path / "b.zip").write_bytes(change(packed_bundle.read_bytes()))
    result = refused(tmp_path / "b.zip", words)
    assert states(result)["audit"] == "not run"


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"docs/README.md": b"changed"}, "docs/README.md: has 7 bytes, the manifest says"),
        ({"docs/scores.json": None}, "docs/scores.json: is in the manifest and missing"),
        ({"docs/extra.md": b"more"}, "docs/extra.md: is not in the manifest; it was added"),
        ({"MANIFEST.json": None}, "MANIFEST.json is missing: this is not a packed bundle"),
        ({"MANIFEST.json": b"{}"}, "is not a manifest of the format"),
        ({"MANIFEST.json": b'{"a":1,"a":2}'}, "key 'a' stands twice"),
    ],
)
def test_a_manifest_that_does_not_fit_is_refused(
    packed_bundle: Path, tmp_path: Path, changes: dict[str, bytes | None], words: str
) -> None:
    refused(forged(packed_bundle, tmp_path / "b.zip", changes, manifest_too=False), words)


@pytest.mark.parametrize(
    ("name", "entry", "words"),
    [
        ("MANIFEST.json", {"sha256": "0" * 64, "size": 1}, "MANIFEST.json: lists itself"),
        ("../../canary", {"sha256": "0" * 64, "size": 1}, "climbs"),
        ("/etc/passwd", {"sha256": "0" * 64, "size": 1}, "is hidden, climbs"),
        ("docs/nul.md", {"sha256": "0" * 64, "size": 1}, "is a device"),
        ("LICENSE", {"sha256": "0" * 64, "size": -1}, "entry of LICENSE is not a size and a sha256"),
        ("LICENSE", {"sha256": "0" * 64, "size": True}, "entry of LICENSE is not a size and a sha256"),
        ("LICENSE", {"sha256": "A" * 64, "size": 3}, "entry of LICENSE is not a size and a sha256"),
        ("LICENSE", "0" * 64, "entry of LICENSE is not a size and a sha256"),
        ("LICENSE", {"sha256": "0" * 64, "size": 11357}, "LICENSE: its sha256 is not the manifest's"),
    ],
)
def test_hostile_manifests_are_refused(
    packed_bundle: Path, tmp_path: Path, name: str, entry: object, words: str
) -> None:
    content = json.loads(files_of(packed_bundle)["MANIFEST.json"])
    content["files"][name] = entry
    changes = {"MANIFEST.json": canonical(content)}
    refused(forged(packed_bundle, tmp_path / "b.zip", changes, manifest_too=False), words)
    assert not list(tmp_path.rglob("canary"))


@pytest.mark.parametrize("name", ["phantom\u200b", "phantom ", "phan\x1b[2Jtom", "\u202ephantom"])
def test_a_name_that_looks_like_another_is_refused(packed_bundle: Path, tmp_path: Path, name: str) -> None:
    content = json.loads(files_of(packed_bundle)["MANIFEST.json"])
    changes = {"MANIFEST.json": canonical({**content, "name": name})}
    refused(forged(packed_bundle, tmp_path / "b.zip", changes, manifest_too=False), "cannot be seen")


def test_a_manifest_in_another_hand_is_refused(packed_bundle: Path, tmp_path: Path) -> None:
    content = json.loads(files_of(packed_bundle)["MANIFEST.json"])
    changes = {"MANIFEST.json": json.dumps(content).encode()}
    words = "is not written as medunet writes it"
    refused(forged(packed_bundle, tmp_path / "b.zip", changes, manifest_too=False), words)


def _other_weights(files: dict[str, bytes]) -> dict[str, bytes]:
    state = torch.load(io.BytesIO(files["models/model.pt"]), weights_only=True)
    first = next(iter(state))
    state[first] = state[first] + 1
    file = io.BytesIO()
    torch.save(state, file)
    return {"models/model.pt": file.getvalue()}


def _overlapping(files: dict[str, bytes]) -> dict[str, bytes]:
    data = files["models/model.safetensors"]
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    _, second = sorted(header, key=lambda name: header[name]["data_offsets"][0])[:2]
    size = header[second]["data_offsets"][1] - header[second]["data_offsets"][0]
    header[second]["data_offsets"] = [0, size]
    text = json.dumps(header).encode()
    return {"models/model.safetensors": len(text).to_bytes(8, "little") + text + data[8 + length :]}


def _evil_pickle(files: dict[str, bytes]) -> dict[str, bytes]:
    file = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(files["models/model.pt"])) as old, zipfile.ZipFile(file, "w") as new:
        for entry in old.infolist():
            evil = entry.filename.endswith("data.pkl")
            new.writestr(entry.filename, pickled_call("os.mkdir", "canary") if evil else old.read(entry))
    return {"models/model.pt": file.getvalue()}


def _quality(text: bytes) -> Callable[[dict[str, bytes]], dict[str, bytes]]:
    return lambda files: {"models/quality.json": text.replace(b"DIGEST", sha256(files["models/model.pt"]).encode())}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (_other_weights, r"model\.pt and models/model\.safetensors differ: \S+ has other numbers in the two files"),
        (_overlapping, "overlaps another tensor in the file"),
        (_evil_pickle, r"model\.pt: would run os\.mkdir|os\.mkdir"),
        (_quality(b'{"weights":"DIGEST","fold":0,"classes":{"a":NaN}}'), "NaN is not a number|NaN"),
        (_quality(b'{"weights":"DIGEST","fold":0,"classes":{"a":{"bias":1e999}}}'), "too large for a number"),
        (_quality(b'{"weights":"00","fold":0,"classes":{}}'), "is of other weights than models/model.pt"),
        (_quality(b'{"weights":"DIGEST","fold":0,"classes":{"a":{"bias":"x"}}}'), "holds what is no calibration"),
        (_quality(b"[" * 100_000), "not plain JSON|deep"),
        (lambda files: {"docs/run.html": b"<script>"}, "docs/run.html: has no place in a packed bundle"),
        (lambda files: {"models/other.pt": b"x"}, "models/other.pt: has no place in a packed bundle"),
        (lambda files: {"configs/metadata.json": b"{"}, "metadata.json"),
        (lambda files: {"configs/metadata.json": b'{"name":"other"}'}, "metadata"),
        (lambda files: {"configs/train.yaml": b"a: [" + b"[" * 5000}, "train.yaml"),
    ],
)  # fmt: skip
def test_a_forger_who_writes_the_manifest_too_is_refused(
    packed_bundle: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    change: Callable[..., dict[str, bytes]],
    words: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    result = verify_static(forged(packed_bundle, tmp_path / "b.zip", change(files_of(packed_bundle))))
    told = " ".join(f"{check.name}: {check.what}" for check in result.checks if check.state == "failed")
    assert re.search(words, told), told
    refused(tmp_path / "b.zip", "nothing was unpacked")
    assert not (tmp_path / "canary").exists()


def test_weights_that_answer_otherwise_are_refused_by_the_reference(packed_bundle: Path, tmp_path: Path) -> None:
    """Both weight files changed alike, a manifest that fits: only the run can tell."""
    from medunet.trust.archive.slices import Slice
    from medunet.trust.archive.weights_file import read_torch, write_safetensors

    changed = _other_weights(files_of(packed_bundle))
    file = io.BytesIO()
    write_safetensors(file, read_torch(Slice.whole(io.BytesIO(changed["models/model.pt"]))))
    quality = json.loads(files_of(packed_bundle)["models/quality.json"])
    quality["weights"] = sha256(changed["models/model.pt"])
    changes = {**changed, "models/model.safetensors": file.getvalue(), "models/quality.json": canonical(quality)}
    result = verbs.verify(forged(packed_bundle, tmp_path / "b.zip", changes))
    assert verify_static(tmp_path / "b.zip").verified
    assert [name for name, state in states(result).items() if state == "failed"] == ["reference"]
    assert "a probability differs by" in result.failure


def test_folders_are_verified_too(packed_bundle: Path, trained_bundle: Path, tmp_path: Path) -> None:
    folder = tmp_path / "out"
    verbs.unpack(packed_bundle, folder)
    (folder / "models" / "compiled").mkdir()
    (folder / "models" / "compiled" / "x.bin").write_text("x")
    assert "remove models/compiled, predict makes it again" in verify_static(folder).failure
    shutil.rmtree(folder / "models" / "compiled")
    (folder / "docs" / "more.md").symlink_to("/etc/passwd")
    assert "docs/more.md: is a link" in verify_static(folder).failure
    (folder / "docs" / "more.md").unlink()
    os.mkfifo(folder / "docs" / "pipe.md")
    assert "docs/pipe.md: is not a plain file" in verify_static(folder).failure
    (folder / "docs" / "pipe.md").unlink()
    assert verify_static(folder).verified
    assert "this is not a packed bundle; pack it with medunet pack" in verify_static(trained_bundle).failure


def test_unpacking_refuses_what_is_there(packed_bundle: Path, tmp_path: Path) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine").write_text("x")
    with pytest.raises(InputError, match="is not empty, nothing is written over"):
        verbs.unpack(packed_bundle, tmp_path / "full")
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    with pytest.raises(InputError, match="is there already and is no folder"):
        verbs.unpack(packed_bundle, tmp_path / "link")
    (tmp_path / "empty").mkdir()
    verbs.unpack(packed_bundle, tmp_path / "empty")
    assert (tmp_path / "empty" / "LICENSE").is_file()
    with pytest.raises(InputError, match="is a folder already"):
        verbs.unpack(tmp_path / "empty", tmp_path / "x")
    with pytest.raises(InputError, match="is missing; give an archive"):
        verbs.verify(tmp_path / "gone.zip")
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(UnsafeError, match="is not a plain file"):
        verbs.verify(tmp_path / "pipe")


def test_an_archive_that_is_exchanged_meanwhile_is_refused(
    packed_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    archive, other = tmp_path / "b.zip", tmp_path / "other.zip"
    shutil.copy(packed_bundle, archive)
    shutil.copy(packed_bundle, other)

    def swap(source: Path) -> str:
        other.replace(source)
        return "safe"

    def rewrite(source: Path) -> str:
        with source.open("r+b") as file:  # the same file and size, and in the end the same bytes
            first = file.read(1)
            file.seek(0)
            file.write(first)
        return "safe"

    monkeypatch.setattr(content_checks, "audit_source", rewrite)
    assert "or written to" in verify_static(archive).failure
    monkeypatch.setattr(content_checks, "audit_source", swap)
    assert "was replaced while it was examined" in verify_static(archive).failure


WITHOUT = """
    import sys
    class Refuse:
        def find_spec(self, name, path=None, target=None):
            if name.split(".")[0] in {names}:
                raise ModuleNotFoundError(name)
    sys.meta_path.insert(0, Refuse())
    sys.argv = ["medunet", *{words}]
    import time; start = time.time()
    from medunet.cli.main import main
    try:
        main()
    finally:
        print(f"{{time.time() - start:.2f}} s")
"""


def run_without(names: tuple[str, ...], *words: str) -> subprocess.CompletedProcess[str]:
    code = textwrap.dedent(WITHOUT.format(names=names, words=list(words)))
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)


def test_verify_needs_no_torch(packed_bundle: Path, tmp_path: Path) -> None:
    heavy = ("torch", "monai", "numpy", "nibabel", "scipy")
    done = run_without(heavy[:2], "verify", str(packed_bundle), "--json", str(tmp_path / "out.json"))
    assert done.returncode == 0, done.stdout + done.stderr
    assert "THE WEIGHTS WERE NOT RUN" in done.stdout
    found = {check["name"]: check["state"] for check in json.loads((tmp_path / "out.json").read_text())["checks"]}
    assert {name: found[name] for name in STATIC if name != "signature"} == dict.fromkeys(
        set(STATIC) - {"signature"}, "passed"
    )
    assert (found["network"], found["reference"]) == ("not run", "not run")


def test_the_command_line(packed_bundle: Path, trained_bundle: Path, tmp_path: Path) -> None:
    broken = tmp_path / "broken.zip"
    broken.write_bytes(packed_bundle.read_bytes()[:-1])
    done = run_without(("torch",), "verify", str(broken), "--json", str(tmp_path / "out.json"))
    assert done.returncode == 3
    assert "REFUSED" in done.stdout
    assert json.loads((tmp_path / "out.json").read_text())["verified"] is False
    done = run_without(("torch",), "unpack", str(packed_bundle), "-o", str(tmp_path / "out"))
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "out" / "models" / "model.pt").is_file()
    done = run_without(("torch",), "--quiet", "verify", str(tmp_path / "gone.zip"))
    assert done.returncode == 2
    assert "gone.zip: is missing" in done.stderr


def test_names() -> None:
    for name in (
        "a//b",
        "/a",
        "a/",
        "..",
        "a/../b",
        ".a",
        "a/.b",
        "a\\b",
        "C:",
        "ä",
        "a b",
        "con",
        "docs/AUX.md",
        "a.",
        "x" * 201,
        "",
    ):
        assert name_problem(name), name
    for name in ("LICENSE", "docs/a_b-c+1.md", "models/model.pt"):
        assert not name_problem(name), name
    with pytest.raises(UnsafeError, match="the name has a part"):
        measure("../x", b"")


def test_the_trust_room_stands_alone() -> None:
    """Standard library, PyYAML, cryptography, and of medunet errors and itself: nothing else, anywhere in a file."""
    for path in sorted((ROOT / "medunet" / "trust").glob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            names = [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            names += [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            for name in names:
                allowed = name.split(".")[0] in {*sys.stdlib_module_names, "yaml", "cryptography"}
                assert allowed or name.startswith(("medunet.trust", "medunet.errors")), f"{path.name}: {name}"


@pytest.mark.slow
def test_a_gigabyte_is_verified_in_little_memory(packed_bundle: Path, tmp_path: Path) -> None:
    from medunet.trust.archive.slices import Slice
    from medunet.trust.archive.weights_file import read_torch, write_safetensors

    model, tensors = tmp_path / "model.pt", tmp_path / "model.safetensors"
    torch.save({f"w{n}": torch.rand(1 << 25) for n in range(8)}, model)
    with model.open("rb") as source, tensors.open("wb") as file:
        write_safetensors(file, read_torch(Slice.whole(source)))
    from medunet.trust.archive.manifest import manifest

    files: dict[str, Path | bytes] = {
        **files_of(packed_bundle),
        "models/model.pt": model,
        "models/model.safetensors": tensors,
    }
    files.pop("MANIFEST.json")
    quality = json.loads(files_of(packed_bundle)["models/quality.json"])
    files["models/quality.json"] = canonical({**quality, "weights": measure("models/model.pt", model).sha256})
    members = [measure(name, content) for name, content in files.items()]
    files["MANIFEST.json"] = manifest("Phantom", "0.1.0", members)
    members.append(measure("MANIFEST.json", files["MANIFEST.json"]))
    with (tmp_path / "b.zip").open("wb") as file:
        write_archive(file, files, members)
    code = f"""
        import time; start = time.time()
        from pathlib import Path
        from medunet.trust.archive.verifying import verify_static
        result = verify_static(Path({str(tmp_path / "b.zip")!r}))
        assert result.verified, result.failure
        peak = next(line for line in open("/proc/self/status") if line.startswith("VmHWM"))
        print(int(peak.split()[1]) // 1024, time.time() - start)
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)], env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True,
        text=True, check=True,
    )  # fmt: skip
    print(done.stdout)
    assert int(done.stdout.split()[0]) < 200
