"""Compare the memory of a training worker with its formula: `python jobs/benchmarks/fit_memory.py --backbone NAME`.

Does in this process what a worker does, on random weights and windows: warm-up, a step in parts, validation, and a bias
tried on whole clips. Prints the peak of the process in each phase, beside what `reuse_models/training/memory.py` says.
Linux only.
"""

import _bootstrap_jobs  # noqa: F401  first: makes the packages importable

import ctypes
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
import tyro
from torch import Tensor

from reuse_models.reusevit.addon import addon_shape, save_addon
from reuse_models.reusevit.frame_order import PUBLISHED_PATTERN
from reuse_models.training.loss import LossConfig, Teacher
from reuse_models.method import Chunk
from reuse_models.reusevit.method import ReuseVitConfig
from reuse_models.training.fit import Batch, Fit, FitConfig
from reuse_models.training.memory import GIB, TRAINER_BYTES, TrainingMemory
from reuse_models.tower.vit import Vit
from reuse_models.tower.known_shapes import KNOWN_SHAPES
from reuse_models.tower.shape import VitShape
from reuse_models.training.warm_up import WarmUpConfig, gather_pairs, warm_up

CHUNK_FRAMES = 16


@dataclass(frozen=True, kw_only=True, slots=True)
class Options:
    """What is run."""

    backbone: str = "openai/clip-vit-base-patch16"
    """A known shape; weights are random."""
    targets: tuple[float, ...] = (0.9, 0.8)
    parts: int = 2
    """Of a step: so many times the windows that are run at once."""
    limit_gib: float = 6.0
    """What a worker may take, which decides how many windows are run at once."""
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
    interpreter = _status_bytes("VmRSS")
    vit = Vit.random(shape)
    loss = {target: LossConfig(target_rate=target) for target in options.targets}
    fits = {target: Fit(vit, loss[target], FitConfig(), clips_at_once=at_once) for target in options.targets}
    windows = Windows(shape)
    beside = interpreter + memory.tower_bytes + memory.addons_bytes

    def fitted() -> None:
        batch = windows.batch(at_once * options.parts)
        for fit in fits.values():
            fit.step(batch)

    def validated() -> None:
        count = memory.validated_at_once(at_once)
        fits[options.targets[0]].validate(windows.batch(count) for _ in range(2))

    clips = min(8, memory.calibrated_at_once(at_once))
    phases: dict[str, tuple[Callable[[], object], int]] = {
        "warm-up": (lambda: _warm_up(fits, windows, options.warm_up, at_once), memory.warm_up_bytes(at_once)),
        f"step, {at_once} at once": (fitted, memory.step_bytes(at_once)),
        "validation": (validated, memory.step_bytes(at_once)),
        f"calibration, {clips} clips": (
            lambda: _calibrate(fits[options.targets[0]], windows, clips),
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


@dataclass(slots=True)
class Windows:
    """Random windows and clips of a shape."""

    shape: VitShape
    drawn: int = 0

    def batch(self, clips: int) -> Batch:
        """Draw windows of which a third changes from frame to frame."""
        self.drawn += 1
        generator = torch.Generator().manual_seed(self.drawn)
        frames, side = len(PUBLISHED_PATTERN), self.shape.patches_per_side
        codec = torch.rand(clips, frames, 4, 4, side, side, generator=generator)
        embeddings = torch.randn(clips, frames, self.shape.embed_dim, generator=generator)
        return Batch(self._moving(clips, frames, generator), codec, Teacher(embeddings))

    def chunk(self, streams: int) -> Chunk:
        """Draw the first frames of so many clips."""
        side, frames = self.shape.patches_per_side, CHUNK_FRAMES
        generator = torch.Generator().manual_seed(0)
        pixels = self._moving(streams, frames, generator)
        codec = torch.rand(streams, frames, 4, side, side, generator=generator)
        return Chunk(tuple(pixels), tuple(codec), (True,) * streams)

    def _moving(self, clips: int, frames: int, generator: torch.Generator) -> Tensor:
        size = (3, self.shape.image_px, self.shape.image_px)
        pixels = torch.randn(clips, 1, *size, generator=generator).repeat(1, frames, 1, 1, 1)
        for frame in pixels.unbind(1):
            frame.add_((torch.rand(size, generator=generator) < 1 / 3) * torch.randn(size, generator=generator))
        return pixels


def _warm_up(fits: dict[float, Fit], windows: Windows, config: WarmUpConfig, at_once: int) -> None:
    def pixels() -> Iterator[Tensor]:
        while True:
            yield windows.batch(at_once).pixels_CF3HW

    vit = next(iter(fits.values())).vit
    pairs_b = gather_pairs(vit, pixels(), PUBLISHED_PATTERN, config)
    warm_up({target: fit.addon for target, fit in fits.items()}, pairs_b, config)


@torch.inference_mode()
def _calibrate(fit: Fit, windows: Windows, clips: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        weights = Path(folder) / "addon.safetensors"
        save_addon(fit.addon, weights)
        method = ReuseVitConfig(weights=str(weights)).build(fit.vit)
        method.encode(windows.chunk(clips), method.start(clips))


def _peak_bytes(run: Callable[[], object]) -> tuple[int, float]:
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
    began = time.monotonic()
    run()
    return _status_bytes("VmHWM"), time.monotonic() - began


def _status_bytes(name: str) -> int:
    (line,) = (line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(f"{name}:"))
    return int(line.split()[1]) * 1024


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
