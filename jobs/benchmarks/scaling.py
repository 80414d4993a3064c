"""Compute docs/scaling.md: `python jobs/benchmarks/scaling.py [name=value ...]` prints its tables, with your inputs.

Every input has a value, a unit and where it is from; every output follows from them in `compute`.
"""

import _bootstrap_jobs  # noqa: F401

import argparse
import math
import re
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

SIZES_H = (1_000, 100_000, 1_000_000)
"""Hours of video."""
MEASURED_FRAMES = 24
"""Of each of the clips with which memory was measured."""


@dataclass(frozen=True, slots=True)
class Input:
    """One number that the page is computed from."""

    value: float
    unit: str
    source: str


PAGE = "docs/benchmarks/2026-11-29_cpu2_bf16.md"
MEASURED, ASSUMED, PRICE = "measured", "assumed", "assumed list price of 2026-11, us-west-2, not looked up"
INPUTS = {
    "clip_s": Input(40, "s", f"{ASSUMED}: about the mean of NExT-QA's clips"),
    "fps": Input(2, "frames a second", "the recipes' frame rate"),
    "segments_a_batch": Input(8, "segments", "`embed.streams`"),
    "transcode_ms": Input(30, "core ms a second of video", f"{MEASURED}, docs/cluster.md"),
    "decode_ms": Input(0.93, "core ms a frame", f"{MEASURED}: `python jobs/benchmarks/decode.py --frame-px 224`"),
    "dense_fps": Input(2.30, "frames a second on 2 cores", f"{MEASURED}: ViT-L/14 in bfloat16, {PAGE}"),
    "reuse_speedup": Input(4.02, "times", f"{MEASURED}: ViT-L/14 at 90 % reuse, the same"),
    "driver_ms": Input(
        6.2, "core ms a clip", f"{MEASURED}: the driver, both stages, `python jobs/benchmarks/overhead.py`"
    ),
    "plan_s": Input(9.8, "core s a million clips", f"{MEASURED}: three settings, `python jobs/benchmarks/overhead.py`"),
    "plan_mib": Input(1195, "MiB a million clips", f"{MEASURED}: the same"),
    "score_ms": Input(
        0.042, "core ms a frame and setting", f"{MEASURED}: a question a clip, `python jobs/benchmarks/overhead.py`"
    ),
    "score_kb": Input(
        2.3, "KB a clip", f"{MEASURED}: the same, two settings, with manifest and questions; clips of 24 frames"
    ),
    "score_part_gib": Input(1.2, "GiB", f"{MEASURED}: the same; the parts that are read, and the process"),
    "dense_gflop": Input(156, "GFLOP a dense frame", "counted: ViT-L/14, docs/nextqa.md"),
    "gpu_tflops": Input(
        10, "TFLOP/s", f"{ASSUMED} `L4 in float32`: no GPU has been measured, nor what reuse gains there"
    ),
    "source_mbit": Input(2.5, "Mbit/s", f"{ASSUMED}: 720p"),
    "mp4_kb": Input(4.5, "KB a frame", "estimated in docs/nextqa.md, 3 to 6"),
    "embedding_kb": Input(1.6, "KB a frame", "768 half-precision numbers, docs/nextqa.md"),
    "head_gib": Input(32, "GiB", "m7i.2xlarge"),
    "cpu_node_cores": Input(16, "cores", f"c7i.4xlarge; {ASSUMED}: its cores are as fast as the measured ones"),
    "cpu_nodes_allowed": Input(8, "machines", "`cluster.yaml`: four on spot, four on demand"),
    "cpu_node_price": Input(0.71, "dollars an hour", PRICE),
    "gpu_node_price": Input(0.98, "dollars an hour", f"g6.2xlarge, one L4: {PRICE}"),
    "head_price": Input(0.40, "dollars an hour", PRICE),
    "storage_price": Input(0.023, "dollars a GB and month", PRICE),
    "put_price": Input(5.0, "dollars a million writes", PRICE),
    "get_price": Input(0.4, "dollars a million reads", PRICE),
}
DEADLINE_H = {1_000: 24, 100_000: 7 * 24, 1_000_000: 30 * 24}
"""When each size is to be done: it decides how many nodes there are, not what they cost."""


ROWS = {
    "clips": "clips",
    "frames": "frames",
    "transcode, core hours": "transcode_core_h",
    "decode, core hours": "decode_core_h",
    "encode dense, core hours": "dense_core_h",
    "encode at 90 % reuse, core hours": "reuse_core_h",
    "CPU machines at 90 % reuse": "cpu_nodes",
    "their cost with the head": "cpu_dollars",
    "the same, dense": "dense_cpu_dollars",
    "GPU machines, dense (assumed speed)": "gpu_nodes",
    "their cost with CPUs and head": "gpu_dollars",
    "read from storage, TB": "read_tb",
    "written, TB": "written_tb",
    "requests": "requests",
    "requests' cost": "traffic_dollars",
    "keeping what is written, a month": "month_dollars",
    "driver, hours of scheduling": "driver_h",
    "planning, seconds": "plan_s",
    "planning, GiB": "plan_gib",
    "scoring all, core hours": "score_h",
    "scoring all, GiB": "score_gib",
}
"""What the page calls each number of `compute`."""


def compute(hours: int, value: Mapping[str, float]) -> dict[str, float]:
    """Return what so many hours of video need, transcoded once and embedded under one setting.

    CPU nodes are for ReuseViT at 90 % on CPUs alone, GPU nodes for Original beside the CPUs that transcode and decode.
    One driver schedules, and scores Original and another setting: it keeps something of each clip, and a cosine of each
    frame and setting. What tests, sweeps and training need comes besides.
    """
    deadline_h = DEADLINE_H[hours]
    seconds = 3600 * hours
    clips, frames = seconds / value["clip_s"], seconds * value["fps"]
    transcode = seconds * value["transcode_ms"] / 3.6e6
    decode = frames * value["decode_ms"] / 3.6e6
    dense = frames * 2 / value["dense_fps"] / 3600
    reuse = dense / value["reuse_speedup"]
    core_price = value["cpu_node_price"] / value["cpu_node_cores"]
    head = deadline_h * value["head_price"]
    gpu_h = frames * value["dense_gflop"] / value["gpu_tflops"] / 3.6e6
    shards = clips / value["segments_a_batch"]
    mp4_gb, embedding_gb = frames * value["mp4_kb"] / 1e6, frames * value["embedding_kb"] / 1e6
    longer = max(0.0, frames - MEASURED_FRAMES * clips)
    reads, writes = 2 * clips, 2 * clips + shards
    return {
        "clips": clips,
        "frames": frames,
        "transcode_core_h": transcode,
        "decode_core_h": decode,
        "dense_core_h": dense,
        "reuse_core_h": reuse,
        "cpu_nodes": math.ceil((transcode + decode + reuse) / value["cpu_node_cores"] / deadline_h),
        "cpu_dollars": (transcode + decode + reuse) * core_price + head,
        "dense_cpu_dollars": (transcode + decode + dense) * core_price + head,
        "gpu_nodes": math.ceil(gpu_h / deadline_h),
        "gpu_dollars": gpu_h * value["gpu_node_price"] + (transcode + decode) * core_price + head,
        "read_tb": (seconds * value["source_mbit"] / 8 / 1e3 + mp4_gb) / 1e3,
        "written_tb": (mp4_gb + embedding_gb) / 1e3,
        "requests": reads + writes,
        "traffic_dollars": (reads * value["get_price"] + writes * value["put_price"]) / 1e6,
        "month_dollars": (mp4_gb + embedding_gb) * value["storage_price"],
        "driver_h": clips * value["driver_ms"] / 3.6e6,
        "plan_s": clips / 1e6 * value["plan_s"],
        "plan_gib": clips / 1e6 * value["plan_mib"] / 1024,
        "score_h": 2 * frames * value["score_ms"] / 3.6e6,
        "score_gib": value["score_part_gib"] + (clips * value["score_kb"] * 1024 + 2 * 8 * longer) / 2**30,
    }


LIMITS = {
    "nodes": "cluster.yaml's CPU machines",
    "driver_time": "the driver's time",
    "driver_memory": "the driver's memory",
    "score_time": "the driver's time, scoring all of it",
    "score_memory": "the driver's memory, scoring all of it",
}


def fill(hours: int, scale: Mapping[str, float], value: Mapping[str, float]) -> dict[str, float]:
    """Return how much of each limit a size takes: above 1, it does not fit."""
    return {
        "nodes": scale["cpu_nodes"] / value["cpu_nodes_allowed"],
        "driver_time": (scale["driver_h"] + scale["plan_s"] / 3600) / DEADLINE_H[hours],
        "driver_memory": scale["plan_gib"] / value["head_gib"],
        "score_time": scale["score_h"] / DEADLINE_H[hours],
        "score_memory": scale["score_gib"] / value["head_gib"],
    }


def tables(value: Mapping[str, float]) -> str:
    """Return the page's tables as Markdown."""
    scales = {hours: compute(hours, value) for hours in SIZES_H}
    fills = {hours: fill(hours, scale, value) for hours, scale in scales.items()}
    head = ["", *(f"{hours:,} h" for hours in SIZES_H)]
    needs = [["to be done in", *(f"{DEADLINE_H[hours]:,} h" for hours in SIZES_H)]]
    for words, name in ROWS.items():
        currency = "$" * name.endswith("_dollars")
        needs.append([words, *(f"{currency}{short(scale[name])}" for scale in scales.values())])
    limits = [[words, *(f"{fills[hours][name]:,.0%}" for hours in SIZES_H)] for name, words in LIMITS.items()]
    embedding = [
        {name: part for name, part in fills[hours].items() if not name.startswith("score_")} for hours in SIZES_H
    ]
    limits.append(["**first bottleneck of embedding**", *map(first_bottleneck, embedding)])
    given = [[name, f"{value[name]:,g}", row.unit, row.source] for name, row in INPUTS.items()]
    parts = (["input", "value", "unit", "from"], given), (head, needs), (head, limits)
    return "\n\n".join(markdown(*part) for part in parts)


def first_bottleneck(fills: Mapping[str, float]) -> str:
    """Name the limit that is reached first as a collection grows, and whether it is reached."""
    name = max(fills, key=lambda name: fills[name])
    return LIMITS[name] if fills[name] > 1 else f"none yet; {LIMITS[name]} come first"


def short(number: float) -> str:
    """Write a number with two digits that count, or whole from ten on, in thousands and millions."""
    for size, unit in ((1e9, " G"), (1e6, " M"), (1e4, " k")):
        if number >= size:
            return f"{number / (1e3 if unit == ' k' else size):.3g}{unit}"
    return f"{number:,.0f}" if number >= 10 else f"{number:.2g}"


def markdown(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a table."""
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (head, ["---"] * len(head), *rows))


def main(words: Sequence[str]) -> int:
    """Print the tables with the inputs that were given in place of ours."""
    value = {name: row.value for name, row in INPUTS.items()}
    parser = argparse.ArgumentParser(
        description="Print the tables of docs/scaling.md: what each size of collection needs, and the first bottleneck."
    )
    parser.add_argument(
        "inputs", nargs="*", metavar="NAME=NUMBER", help=f"an input in place of ours; the names are {', '.join(INPUTS)}"
    )
    for word in parser.parse_args(words).inputs:
        name, _, given = word.partition("=")
        if name not in INPUTS or not re.fullmatch(r"\d+(\.\d+)?", given):
            print(f"input: got {word}, expected NAME=NUMBER; the names are {', '.join(INPUTS)}", file=sys.stderr)
            return 2
        value[name] = float(given)
    print(tables(value))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
