"""The spine on phantoms: a folder becomes a model that segments scans it has not seen, in 3D and in 2D."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import medunet
from medunet.data.phantom import LABELS, write_dataset
from medunet.planning import Budget


@pytest.mark.parametrize("dims", [3, 2])
def test_folder_to_report(tmp_path: Path, dims: int) -> None:
    data = write_dataset(tmp_path / "data", 8, 0, (32, 32, 24), (3.75, 3.75, 5.3))
    unseen = write_dataset(tmp_path / "unseen", 2, 500, (32, 32, 24), (3.75, 3.75, 5.3))
    bundle = tmp_path / "bundle"
    chosen = {"base_channels": 8, "dims": dims, "learning_rate": 0.005, "steps_per_epoch": 30}
    plan = medunet.plan(data, bundle, Budget(epochs=3), chosen)
    assert plan.dims == dims
    scores = json.loads(medunet.train(bundle, 0, {"quiet": True, "device::name": "cpu"})[0].read_text())
    assert scores["summary"]["dice"]["mean"] > 0.3
    results = medunet.predict(bundle, [unseen / "imagesTr"], tmp_path / "out", {"device::name": "cpu"})
    assert [r.state for r in results] == ["done", "done"]
    classes = {name: value for name, value in LABELS.items() if value}
    content = medunet.evaluate(tmp_path / "out", unseen / "labelsTr", tmp_path / "scores.json", classes)
    assert content["classes"]["liver"]["dice"]["mean"] > 0.6
    page = medunet.report(tmp_path / "scores.json").read_text()
    assert page.count("data:image/png") == 6
    assert all(case["image"] for case in content["cases"])
    assert medunet.report(bundle, tmp_path / "bundle.html").is_file()


@pytest.mark.slow
def test_demo_and_command_line(tmp_path: Path) -> None:
    import subprocess
    import sys

    done = subprocess.run(
        [sys.executable, "-m", "medunet", "demo", "-o", str(tmp_path / "demo")],
        capture_output=True,
        text=True,
        check=True,
    )
    assert "5. evaluate and report" in done.stdout
    scores = json.loads((tmp_path / "demo" / "scores.json").read_text())
    assert scores["summary"]["dice"]["mean"] > 0.7
