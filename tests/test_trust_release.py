"""The release gate: leaks planted everywhere are found where they stand, and clean bundles have none."""

from __future__ import annotations

import base64
import gzip
import io
import json
import pickle
import random
import shutil
import string
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch
import yaml
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from PIL import Image, PngImagePlugin
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian

from medunet.trust.findings import Finding
from medunet.trust.gate import leaks
from medunet.trust.gate.mending import blank_dataset_dir
from medunet.trust.gate.release import examine_release, fix_release

ID = "STS_017_MR_T1"
INDEX: dict[str, Any] = {
    "name": "sarcoma",
    "labels": {"background": 0, "tumour": 1},
    "channels": ["MR_T1"],
    "training": [
        {
            "id": ID,
            "patient": "STS_017",
            "images": ["STS_017/MR_T1_image.nii.gz"],
            "label": "STS_017/MR_T1_mask.nii.gz",
        },
        {"id": "1", "patient": "48213", "images": ["p48213/MR_T1_image.nii.gz"], "label": "p48213/MR_T1_mask.nii.gz"},
        {"id": "image", "patient": "MRN-90417", "images": ["raw/Untersuchung_77.nii.gz"], "label": None},
    ],
    "test": [{"id": "hidden_042", "patient": "hidden_042", "images": ["hidden_042.nii"], "label": None}],
}
UID = "1.3.6.1.4.1.14519.5.2.1.5168.1900.104193299251798317056218297018"


def release_of(bundle: Path, target: Path) -> Path:
    """What a packer would stage of `bundle`."""
    shutil.copytree(bundle, target, ignore=shutil.ignore_patterns("eval", "checkpoint_last.pt"))
    for config in target.glob("configs/*.yaml"):
        lines = config.read_text().splitlines()
        lines = ['dataset_dir: ""' if line.startswith("dataset_dir:") else line for line in lines]
        config.write_text("\n".join(lines) + "\n")
    return target


@pytest.fixture(scope="module")
def clean(trained_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return release_of(trained_bundle, tmp_path_factory.mktemp("release") / "bundle")


def index_of(bundle: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((bundle / "eval" / "index.json").read_text())
    return content


# ------------------------------------------------------------------------------------------------------------------
# Leaks: each planter returns the file that holds the leak.

Plant = Callable[[Path], str]
PLANTS: list[tuple[str, str, str, Plant]] = []


def leak(rule: str, key: str, name: str = "") -> Callable[[Plant], Plant]:
    """A planted leak: the rule and the key that the gate must give it."""

    def register(plant: Plant) -> Plant:
        PLANTS.append((name or plant.__name__, rule, key, plant))
        return plant

    return register


def append(root: Path, file: str, text: str) -> str:
    path = root / file
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as stream:
        stream.write(text)
    return file


def write(root: Path, file: str, content: bytes) -> str:
    (root / file).parent.mkdir(parents=True, exist_ok=True)
    (root / file).write_bytes(content)
    return file


def metadata(root: Path, change: Callable[[dict[str, Any]], None], ascii_only: bool = False) -> str:
    path = root / "configs" / "metadata.json"
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content, indent=1, ensure_ascii=ascii_only))
    return "configs/metadata.json"


TEXTS: list[tuple[str, str, str, str, str]] = [
    ("yaml comment", "configs/train.yaml", "\n# tried on sts-017-mr-t1 first\n", "case-id", "comment"),
    ("yaml comment behind a value", "configs/inference.yaml", "\nx: 1  # see hidden_042\n", "case-id", "comment"),
    ("yaml value", "configs/train.yaml", "\ncache_dir: /scratch/jane/cache\n", "absolute-path", "cache_dir"),
    ("yaml list of cases", "configs/split.yaml", "cases: [a1, b2]\n", "case-list", "cases"),
    ("yaml windows path", "configs/inference.yaml", "\nout: 'D:\\Users\\jane'\n", "absolute-path", "out"),
    ("logging.conf", "configs/logging.conf", "\n[handler_file]\nargs=('/var/log/x/m.log',)\n", "absolute-path", "args"),
    ("ini comment", "configs/logging.conf", "\n; ask jane.doe@klinik.de\n", "e-mail", "comment"),
    ("data licence", "docs/data_license.txt", "\nask jane.doe@hospital.org\n", "e-mail", ""),
    ("readme host", "docs/README.md", "\nSee http://pacs01:8042/app and more.\n", "internal-address", ""),
    ("readme machine", "docs/README.md", "\nTrained on gpu-node3.radiology.local.\n", "internal-address", ""),
    ("readme ip", "docs/README.md", "\nThe PACS is at 10.20.30.40.\n", "ip-address", ""),
    ("readme unc", "docs/README.md", "\nData: \\\\fileserver\\mri\\2020\n", "absolute-path", ""),
    ("readme file url", "docs/README.md", "\n[data](file:///home/jane/data)\n", "absolute-path", ""),
    ("readme home", "docs/README.md", "\ncd ~jane/projects\n", "absolute-path", ""),
    ("readme id", "docs/README.md", f"\nThe worst case was {ID}.\n", "case-id", ""),
    ("readme short id with a person word", "docs/README.md", "\nSee patient 48213 for that.\n", "case-id", ""),
    ("html comment", "docs/page.html", "<p>x</p>\n<!--\n hidden_042\n-->\n", "case-id", "comment"),
    ("svg comment", "docs/plot.svg", "<svg><!-- MRN-90417 --></svg>\n", "case-id", "comment"),
    ("percent-encoded", "docs/README.md", "\nhttps://x.org/?q=STS%5F017%5FMR%5FT1\n", "case-id", "percent-encoded"),
    ("hex", "docs/README.md", f"\nkey {b'hidden_042'.hex()}\n", "case-id", "hex"),
    ("base64", "docs/README.md", f"\nkey {base64.b64encode(b'hidden_042').decode()}\n", "case-id", "base64"),
    ("dicom name", "docs/README.md", "\nread by DOE^JOHN^^DR\n", "person-name", ""),
    ("uid", "docs/README.md", f"\nSeries {UID}\n", "uid", ""),
    ("uid of a uuid", "docs/README.md", "\n2.25.329800735698586629295641978511506172918\n", "uid", ""),
    ("birth date", "docs/README.md", "\nborn 12.03.1956, seen later\n", "date", ""),
    ("scan date", "docs/README.md", "\nStudy of 2019-11-30\n", "date", ""),
    ("mrn without a colon", "docs/README.md", "\nMRN 0047721 was left out\n", "identifier", ""),
    ("name after patient", "docs/README.md", "\nPatient: Jane Doe\n", "person-name", ""),
    ("e-mail in disguise", "docs/README.md", "\njane.doe(at)klinik.de\n", "e-mail", ""),
    ("share", "docs/README.md", "\nmount //nas01/mri$\n", "absolute-path", ""),
    ("two separators", "docs/README.md", "\nhidden__042\n", "case-id", ""),
    ("mrn", "docs/README.md", "\nMRN: 0047721\n", "identifier", ""),
    ("csv of cases", "docs/results.csv", "case,dice\nx1,0.9\n", "case-list", "column case"),
    ("csv cell", "docs/table.csv", "group,note\na,from hidden_042\n", "case-id", "column note"),
    ("log", "docs/run.log", "anything\n", "training-log", ""),
    ("log by its lines", "docs/x.txt", "epoch 1 loss 0.1\n" * 9, "training-log", ""),
    ("json lines of cases", "docs/r.jsonl", '{"id": "q", "dice": 1}\n{"id": "r", "dice": 0}\n', "case-list", ""),
    ("notebook output", "docs/n.ipynb", '{"cells": [{"outputs": ["/home/jane/x"]}]}', "absolute-path", "outputs::0"),
    ("token", "docs/README.md", "\nhf_abcdefghijklmnopqrst\n", "secret", ""),
    ("mac address", "docs/README.md", "\n3c:22:fb:9a:00:1e\n", "mac-address", ""),
    ("digest of an id", "docs/README.md", "\n51b9fa5b5e4b4df5d2f5b0d1a0a2b4a7\n", "case-id", ""),
]  # fmt: skip


@pytest.mark.parametrize(("file", "text", "rule", "key"), [t[1:] for t in TEXTS], ids=[t[0] for t in TEXTS])
def test_a_leak_in_text_is_found(clean: Path, tmp_path: Path, file: str, text: str, rule: str, key: str) -> None:
    import hashlib

    root = tmp_path / "r"
    shutil.copytree(clean, root)
    text = text.replace("51b9fa5b5e4b4df5d2f5b0d1a0a2b4a7", hashlib.sha256(ID.encode()).hexdigest())
    append(root, file, text)
    found = [f for f in examine_release(root, INDEX) if f.level == "danger"]
    assert [f for f in found if f.rule == rule and f.place.file == file and key in f.place.key], found
    assert {f.place.file for f in found} == {file}
    assert all(ID not in f.what and "jane.doe" not in f.what for f in found)
    lines = {f.place.line for f in found if f.rule == rule}
    if rule not in ("case-list", "training-log"):
        assert lines <= set(range(1, len((root / file).read_text().splitlines()) + 1))


@leak("absolute-path", "description")
def metadata_value(root: Path) -> str:
    return metadata(root, lambda m: m.update(description="made in /home/jane/work"))


@leak("case-id", "per::hidden_042")
def metadata_key(root: Path) -> str:
    return metadata(root, lambda m: m.update(per={"hidden_042": 0.9}))


@leak("case-id", "changelog::0.1.0")
def changelog(root: Path) -> str:
    return metadata(root, lambda m: m["changelog"].update({"0.1.0": "without Untersuchung_77"}))


@leak("e-mail", "authors")
def authors(root: Path) -> str:
    return metadata(root, lambda m: m.update(authors="J. Doe <j.doe@ukx.de>"))


@leak("identifier", "extra::PatientName")
def dicom_keyword(root: Path) -> str:
    return metadata(root, lambda m: m.update(extra={"PatientName": "Doe"}))


@leak("date", "extra::BirthInfo")
def date_by_its_key(root: Path) -> str:
    return metadata(root, lambda m: m.update(extra={"BirthInfo": "19560312"}))


@leak("person-name", "note")
def json_escapes(root: Path) -> str:
    file = metadata(root, lambda m: m.update(note="M\u00dcLLER^J\u00d6RG"), ascii_only=True)
    assert "\\u00dc" in (root / file).read_text()
    return file


@leak("case-list", "eval_metrics::cases")
def scores_by_case(root: Path) -> str:
    return metadata(root, lambda m: m.update(eval_metrics={"cases": {"a": {"dice": 1.0}, "b": {"dice": 0.5}}}))


@leak("case-id", "a repeated key")
def repeated_json_key(root: Path) -> str:
    return write(root, "docs/x.json", b'{"a repeated key": "hidden_042", "a repeated key": "nothing"}')


@leak("case-list", "validation")
def datalist(root: Path) -> str:
    return write(root, "docs/x.json", b'{"validation": [{"image": "a.nii", "label": "b.nii"}]}')


def saved(root: Path, content: Any, **options: Any) -> str:
    torch.save(content, root / "models" / "model.pt", **options)
    return "models/model.pt"


def state(root: Path) -> dict[str, Any]:
    content: dict[str, Any] = torch.load(root / "models" / "model.pt", weights_only=True)
    return content


@leak("case-id", "pickle string")
def state_dict_key(root: Path) -> str:
    return saved(root, {**state(root), "head.hidden_042": torch.zeros(1)})


@leak("absolute-path", "pickle string")
def checkpoint_extra(root: Path) -> str:
    return saved(root, {"model": state(root), "config": "/home/jane/run/config.yaml"})


@leak("checkpoint", "pickle")
def optimiser_state(root: Path) -> str:
    network = torch.nn.Linear(2, 2)
    return saved(
        root, {"model": network.state_dict(), "optimizer": torch.optim.Adam(network.parameters()).state_dict()}
    )


@leak("case-id", "pickle string")
def old_torch_format(root: Path) -> str:
    return saved(root, {"hidden_042": torch.zeros(3)}, _use_new_zipfile_serialization=False)


@leak("case-id", "member .data/notes.txt")
def torch_extra_record(root: Path) -> str:
    with zipfile.ZipFile(root / "models" / "model.pt", "a") as archive:
        name = next(n for n in archive.namelist() if n.endswith("data.pkl"))
        archive.writestr(name.replace("data.pkl", ".data/notes.txt"), "hidden_042")
    return "models/model.pt"


@leak("archive-comment", "zip comment")
def torch_zip_comment(root: Path) -> str:
    with zipfile.ZipFile(root / "models" / "model.pt", "a") as archive:
        archive.comment = b"by Jane"
    return "models/model.pt"


@leak("case-id", "archive name")
def torch_archive_name(root: Path) -> str:
    saved(root, state(root))
    source = root / "models" / "model.pt"
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(root / "models" / "other.pt", "w") as new:
        for name in old.namelist():
            new.writestr("hidden_042/" + name.split("/", 1)[1], old.read(name))
    return "models/other.pt"


@leak("case-id", "header __metadata__::made_from")
def safetensors_metadata(root: Path) -> str:
    header = json.dumps({"__metadata__": {"made_from": "hidden_042"}}).encode()
    return write(root, "models/m.safetensors", struct.pack("<Q", len(header)) + header)


@leak("case-id", "header")
def npy_header(root: Path) -> str:
    np.save(root / "docs" / "a.npy", np.zeros(2, dtype=[("hidden_042", "f4")]))
    return "docs/a.npy"


@leak("case-id", "value 1")
def npy_of_strings(root: Path) -> str:
    np.save(root / "docs" / "a.npy", np.array(["x", "hidden_042"]))
    return "docs/a.npy"


@leak("case-id", "byte")
def npy_of_records(root: Path) -> str:
    np.save(root / "docs" / "a.npy", np.array([("hidden_042", 1.0)], dtype=[("n", "S16"), ("v", "f8")]))
    return "docs/a.npy"


@leak("case-id", "pickle string")
def npy_of_objects(root: Path) -> str:
    np.save(root / "docs" / "a.npy", np.array([{"x": "hidden_042"}], dtype=object), allow_pickle=True)
    return "docs/a.npy"


@leak("document-info", "member docProps/core.xml")
def office_document(root: Path) -> str:
    with zipfile.ZipFile(root / "docs" / "a.docx", "w") as archive:
        archive.writestr("docProps/core.xml", "<creator>Jane</creator>")
    return "docs/a.docx"


@leak("case-id", "")
def end_of_a_long_line(root: Path) -> str:
    return write(root, "docs/a.html", b"<p>" + b"words and more " * 30_000 + b"hidden_042</p>")


@leak("case-id", "")
def invisible_characters(root: Path) -> str:
    return write(root, "docs/a.md", "from hid\u200bden_042, twice\n".encode())


@leak("case-id", "member hidden_042.npy")
def npz_member(root: Path) -> str:
    np.savez(root / "docs" / "a.npz", hidden_042=np.zeros(2))
    return "docs/a.npz"


@leak("image-text", "chunk tEXt Author")
def png_text(root: Path) -> str:
    info = PngImagePlugin.PngInfo()
    info.add_text("Author", "Jane")
    Image.new("L", (4, 4)).save(root / "docs" / "a.png", pnginfo=info)
    return "docs/a.png"


@leak("case-id", "chunk zTXt Comment")
def png_compressed_text(root: Path) -> str:
    info = PngImagePlugin.PngInfo()
    info.add_text("Comment", "of hidden_042", zip=True)
    Image.new("L", (4, 4)).save(root / "docs" / "a.png", pnginfo=info)
    return "docs/a.png"


@leak("case-id", "chunk iTXt Title")
def png_international_text(root: Path) -> str:
    info = PngImagePlugin.PngInfo()
    info.add_itxt("Title", "hidden_042", zip=True)
    Image.new("L", (4, 4)).save(root / "docs" / "a.png", pnginfo=info)
    return "docs/a.png"


@leak("image-text", "chunk eXIf tag Artist")
def png_exif(root: Path) -> str:
    exif = Image.Exif()
    exif[315] = "Jane"
    Image.new("L", (4, 4)).save(root / "docs" / "a.png", exif=exif)
    return "docs/a.png"


@leak("image-text", "after the end")
def png_trailing(root: Path) -> str:
    Image.new("L", (4, 4)).save(root / "docs" / "a.png")
    with (root / "docs" / "a.png").open("ab") as stream:
        stream.write(b"something more")
    return "docs/a.png"


@leak("image-text", "EXIF tag Artist")
def jpeg_exif(root: Path) -> str:
    exif = Image.Exif()
    exif[315] = "Jane"
    Image.new("L", (8, 8)).save(root / "docs" / "a.jpg", exif=exif)
    return "docs/a.jpg"


@leak("case-id", "COM")
def jpeg_comment(root: Path) -> str:
    Image.new("L", (8, 8)).save(root / "docs" / "a.jpg", comment=b"hidden_042")
    return "docs/a.jpg"


@leak("image-text", "tag ImageDescription")
def tiff_tag(root: Path) -> str:
    Image.new("L", (8, 8)).save(root / "docs" / "a.tif", description="Jane's scan")
    return "docs/a.tif"


@leak("document-info", "document Author")
def pdf_author(root: Path) -> str:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib.figure import Figure

    Figure().savefig(root / "docs" / "a.pdf", metadata={"Author": "Jane"})
    return "docs/a.pdf"


def volume(root: Path, file: str, kind: Any = nib.Nifti1Image, **fields: Any) -> str:
    image = kind(np.zeros((3, 3, 3), np.uint8), np.eye(4))
    for field, value in fields.items():
        image.header[field] = value
    (root / file).parent.mkdir(exist_ok=True)
    nib.save(image, root / file)
    return file


@leak("header-text", "header descrip")
def nifti_descrip(root: Path) -> str:
    return volume(root, "docs/a.nii", descrip=b"Jane 1956")


@leak("case-id", "header aux_file")
def nifti_gz_aux_file(root: Path) -> str:
    return volume(root, "docs/a.nii.gz", aux_file=b"hidden_042.img")


@leak("header-text", "header db_name")
def nifti_pair_db_name(root: Path) -> str:
    return volume(root, "docs/a.hdr", nib.Nifti1Pair, db_name=b"ward 3") if (root / "docs").is_dir() else ""


@leak("header-text", "header intent_name")
def nifti2_intent_name(root: Path) -> str:
    return volume(root, "docs/a.nii.gz", nib.Nifti2Image, intent_name=b"Jane")


@leak("case-id", "header extension 0")
def nifti_extension(root: Path) -> str:
    image = nib.Nifti1Image(np.zeros((3, 3, 3), np.uint8), np.eye(4))
    image.header.extensions.append(nib.nifti1.Nifti1Extension("comment", b"from hidden_042"))
    nib.save(image, root / "docs" / "a.nii.gz")
    return "docs/a.nii.gz"


@leak("case-id", "gzip name")
def gzip_name(root: Path) -> str:
    packed = io.BytesIO()
    with gzip.GzipFile("hidden_042.txt", "wb", fileobj=packed) as stream:
        stream.write(b"nothing")
    return write(root, "docs/a.gz", packed.getvalue())


@leak("case-id", "note")
def gzipped_json(root: Path) -> str:
    return write(root, "docs/a.json.gz", gzip.compress(b'{"note": "hidden_042"}'))


@leak("case-id", "member inner/b.json: note")
def nested_archive(root: Path) -> str:
    with zipfile.ZipFile(root / "docs" / "a.zip", "w") as archive:
        archive.writestr("inner/b.json", '{"note": "hidden_042"}')
    return "docs/a.zip"


@leak("case-id", "member t.tar: member x.txt")
def archive_in_archive(root: Path) -> str:
    inner = io.BytesIO()
    with tarfile.open(fileobj=inner, mode="w") as tar:
        entry = tarfile.TarInfo("x.txt")
        entry.size = 10
        tar.addfile(entry, io.BytesIO(b"hidden_042"))
    with zipfile.ZipFile(root / "docs" / "a.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("t.tar", inner.getvalue())
    return "docs/a.zip"


@leak("machine", "member x.txt: owner")
def tar_owner(root: Path) -> str:
    with tarfile.open(root / "docs" / "a.tar", "w") as tar:
        entry = tarfile.TarInfo("x.txt")
        entry.uname = "jdoe"
        tar.addfile(entry, io.BytesIO())
    return "docs/a.tar"


@leak("case-id", "file name")
def file_name(root: Path) -> str:
    return write(root, "docs/hidden_042.txt", b"nothing")


@leak("case-id", "folder name")
def folder_name(root: Path) -> str:
    (root / "docs" / "sts-017").mkdir()
    return "docs/sts-017"


@leak("case-id", "")
def utf16_file(root: Path) -> str:
    return write(root, "docs/a.txt", "plain words and hidden_042\n".encode("utf-16"))


@leak("case-id", "")
def utf16_without_mark(root: Path) -> str:
    return write(root, "docs/a.txt", "plain words and hidden_042\n".encode("utf-16-le"))


@leak("case-id", "lines of base64")
def wrapped_base64(root: Path) -> str:
    words = b"a long text of many words, " * 8 + b"hidden_042" + b" and more words" * 8
    return write(root, "docs/a.txt", base64.encodebytes(words))


@leak("case-id", "base64: chunk tEXt Author")
def picture_in_a_page(root: Path) -> str:
    info = PngImagePlugin.PngInfo()
    info.add_text("Author", "hidden_042")
    picture = io.BytesIO()
    Image.new("L", (4, 4)).save(picture, "png", pnginfo=info)
    text = base64.b64encode(picture.getvalue()).decode()
    return append(root, "docs/a.html", f'<img src="data:image/png;base64,{text}">')


@leak("event-file", "")
def tensorboard_events(root: Path) -> str:
    from tensorboard.compat.proto.event_pb2 import Event
    from tensorboard.summary.writer.event_file_writer import _AsyncWriter  # noqa: F401
    from tensorboard.summary.writer.record_writer import RecordWriter

    with (root / "docs" / "curves").open("wb") as stream:
        RecordWriter(stream).write(Event(file_version="brain.Event:2").SerializeToString())
    return "docs/curves"


@leak("hidden-file", "")
def hidden_file(root: Path) -> str:
    return write(root, "docs/.notes", b"x")


@leak("hidden-file", "")
def backup_file(root: Path) -> str:
    return write(root, "configs/train.yaml~", b"x: 1")


@leak("hidden-file", "")
def cache_folder(root: Path) -> str:
    write(root, "scripts/__pycache__/a.cpython-311.pyc", b"\xa7\r\r\n")
    return "scripts/__pycache__"


@leak("private-folder", "")
def private_folder(root: Path) -> str:
    return write(root, "eval/notes.md", b"fine")


@leak("dicom", "")
def dicom_object(root: Path) -> str:
    data = Dataset()
    data.PatientName = "DOE^JOHN"
    data.file_meta = FileMetaDataset()
    data.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    data.SOPClassUID, data.SOPInstanceUID = "1.2.840.10008.5.1.4.1.1.2", "1.2.3.4"
    data.save_as(root / "docs" / "a.bin", enforce_file_format=True)
    return "docs/a.bin"


@leak("case-id", "byte")
def unknown_binary(root: Path) -> str:
    noise = np.random.default_rng(0).bytes(5000)
    return write(root, "models/m.onnx", noise + b"\0hidden_042\0" + noise)


@leak("case-id", "pickle string")
def plain_pickle(root: Path) -> str:
    return write(root, "docs/a.pkl", pickle.dumps({"x": ["hidden_042"]}))


@leak("link", "")
def link(root: Path) -> str:
    (root / "docs" / "a").symlink_to("/etc/hostname")
    return "docs/a"


@leak("absolute-path", "header ElementDataFile")
def metaimage(root: Path) -> str:
    return write(root, "docs/a.mhd", b"ObjectType = Image\nNDims = 3\nElementDataFile = /home/jane/a.raw\n")


@pytest.mark.parametrize(("rule", "key", "plant"), [p[1:] for p in PLANTS], ids=[p[0] for p in PLANTS])
def test_a_leak_elsewhere_is_found(clean: Path, tmp_path: Path, rule: str, key: str, plant: Plant) -> None:
    root = tmp_path / "r"
    shutil.copytree(clean, root)
    file = plant(root)
    found = [f for f in examine_release(root, INDEX) if f.level == "danger"]
    assert [f for f in found if f.rule == rule and f.place.file == file and key in f.place.key], found
    assert all(f.place.file == file or f.place.file.startswith(file + "/") for f in found)


# ------------------------------------------------------------------------------------------------------------------


def test_the_machine_and_its_user_are_found(clean: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = tmp_path / "r"
    shutil.copytree(clean, root)
    monkeypatch.setenv("USER", "jdoe77")
    monkeypatch.setattr(leaks.socket, "gethostname", lambda: "radiology-ws12.hospital.example")
    append(root, "docs/README.md", "\nRun by JDOE77 on radiology-ws12.\n")
    found = examine_release(root)
    assert [(f.rule, f.place.file) for f in found] == [("machine", "docs/README.md")] * 2


@pytest.mark.parametrize("index", [None, INDEX], ids=["no index", "another index"])
def test_a_clean_bundle_has_no_finding(clean: Path, index: dict[str, Any] | None) -> None:
    assert examine_release(clean, index) == ()


def test_a_clean_bundle_has_no_finding_with_its_own_index(clean: Path, trained_bundle: Path) -> None:
    assert examine_release(clean, index_of(trained_bundle)) == ()


@pytest.mark.parametrize("name", ["hippocampus", "sarcoma_nifti"])
def test_bundles_of_real_datasets_are_clean(real_data: Callable[[str], Path], tmp_path: Path, name: str) -> None:
    from medunet import verbs
    from medunet.planning import Budget

    verbs.plan(real_data(name), tmp_path / "b", Budget(epochs=2), {"base_channels": 4, "max_levels": 3})
    index = index_of(tmp_path / "b")
    root = release_of(tmp_path / "b", tmp_path / "r")
    assert examine_release(root, index) == ()
    first = index["training"][0]
    append(root, "docs/README.md", f"\n{first['id']}\n{first['patient'].lower()}\n")
    assert {f.rule for f in examine_release(root, index)} == {"case-id"}


HARMLESS = [
    "MONAI 1.6.1, torch 2.13.0.1, numpy==1.26.4.1, CUDA version 12.4.1.0",
    "https://github.com/Project-MONAI/model-zoo/releases/download/x/y.zip and http://www.apache.org/licenses/LICENSE-2.0",
    "doi:10.1148/ryai.240300, SCT 421060004, 1.2.840.10008.5.1.4.1.1.66.4, ISO 13485:2016",
    "and/or, mm/voxel, Dice/HD95, image/png, train::trainer::max_epochs, '@_meta_::plan::labels', x^2 + y^2",
    "208 cases of 195 patients, fold 1 of 5, image 1, 12:30:45, case 1, a ~ b, ~5 mm, 0.48213, 48213.5 and 148213",
    "Released 2024-05-01. Copyright 2023-2026. 2019-11-30 version two.",
    "MR_T1 image and mask; MR_T1_image.nii.gz; PatientID decides the fold; patient: '@x'; MRN: unknown",
    "threading.local() of torch2, package.internal, a.local, local-1.0, settings.local.yaml, 3.local",
    "see /path/to/data; ds.PatientID = source.PatientID; api_key = os.getenv('KEY'); AccessionNumber=str(number)",
    "#!/usr/bin/env python\npython -m monai.bundle run --config_file configs/train.yaml > /dev/null",
    "sha256 9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08",
]  # fmt: skip


@pytest.mark.parametrize("text", HARMLESS, ids=range(len(HARMLESS)))
def test_harmless_words_are_no_hit(tmp_path: Path, text: str) -> None:
    (tmp_path / "a.md").write_text(text + "\n")
    (tmp_path / "a.json").write_text(json.dumps({"text": text, text: 1}))
    assert examine_release(tmp_path, INDEX) == ()


def test_numbers_that_are_ids_and_numbers_that_are_not(tmp_path: Path) -> None:
    cases = [{"id": word, "patient": word} for word in ("0042", "0001", "0000", "sub-03", "liver_1", "liver_12")]
    index = {"name": "x", "labels": {"background": 0, "liver": 1}, "training": cases}
    page = tmp_path / "a.md"
    for text in ("liver 1.5 mm", "0.0042 and 1.0042", "input_0000.nii", "liver: 1, spleen: 2", "| liver | 1 |", "042"):
        page.write_text(f"At {text} of it\n")
        assert examine_release(tmp_path, index) == (), text
    for text in ("0042", "exclude: ['0042']", "sub03", "SUB-03_T1w", "liver_1.nii.gz", "liver 12", "Liver-1"):
        page.write_text(f"At {text} of it\n")
        assert {f.rule for f in examine_release(tmp_path, index)} == {"case-id"}, text


def test_random_weights_are_no_hit(tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    (tmp_path / "m.onnx").write_bytes(rng.bytes(4_000_000))
    torch.save({"a.weight": torch.from_numpy(rng.normal(size=500_000))}, tmp_path / "m.pt")
    assert examine_release(tmp_path, INDEX) == ()


def test_many_findings_are_counted(tmp_path: Path) -> None:
    (tmp_path / "a.md").write_text("hidden_042\n" * 300)
    found = examine_release(tmp_path, INDEX)
    assert len(found) == 26
    assert "275 more" in found[-1].what


def test_big_weights_are_streamed(tmp_path: Path) -> None:
    """A gigabyte of weights and 10 MB of unknown bytes, in a process that may use 200 MB."""
    import subprocess
    import sys

    with zipfile.ZipFile(tmp_path / "m.pt", "w") as archive:
        archive.writestr("m/data.pkl", pickle.dumps({"hidden_042": 1}, 2))
        with archive.open("m/data/0", "w", force_zip64=True) as stream:
            block = np.random.default_rng(0).bytes(1_000_000)
            for _ in range(1000):
                stream.write(block)
    (tmp_path / "m.bin").write_bytes(np.random.default_rng(1).bytes(10_000_000))
    program = (
        "import sys; from pathlib import Path; from medunet.trust.gate.release import examine_release\n"
        "index = {'training': [{'id': 'hidden_042'}]}\n"
        "found = examine_release(Path(sys.argv[1]), index)\n"
        "peak = next(l for l in open('/proc/self/status') if l.startswith('VmHWM')).split()[1]\n"
        "print(len(found), int(peak) // 1000)"
    )
    done = subprocess.run([sys.executable, "-c", program, str(tmp_path)], capture_output=True, text=True, check=True)
    findings, peak = map(int, done.stdout.split())
    assert findings >= 1
    assert peak < 200


# ------------------------------------------------------------------------------------------------------------------
# A random id at a random place of a random file.

KINDS = ["yaml", "json", "md", "csv", "txt", "html", "ini", "utf16", "gz", "base64", "zip"]
WORDS = [
    "the",
    "network",
    "sees",
    "patches",
    "of",
    "voxels",
    "at",
    "a",
    "spacing",
    "and",
    "gives",
    "labels",
    "to",
    "each",
]


def file_with(kind: str, rng: random.Random, word: str) -> tuple[str, bytes]:
    texts = [" ".join(rng.choices(WORDS, k=rng.randint(1, 6))) for _ in range(rng.randint(3, 30))]
    at = rng.randrange(len(texts))
    texts[at] = f"{texts[at]} {word}" if rng.random() < 0.5 else f"{word} {texts[at]}"
    plain = "\n".join(texts) + "\n"
    if kind == "yaml":
        return "a.yaml", yaml.safe_dump({f"key{n}": [text, {"inner": n}] for n, text in enumerate(texts)}).encode()
    if kind == "json":
        return "a.json", json.dumps({text: {"n": [text]} for text in texts}).encode()
    if kind == "csv":
        return "a.csv", "\n".join(f"{n},{text}" for n, text in enumerate(texts)).encode()
    if kind == "ini":
        return "a.ini", ("[s]\n" + "\n".join(f"k{n} = {text}" for n, text in enumerate(texts))).encode()
    if kind == "html":
        return "a.html", "\n".join(f"<p title='{text}'>" for text in texts).encode()
    if kind == "zip":
        packed = io.BytesIO()
        with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr("inner.txt", plain)
        return "a.zip", packed.getvalue()
    coded = {
        "utf16": plain.encode("utf-16"),
        "gz": gzip.compress(plain.encode()),
        "base64": base64.b64encode(plain.encode()),
    }
    return f"a.{kind}" if kind in ("md", "txt", "gz") else "a.dat", coded.get(kind, plain.encode())


@hypothesis_settings(max_examples=150)
@given(kind=st.sampled_from(KINDS), seed=st.integers(0, 2**32))
def test_a_random_id_anywhere_is_found(tmp_path_factory: pytest.TempPathFactory, kind: str, seed: int) -> None:
    rng = random.Random(seed)
    word = (
        "".join(rng.choices(string.ascii_letters, k=3)) + rng.choice("_-.") + "".join(rng.choices(string.digits, k=4))
    )
    name, content = file_with(kind, rng, rng.choice([word, word.upper(), word.lower()]))
    root = tmp_path_factory.mktemp("p")
    write(root, name, content)
    index = {"training": [{"id": word, "patient": word, "images": [f"{word}.nii.gz"], "label": None}]}
    found = examine_release(root, index)
    assert "case-id" in {f.rule for f in found}
    assert {f.place.file for f in found} == {name}


# ------------------------------------------------------------------------------------------------------------------


def test_mending(trained_bundle: Path, clean: Path, tmp_path: Path) -> None:
    root = tmp_path / "r"
    shutil.copytree(clean, root)
    shutil.copy(trained_bundle / "configs" / "train.yaml", root / "configs" / "train.yaml")
    append(root, "configs/inference.yaml", "\n# from hidden_042\nextra: 1  # see hidden_042\n")
    append(root, "docs/README.md", "\nhidden_042\n")
    for plant in (
        png_text,
        png_exif,
        jpeg_exif,
        nifti_descrip,
        nifti_extension,
        hidden_file,
        cache_folder,
        tensorboard_events,
    ):
        plant(root)
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (16, 16), np.uint8)).save(
        root / "docs" / "b.jpg", comment=b"hidden_042", quality=90
    )
    pixels = np.asarray(Image.open(root / "docs" / "b.jpg"))
    values = yaml.safe_load((root / "configs" / "inference.yaml").read_text())
    weights = (root / "models" / "model.pt").read_bytes()
    remaining = fix_release(root, examine_release(root, INDEX))
    assert {f.place.file for f in remaining if f.level == "danger"} == {"docs/README.md"}
    again = examine_release(root, INDEX)
    assert [f for f in again if f.level == "danger"] == [f for f in remaining if f.level == "danger"]
    assert yaml.safe_load((root / "configs" / "train.yaml").read_text())["dataset_dir"] == ""
    assert yaml.safe_load((root / "configs" / "inference.yaml").read_text()) == values
    assert (np.asarray(Image.open(root / "docs" / "b.jpg")) == pixels).all()
    assert (root / "models" / "model.pt").read_bytes() == weights
    assert nib.load(root / "docs" / "a.nii").header["descrip"] == b""


@pytest.mark.parametrize("name", ["a.nii", "a.nii.gz"])
def test_mending_a_volume_keeps_its_voxels_and_grid(tmp_path: Path, name: str) -> None:
    array = np.random.default_rng(0).normal(size=(5, 6, 7)).astype(np.float32)
    image = nib.Nifti1Image(array, np.diag([1.5, 2, 3, 1]))
    image.header["descrip"] = b"Jane"
    image.header.extensions.append(nib.nifti1.Nifti1Extension("comment", b"Doe"))
    nib.save(image, tmp_path / name)
    assert not [f for f in fix_release(tmp_path, examine_release(tmp_path)) if f.level == "danger"]
    mended = nib.load(tmp_path / name)
    assert (np.asarray(mended.dataobj) == array).all()
    assert (mended.affine == image.affine).all()
    assert not mended.header.extensions
    assert mended.header["descrip"] == b""


def test_mending_leaves_what_it_cannot_judge(tmp_path: Path) -> None:
    (tmp_path / "eval").mkdir()
    (tmp_path / "eval" / ".hidden").write_text("x")
    (tmp_path / "a.yaml").write_text("text: 'a # b hidden_042'\n")
    (tmp_path / "a.json").write_text('{"path": "/home/jane/x", "cases": [{"id": 1}]}')
    findings = examine_release(tmp_path, INDEX)
    assert set(fix_release(tmp_path, findings)) == set(findings)
    assert (tmp_path / "eval" / ".hidden").exists()
    assert (tmp_path / "a.yaml").read_text() == "text: 'a # b hidden_042'\n"


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("dataset_dir: /data/my patients  # here\nx: 1\n", 'dataset_dir: ""  # here\nx: 1\n'),
        ("dataset_dir: /a,b#c\n", 'dataset_dir: ""\n'),
        ("dataset_dir: 'it''s'\n", 'dataset_dir: ""\n'),
        ("dataset_dir: /a\n  b\nx: 1\n", 'dataset_dir: ""\nx: 1\n'),
        ("dataset_dir: >-\n  /a\n  b\nx: 1\n", 'dataset_dir: ""\nx: 1\n'),
        ('{"dataset_dir": "/a", "x": 1}', '{"dataset_dir": "", "x": 1}'),
        ("x:\n  dataset_dir: '@dataset_dir'\n", "x:\n  dataset_dir: '@dataset_dir'\n"),
        ("dataset_dir: [/a\n", "dataset_dir: [/a\n"),
    ],
)
def test_a_path_is_blank_however_it_is_written(before: str, after: str) -> None:
    assert blank_dataset_dir(before) == after


def test_a_finding_says_what_and_what_to_do(tmp_path: Path) -> None:
    (tmp_path / "a.md").write_text("see /home/jane/private/study\n")
    assert examine_release(tmp_path) == (
        Finding(
            "danger", "absolute-path", leaks_place("a.md", 1),
            "a path of somebody's machine '/ho…dy' (24 characters); write a relative path or none",
        ),
    )  # fmt: skip


def leaks_place(file: str, line: int) -> Any:
    from medunet.trust.findings import Place

    return Place(file, "", line)


def test_broken_files_are_named_not_fatal(tmp_path: Path) -> None:
    (tmp_path / "a.gz").write_bytes(gzip.compress(b"x" * 1000)[:-20])
    (tmp_path / "b.zip").write_bytes(b"PK\x03\x04" + b"x" * 50)
    (tmp_path / "c.png").write_bytes(b"\x89PNG\r\n\x1a\n\0\0")
    (tmp_path / "d.json").write_text("[" * 100_000)
    (tmp_path / "e.pt").write_bytes(b"\x80\x02}q\0X\xff\xff\xff\x7f")
    (tmp_path / "f.nii").write_bytes(struct.pack("<i", 348) + b"\0" * 10)
    (tmp_path / "g.yaml").write_text("a: &a [x, x]\nb: &b [*a, *a]\n" + "c: [*b, *b]\n")
    (tmp_path / "h.tif").write_bytes(b"II*\0\x08\0\0\0\xff\xff")
    (tmp_path / "i.png").write_bytes(
        b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 9) + b"zTXt" + b"a\0\0" + zlib.compress(b"b")[:6]
    )
    found = examine_release(tmp_path)
    assert {f.place.file for f in found if f.rule == "unreadable"} >= {"a.gz", "b.zip", "e.pt"}


def test_damaged_files_never_end_the_examination(clean: Path, tmp_path: Path) -> None:
    """Every planted file, with bytes changed, cut and inserted at random."""
    rng = random.Random(0)
    samples = []
    for name, _, _, plant in PLANTS:
        root = tmp_path / name
        shutil.copytree(clean, root)
        file = root / plant(root)
        if file.is_file() and not file.is_symlink():
            samples.append((file.name, file.read_bytes()))
    folder = tmp_path / "damaged"
    folder.mkdir()
    for _ in range(400):
        name, content = rng.choice(samples)
        damaged = bytearray(content)
        for _ in range(rng.randint(1, 8)):
            at = rng.randrange(min(len(damaged), rng.choice([64, 600, 100_000])) or 1)
            damaged[at : at + rng.choice([0, 1, 1, 9])] = rng.choices([0, 127, 255, 10, 65], k=rng.randint(0, 2))
        (folder / name).write_bytes(damaged[: rng.choice([len(damaged), rng.randint(1, len(damaged) + 1)])])
        fix_release(folder, examine_release(folder, INDEX))
        for path in folder.iterdir():
            path.unlink()
