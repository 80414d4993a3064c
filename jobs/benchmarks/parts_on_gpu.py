"""Time each part of a fused layer on a GPU by itself: `python jobs/benchmarks/parts_on_gpu.py --streams 16`.

Each part is recorded many times over in one CUDA graph, so that neither launches nor the host count: microseconds of
the GPU. Beside them stands what PyTorch's own attention takes of the same frames. Parts that fit the GPU's cache find
there what they have just written, which in a whole layer they do not.
"""

from __future__ import annotations

import _bootstrap_jobs  # noqa: F401  first: makes the packages importable

import argparse
import statistics
import sys
from collections.abc import Callable
from typing import Any

import speed
import torch
import torch.nn.functional as F
from profile_gpu import measure_on_gpu

from reuse_models.reusevit.reference import Pass, plan_of
from reuse_models.reusevit.frame_order import GROUP_SIZE
from reuse_models.reusevit.engines.fused_capacity import FusedCapacity, FusedPlaces, FusedRun
from reuse_models.reusevit.method import ReuseVit, ReuseVitConfig
from reuse_models.tower.vit import Vit
from reuse_models.tower.known_shapes import KNOWN_SHAPES

REPEATS = 20


def main(arguments: list[str] | None = None) -> int:
    """Print a line for each part."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n", maxsplit=1)[0])
    return measure_on_gpu("parts", parser, arguments, parts_us, text_of)


def text_of(found: dict[str, Any], options: argparse.Namespace) -> str:
    """Return the table."""
    lines = [f"{options.backbone}, {options.streams} streams, {options.reuse_rate:.0%} reused, {found['hardware']}"]
    return "\n".join(lines + [f"{us:9.1f} us  {name}" for name, us in found["us"].items()])


def parts_us(options: argparse.Namespace) -> dict[str, Any]:
    """Return the GPU's name, and microseconds by part, of a layer in the middle."""
    vit = Vit.random(KNOWN_SHAPES[options.backbone]).to("cuda", torch.bfloat16)
    method = ReuseVitConfig(forced_rate=options.reuse_rate, forced_choice="random").build(vit)
    assert isinstance(method, ReuseVit)
    first, chunk = speed.make_chunks(vit, options.streams)
    memory = method.start(options.streams)
    for step in (first, *[chunk] * 4):
        method.encode(step, memory)
    engine, places = method.fixed, memory.fixed_places
    assert isinstance(engine, FusedCapacity)
    assert isinstance(places, FusedPlaces)
    shape, sizes = vit.shape, (GROUP_SIZE,) * min(options.streams, places.num_frames // GROUP_SIZE)
    work = Pass(tuple(range(len(sizes))), sizes, places.pixels_F3HW, places.history_F4TPP, [])
    run = FusedRun(engine, memory.anchors, places, plan_of(sizes, shape.num_tokens, vit.position.device), work)
    middle = shape.num_layers // 2
    given = engine.capacities.rows(run.num_rows)[middle]
    down_DQ = run.down(middle).mT

    def choose() -> None:
        places.needed_b.zero_()
        run._choose(middle, given)

    qkv = torch.randn(run.num_frames, shape.num_tokens, 3 * shape.width, device="cuda", dtype=torch.bfloat16)
    q, k, v = vit.split_heads(qkv)
    parts: dict[str, Callable[[], object]] = {
        "enter": run.enter,
        "keys and values restored, and attention": lambda: run._attend(middle - 1),
        "first layers of the corrections": lambda: run.pre_proj_XD @ down_DQ,
        "choice and addresses": choose,
        "gather": lambda: run._gather(middle - 1, places.rows_C, given, with_pre_proj=True),
        "anchors": lambda: run._move(middle - 1, middle),
        f"products of {given} of {run.num_rows} rows": lambda: run._close(middle, given),
        "a whole layer": lambda: run.layer(middle, given),
        "leave": run.leave,
        "for comparison, attention of PyTorch": lambda: F.scaled_dot_product_attention(q, k, v),
        "for comparison, a dense layer": lambda: vit.run_layer(
            middle, run.pre_proj_XD.view(run.num_frames, -1, run.width)
        ),
    }
    return {
        "hardware": torch.cuda.get_device_name(),
        "us": {name: graph_us(step) for name, step in parts.items()},
    }


def graph_us(step: Callable[[], object]) -> float:
    """Return the median over five replays of a graph that holds the step REPEATS times."""
    step()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for _ in range(REPEATS):
            step()
    times: list[float] = []
    for _ in range(6):
        begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        begin.record()
        graph.replay()
        end.record()
        torch.cuda.synchronize()
        times.append(1e3 * begin.elapsed_time(end) / REPEATS)
    return statistics.median(times[1:])


if __name__ == "__main__":
    sys.exit(main())
