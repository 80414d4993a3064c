"""Time a training step on a GPU in both precisions, compiled and not: `python jobs/benchmarks/step_on_gpu.py`.

Random weights and windows. Time is the median of the steps after the first two, and memory the most that was allocated
in them; the first step, which compiles, is timed apart.
"""

from __future__ import annotations

import _bootstrap_jobs  # noqa: F401  first: makes the packages importable

import argparse
import json
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import torch
from drawn_windows import make_batch

from reuse_models.training.loss import LossConfig, Teacher
from reuse_models.training.fit import Batch, Fit, FitConfig
from reuse_models.tower.vit import Vit
from reuse_models.tower.known_shapes import KNOWN_SHAPES
from reuse_models.tower.shape import VitShape

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def main(arguments: list[str] | None = None) -> int:
    """Print a line for each way, and write them as JSON."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n", maxsplit=1)[0])
    parser.add_argument("--backbone", default="openai/clip-vit-base-patch16")
    parser.add_argument("--windows", type=int, default=16, help="number of windows per step")
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--precisions", nargs="+", choices=tuple(DTYPES), default=list(DTYPES))
    parser.add_argument("--compiled", nargs="+", choices=("no", "yes"), default=["no", "yes"])
    parser.add_argument("--json", type=Path, help="JSON file for the rows")
    options = parser.parse_args(arguments)
    shape, device = KNOWN_SHAPES[options.backbone], torch.device(options.device)
    rows: list[dict[str, Any]] = []
    for precision in options.precisions:
        for compiled in options.compiled:
            try:
                row = measured(shape, device, DTYPES[precision], compiled == "yes", options)
            except torch.OutOfMemoryError:
                row = {"error": "out of memory"}
            rows.append({"precision": precision, "compiled": compiled, **row})
            print(f"{options.backbone} {options.windows} windows {rows[-1]}", flush=True)
            if options.json is not None:
                options.json.write_text(json.dumps(rows, indent=1) + "\n")
    return 0


def measured(
    shape: VitShape, device: torch.device, dtype: torch.dtype, compiled: bool, options: argparse.Namespace
) -> dict[str, Any]:
    """Return seconds a step and its memory in MiB (0 on a CPU)."""
    on_gpu = device.type == "cuda"
    fit = Fit(Vit.random(shape).to(device, dtype), LossConfig(target_rate=0.9), FitConfig(), compiled=compiled)
    batch = _batch(shape, options.windows, device, dtype)
    if on_gpu:
        torch.cuda.reset_peak_memory_stats()
    seconds = []
    for _ in range(options.steps + 2):
        started = time.perf_counter()
        fit.step(batch)  # reads the loss, and so waits for the device
        seconds.append(time.perf_counter() - started)
    return {
        "first_s": seconds[0],
        "step_s": statistics.median(seconds[2:]),
        "peak_mib": torch.cuda.max_memory_allocated() / 2**20 if on_gpu else 0.0,
        "hardware": torch.cuda.get_device_name() if on_gpu else "CPU",
    }


def _batch(shape: VitShape, windows: int, device: torch.device, dtype: torch.dtype) -> Batch:
    batch = make_batch(shape, windows)
    teacher = Teacher(batch.teacher.embeddings_CFE.to(device))
    return Batch(batch.pixels_CF3HW.to(device, dtype), batch.codec_CF4TPP.to(device), teacher)


if __name__ == "__main__":
    sys.exit(main())
