"""The bundle is plain MONAI: its own command, its property check, its verifiers, no evaluated expressions."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import torch
import yaml

from medunet.bundle import read_plan
from medunet.bundle.running import load_workflow, train_bundle
from medunet.bundle.writer import CONFIGS, _quoted, metadata, template, write_bundle
from medunet.data.volume import read_label
from medunet.errors import BundleError, MedunetError
from medunet.planning import Plan

ENVIRONMENT = {**os.environ, "MONAI_EVAL_EXPR": "0", "OMP_NUM_THREADS": "1"}


def run(*words: str, cwd: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        [sys.executable, *words], cwd=cwd, env=ENVIRONMENT | variables, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-3000:]
    return done


def strings(value: object) -> list[str]:
    if isinstance(value, dict):
        return [text for item in value.values() for text in strings(item)] + [str(key) for key in value]
    if isinstance(value, list):
        return [text for item in value for text in strings(item)]
    return [value] if isinstance(value, str) else []


def test_no_config_has_an_expression(planned_bundle: Path) -> None:
    for path in sorted(planned_bundle.glob("configs/*.yaml")):
        content = yaml.safe_load(path.read_text())
        assert not [text for text in strings(content) if text.startswith(("$", "%"))], path.name


def test_no_expression_is_evaluated_though_monai_is_imported(planned_bundle: Path, tmp_path: Path) -> None:
    bundle, canary = tmp_path / "b", tmp_path / "canary"
    shutil.copytree(planned_bundle, bundle)
    with (bundle / "configs" / "inference.yaml").open("a") as file:
        file.write(f"\nx: $open('{canary}', 'w')\n")
    program = (
        "import sys, monai; from pathlib import Path; from medunet.bundle.running import load_workflow\n"
        "load_workflow(Path(sys.argv[1]), 'inference.yaml', 'infer', {}).parser.get_parsed_content('x')\n"
    )
    environment = {name: value for name, value in os.environ.items() if name != "MONAI_EVAL_EXPR"}
    subprocess.run([sys.executable, "-c", program, str(bundle)], env=environment, capture_output=True, check=True)
    assert not canary.exists()


def test_the_configs_are_the_shipped_texts_but_for_the_dataset_folder(planned_bundle: Path) -> None:
    for name in CONFIGS:
        lines = (planned_bundle / "configs" / name).read_text().splitlines()
        differing = [line for line in zip(lines, template(name).splitlines(), strict=True) if line[0] != line[1]]
        assert all(ours.startswith("dataset_dir:") for ours, _ in differing)


@pytest.mark.parametrize("path", ["/data/Zürich 𝔸 😀", 'C:\\new\\"x"', "/a/\udc80", "/a/\x85\u2028\x7f", "/plain #1"])
def test_any_path_comes_back_from_the_configs(path: str) -> None:
    text = f"dataset_dir: {_quoted(path)}        # the folder\n"
    assert yaml.safe_load(text) == {"dataset_dir": path}
    assert "Zürich" in text or "Zürich" not in path
    text.encode("utf-8")


@pytest.mark.parametrize(("config", "kind"), [("train.yaml", "train"), ("inference.yaml", "infer")])
def test_check_properties_is_empty_and_preprocesses_nothing(
    planned_bundle: Path, tmp_path: Path, config: str, kind: str
) -> None:
    bundle = tmp_path / "b"
    shutil.copytree(planned_bundle, bundle)
    (bundle / "eval" / "index.json").write_text(
        (bundle / "eval" / "index.json").read_text().replace(".nii.gz", ".gone.nii.gz")
    )
    workflow = load_workflow(bundle, config, kind, {})
    assert workflow.check_properties() == []
    assert workflow.network_def is not None
    assert str(workflow.bundle_root) == str(bundle)


def test_monai_verifies_metadata_and_network(planned_bundle: Path, real_data: Callable[[str], Path]) -> None:
    from monai.bundle import verify_net_in_out

    schema = json.loads((real_data("schema") / "meta_schema_20240725.json").read_text())
    jsonschema.validate(json.loads((planned_bundle / "configs" / "metadata.json").read_text()), schema)
    schema_copy = planned_bundle.parent / "schema.json"
    shutil.copy(real_data("schema") / "meta_schema_20240725.json", schema_copy)
    run(
        "-m", "monai.bundle", "verify_metadata", "--meta_file", "configs/metadata.json",
        "--filepath", str(schema_copy), cwd=planned_bundle,
    )  # fmt: skip
    for config in ("train.yaml", "inference.yaml"):
        verify_net_in_out(
            net_id="network_def",
            meta_file=str(planned_bundle / "configs" / "metadata.json"),
            config_file=str(planned_bundle / "configs" / config),
            device="cpu",
        )


def test_monai_trains_and_infers_in_the_folder_elsewhere_and_after_a_move(
    planned_bundle: Path, phantom_dataset: Path, tmp_path: Path
) -> None:
    bundle = tmp_path / "first" / "bundle"
    shutil.copytree(planned_bundle, bundle)
    run(
        "-m", "monai.bundle", "run", "training", "--config_file", "configs/train.yaml",
        "--train::trainer::max_epochs", "1", cwd=bundle,
    )  # fmt: skip
    assert (bundle / "models" / "model.pt").is_file()
    scores = json.loads((bundle / "eval" / "fold_0" / "scores.json").read_text())
    assert 0 <= scores["summary"]["dice"]["mean"] <= 1
    moved = tmp_path / "second" / "moved"
    moved.parent.mkdir()
    bundle.rename(moved)
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    run(
        "-m", "monai.bundle", "run", "--config_file", str(moved / "configs" / "inference.yaml"),
        "--bundle_root", str(moved), "--dataset_dir", str(phantom_dataset / "imagesTr"),
        "--output_dir", str(elsewhere / "out"), cwd=elsewhere,
    )  # fmt: skip
    assert len(list((elsewhere / "out").glob("*.nii.gz"))) == 6
    run(
        "-m", "monai.bundle", "run", "--config_file",
        f"['{moved / 'configs' / 'inference.yaml'}', '{moved / 'configs' / 'evaluate.yaml'}']",
        "--bundle_root", str(moved), cwd=elsewhere,
    )  # fmt: skip
    again = json.loads((moved / "eval" / "evaluation" / "scores.json").read_text())
    assert {c["id"] for c in again["cases"]} == {c["id"] for c in scores["cases"]}


def test_another_case_list_is_trained_on_as_monai_label_gives_it(
    planned_bundle: Path, phantom_dataset: Path, tmp_path: Path
) -> None:
    bundle = Path(shutil.copytree(planned_bundle, tmp_path / "b"))
    names = sorted(path.name for path in (phantom_dataset / "imagesTr").glob("*.nii.gz"))[:2]
    cases = [
        {"image": str(phantom_dataset / "imagesTr" / name), "label": str(phantom_dataset / "labelsTr" / name)}
        for name in names
    ]
    overrides = {"train#dataset#data": cases, "train#trainer#max_epochs": 1, "device::name": "cpu", "quiet": True}
    train_bundle(bundle, overrides)
    assert (bundle / "models" / "model.pt").is_file()
    assert len(list((bundle / "eval" / "store").glob("*.case"))) == 2


def test_a_store_may_lie_elsewhere_and_is_made_only_when_training_starts(planned_bundle: Path, tmp_path: Path) -> None:
    bundle = Path(shutil.copytree(planned_bundle, tmp_path / "b"))
    values = {"store": str(tmp_path / "shared"), "train::trainer::max_epochs": 1, "device::name": "cpu", "quiet": True}
    workflow = load_workflow(bundle, "train.yaml", "train", values)
    assert workflow.check_properties() == []
    assert not (tmp_path / "shared").exists()
    workflow.run()
    assert list((tmp_path / "shared").glob("*.case"))
    assert not (bundle / "eval" / "store").exists()


def test_monai_run_and_medunet_predict_give_the_same_voxels(
    trained_bundle: Path, phantom_dataset: Path, tmp_path: Path
) -> None:
    from medunet import verbs

    images = phantom_dataset / "imagesTr"
    verbs.predict(trained_bundle, [images], tmp_path / "ours", {"device::name": "cpu"})
    workflow = load_workflow(
        trained_bundle, "inference.yaml", "infer",
        {"dataset_dir": str(images), "output_dir": str(tmp_path / "monai"), "device::name": "cpu"},
    )  # fmt: skip
    workflow.run()
    names = sorted(p.name for p in (tmp_path / "ours").glob("*.nii.gz"))
    assert len(names) == 6
    for name in names:
        ours, theirs = read_label(tmp_path / "ours" / name), read_label(tmp_path / "monai" / name)
        assert (ours.array == theirs.array).all()
        assert ours.grid == theirs.grid == read_label(images / name).grid


def test_a_plan_mirrors_in_validation_as_in_prediction(trained_bundle: Path, tmp_path: Path) -> None:
    bundle = Path(shutil.copytree(trained_bundle, tmp_path / "b"))
    path = bundle / "configs" / "metadata.json"
    content = json.loads(path.read_text())
    assert content["plan"]["predict_mirror_axes"] == [], "not unless it is asked for"
    content["plan"]["predict_mirror_axes"] = [0]
    path.write_text(json.dumps(content))

    def inferer(name: str, kind: str, key: str, **overrides: Any) -> Any:
        return load_workflow(bundle, name, kind, {"device::name": "cpu", **overrides}).parser.get_parsed_content(key)

    there = inferer("train.yaml", "train", "validate::inferer", quiet=True)
    here = inferer("inference.yaml", "infer", "inferer", dataset_dir=str(tmp_path))
    off = inferer("inference.yaml", "infer", "inferer", dataset_dir=str(tmp_path), **{"inferer::mirror_axes": []})
    assert (there.mirror_axes, here.mirror_axes, off.mirror_axes) == ((0,), (0,), ())


EFFECTS = {
    "no_average": lambda parts: parts["train::handlers"][1].share == 0,
    "no_clip": lambda parts: parts["train::handlers"][0].clip == 0,
    "no_augmentation": lambda parts: not any(parts["train::augment"].chance[kind] for kind in ("mirror", "gamma")),
    "strong_augmentation": lambda parts: parts["train::augment"].chance["elastic"] == 0.3,
    "long_run": lambda parts: parts["optimizer"].param_groups[0]["lr"] == 0.0016,
    "cosine": lambda parts: (parts["schedule"].decay, parts["train::handlers"][1].share) == ("cosine", 0.03),
    "early_stopping": lambda parts: (parts["validation"].patience, parts["budget"].validations) == (5, 40),
    "augment_on_workers": lambda parts: parts["train::dataloader"]._late is None,
    "channels_last": lambda parts: not parts["network"].get_parameter("encoder.1.0.weight").is_contiguous(),
    "compile": lambda parts: parts["network"]._compiled_call_impl is not None,
}


TOLD: dict[str, dict[str, Any]] = {
    "no_average": {"average_share": 0.0, "decay": "cosine"},
    "cosine": {"average_share": 0.03, "decay": "cosine"},
    "strong_augmentation": {"augmentation": {"rotation": 0.5, "zoom": 0.5, "elastic": 0.3}},
    "long_run": {"augmentation": {"rotation": 0.35, "zoom": 0.35, "elastic": 0.2}},
}
"""What the log of a run says beside the usual."""


@pytest.mark.parametrize("overlay", EFFECTS)
def test_run_overlays_do_what_they_say_and_train_a_step(planned_bundle: Path, overlay: str, tmp_path: Path) -> None:
    bundle = Path(shutil.copytree(planned_bundle, tmp_path / "b"))
    path = Path(__file__).parents[1] / "configs" / "run" / f"{overlay}.yaml"
    values = {"quiet": True, "device::name": "cpu", "train::trainer::max_epochs": 1, **yaml.safe_load(path.read_text())}
    parser = load_workflow(bundle, "train.yaml", "train", values).parser

    class Parts(dict[str, Any]):
        def __missing__(self, key: str) -> Any:
            return parser.get_parsed_content(key)

    assert EFFECTS[overlay](Parts())
    parser.get_parsed_content("train::trainer").run()
    assert torch.load(bundle / "models" / "checkpoint_last.pt", weights_only=True)["iteration"] == 3
    recipe = parser.get_parsed_content("log").rows()[0]["recipe"]
    assert (recipe["optimizer"], recipe["loss"], recipe["weight_decay"]) == ("AdamW", "DiceCE", 0.01)
    usual = {"decay": "constant", "average_share": 0.3} | ({} if overlay == "no_augmentation" else {"augmentation": {}})
    assert recipe | usual | TOLD.get(overlay, {}) == recipe


@pytest.mark.parametrize(
    "overlay", sorted(p.name for p in (Path(__file__).parents[1] / "configs" / "run").glob("*.yaml"))
)
def test_run_overlays_resolve(planned_bundle: Path, overlay: str) -> None:
    from monai.bundle import ConfigParser

    parser = ConfigParser()
    overlays = Path(__file__).parents[1] / "configs" / "run" / overlay
    parser.read_config([str(planned_bundle / "configs" / "train.yaml"), str(overlays)])
    parser.read_meta(str(planned_bundle / "configs" / "metadata.json"))
    parser["bundle_root"] = str(planned_bundle)
    parser["device::name"] = "cpu"
    assert parser.get_parsed_content("optimizer") is not None
    assert parser.get_parsed_content("loss") is not None
    handlers = [type(handler).__name__ for handler in parser.get_parsed_content("train::handlers")]
    assert handlers == ["Guards", "WeightAverage", "InitialWeights", *["Attached"] * 5, "Stopping"]
    others = {"sgd_poly.yaml": "poly", "cosine.yaml": "cosine", "no_average.yaml": "cosine"}
    assert parser.get_parsed_content("schedule").decay == others.get(overlay, "constant")


def in_two_processes(bundle: Path, *words: str, **variables: str) -> None:
    run(
        "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", "-m", "monai.bundle", "run", "training",
        "--config_file", "['configs/train.yaml', 'configs/multi_gpu_train.yaml']", *words, cwd=bundle,
        **variables,
    )  # fmt: skip


def rows_in(bundle: Path) -> list[dict[str, Any]]:
    return [json.loads(row) for row in (bundle / "eval" / "fold_0" / "log.jsonl").read_text().splitlines()]


def losses_in(bundle: Path) -> list[float]:
    return [row["loss"] for row in rows_in(bundle) if row["event"] == "train"]


def test_two_gloo_processes_train_as_one(planned_bundle: Path, trained_bundle: Path, tmp_path: Path) -> None:
    """Half of the patches each: the losses and the weights are those of the process that had all of them."""
    bundle = tmp_path / "bundle"
    shutil.copytree(planned_bundle, bundle)
    together = read_plan(str(bundle))["batch_size"]
    batch, rest = divmod(together, 2)
    assert not rest
    in_two_processes(bundle, *(f"--train::{part}::batch_size={batch}" for part in ("sampler", "dataloader")))
    assert len(losses_in(bundle)) == 2
    for path in (bundle, trained_bundle):
        assert next(row["recipe"] for row in rows_in(path) if "recipe" in row)["patches_a_step"] == together
    assert losses_in(bundle) == pytest.approx(losses_in(trained_bundle), abs=2e-5)
    both = [torch.load(path / "models" / "model.pt", weights_only=True) for path in (bundle, trained_bundle)]
    for key in both[0]:  # but biases, which instance normalisation takes out again: their slopes are rounding alone
        assert key.endswith("bias") or torch.allclose(both[0][key], both[1][key], atol=1e-5), key


def test_two_gloo_processes_keep_to_the_minutes(planned_bundle: Path, tmp_path: Path) -> None:
    """Within an allocation of Slurm (salloc) too, which pytorch-ignite takes its ranks from as soon as it is asked."""
    bundle = tmp_path / "bundle"
    shutil.copytree(planned_bundle, bundle)
    in_two_processes(bundle, "--minutes", "0.1", SLURM_JOB_ID="1")
    assert (bundle / "models" / "model.pt").is_file()
    assert json.loads((bundle / "eval" / "fold_0" / "scores.json").read_text())["cases"]


def test_a_wrong_target_names_file_line_and_target(planned_bundle: Path, tmp_path: Path) -> None:
    bundle = tmp_path / "bundle"
    shutil.copytree(planned_bundle, bundle)
    config = bundle / "configs" / "train.yaml"
    config.write_text(config.read_text().replace("torch.optim.AdamW", "torch.optim.AdamWW"))
    with pytest.raises(BundleError, match=r"train\.yaml line \d+: _target_ 'torch\.optim\.AdamWW' does not exist"):
        train_bundle(bundle, {})


def test_an_unknown_override_is_refused(planned_bundle: Path) -> None:
    with pytest.raises(BundleError, match="has no key 'optimiser'"):
        train_bundle(planned_bundle, {"optimiser::lr": 1})


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("optimizer", {"lr": 0.001}, "it is a component: give its values one by one, such as --set optimizer::lr="),
        (
            "optimizer::lr",
            "abc",
            "(from --set or an overlay) is abc; in the file it is 0.002: give a number",
        ),
        ("optimizer::lr", "$1/1000", "medunet evaluates no expressions: give the value itself"),
        ("seed", "hello", "in the file it is 0: give a number"),
        ("quiet", "maybe", "in the file it is false: give true or false"),
        ("plan::batch_size", 1, "prediction takes this from the plan, which is changed with medunet plan ... --set"),
        (
            "frame::spacing",
            [1, 1, 1],
            "prediction takes this from the plan, which is changed with medunet plan ... --set",
        ),
        ("_meta_::plan::spacing", [1, 1, 1], "prediction takes this from the plan, which is changed with medunet plan"),
        ("loss", "DiceFocal", "it is a component: give its values one by one, such as --set loss::classes=..., or an"),
        ("optimizer", 3, "it is a component: give its values one by one, such as --set optimizer::params=..., or an"),
        (
            "train::batch_size",
            8,
            "has no key 'train::batch_size' (from --set or an overlay); 'train' has preprocessing, ",
        ),
        ("validate#overlap", 0.25, "has no key 'validate#overlap' (from --set or an overlay); 'validate' has preproc"),
        ("train::dataloader::batch_size", 3, "train::dataloader::batch_size 3; give both the same number"),
        ("fold", 9, "fold is 9; give 0 to 4"),
        ("validate::inferer::mirror_axes", [5], "mirror_axes is [5]; give spatial axes, some of [0, 1, 2]"),
    ],
)
def test_a_value_that_cannot_be_meant_is_refused(
    trained_bundle: Path, tmp_path: Path, key: str, value: Any, words: str
) -> None:
    bundle = Path(shutil.copytree(trained_bundle, tmp_path / "b"))
    before = {path: path.read_bytes() for path in bundle.rglob("*") if path.is_file()}
    with pytest.raises(MedunetError, match=re.escape(words)):
        train_bundle(bundle, {"quiet": True, "device::name": "cpu", key: value})
    assert {path: path.read_bytes() for path in bundle.rglob("*") if path.is_file()} == before


def test_epochs_that_are_given_hold_whatever_minutes_the_plan_has(planned_bundle: Path, tmp_path: Path) -> None:
    bundle = Path(shutil.copytree(planned_bundle, tmp_path / "b"))
    path = bundle / "configs" / "metadata.json"
    content = json.loads(path.read_text())
    content["plan"]["minutes"] = 60
    path.write_text(json.dumps(content))
    train_bundle(bundle, {"quiet": True, "device::name": "cpu", "train#trainer#max_epochs": 1})
    start = next(row for row in rows_in(bundle) if row["event"] == "start")
    assert (start["epochs"], start["steps"]) == (1, content["plan"]["steps_per_epoch"])


def test_plan_survives_the_bundle(planned_bundle: Path) -> None:
    block = read_plan(str(planned_bundle))
    network = {key: value for key, value in block["network"].items() if key != "_target_"}
    derived = ("window", "border")  # what the configs need and the plan implies
    plan = Plan.from_json({k: v for k, v in {**block, "network": network}.items() if k not in derived})
    assert metadata(plan)["plan"] == block


def test_a_bundle_with_weights_of_another_network_is_not_overwritten(
    trained_bundle: Path, phantom_dataset: Path, tmp_path: Path
) -> None:
    from medunet import verbs
    from medunet.planning import Budget

    bundle = tmp_path / "bundle"
    shutil.copytree(trained_bundle, bundle)
    before = (bundle / "configs" / "metadata.json").read_bytes()
    with pytest.raises(BundleError, match="has weights of another network"):
        verbs.plan(phantom_dataset, bundle, Budget(), {"base_channels": 5})
    assert (bundle / "configs" / "metadata.json").read_bytes() == before
    same = {"base_channels": 4, "max_levels": 3, "steps_per_epoch": 3}
    verbs.plan(phantom_dataset, bundle, Budget(epochs=9), same)  # what they see and say is as it was
    assert (bundle / "configs" / "metadata.json").read_bytes() != before


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("spacing", (1.0, 1.0, 1.0)),
        ("normalization", ({"scheme": "zscore"}, {"scheme": "zscore"})),
        ("orientation", "LPS"),
        ("labels", {"background": 0, "b": 1, "a": 2}),
        ("regions", {"b": [2], "a": [1]}),
        ("channels", ("T1", "T2")),
        ("ignore", 7),
    ],
)
def test_a_bundle_with_weights_that_see_or_say_something_else_is_not_overwritten(
    trained_bundle: Path, tmp_path: Path, key: str, value: Any
) -> None:
    """Prediction would normalise as the new plan says and name what the old one meant, without a word."""
    bundle = Path(shutil.copytree(trained_bundle, tmp_path / "b"))
    path = bundle / "configs" / "metadata.json"
    content = json.loads(path.read_text())
    content["plan"] |= {"labels": {"background": 0, "a": 1, "b": 2}, "regions": {"a": [1], "b": [2]}}
    path.write_text(json.dumps(content))
    derived = ("window", "margin", "border")
    network = {name: setting for name, setting in content["plan"]["network"].items() if name != "_target_"}
    plan = Plan.from_json({k: v for k, v in {**content["plan"], "network": network}.items() if k not in derived})
    before = path.read_bytes()
    nothing: Any = None
    with pytest.raises(BundleError, match=rf"has weights of another {key} \(models/model\.pt\); choose another"):
        write_bundle(replace(plan, **{key: value}), nothing, nothing, bundle)
    assert path.read_bytes() == before


def test_not_a_bundle(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="is missing, this is not a bundle"):
        read_plan(str(tmp_path))
