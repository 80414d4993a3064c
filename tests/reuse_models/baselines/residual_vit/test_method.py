"""ResidualViT against the whole tower with what is dropped masked out of its attention, one frame at a time."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from reuse_models.baselines.residual_vit.method import (
    ResidualTokenizer,
    ResidualVitConfig,
    distance,
    load_tokenizer,
    most_changed,
    num_kept,
    save_tokenizer,
)
from reuse_models.flops import dense_flops, flops_per_frame
from reuse_models.method import Encoded
from reuse_models.tower.hugging_face import from_hf
from reuse_models.tower.vit import Vit
from reuse_models.verify.counting import ExecutedFlops
from tests.reuse_models.conftest import _run as run
from tests.reuse_models.tower.test_hugging_face import TOWERS, randomised


def clips(vit: Vit) -> tuple[Tensor, ...]:
    """Three clips that drift, one of a single frame."""
    side = vit.shape.image_px
    drift = [torch.randn(length, 3, side, side).cumsum(0) for length in (7, 1, 4)]
    return tuple(0.3 * one + torch.randn(1, 3, side, side) for one in drift)


def trained(vit: Vit, folder: Path) -> str:
    """Weights that a fit might have found."""
    torch.manual_seed(3)
    path = folder / "token.safetensors"
    save_tokenizer(ResidualTokenizer(vit.shape).to(vit.position.device), path)
    return str(path)


@torch.no_grad()
def masked(vit: Vit, frame_3HW: Tensor, key_3HW: Tensor, kept: int, token_1D: Tensor | None) -> Tensor:
    """Compute every token, but let nobody look at those that are dropped."""
    far_A = F.avg_pool2d(
        (frame_3HW - key_3HW).abs().sum(0)[None, : _seen(vit), : _seen(vit)], vit.shape.patch_px
    ).flatten()
    dropped_A = far_A < far_A.sort(descending=True).values[kept - 1]
    h_1ND = vit.embed(frame_3HW[None])
    away_N = torch.cat([torch.zeros(vit.shape.num_prefix), torch.where(dropped_A, -torch.inf, 0.0)])
    if token_1D is not None:
        h_1ND, away_N = torch.cat([h_1ND, token_1D[None]], 1), F.pad(away_N, (0, 1))
    for index in range(vit.shape.num_layers - 1):
        attended_1ND = vit.attend(*vit.split_heads(vit.qkv(index, h_1ND)), away_N[None])
        h_1ND = vit.close(index, h_1ND, attended_1ND)
    embedding_E: Tensor = vit.finish_from_input(h_1ND, away_N[None])[0]
    return embedding_E


def _seen(vit: Vit) -> int:
    return vit.shape.patches_per_side * vit.shape.patch_px


# Where positions are rotary the whole tower has no place for one token more: there the next test looks at the token.
@pytest.mark.parametrize(
    ("name", "with_token"),
    [(name, False) for name in TOWERS] + [(name, True) for name in TOWERS if "dinov3" not in name],
)
def test_ragged_streams_are_the_tower_that_sees_no_dropped_patch(name: str, with_token: bool, tmp_path: Path) -> None:
    vit = from_hf(randomised(name))
    weights = trained(vit, tmp_path) if with_token else None
    config = ResidualVitConfig(weights=weights, every=3, keep=0.4)
    tokenizer = load_tokenizer(Path(weights), vit.shape) if weights else None
    some = clips(vit)
    encoded = run(config.build(vit), some, 2)
    for clip, embeddings in zip(some, encoded.embeddings, strict=True):
        for number, (frame, embedding_E) in enumerate(zip(clip, embeddings, strict=True)):
            key = clip[number - number % 3]
            with torch.no_grad():
                dense_1E = vit(key[None])
                token_1D = tokenizer(dense_1E)[0] if tokenizer else None
            kept = num_kept(vit.shape, 0.4)
            expected_E = masked(vit, frame, key, kept, token_1D) if number % 3 else dense_1E[0]
            torch.testing.assert_close(embedding_E, expected_E, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("name", TOWERS)
def test_work_is_what_runs_and_the_token_is_looked_at(name: str, tmp_path: Path) -> None:
    vit = from_hf(randomised(name))
    some = clips(vit)
    found: list[Encoded] = []
    for weights in (None, trained(vit, tmp_path)):
        method = ResidualVitConfig(weights=weights, every=2, keep=0.3).build(vit)
        with ExecutedFlops() as executed:
            found.append(run(method, some))
        counted = sum(float(flops_per_frame(vit.shape, work).sum()) for work in found[-1].work)
        assert counted == pytest.approx(executed.total, rel=0.01)
        assert counted < 0.9 * 12 * dense_flops(vit.shape)
        assert not any(reuse.any() for reuse in found[-1].reuse)
    plain, beside = (one.embeddings[0] for one in found)
    assert torch.equal(plain[::2], beside[::2])  # key frames
    assert not torch.allclose(plain[1::2], beside[1::2], atol=1e-3)


@pytest.mark.parametrize("frames_per_call", [1, 3, None])
def test_a_stream_goes_on_where_it_was_left(clip_vit: Vit, frames_per_call: int | None, tmp_path: Path) -> None:
    config = ResidualVitConfig(weights=trained(clip_vit, tmp_path), every=3, keep=0.25)
    some = clips(clip_vit)
    whole, parts = (run(config.build(clip_vit), some, count).embeddings for count in (None, frames_per_call))
    for one, other in zip(whole, parts, strict=True):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-5)


def test_all_patches_without_a_token_are_dense(any_vit: Vit) -> None:
    clip = torch.randn(4, 3, any_vit.shape.image_px, any_vit.shape.image_px)
    embeddings = run(ResidualVitConfig(every=2, keep=1.0).build(any_vit), (clip,)).embeddings[0]
    with torch.no_grad():
        torch.testing.assert_close(embeddings, any_vit(clip), atol=1e-4, rtol=1e-4)


def test_where_nothing_moved_the_first_patches_are_taken(clip_vit: Vit) -> None:
    still = torch.zeros(2, 3, 32, 32)
    assert most_changed(clip_vit.shape, still, still, 3).tolist() == [[0, 1, 2]] * 2
    moved = still.clone()
    moved[0, :, -1, -1], moved[1, :, 0, 12] = 1.0, 1.0
    assert most_changed(clip_vit.shape, moved, still, 2).tolist() == [[0, 15], [0, 1]]
    # As on a GPU, all at once.
    torch.testing.assert_close(distance(moved, still), torch.stack([*map(distance, moved, still)]), rtol=0, atol=0)


@pytest.mark.parametrize(
    ("values", "said"),
    [({"every": 0}, "every: got 0"), ({"keep": 0.0}, "keep: got 0"), ({"keep": 25.0}, "keep: got 25")],
)
def test_values_out_of_range_are_refused(values: dict[str, float], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        ResidualVitConfig(**values)  # type: ignore[arg-type]


def test_weights_that_are_none_or_another_towers_are_refused(clip_vit: Vit, siglip_vit: Vit, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"residual token .*absent.*expected a safetensors file"):
        ResidualVitConfig(weights=str(tmp_path / "absent.safetensors")).build(clip_vit)
    (tmp_path / "broken.safetensors").write_bytes(b"no weights")
    with pytest.raises(ValueError, match=r"residual token .*broken.*expected a safetensors file"):
        ResidualVitConfig(weights=str(tmp_path / "broken.safetensors")).build(clip_vit)
    with pytest.raises(ValueError, match=r"expected .*'weight_DE': \[32, 32\].* on this tower"):
        ResidualVitConfig(weights=trained(clip_vit, tmp_path)).build(siglip_vit)


def test_a_state_without_memory_can_be_looked_at(clip_vit: Vit, tmp_path: Path) -> None:
    """As where the memory of embedding is estimated."""
    config = ResidualVitConfig(weights=trained(clip_vit, tmp_path))
    with torch.device("meta"):
        memory = config.build(Vit.random(clip_vit.shape)).start(2)
    assert memory.key_B3HW.shape == (2, 3, 32, 32)
