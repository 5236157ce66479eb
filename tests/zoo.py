"""Two bundles in the style of the Model Zoo, with two dozen expressions each and what they are."""

from __future__ import annotations

import json
from pathlib import Path

# place in the config -> (expression, class)
TRAIN = {
    "imports::0": ("$import glob", "note"),
    "imports::1": ("$import os", "note"),
    "ckpt_dir": ("$@bundle_root + '/models'", "note"),
    "output_dir": ("$@bundle_root + '/eval'", "note"),
    "images": ("$list(sorted(glob.glob(@dataset_dir + '/imagesTr/*.nii.gz')))", "note"),
    "labels": ("$list(sorted(glob.glob(@dataset_dir + '/labelsTr/*.nii.gz')))", "note"),
    "device": ("$torch.device('cuda:0' if torch.cuda.is_available() else 'cpu')", "note"),
    "network": ("$@network_def.to(@device)", "note"),
    "optimizer::params": ("$@network.parameters()", "note"),
    "max_epochs": ("$max(1, int(100 * @scale))", "note"),
    "pairs": ("$[{'image': i, 'label': l} for i, l in zip(@images, @labels)]", "note"),
    "train::data": ("$@pairs[:-9]", "note"),
    "validate::data": ("$@pairs[-9:]", "note"),
    "train::postprocess": ("$monai.handlers.from_engine(['pred', 'label'])", "note"),
    "train::key": ("$monai.handlers.from_engine('loss', first=True)", "note"),
    "shape": ("$[@size, @size, @size // 2]", "note"),
    "roi": ("$tuple(s * 2 for s in @shape)", "note"),
    "name": ('$f"run_{@size}"', "note"),
    "last": ("$os.path.join(@ckpt_dir, 'last.pt')", "note"),
    "exists": ("$os.path.exists(@last)", "note"),
    "split": ("$int(len(@images) * 0.8)", "note"),
    "dtype": ("$torch.float32", "note"),
    "sorter": ("$sorted(@images, key=lambda p: os.path.basename(p))", "note"),
    "initialize::0": ("$monai.utils.set_determinism(seed=123)", "note"),
    "run::0": ("$@train#trainer.run()", "note"),
    "rank": ("$torch.distributed.is_available() and torch.distributed.get_rank() > 0", "note"),
}
INFERENCE = {
    **{key: TRAIN[key] for key in ("imports::0", "imports::1", "output_dir", "device", "network", "images", "shape")},
    "imports::2": ("$import scripts", "code"),
    "imports::3": ("$from scripts.extra import helper", "code"),
    "checkpoint": ("$@bundle_root + '/models/model.pt'", "note"),
    "data": ("$[{'image': i} for i in @images]", "note"),
    "pre": ("$scripts.prepare.make(@device)", "code"),
    "post": ("$helper(@shape)", "code"),
    "handler": ("$lambda x: scripts.prepare.keep(x)", "code"),
    "evaluating::0": ("$@evaluator.run()", "note"),
    "evaluating::1": ("$@evaluator.do_something_else()", "code"),
    "sitk": ("$SimpleITK.ReadImage('x')", "code"),
    "third": ("$torchvision.models.resnet18()", "code"),
    "sum": ("$np.mean(@shape)", "note"),
    "private": ("$@network._modules", "code"),
    "classes": ("$len(@labels) + 1", "note"),
    "text": ("$'a' + str(@size)", "note"),
    "flag": ("$not @exists", "note"),
    "mapping": ("$dict(a=1, b=@size)", "note"),
    "either": ("$@size if @size > 3 else 3", "note"),
}
_BASE = {
    "bundle_root": ".", "dataset_dir": "/workspace/data", "size": 96, "scale": 1.0,
    "network_def": {"_target_": "UNet", "spatial_dims": 3, "in_channels": 1, "out_channels": 2,
                    "channels": [16, 32], "strides": [2], "norm": "batch"},
    "optimizer": {"_target_": "torch.optim.Adam", "lr": 0.001},
    "loss": {"_target_": "DiceCELoss", "to_onehot_y": True, "softmax": True},
    "preprocessing": {"_target_": "Compose", "transforms": [
        {"_target_": "LoadImaged", "keys": ["image", "label"], "reader": "ITKReader"},
        {"_target_": "EnsureChannelFirstd", "keys": "image"},
        {"_target_": "Orientationd", "keys": "image", "axcodes": "RAS"},
        {"_target_": "Spacingd", "keys": "image", "pixdim": [1.5, 1.5, 2.0], "mode": "bilinear"},
        {"_target_": "ScaleIntensityRanged", "keys": "image", "a_min": -57, "a_max": 164, "b_min": 0, "b_max": 1,
         "clip": True}]},
    "dataset": {"_target_": "CacheDataset", "data": "@pairs", "transform": "@preprocessing", "cache_rate": 1.0},
    "dataloader": {"_target_": "DataLoader", "dataset": "@dataset", "batch_size": 2, "shuffle": True, "num_workers": 4},
    "inferer": {"_target_": "SlidingWindowInferer", "roi_size": [96, 96, 96], "sw_batch_size": 4, "overlap": 0.5},
    "handlers": [
        {"_target_": "CheckpointLoader", "_disabled_": "$not os.path.exists(@last)", "load_path": "@last",
         "load_dict": {"model": "@network"}},
        {"_target_": "StatsHandler", "iteration_log": False},
        {"_target_": "CheckpointSaver", "save_dir": "@ckpt_dir", "save_dict": {"model": "@network"}}],
}  # fmt: skip


def write_zoo(root: Path, expressions: dict[str, tuple[str, str]], name: str) -> Path:
    """A bundle whose ``configs/NAME.json`` holds the expressions at their places."""
    content: dict[str, object] = json.loads(json.dumps(_BASE))
    for place, (expression, _) in expressions.items():
        parts = place.split("::")
        here: dict[str, object] = content
        if parts[-1].isdigit():
            values = here.setdefault(parts[0], [])
            assert isinstance(values, list)
            values.append(expression)
            continue
        for part in parts[:-1]:
            below = here.setdefault(part, {})
            assert isinstance(below, dict)
            here = below
        here[parts[-1]] = expression
    (root / "configs").mkdir(parents=True)
    (root / "configs" / f"{name}.json").write_text(json.dumps(content, indent=2))
    (root / "configs" / "metadata.json").write_text(json.dumps({"version": "0.1.0", "task": "spleen (CT)"}))
    (root / "docs").mkdir()
    (root / "docs" / "README.md").write_text("# A bundle\nCosts $5.\n")
    (root / "LICENSE").write_text("Apache\n")
    return root
