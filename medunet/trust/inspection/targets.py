"""What a dotted name is: a component known to be inert, code of the bundle, a dangerous family, or unknown.

Only exact names of the tables (``inert.txt``, ``inert_medunet.txt``) are inert. ``monai.utils.module.subprocess.Popen``
walks through a module into another module's import: no such path is on the list, and its parts give it away.
"""

from __future__ import annotations

import builtins
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import Literal

from medunet.trust.inspection.words import words

Kind = Literal["inert", "bundle", "danger", "unknown"]

_MODULES = words(
    """os sys subprocess shutil builtins __builtin__ importlib runpy pickle _pickle cPickle dill cloudpickle joblib
    marshal shelve ctypes cffi _ctypes socket ssl socketserver urllib urllib3 requests http httpx ftplib smtplib
    telnetlib xmlrpc aiohttp paramiko pty code codeop webbrowser multiprocessing threading _thread signal tempfile
    pathlib fileinput asyncio concurrent yaml fire pydoc pdb bdb trace timeit cProfile profile inspect gc weakref
    atexit site sysconfig zipimport pkgutil pkg_resources setuptools distutils pip venv ensurepip nt posix posixpath
    ntpath pwd grp resource mmap fcntl winreg _winapi msvcrt sqlite3 dbm operator functools types ast dis platform
    linecache tokenize copyreg codecs io _io zipfile tarfile hub cpp_extension cpp_backend package jit inductor
    _inductor _dynamo dynamo gdown huggingface_hub boto3 git docker IPython ipykernel jupyter nbformat traceback
    warnings contextlib pprint unittest doctest idlelib tkinter turtle antigravity sched cmd shlex getpass readline
    rlcompleter wsgiref sympy numexpr cupy numba llvmlite cython Cython"""
) - {"jit", "code", "warnings", "types", "package", "signal", "io"}
_FIRST = words("code types warnings signal io imp ntpath test")  # dangerous as the first part only
_NAMES = words(
    """system popen Popen spawn spawnl spawnv spawnlp spawnvp execv execve execvp execl execlp fork forkpty startfile
    eval exec execfile compile __import__ import_module getattr setattr delattr globals locals vars open input
    breakpoint run_cmd check_output check_call getoutput getstatusoutput locate instantiate optional_import
    safe_eval run_eval load_library load_state_dict_from_url load_url download_url download_and_extract extractall
    unlink rmtree rmdir remove removedirs rename renames write_text write_bytes chmod chown symlink symlink_to link
    hardlink_to putenv kill killpg unsafe_load full_load load_module exec_module reduce_ex attrgetter methodcaller
    runcode runcall runeval runctx settrace setprofile tofile fromfile memmap loadtxt genfromtxt
    _import_c_extensions urlopen urlretrieve hf_hub_download snapshot_download load_submodules
    gi_frame gi_code cr_frame cr_code ag_frame ag_code f_globals f_builtins f_locals f_back f_code tb_frame func_globals
    func_code mro touch mkdir makedirs MethodReplacer pickle_hashing"""
)
_PREFIXES = (
    "torch.hub", "torch.load", "torch.save", "torch.package", "torch.jit.load", "torch.jit.save", "torch.utils.cpp",
    "torch.utils.model_zoo", "torch.utils.data.datapipes", "torch.utils.collect_env", "torch.utils.bottleneck",
    "torch.utils.serialization", "torch.utils.show_pickle", "torch.serialization", "torch.ops.load", "torch.classes",
    "torch.distributed.rpc", "torch.distributed.launch", "torch.distributed.run", "torch.distributed.elastic",
    "torch.multiprocessing", "torch.export.load", "torch.compiler", "torch.testing", "torch._", "torch.fx",
    "numpy.load", "numpy.save", "numpy.f2py", "numpy.distutils", "numpy.testing", "numpy.lib", "numpy.memmap",
    "numpy.ctypeslib", "np.load", "pandas.read_pickle", "pandas.eval", "pandas.io", "scipy.io", "skimage.io",
    "monai.bundle", "monai.apps.download", "monai.apps.extractall", "monai.apps.utils", "monai.apps.auto3dseg",
    "monai.apps.mmars", "monai.apps.nnunet", "monai.apps.tcia", "monai.apps.datasets", "monai.auto3dseg", "monai.fl",
    "monai.utils.misc", "monai.utils.module", "monai.utils.decorators", "monai.utils.state_cacher",
    "monai.utils.safeeval", "monai.config.check_env", "monai._extensions", "monai.data.torchscript_utils",
    "monai.data.load_net_with_metadata", "monai.data.save_net_with_metadata", "monai.data.pickle_hashing",
    "monai.apps.load_from_mmar", "monai.networks.trt_compiler", "medunet.verbs", "medunet.cli", "medunet.trust",
    "logging.config", "logging.FileHandler", "code.interact", "code.Interactive", "joblib", "yaml",
)  # fmt: skip
# Short names that MONAI itself would find in its modules.
_SHORT = words(
    """download load run run_workflow create_workflow ConfigParser ConfigWorkflow BundleWorkflow PythonicWorkflow
    ConfigExpression ConfigComponent ConfigItem ReferenceResolver ComponentLocator ckpt_export onnx_export trt_export
    verify_metadata verify_net_in_out init_bundle push_to_hf_hub download_large_files load_bundle_config merge_kv
    update_kwargs extractall check_hash load_from_mmar algo_from_pickle algo_from_json algo_to_pickle BundleAlgo
    BundleGen AutoRunner NNIGen OptunaGen MonaiAlgo MonaiAlgoStats save_obj save_net_with_metadata
    load_net_with_metadata export_bend StateCacher TrtHandler convert_to_torchscript convert_to_onnx convert_to_trt
    require_pkg allow_missing_reference"""
)
_HARMLESS_BUILTINS = words(
    "dict list tuple set frozenset range len sorted min max sum abs round int float bool str zip enumerate"
)


@dataclass(frozen=True)
class Component:
    """A row of the tables: the arguments it may be given, each with its kind (empty for a plain value)."""

    arguments: Mapping[str, str]


@dataclass(frozen=True)
class Target:
    """What a dotted name turned out to be, in words that end a sentence."""

    kind: Kind
    words: str
    component: Component | None = None


@cache
def table() -> Mapping[str, Component]:
    """Every exact name that is known to be inert."""
    rows: dict[str, Component] = {name: Component({}) for name in _HARMLESS_BUILTINS}
    for file in ("inert.txt", "inert_medunet.txt"):
        text = (resources.files("medunet.trust.inspection") / file).read_text(encoding="utf-8")
        for line in text.splitlines():
            names, colon, words = line.partition(":")
            if not colon or line.startswith("#"):
                continue
            pairs = [word.partition("=") for word in words.split()]
            component = Component({name: kind for name, _, kind in pairs})
            rows.update(dict.fromkeys(names.split(), component))
    return rows


def judge_name(name: str, local_modules: Mapping[str, str]) -> Target:
    """What MONAI would get hold of for this ``_target_``; `local_modules` are the bundle's own, with their files."""
    parts = [part for part in name.split(".") if part]
    if not parts:
        return Target("danger", "names nothing")
    if ".".join(parts) != name or not all(part.isidentifier() and part.isascii() for part in parts):
        return Target("danger", "is not a plain dotted name")
    if parts[0] in local_modules:
        return Target("bundle", f"is code of the bundle ({local_modules[parts[0]]})")
    component = table().get(name)
    if component is not None:
        return Target("inert", "is known to be inert", component)
    why = dangerous(parts)
    return Target("danger", why) if why else Target("unknown", "is not known to be inert")


def dangerous(parts: list[str]) -> str:
    """Why a dotted name is refused outright; empty where it is not."""
    name = ".".join(parts)
    if any(part.startswith("__") for part in parts):
        return "reaches into Python's internals"
    module = next((part for part in parts if part in _MODULES), parts[0] if parts[0] in _FIRST else "")
    if module:
        return f"reaches '{module}', which can run programs, open files or connections, or load code"
    call = next((part for part in parts if part in _NAMES), "")
    if call:
        return f"is '{call}', which runs, loads, fetches or changes things by name"
    prefix = next((start for start in _PREFIXES if name == start or name.startswith(start)), "")
    if prefix:
        return f"belongs to '{prefix}', which loads code or files by name"
    if len(parts) == 1 and name in _SHORT:
        return "is a function of MONAI that loads or runs bundles, files or programs"
    if len(parts) == 1 and hasattr(builtins, name) and name not in _HARMLESS_BUILTINS:
        return "is a builtin of Python that is no component"
    return ""


def is_dangerous_attribute(name: str) -> bool:
    """Whether getting this attribute of anything is refused."""
    return name.startswith("__") or name in _NAMES or name in _MODULES
