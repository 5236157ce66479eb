"""Hostile bundles and archives, made on the spot: each would make a canary file if anything of it ran."""

from __future__ import annotations

import io
import json
import os
import stat
import struct
import zipfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

CANARY = "CANARY"  # stands for the path of the canary file in every text


@dataclass(frozen=True)
class Hostile:
    """A hostile bundle: how to make it in a folder, and the place and rule that a finding must name."""

    name: str
    make: Callable[[Path, str], Path]
    file: str
    key: str
    rule: str


HOSTILE: list[Hostile] = []


def texts(name: str, rule: str, file: str, key: str, content: str | bytes, **more: str | bytes) -> None:
    """A folder with one hostile file and, under ``__``-separated names, others."""

    def make(root: Path, canary: str) -> Path:
        files = {file: content, **{path.replace("__", "/").replace("_dot_", "."): text for path, text in more.items()}}
        for path, data in files.items():
            raw = data.encode("utf-8", "surrogatepass") if isinstance(data, str) else data
            (root / path).parent.mkdir(parents=True, exist_ok=True)
            (root / path).write_bytes(raw.replace(CANARY.encode(), canary.encode()))
        return root

    HOSTILE.append(Hostile(name, make, file, key, rule))


def yaml_config(name: str, rule: str, key: str, text: str, **more: str | bytes) -> None:
    texts(name, rule, "configs/train.yaml", key, text, **more)


def zipped(name: str, rule: str, place: str, build: Callable[[zipfile.ZipFile], None],
           after: Callable[[bytes], bytes] = lambda data: data) -> None:  # fmt: skip
    """A zip file that `build` fills and `after` may spoil."""

    def make(root: Path, canary: str) -> Path:
        buffer = io.BytesIO()
        with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
            build(archive)
        path = root / "bundle.zip"
        path.write_bytes(after(buffer.getvalue()))
        return path

    HOSTILE.append(Hostile(name, make, place, "", rule))


TOUCH = f"touch {CANARY}"
EVIL = f"__import__('os').system('{TOUCH}')"

# --- code in expressions
for number, expression in enumerate([
    EVIL,
    f"os.system('{TOUCH}')",
    f"open('{CANARY}', 'w')",
    f"exec('open(\\'{CANARY}\\', \\'w\\')')",
    f"eval('open(\\'{CANARY}\\', \\'w\\')')",
    f"[c for c in ().__class__.__base__.__subclasses__() if c.__name__ == 'Popen'][0](['touch', '{CANARY}'])",
    f"getattr(torch, 'os').system('{TOUCH}')",
    f"torch.os.system('{TOUCH}')",
    f"monai.utils.module.pydoc.os.system('{TOUCH}')",
    f"(lambda f: f('{TOUCH}'))(torch.os.system)",
    f"[x for x in map(torch.os.system, ['{TOUCH}'])]",
    f"(y := open('{CANARY}', 'w'))",
    f"torch.hub.load('x/y', 'z', source='local') or '{CANARY}'",
    f"torch.load('{CANARY}', weights_only=False)",
    f"np.load('{CANARY}', allow_pickle=True)",
    f"monai.bundle.load('{CANARY}')",
    f"f'{{torch.os.system(\"{TOUCH}\")}}'",
    f"{{'a': torch.os.system}}['a']('{TOUCH}')",
    "[os][0].replace('a', 'b')",
    f"torch.utils.cpp_extension.load('x', ['{CANARY}'])",
    "monai.utils.run_cmd(['touch', '" + CANARY + "'])",
    "9**9**9**9**9",
    f"ｔorch.ｏs.system('{TOUCH}')",
    f"compile('import os', '{CANARY}', 'exec')",
    f"import os.path; open('{CANARY}', 'w')",
    "import subprocess",
    "from os import system",
    "import torch.hub as glob",
    "from os import system as len",
    f"@imports::0.system('{TOUCH}')",
    f"@a.b.__globals__['os'].system('{TOUCH}')",
    f"__local_refs['a'] or open('{CANARY}', 'w')",
    "(",
    "1 if " + "not " * 2000 + "True else 0",
]):  # fmt: skip
    body = json.dumps({"imports": ["$import os"], "a": "x", "run": "$" + expression})
    texts(f"expression-{number}", "expression", "configs/train.json", "run", body)
texts(
    "quotes-closed-by-a-reference", "expression", "configs/train.json", "run",
    json.dumps({"f": 1, "run": "$'@f{" + EVIL.replace("'", '"') + "}'"}),
)  # fmt: skip
texts(
    "quotes-closed-by-a-key", "expression", "configs/train.json", "x",
    json.dumps({"'+" + EVIL.replace("'", '"') + "+'": {"x": "$'%#'"}}),
)  # fmt: skip
yaml_config("expression-in-a-list", "expression", "run::1", f'run: [1, "${EVIL}"]')
yaml_config("expression-in-meta", "expression", "plan::a", "x: 1",
            configs__metadata_dot_json=json.dumps({"plan": {"a": "$" + EVIL}}))  # fmt: skip
HOSTILE[-1] = Hostile("expression-in-meta", HOSTILE[-1].make, "configs/metadata.json", "plan::a", "expression")
yaml_config("folded-expression", "expression", "run", f"run: >-\n  $__import__('os')\n  .system('{TOUCH}')")
yaml_config("escaped-dollar", "expression", "run", f"run: \"\\x24__import__('os').system('{TOUCH}')\"")

# --- components
for target, arguments in [
    ("os.system", f"command: {TOUCH}"),
    ("posix.system", f"command: {TOUCH}"),
    ("subprocess.Popen", f"args: [touch, {CANARY}]"),
    ("subprocess.call", f"args: [touch, {CANARY}]"),
    ("builtins.eval", f"__source: open('{CANARY}','w')"),
    ("eval", "a: 1"),
    ("exec", "a: 1"),
    ("builtins.exec", "a: 1"),
    ("open", f"{{file: {CANARY}, mode: w}}"[1:-1].replace(", ", "\n  ")),
    ("io.open", f"file: {CANARY}\n  mode: w"),
    ("torch.hub.load", "repo_or_dir: a/b\n  model: c"),
    ("torch.load", f"f: {CANARY}\n  weights_only: false"),
    ("torch.jit.load", f"f: {CANARY}"),
    ("torch.package.PackageImporter", f"file_or_buffer: {CANARY}"),
    ("torch.utils.cpp_extension.load", f"name: a\n  sources: [{CANARY}]"),
    ("torch.ops.load_library", f"path: {CANARY}"),
    ("pickle.load", f"file: {CANARY}"),
    ("joblib.load", f"filename: {CANARY}"),
    ("numpy.load", f"file: {CANARY}\n  allow_pickle: true"),
    ("runpy.run_path", f"path_name: {CANARY}"),
    ("importlib.import_module", "name: antigravity"),
    ("pathlib.Path.touch", f"self: {CANARY}"),
    ("shutil.copy", f"src: /etc/hostname\n  dst: {CANARY}"),
    ("urllib.request.urlretrieve", "url: http://localhost:1/x"),
    ("webbrowser.open", "url: http://localhost:1/x"),
    ("logging.config.fileConfig", f"fname: {CANARY}"),
    ("logging.FileHandler", f"filename: {CANARY}"),
    ("medunet.verbs.os.system", f"command: {TOUCH}"),
    ("monai.utils.module.pydoc.os.system", f"command: {TOUCH}"),
    ("monai.utils.misc.subprocess.run", f"args: [touch, {CANARY}]"),
    ("torch.nn.modules.module.functools.partial", "a: 1"),
    ("run_cmd", f"cmd_list: [touch, {CANARY}]"),
    ("monai.utils.run_cmd", f"cmd_list: [touch, {CANARY}]"),
    ("monai.bundle.run", f"config_file: {CANARY}"),
    ("download", "name: x"),
    ("monai.apps.download_url", f"url: http://localhost:1/x\n  filepath: {CANARY}"),
    ("ConfigParser", "config: {a: $1}"),
    ("os..system", f"command: {TOUCH}"),
    ("torch.nn.Module.__init__.__globals__", "a: 1"),
    ("multiprocessing.Process", "a: 1"),
    ("ctypes.CDLL", f"name: {CANARY}"),
    ("code.interact", "a: 1"),
    ("pty.spawn", f"argv: [touch, {CANARY}]"),
    ("fire.Fire", "component: 1"),
    ("yaml.unsafe_load", "stream: x"),
    ("torch.оs.system", f"command: {TOUCH}"),
]:  # fmt: skip
    yaml_config(f"target-{target}", "target", "a::_target_", f"a:\n  _target_: {target}\n  {arguments}\n")
yaml_config("target-in-a-list", "target", "a::0::_target_", f"a:\n- _target_: os.system\n  command: {TOUCH}\n")
yaml_config("target-callable-mode", "target", "f::_target_",
            "f: {_target_: os.system, _mode_: callable}\na:\n"
            "  _target_: monai.transforms.Lambda\n  func: '@f'\n")  # fmt: skip
yaml_config(
    "target-by-reference", "target-computed", "a::_target_", f"n: os.system\na:\n  _target_: '@n'\n  command: {TOUCH}\n"
)
yaml_config(
    "target-by-macro", "target-computed", "a::_target_", f"n: os.system\na:\n  _target_: '%n'\n  command: {TOUCH}\n"
)
yaml_config("target-by-expression", "target-computed", "a::_target_",
            f"a:\n  _target_: $'os.' + 'system'\n  command: {TOUCH}\n")  # fmt: skip
yaml_config("target-by-overlay", "target", "a::_target_", "'a::_target_': os.system\n",
            configs__base_dot_yaml=f"a:\n  _target_: torch.nn.ReLU\n  command: {TOUCH}\n")  # fmt: skip
yaml_config("target-by-old-overlay", "target", "a#_target_", "'a#_target_': os.system\n")
yaml_config("target-by-merging-overlay", "target", "+a::_target_", "+a: {_target_: os.system}\n",
            configs__base_dot_yaml=f"a:\n  _target_: torch.nn.ReLU\n  command: {TOUCH}\n")  # fmt: skip
texts("target-in-metadata", "target", "configs/metadata.json", "plan::network::_target_",
      json.dumps({"plan": {"network": {"_target_": "os.system", "command": TOUCH}}}))  # fmt: skip
texts("target-given-twice", "duplicate-key", "configs/train.json", "a::_target_",
      '{"a": {"_target_": "os.system", "command": "' + TOUCH + '", "_target_": "torch.nn.ReLU"}}')  # fmt: skip
texts("target-in-a-file-for-a-macro", "target", "docs/notes.JSON", "k::_target_",
      json.dumps({"k": {"_target_": "os.system", "command": TOUCH}}),
      configs__train_dot_yaml="a: '%docs/notes.JSON::k'\n")  # fmt: skip
texts("target-escaped-in-json", "target", "configs/train.json", "a::_target_",
      '{"a": {"\\u005ftarget_": "os.syste\\u006d", "command": "' + TOUCH + '"}}')  # fmt: skip

# --- arguments
yaml_config("argument-reader", "argument-names-code", "a::reader",
            f"a:\n  _target_: monai.transforms.LoadImaged\n"
            f"  keys: image\n  reader: subprocess.Popen\n  args: [touch, {CANARY}]\n")  # fmt: skip
yaml_config("argument-reader-short-name", "argument-names-code", "a::reader",
            "a:\n  _target_: LoadImaged\n  keys: image\n  reader: [ITKReader, os.system]\n")  # fmt: skip
yaml_config("argument-reader-by-reference", "argument-names-code", "a::reader",
            f"n: subprocess.Popen\na:\n  _target_: LoadImage\n  reader: '@n'\n  args: [touch, {CANARY}]\n")  # fmt: skip
yaml_config("argument-reader-by-macro", "argument-names-code", "a::reader",
            f"n: [subprocess.Popen]\na:\n  _target_: LoadImage\n"
            f"  reader: '%n::0'\n  args: [touch, {CANARY}]\n")  # fmt: skip
yaml_config("argument-reader-computed", "argument-names-code", "a::reader",
            "a:\n  _target_: LoadImage\n  reader: $'subprocess' + '.Popen'\n")  # fmt: skip
yaml_config("argument-reader-by-overlay", "argument-names-code", "a::reader", "'a::reader': subprocess.Popen\n",
            configs__base_dot_yaml="a:\n  _target_: LoadImage\n")  # fmt: skip
yaml_config("argument-reader-by-merge", "argument-names-code", "+a::reader", "+a: {reader: subprocess.Popen}\n",
            configs__base_dot_yaml="a:\n  _target_: LoadImage\n")  # fmt: skip
yaml_config("argument-writer", "argument-names-code", "a::writer",
            "a:\n  _target_: monai.transforms.SaveImage\n  writer: os.system\n")  # fmt: skip
yaml_config("argument-merger", "argument-names-code", "a::merger_cls",
            "a:\n  _target_: PatchInferer\n  merger_cls: subprocess.Popen\n")  # fmt: skip
yaml_config("argument-function-name", "argument-names-code", "a::func",
            "a:\n  _target_: monai.transforms.Lambdad\n  keys: image\n  func: os.system\n")  # fmt: skip
yaml_config("argument-debugger", "debug", "a::_mode_", "a:\n  _target_: torch.nn.ReLU\n  _mode_: debug\n")
yaml_config("argument-breakpoint", "debug", "a::_debug_", "a:\n  _target_: torch.nn.ReLU\n  _debug_: true\n")
yaml_config("argument-unpickles", "argument-pickle", "a::allow_pickle",
            "a:\n  _target_: monai.data.NumpyReader\n  allow_pickle: true\n")  # fmt: skip
yaml_config("argument-hidden-file", "path", "a::filename",
            "a:\n  _target_: LogfileHandler\n"
            "  output_dir: .\n  filename: .bashrc\n  formatter: touch CANARY\n")  # fmt: skip
yaml_config("argument-python-file", "path", "a::filename",
            "a:\n  _target_: LogfileHandler\n  output_dir: .\n  filename: torch.py\n")  # fmt: skip
yaml_config("argument-python-file-computed", "path", "a::filename",
            "p: .p\na:\n  _target_: LogfileHandler\n  output_dir: .\n  filename: $'torch' + @p + 'y'\n")  # fmt: skip
yaml_config("argument-leaves-the-folder", "path", "a::output_dir",
            "a:\n  _target_: LogfileHandler\n  output_dir: ../../../etc\n")  # fmt: skip
yaml_config("requires-an-expression", "expression", "a::_requires_",
            f'a:\n  _target_: torch.nn.ReLU\n  _requires_: "${EVIL}"\n')  # fmt: skip
yaml_config("disabled-by-an-expression", "expression", "a::_disabled_",
            f'a:\n  _target_: torch.nn.ReLU\n  _disabled_: "${EVIL}"\n')  # fmt: skip
yaml_config("macro-out-of-the-bundle", "macro", "a", "a: '%/tmp/elsewhere.json::k'\n")
yaml_config("macro-upwards", "macro", "a", "a: '%../elsewhere.yaml'\n")

# --- ways around that a review found
yaml_config("module-through-a-reference", "module", "c::d",
            f"imports: [$import os]\nc: {{d: '@imports::0'}}\nb: $@c['d'].replace('a', '{CANARY}')\n")  # fmt: skip
yaml_config(
    "module-through-a-macro", "module", "c", "imports: [$import os]\nc: '%imports::0'\nb: $@c.replace('a', 'b')\n"
)
yaml_config("path-that-moves-a-file", "expression", "b",
            f"imports: [$import pathlib]\nb: $pathlib.Path('/etc/hostname').replace('{CANARY}')\n")  # fmt: skip
yaml_config("frame-of-a-generator", "expression", "b",
            f"b: $sorted(['open(\"{CANARY}\",\"w\")'], key=(x for x in [1]).gi_frame.f_builtins['exec'])\n")  # fmt: skip # noqa: E501
yaml_config("reader-through-an-alias", "argument-names-code", "b",
            "imports: [$from monai.transforms import LoadImage as Load]\nb: $Load(reader='subprocess.Popen')\n")  # fmt: skip # noqa: E501
yaml_config("reader-by-position", "argument-names-code", "b", "b: $monai.transforms.LoadImage('subprocess.Popen')\n")
yaml_config("reader-made-by-a-component", "argument-names-code", "a::reader",
            "a: {_target_: LoadImage, reader: '@n'}\nn: {_target_: str, object: subprocess.Popen}\n")  # fmt: skip
yaml_config("parser-imported-as-a-builtin", "expression", "imports::0",
            f"imports: [$from monai.bundle import ConfigParser as str]\nb: $str({{'a':'$open(\"{CANARY}\",\"w\")'}})\n")  # fmt: skip # noqa: E501
texts("relative-key-copied-by-a-macro", "key", "configs/train.json", "z",
      json.dumps({"z": {"k'+" + EVIL.replace("'", '"') + "+'": "%s::x"}, "s": {"x": "$'%#'"}}))  # fmt: skip
yaml_config("text-of-a-checkpoint-folder", "path", "a::save_handler",
            "a: {_target_: ignite.handlers.Checkpoint, to_save: {}, save_handler: /etc/cron.d}\n")  # fmt: skip

# --- what a second review found
_LOAD = "a: {_target_: LoadImage, reader: '@x'}\n"
yaml_config("class-called-with-data", "argument", "a::transform::_mode_",
            "a: {_target_: Dataset, data: '@d', transform: {_target_: LoadImage, _mode_: callable}}\n")  # fmt: skip
yaml_config("class-called-by-overlay", "argument", "a::_mode_", "'a::_mode_': callable\n",
            configs__base_dot_yaml="a: {_target_: monai.transforms.SaveImage}\n")  # fmt: skip
yaml_config("reader-by-stars", "argument", "b", "b: $monai.transforms.LoadImaged(*['image', 'subprocess.Popen'])\n")
yaml_config("unpickles-in-an-expression", "argument-pickle", "b",
            "b: $monai.transforms.LoadImage('NumpyReader', allow_pickle=True)\n")  # fmt: skip
yaml_config("path-of-overlays", "path", "a::output_dir",
            "a: {keys: x}\na::_target_: monai.transforms.SaveImaged\na::output_dir: ../../x\n")  # fmt: skip
yaml_config("postfix-that-climbs", "path", "a::output_postfix",
            "a: {_target_: monai.transforms.SaveImaged, keys: pred, output_postfix: /../../../x}\n")  # fmt: skip
yaml_config("one-of-many-meanings", "limits", "x", _LOAD + "x: subprocess.Popen\n",
            **{f"configs__{n}_dot_json": '{"x": "NumpyReader"}' for n in range(60)})  # fmt: skip
texts("large-metadata", "limits", "configs/metadata.json", "", json.dumps({"x": "os.system", "y": "y" * 3_000_000}),
      configs__metadata_other_dot_json='{"x": "NumpyReader"}',
      configs__train_dot_yaml="a: {_target_: LoadImage, reader: '@_meta_::x'}\n")  # fmt: skip
yaml_config("lists-in-a-circle", "argument-names-code", "a::reader", _LOAD + "x: ['@x']\n")
yaml_config("lists-that-double", "argument-names-code", "a::reader", _LOAD + "x: ['@x0', '@x0']\n" + "".join(
    f"x{n}: ['@x{n + 1}', '@x{n + 1}']\n" for n in range(50)))  # fmt: skip
yaml_config("paths-that-multiply", "expression", "z",
            "a: {_target_: LogfileHandler, output_dir: '@x0'}\nz: $open('CANARY')\n" + "".join(
                f"x{n}: ${'+'.join([f'@x{n + 1}'] * 60)}\n" for n in range(20)))  # fmt: skip
texts("long-key", "limits", "configs/train.json", "", json.dumps({"k" * 1_000_000: [1] * 140_000}))
_values = {f"configs__a{_at}_dot_json": json.dumps([1] * 149_000, separators=(",", ":")) for _at in range(12)}
texts("many-values", "limits", "configs/b.json", "", json.dumps([1] * 149_000), **_values)
texts("many-expressions", "limits", "configs/train.json", "a", json.dumps(
    {f"a{_at}": "$" + "(" * 60 + "1" + ")" * 60 + "+x" * 100 for _at in range(5000)}))  # fmt: skip
texts("many-circles", "argument-names-code", "configs/train.json", "k0::reader", json.dumps(
    {"x": ["@x"], **{f"k{_at}": {"_target_": "LoadImage", "reader": "@x"} for _at in range(20_000)}}))  # fmt: skip
_deep = '{"' + '": {"'.join(["k" * 400] * 50) + '": ' + json.dumps([1] * 140_000) + "}" * 50
texts("long-ids", "limits", "configs/train.json", "", _deep)
for _at in range(len(HOSTILE)):  # findings about ids are of all configs together
    if HOSTILE[_at].name in ("long-ids", "one-of-many-meanings"):
        HOSTILE[_at] = replace(HOSTILE[_at], file="configs")
yaml_config("long-sum", "expression", "a", "a: $" + "1+" * 1900 + "1\n")
yaml_config("long-chain", "expression", "a", "a: $a" + ".a" * 1900 + "\n")
yaml_config("line-that-ends-in-utf-8-only", "encoding", "",
            f"a: 1\n#\u2028x: '\nrun: {{_target_: os.system, command: {TOUCH}}}\n#\u2028'\n")  # fmt: skip

# --- YAML and JSON as such
yaml_config("tag-python-object", "tag", "a", f"a: !!python/object/apply:os.system ['{TOUCH}']\n")
yaml_config("tag-python-name", "tag", "a", "a: !!python/name:os.system\n")
yaml_config("tag-custom", "tag", "a", "a: !run {x: 1}\n")
yaml_config("tag-binary", "tag", "a", "a: !!binary JGV2aWw=\n")
yaml_config("tag-text-of-a-mapping", "tag", "a", "a: !!str {=: $1}\n")
yaml_config("alias-of-code", "expression", "b", f'a: &x "${EVIL}"\nb: *x\n')
yaml_config(
    "merge-of-code", "target", "b::_target_", f"a: &x {{_target_: os.system}}\nb:\n  <<: *x\n  command: {TOUCH}\n"
)
yaml_config("duplicate-key", "duplicate-key", "a", "a: 1\nb: 2\na: 3\n")
yaml_config("alias-bomb", "limits", "", "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]\n" for n in range(1, 12)))  # fmt: skip
yaml_config("alias-to-itself", "alias", "a::0", "a: &a [*a]\n")
yaml_config("several-documents", "documents", "", f'a: 1\n---\nb: "${EVIL}"\n')
yaml_config("deep-yaml", "limits", "", "a: " + "[" * 5000 + "]" * 5000)
texts("deep-json", "limits", "configs/train.json", "", '{"a": ' + "[" * 100_000 + "]" * 100_000 + "}")
yaml_config("long-yaml", "limits", "", "a: x\n" * 400_000)
texts("long-json", "limits", "configs/train.json", "", '{"a": "$' + "x" * 9_000_000 + '"}')
yaml_config("long-expression", "expression", "a", "a: $" + "1+" * 100_000 + "1\n")
yaml_config("broken-yaml", "unreadable", "", "a: [1, 2\nb: }\n")
texts("broken-json", "unreadable", "configs/train.json", "", '{"a": 1,}')
yaml_config("invalid-utf8", "encoding", "", b"a: 1\nb: \xff\xfe\n")
yaml_config("utf-16", "encoding", "", "a: $1".encode("utf-16"))
texts("byte-order-mark", "encoding", "configs/train.json", "", b"\xef\xbb\xbf" + b'{"a": 1}')
yaml_config("nul-bytes", "encoding", "", b"a: 1\x00\n")
yaml_config("list-as-a-key", "key", "", f'? [a, b]\n: "${EVIL}"\n')

# --- look-alikes
yaml_config("fullwidth-dollar", "characters", "a", f"a: ＄{EVIL}\n")
yaml_config("fullwidth-key", "characters", "a::＿target＿", "a:\n  ＿target＿: os.system\n")
yaml_config("cyrillic-key", "characters", "a::_tаrget_", "a:\n  _tаrget_: os.system\n")
yaml_config("invisible-key", "characters", "a", 'a: {"_target\\u200b_": os.system}\n')
yaml_config("right-to-left", "characters", "a", 'a: "$1 \\u202e + 2"\n')

# --- logging.conf
_HANDLER = (
    "[loggers]\nkeys=root\n[handlers]\nkeys=h\n[formatters]\nkeys=f\n[logger_root]\nhandlers=h\n"
    "[formatter_f]\n{}\n[handler_h]\nclass={}\nargs={}\n"
)
for _name, _formatter, _class, _args, _key in [
    ("class", "format=x", EVIL, "()", "handler_h::class"),
    ("class-imported", "format=x", "evil.Handler", "()", "handler_h::class"),
    ("args", "format=x", "StreamHandler", f"({EVIL},)", "handler_h::args"),
    ("defaults", f"defaults={EVIL}", "StreamHandler", "()", "formatter_f::defaults"),
    ("formatter", "class=os.system", "StreamHandler", "()", "formatter_f::class"),
    ("network", "format=x", "handlers.SocketHandler", "('localhost', 1)", "handler_h::class"),
    ("interpolated", "format=x", "StreamHandler", f"%(x)s\nx={EVIL}", "handler_h::args"),
    ("hidden-file", "format=x", "FileHandler", "('.bashrc',)", "handler_h::class"),
]:
    texts(f"logging-{_name}", "logging", "configs/logging.conf", _key, _HANDLER.format(_formatter, _class, _args))

texts("logging-carriage-return", "logging", "configs/logging.conf", "handler_h::args",
      _HANDLER.format("format=x", "StreamHandler\nlevel=INFO\rargs=X", "()").replace("args=X", f"args=({EVIL},)")
      .replace("\nargs=()", ""))  # fmt: skip
texts("logging-long", "limits", "configs/logging.conf", "",
      "#\n" * 5_000_000 + _HANDLER.format("format=x", EVIL, "()"))  # fmt: skip

# --- files that run
texts("startup-sitecustomize", "startup-file", "sitecustomize.py", "", f"open('{CANARY}', 'w')")
texts("startup-pdbrc", "startup-file", ".pdbrc", "", "!1")
texts("startup-pth", "startup-file", "x.pth", "", f"import os; open('{CANARY}', 'w')\n")
texts("shadows-torch", "shadows", "torch.py", "", f"open('{CANARY}', 'w')")
texts("shadows-monai", "shadows", "monai/__init__.py", "", f"open('{CANARY}', 'w')")
texts("shadows-json", "shadows", "json.py", "", f"open('{CANARY}', 'w')")
texts("compiled-library", "compiled-code", "scripts/fast.so", "", b"\x7fELF" + bytes(100))
texts("compiled-by-content", "compiled-code", "docs/picture.png", "", b"MZ" + bytes(100))
texts("compiled-python", "compiled-code", "scripts/x.pyc", "", bytes(100))


# --- pickles
def torch_file(data: bytes, **more: bytes) -> bytes:
    """What torch.save writes, around a pickle."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("archive/data.pkl", data)
        archive.writestr("archive/version", b"3\n")
        for name, content in more.items():
            archive.writestr(f"archive/{name.replace('__', '/')}", content)
    return buffer.getvalue()


_PROTOCOL0 = f"cos\nsystem\n(S'{TOUCH}'\ntR.".encode()
_INST = f"(S'{TOUCH}'\nios\nsystem\n.".encode()
_EXT = b"\x80\x02\x82\x01."
_STACK = b"\x80\x04\x8c\x02os\x8c\x06system\x93" + f"(S'{TOUCH}'\ntR.".encode()
_STACK_MEMO = b"\x80\x04\x8c\x06system\x94\x8c\x02os\x94" + b"h\x01h\x00\x93" + f"(S'{TOUCH}'\ntR.".encode()
_COMPUTED = b"\x80\x04\x8c\x02os(S'system'\nt\x93."
_TWO = b"\x80\x02}." + _PROTOCOL0
_INNER = b"\x80\x02cos\nsystem\n(S'x'\ntR."
_NESTED = b"\x80\x03C" + bytes([len(_INNER)]) + _INNER + b"."
_BUILTINS = b"\x80\x02cbuiltins\neval\n" + f'(S\'open("{CANARY}","w")\'\ntR.'.encode()
_PY2 = b"\x80\x02c__builtin__\neval\n" + f'(S\'open("{CANARY}","w")\'\ntR.'.encode()
_TORCH_CALL = b"\x80\x02ctorch.hub\nload\n)R."
_PERSID = b"\x80\x02Pevil\n."
for _name, _data in {
    "protocol-2": b"\x80\x02" + _PROTOCOL0, "stack-global": _STACK, "stack-global-memo": _STACK_MEMO,
    "computed-name": _COMPUTED, "instance": b"\x80\x02" + _INST, "extension": _EXT, "two": _TWO,
    "nested": _NESTED, "builtins": _BUILTINS,
    "python2": _PY2, "torch-function": _TORCH_CALL, "persistent-id": _PERSID, "truncated": b"\x80\x02}q\x00(X\xff",
    "huge-text": b"\x80\x04\x8d" + struct.pack("<Q", 1 << 60) + b"x", "unknown-opcode": b"\x80\x02\xff.",
    "garbage-after": b"\x80\x02}.\xff\xff\xff", "next-buffer": b"\x80\x05\x97.",
    "class-itself": b"\x80\x02ctorch\nTensor\nN}\x86b.",
}.items():  # fmt: skip
    texts(f"pickle-{_name}", "pickle", "models/model.pt", "", _data)
texts("pickle-protocol-0", "pickle", "models/model.pt", "", _PROTOCOL0)
texts("pickle-named-text", "pickle", "docs/notes.txt", "", _PROTOCOL0)
texts("pickle-after-a-constant", "pickle", "docs/notes.txt", "", b"\x880" + _PROTOCOL0)
texts("pickle-after-a-long-text", "pickle", "docs/notes.txt", "",
      b"X" + struct.pack("<L", 9_000_000) + b"x" * 9_000_000 + b"0" + _PROTOCOL0)  # fmt: skip
texts("pickle-named-yaml", "pickle", "configs/x.yaml", "", _PROTOCOL0)
texts("pickle-binary-named-json", "pickle", "configs/x.json", "", b"\x80\x02" + _PROTOCOL0)
for _name, _member, _content in [
    ("torch-file", "models/model.pt/archive/data.pkl", torch_file(b"\x80\x02" + _PROTOCOL0)),
    (
        "torch-file-second-pickle",
        "models/model.ckpt/archive/extra.pkl",
        torch_file(b"\x80\x02}.", **{"extra.pkl": _STACK}),
    ),
    ("torch-script", "models/model.ts/archive/data.pkl", torch_file(_STACK, code__x=b"def f(): pass")),
    ("numpy-archive", "models/a.npz/x.npy", b""),
]:

    def _make(root: Path, canary: str, file: str = _member, content: bytes = _content) -> Path:
        path = root / "/".join(file.split("/")[:2])
        path.parent.mkdir(parents=True)
        if not content:
            buffer = io.BytesIO()
            with zipfile.ZipFile(buffer, "w") as archive:
                archive.writestr("x.npy", numpy_objects())
            content = buffer.getvalue()
        path.write_bytes(content)
        return root

    HOSTILE.append(Hostile(f"weights-{_name}", _make, _member, "", "numpy" if "numpy" in _name else "pickle"))


def numpy_objects() -> bytes:
    """An array of objects."""
    header = b"{'descr': '|O', 'fortran_order': False, 'shape': (1,), }"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header + _PROTOCOL0


texts("weights-numpy-objects", "numpy", "models/x.npy", "", numpy_objects())
texts("weights-numpy-records", "numpy", "models/x.npy", "",
      numpy_objects().replace(b"'|O'", b"[('a', '|O')]").replace(b"\x38\x00", b"\x41\x00", 1))  # fmt: skip
texts("weights-unknown", "weights", "models/model.pt", "", b"what is this")


# --- archives
def _plain(archive: zipfile.ZipFile) -> None:
    archive.writestr("b/configs/train.yaml", "a: 1\n")


def _named(name: str, data: bytes = b"x") -> Callable[[zipfile.ZipFile], None]:
    def build(archive: zipfile.ZipFile) -> None:
        _plain(archive)
        info = zipfile.ZipInfo("placeholder")
        info.filename = name
        archive.writestr(info, data)

    return build


for _name, _path in {
    "slip": "../../evil.py", "slip-inside": "b/../../evil", "absolute": "/etc/evil", "backslash": "b\\..\\evil",
    "drive": "C:/evil", "reserved": "b/con.txt", "trailing-dot": "b/x.", "trailing-space": "b/x /y", "dot": "./b/x",
    "empty-part": "b//x", "invisible": "b/x\u200b.py", "question-mark": "b/x?.txt", "stream": "b/x.txt:evil",
    "reserved-upper": "b/LPT1", "newline": "b/x\n.txt",
}.items():  # fmt: skip
    zipped(f"archive-name-{_name}", "archive-name", _path, _named(_path))


def _mode(kind: int) -> Callable[[zipfile.ZipFile], None]:
    def build(archive: zipfile.ZipFile) -> None:
        _plain(archive)
        info = zipfile.ZipInfo("b/x")
        info.create_system = 3
        info.external_attr = (kind | 0o777) << 16
        archive.writestr(info, "/etc/passwd")

    return build


zipped("archive-link", "archive-link", "b/x", _mode(stat.S_IFLNK))
zipped("archive-device", "archive-device", "b/x", _mode(stat.S_IFBLK))
zipped("archive-pipe", "archive-device", "b/x", _mode(stat.S_IFIFO))
zipped("archive-setuid", "archive-mode", "b/x", _mode(stat.S_IFREG | stat.S_ISUID))


def _pair(first: str, second: str) -> Callable[[zipfile.ZipFile], None]:
    def build(archive: zipfile.ZipFile) -> None:
        _plain(archive)
        archive.writestr(first, "a")
        archive.writestr(second, "b")

    return build


zipped("archive-case", "archive-collision", "b/readme", _pair("b/README", "b/readme"))
zipped("archive-unicode", "archive-collision", "b/e\u0301", _pair("b/\u00e9", "b/e\u0301"))
zipped("archive-twice", "archive-collision", "b/x", _pair("b/x", "b/x"))
zipped("archive-file-and-folder", "archive-collision", "b/x/y", _pair("b/x", "b/x/y"))
zipped("archive-bomb", "archive-bomb", "b/zeros", lambda z: z.writestr("b/zeros", bytes(80_000_000)))


def _lies(data: bytes) -> bytes:
    """The table of contents says 1 byte, the data are 100000."""
    at = data.index(b"PK\x01\x02")
    return data[: at + 24] + struct.pack("<L", 1) + data[at + 28 :]


def _other_name(data: bytes) -> bytes:
    return data.replace(b"b/configs/train.yaml", b"b/configs/other.yaml", 1)


zipped("archive-size-lies", "archive-header", "b/x", lambda z: z.writestr("b/x", bytes(100_000)), _lies)
zipped("archive-two-names", "archive-header", "b/configs/train.yaml", _plain, _other_name)
zipped("archive-encrypted", "archive-encrypted", "b/configs/train.yaml", _plain,
       lambda d: (lambda at: d[: at + 8] + b"\x01\x00" + d[at + 10 :])(d.index(b"PK\x01\x02")))  # fmt: skip
zipped("archive-data-before", "archive", "bundle.zip", _plain, lambda d: b"#!/bin/sh\n" + d)
zipped("archive-data-after", "archive", "bundle.zip", _plain, lambda d: d + b"tail")
zipped("archive-truncated", "archive", "bundle.zip", _plain, lambda d: d[:-30])
zipped("archive-bad-checksum", "archive-data", "b/configs/train.yaml", _plain,
       lambda d: d.replace(struct.pack("<L", zlib.crc32(b"a: 1\n")), b"\x01\x02\x03\x04"))  # fmt: skip
zipped("archive-is-tar", "archive-kind", "bundle.zip", _plain, lambda d: bytes(257) + b"ustar" + bytes(300))


def _overlap(data: bytes) -> bytes:
    """Both entries of the table of contents point to the same data."""
    second = data.rindex(b"PK\x01\x02")
    return data[: second + 42] + struct.pack("<L", 0) + data[second + 46 :]


zipped("archive-overlap", "archive-overlap", "b/y", _pair("b/x", "b/y"), lambda d: _overlap(d))
zipped("archive-hostile-config", "expression", "b/configs/train.yaml",
       lambda z: z.writestr("b/configs/train.yaml", f'run: "${EVIL}"'))  # fmt: skip
zipped("archive-hostile-weights", "pickle", "b/models/model.pt/archive/data.pkl",
       lambda z: z.writestr("b/models/model.pt", torch_file(b"\x80\x02" + _PROTOCOL0)))  # fmt: skip


def _link(root: Path, canary: str) -> Path:
    (root / "configs").mkdir()
    (root / "configs" / "train.yaml").symlink_to("/etc/passwd")
    return root


def _pipe(root: Path, canary: str) -> Path:
    (root / "configs").mkdir()
    os.mkfifo(root / "configs" / "train.yaml")
    return root


HOSTILE.append(Hostile("folder-link", _link, "configs/train.yaml", "", "link"))
HOSTILE.append(Hostile("folder-pipe", _pipe, "configs/train.yaml", "", "device"))
