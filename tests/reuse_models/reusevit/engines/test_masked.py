"""The training forward against the published artifact's own numbers."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from reuse_models.artifact.weights import Variant, addon_from_state
from reuse_models.reusevit.addon import Addon, ReusePolicy, addon_shape
from reuse_models.reusevit.codec_net import codec_history
from reuse_models.reusevit.engines.masked import Clips, MaskedOutput, masked_forward
from reuse_models.reusevit.frame_order import PUBLISHED_PATTERN, FrameStep, schedule
from reuse_models.reusevit.gate import HardGate
from reuse_models.tower.vit import Vit
from reuse_models.training.loss import LossConfig, Teacher, counted_cosine, reuse_loss


@pytest.fixture(scope="module")
def golden(golden_dir: Path) -> Path:
    return golden_dir


@pytest.fixture(scope="module")
def state(golden: Path) -> dict[str, Tensor]:
    return load_file(golden / "reference_state.safetensors")


@pytest.fixture(scope="module")
def vit(golden_vit: Vit) -> Vit:
    return golden_vit


@pytest.fixture(scope="module")
def train(golden: Path) -> dict[str, Tensor]:
    return load_file(golden / "train_forward.safetensors")


def scores_of(addon: Addon, codec_F4PP: Tensor) -> Tensor:
    return addon.codec_net(codec_history(torch.zeros(3, *codec_F4PP.shape[1:]), codec_F4PP))


@pytest.fixture(scope="module")
def published(vit: Vit, state: dict[str, Tensor], train: dict[str, Tensor]) -> MaskedOutput:
    addon = addon_from_state(state, vit.shape, "as_trained")
    pattern = train["pattern"]
    assert [step.frame for step in PUBLISHED_PATTERN] == pattern.tolist()
    with torch.no_grad():
        scores = scores_of(addon, train["codec"])
        clips = Clips(train["pixels"][pattern][None], scores[pattern][None], PUBLISHED_PATTERN)
        return masked_forward(vit, ReusePolicy(addon, HardGate(addon.decisions), "chained"), clips, keep_last=True)


def test_codec_scores_equal_the_published_ones(vit: Vit, state: dict[str, Tensor], train: dict[str, Tensor]) -> None:
    addon = addon_from_state(state, vit.shape, "as_trained")
    with torch.no_grad():
        torch.testing.assert_close(scores_of(addon, train["codec"]), train["blobnet_map"][:, 0], atol=1e-5, rtol=0)


def test_published_references_are_those_of_the_pattern(train: dict[str, Tensor]) -> None:
    frames = [step.frame for step in PUBLISHED_PATTERN]
    for index, step in enumerate(PUBLISHED_PATTERN):
        allowed = train["ref_mask"][0, index].nonzero()[:, 0].tolist()
        assert [frames[i] for i in allowed] == list(step.candidates)
        assert train["ref_type"][0, index].argmax().item() == step.kind


def test_training_forward_equals_the_published_one(published: MaskedOutput, train: dict[str, Tensor]) -> None:
    assert torch.equal(published.reuse_CFbN, train["reuse_map"])
    assert 0.2 < published.reuse_CFbN[:, 1:].mean() < 0.95
    for ours, theirs in (
        (published.embeddings_CFE, train["image_embeds"]),
        (published.last_CFND, train["hidden_last"]),
        (published.second_last_CFND, train["hidden_2nd_last"]),
    ):
        torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=0)


@pytest.mark.parametrize("percent", [50, 80, 95])
def test_loss_equals_the_published_one(
    golden: Path, vit: Vit, published: MaskedOutput, train: dict[str, Tensor], percent: int
) -> None:
    expected = load_file(golden / f"loss_{percent}.safetensors")
    with torch.no_grad():
        h_BND = vit.embed(train["pixels"][train["pattern"]])
        hidden = []
        for layer in range(vit.shape.num_layers):
            h_BND = vit.run_layer(layer, h_BND)
            hidden.append(h_BND[None])
        teacher = Teacher(train["dense_embeds"][None], hidden[-2])
        loss = reuse_loss(published, teacher, LossConfig(target_rate=percent / 100, second_last_weight=1.5))
    for ours, name in (
        (loss.total, "loss"),
        (loss.embedding_error, "cls_error"),
        (1 - counted_cosine(train["hidden_2nd_last"], hidden[-2]).mean(), "hh_error"),
        (1 - counted_cosine(train["hidden_last"], hidden[-1]).mean(), "hidden_error"),
        (loss.rate, "reuse_rate"),
        (loss.rate_per_frame_CK, "reuse_rate_per_frame"),
    ):
        torch.testing.assert_close(ours, expected[name], atol=1e-5, rtol=0)


@pytest.mark.parametrize("variant", ["as_trained", "released"])
def test_grouped_reuse_equals_the_published_evaluation(
    golden: Path, vit: Vit, state: dict[str, Tensor], train: dict[str, Tensor], variant: Variant
) -> None:
    expected = load_file(golden / "group_eval.safetensors")
    addon = addon_from_state(state, vit.shape, variant)
    order = schedule(len(train["pixels"]))
    assert [step.frame for step in order] == [0, *expected["order"][1:].flatten().tolist()]
    frames = torch.tensor([step.frame for step in order])
    with torch.no_grad():
        clips = Clips(train["pixels"][frames][None], train["blobnet_map"][frames, 0][None], order)
        output = masked_forward(vit, ReusePolicy(addon, HardGate(addon.decisions), "grouped"), clips)
    embeds, maps = expected[f"{variant}_embeds"], expected[f"{variant}_reuse_map"]
    torch.testing.assert_close(output.embeddings_CFE[0, 1:], embeds[1:].flatten(0, 1), atol=1e-4, rtol=0)
    torch.testing.assert_close(output.embeddings_CFE[0, 0], embeds[0, 0], atol=1e-4, rtol=0)
    ours = output.reuse_CFbN[0, 1:].unflatten(0, (3, 4))
    assert torch.equal(ours, maps[1:, :, :, 0].transpose(1, 2))


def test_a_reference_that_was_not_computed_is_refused(vit: Vit) -> None:
    addon = Addon(addon_shape(vit.shape))
    steps = (FrameStep(0, (), 0), FrameStep(2, (1,), 0))
    side, patches = vit.shape.image_px, vit.shape.patches_per_side
    clips = Clips(torch.zeros(1, 2, 3, side, side), torch.zeros(1, 2, patches, patches), steps)
    with pytest.raises(ValueError, match="reference to frame 1"):
        masked_forward(vit, ReusePolicy(addon, HardGate(addon.decisions)), clips)
