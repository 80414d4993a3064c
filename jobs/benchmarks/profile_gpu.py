"""Show where the time of one ReuseViT call goes on a GPU: `python jobs/benchmarks/profile_gpu.py --streams 16`.

Prints the wall clock of a call, how long the GPU was busy in it, the longest kernels by name, and where the host spends
its time. Reuse is forced to a rate on random weights, as in speed.py.
"""

from __future__ import annotations

import _bootstrap_jobs  # noqa: F401  first: makes the packages importable

import argparse
import json
import statistics
import sys
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import speed
import torch
from torch._C._autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

from reuse_models.reusevit.method import ReuseVitConfig
from reuse_models.tower.vit import Vit
from reuse_models.tower.known_shapes import KNOWN_SHAPES


def main(arguments: list[str] | None = None) -> int:
    """Profile one setting."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n", maxsplit=1)[0])
    parser.add_argument("--calls", type=int, default=10)
    parser.add_argument("--rows", type=int, default=40)
    return measure_on_gpu("profile", parser, arguments, profiled, text_of)


def measure_on_gpu(
    subject: str,
    parser: argparse.ArgumentParser,
    arguments: list[str] | None,
    measure: Callable[[argparse.Namespace], dict[str, Any]],
    text: Callable[[dict[str, Any], argparse.Namespace], str],
) -> int:
    """Measure one setting, print the text of what was found and write it as JSON; return the exit status."""
    parser.add_argument("--backbone", default="openai/clip-vit-large-patch14")
    parser.add_argument("--streams", type=int, default=16, help="number of videos in lockstep")
    parser.add_argument("--reuse-rate", type=float, default=0.85, help="forced reuse rate, 0..1")
    parser.add_argument("--json", type=Path, help="JSON file for the results")
    options = parser.parse_args(arguments)
    if not torch.cuda.is_available():
        print(f"{subject}: got no GPU, expected one; run it where torch.cuda.is_available()", file=sys.stderr)
        return 1
    with torch.inference_mode():
        found = measure(options)
    print(text(found, options))
    if options.json is not None:
        options.json.write_text(json.dumps(found, indent=1) + "\n")
    return 0


def profiled(options: argparse.Namespace) -> dict[str, Any]:
    """Return times in ms of one call: wall, busy, and kernels by name with their number."""
    vit = Vit.random(KNOWN_SHAPES[options.backbone]).to("cuda", torch.bfloat16)
    first, chunk = speed.make_chunks(vit, options.streams)
    config = ReuseVitConfig(forced_rate=options.reuse_rate, forced_choice="random")
    setting = speed.start_setting(config, options.reuse_rate, vit, first, chunk)
    walls = [1e3 * speed.seconds_of(setting.step, vit) for _ in range(options.calls)]
    with profile(activities=[ProfilerActivity.CUDA, ProfilerActivity.CPU]) as seen:
        setting.step()
        torch.cuda.synchronize()
    kernels: dict[str, list[float]] = defaultdict(list)
    spans = []
    for event in seen.events():
        if event.device_type == DeviceType.CUDA:
            kernels[event.name].append(event.time_range.elapsed_us() / 1e3)
            spans.append((event.time_range.start, event.time_range.end))
    host = sorted(
        (
            (one.self_cpu_time_total / 1e3, one.count, one.key)
            for one in seen.key_averages()
            if one.self_cpu_time_total > 0
        ),
        reverse=True,
    )
    busy, end = 0.0, 0.0
    for begin, stop in sorted(spans):
        busy += max(0.0, stop - max(begin, end))
        end = max(end, stop)
    return {
        "backbone": options.backbone,
        "streams": options.streams,
        "reuse_rate": options.reuse_rate,
        "hardware": torch.cuda.get_device_name(),
        "wall_ms": statistics.median(walls),
        "busy_ms": busy / 1e3,
        "frames": setting.num_frames,
        "kernels": sorted(((sum(ms), len(ms), name) for name, ms in kernels.items()), reverse=True),
        "host": host[:30],
    }


def text_of(found: dict[str, Any], options: argparse.Namespace) -> str:
    """Return the table."""
    lines = [
        f"{found['backbone']}, {found['streams']} streams, {found['reuse_rate']:.0%} reused, {found['hardware']}: "
        f"a call of {found['frames']} frames takes {found['wall_ms']:.2f} ms, the GPU is busy {found['busy_ms']:.2f} ms"
    ]
    lines += [f"{ms:9.3f} ms {count:5} x  {name[:110]}" for ms, count, name in found["kernels"][: options.rows]]
    lines += ["host"]
    lines += [f"{ms:9.3f} ms {count:5} x  {name[:110]}" for ms, count, name in found["host"][:15]]
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
