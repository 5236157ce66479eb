"""What kind of file something is, by content before suffix, and what it would do when it is used."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator, Sequence

from medunet.trust.findings import Finding, Place, code, danger, note
from medunet.trust.inspection.documents import decode
from medunet.trust.inspection.logging_conf import examine_logging, is_logging_conf
from medunet.trust.inspection.pickles import PickleScan, describe, text_pickle
from medunet.trust.inspection.sources import Entry
from medunet.trust.inspection.weights import NUMPY, examine_numpy, examine_pickle, examine_zip, looks_like_pickle
from medunet.trust.inspection.words import words

CONFIG_SUFFIXES = (".json", ".yaml", ".yml")
_TEXT_LIMIT = 8 * 1024 * 1024
_PICKLE_LIMIT = 256 * 1024 * 1024
_PYTHON = (".py", ".pyw", ".pyi", ".pyx", ".ipynb")
_COMPILED = (".pyc", ".pyo", ".pyd", ".so", ".dll", ".dylib", ".exe", ".com", ".scr", ".msi", ".jar", ".class",
             ".wasm", ".node", ".egg", ".whl", ".o", ".a", ".ko", ".deb", ".rpm", ".apk")  # fmt: skip
_SCRIPTS = (".sh", ".bash", ".zsh", ".fish", ".bat", ".cmd", ".ps1", ".vbs", ".js", ".mjs", ".ts.js", ".r", ".jl",
            ".pl", ".rb", ".lua", ".m", ".cu", ".cpp", ".c", ".desktop", ".service", ".mk", ".cmake",
            ".toml", ".cfg")  # fmt: skip
_SCRIPT_NAMES = ("dockerfile", "makefile", "jenkinsfile", "vagrantfile", "snakefile", "justfile", "docker-compose.yml")
_STARTUP = ("sitecustomize.py", "usercustomize.py", "conftest.py", ".pdbrc", ".bashrc", ".profile", ".bash_profile",
            ".zshrc", ".condarc", "pip.conf", ".netrc", ".gitconfig", ".gitmodules",
            ".envrc", ".pythonrc.py")  # fmt: skip
_WEIGHTS = (".pt", ".pth", ".ts", ".ckpt", ".bin", ".pkl", ".pickle", ".joblib", ".npy", ".npz", ".safetensors")
_ENGINES = (".engine", ".plan", ".trt", ".pt2", ".mar", ".h5", ".hdf5", ".keras", ".pb", ".tflite", ".mlmodel")
_OTHER_WEIGHTS = (".onnx", ".xml", ".data", ".safetensors", ".bin")
_PLAIN = (".md", ".txt", ".rst", ".png", ".jpg", ".jpeg", ".gif", ".csv", ".tsv", ".nii", ".nii.gz", ".dcm", ".jsonl",
          ".log", ".bib", ".tif", ".tiff", ".webp", ".pdf", ".html", ".htm", ".svg", ".xhtml", ".css")  # fmt: skip
_PLAIN_NAMES = ("license", "licence", "readme", "notice", "authors", "citation.cff", ".gitignore", ".gitattributes",
                "changelog", "manifest", "copying")  # fmt: skip
_EXECUTABLE = {b"\x7fELF": "Linux", b"MZ": "Windows", b"\xcf\xfa\xed\xfe": "macOS", b"\xce\xfa\xed\xfe": "macOS",
               b"\xca\xfe\xba\xbe": "macOS or Java", b"\x00asm": "WebAssembly", b"!<arch>": "a linker"}  # fmt: skip
_ACTIVE = re.compile(
    rb"<\s{0,8}(script|iframe|object|embed|applet|foreignobject|base|meta[^>]{1,100}http-equiv\s{0,8}=\s{0,8}[\"']?refresh)|\bon[a-z]{3,20}\s{0,8}=\s{0,8}[\"']?[^\"'>\s]"
    rb"|javascript:|vbscript:|data:text/html", re.IGNORECASE)  # fmt: skip
_PDF_ACTIVE = re.compile(rb"/(JavaScript|JS|Launch|OpenAction|AA|EmbeddedFile|RichMedia)\b")
_THIRD_PARTY = words(
    """torch monai numpy ignite yaml fire scipy nibabel SimpleITK itk skimage PIL pydicom pandas einops tqdm mlflow
    tensorboard torchvision torchaudio transformers safetensors h5py zarr cv2 sklearn matplotlib jinja2 rich typer
    click highdicom blosc2 openvino onnx onnxruntime tifffile edt cc3d cryptography medunet pip setuptools wheel
    pkg_resources six requests urllib3 typing_extensions packaging psutil functorch triton sympy networkx"""
)


def examine_file(entry: Entry) -> Iterator[Finding]:
    """A file that is not a config, judged by its content and its name."""
    place, name = Place(entry.name), entry.name.rsplit("/", 1)[-1].lower()
    with entry.open() as stream:
        head = stream.read(1 << 17)
        stream.seek(0)
        system = next((system for magic, system in _EXECUTABLE.items() if head.startswith(magic)), "")
        if name in _STARTUP:
            yield danger("startup-file", place, "is a file that programs run by themselves when they start")
        elif system or name.endswith(_COMPILED):
            yield danger(
                "compiled-code", place, f"is compiled code ({system or name.rsplit('.', 1)[-1]}); nobody can read it"
            )
        elif looks_like_pickle(head):
            yield from examine_pickle(stream, place, entry.size)
        elif head[:4] in (b"PK\x03\x04", b"PK\x05\x06", b"PK\x06\x06"):
            yield from examine_zip(stream, place)
        elif head.startswith(NUMPY) or name.endswith((".npy", ".npz")):
            found = list(examine_numpy(head, place))
            yield from found or [note("weights", place, "is a NumPy array of plain numbers")]
        else:
            scan = text_pickle(stream, _PICKLE_LIMIT)
            stream.seek(0)
            yield from _other(stream.read(_TEXT_LIMIT), scan, entry, name, place)


def _other(data: bytes, scan: PickleScan | None, entry: Entry, name: str, place: Place) -> Iterator[Finding]:
    if scan is not None:
        found = list(describe(scan)) or ["is a pickle in text"]
        yield from (danger("pickle", place, problem, "processes", "files", "network", "code") for problem in found)
    elif name.endswith(_PYTHON):
        yield code("python", place, f"is Python code ({entry.size} bytes); read it before you run the bundle")
    elif name.endswith(_SCRIPTS) or name in _SCRIPT_NAMES or data.startswith(b"#!"):
        yield code("script", place, "is a script or a build file", "processes", "code")
    elif name.endswith(".pth") and re.search(rb"^\s*import\s", data[:65536], re.MULTILINE):
        yield danger("startup-file", place, "is a path file that Python would run at its start")
    elif name.endswith((".conf", ".ini")):
        if entry.size > _TEXT_LIMIT:
            yield danger("limits", place, "is larger than any file of settings")
        yield from _settings(data, place)
    elif data[257:262] == b"ustar" or data[:6] in (b"7z\xbc\xaf\x27\x1c", b"Rar!\x1a\x07") or _is_packed(data, name):
        yield code("nested-archive", place, "is an archive in the bundle, not examined further", "files")
    elif name.endswith(_WEIGHTS) and not name.endswith(_OTHER_WEIGHTS):
        yield danger("weights", place, "is named as weights but is no file that can be examined")
    elif name.endswith(_ENGINES):
        yield code("engine", place, "is a model of another runtime, which may hold code; it is not examined")
    elif name.endswith((".html", ".htm", ".svg", ".xhtml", ".md", ".xml")) and _ACTIVE.search(data):
        what = _ACTIVE.search(data)
        line = data[: what.start()].count(b"\n") + 1 if what else 0
        yield code(
            "active-document", Place(entry.name, "", line), "is a document with active content", "network", "code"
        )
    elif data.startswith(b"%PDF") and _PDF_ACTIVE.search(data):
        yield code("active-document", place, "is a PDF with actions of its own", "network", "code")
    elif name.endswith(_OTHER_WEIGHTS):
        yield note("unknown-kind", place, "holds weights or data of another format, which are not examined")
    elif not name.endswith(_PLAIN) and not name.startswith(_PLAIN_NAMES):
        yield note("unknown-kind", place, "is of a kind that is not known; nothing of it was examined")


def _settings(data: bytes, place: Place) -> Iterator[Finding]:
    text, found = decode(place.file, data)
    yield from found
    if is_logging_conf(text) or place.file.endswith("logging.conf"):
        yield from examine_logging(place.file, text)
    else:
        yield note("unknown-kind", place, "holds settings of a program that is not known")


def _is_packed(data: bytes, name: str) -> bool:
    packed = data[:2] == b"\x1f\x8b" or data[:3] == b"BZh" or data[:6] == b"\xfd7zXZ\x00" or data[:4] == b"(\xb5/\xfd"
    return packed and not name.endswith(".nii.gz")


def local_modules(paths: Sequence[str]) -> dict[str, str]:
    """The names under which the bundle's own code can be imported from its root, each with a file of it."""
    found: dict[str, str] = {}
    for path in sorted(paths, reverse=True):
        stem, dot, suffix = path.rpartition(".")
        if dot and suffix.lower() in ("py", "pyc", "pyd", "so", "pyw"):
            found[stem.split("/")[0].split(".")[0]] = path
    return found


def shadowing(paths: Sequence[str], modules: dict[str, str]) -> Iterator[Finding]:
    """Code of the bundle that Python would take for a library, since a run's own folder comes first."""
    for module, file in modules.items():
        if module not in _THIRD_PARTY and module not in sys.stdlib_module_names:
            continue
        if f"{module}/__init__.py" in paths or "/" not in file:
            yield danger("shadows", Place(file), f"would be imported instead of the library '{module}'")
