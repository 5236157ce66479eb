#!/usr/bin/env python3
"""Write inert.txt of medunet/trust/inspection: MONAI, Ignite and PyTorch components that run nothing a config chooses.

Reviewed by rule, not by name: a module that is not listed here is left out; a parameter that names code, a file or a
download is marked, and `medunet.trust.inspection.arguments` judges what stands there. Run it once per version of MONAI
and read the difference.

    python scripts/inert_components.py medunet/trust/inspection/inert.txt
"""

from __future__ import annotations

import enum
import importlib
import inspect
import re
import sys
from pathlib import Path
from typing import Any

CLASSES = [
    "monai.transforms", "monai.networks.nets", "monai.networks.blocks", "monai.networks.layers", "monai.losses",
    "monai.inferers", "monai.engines", "monai.handlers", "monai.data", "monai.metrics", "monai.optimizers",
    "monai.networks.schedulers", "ignite.metrics", "ignite.handlers", "torch.nn", "torch.optim",
    "torch.optim.lr_scheduler", "torch.utils.data",
]  # fmt: skip
FUNCTIONS = """
monai.data.list_data_collate monai.data.pad_list_data_collate monai.data.decollate_batch monai.data.partition_dataset
monai.data.partition_dataset_classes monai.data.select_cross_validation_folds monai.data.load_decathlon_datalist
monai.data.load_decathlon_properties monai.data.worker_init_fn monai.data.set_track_meta
monai.handlers.from_engine monai.handlers.ignore_data monai.handlers.stopping_fn_from_metric
monai.handlers.stopping_fn_from_loss monai.utils.set_determinism monai.inferers.sliding_window_inference
monai.engines.default_prepare_batch monai.engines.default_make_latent monai.engines.default_metric_cmp_fn
monai.optimizers.generate_param_groups monai.networks.normalize_transform
torch.device torch.Size torch.manual_seed torch.Generator torch.as_tensor torch.tensor torch.ones torch.zeros
torch.amp.GradScaler torch.cuda.is_available torch.cuda.device_count torch.nn.SyncBatchNorm.convert_sync_batchnorm
"""
METHODS = {
    "torch.nn.Module": ["parameters", "named_parameters", "state_dict", "eval", "train", "cuda", "cpu", "float"],
    "monai.engines.SupervisedTrainer": ["run"], "monai.engines.SupervisedEvaluator": ["run"],
    "monai.engines.EnsembleEvaluator": ["run"], "monai.engines.GanTrainer": ["run"],
    "monai.engines.AdversarialTrainer": ["run"],
}  # fmt: skip
RESNETS = [f"monai.networks.nets.resnet{depth}" for depth in (10, 18, 34, 50, 101, 152, 200)]
# Left out: they look code up by name, reach the network, unpickle, wrap other programs, or are no components.
NOT_INERT = re.compile(
    "MLFlow|ClearML|Trt|TorchVision|TorchIO|CuCIM|NetAdapter|Perceptual|Sam|LMDB|GDS|PersistentDataset|CacheNTrans"
    "|Transchex|MedicalNet|Logger$|Profiler|DiskSaver|FID|Inception|LRFinder|LearningRateFinder|BackboneWith|Hovernet"
    "|HoVer|HoverNet|Hover|get_|ForkingPickler|StateCacher|ThreadContainer|Register|TensorboardLogger|VISTA|CommonObj"
    "|GaussianMixture|ProbMap|TextEnc|NestedTensor|Enum|Exception|Warning|Error|CSV|load_|WSI|NPZ|MethodReplacer"
)
PATH = re.compile("^(output_dir|data_root_dir|save_dir|load_path|log_dir|cache_dir|dirname|mapping_file_path|filename"
                  "|.*_path|.*_dir|folder_path|base_dir|file_prefix|final_filename|filename_prefix|folder|npzfile|src"
                  "|key_metric_filename|save_handler|image_files|seg_files|(value_|count_)?store)$")  # fmt: skip
FETCH = re.compile("^(pretrained.*|weights|progress|.*url.*|.*repo.*)$")
READ = {"load_path", "data_list_file_path", "data_property_file_path", "base_dir", "image_files", "seg_files", "src"}
LOOKUP = {"reader", "writer", "merger_cls"}
RISKY = {"allow_pickle", "weights_only", "pickle_module"}


def mark(name: str, parameter: inspect.Parameter) -> str:
    """What kind of argument it is: empty for a plain value."""
    if name in LOOKUP:
        return "name"
    if name in RISKY:
        return "pickle"
    if name in READ:
        return "read"
    if PATH.match(name) or "PathLike" in str(parameter.annotation):
        return "path"
    if FETCH.match(name) and name not in ("weights", "progress"):
        return "fetch" if parameter.default in (False, None, parameter.empty) else "fetched"
    return "call" if "Callable" in str(parameter.annotation) or name in ("func", "inv_func") else ""


def arguments(component: Any) -> str:
    """The parameters in their order, marked."""
    words: dict[str, str] = {}
    for signature in signatures(component):
        for name, parameter in signature.parameters.items():
            if parameter.kind not in (parameter.VAR_KEYWORD, parameter.VAR_POSITIONAL) and name != "self":
                words.setdefault(name, mark(name, parameter))
        if not any(p.kind is p.VAR_KEYWORD for p in signature.parameters.values()):
            break
    return " ".join(f"{name}={kind}" if kind else name for name, kind in words.items())


def signatures(component: Any) -> list[inspect.Signature]:
    """A class that takes ``**kwargs`` hands them to its parents."""
    if not inspect.isclass(component):
        return [inspect.signature(component)]
    parents = [parent.__init__ for parent in component.__mro__[1:] if "__init__" in vars(parent)]
    return [
        inspect.signature(component),
        *(inspect.signature(start) for start in parents if start is not object.__init__),
    ]


def line(names: list[str], component: Any, extra: str = "") -> str | None:
    """One row of the table."""
    try:
        words = f"{extra} {arguments(component)}".strip()
    except (TypeError, ValueError):
        words = extra
    return f"{' '.join(sorted(names))}: {words}".rstrip()


def is_component(name: str, value: Any) -> bool:
    """A class that a config may make an object of."""
    return (
        inspect.isclass(value)
        and not name.startswith("_")
        and not issubclass(value, (enum.Enum, BaseException))
        and not NOT_INERT.search(name)
        and not NOT_INERT.search(value.__name__)
        and value.__module__.split(".")[0] in ("monai", "torch", "ignite")
    )


def rows() -> list[str]:
    """All rows, sorted."""
    short = short_names()
    found: list[str] = []
    for module_name in CLASSES:
        module = importlib.import_module(module_name)
        groups: dict[Any, list[str]] = {}
        for name, value in vars(module).items():
            if is_component(name, value) and value.__module__.startswith(module_name.split(".")[0]):
                groups.setdefault(value, []).append(name)
        for value, names in groups.items():
            full = {f"{module_name}.{name}" for name in names}
            full |= {f"{value.__module__}.{name}" for name in names if hasattr(sys.modules[value.__module__], name)}
            full |= {name for name in names if short.get(name) == value.__module__}
            found.append(line(sorted(full), value) or "")
    for full_name in FUNCTIONS.split():
        module_name, name = full_name.rsplit(".", 1)
        owner = importlib.import_module(module_name) if "SyncBatch" not in module_name else None
        value = getattr(owner, name) if owner else importlib.import_module("torch").nn.SyncBatchNorm
        names = [full_name] + ([name] if short.get(name) == getattr(value, "__module__", "") else [])
        found.append(line(names, value, "module process_group" if not owner else "") or "")
    for owner_name, methods in METHODS.items():
        module_name, name = owner_name.rsplit(".", 1)
        owner = getattr(importlib.import_module(module_name), name)
        found += [line([f"{owner_name}.{method}"], getattr(owner, method), "self") or "" for method in methods]
    nets = importlib.import_module("monai.networks.nets")
    found += [line([name], nets.ResNet, "pretrained=fetch progress") or "" for name in RESNETS]
    found.append("torch.nn.Module.to: self device dtype non_blocking memory_format")
    return sorted(merged(found))


def merged(found: list[str]) -> set[str]:
    """Rows of the same component, seen from two modules, made one."""
    names: dict[str, str] = {}
    for row in found:
        left, _, right = row.partition(":")
        for name in left.split():
            names.setdefault(name, right)
    groups: dict[tuple[str, str], list[str]] = {}
    for name, right in names.items():
        stem = name.rsplit(".", 1)[-1].removesuffix("Dict").rstrip("dD").lower()
        groups.setdefault((stem, right), []).append(name)
    return {f"{' '.join(sorted(group))}:{right}".rstrip() for (_, right), group in groups.items()}


def short_names() -> dict[str, str]:
    """Names that MONAI finds without a module, with the module it finds them in; ambiguous ones are left out."""
    from monai.bundle import ComponentLocator

    locator = ComponentLocator()
    locator.get_component_module_name("")
    table = locator._components_table or {}
    return {name: modules[0] for name, modules in table.items() if len(modules) == 1}


if __name__ == "__main__":
    import monai
    import torch

    head = f"# Written by scripts/inert_components.py from monai {monai.__version__}, torch {torch.__version__}.\n"
    Path(sys.argv[1]).write_text(head + "\n".join(rows()) + "\n", encoding="utf-8")
