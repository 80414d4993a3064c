"""Compare the memory of a training worker with its formula: `python jobs/benchmarks/fit_memory.py --backbone NAME`.

Does a worker's work in this process, on random weights and windows: warm-up, a step in parts, validation, and trying a
bias on whole clips. Prints the peak of the process in each phase next to the value from
`reuse_models/training/memory.py`. Linux only.
"""

import _bootstrap_jobs  # noqa: F401  first: makes the packages importable

import itertools
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
import tyro
from apart import forget_peak, status_bytes
from drawn_windows import make_batch, moving_pixels
from torch import Tensor

from reuse_models.reusevit.addon import addon_shape, save_addon
from reuse_models.reusevit.frame_order import PUBLISHED_PATTERN
from reuse_models.training.loss import LossConfig
from reuse_models.method import Chunk
from reuse_models.reusevit.method import ReuseVitConfig
from reuse_models.training.fit import Batch, Fit, FitConfig
from reuse_models.training.memory import GIB, TRAINER_BYTES, TrainingMemory
from reuse_models.tower.vit import Vit
from reuse_models.tower.known_shapes import KNOWN_SHAPES
from reuse_models.training.warm_up import WarmUpConfig, gather_pairs, warm_up

CHUNK_FRAMES = 16


@dataclass(frozen=True, kw_only=True, slots=True)
class Options:
    """What is run."""

    backbone: str = "openai/clip-vit-base-patch16"
    """Name of a backbone of known shape; its weights are random."""
    targets: tuple[float, ...] = (0.9, 0.8)
    """Target reuse rates, 0..1; one add-on is fitted for each."""
    parts: int = 2
    """Number of parts in a step; each has as many windows as run at once."""
    limit_gib: float = 6.0
    """Maximum memory of a worker in GiB; decides how many windows run at once."""
    warm_up: WarmUpConfig = field(default_factory=WarmUpConfig)
    threads: int = 1


def main(options: Options) -> None:
    """Run the phases one after the other and print a line of each."""
    torch.set_num_threads(options.threads)
    shape = KNOWN_SHAPES[options.backbone]
    memory = TrainingMemory(
        shape=shape,
        addon=addon_shape(shape),
        num_addons=len(options.targets),
        warm_up=options.warm_up,
        calibration_frames=CHUNK_FRAMES,
    )
    at_once = memory.clips_at_once(int(options.limit_gib * GIB))
    if not at_once:
        raise SystemExit(
            f"limit: got {options.limit_gib:g} GiB, expected {memory.peak_bytes(1) / GIB:.1f}; raise --limit-gib"
        )
    interpreter = status_bytes("VmRSS")
    vit = Vit.random(shape)
    loss = {target: LossConfig(target_rate=target) for target in options.targets}
    fits = {target: Fit(vit, loss[target], FitConfig(), clips_at_once=at_once) for target in options.targets}
    seeds = itertools.count(1)

    def windows(count: int) -> Batch:
        return make_batch(shape, count, next(seeds))

    beside = interpreter + memory.tower_bytes + memory.addons_bytes

    def fitted() -> None:
        batch = windows(at_once * options.parts)
        for fit in fits.values():
            fit.step(batch)

    def validated() -> None:
        count = memory.validated_at_once(at_once)
        fits[options.targets[0]].validate(windows(count) for _ in range(2))

    clips = min(8, memory.calibrated_at_once(at_once))
    phases: dict[str, tuple[Callable[[], object], int]] = {
        "warm-up": (lambda: _warm_up(fits, windows, options.warm_up, at_once), memory.warm_up_bytes(at_once)),
        f"step, {at_once} at once": (fitted, memory.step_bytes(at_once)),
        "validation": (validated, memory.step_bytes(at_once)),
        f"calibration, {clips} clips": (
            lambda: _calibrate(fits[options.targets[0]], clips),
            memory.calibration_bytes * clips,
        ),
    }
    print(f"{options.backbone}, {options.threads} threads, {len(options.targets)} targets, peaks of the process in GiB")
    peaks = []
    for name, (run, expected) in phases.items():
        peak, seconds = _peak_bytes(run)
        peaks.append(peak)
        print(f"{name:20} {peak / GIB:6.2f}   formula {(beside + expected) / GIB:6.2f}   {seconds:6.0f} s", flush=True)
    whole = replace(memory, clips_per_step=at_once * options.parts, held_clips=0).peak_bytes(at_once)
    whole += interpreter - TRAINER_BYTES
    print(f"{'highest':20} {max(peaks) / GIB:6.2f}   formula {whole / GIB:6.2f}")


def _warm_up(fits: dict[float, Fit], windows: Callable[[int], Batch], config: WarmUpConfig, at_once: int) -> None:
    def pixels() -> Iterator[Tensor]:
        while True:
            yield windows(at_once).pixels_CF3HW

    vit = next(iter(fits.values())).vit
    pairs_b = gather_pairs(vit, pixels(), PUBLISHED_PATTERN, config)
    warm_up({target: fit.addon for target, fit in fits.items()}, pairs_b, config)


@torch.inference_mode()
def _calibrate(fit: Fit, clips: int) -> None:
    side, generator = fit.vit.shape.patches_per_side, torch.Generator().manual_seed(0)
    with tempfile.TemporaryDirectory() as folder:
        weights = Path(folder) / "addon.safetensors"
        save_addon(fit.addon, weights)
        method = ReuseVitConfig(weights=str(weights)).build(fit.vit)
        pixels = moving_pixels(fit.vit.shape, clips, CHUNK_FRAMES, generator)
        codec = torch.rand(clips, CHUNK_FRAMES, 4, side, side, generator=generator)
        method.encode(Chunk(tuple(pixels), tuple(codec), (True,) * clips), method.start(clips))


def _peak_bytes(run: Callable[[], object]) -> tuple[int, float]:
    forget_peak()
    began = time.monotonic()
    run()
    return status_bytes("VmHWM"), time.monotonic() - began


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
