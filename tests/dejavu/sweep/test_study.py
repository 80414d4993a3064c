from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from torch import Tensor

from dejavu.backbones.load import EMBEDDED, load_backbone
from dejavu.embedding.batch import DecodedBatch, EmbedConfig, EmbedContext
from dejavu.records import Failure, Transcoded
from dejavu.stages.score import SettingScore
from dejavu.storage.setting import Setting, name_setting
from dejavu.storage.store import Store
from dejavu.sweep import study
from dejavu.sweep.study import (
    SweepConfig,
    choose,
    list_configs,
    list_ranges,
    look_at_tower,
    read_chosen,
    some_of,
    write_chosen,
)
from dejavu.video.decode import DecodedFrames
from reuse_models.baselines.cmc import CmcConfig
from reuse_models.baselines.diffrate.method import DiffRateConfig
from reuse_models.baselines.eventful import EventfulConfig
from reuse_models.baselines.residual_vit.method import ResidualVitConfig
from reuse_models.method import MethodConfig
from reuse_models.tower.known_shapes import KNOWN_SHAPES
from reuse_models.tower.shape import VitShape
from reuse_models.tower.vit import Vit
from tests.tune_spaces.towers import fake_tower
from tune_spaces.grid_inputs import GridInputs, Trained
from tune_spaces.grids import GRIDS, RANGES


def name(config: MethodConfig) -> Setting:
    return name_setting(config, "tower", {})


def score(config: MethodConfig, gflops: float, cosine: float) -> SettingScore:
    return SettingScore(
        setting=name(config),
        num_clips=1,
        num_frames=1,
        reuse_rate=0.0,
        gflops_per_frame=gflops,
        cosine_to_dense=cosine,
        task=None,
    )


def tower(shape: VitShape) -> GridInputs:
    trained = Trained(residual=ResidualVitConfig())
    return fake_tower(shape, trained)


SMALL = VitShape(
    image_px=128, patch_px=16, width=128, num_heads=4, num_layers=6, mlp_width=512, embed_dim=128, has_cls=True
)


def clip(name: str, content: str, num_frames: int) -> Transcoded:
    return Transcoded(
        clip_id=name,
        content_id=content,
        path="",
        num_frames=num_frames,
        frame_px=224,
        fps=8,
        duration_s=1,
        codec_metadata=True,
    )


def test_a_sweep_may_take_some_of_the_clips() -> None:
    """Whole clips, the first by content, until there are enough frames."""
    clips = [clip("x", "c", 5), clip("y", "a", 4), clip("z", "b", 3)]
    named = {count: [clip.clip_id for clip in some_of(clips, count)] for count in (1, 4, 5, 7, 8, 99)}
    assert named == {1: ["y"], 4: ["y"], 5: ["y", "z"], 7: ["y", "z"], 8: ["y", "z", "x"], 99: ["y", "z", "x"]}
    assert some_of(clips, None) == clips
    with pytest.raises(ValueError, match=r"sweep.num_frames: got 0, expected 1 or more"):
        SweepConfig(num_frames=0)


def test_what_clips_are_like_is_looked_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And kept in the store: a run that goes on asks again, and so does one with other clips or other shares."""
    failures = [Failure(clip_id="x", stage="embed", reason="a busy disk")]
    monkeypatch.setattr(study, "decode_batch", lambda some, _: DecodedBatch(tuple(some), (), tuple(failures)))
    asked: list[Sequence[float]] = []

    def statistic(vit: Vit, frames: Iterable[Tensor], shares: Sequence[float]) -> list[float]:
        asked.append(shares)
        return [10 * share for share in shares]

    statistic.__module__ = "reuse_models.baselines.cmc"  # whose code belongs to what is kept
    backbone = load_backbone(EMBEDDED)
    embedding = EmbedContext(EMBEDDED, Store(tmp_path), EmbedConfig())

    def look(clips: Sequence[Transcoded], shares: Sequence[float]) -> list[float]:
        return look_at_tower(backbone, clips, embedding, SweepConfig(), Trained()).probe(statistic, shares)

    clips = [clip("x", "c", 5), clip("y", "a", 4), clip("still", "b", 1)]
    look(clips, (0.1, 0.5))  # of fewer clips than were asked for: not kept
    failures.clear()
    asked.clear()
    assert look(clips, (0.1, 0.5)) == look(clips[::-1], (0.1, 0.5)) == look(clips[:2], (0.1, 0.5)) == [1.0, 5.0]
    assert asked == [(0.1, 0.5)]
    look(clips, (0.2,))
    look(clips[:1], (0.2,))
    assert asked == [(0.1, 0.5), (0.2,), (0.2,)]


def test_every_method_has_settings_that_follow_from_clips(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    frames = DecodedFrames(
        rgb_FHWC=np.random.default_rng(0).integers(0, 256, (4, 128, 128, 3), np.uint8),
        codec_F4PP=np.zeros((4, 4, 8, 8), np.float32),
        seconds_F=np.arange(4) / 2,
        picture_types="IPPP",
        codec_metadata=True,
    )
    monkeypatch.setattr(study, "decode_batch", lambda some, _: DecodedBatch(tuple(some), (frames,) * len(some), ()))
    backbone = load_backbone(EMBEDDED)
    embedding = EmbedContext(EMBEDDED, Store(tmp_path), EmbedConfig())
    trained = Trained(residual=ResidualVitConfig())
    tower = look_at_tower(backbone, [clip("x", "c", 4), clip("y", "a", 4)], embedding, SweepConfig(), trained)
    found = {config.method for config in list_configs(tower, backbone, SweepConfig())}
    assert found == set(GRIDS)
    assert "left out" not in capsys.readouterr().out
    assert set(list_ranges(tower, list_configs(tower, backbone, SweepConfig()))) == set(RANGES) & found


def test_a_dominated_setting_beside_another_is_never_chosen() -> None:
    cheap, worse, best = (EventfulConfig(refreshed_tokens=k) for k in (8, 16, 32))
    scores = [score(cheap, 1.0, 0.9), score(worse, 1.05, 0.8), score(best, 3.0, 0.95)]
    scores.append(score(EventfulConfig(refreshed_tokens=64), 3.1, 0.95))
    assert [setting.config for setting in choose(scores, 4)] == [cheap, best]


def test_the_choice_holds_most_of_the_frontier() -> None:
    """Against trying all choices of that size; steps of very different height, so that taking one by one is best."""
    costs, cosines = [1, 2, 3, 5, 6, 10], [0.3, 0.62, 0.64, 0.9, 0.91, 0.92]
    scores = [score(EventfulConfig(refreshed_tokens=k), k, q) for k, q in zip(costs, cosines, strict=True)]
    chosen = choose(scores, 2)
    assert [setting.config for setting in chosen] == [EventfulConfig(refreshed_tokens=k) for k in (2, 5)]

    def area(points: Sequence[tuple[float, float]]) -> float:
        # Area of the union of rectangles from (10, 0.46), on a grid fine enough for these numbers.
        grid = [(x / 10, 0.46 + y / 1000) for x in range(10, 100) for y in range(460)]
        return sum(any(cost <= x and cosine > y for cost, cosine in points) for x, y in grid)

    best = max(itertools.combinations(zip(costs, cosines, strict=True), 2), key=area)
    assert [cost for cost, _ in best] == [2, 5]


def test_what_is_chosen_costs_something_else() -> None:
    """A crowd at the frontier's knee adds area by hairs, and hides where the curve goes."""
    costs, cosines = [1.0, 2.9, 3.0, 3.05, 3.1, 4.0], [0.5, 0.86, 0.9, 0.905, 0.91, 0.911]
    scores = [score(EventfulConfig(refreshed_tokens=i), *one) for i, one in enumerate(zip(costs, cosines, strict=True))]
    assert [setting.config for setting in choose(scores, 4)] == [EventfulConfig(refreshed_tokens=k) for k in (0, 1, 5)]


def test_of_settings_as_good_at_the_same_cost_the_one_that_computes_fewest_frames_is_chosen() -> None:
    alike = [(1.0, 0.9, 0.8), (1.04, 0.895, 0.5), (1.05, 0.88, 0.2), (1.4, 0.9, 0.1)]
    scores = [
        replace(score(EventfulConfig(refreshed_tokens=i), *cost_and_quality), computed_share=share)
        for i, (*cost_and_quality, share) in enumerate(alike)
    ]
    assert [setting.config for setting in choose(scores, 1)] == [EventfulConfig(refreshed_tokens=1)]


def test_where_no_other_adds_area_the_best_at_another_cost_follows() -> None:
    """Validation clips are few: that a dearer setting scores a little lower on them does not hide it."""
    costs, cosines = [1.0, 1.05, 1.5, 1.55, 3.0], [0.9, 0.89, 0.87, 0.88, 0.3]
    scores = [
        score(EventfulConfig(refreshed_tokens=i + 1), *one) for i, one in enumerate(zip(costs, cosines, strict=True))
    ]
    scores.append(score(CmcConfig(threshold=3.0), 4.0, 0.9))
    tokens = [setting.config.refreshed_tokens for setting in choose(scores, 4) if setting.method == "eventful"]  # type: ignore[attr-defined]
    assert tokens == [1, 4]


def test_what_loses_half_is_never_chosen_unless_it_is_the_best_of_its_method() -> None:
    good, poor, only = EventfulConfig(refreshed_tokens=8), EventfulConfig(refreshed_tokens=2), CmcConfig(threshold=3.0)
    scores = [score(good, 2.0, 0.9), score(poor, 1.0, 0.4), score(only, 1.5, 0.3)]
    assert [setting.config for setting in choose(scores, 4)] == [good, only]


def test_each_method_has_its_own_frontier() -> None:
    scores = [score(EventfulConfig(refreshed_tokens=8), 1.0, 0.9), score(CmcConfig(threshold=3.0), 2.0, 0.5)]
    assert {setting.method for setting in choose(scores, 2)} == {"eventful", "cmc"}


def test_a_choice_reads_back_and_none_is_one_line(tmp_path: Path) -> None:
    store = Store(tmp_path)
    with pytest.raises(FileNotFoundError, match="run the sweep stage first"):
        read_chosen(store, name)
    chosen = [name(EventfulConfig(refreshed_tokens=8)), name(CmcConfig(threshold=2.5))]
    write_chosen(store, chosen)
    assert read_chosen(store, name) == chosen


def test_the_papers_grids_are_as_published() -> None:
    paper = tower(KNOWN_SHAPES["openai/clip-vit-large-patch14"])
    tokens = [config.refreshed_tokens for config in GRIDS["eventful"](paper, "paper")]  # type: ignore[attr-defined]
    thresholds = [config.threshold for config in GRIDS["cmc"](paper, "paper")]  # type: ignore[attr-defined]
    assert tokens == list(range(10, 151, 10))
    assert thresholds == list(range(3, 46, 3))


def test_elsewhere_tokens_are_shares_and_thresholds_quantiles() -> None:
    small = tower(SMALL)
    tokens = [config.refreshed_tokens for config in GRIDS["eventful"](small, "demo")]  # type: ignore[attr-defined]
    thresholds = [config.threshold for config in GRIDS["cmc"](small, "demo")]  # type: ignore[attr-defined]
    assert tokens == [4, 8, 16, 24, 32, 48]
    assert thresholds == [0.5, 1.0, 2.0, 4.0, 6.0, 7.5, 9.0, 9.7]


@pytest.mark.parametrize("method", sorted(GRIDS))
def test_tiny_tries_two_settings_of_each_method_and_all_are_named_apart(method: str) -> None:
    for density in ("tiny", "demo"):
        configs = GRIDS[method](tower(SMALL), density)  # type: ignore[arg-type]
        assert {config.method for config in configs} == {method}
        assert len({config.setting for config in configs}) == len(configs)
        assert density == "demo" or len(configs) == 2


def test_an_unknown_method_is_one_line() -> None:
    with pytest.raises(ValueError, match=r"sweep.methods: got \['magic'\], expected some of frame_skip"):
        SweepConfig(methods=("magic",))


def test_searched_schedules_take_the_place_of_uniform_ones() -> None:
    searched = DiffRateConfig(prune_kept=(65, 30), merge_kept=(65, 30), label="searched 0.627")
    small = tower(SMALL)
    assert [config.setting for config in GRIDS["diffrate"](small, "tiny")] == ["uniform 0.565", "uniform 0.689"]
    assert GRIDS["diffrate"](replace(small, trained=Trained(schedules=(searched,))), "demo") == (searched,)
