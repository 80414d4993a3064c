"""A search over every method at once: an Optuna study for each, asked in turn, with two objectives."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import optuna
from optuna.study import StudyDirection
from ray.tune.search import Searcher
from ray.tune.search.optuna import OptunaSearch

from dejavu.stages.score import SettingScore
from dejavu.storage.setting import Setting
from dejavu.sweep.trial import quality
from reuse_models.method import MethodConfig
from tune_spaces.grid_inputs import Ranges

OBJECTIVES = {"quality": "max", "gflops_per_frame": "min"}
_DIRECTIONS = {"max": StudyDirection.MAXIMIZE, "min": StudyDirection.MINIMIZE}
MAX_REPEATS = 50
"""Suggestions in a row that were tried before, after which a method has nothing new left."""

Name = Callable[[MethodConfig], Setting]
"""Must be picklable: Tune keeps the search on disk."""


class MethodSearch(OptunaSearch):
    """Asks each method's study in turn: in a single study, the best method would take all the samples.

    Saved and restored by OptunaSearch, which keeps every attribute.
    """

    def __init__(
        self,
        ranges: Mapping[str, Ranges],
        grid: Sequence[SettingScore],
        name: Name,
        *,
        num_samples: int,
        seed: int,
    ) -> None:
        """Tell each study what the grid has shown.

        The grid's settings are not suggested again; of each method come `num_samples` new ones at most.
        """
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        super().__init__(metric=list(OBJECTIVES), mode=list(OBJECTIVES.values()))
        self.ranges, self.name, self.num_samples = dict(ranges), name, num_samples
        self.studies = {method: _study(method, one, grid, seed) for method, one in ranges.items()}
        self.turns = list(ranges)
        self.seen = {score.setting.setting_id for score in grid}
        self.asked: dict[str, tuple[str, str]] = {}
        """Trial id -> method, and the id under which its study knows the trial."""

    def suggest(self, trial_id: str) -> dict[str, Any] | str:  # type: ignore[override]  # Ray's lacks FINISHED
        """Return a setting that was not tried yet, of the method whose turn it is."""
        while self.turns:
            method = self.turns.pop(0)
            setting = self._new(method, trial_id)
            if setting is None:
                continue
            if Counter(method for method, _ in self.asked.values())[method] < self.num_samples:
                self.turns.append(method)
            return {"setting": setting.to_row()}
        return Searcher.FINISHED

    def _new(self, method: str, trial_id: str) -> Setting | None:
        for attempt in range(MAX_REPEATS):
            known_as = f"{trial_id}-{attempt}"
            setting = self.name(self.ranges[method].config(self.studies[method].suggest(known_as) or {}))
            if setting.setting_id not in self.seen:
                self.seen.add(setting.setting_id)
                self.asked[trial_id] = (method, known_as)
                return setting
            self.studies[method].on_trial_complete(known_as)
        return None

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        """Tell the study; of a trial that was stopped, that it was: part of the clips says nothing about all."""
        method, known_as = self.asked[trial_id]
        whole = result if result and result.get("clips_share") == 1 else None
        self.studies[method].on_trial_complete(known_as, whole, error)


def _study(method: str, ranges: Ranges, grid: Sequence[SettingScore], seed: int) -> OptunaSearch:
    storage = optuna.storages.InMemoryStorage()
    directions = [_DIRECTIONS[mode] for mode in OBJECTIVES.values()]
    study = optuna.create_study(storage=storage, study_name=method, directions=directions)
    for score in grid:
        values = ranges.values(score.setting.config)
        if values is not None:
            objectives = [quality(score), score.gflops_per_frame]
            study.add_trial(optuna.trial.create_trial(params=values, distributions=ranges.space, values=objectives))
    return OptunaSearch(
        ranges.space,
        metric=list(OBJECTIVES),
        mode=list(OBJECTIVES.values()),
        study_name=method,
        storage=storage,
        seed=seed,
    )
