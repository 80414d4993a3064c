r"""Measure how much faster reuse is than the strongest dense tower on this machine, apart from any training.

    python jobs/benchmarks/speed.py --backbone openai/clip-vit-base-patch16 --random-weights \
        --method reusevit --reuse-rates 0.5 0.9 --streams 8 --json OUT.json

Reuse is forced to a given share of tokens. Every round measures each setting once and the dense towers between them, so
that what else the machine does meets all alike; speed-ups compare within a round. Steady state: groups only, the dense
frame that begins a GOP is timed apart. Needs torch, transformers, safetensors and numpy alone (matplotlib to plot), and
so is one file: on a GPU machine there may be nothing else.
"""

import _bootstrap_jobs  # noqa: F401

import argparse
import copy
import inspect
import json
import os
import platform
import resource
import shutil
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from reuse_models.baselines.cmc import CmcConfig, distance_quantiles
from reuse_models.baselines.diffrate.method import DiffRateConfig, uniform_schedule
from reuse_models.baselines.eventful import EventfulConfig
from reuse_models.flops import dense_flops, flops_per_frame
from reuse_models.reusevit.frame_order import GROUP_SIZE
from reuse_models.reusevit.gate import check_rate
from reuse_models.method import Chunk, Method, MethodConfig
from reuse_models.reusevit.method import ReuseVitConfig
from reuse_models.tower.hugging_face import from_hf
from reuse_models.tower.vit import Vit
from reuse_models.tower.known_shapes import KNOWN_SHAPES

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
VISION_ALONE = {
    "clip": "CLIPVisionModelWithProjection",
    "clip_vision_model": "CLIPVisionModelWithProjection",
    "siglip": "SiglipVisionModel",
    "siglip2": "SiglipVisionModel",
}
METHODS = ("reusevit", "eventful", "cmc", "diffrate")
DENSE_BATCHES = {"cpu": (8, 16), "cuda": (64, 256)}
"""Frames that a dense tower takes at once; the fastest counts."""
WARM_UP = {"cpu": 2, "cuda": 6}
"""Groups before anything is timed: the first ones allocate, and on a GPU learn, compile and record."""
GROUPS_PER_CALL = {"cpu": 1, "cuda": 4}
"""Groups of each stream in a call. A GPU must be given work ahead: 16 frames, as the pipeline's chunks have."""
MODEL_FAILURE = 2


Row = dict[str, Any]
"""One setting, as `_row` returns it."""


@dataclass(slots=True)
class Setting:
    """One method at one rate for a number of streams, running, and what its rounds came to."""

    name: str
    """Of the method."""
    reuse_rate: float
    method: Method
    chunk: Chunk
    memory: Any
    """The one that the next call takes."""
    achieved: float
    reduction: float
    segment_start_ms: float
    seconds: list[float] = field(default_factory=list)
    peak_mb: float = 0.0

    @property
    def num_frames(self) -> int:
        """Frames of one step."""
        return sum(len(pixels) for pixels in self.chunk.pixels)

    def step(self) -> None:
        """Encode the next group of every stream."""
        self.memory = self.method.encode(self.chunk, self.memory).memory


DenseTower = tuple[Callable[[Tensor], object], torch.dtype]
"""A tower, and the type of the frames that it takes."""


@dataclass(frozen=True, slots=True)
class DensePath:
    """One dense tower on batches of one size."""

    tower: Callable[[Tensor], object]
    frames_B3HW: Tensor

    def seconds_per_frame(self, vit: Vit) -> float:
        """Time one batch."""
        return seconds_of(lambda: self.tower(self.frames_B3HW), vit) / len(self.frames_B3HW)


def main(arguments: list[str] | None = None) -> int:
    """Run the benchmark and return the exit code."""
    options = _options(arguments)
    try:
        rows = _run(options)
    except ValueError as error:
        print(error, file=sys.stderr)
        return MODEL_FAILURE
    if options.json is not None:
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(json.dumps(rows, indent=1) + "\n")
    print(break_even_table(rows))
    if options.plot is not None:
        plot(rows, options.plot)
    return 0


def _options(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__.split("\n\n", maxsplit=1)[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("--backbone", default="openai/clip-vit-base-patch16", help="known name, or a local directory")
    parser.add_argument("--random-weights", action="store_true", help="use only the sizes; needs no hub")
    parser.add_argument("--image-px", type=int, default=None, help="side of the frames; None: the model's own")
    parser.add_argument("--method", choices=METHODS, nargs="+", default=["reusevit"])
    parser.add_argument("--reuse-rates", type=float, nargs="+", default=[0.0, 0.5, 0.7, 0.8, 0.9, 0.95])
    parser.add_argument("--streams", type=int, nargs="+", default=[8], help="numbers of videos in lockstep")
    parser.add_argument("--groups", type=int, default=None, help="groups of four frames per stream; 4 on a GPU")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--dtype", choices=tuple(DTYPES), default=None, help="None: float32 on a CPU, bfloat16 on GPU")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="number of CPU cores to use")
    parser.add_argument("--dense-batches", type=int, nargs="+", help="batch sizes of a dense tower, in frames")
    parser.add_argument(
        "--compile-mode",
        default="default",
        choices=("no", "default", "max-autotune-no-cudagraphs"),
        help="mode of torch.compile for dense towers; autotuning takes minutes",
    )
    parser.add_argument("--json", type=Path, default=None, help="JSON file for the rows")
    parser.add_argument("--plot", type=Path, default=None, help="PNG file for speed-up against reuse rate")
    return parser.parse_args(arguments)


def _run(options: argparse.Namespace) -> list[Row]:
    for rate in options.reuse_rates:
        check_rate(rate)
    for name, given in (("rounds", options.rounds), ("threads", options.threads), ("streams", min(options.streams))):
        if given < 1:
            raise ValueError(f"{name}: got {given}, expected 1 or more; give another")
    torch.set_num_threads(options.threads)
    device = torch.device(options.device)
    dtype = DTYPES[options.dtype or ("bfloat16" if device.type == "cuda" else "float32")]
    model = _hugging_face(options.backbone, options.random_weights)
    vit = from_hf(model, options.image_px).to(device, dtype)
    dense = _dense_towers(model, vit, options.compile_mode)
    rows: list[Row] = []
    with torch.inference_mode():
        for num_streams in options.streams:
            rows += _measure(options, vit, dense, num_streams)
    return rows


def _measure(options: argparse.Namespace, vit: Vit, dense: dict[str, DenseTower], num_streams: int) -> list[Row]:
    first, chunk = make_chunks(vit, num_streams, options.groups or GROUPS_PER_CALL[vit.position.device.type])
    settings = _settings(options, vit, first, chunk)
    paths = _strongest_paths(options, vit, dense, torch.cat(chunk.pixels))
    dense_s: dict[str, list[float]] = {name: [] for name in paths}
    for number in range(1, options.rounds + 1):
        print(f"{num_streams} streams: round {number} of {options.rounds}", file=sys.stderr, flush=True)
        for name, path in paths.items():
            dense_s[name].append(path.seconds_per_frame(vit))
        for one in settings:
            if vit.position.device.type == "cuda":
                torch.cuda.reset_peak_memory_stats()
            one.seconds.append(seconds_of(one.step, vit))
            one.peak_mb = max(one.peak_mb, _peak_memory_mb(vit))
    strongest = min(paths, key=lambda name: statistics.median(dense_s[name]))
    rows = []
    for one in settings:
        rows.append(_row(options, vit, one, num_streams, (strongest, dense_s[strongest])))
        print(_line(rows[-1]), flush=True)
    return rows


def _settings(options: argparse.Namespace, vit: Vit, first: Chunk, chunk: Chunk) -> list[Setting]:
    """Return each method at each rate, warmed up."""
    settings = []
    for name in options.method:
        for rate in options.reuse_rates:
            try:
                config = _config(name, rate, vit, chunk)
            except ValueError as error:
                # A schedule cannot save every share on every tower; the other settings can be measured all the same.
                print(f"{name} at {rate:.0%} is left out: {error}")
                continue
            settings.append(start_setting(config, rate, vit, first, chunk))
    return settings


def _strongest_paths(
    options: argparse.Namespace, vit: Vit, dense: dict[str, DenseTower], frames_F3HW: Tensor
) -> dict[str, DensePath]:
    """Return the two fastest ways to run a dense tower, and on a CPU the faster one compiled, by name."""
    paths: dict[str, DensePath] = {}
    for name, (tower, dtype) in dense.items():
        for batch in options.dense_batches or DENSE_BATCHES[vit.position.device.type]:
            # The fewest streams still get full batches: a dense tower does not care whose frames it sees.
            repeats = -(-batch // len(frames_F3HW))
            frames_B3HW = frames_F3HW.repeat(repeats, 1, 1, 1)[:batch].to(dtype)
            paths[f"{name}, {batch} frames at once"] = DensePath(tower, frames_B3HW)
    # The weaker dense paths are measured twice: the strongest two go on.
    once = {name: min(path.seconds_per_frame(vit) for _ in range(2)) for name, path in paths.items()}
    kept = {name: paths[name] for name in sorted(once, key=lambda name: once[name])[:2]}
    if vit.position.device.type == "cpu" and options.compile_mode != "no" and _has_compiler():
        name, path = next(iter(kept.items()))
        compiled = torch.compile(path.tower, mode=options.compile_mode, dynamic=False)
        kept[f"{name}, compiled"] = one = DensePath(compiled, path.frames_B3HW)
        one.seconds_per_frame(vit)
    return kept


def _row(
    options: argparse.Namespace, vit: Vit, setting: Setting, num_streams: int, dense: tuple[str, Sequence[float]]
) -> Row:
    """Return what the rounds of a setting, and of the strongest dense path beside it, come to.

    Rates are shares of tokens in frames that may reuse; the dense frames that begin the GOPs of all streams are apart
    (`segment_start_ms`). `speedup` is the median over rounds of dense time over this setting's within the round,
    `flops_reduction` dense FLOPs over executed ones, `efficiency` the one over the other; spreads are quartiles over
    rounds. Memory is the process's largest so far (CPU), or the device's while this setting ran.
    """
    dense_path, dense_s = dense
    speeds = [setting.num_frames / own for own in setting.seconds]
    speedups = [dense * speed for dense, speed in zip(dense_s, speeds, strict=True)]
    return {
        "backbone": options.backbone,
        "image_px": vit.shape.image_px,
        "method": setting.name,
        "device": vit.position.device.type,
        "dtype": str(vit.position.dtype).removeprefix("torch."),
        "streams": num_streams,
        "reuse_rate": setting.reuse_rate,  # as requested
        "achieved_reuse_rate": setting.achieved,
        "frames_per_s": statistics.median(speeds),
        "dense_frames_per_s": 1 / statistics.median(dense_s),
        "speedup": statistics.median(speedups),
        "flops_reduction": setting.reduction,
        "efficiency": statistics.median(speedups) / setting.reduction,
        "peak_memory_mb": setting.peak_mb,
        "state_bytes_per_stream": getattr(setting.memory, "bytes_per_stream", 0),
        "dense_path": dense_path,
        "frames_per_s_spread": _quartiles(speeds),
        "speedup_spread": _quartiles(speedups),
        "rounds": options.rounds,
        "segment_start_ms": setting.segment_start_ms,
        "workspace_bytes": getattr(setting.memory, "workspace_bytes", 0),
        "threads": torch.get_num_threads(),
        "torch_version": torch.__version__,
        "hardware": _hardware(vit),
    }


def _config(name: str, rate: float, vit: Vit, chunk: Chunk) -> MethodConfig:
    """Return the method's setting for a rate: reused tokens, or the share of FLOPs saved where none are."""
    if name == "eventful":
        return EventfulConfig(refreshed_tokens=round((1 - rate) * vit.shape.num_patches))
    if name == "cmc":
        pairs_F3HW = chunk.pixels[0]
        return CmcConfig(threshold=distance_quantiles(vit, (pairs_F3HW,), (rate,))[0])
    if name == "diffrate":
        pruned, merged = uniform_schedule(vit.shape, 1 - rate)
        return DiffRateConfig(prune_kept=pruned, merge_kept=merged, label=f"share={1 - rate:.2f}")
    return ReuseVitConfig(forced_rate=rate, forced_choice="random")


def start_setting(config: MethodConfig, rate: float, vit: Vit, first: Chunk, chunk: Chunk) -> Setting:
    """Begin a GOP of every stream, and take groups until all is ready; the last one counts what it executes."""
    method = config.build(vit)
    memory = method.start(chunk.num_streams)

    def begin() -> None:
        nonlocal memory
        memory = method.encode(first, memory).memory

    segment_start_ms = 1e3 * seconds_of(begin, vit)
    for _ in range(WARM_UP[vit.position.device.type]):
        encoded = method.encode(chunk, memory)
        memory = encoded.memory
    flops = torch.cat([flops_per_frame(vit.shape, work) for work in encoded.work])
    reduction = dense_flops(vit.shape) / float(flops.mean())
    achieved = float(torch.cat([reuse.float().mean(dim=(1, 2)) for reuse in encoded.reuse]).mean())
    return Setting(config.method, rate, method, chunk, memory, achieved, reduction, segment_start_ms)


def make_chunks(vit: Vit, num_streams: int, groups: int = 1) -> tuple[Chunk, Chunk]:
    """Return the first frame, and groups of four, of each stream; frames differ a little."""
    side, patches = vit.shape.image_px, vit.shape.patches_per_side
    generator = torch.Generator().manual_seed(0)
    still = torch.randn(num_streams, 1, 3, side, side, generator=generator)
    moving = 0.1 * torch.randn(num_streams, groups * GROUP_SIZE + 1, 3, side, side, generator=generator)
    pixels = (still + moving).to(vit.position)
    codec = torch.rand(num_streams, groups * GROUP_SIZE + 1, 4, patches, patches, generator=generator).to(
        vit.position.device
    )
    going_on = (False,) * num_streams

    def cut(start: int, stop: int) -> Chunk:
        return Chunk(tuple(x[start:stop] for x in pixels), tuple(x[start:stop] for x in codec), going_on)

    return cut(0, 1), cut(1, groups * GROUP_SIZE + 1)


def _hugging_face(backbone: str, random_weights: bool) -> Any:
    """Return a vision tower of transformers, which runs on SDPA attention by default."""
    import transformers

    if not random_weights:
        if not Path(backbone).is_dir():
            raise ValueError(
                f"backbone: got {backbone!r} without --random-weights, expected a local directory; save_pretrained "
                "the model there, or measure on random weights"
            )
        model_type = json.loads((Path(backbone) / "config.json").read_text()).get("model_type", "")
        loader = getattr(transformers, VISION_ALONE.get(model_type, "AutoModel"))
        return loader.from_pretrained(backbone, local_files_only=True, use_safetensors=True).eval()
    plain = {
        name: one
        for name, one in KNOWN_SHAPES.items()
        if one.rope_theta is None and not one.num_registers and not one.gated_mlp
    }
    shape = plain.get(backbone)
    if shape is None:
        known = ", ".join(plain)
        raise ValueError(f"backbone: got {backbone!r}, expected one whose sizes are known: {known}; choose one")
    sizes: dict[str, Any] = {
        "hidden_size": shape.width,
        "num_hidden_layers": shape.num_layers,
        "num_attention_heads": shape.num_heads,
        "image_size": shape.image_px,
        "patch_size": shape.patch_px,
        "hidden_act": shape.activation,
        "layer_norm_eps": shape.layer_norm_eps,
    }
    torch.manual_seed(0)
    if shape.has_projection:
        config = transformers.CLIPVisionConfig(
            **sizes, intermediate_size=shape.mlp_width, projection_dim=shape.embed_dim
        )
        return transformers.CLIPVisionModelWithProjection(config).eval()
    if shape.has_cls:
        return transformers.Dinov2Model(transformers.Dinov2Config(**sizes)).eval()
    return transformers.SiglipVisionModel(
        transformers.SiglipVisionConfig(**sizes, intermediate_size=shape.mlp_width)
    ).eval()


def _dense_towers(model: Any, vit: Vit, compiled: str) -> dict[str, DenseTower]:
    """Return what might be the strongest; on a CPU, where compiling takes a minute, only the strongest is compiled."""
    device, own = vit.position.device, vit.position.dtype
    towers: dict[str, DenseTower] = {}
    for name, dtype in DTYPES.items():
        for kind, tower, call in (
            ("our dense tower", vit if dtype == own else copy.deepcopy(vit).to(dtype), None),
            ("Hugging Face, SDPA", copy.deepcopy(model).to(device, dtype), _embeddings_of),
        ):
            forms = {f"{kind}, {name}": tower}
            if compiled != "no" and dtype == torch.bfloat16 and device.type == "cuda":
                forms[f"{kind}, {name}, compiled"] = torch.compile(tower, mode=compiled, dynamic=False)
            towers |= {form: (call(one) if call else one, dtype) for form, one in forms.items()}
    return towers


def _has_compiler() -> bool:
    """Whether torch.compile can build for a CPU."""
    return any(shutil.which(name) for name in (os.environ.get("CXX", "g++"), "g++", "clang++"))


def _embeddings_of(model: Any) -> Callable[[Tensor], object]:
    # DINO interpolates its positions without being told; the others, told to, do nothing at their own size. What is
    # compiled hides what it can be told.
    can_be_told = "interpolate_pos_encoding" in inspect.signature(getattr(model, "_orig_mod", model).forward).parameters
    told = {"interpolate_pos_encoding": True} if can_be_told else {}

    def embed(pixels_B3HW: Tensor) -> object:
        found = model(pixel_values=pixels_B3HW, **told)
        return found.image_embeds if "image_embeds" in found else found.pooler_output

    return embed


def seconds_of(step: Callable[[], object], vit: Vit) -> float:
    """Run a step to its end, on a GPU as well, and return its wall clock."""
    on_gpu = vit.position.device.type == "cuda"
    if on_gpu:
        torch.cuda.synchronize()
    start = time.perf_counter()
    step()
    if on_gpu:
        torch.cuda.synchronize()
    return time.perf_counter() - start


def _peak_memory_mb(vit: Vit) -> float:
    if vit.position.device.type == "cuda":
        return torch.cuda.max_memory_allocated() / 2**20
    # Kilobytes on Linux, bytes on macOS.
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (2**20 if sys.platform == "darwin" else 2**10)


def _hardware(vit: Vit) -> str:
    if vit.position.device.type == "cuda":
        return str(torch.cuda.get_device_name())
    return f"{os.cpu_count()}-core {platform.machine()} CPU"


def _quartiles(values: list[float]) -> list[float]:
    found: list[float] = np.quantile(values, (0.25, 0.75)).tolist()
    return found


def _line(row: Row) -> str:
    low, high = row["speedup_spread"]
    return (
        f"{row['method']:<9} streams {row['streams']:<3} reuse {row['achieved_reuse_rate']:5.1%}  "
        f"{row['frames_per_s']:7.2f} frames/s  dense {row['dense_frames_per_s']:7.2f}  "
        f"speed-up {row['speedup']:5.2f} ({low:.2f}..{high:.2f})  FLOPs /{row['flops_reduction']:5.2f}  "
        f"efficiency {row['efficiency']:4.2f}"
    )


def break_even_table(rows: list[Row]) -> str:
    """Return speed-up by streams and reuse rate, in words where reuse is slower."""
    rates = sorted({row["reuse_rate"] for row in rows})
    heads = "streams  " + "  ".join(f"{rate:>5.0%} " for rate in rates)
    lines = []
    for method in sorted({row["method"] for row in rows}):
        lines += [f"speed-up of {method} over dense; * where reuse is slower", heads]
        for streams in sorted({row["streams"] for row in rows}):
            found = {row["reuse_rate"]: row for row in rows if row["streams"] == streams and row["method"] == method}
            cells = [_cell(found.get(rate)) for rate in rates]
            lines.append(f"{streams:>7}  " + "  ".join(f"{cell:>6}" for cell in cells))
        slower = [row for row in rows if row["method"] == method and row["speedup"] < 1]
        for row in slower:
            where = f"{row['streams']} streams at {row['reuse_rate']:.0%} reuse"
            lines.append(f"slower than dense: {where}, {row['speedup']:.2f} of its speed")
    return "\n".join(lines)


def _cell(row: Row | None) -> str:
    return "-" if row is None else f"{row['speedup']:.2f}{'*' if row['speedup'] < 1 else ' '}"


def plot(rows: list[Row], path: Path) -> None:
    """Draw speed-up against reuse rate, one line for each number of streams, beside what FLOPs alone would give."""
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(7, 4.5), layout="constrained")
    for method in sorted({row["method"] for row in rows}):
        of_method = sorted((row for row in rows if row["method"] == method), key=lambda row: row["reuse_rate"])
        for streams in sorted({row["streams"] for row in of_method}):
            line = [row for row in of_method if row["streams"] == streams]
            x, y = [row["achieved_reuse_rate"] for row in line], [row["speedup"] for row in line]
            (drawn,) = axes.plot(x, y, marker="o", label=f"{method}, {streams} streams")
            axes.fill_between(
                x,
                [row["speedup_spread"][0] for row in line],
                [row["speedup_spread"][1] for row in line],
                color=drawn.get_color(),
                alpha=0.2,
                linewidth=0,
            )
        x = [row["achieved_reuse_rate"] for row in of_method]
        axes.plot(x, [row["flops_reduction"] for row in of_method], ":", color="0.4", label=f"{method}, FLOPs alone")
    axes.axhline(1.0, color="0.7", linewidth=1)
    first = rows[0]
    axes.set(
        xlabel="share of tokens reused",
        ylabel="speed-up over dense",
        title=f"{first['backbone']}, {first['dtype']}, {first['hardware']}",
    )
    axes.legend(frameon=False)
    figure.savefig(path, dpi=150)
    plt.close(figure)


if __name__ == "__main__":
    sys.exit(main())
