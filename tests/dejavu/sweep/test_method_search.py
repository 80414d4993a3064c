from __future__ import annotations

from collections import Counter
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from optuna.trial import TrialState
from ray.tune.search import Searcher

from dejavu.stages.score import SettingScore
from dejavu.storage.setting import name_setting
from dejavu.sweep.method_search import MethodSearch
from reuse_models.method import MethodConfig
from reuse_models.tower.shape import VitShape
from tests.tune_spaces.towers import fake_tower
from tune_spaces.grids import GRIDS, RANGES

SMALL = VitShape(
    image_px=128, patch_px=16, width=128, num_heads=4, num_layers=6, mlp_width=512, embed_dim=128, has_cls=True
)
TOWER = fake_tower(SMALL)
NAME = partial(name_setting, backbone_identity="tower", embedding={})


def score(config: MethodConfig, gflops: float, cosine: float) -> SettingScore:
    return SettingScore(
        setting=NAME(config),
        num_clips=1,
        num_frames=1,
        reuse_rate=0.0,
        gflops_per_frame=gflops,
        cosine_to_dense=cosine,
        task=None,
    )


def grid(methods: tuple[str, ...]) -> list[SettingScore]:
    configs = [config for method in methods for config in GRIDS[method](TOWER, "demo")]
    return [score(config, 1.0 + index, 0.5 + index / 100) for index, config in enumerate(configs)]


def search(*methods: str, num_samples: int, seed: int = 0) -> MethodSearch:
    ranges = {method: RANGES[method](TOWER) for method in methods}
    return MethodSearch(ranges, grid(methods), NAME, num_samples=num_samples, seed=seed)


def suggest_all(searcher: MethodSearch, first: int = 0, most: int = 1000) -> list[dict[str, Any]]:
    """Take suggestions until there are no more, each answered at once."""
    found: list[dict[str, Any]] = []
    for number in range(first, first + most):
        suggested = searcher.suggest(f"trial{number}")
        if suggested == Searcher.FINISHED:
            break
        assert isinstance(suggested, dict)
        found.append(suggested["setting"])
        result = {"quality": 0.5 + number / 1000, "gflops_per_frame": 5.0 - number / 100, "clips_share": 1.0}
        searcher.on_trial_complete(f"trial{number}", result)
    return found


def test_methods_take_turns_and_each_gets_its_share() -> None:
    found = suggest_all(search("eventful", "cmc", "tome", num_samples=3))
    assert [row["config"]["method"] for row in found] == ["eventful", "cmc", "tome"] * 3


def test_nothing_is_tried_twice_and_a_small_range_ends_early() -> None:
    methods = ("frame_skip", "eventful")
    found = suggest_all(search(*methods, num_samples=25))
    ids = [row["id"] for row in found]
    assert len(set(ids)) == len(ids)
    assert not set(ids) & {one.setting.setting_id for one in grid(methods)}
    counts = Counter(row["config"]["method"] for row in found)
    assert counts["eventful"] == 25
    assert counts["frame_skip"] == 2 * (15 - 5)  # of 2..16 frames, repeated or blended, less the grid


def test_the_seed_decides() -> None:
    first, again, other = (suggest_all(search("cmc", num_samples=4, seed=seed)) for seed in (1, 1, 2))
    assert first == again
    assert first != other


def test_a_study_knows_the_grid_and_both_objectives() -> None:
    searcher = search("cmc", num_samples=1)
    study = searcher.studies["cmc"]._ot_study
    assert [trial.values for trial in study.trials] == [
        [pytest.approx(0.5 + index / 100), 1.0 + index] for index in range(len(GRIDS["cmc"](TOWER, "demo")))
    ]
    assert [direction.name for direction in study.directions] == ["MAXIMIZE", "MINIMIZE"]


def test_a_study_never_hears_what_part_of_the_clips_said() -> None:
    searcher = search("cmc", num_samples=2)
    for trial_id, share in (("whole", 1.0), ("stopped", 0.25)):
        searcher.suggest(trial_id)
        result = {"quality": 0.9, "gflops_per_frame": 1.0, "clips_share": share}
        searcher.on_trial_complete(trial_id, result)
    whole, stopped = searcher.studies["cmc"]._ot_study.trials[-2:]
    assert (whole.state, whole.values) == (TrialState.COMPLETE, [0.9, 1.0])
    assert (stopped.state, stopped.values) == (TrialState.PRUNED, None)


def test_a_restored_search_goes_on_as_if_it_had_not_ended(tmp_path: Path) -> None:
    through = suggest_all(search("eventful", "cmc", num_samples=12))
    broken_off = search("eventful", "cmc", num_samples=12)
    before = suggest_all(broken_off, most=9)
    broken_off.save(str(tmp_path / "state"))
    restored = search("eventful", "cmc", num_samples=12)
    restored.restore(str(tmp_path / "state"))
    assert before + suggest_all(restored, first=9) == through
