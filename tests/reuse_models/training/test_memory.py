"""The memory of a training worker by formula, against what autograd keeps and what a process grows by."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from reuse_models.reusevit.addon import addon_shape
from reuse_models.reusevit.frame_order import PUBLISHED_PATTERN
from reuse_models.tower.known_shapes import KNOWN_SHAPES
from reuse_models.tower.shape import VitShape
from reuse_models.tower.vit import Vit
from reuse_models.training.fit import Batch, Fit, FitConfig
from reuse_models.training.loss import LossConfig, Teacher
from reuse_models.training.memory import CPU_LOSS, FAVOURED_STEP_BYTES, GIB, TrainingMemory
from reuse_models.training.warm_up import WarmUpConfig, gather_pairs

ROOT = Path(__file__).resolve().parents[3]
CLIP = VitShape(
    image_px=64, patch_px=8, width=192, num_heads=3, num_layers=6, mlp_width=768, embed_dim=64, has_cls=True
)
SHAPES = {
    "clip": CLIP,
    "deeper": replace(CLIP, num_layers=12),
    "registers": replace(CLIP, num_registers=4, activation="gelu"),
    "rotary": replace(CLIP, rope_theta=100.0, activation="gelu"),
    "gated": replace(CLIP, gated_mlp=True, mlp_width=512, activation="silu"),
    "without CLS": replace(CLIP, has_cls=False, has_projection=False, has_pre_norm=False, embed_dim=192),
}
LARGE = KNOWN_SHAPES["openai/clip-vit-large-patch14"]
BASE = KNOWN_SHAPES["openai/clip-vit-base-patch16"]


def memory_of(shape: VitShape) -> TrainingMemory:
    return TrainingMemory(shape=shape, addon=addon_shape(shape), num_addons=2, shares_tower=True)


def batch_of(shape: VitShape, clips: int) -> Batch:
    generator = torch.Generator().manual_seed(0)
    frames, side = len(PUBLISHED_PATTERN), shape.patches_per_side
    pixels = torch.randn(clips, frames, 3, shape.image_px, shape.image_px, generator=generator)
    codec = torch.rand(clips, frames, 4, 4, side, side, generator=generator)
    return Batch(pixels, codec, Teacher(torch.randn(clips, frames, shape.embed_dim, generator=generator)))


def test_a_tower_that_embeds_in_another_type_is_beside_the_one_that_trains() -> None:
    same = replace(memory_of(BASE), calibration_frames=20_000)  # so long that calibration is widest
    other = replace(same, embedding_dtype=torch.bfloat16)
    num_weights = same.tower_bytes // 4
    assert other.peak_bytes(1) - same.peak_bytes(1) == num_weights * (2 + 4)  # read in float32
    assert replace(same, embedding_dtype=torch.float32).peak_bytes(1) == same.peak_bytes(1)
    on_gpu = replace(same, on_gpu=True, dtype=torch.bfloat16, embedding_dtype=torch.float32)
    assert on_gpu.embedding_tower_bytes == num_weights * 4
    assert replace(other, calibration_frames=64).calibrated_at_once(2) < replace(
        same, calibration_frames=64
    ).calibrated_at_once(2)


@pytest.mark.parametrize("name", SHAPES)
def test_what_is_kept_for_the_backward_pass_is_what_the_formula_says(name: str) -> None:
    shape = SHAPES[name]
    fit = Fit(Vit.random(shape), LossConfig(target_rate=0.8), FitConfig())
    fit.addon.train()
    weights = {weight.untyped_storage().data_ptr() for one in (fit.vit, fit.addon) for weight in one.parameters()}
    kept: dict[int, int] = {}

    def keep(x: torch.Tensor) -> torch.Tensor:
        if x.untyped_storage().data_ptr() not in weights:
            kept[x.untyped_storage().data_ptr()] = x.untyped_storage().nbytes()
        return x

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x):
        loss, _ = fit.forward(batch_of(shape, 2), fit._gate(0))
    assert loss.total.requires_grad
    memory = memory_of(shape)
    expected = memory.step_bytes(2) / CPU_LOSS - 2 * memory.passing_inputs * memory.input_bytes
    assert sum(kept.values()) == pytest.approx(expected, rel=0.1)


SCRIPT = """
import json, sys
sys.path[:0] = [sys.argv[1], "jobs/benchmarks"]
import torch
from apart import forget_peak, status_bytes
from test_memory import LossConfig, Fit, FitConfig, SHAPES, Vit, batch_of, replace
torch.set_num_threads(1)
shape = replace(SHAPES["clip"], **json.loads(sys.argv[2]))
fit = Fit(Vit.random(shape), LossConfig(target_rate=0.8), FitConfig())
batch = batch_of(shape, int(sys.argv[3]))
fit.step(batch_of(shape, 1))
forget_peak()
before = status_bytes("VmRSS")
fit.step(batch)
print(status_bytes("VmHWM") - before)
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads the peak of a process where Linux tells it")
@pytest.mark.parametrize(
    ("sizes", "clips"),
    [
        ({"image_px": 128}, 4),  # 257 tokens, as of a patch of 14 px
        ({"width": 384, "num_heads": 6, "mlp_width": 1536, "image_px": 112}, 3),  # 197 tokens
    ],
)
def test_a_step_takes_at_most_what_the_formula_says_and_not_half_of_it(sizes: dict[str, int], clips: int) -> None:
    command = [sys.executable, "-c", SCRIPT, str(Path(__file__).parent), json.dumps(sizes), str(clips)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    expected = memory_of(replace(CLIP, **sizes)).step_bytes(clips)  # type: ignore[arg-type]
    assert 0.5 * expected < int(done.stdout) < 1.15 * expected


def test_warm_up_counts_the_first_layers_input_of_its_clips_and_its_sample() -> None:
    vit = Vit.random(CLIP)
    config = WarmUpConfig(num_clips=4, num_pairs=100)
    batches = [batch_of(CLIP, 2).pixels_CF3HW for _ in range(2)]
    pairs = next(gather_pairs(vit, batches, PUBLISHED_PATTERN, config))
    held = sum(vit.embed(pixels_CF3HW.flatten(0, 1)).nbytes for pixels_CF3HW in batches)
    sample = sum(x.nbytes for x in (pairs.difference_XD, pairs.missing_X4D, pairs.importance_X, pairs.similarity_X))
    memory = replace(memory_of(CLIP), warm_up=config)
    without_layers = held + 4 * sample
    assert memory.warm_up_bytes(2) - 2 * 24 * memory.input_bytes * 6 / 5 == pytest.approx(without_layers, rel=1e-3)


def test_a_warm_up_that_is_left_out_takes_nothing() -> None:
    assert replace(memory_of(LARGE), warm_up=WarmUpConfig(steps=0)).warm_up_bytes(1) == 0


def test_the_published_step_does_not_take_the_memory_of_sixteen_windows() -> None:
    memory = memory_of(BASE)
    clips = memory.clips_at_once(100 * GIB)
    assert clips == 2
    assert memory.step_bytes(clips) <= FAVOURED_STEP_BYTES < memory.step_bytes(clips + 1)
    assert memory.peak_bytes(clips) < 5 * GIB
    assert memory.peak_bytes(16) > 10 * GIB


def test_a_large_tower_trains_a_window_at_a_time_within_ten_gib_even_if_it_is_not_shared() -> None:
    memory = replace(memory_of(LARGE), num_addons=4, shares_tower=False)
    assert memory.clips_at_once(10 * GIB) == 1
    assert memory.peak_bytes(1) < 10 * GIB
    assert memory.clips_at_once(2 * GIB) == 0


def test_a_large_tower_in_bfloat16_fits_the_published_step_into_a_gpu_of_80_gb() -> None:
    memory = replace(memory_of(LARGE), num_addons=4, shares_tower=False, dtype=torch.bfloat16, on_gpu=True)
    assert memory.clips_at_once(int(0.9 * 80e9)) == 16


def test_validation_takes_no_more_at_once_than_the_rest_of_the_fit() -> None:
    for shape in (BASE, LARGE, CLIP):
        memory = memory_of(shape)
        assert memory.validated_at_once(1) >= 1
        assert memory.validated_at_once(1) * 26 * memory.input_bytes * CPU_LOSS <= memory.peak_bytes(1)


def test_a_clip_too_long_for_the_rest_is_calibrated_alone_and_counted() -> None:
    long = replace(memory_of(CLIP), calibration_frames=10**6)
    assert long.calibrated_at_once(1) == 1
    assert long.peak_bytes(1) > long.calibration_bytes > 10 * GIB
    assert memory_of(LARGE).calibrated_at_once(1) > 1


def test_tower_and_addons_are_counted_weight_by_weight() -> None:
    fit = Fit(Vit.random(CLIP), LossConfig(target_rate=0.8), FitConfig())
    memory = memory_of(CLIP)
    assert memory.tower_bytes == sum(weight.nbytes for weight in fit.vit.parameters())
    assert memory.addons_bytes == 2 * 5 * sum(weight.nbytes for weight in fit.addon.parameters())
