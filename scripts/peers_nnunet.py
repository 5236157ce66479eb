"""Child of bench_inference.py: nnU-Net's predictor, file to file, with our network and a plan made in memory.

Runs in nnU-Net's own environment; medunet.networks needs torch alone. Its workers start anew and import again: that
belongs to its time from file to file.
"""

from __future__ import annotations

import os
from types import SimpleNamespace
from typing import Any

from peers_child import build_network, run_child


def load() -> Any:
    """Imports; nnU-Net's threads are told how many cores there are (its default is 8)."""
    os.environ.setdefault("nnUNet_def_n_proc", str(os.cpu_count()))
    for name in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results"):
        os.environ.setdefault(name, os.devnull)
    import torch
    from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
    from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

    return SimpleNamespace(torch=torch, predictor=nnUNetPredictor, plans=PlansManager)


def work(job: dict[str, Any], lib: Any) -> None:
    """Predict all files in one call."""
    pictures = job["inputs"][0].endswith(".png")
    ending = ".png" if pictures else ".nii.gz"
    plans = lib.plans(make_plans(job["plan"], pictures))
    network, state = build_network(job)
    predictor = lib.predictor(
        tile_step_size=1 - job["plan"]["overlap"], use_gaussian=True, use_mirroring=False,
        perform_everything_on_device=False, device=lib.torch.device("cpu"), allow_tqdm=False,
    )  # fmt: skip
    predictor.manual_initialization(
        network, plans, plans.get_configuration("only"), [state], dataset_facts(job["plan"], ending), "none", None
    )
    names = [os.path.basename(path).removesuffix(ending) for path in job["inputs"]]
    predictor.predict_from_files(
        [[path] for path in job["inputs"]],
        [os.path.join(job["output"], name) for name in names],
        num_processes_preprocessing=1,
        num_processes_segmentation_export=1,
    )


def make_plans(plan: dict[str, Any], pictures: bool) -> dict[str, Any]:
    """nnU-Net's plans with our numbers; its (z, y, x) arrays are transposed, so that the network sees our axes."""
    forward = [0, 2, 1] if pictures else [2, 1, 0]
    spacing = plan["spacing"][:2] if pictures else plan["spacing"]
    scheme = plan["normalization"][0]
    intensity = {
        "mean": scheme["mean"], "std": scheme["std"],
        "percentile_00_5": scheme["low"], "percentile_99_5": scheme["high"],
    }  # fmt: skip
    resampling = {"is_seg": False, "order": 3, "order_z": 0, "force_separate_z": None}
    configuration = {
        "data_identifier": "only",
        "preprocessor_name": "DefaultPreprocessor",
        "batch_size": 2,
        "patch_size": plan["patch_size"],
        "spacing": spacing,
        "normalization_schemes": ["CTNormalization"],
        "use_mask_for_norm": [False],
        "resampling_fn_data": "resample_data_or_seg_to_shape",
        "resampling_fn_data_kwargs": resampling,
        "resampling_fn_seg": "resample_data_or_seg_to_shape",
        "resampling_fn_seg_kwargs": {**resampling, "is_seg": True, "order": 1},
        "resampling_fn_probabilities": "resample_data_or_seg_to_shape",
        "resampling_fn_probabilities_kwargs": {**resampling, "order": 1},
        "architecture": {"network_class_name": "ours", "arch_kwargs": {}, "_kw_requires_import": []},
        "batch_dice": False,
    }
    return {
        "dataset_name": "Dataset001_Bodies",
        "plans_name": "ours",
        "image_reader_writer": "NaturalImage2DIO" if pictures else "SimpleITKIO",
        "transpose_forward": forward,
        "transpose_backward": forward,
        "configurations": {"only": configuration},
        "label_manager": "LabelManager",
        "experiment_planner_used": "ExperimentPlanner",
        "foreground_intensity_properties_per_channel": {"0": intensity},
    }


def dataset_facts(plan: dict[str, Any], ending: str) -> dict[str, Any]:
    """The dataset.json that belongs to the plan."""
    labels = {"background" if number == 0 else name: number for number, name in enumerate(plan["labels"])}
    return {"channel_names": {"0": "CT"}, "labels": labels, "file_ending": ending}


if __name__ == "__main__":
    run_child(load, work)
