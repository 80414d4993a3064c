"""Trials: the search for equal FLOPs, names that others' edits leave alone, and one trial from world to result."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from dejavu.ablation.footage import open_world, windows
from dejavu.ablation.trial import CLOSE, FIRST_BIASES, Point, Trial, fit_addon, measure, search
from dejavu.ablation.variants import DEFAULT_FIT, VARIANTS, Variant, changed
from dejavu.backbones.load import load_backbone
from dejavu.datasets.synthetic import SyntheticConfig
from dejavu.stages.score import build_eval_set
from reuse_models.reusevit.frame_order import PUBLISHED_PATTERN
from reuse_models.training.fit import FitConfig
from reuse_models.training.warm_up import WarmUpConfig


def logistic(bias: float) -> Point:
    reduction = 1.5 + 2.5 / (1 + np.exp(-1.3 * bias - 1))
    return Point(bias=bias, reduction=reduction, reuse_rate=0.0, cosine=0.0, acc_gqa=0.0, acc_qa=0.0)


def test_the_search_finds_a_point_close_to_each_reduction() -> None:
    points = search(logistic, (2.5, 3.0))
    for wanted in (2.5, 3.0):
        assert min(abs(point.reduction - wanted) for point in points) <= CLOSE
    assert len(points) <= len(FIRST_BIASES) + 8


def test_the_search_ends_where_a_reduction_is_out_of_reach() -> None:
    points = search(logistic, (5.0,))
    assert max(point.reduction for point in points) < 4.01
    assert len(points) <= len(FIRST_BIASES) + 4


def test_variants_that_differ_in_use_alone_share_a_fit() -> None:
    default, refreshed, bare = (Trial(VARIANTS[name], 0, 72) for name in ("default", "refresh=8", "restoration off"))
    assert default.fit_id("data") == refreshed.fit_id("data") != bare.fit_id("data")
    assert len({trial.result_id("data") for trial in (default, refreshed, bare)}) == 3
    assert default.fit_id("data") != replace(default, seed=1).fit_id("data")


def test_every_variant_has_a_name_of_its_own() -> None:
    ids = [Trial(variant, 0, 72).result_id("data") for variant in VARIANTS.values()]
    assert len(set(ids)) == len(ids)


def test_a_field_at_its_default_names_nothing() -> None:
    assert changed(FitConfig()) == {}
    assert changed(replace(FitConfig(), dropout=0.5)) == {"dropout": 0.5}


@pytest.mark.slow
def test_a_trial_runs_from_the_world_to_a_result(tmp_path: Path) -> None:
    backbone = load_backbone()
    config = SyntheticConfig(
        num_train=2, num_val=2, num_test=0, min_duration_s=8, max_duration_s=8, questions_per_video=2
    )
    world = open_world(tmp_path, config, backbone)
    clip = world.train[0]
    window = next(windows([clip], PUBLISHED_PATTERN, "destination", seed=0))
    first = next(
        start for start in range(clip.clip.num_frames) if np.array_equal(clip.rgb_FHWC[start], window.rgb_FHWC[0])
    )
    assert np.array_equal(window.rgb_FHWC[3], clip.rgb_FHWC[first + 12])
    assert np.array_equal(window.codec_F4TPP[5, :, 3], clip.codec["destination"][first + 11])
    eval_set = build_eval_set(
        [clip.clip for clip in world.validation], world.questions, backbone.embed_texts, "{answer}"
    )
    start = WarmUpConfig(steps=5, num_clips=4)
    trial = Trial(Variant(name="small", says="", fit=replace(DEFAULT_FIT, clips_per_step=2), start=start), 0, 2)
    fit_addon(trial, world, backbone, tmp_path / "small.safetensors")
    points = measure(trial, world, backbone, eval_set, tmp_path / "small.safetensors")
    assert [point.bias for point in points] == sorted(point.bias for point in points)
    seldom, often = points[0], points[-1]
    assert 1 <= seldom.reduction < often.reduction
    assert 1 >= seldom.cosine > often.cosine
    assert seldom.reuse_rate < often.reuse_rate
    assert 0 <= seldom.acc_gqa <= seldom.acc_qa <= 1
