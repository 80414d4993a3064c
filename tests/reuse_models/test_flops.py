"""The analytic FLOPs of every method equal what a counter sees executed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor
from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

from reuse_models.baselines.eventful_full import EventfulFullConfig
from reuse_models.baselines.tome import ToMeConfig
from reuse_models.flops import PARTS, dense_flops, dense_work, flops_per_frame
from reuse_models.method import Chunk, Encoded, MethodConfig, Work
from reuse_models.streams import Record
from reuse_models.tower.hugging_face import from_hf
from reuse_models.tower.known_shapes import KNOWN_SHAPES
from reuse_models.tower.vit import Vit
from reuse_models.verify.counting import ExecutedFlops
from tests.reuse_models.examples import example_configs

Run = Callable[..., Encoded]
EXTREMES: tuple[MethodConfig, ...] = (
    EventfulFullConfig(refreshed_tokens=12),
    ToMeConfig(merged_per_layer=100),
)


def settings_for(vit: Vit, clips: tuple[Tensor, ...]) -> list[MethodConfig]:
    """Of every method but ReuseViT, whose work is in test_method.py of its own."""
    return [config for config in (*example_configs(vit, clips).values(), *EXTREMES) if config.method != "reusevit"]


def test_a_call_in_which_nothing_is_computed_has_a_row_for_every_frame(any_vit: Vit) -> None:
    record = Record(
        any_vit.shape,
        Chunk((torch.zeros(3, 3, 1, 1), torch.zeros(0, 3, 1, 1)), None, (True, True)),
        torch.device("cpu"),
    )
    works = record.encoded(None).work
    assert [flops_per_frame(any_vit.shape, work).tolist() for work in works] == [[0.0, 0.0, 0.0], []]


def analytic(encoded: Encoded, vit: Vit) -> float:
    return sum(float(flops_per_frame(vit.shape, work).sum()) for work in encoded.work)


@pytest.mark.parametrize("frames_per_call", [None, 2])
def test_the_work_of_ragged_streams_is_what_runs(
    any_vit: Vit, ragged_clips: tuple[Tensor, ...], run: Run, frames_per_call: int | None
) -> None:
    for config in settings_for(any_vit, ragged_clips):
        with ExecutedFlops() as executed:
            encoded = run(config.build(any_vit), ragged_clips, frames_per_call)
        assert analytic(encoded, any_vit) == pytest.approx(executed.total, rel=0.01), config


def test_a_tower_of_one_layer_is_counted(clip_vit: Vit, ragged_clips: tuple[Tensor, ...], run: Run) -> None:
    vit = Vit.random(replace(clip_vit.shape, num_layers=1))
    for config in settings_for(clip_vit, ragged_clips):
        if config.method in ("diffrate", "tome"):  # which merge from the first frame on
            continue
        with ExecutedFlops() as executed:
            encoded = run(config.build(vit), ragged_clips)
        assert analytic(encoded, vit) == pytest.approx(executed.total, rel=0.01), config
        first = vit if config.method != "low_resolution" else config.build(vit).embed  # type: ignore[attr-defined]
        with torch.no_grad():
            torch.testing.assert_close(encoded.embeddings[2][0], first(ragged_clips[2][:1])[0])


def test_dense_is_counted_on_other_sizes() -> None:
    for name in ("openai/clip-vit-base-patch32", "google/siglip-base-patch16-224"):
        vit = Vit.random(replace(KNOWN_SHAPES[name], num_layers=2))
        side = vit.shape.image_px
        with torch.no_grad(), ExecutedFlops() as executed:
            vit(torch.zeros(1, 3, side, side))
        assert dense_flops(vit.shape) == pytest.approx(executed.total, rel=0.01)


def test_our_dense_tower_does_less_than_hugging_face_by_the_last_layers_patches() -> None:
    config = CLIPVisionConfig(
        hidden_size=32, intermediate_size=64, num_hidden_layers=3, num_attention_heads=4, image_size=32, patch_size=8
    )
    model = CLIPVisionModelWithProjection(config).eval()
    with torch.no_grad(), ExecutedFlops() as executed:
        model(torch.zeros(1, 3, 32, 32))
    shape = from_hf(model).shape
    patches, width = shape.num_patches, shape.width
    spared = patches * (2 * width**2 + 2 * width * shape.mlp_width) + 2 * width * patches * shape.num_tokens
    assert dense_flops(shape) + 2 * spared == executed.total


def test_the_dense_towers_cost_what_the_literature_says() -> None:
    # CLIP (arXiv:2103.00020): ViT-B/16 17.5 and ViT-L/14 81 GMAC; ours spares the last layer's patches.
    base, large = (dense_flops(KNOWN_SHAPES[f"openai/clip-vit-{n}"]) for n in ("base-patch16", "large-patch14"))
    assert 16.0e9 < base / 2 < 17.6e9
    assert 77.0e9 < large / 2 < 81.2e9


def test_unknown_or_misshapen_work_is_refused(clip_vit: Vit) -> None:
    shape = clip_vit.shape
    with pytest.raises(ValueError, match="work: got part 'softmax'"):
        flops_per_frame(shape, Work({"softmax": torch.ones(1, 1)}))
    with pytest.raises(ValueError, match=r"work mlp: got \[2, 1\], expected \[G, 3\]"):
        flops_per_frame(shape, Work({"mlp": torch.ones(2, 1)}))
    with pytest.raises(ValueError, match="got 2 frames, expected 1"):
        flops_per_frame(shape, Work({"mlp": torch.ones(1, 3), "head": torch.ones(2, 1)}))


def test_each_frame_has_its_own_figure(clip_vit: Vit) -> None:
    work = dense_work(clip_vit.shape, 2)
    work.parts["mlp"][1] = 0
    first, second = flops_per_frame(clip_vit.shape, work).tolist()
    mlp_tokens = 2 * clip_vit.shape.num_tokens + 1
    assert first - second == 2 * mlp_tokens * PARTS["mlp"].macs(clip_vit.shape)
