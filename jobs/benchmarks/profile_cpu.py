"""Show where the time of a step goes on a CPU, dense and with reuse: `python jobs/benchmarks/profile_cpu.py`.

Of steady groups on random frames, reuse forced to a rate: operators called, milliseconds in products (matrix products,
and attention where one operator does it whole) by PyTorch's profiler, and what else there is in the wall clock without
it. Dense products over these are the speed-up of products alone. On one thread.
"""

from __future__ import annotations

import _bootstrap_jobs  # noqa: F401  first: makes the packages importable

import argparse
import statistics
import sys

import speed
import torch
from torch.profiler import ProfilerActivity, profile

from dejavu.backbones.load import EMBEDDED, load_backbone
from reuse_models.baselines.original import OriginalConfig
from reuse_models.reusevit.method import ReuseVitConfig
from reuse_models.tower.vit import Vit

PRODUCTS = ("mm", "addmm", "bmm", "baddbmm", "linear", "_scaled_dot_product", "mkldnn_linear")
"""Of operators' names without `aten::`, how those begin that multiply matrices."""


def main(arguments: list[str] | None = None) -> int:
    """Print a line for dense and one for each rate, then the operators that take longest at the last rate."""
    parser = argparse.ArgumentParser(
        description=__doc__.split("\n\n", maxsplit=1)[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("--backbone", default=EMBEDDED, help="directory, or the embedded backbone")
    parser.add_argument("--streams", type=int, default=16, help="number of videos in lockstep")
    parser.add_argument("--reuse-rates", type=float, nargs="+", default=[0.5, 0.7, 0.85])
    parser.add_argument("--precision", choices=tuple(speed.DTYPES), default="float32")
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--rows", type=int, default=15, help="number of operators to print")
    options = parser.parse_args(arguments)
    vit = load_backbone(options.backbone, dtype=speed.DTYPES[options.precision]).vit
    torch.set_num_threads(1)  # with more, the engine works in threads that the profiler does not see
    print(f"{options.streams} streams, {options.precision}, a frame in ms")
    print("setting     fewer FLOPs   wall  over dense  calls  products  over dense  other")
    dense, dense_products, table = 0.0, 0.0, ""
    for rate in (None, *options.reuse_rates):
        reduction, wall, calls, products, table = profiled(rate, vit, options)
        dense, dense_products = dense or wall, dense_products or products
        name = "dense" if rate is None else f"{rate:.0%} reused"
        print(
            f"{name:<11} {reduction:10.2f}x {wall:6.3f} {dense / wall:10.2f}x {calls:6.0f} {products:9.3f} "
            f"{dense_products / products:10.2f}x {wall - products:6.3f}"
        )
    print(table)
    return 0


@torch.inference_mode()
def profiled(rate: float | None, vit: Vit, options: argparse.Namespace) -> tuple[float, float, float, float, str]:
    """Return how many times fewer FLOPs, and of a frame wall clock, operators called and time in products; a table.

    Wall clock is measured without the profiler, which would add to each call; products are too long for that to matter.
    """
    first, chunk = speed.make_chunks(vit, options.streams)
    config = OriginalConfig() if rate is None else ReuseVitConfig(forced_rate=rate, forced_choice="random")
    setting = speed.start_setting(config, rate or 0.0, vit, first, chunk)
    wall = statistics.median(1e3 * speed.seconds_of(setting.step, vit) for _ in range(options.rounds))
    with profile(activities=[ProfilerActivity.CPU]) as seen:
        for _ in range(options.rounds):
            setting.step()
    events = seen.key_averages()
    multiplying = [one for one in events if one.key.removeprefix("aten::").startswith(PRODUCTS)]
    products = sum(one.self_cpu_time_total for one in multiplying) / 1e3 / options.rounds
    calls = sum(one.count for one in events) / options.rounds
    frames = setting.num_frames
    table = events.table(sort_by="self_cpu_time_total", row_limit=options.rows, max_name_column_width=48)
    return setting.reduction, wall / frames, calls / frames, products / frames, table


if __name__ == "__main__":
    sys.exit(main())
