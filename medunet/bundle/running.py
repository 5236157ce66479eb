"""Run a bundle through MONAI's own workflow class, with errors that say which file and key."""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from medunet.data.atomic import is_disk_full
from medunet.errors import BundleError, DiskFullError, MedunetError, ResourceError, root_cause

_NO_EVAL = "MONAI_EVAL_EXPR"
_PLANNED = ("plan", "frame", "network_def", "_meta_")
_EPOCHS = "train::trainer::max_epochs"


def train_bundle(bundle: Path, overrides: Mapping[str, Any], begun: Callable[[], object] = lambda: None) -> None:
    """The same run as ``python -m monai.bundle run training --config_file configs/train.yaml``.

    `begun` is called when nothing refuses the run any more and its cases are stored, before the first step.

    Raises:
        MedunetError: with one sentence, whatever went wrong.
    """
    from medunet.training.events import on_prepared

    with explained(bundle / "configs" / "train.yaml"):
        workflow = load_workflow(bundle, "train.yaml", "train", _with_duration(overrides))
        on_prepared(workflow.parser.get_parsed_content("train::trainer"), lambda engine: begun())
        workflow.run()
        workflow.finalize()


def _with_duration(overrides: Mapping[str, Any]) -> dict[str, Any]:
    """Epochs that are given by themselves hold; the plan's minutes would decide otherwise."""
    keys = {key.replace("#", "::") for key in overrides}
    return {**overrides, **({"minutes": None} if _EPOCHS in keys and "minutes" not in keys else {})}


def load_workflow(bundle: Path, config: str, kind: str, overrides: Mapping[str, Any]) -> Any:
    """An initialised `monai.bundle.ConfigWorkflow` that evaluates no expressions.

    Raises:
        BundleError: the config is missing or is not valid YAML.
    """
    path = bundle / "configs" / config
    if not path.is_file():
        raise BundleError(f"{path}: is missing, this is not a bundle; write one with medunet plan")
    forbid_expressions()
    from monai.bundle import ConfigWorkflow

    for name in ("ignite", "monai.bundle.workflows"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    workflow = ConfigWorkflow(
        config_file=str(path),
        meta_file=str(path.parent / "metadata.json"),
        logging_file=False,
        workflow_type=kind,
        bundle_root=str(bundle),
    )
    _override(workflow.parser, overrides, path)
    workflow.initialize()
    return workflow


def forbid_expressions() -> None:
    """Let MONAI evaluate no expression of a config, also where it was imported before: it reads the variable once."""
    os.environ.setdefault(_NO_EVAL, "0")
    from monai.bundle import ConfigExpression

    ConfigExpression.run_eval = os.environ[_NO_EVAL] != "0"


def _override(parser: Any, overrides: Mapping[str, Any], path: Path) -> None:
    for key, value in overrides.items():
        first = key.replace("#", "::").split("::")[0]
        if first not in parser:
            raise BundleError(
                f"{path}: has no key '{first}' (from --set {key}=... or an overlay); take a key that stands in the file"
            )
        if (missing := _unknown(parser, key)) is not None:
            raise BundleError(f"{path}: has no key '{key}' (from --set or an overlay); {missing}")
        if (wrong := _wrong(parser, first, key, value)) is not None:
            raise BundleError(f"{path}: {key} (from --set or an overlay) is {value}; {wrong}")
        try:
            parser[key] = value
        except (KeyError, IndexError, TypeError, ValueError) as error:
            raise BundleError(
                f"{path}: key '{key}' cannot be set ({error}); take a key that stands in the file"
            ) from error


def _wrong(parser: Any, first: str, key: str, value: Any) -> str | None:
    """What to do about a value that cannot be meant; None where it may be."""
    if isinstance(value, str) and value.startswith("$"):
        return "medunet evaluates no expressions: give the value itself"
    if first in _PLANNED:
        return "prediction takes this from the plan, which is changed with medunet plan ... --set"
    now = _present(parser, key)
    if isinstance(now, Mapping) and "_target_" in now and not _may_stand_for_it(value, key == first):
        own = value if isinstance(value, Mapping) else [name for name in now if name != "_target_"]
        return (
            f"it is a component: give its values one by one, such as --set {key}::{next(iter(own), 'key')}=..., or "
            f"another component in an overlay (--config)"
        )
    if isinstance(value, str) and not value.startswith("@"):
        if isinstance(now, bool):
            return f"in the file it is {str(now).lower()}: give true or false"
        if isinstance(now, int | float):
            return f"in the file it is {now}: give a number"
    return None


def _may_stand_for_it(value: Any, whole: bool) -> bool:
    """Another component, a reference, or none; where it is an argument also what it makes, such as a list of cases."""
    if isinstance(value, Mapping):
        return "_target_" in value
    if isinstance(value, str):
        return value.startswith("@")
    return value is None or not whole


def _unknown(parser: Any, key: str) -> str | None:
    """What there is where a key has no place; None where it has one. Components may be given further values."""
    node: Any = parser.config
    path: list[str] = []
    for part in key.replace("#", "::").split("::"):
        if not isinstance(node, Mapping) or "_target_" in node:
            return None
        if part not in node:
            return f"'{'::'.join(path)}' has {', '.join(map(str, node))}" if path else None
        node = node[part]
        path.append(part)
    return None


def _present(parser: Any, key: str) -> Any:
    """What stands at a key, or where it refers to; None where nothing does."""
    for _ in range(3):
        try:
            value = parser[key]
        except (KeyError, IndexError, TypeError, ValueError):
            return None
        if not (isinstance(value, str) and value.startswith("@")):
            return value
        key = value[1:]
    return None


@contextmanager
def explained(config: Path) -> Iterator[None]:
    """Turn whatever goes wrong inside into a medunet error with one sentence that names `config`."""
    try:
        yield
    except KeyboardInterrupt:
        raise
    except Exception as error:
        cause = root_cause(error)
        if isinstance(cause, DiskFullError):
            cause = _told_to_go_on(config, cause)
        if cause is error and isinstance(cause, MedunetError):
            raise
        if isinstance(cause, MedunetError):
            raise cause from error
        raise _sentence(config, error, cause) from error


def _told_to_go_on(config: Path, error: DiskFullError) -> DiskFullError:
    """A run that has begun goes on with ``--resume``: the same command again would remove its checkpoint.

    What it writes beside its store, it writes after that.
    """
    root, place = config.parents[1].resolve(), Path(error.place).resolve()
    begun = any(place.is_relative_to(root / name) for name in ("models", "eval"))
    if config.name != "train.yaml" or not begun or place.is_relative_to(root / "eval" / "store"):
        return error
    return DiskFullError(str(error).replace("run again", "train on with --resume"), error.place)


def _sentence(config: Path, error: Exception, cause: BaseException) -> MedunetError:
    from medunet.inference.windows import is_out_of_memory

    if is_disk_full(cause) or is_disk_full(error):
        return ResourceError(
            f"{config.parents[1]}: the disk is full ({cause}); free some space and train on with --resume"
        )
    if is_out_of_memory(cause) or is_out_of_memory(error):
        return ResourceError(
            f"{config}: the run does not fit the memory; plan again with less (medunet plan ... --memory 4GB)"
        )
    text = " ".join(str(error).split())
    missing = re.search(r"[Cc]annot locate (?:component|class or function path)[^']*'([\w.]+)'", f"{text} {cause}")
    if missing:
        where = _line_of(config, missing[1])
        return BundleError(f"{where}: _target_ '{missing[1]}' does not exist; correct the name")
    return BundleError(f"{config}: {type(cause).__name__}: {' '.join(str(cause).split())[:300]} (--debug shows where)")


def _line_of(config: Path, name: str) -> str:
    """``file:line (key)`` of a ``_target_``, looked up in the config and the metadata beside it."""
    for path in (config, config.parent / "metadata.json"):
        lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
        for number, line in enumerate(lines):
            if name in line and "_target_" in line:
                return f"{path} line {number + 1}"
    return str(config)
