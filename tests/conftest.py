"""Shared data: real files where MEDUNET_TEST_DATA points to them, phantoms everywhere."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import settings

from medunet.data.phantom import write_dataset

settings.register_profile("medunet", deadline=None)
settings.load_profile("medunet")
TINY = ((24, 24, 16), (5.0, 5.0, 8.0))


@pytest.fixture(autouse=True, scope="session")
def own_folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """What medunet keeps of its user is not touched by tests."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MEDUNET_HOME", str(tmp_path_factory.mktemp("home")))
        yield


@pytest.fixture
def real_data() -> Callable[[str], Path]:
    """``real_data("hippocampus")`` -> folder, or skip saying so."""

    def find(name: str) -> Path:
        root = os.environ.get("MEDUNET_TEST_DATA")
        if not root or not (Path(root) / name).is_dir():
            pytest.skip(f"real data '{name}' is not here (MEDUNET_TEST_DATA)")
        return Path(root) / name

    return find


@pytest.fixture(scope="session")
def phantom_dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six tiny phantoms in MSD layout."""
    return write_dataset(tmp_path_factory.mktemp("phantom") / "data", 6, 0, *TINY)


@pytest.fixture(scope="session")
def planned_bundle(phantom_dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle with a tiny network, not trained. Copy it before changing it."""
    from medunet import verbs
    from medunet.planning import Budget

    bundle = tmp_path_factory.mktemp("planned") / "bundle"
    verbs.plan(phantom_dataset, bundle, Budget(epochs=2), {"base_channels": 4, "max_levels": 3, "steps_per_epoch": 3})
    return bundle


@pytest.fixture(scope="session")
def trained_bundle(planned_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same bundle after six training steps through MONAI's workflow class."""
    import shutil

    from medunet import verbs

    bundle = tmp_path_factory.mktemp("trained") / "bundle"
    shutil.copytree(planned_bundle, bundle)
    verbs.train(bundle, 0, {"quiet": True, "device::name": "cpu"})
    return bundle


@pytest.fixture(scope="session")
def packed_bundle(trained_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The archive of the trained bundle, not signed. Copy it before changing it."""
    from medunet import verbs

    archive = tmp_path_factory.mktemp("packed") / "phantom.zip"
    verbs.pack(trained_bundle, archive)
    return archive
