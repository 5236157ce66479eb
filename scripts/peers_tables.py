"""The Markdown tables of bench_inference.py."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from peers_run import Run


def table(head: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """A Markdown table."""
    lines = ["| " + " | ".join(map(str, row)) + " |" for row in [head, ["---"] * len(head), *rows]]
    return "\n".join(lines) + "\n"


def run_cells(run: Run) -> list[str]:
    """The figures that every table has."""
    if run.state != "done":
        return [run.peer, run.state, "", "", "", f"{run.peak / 1e9:.2f}" if run.peak else "", ""]
    times = [f"{value:.1f}" for value in (run.wall, run.seconds, run.network)]
    return [run.peer, *times, str(run.calls), f"{run.peak / 1e9:.2f}", f"{run.own_peak / 1e9:.2f}"]


HEAD = ("peer", "s, all", "s, after imports", "s, network", "calls", "peak GB, with children", "VmHWM GB, itself")


def show(name: str, result: dict[str, Any]) -> str:
    """A case's tables."""
    runs: list[Run] = result["runs"]
    if name == "memory":
        return _show_memory(runs, result["sizes"])
    if name == "small":
        count = result["images"]
        rows = [_picture_cells(run, count) for run in runs if run.seconds]
        extra = table(("peer", "state", "images/s, after imports", "ms network/image", "ms beyond it/image"), rows)
        return table(HEAD, map(run_cells, runs)) + "\n" + extra
    if name == "overhead":
        rows = [
            [r.peer, f"{r.overhead:.1f}", f"{r.network:.1f}", f"{r.overhead / r.network:.1%}"]
            for r in runs
            if r.network
        ]
        return table(("peer", "s beyond the network", "s network", "share"), rows)
    if name == "window":
        plain = result["seconds"]["plain"]
        rows = [[n, f"{s:.3f}", f"{s / plain:.2f}", f"{result['first'][n]:.1f}"] for n, s in result["seconds"].items()]
        return table(("way", "s a window", "of plain PyTorch", "s to prepare, with the first window"), rows)
    if name == "precision":
        rows = [[way, f"{seconds:.1f}"] for way, seconds in result["seconds"].items()]
        return table(("way", "s"), rows) + "\n" + _agreement(result)
    if name == "air":
        first = runs[0].seconds
        rows = [[n, f"{r.seconds / first:.2f}", *run_cells(r)] for n, r in zip(result["names"], runs, strict=True)]
        words = f"{result['windows']:.0%} of all windows hold air alone.\n"
        return "\n".join([words, table(("windows", "of MONAI's time", *HEAD), rows), _agreement(result)])
    return _show_speed(result)


def _agreement(result: dict[str, Any]) -> str:
    rows = [
        [a["where"], a["of"], a["with"], f"{a['equal']:.4%}", f"{a['different_voxels']} ({a['share']:.4%})", _dice(a)]
        for a in result["agreement"]
    ]
    head = ("where", "of", "with", "equal in the union of foregrounds", "voxels that differ", "Dice per class")
    return table(head, rows)


def _show_speed(result: dict[str, Any]) -> str:
    parts = [table(HEAD, map(run_cells, result["runs"])), ratios(result["runs"])]
    further = table(HEAD, map(run_cells, result["spacing"]))
    return "\n".join([*parts, "Other spacing:\n", further, _agreement(result)])


def _show_memory(runs: Sequence[Run], sizes: Sequence[dict[str, Any]]) -> str:
    """Beyond input and labels: less 4 bytes a voxel for the float32 volume and 1 for the label map."""
    rows = []
    for run, size in zip(runs, sizes, strict=True):
        beyond = [f"{(value - 5 * size['voxels']) / 1e9:.2f}" for value in (run.peak, run.allocated)]
        shape = " x ".join(map(str, size["shape"]))
        rows.append([size["classes"], shape, *run_cells(run), f"{run.imports / 1e9:.2f}", *beyond])
    more = ("GB after imports", "peak - volume - labels, GB", "the same without mapped files, GB")
    return table(("classes", "volume", *HEAD, *more), rows)


def _picture_cells(run: Run, count: int) -> list[str]:
    values = (count / run.seconds, 1e3 * run.network / count, 1e3 * run.overhead / count)
    return [run.peer, run.state, *(f"{value:.1f}" for value in values)]


def _dice(row: dict[str, Any]) -> str:
    return ", ".join(f"{value:.4f}" for value in row["dice"].values())


def ratios(runs: Sequence[Run]) -> str:
    """medunet's time after the imports, call by call, over the others' means."""
    seconds: dict[str, list[float]] = {}
    for run in runs:
        if run.state == "done":
            seconds.setdefault(run.peer, []).append(run.seconds)
    calls = seconds.pop("medunet", [])
    words = [
        f"medunet / {peer}: " + ", then ".join(f"{own * len(others) / sum(others):.2f}" for own in calls)
        for peer, others in seconds.items()
        if calls
    ]
    return ("Seconds after imports, " + "; ".join(words) + "\n") if words else ""
