"""Against the real parser: whenever MONAI runs the code of a config, the audit had not called the bundle safe."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import medunet
from medunet.trust.inspection.audit import audit

_OPEN = "open('CANARY', 'w')"
_QUOTED = 'open("CANARY","w")'
_RUN = """
import json, os, sys, warnings
warnings.simplefilter("ignore")
from monai.bundle import ConfigParser
for folder, files in json.load(sys.stdin):
    os.chdir(folder)
    try:
        parser = ConfigParser()
        if os.path.exists("configs/metadata.json"):
            parser.read_meta("configs/metadata.json")
        parser.read_config(files)
        parser.parse()
        for name in list(parser.ref_resolver.items):
            try:
                parser.get_parsed_content(name)
            except Exception:
                pass
    except Exception:
        pass
"""
_CALLED = (
    "d: [[subprocess.Popen], [true], [null], [false], [false], [null], [.], [true], [[[touch, CANARY]]]]\n"
    "f: {_target_: monai.transforms.LoadImageMODE}\n"
    "z: {_target_: monai.data.ZipDataset, datasets: '@d'}\n"
    "u: {_target_: Compose, transforms: '@f', map_items: false, unpack_items: true}\n"
    "c: {_target_: monai.data.Dataset, data: '@z', transform: '@u'}\n"
    "e: {_target_: monai.data.CacheDataset, data: '@c', progress: false}\n"
)
FIRES = {
    "expression": {"a.yaml": f"run: ${_OPEN}\n"},
    "json-escapes": {"a.json": json.dumps({"run": "$" + _OPEN}).replace("$", "\\u0024")},
    "quotes-closed-by-a-reference": {"a.json": json.dumps({"f": 1, "run": "$'@f{" + _QUOTED + "}'"})},
    "quotes-closed-by-a-key": {"a.json": json.dumps({"'+str(" + _QUOTED + ")+'": {"x": "$'%#'"}})},
    "double-quotes-closed-by-a-key": {"a.json": json.dumps({'q"+str(' + _OPEN + ')+"': {"x": '$"%#"'}})},
    "macro-of-an-expression": {"a.json": json.dumps({"b": "%c", "c": "$" + _OPEN})},
    "hash-in-an-expression": {"a.json": json.dumps({"run": "$'a#b' + str(" + _OPEN + ")"})},
    "folder": {"a.yaml": "imports: [$import os as q]\nr: $q.mkdir('CANARY')\n"},
    "program": {"a.yaml": "a: {_target_: subprocess.call, args: [touch, CANARY]}\n"},
    "reader": {"a.yaml": "a: {_target_: LoadImage, reader: subprocess.Popen, args: [touch, CANARY]}\n"},
    "reader-by-reference": {"a.yaml": "a: {_target_: LoadImage, reader: '@r::0', args: [touch, CANARY]}\nr: [subprocess.Popen]\n"},  # noqa: E501
    "reader-computed": {"a.yaml": "a: {_target_: LoadImage, reader: '$\"sub\" + \"process.Popen\"', args: [touch, CANARY]}\n"},  # noqa: E501
    "target-by-overlay": {"a.yaml": "a: {_target_: torch.nn.ReLU, command: touch CANARY}\n", "b.yaml": "'a#_target_': os.system\n"},  # noqa: E501
    "reader-by-merge": {"a.yaml": "a: {_target_: LoadImage, args: [touch, CANARY]}\n", "b.yaml": "+a: {reader: subprocess.Popen}\n"},  # noqa: E501
    "reader-deep-overlay": {"a.yaml": "x: {a: [{_target_: LoadImage, args: [touch, CANARY]}]}\n",
                            "b.yaml": "'x::a::0::reader': subprocess.Popen\n"},
    "target-by-reference": {"a.yaml": "n: os.system\na: {_target_: '@n', command: touch CANARY}\n"},
    "target-by-macro": {"a.yaml": "n: os.system\na: {_target_: '%n', command: touch CANARY}\n"},
    "target-by-expression": {"a.yaml": "a: {_target_: $'os.' + 'system', command: touch CANARY}\n"},
    "target-with-dots": {"a.yaml": "a: {_target_: os..system, command: touch CANARY}\n"},
    "target-through-modules": {"a.yaml": "a: {_target_: medunet.verbs.Path.touch, self: CANARY}\n"},
    "target-in-metadata": {"metadata.json": '{"n": {"_target_": "os.mkdir", "path": "CANARY"}}', "a.yaml": "n: '@_meta_::n'\n"},  # noqa: E501
    "requires": {"a.yaml": f'a: {{_target_: torch.nn.ReLU, _requires_: ["${_OPEN}"]}}\n'},
    "disabled": {"a.yaml": f'a: {{_target_: torch.nn.ReLU, _disabled_: "${_OPEN}"}}\n'},
    "alias": {"a.yaml": "c: &c os.mkdir\nb: {_target_: *c, path: CANARY}\n"},
    "module-through-a-reference": {"a.yaml": "imports: [$import os]\nc: {d: '@imports::0'}\nb: $@c['d'].mkdir('CANARY')\n"},  # noqa: E501
    "frame-of-a-generator": {"a.yaml": "b: $sorted(['open(\"CANARY\",\"w\")'], key=(x for x in [1]).gi_frame.f_builtins['exec'])\n"},  # noqa: E501
    "path-object": {"a.yaml": "imports: [$import pathlib]\nb: $pathlib.Path('CANARY').touch()\n"},
    "reader-through-an-alias": {
        "a.yaml": "imports: [$from monai.transforms import LoadImage as Load]\nb: $Load('subprocess.Popen', True, None, False, "  # noqa: E501
                  "False, None, '.', True, ['touch', 'CANARY'])\n"},
    "parser-within": {"a.yaml": "imports: [$from monai.bundle import ConfigParser as C]\n"
                                "b: $C({'a':'$open(\"CANARY\",\"w\")'}).get_parsed_content('a')\n"},
    "array-to-file": {"a.yaml": "b: $np.zeros(3).tofile('CANARY')\n"},
    "component-on-data": {"a.yaml": "b: {_target_: monai.data.Dataset, data: [touch CANARY], transform: {_target_: os.system, "  # noqa: E501
                                    "_mode_: callable}}\nc: $@b[0]\n"},
    "formatted": {"a.yaml": "a: $f'{open(\"CANARY\",\"w\")}'\n"},
    "second-of-a-name": {"a.json": '{"a": 1, "a": {"_target_": "os.mkdir", "path": "CANARY"}}'},
    "merger": {"a.yaml": "a: {_target_: PatchInferer, merger_cls: pathlib.Path.touch}\nb: $open('CANARY','w')\n"},
    "class-called-with-data": {"a.yaml": _CALLED.replace("MODE", ", _mode_: callable")},
    "class-called-by-overlay": {"a.yaml": _CALLED.replace("MODE", "") + "'f::_mode_': callable\n"},
    "starred": {"a.yaml": "b: $monai.transforms.LoadImaged(*['image', 'subprocess.Popen', None, None, 'm', False, "
                          "True, False, False, None, '.', False, True, ['touch', 'CANARY']])\n"},
    "one-component-from-overlays": {
        "a.yaml": "a: {require_empty: false}\na::_target_: ignite.handlers.ModelCheckpoint\n"
                  "a::dirname: CANARY\na::filename_prefix: x\n"},
    "one-of-many-meanings": {**{f"{n}.yaml": "d: eval\n" for n in range(60)},
                             "a.yaml": "d: CANARY\na: {_target_: ignite.handlers.ModelCheckpoint, dirname: '@d', "
                                       "filename_prefix: x}\n"},
    "large-metadata": {"metadata.json": json.dumps({"d": "CANARY", "x": "x" * 3_000_000}),
                       "metadata_other.json": '{"d": "eval"}',
                       "a.yaml": "a: {_target_: ignite.handlers.ModelCheckpoint, dirname: '@_meta_::d', "
                                 "filename_prefix: x}\n"},
    "callable-mode": {"a.yaml": "f: {_target_: os.mkdir, _mode_: callable, path: CANARY}\nb: $@f()\n"},
}  # fmt: skip


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[str, bool]]:
    """The audit's verdict for every config, made first; then whether MONAI made the canary."""
    base = tmp_path_factory.mktemp("differential")
    jobs, verdicts = [], {}
    for number, (name, files) in enumerate(FIRES.items()):
        root = base / str(number)
        (root / "configs").mkdir(parents=True)
        for file, text in files.items():
            (root / "configs" / file).write_text(text.replace("CANARY", str(base / name)))
        verdicts[name] = audit(root).verdict
        jobs.append((str(root), [f"configs/{file}" for file in files if file != "metadata.json"]))
    assert not any((base / name).exists() for name in FIRES)
    root_of_package = str(Path(medunet.__file__).parent.parent)
    environment = {**os.environ, "PYTHONPATH": root_of_package, "MONAI_EVAL_EXPR": "1"}
    subprocess.run([sys.executable, "-c", _RUN], input=json.dumps(jobs), text=True, env=environment, check=True,
                   capture_output=True)  # fmt: skip
    return {name: (verdict, (base / name).exists()) for name, verdict in verdicts.items()}


@pytest.mark.parametrize("name", FIRES)
def test_what_monai_runs_is_not_called_safe(name: str, outcomes: dict[str, tuple[str, bool]]) -> None:
    verdict, fired = outcomes[name]
    assert fired, "the config does not run under this version of MONAI: the case proves nothing"
    assert verdict == ("code" if name in ("folder", "one-component-from-overlays") else "refuse")
