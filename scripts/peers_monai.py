"""Child of bench_inference.py: MONAI's own transforms and sliding windows, as a user writes them down."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from peers_child import build_network, run_child


def load() -> Any:
    """Imports."""
    import numpy
    import torch
    from monai import data, inferers, transforms

    return SimpleNamespace(np=numpy, torch=torch, data=data, inferers=inferers, t=transforms)


def work(job: dict[str, Any], lib: Any) -> None:
    """Load, orient, resample, normalise, infer, invert, argmax, save."""
    plan, t = job["plan"], lib.t
    scheme = plan["normalization"][0]
    low, high, mean, std = (scheme[key] for key in ("low", "high", "mean", "std"))
    preprocessing = t.Compose(
        [
            t.LoadImaged("image"),
            t.EnsureChannelFirstd("image"),
            t.Orientationd("image", axcodes=plan["orientation"], labels=None),
            t.Spacingd("image", pixdim=plan["spacing"], mode="bilinear"),
            t.ScaleIntensityRanged("image", low, high, (low - mean) / std, (high - mean) / std, clip=True),
        ]
    )
    invert = t.Invertd("pred", transform=preprocessing, orig_keys="image", nearest_interp=False, to_tensor=True)
    save = t.SaveImaged(
        "pred", output_dir=job["output"], output_postfix="", output_dtype=lib.np.uint8, separate_folder=False,
        resample=False, print_log=False,
    )  # fmt: skip
    softmax = [t.Activationsd("pred", softmax=True)] if job.get("softmax") else []
    postprocessing = t.Compose([*softmax, invert, t.AsDiscreted("pred", argmax=True), save])
    inferer = lib.inferers.SlidingWindowInferer(
        roi_size=plan["patch_size"], sw_batch_size=1, overlap=plan["overlap"], mode="gaussian"
    )
    network, _ = build_network(job)
    dataset = lib.data.Dataset([{"image": path} for path in job["inputs"]], preprocessing)
    with lib.torch.inference_mode():
        for batch in lib.data.DataLoader(dataset, batch_size=1):
            batch["pred"] = inferer(batch["image"], network)
            for item in lib.data.decollate_batch(batch):
                postprocessing(item)


if __name__ == "__main__":
    run_child(load, work)
