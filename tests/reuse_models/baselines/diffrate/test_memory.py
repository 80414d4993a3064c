"""The search's memory against what autograd keeps and what a process of its own really takes."""

from __future__ import annotations

import json
import subprocess
import sys
import weakref
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from reuse_models.baselines.diffrate.relaxed import RelaxedCounts, kept_values, plan_turns, relaxed_embed, search_bytes
from reuse_models.baselines.diffrate.search import SearchConfig, _Search, relaxed_counts, search_schedule
from reuse_models.tower.known_shapes import KNOWN_SHAPES
from reuse_models.tower.shape import VitShape
from reuse_models.tower.vit import Vit

ROOT = Path(__file__).resolve().parents[4]
SHAPE = VitShape(
    image_px=64, patch_px=8, width=96, num_heads=6, num_layers=4, mlp_width=160, embed_dim=24, has_cls=True
)
SMALL_14 = VitShape(
    image_px=224, patch_px=14, width=384, num_heads=6, num_layers=12, mlp_width=1536, embed_dim=384, has_cls=True
)
"""ViT-S/14's, of 257 tokens."""


class Kept:
    """What the backward pass holds of one tensor."""

    def __init__(self, x: Tensor) -> None:
        self.x = x


def kept_bytes(shape: VitShape, num_frames: int, recompute: bool = False) -> int:
    """Count the bytes that autograd holds after a forward pass, weights left out."""
    vit = Vit.random(shape)
    weights = {weight.untyped_storage().data_ptr() for weight in vit.parameters()}
    packed: list[weakref.ref[Kept]] = []

    def pack(x: Tensor) -> Kept:
        kept = Kept(x)
        packed.append(weakref.ref(kept))
        return kept

    frames = torch.randn(num_frames, 3, shape.image_px, shape.image_px)
    logits_2l = torch.full((2, shape.num_layers - 1), 2.5, dtype=torch.float64, requires_grad=True)
    counts = relaxed_counts(shape, logits_2l)
    there = RelaxedCounts(counts.pruned_l.float(), counts.merged_l.float())
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda kept: kept.x):
        embedding_BE = relaxed_embed(vit, frames, there, 0.3, recompute=recompute)
    alive = [kept.x.untyped_storage() for ref in packed if (kept := ref()) is not None]
    del embedding_BE
    return sum(
        {storage.data_ptr(): storage.nbytes() for storage in alive if storage.data_ptr() not in weights}.values()
    )


def test_what_a_layer_keeps_of_a_frame_is_the_formula() -> None:
    """From the second layer on: the first one's input has no gradient."""
    a_frame = {
        layers: kept_bytes(replace(SHAPE, num_layers=layers), 2) - kept_bytes(replace(SHAPE, num_layers=layers), 1)
        for layers in (4, 5)
    }
    assert a_frame[5] - a_frame[4] == 4 * kept_values(SHAPE)
    assert a_frame[5] < 4 * 4 * kept_values(SHAPE)


def test_recomputed_layers_keep_their_inputs_alone() -> None:
    a_frame = kept_bytes(SHAPE, 2, recompute=True) - kept_bytes(SHAPE, 1, recompute=True)
    turns = plan_turns(SHAPE, 24, 1)
    assert turns.recompute
    assert a_frame < turns.kept_bytes / turns.num_frames
    assert a_frame < 0.25 * (kept_bytes(SHAPE, 2) - kept_bytes(SHAPE, 1))


@pytest.mark.parametrize("kept_mib", [1, 2, 4, 8, 10**6])
def test_turns_keep_to_what_is_allowed(kept_mib: int) -> None:
    turns = plan_turns(SHAPE, 24, kept_mib)
    assert turns.kept_bytes <= kept_mib * 2**20
    assert turns.num_frames == {1: 1, 2: 1, 4: 2, 8: 5, 10**6: 24}[kept_mib]
    assert turns.recompute == (kept_mib == 1)


@pytest.mark.parametrize(("num_frames", "recompute"), [(1, False), (5, False), (1, True), (24, True)])
def test_turns_give_the_gradient_of_the_whole_step(num_frames: int, recompute: bool) -> None:
    vit, config = Vit.random(SHAPE, seed=5).double(), SearchConfig(frames_per_step=12)
    frames = torch.randn(30, 3, 64, 64, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    whole = _Search(vit, frames, 0.6, config, lambda some: some)
    assert (whole.turns.num_frames, whole.turns.recompute) == (12, False)
    some = _Search(vit, frames, 0.6, config, lambda some: some)
    some.turns = replace(whole.turns, num_frames=num_frames, recompute=recompute)
    logits_2l = torch.full((2, 3), 2.0, dtype=torch.float64)
    counts = relaxed_counts(SHAPE, logits_2l)
    with torch.enable_grad():
        expected = whole._error_gradient(counts, torch.arange(12), 0.3)
        found = some._error_gradient(counts, torch.arange(12), 0.3)
    assert expected[0].abs().min() > 0
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-15)


def test_bytes_prepared_when_needed_give_the_schedule_of_prepared_frames() -> None:
    vit = Vit.random(SHAPE, seed=5)
    bytes_FHW3 = torch.randint(0, 256, (40, 64, 64, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))

    def prepare(some: Tensor) -> Tensor:
        return some.permute(0, 3, 1, 2).float() / 128 - 1

    config = SearchConfig(steps=2, frames_per_step=8)
    expected = search_schedule(vit, prepare(bytes_FHW3), 0.6, config)
    assert search_schedule(vit, bytes_FHW3, 0.6, config, prepare) == expected


STEP = """
import json, sys
sys.path.insert(0, "jobs/benchmarks")
import torch
from apart import forget_peak, status_bytes
from reuse_models.baselines.diffrate.relaxed import *
from reuse_models.baselines.diffrate.search import *
from reuse_models.baselines.diffrate.search import _Search, relaxed_counts
from reuse_models.tower.vit import Vit
from reuse_models.tower.shape import VitShape
from reuse_models.training.memory import return_large_blocks
torch.set_num_threads(1)
return_large_blocks()
shape, config = VitShape(**json.loads(sys.argv[1])), SearchConfig(**json.loads(sys.argv[2]))
vit = Vit.random(shape)
forget_peak()
before, library = status_bytes("VmRSS"), status_bytes("RssFile")
frames = torch.randint(0, 256, (2 * config.frames_per_step, shape.image_px, shape.image_px, 3), dtype=torch.uint8)
prepare = lambda some: some.permute(0, 3, 1, 2).float() / 128 - 1
search = _Search(vit, frames, 0.7, config, prepare)
counts = relaxed_counts(shape, torch.full((2, shape.num_layers - 1), 2.5, dtype=torch.float64))
with torch.enable_grad():
    search._error_gradient(counts, search.learned_F[:config.frames_per_step], 0.3)
# Pages of torch's own library that a short machine had taken back are no memory of the search.
again = max(0, status_bytes("RssFile") - library)
print(json.dumps({"grown": status_bytes("VmHWM") - before - again, "whole": status_bytes("VmHWM")}))
"""


def measured(shape: VitShape, config: SearchConfig) -> dict[str, int]:
    """Judge all frames densely and take one step's gradient in a process of its own."""
    sizes = {name: getattr(shape, name) for name in VitShape.__dataclass_fields__}
    settings = {"frames_per_step": config.frames_per_step, "kept_mib": config.kept_mib}
    done = subprocess.run(
        [sys.executable, "-c", STEP, json.dumps(sizes), json.dumps(settings)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    row: dict[str, int] = json.loads(done.stdout.strip().splitlines()[-1])
    return row


def bound(shape: VitShape, config: SearchConfig) -> int:
    turns = plan_turns(shape, config.frames_per_step, config.kept_mib)
    return search_bytes(shape, turns, 2 * config.frames_per_step, 3 * shape.image_px**2)


@pytest.mark.slow
@pytest.mark.parametrize("kept_mib", [64, 200])
def test_a_process_grows_by_no_more_than_the_bound(kept_mib: int) -> None:
    """At 257 tokens, a frame at a time with its layers computed twice, and two with all of them kept."""
    config = SearchConfig(frames_per_step=4, kept_mib=kept_mib)
    turns = plan_turns(SMALL_14, 4, kept_mib)
    assert turns.recompute == (kept_mib == 64)
    grown = measured(SMALL_14, config)["grown"]
    assert 0.4 * bound(SMALL_14, config) < grown < bound(SMALL_14, config)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "frames_per_step", "num_turns"),
    [("openai/clip-vit-base-patch16", 3, 1), ("openai/clip-vit-large-patch14", 2, 2)],
)
def test_the_defaults_take_less_than_4_gib_on_published_towers(name: str, frames_per_step: int, num_turns: int) -> None:
    """And what is kept twice, such as a turn beside the one before, does not fit in the bound."""
    shape, config = KNOWN_SHAPES[name], SearchConfig(frames_per_step=frames_per_step)
    turns = plan_turns(shape, frames_per_step, config.kept_mib)
    assert turns.num_frames * num_turns == frames_per_step
    row = measured(shape, config)
    assert row["grown"] < bound(shape, config) < row["grown"] + turns.kept_bytes
    assert row["whole"] < 4 * 2**30
