"""Child of bench_inference.py: `medunet.predict` on files, as anybody calls it."""

from __future__ import annotations

import importlib
import pkgutil
from typing import Any

from peers_child import run_child

_LIBRARIES = ("torch", "nibabel", "monai.bundle", "monai.engines", "monai.inferers", "monai.transforms")
_ROOMS = ("medunet.verbs", "medunet.data", "medunet.networks", "medunet.inference", "medunet.bundle")


def load() -> Any:
    """Imports: medunet imports when it is called, so every module of the rooms that predict is imported here."""
    for name in _LIBRARIES:
        importlib.import_module(name)
    for room in _ROOMS:
        package = importlib.import_module(room)
        for module in pkgutil.iter_modules(getattr(package, "__path__", [])):
            importlib.import_module(f"{room}.{module.name}")
    return importlib.import_module("medunet")


def work(job: dict[str, Any], medunet: Any) -> None:
    """Predict all files in one call; a case that fails ends the run."""
    results = medunet.predict(job["bundle"], job["inputs"], job["output"], job["overrides"], force=True)
    failed = [f"{result.name}: {result.message}" for result in results if result.state != "done"]
    if failed:
        raise SystemExit("\n".join(failed))


if __name__ == "__main__":
    run_child(load, work)
