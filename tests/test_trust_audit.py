"""The audit refuses what would run, names it, and lets plain bundles pass; nothing is ever executed."""

from __future__ import annotations

import io
import json
import os
import pickle
import shutil
import subprocess
import sys
import time
import zipfile
from pathlib import Path
from typing import Any

import pytest
import yaml
from hostile import HOSTILE, torch_file
from hypothesis import given, settings
from hypothesis import strategies as st
from zoo import INFERENCE, TRAIN, write_zoo

import medunet
from medunet.errors import InputError
from medunet.trust.findings import Audit, Finding
from medunet.trust.inspection.audit import audit
from medunet.trust.inspection.documents import Item, read_document
from medunet.trust.inspection.members import examine_members
from medunet.trust.inspection.targets import judge_name, table
from medunet.trust.inspection.verdict_text import verdict_text

PACKAGE = Path(medunet.__file__).parent
_LIMIT_BYTES = 1 << 30
_CHILD = """
import json, os, resource, sys, time
resource.setrlimit(resource.RLIMIT_AS, (BYTES, BYTES))
class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in REFUSED:
            raise ImportError("heavy: " + name)
sys.meta_path.insert(0, Refuse())
from pathlib import Path
from medunet.trust.inspection.audit import audit
from medunet.trust.inspection.verdict_text import verdict_text
for line in sys.stdin:
    path = line.strip()
    start = time.process_time()
    found = audit(Path(path))
    verdict_text(found)
    seconds = time.process_time() - start
    print(json.dumps({**found.as_json(), "seconds": seconds}), flush=True)
"""
_HEAVY = ["torch", "monai", "numpy", "nibabel", "SimpleITK", "scipy", "ignite", "pydicom", "matplotlib", "PIL",
          "jinja2", "fire", "pandas", "cryptography", "tensorboard", "skimage", "openvino", "onnx"]  # fmt: skip


def child_code(refused: list[str] = _HEAVY) -> str:
    return _CHILD.replace("REFUSED", repr(refused)).replace("BYTES", str(_LIMIT_BYTES))


@pytest.fixture(scope="module")
def hostile_results(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Every hostile bundle, made and audited in one process with 1 GiB of memory and without heavy libraries."""
    base = tmp_path_factory.mktemp("hostile")
    paths = []
    for number, case in enumerate(HOSTILE):
        root = base / str(number)
        root.mkdir()
        paths.append(case.make(root, str(base / f"canary-{number}")))
    done = subprocess.run(
        [sys.executable, "-c", child_code()], input="\n".join(map(str, paths)), capture_output=True, text=True,
        env={**os.environ, "PYTHONPATH": str(PACKAGE.parent)}, timeout=280, check=False, cwd=base,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    return {"base": base, **{case.name: line for case, line in zip(HOSTILE, lines, strict=True)}}


def test_the_corpus_is_large_and_its_names_are_unique() -> None:
    assert len(HOSTILE) >= 200
    assert len({case.name for case in HOSTILE}) == len(HOSTILE)


@pytest.mark.parametrize("number", range(len(HOSTILE)), ids=[case.name for case in HOSTILE])
def test_hostile_bundles_are_refused_at_the_right_place(number: int, hostile_results: dict[str, Any]) -> None:
    case = HOSTILE[number]
    found = hostile_results[case.name]
    assert found["verdict"] == "refuse"
    dangers = [f for f in found["findings"] if f["level"] == "danger"]
    places = [(f["rule"], f["place"]["file"], f["place"]["key"]) for f in dangers]
    assert any(r == case.rule and file == case.file and case.key in key for r, file, key in places), places
    assert found["seconds"] < 10
    assert not (hostile_results["base"] / f"canary-{number}").exists()


# --- no false alarms


def test_a_planned_and_a_trained_bundle_are_safe(trained_bundle: Path, planned_bundle: Path, tmp_path: Path) -> None:
    for bundle in (planned_bundle, trained_bundle):
        found = audit(bundle)
        assert found.verdict == "safe", verdict_text(found)
        assert found.inventory["components"] > 60
        assert found.inventory["expressions"] == 0
    assert found.inventory["weights"] == 2
    packed = Path(shutil.make_archive(str(tmp_path / "bundle"), "zip", trained_bundle.parent, trained_bundle.name))
    assert audit(packed).verdict == "safe"


@pytest.mark.parametrize("overlay", sorted((PACKAGE.parent / "configs" / "run").glob("*.yaml")), ids=lambda p: p.stem)
def test_overlays_of_runs_are_safe(overlay: Path, planned_bundle: Path, tmp_path: Path) -> None:
    bundle = tmp_path / "bundle"
    shutil.copytree(planned_bundle, bundle)
    shutil.copy(overlay, bundle / "configs")
    assert audit(bundle).verdict == "safe"


def test_the_table_covers_every_component_of_the_templates() -> None:
    texts = [*(PACKAGE / "bundle" / "templates").glob("*.yaml"), *(PACKAGE.parent / "configs" / "run").glob("*.yaml")]
    names = {line.split("_target_:")[1].split("}")[0].split(",")[0].strip() for p in texts
             for line in p.read_text().splitlines() if "_target_:" in line.split("#")[0]}  # fmt: skip
    assert len(names) > 40
    assert {name for name in names if judge_name(name, {}).kind != "inert"} == set()
    assert judge_name("medunet.networks.UNet", {}).kind == "inert"


def test_rows_of_medunet_match_the_factories() -> None:
    import importlib
    import inspect

    for name, component in table().items():
        if name.startswith("medunet."):
            module, _, attribute = name.rpartition(".")
            factory = getattr(importlib.import_module(module), attribute)
            assert list(inspect.signature(factory).parameters) == list(component.arguments), name


# --- bundles of the Model Zoo's kind


def test_zoo_training_is_safe_and_every_expression_is_named(tmp_path: Path) -> None:
    found = audit(write_zoo(tmp_path / "zoo", TRAIN, "train"))
    assert found.verdict == "safe", verdict_text(found)
    assert_classes(found, TRAIN, "configs/train.json")


def test_zoo_inference_with_scripts_loads_code(tmp_path: Path) -> None:
    root = write_zoo(tmp_path / "zoo", INFERENCE, "inference")
    (root / "scripts").mkdir()
    (root / "scripts" / "__init__.py").write_text("")
    (root / "scripts" / "prepare.py").write_text("def make(x): return x\n")
    found = audit(root)
    assert found.verdict == "code", verdict_text(found)
    assert_classes(found, INFERENCE, "configs/inference.json")
    assert verdict_text(found).startswith("LOADS CODE")
    assert any(f.rule == "python" and f.place.file == "scripts/prepare.py" for f in found.findings)


def assert_classes(found: Audit, expected: dict[str, tuple[str, str]], file: str) -> None:
    seen = {f.place.key: f for f in found.findings if f.rule == "expression" and f.place.file == file}
    for key, (expression, level) in expected.items():
        assert seen[key].level == level, f"{expression}: {seen[key]}"
        assert seen[key].place.line > 0
        assert expression[:40] in seen[key].what
    assert len(seen) == len(expected) + 1  # and the `_disabled_` of a handler


@pytest.mark.parametrize(("target", "level", "word"), [
    ("monai.apps.detection.networks.retinanet_detector.RetinaNetDetector", "code", "not known"),
    ("torchvision.models.resnet18", "code", "not known"),
    ("scripts.net.Net", "code", "scripts/net.py"),
    ("MLFlowHandler", "code", "not known"),
    ("GaussianMixtureModel", "code", "not known"),  # compiles with flags that a config gives
    ("torch.nn.Conv3d", "note", ""),
    ("monai.networks.nets.SwinUNETR", "note", ""),
    ("ignite.metrics.Accuracy", "note", ""),
    ("torch.optim.lr_scheduler.StepLR", "note", ""),
])  # fmt: skip
def test_components_between_safe_and_refused(target: str, level: str, word: str, tmp_path: Path) -> None:
    write(tmp_path, "configs/train.yaml", f"a:\n  _target_: {target}\n")
    write(tmp_path, "scripts/net.py", "class Net: pass\n")
    found = [f for f in audit(tmp_path).findings if f.place.key == "a::_target_"]
    assert ([f.level for f in found] or ["note"]) == [level]
    assert all(word in f.what and f.place.line == 2 for f in found)


@pytest.mark.parametrize(("file", "content", "rule"), [
    ("scripts/run.sh", "#!/bin/sh\n", "script"),
    ("Dockerfile", "FROM scratch\n", "script"),
    ("docs/demo.ipynb", "{}", "python"),
    ("docs/page.html", "<p>hi</p><script>1</script>", "active-document"),
    ("docs/picture.svg", "<svg onload='x()'/>", "active-document"),
    ("large_files.yml", "large_files: [{path: models/model.pt, url: 'https://example.org/x'}]\n", "network"),
    ("configs/args.json", '{"workflow_name": "scripts.workflow.Evil"}', "arguments-file"),
    ("models/model.engine", "abc", "engine"),
    ("configs/train.yaml", "a: {_target_: DenseNet121, spatial_dims: 3, pretrained: true}\n", "network"),
    ("configs/train.yaml", "a: {_target_: LoadImage, anything: 1}\n", "argument"),
    ("configs/train.yaml", "a: {_target_: Dataset, data: [], transform: '@b'}\nb::anything: 1\n"
     "b: {_target_: LoadImage}\n", "argument"),
    ("configs/train.yaml", "a: {_target_: SaveImage, _mode_: default, data_root_dir: o}\n", "path"),
    ("configs/train.yaml", "a: {_target_: CheckpointSaver, _mode_: callable, save_dir: o}\n", "argument"),
    ("configs/train.yaml", "a: $monai.handlers.CheckpointSaver('o', *['x'])\n", "argument"),
    ("configs/train.yaml", "a: {_target_: ZarrAvgMerger, merged_shape: [1], store: /data/x}\n", "path"),
])  # fmt: skip
def test_what_a_person_must_judge(file: str, content: str, rule: str, tmp_path: Path) -> None:
    write(tmp_path, file, content)
    found = audit(tmp_path)
    assert found.verdict == "code", verdict_text(found)
    assert [f.place.file for f in found.findings if f.rule == rule] == [file]


def test_plain_weights_are_safe_in_every_format(tmp_path: Path) -> None:
    import numpy as np
    import torch

    state = {"a": torch.nn.Parameter(torch.ones(3)), "b": torch.ones(2, dtype=torch.bfloat16), "c": [1, None, "x"]}
    models = tmp_path / "models"
    models.mkdir()
    torch.save(state, models / "new.pt")
    torch.save(state, models / "old.pt", _use_new_zipfile_serialization=False)
    np.save(models / "a.npy", np.ones(3))
    np.savez(models / "b.npz", x=np.ones(3), y=np.zeros(2))
    found = audit(tmp_path)
    assert found.verdict == "safe", verdict_text(found)
    assert found.inventory["weights"] == 4


def test_torchscript_is_code(tmp_path: Path) -> None:
    import torch

    (tmp_path / "models").mkdir()
    torch.jit.script(torch.nn.Conv2d(1, 1, 1)).save(str(tmp_path / "models" / "model.ts"))
    found = audit(tmp_path)
    assert found.verdict == "code", verdict_text(found)
    assert any(f.rule == "torchscript" for f in found.findings)


def test_whole_modules_and_objects_are_refused_with_the_names_they_import(tmp_path: Path) -> None:
    import torch

    (tmp_path / "models").mkdir()
    torch.save(torch.nn.ReLU(), tmp_path / "models" / "model.pt")
    (tmp_path / "models" / "x.pkl").write_bytes(pickle.dumps(Path("x"), 4))
    text = verdict_text(audit(tmp_path))
    assert text.startswith("REFUSE")
    assert "torch.nn.modules.activation.ReLU" in text.replace("\n      ", "")
    assert "pathlib" in text


# --- bounds


def test_a_large_weight_file_passes_in_little_memory(tmp_path: Path) -> None:
    """256 MB of stored and 32 MB of packed tensors in an archive: the whole process stays below 150 MB."""
    blob = os.urandom(1 << 20)
    inner = tmp_path / "model.pt"
    with zipfile.ZipFile(inner, "w") as archive:
        archive.writestr("archive/data.pkl", b"\x80\x02}.")
        with archive.open("archive/data/0", "w", force_zip64=True) as stream:
            for _ in range(256):
                stream.write(blob)
    with zipfile.ZipFile(tmp_path / "bundle.zip", "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        archive.write(inner, "b/models/model.pt", zipfile.ZIP_STORED)
        archive.writestr("b/models/packed.pt", torch_file(b"\x80\x02}.", data__0=blob * 32))
        archive.writestr("b/configs/train.yaml", "a: 1\n")
    inner.unlink()
    code = child_code() + "\n"
    code += "print([l for l in open('/proc/self/status') if l.startswith('VmHWM')][0].split()[1])"
    done = subprocess.run([sys.executable, "-c", code], input=str(tmp_path / "bundle.zip"), capture_output=True,
                          text=True, env={**os.environ, "PYTHONPATH": str(PACKAGE.parent)}, check=True)  # fmt: skip
    lines = done.stdout.splitlines()
    assert json.loads(lines[0])["verdict"] == "safe"
    assert int(lines[-1]) < 150_000


def test_a_small_bundle_takes_less_than_a_second(planned_bundle: Path) -> None:
    audit(planned_bundle)
    start = time.process_time()
    audit(planned_bundle)
    assert time.process_time() - start < 1


# --- reading


_names = st.text("abcdefgh_", min_size=1, max_size=6).filter(lambda name: name not in ("_target_",))
_scalars = st.one_of(st.integers(), st.booleans(), st.none(), st.text("xyz äß\"'\\:#", max_size=8), st.floats(-9, 9))
_values = st.recursive(
    _scalars, lambda v: st.lists(v, max_size=4) | st.dictionaries(_names, v, max_size=4), max_leaves=20
)


def plain(item: Item) -> Any:
    """Items back to values; numbers as text."""
    if item.is_mapping:
        return {key: plain(value) for key, _, value in item.pairs}
    return [plain(value) for value in item.value] if isinstance(item.value, list) else item.value


def expected(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: expected(item) for key, item in value.items()}
    if isinstance(value, list):
        return [expected(item) for item in value]
    return value if value is None or isinstance(value, (bool, str)) else repr(value)


def lines_of(item: Item) -> list[int]:
    return [item.line, *(line for _, child in item.children() for line in lines_of(child))]


@given(st.dictionaries(_names, _values, max_size=5))
@settings(max_examples=80)
def test_nested_values_survive_reading(value: dict[str, Any]) -> None:
    for name, text in (("a.json", json.dumps(value, indent=1)), ("a.yaml", yaml.safe_dump(value, allow_unicode=True))):
        findings: list[Finding] = []
        roots = read_document(name, text, findings)
        assert findings == []
        read = plain(roots[0]) if roots else {}
        assert read.keys() == value.keys()
        if name == "a.json":
            assert read == expected(value)
        numbers = lines_of(roots[0]) if roots else [1]
        assert numbers == sorted(numbers)
        assert max(numbers) <= text.count("\n") + 1


def test_lines_are_those_of_an_editor() -> None:
    for name, text in (("a.json", '{\n "a": 1,\n\n "b": [2,\n  "x"]}'), ("a.yaml", "a: 1\n\n\nb: [2,\n  x]\n")):
        (root,) = read_document(name, text, [])
        keys = {key: line for key, line, _ in root.pairs}
        assert keys == {"a": 2 if name == "a.json" else 1, "b": 4}
        assert root.pairs[1][2].value[1].line == 5


@given(
    st.binary(max_size=300),
    st.sampled_from(["configs/a.yaml", "configs/a.json", "models/a.pt", "x.conf", "b.npy", "c"]),
)
@settings(max_examples=150)
def test_random_bytes_only_ever_make_a_verdict(data: bytes, name: str) -> None:
    import tempfile

    for start in (b"", b"\x80\x02", b"PK\x03\x04", b"\x93NUMPY\x01\x00", b"{", b"a: "):
        with tempfile.TemporaryDirectory() as folder:
            write(Path(folder), name, start + data)
            assert audit(Path(folder)).verdict in ("safe", "code", "refuse")


@given(st.binary(max_size=60), st.integers(0, 400), st.integers(0, 60))
@settings(max_examples=100)
def test_damaged_archives_only_ever_make_a_verdict(patch: bytes, at: int, cut: int) -> None:
    import tempfile

    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("b/configs/train.yaml", "a: 1\n" * 20)
        archive.writestr("b/models/model.pt", torch_file(b"\x80\x02}."))
    data = bytearray(buffer.getvalue())
    data[at : at + len(patch)] = patch
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "b.zip"
        path.write_bytes(bytes(data[: len(data) - cut]))
        assert audit(path).verdict in ("safe", "code", "refuse")


def test_large_case_lists_pass_and_large_overlays_do_not(tmp_path: Path) -> None:
    cases = [{"id": f"case_{number}", "image": f"study#series={number}", "note": "x" * 80} for number in range(20_000)]
    write(tmp_path, "eval/index.json", json.dumps({"cases": cases}))
    assert audit(tmp_path).verdict == "safe"
    write(tmp_path, "eval/index.json", json.dumps({"cases": cases, "a#reader": "subprocess.Popen"}))
    assert audit(tmp_path).verdict == "refuse"


def test_bad_paths_are_input_errors(tmp_path: Path) -> None:
    for wrong in (tmp_path / "nothing", tmp_path):
        with pytest.raises(InputError, match="give a bundle folder or a zip file"):
            audit(wrong)
    with pytest.raises(InputError, match="is not there"):
        examine_members(tmp_path / "nothing")


# --- the page and the command line


def test_the_page_is_one_page_of_100_columns(tmp_path: Path) -> None:
    write(
        tmp_path,
        "configs/train.yaml",
        "".join(f"a{n}: {{_target_: os.system}}\n" for n in range(300)) + 'b: "\\e[2J$"\n',
    )
    text = verdict_text(audit(tmp_path))
    lines = text.splitlines()
    assert lines[0] == f"REFUSE  {tmp_path}"
    assert len(lines) < 60
    assert max(map(len, lines[1:])) <= 100
    assert "and 286 more; --json FILE writes all of them" in text
    assert "configs/train.yaml line 1 (a0::_target_): 'os.system' reaches 'os'" in text
    assert "\x1b" not in text


def test_the_command_needs_no_heavy_library(planned_bundle: Path, tmp_path: Path) -> None:
    bad = tmp_path / "bad"
    write(bad, "configs/a.yaml", "x: $__import__('os').system('id')\n")
    scripts = tmp_path / "code"
    write(scripts, "scripts/a.py", "1\n")
    wanted = {str(planned_bundle): (0, "SAFE TO LOAD"), str(scripts): (1, "LOADS CODE"), str(bad): (3, "REFUSE"),
              str(tmp_path / "no"): (2, "")}  # fmt: skip
    for path, (code, first) in wanted.items():
        program = child_code().split("from pathlib")[0]
        program += f"sys.argv = ['medunet', 'inspect', {path!r}, '--json', {str(tmp_path / 'out.json')!r}]\n"
        program += "from medunet.cli.main import main\nmain()\n"
        done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False,
                              env={**os.environ, "PYTHONPATH": str(PACKAGE.parent)})  # fmt: skip
        assert done.returncode == code, done.stderr
        assert done.stdout.startswith(first)
        if code != 2:
            content = json.loads((tmp_path / "out.json").read_text())
            assert content["verdict"] == {0: "safe", 1: "code", 3: "refuse"}[code]
            assert set(content) == {"source", "verdict", "inventory", "findings"}


def write(root: Path, name: str, content: str | bytes) -> None:
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content.encode() if isinstance(content, str) else content)
