"""The head by its own definitions; its numbers are compared with golden ones in test_temp_clip_golden.py."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from dejavu.tasks.temp_clip.head import PostNormLayer, TempClip, TempClipShape, gaussian_curve
from dejavu.tasks.temp_clip.weights import check_widths, head_from_state, load_temp_clip, read_weights, save_temp_clip

SHAPE = TempClipShape(feature_width=6, sentence_width=5, width=16, ffn_width=8, num_heads=2, num_frames=8)


def head() -> TempClip:
    torch.manual_seed(3)
    return TempClip(SHAPE)


def inputs(questions: int = 3) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(4)
    return torch.randn(questions, 8, 6, generator=generator), torch.randn(questions, 5, 5, generator=generator)


def test_the_curve_is_the_gaussian_scaled_to_its_peak() -> None:
    curve_BF = gaussian_curve(torch.tensor([0.5, 0.0]), torch.tensor([0.9, 0.45]), 11)
    place_F = torch.arange(11) / 10
    expected = torch.distributions.Normal(0.5, 0.1).log_prob(place_F).exp()
    torch.testing.assert_close(curve_BF[0], expected / expected.max())
    assert curve_BF[1, 0] == 1
    assert curve_BF[1, 1] == pytest.approx(torch.tensor(-2.0).exp().item(), rel=1e-4)


def test_the_narrowest_curve_between_two_frames_is_still_a_number() -> None:
    curve_BF = gaussian_curve(torch.tensor([0.5 / 31]), torch.tensor([0.0]), 32)
    assert torch.isfinite(curve_BF).all()
    assert curve_BF.max() == 1


def test_a_weight_of_ones_changes_nothing_and_a_weight_of_one_token_hides_the_others() -> None:
    torch.manual_seed(0)
    layer = PostNormLayer(SHAPE, 0.0)
    x_BND = torch.randn(2, 8, 16)
    torch.testing.assert_close(layer(x_BND, torch.ones(2, 8)), layer(x_BND))
    only = torch.zeros(2, 8)
    only[:, 3] = 1
    changed = x_BND.clone()
    changed[:, 5] += 1.0  # hidden, so that no other token sees it
    torch.testing.assert_close(layer(x_BND, only)[:, :5], layer(changed, only)[:, :5])


def test_answers_follow_their_candidates_and_the_span_does_not_depend_on_their_order() -> None:
    features, sentences = inputs()
    order = torch.tensor([4, 2, 0, 1, 3])
    with torch.no_grad():
        plain, turned = head()(features, sentences), head()(features, sentences[:, order])
    torch.testing.assert_close(turned.logits_BA, plain.logits_BA[:, order])
    torch.testing.assert_close(turned.span(), plain.span())


def test_a_question_is_answered_alike_alone_and_in_a_batch() -> None:
    features, sentences = inputs()
    with torch.no_grad():
        all_three, alone = head()(features, sentences), head()(features[1:2], sentences[1:2])
    torch.testing.assert_close(all_three.logits_BA[1:2], alone.logits_BA)
    torch.testing.assert_close(all_three.attention_BF.sum(dim=-1), torch.ones(3))


def test_with_one_candidate_the_known_query_is_the_largest_one() -> None:
    features, sentences = inputs()
    with torch.no_grad():
        known = head()(features, sentences[:, :1], torch.zeros(3, dtype=torch.long))
        found = head()(features, sentences[:, :1])
    torch.testing.assert_close(known.span(), found.span())


def test_the_span_reaches_a_ninth_of_the_width_to_both_sides() -> None:
    features, sentences = inputs()
    with torch.no_grad():
        grounded = head()(features, sentences)
    start, end = grounded.span(gamma=2.0).unbind(-1)
    torch.testing.assert_close((start + end) / 2, grounded.center_B)
    torch.testing.assert_close(end - start, 4 * grounded.width_B / 9)


def test_what_is_saved_reads_back(tmp_path: Path) -> None:
    first = head()
    text = {"embeddings.word_embeddings.weight": torch.ones(3, 5)}
    save_temp_clip(first, text, "some/encoder", tmp_path / "head.safetensors")
    found = load_temp_clip(tmp_path / "head.safetensors")
    assert found.head.shape == SHAPE
    assert found.text_encoder == "some/encoder"
    assert found.text.keys() == text.keys()
    for name, weight in first.state_dict().items():
        assert torch.equal(found.head.state_dict()[name], weight)


def test_a_head_for_other_widths_is_refused() -> None:
    check_widths(SHAPE, 6, 5)
    with pytest.raises(ValueError, match=r"frame embeddings of width 6, expected 768.*--backbone"):
        check_widths(SHAPE, 768, 5)
    with pytest.raises(ValueError, match=r"sentences of width 5, expected 7.*--task\.text-encoder"):
        check_widths(SHAPE, 6, 7)


def test_heads_that_do_not_divide_the_width_are_refused() -> None:
    with pytest.raises(ValueError, match="heads divide"):
        TempClipShape(feature_width=6, sentence_width=5, width=16, ffn_width=8, num_heads=3)


@pytest.mark.parametrize("fault", ["missing", "broken", "nan", "sizes"])
def test_a_checkpoint_that_does_not_do_is_refused_in_one_line(tmp_path: Path, fault: str) -> None:
    path = tmp_path / "head.safetensors"
    if fault != "missing":
        save_temp_clip(head(), {}, "backbone", path)
    if fault == "broken":
        path.write_bytes(path.read_bytes()[:100])
    if fault == "nan":
        spoilt = head()
        spoilt.out.bias.data[0] = torch.nan
        save_temp_clip(spoilt, {}, "backbone", path)
    if fault == "sizes":
        state = read_weights(path)
        state["vpos_proj.1.weight"] = torch.zeros(3, 3)
        with pytest.raises(ValueError, match="sizes that do not fit together"):
            head_from_state(state, 2)
        return
    match = {"missing": "got no file", "broken": "broken file", "nan": r"no numbers \(first vpos_proj\.1\.bias\)"}
    with pytest.raises(ValueError, match=match[fault]) as caught:
        load_temp_clip(path)
    assert "\n" not in str(caught.value)
