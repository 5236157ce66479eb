"""Signatures: who packed a bundle, without a network; a key that changed is never taken silently."""

from __future__ import annotations

import base64
import json
import os
import shutil
import stat
import subprocess
from pathlib import Path

import pytest
from test_trust_archive import run_without, states
from trust_forging import forged

from medunet import verbs
from medunet.errors import InputError, UnsafeError
from medunet.trust.archive.senders import known_sender, senders_file
from medunet.trust.archive.signing import Statement, check_signature, fingerprint, keygen, public_key, sign
from medunet.trust.archive.strictjson import canonical
from medunet.trust.archive.unpacking import unpack
from medunet.trust.archive.verifying import settled, verified_contents, verify_static


@pytest.fixture(autouse=True)
def _own_senders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MEDUNET_HOME", str(tmp_path / "home"))


@pytest.fixture
def keys(tmp_path: Path) -> Path:
    """A private key; the public one has ``.pub`` added."""
    keygen(tmp_path / "keys" / "mine")
    return tmp_path / "keys" / "mine"


def public(key: Path) -> Path:
    return key.with_name(key.name + ".pub")


def signed(archive: Path, folder: Path, key: Path) -> Path:
    """A copy of an archive with a signature beside it."""
    folder.mkdir(exist_ok=True)
    copy = folder / archive.name
    shutil.copy(archive, copy)
    with verified_contents(copy) as (result, contents):
        assert contents is not None
        assert contents.listing is not None
        listing = contents.listing
    statement = Statement(listing.sha256, listing.size, result.name, result.version)
    copy.with_name(copy.name + ".sig").write_bytes(sign(statement, key))
    return copy


def signature_of(archive: Path) -> Path:
    return archive.with_name(archive.name + ".sig")


def test_keys_are_private_and_never_written_over(tmp_path: Path) -> None:
    old = os.umask(0)
    try:
        printed = verbs.keygen(tmp_path / "key")
    finally:
        os.umask(old)
    assert stat.S_IMODE((tmp_path / "key").stat().st_mode) == 0o600
    assert b"PRIVATE" not in public(tmp_path / "key").read_bytes()
    assert printed == fingerprint(public_key(public(tmp_path / "key")))
    before = (tmp_path / "key").read_bytes()
    with pytest.raises(InputError, match="key: is there already, a key is never written over"):
        verbs.keygen(tmp_path / "key")
    (tmp_path / "key").unlink()
    with pytest.raises(InputError, match=r"key\.pub: is there already"):
        verbs.keygen(tmp_path / "key")
    public(tmp_path / "key").unlink()
    assert verbs.keygen(tmp_path / "key") != printed
    assert (tmp_path / "key").read_bytes() != before


def test_packing_signs_and_verifying_remembers(trained_bundle: Path, keys: Path, tmp_path: Path) -> None:
    archive = tmp_path / "b.zip"
    packed = verbs.pack(trained_bundle, archive, key=keys)
    assert packed.signer == fingerprint(public_key(public(keys)))
    assert "seen for the first time" in {c.name: c.what for c in verify_static(archive).checks}["signature"]
    assert known_sender("Phantom") is None
    verbs.unpack(archive, tmp_path / "out")
    assert known_sender("Phantom") == packed.signer
    assert stat.S_IMODE(senders_file().stat().st_mode) == 0o600
    assert "as before" in {c.name: c.what for c in verify_static(archive).checks}["signature"]
    assert verify_static(archive, public(keys)).verified
    said: list[str] = []
    verbs.pack(trained_bundle, archive, say=said.append)
    assert "removed b.zip.sig" in "\n".join(said)
    assert not signature_of(archive).exists()


def test_a_new_key_for_a_known_name_is_refused_until_it_is_given(
    packed_bundle: Path, keys: Path, tmp_path: Path
) -> None:
    other = tmp_path / "keys" / "other"
    keygen(other)
    settled(verify_static(signed(packed_bundle, tmp_path / "first", keys)), False)
    archive = signed(packed_bundle, tmp_path / "second", other)
    result = verify_static(archive)
    assert not result.verified
    words = (
        r"ask the sender by telephone whether they have a new key, and if they have, verify once with --key NEW\.pub"
    )
    with pytest.raises(UnsafeError, match=words):
        unpack(archive, tmp_path / "out")
    assert known_sender("Phantom") == fingerprint(public_key(public(keys)))
    settled(verify_static(archive, public(other)), True)
    assert known_sender("Phantom") == fingerprint(public_key(public(other)))
    assert verify_static(archive).verified


def test_a_known_sender_whose_signature_is_gone_is_refused(packed_bundle: Path, keys: Path, tmp_path: Path) -> None:
    archive = signed(packed_bundle, tmp_path / "first", keys)
    signature_of(archive).rename(tmp_path / "kept")
    assert states(verify_static(archive))["signature"] == "not run"
    assert "b.zip.sig is missing" in verify_static(archive, public(keys)).failure.replace("phantom", "b")
    (tmp_path / "kept").rename(signature_of(archive))
    settled(verify_static(archive), False)
    signature_of(archive).unlink()
    assert "'Phantom' was signed by SHA256:" in verify_static(archive).failure


def test_a_bundle_that_fails_is_not_remembered(packed_bundle: Path, keys: Path, tmp_path: Path) -> None:
    changed = forged(packed_bundle, tmp_path / "b.zip", {"models/quality.json": b"{}"})
    with verified_contents(changed) as (result, contents):
        assert contents is not None
        assert contents.listing is not None
        statement = Statement(contents.listing.sha256, contents.listing.size, result.name, result.version)
    signature_of(changed).write_bytes(sign(statement, keys))
    result = settled(verify_static(changed), False)
    assert states(result)["signature"] == "passed"
    assert not result.verified
    assert known_sender("Phantom") is None


def test_signatures_of_others_are_refused(packed_bundle: Path, keys: Path, tmp_path: Path) -> None:
    other = tmp_path / "keys" / "other"
    keygen(other)
    archive = signed(packed_bundle, tmp_path / "a", keys)
    found = verify_static(archive, public(other))
    assert f"the signature is by {fingerprint(public_key(public(keys)))}, the key given is" in found.failure
    resigned = signed(packed_bundle, tmp_path / "b", other)
    assert "the key given is" in verify_static(resigned, public(keys)).failure
    foreign = forged(packed_bundle, tmp_path / "c.zip", {"docs/note.md": b"another"})
    shutil.copy(signature_of(archive), signature_of(foreign))
    assert "the signature is of another archive (sha256 differs)" in verify_static(foreign, public(keys)).failure


def test_unused_bits_of_base64_count_too(tmp_path: Path) -> None:
    """The last digit of a key has two bits that stand for nothing: 0 and 1, 4 and 5, 8 and 9 are the same key."""
    for number in range(2000):
        key = tmp_path / str(number)
        keygen(key)
        data = sign(statement := Statement("0" * 64, 7, "Phantom", "0.1.0"), key)
        digit = json.loads(data)["key"][-2]
        if digit in "048":
            break
    other = data.replace(f'{digit}="'.encode(), f'{int(digit) + 1}="'.encode(), 1)
    assert base64.b64decode(json.loads(other)["key"]) == base64.b64decode(json.loads(data)["key"])
    check_signature(data, statement)
    with pytest.raises(UnsafeError, match="cut short or is not one of medunet"):
        check_signature(other, statement)


def test_every_changed_or_missing_byte_of_a_signature_is_found(keys: Path) -> None:
    statement = Statement("0" * 64, 7, "Phantom", "0.1.0")
    data = sign(statement, keys)
    key = public_key(public(keys))
    assert check_signature(data, statement, key) == check_signature(data, statement) == key
    for cut in range(len(data)):
        with pytest.raises(UnsafeError, match="cut short or is not one of medunet"):
            check_signature(data[:cut], statement, key)
    for place in range(len(data)):
        changed = bytearray(data)
        changed[place] ^= 1
        with pytest.raises(UnsafeError):
            check_signature(bytes(changed), statement, key)
    with pytest.raises(UnsafeError, match="cut short or is not one of medunet"):
        check_signature(data * 1000, statement, key)


@pytest.mark.parametrize("part", ["sha256", "size", "name", "version"])
def test_a_statement_that_was_altered_in_the_signature_is_refused(keys: Path, part: str) -> None:
    statement = Statement("0" * 64, 7, "Phantom", "0.1.0")
    content = json.loads(sign(Statement(**{**statement.as_json(), part: 8 if part == "size" else "other"}), keys))
    with pytest.raises(UnsafeError, match=rf"is of another archive \({part} differs\)"):
        check_signature(canonical(content), statement)
    content["archive"] = statement.as_json()
    with pytest.raises(UnsafeError, match="the signature is not valid"):
        check_signature(canonical(content), statement)


def test_a_signature_is_of_this_purpose_alone(keys: Path) -> None:
    """The same key's signature over the same facts without the first line counts for nothing."""
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    statement = Statement("0" * 64, 7, "Phantom", "0.1.0")
    content = json.loads(sign(statement, keys))
    raw = public_key(public(keys))
    bare = statement.message(raw).split(b"\n", 1)[1]
    private = load_pem_private_key(keys.read_bytes(), None)
    content["signature"] = base64.b64encode(private.sign(bare)).decode()  # type: ignore[call-arg, union-attr]
    with pytest.raises(UnsafeError, match="the signature is not valid"):
        check_signature(canonical(content), statement)


def test_keys_that_are_none(keys: Path, tmp_path: Path) -> None:
    statement = Statement("0" * 64, 7, "Phantom", "0.1.0")
    with pytest.raises(InputError, match=r"mine\.pub: is not a private key"):
        sign(statement, public(keys))
    with pytest.raises(InputError, match="mine: is not a public key"):
        public_key(keys)
    with pytest.raises(InputError, match="gone: cannot be read"):
        sign(statement, tmp_path / "gone")
    subprocess.run(
        ["openssl", "ecparam", "-name", "prime256v1", "-genkey", "-noout", "-out", tmp_path / "ec"], check=True
    )
    with pytest.raises(InputError, match="is not an Ed25519 key"):
        sign(statement, tmp_path / "ec")


def test_a_wrong_key_stops_packing_before_any_work(trained_bundle: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="gone: cannot be read"):
        verbs.pack(trained_bundle, tmp_path / "b.zip", key=tmp_path / "gone")
    assert not list(tmp_path.glob("*.zip"))


def test_a_broken_list_of_senders_is_not_passed_over(packed_bundle: Path, keys: Path, tmp_path: Path) -> None:
    archive = signed(packed_bundle, tmp_path / "a", keys)
    senders_file().parent.mkdir(parents=True)
    for text in ("{", '{"Phantom": "not a fingerprint"}', "[]"):
        senders_file().write_text(text)
        assert "mend it, or remove it to forget all senders" in verify_static(archive).failure


def test_a_folder_is_not_signed(packed_bundle: Path, keys: Path, tmp_path: Path) -> None:
    unpack(packed_bundle, tmp_path / "out")
    assert states(verify_static(tmp_path / "out"))["signature"] == "not run"
    assert "a folder cannot be signed" in verify_static(tmp_path / "out", public(keys)).failure


def test_without_cryptography_nothing_is_taken_for_verified(packed_bundle: Path, keys: Path, tmp_path: Path) -> None:
    archive = signed(packed_bundle, tmp_path / "a", keys)
    absent = ("cryptography", "torch")
    done = run_without(absent, "verify", str(archive))
    assert done.returncode == 0, done.stderr
    assert "THE SENDER IS NOT VERIFIED" in done.stdout
    assert known_sender("Phantom") is None
    done = run_without(absent, "verify", str(archive), "--key", str(public(keys)))
    assert done.returncode == 3
    assert "cannot be checked without the package cryptography" in done.stderr
    settled(verify_static(archive), False)
    assert run_without(absent, "verify", str(archive)).returncode == 3
    done = run_without(absent, "keygen", "-o", str(tmp_path / "new"))
    assert done.returncode == 2
    assert "signatures need the package cryptography" in done.stderr
    assert not (tmp_path / "new").exists()


def test_the_command_line_signs(trained_bundle: Path, tmp_path: Path) -> None:
    assert run_without((), "keygen", "-o", str(tmp_path / "key")).returncode == 0
    archive = str(tmp_path / "b.zip")
    done = run_without((), "pack", str(trained_bundle), "-o", archive, "--sign", str(tmp_path / "key"))
    assert done.returncode == 0, done.stderr
    assert "wrote" in done.stdout
    assert "signed with SHA256:" in done.stdout
    done = run_without(("torch",), "verify", archive, "--key", str(tmp_path / "key.pub"), "--json", str(tmp_path / "j"))
    assert done.returncode == 0, done.stderr
    assert json.loads((tmp_path / "j").read_text())["signer"].startswith("SHA256:")
