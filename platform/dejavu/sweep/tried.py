"""What a sweep tried: kept beside Tune's own files, and shown in MLflow below the run that chose."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from dejavu.observability.tracking import Run
from dejavu.stages.score import SettingScore
from dejavu.storage.setting import Setting
from dejavu.storage.store import write_json
from dejavu.storage.store_path import StorePath
from dejavu.sweep.trial import validation_metrics
from reuse_models.method import MethodConfig
from reuse_models.registry import config_from_dict

SHOWN = (
    "quality",
    "gflops_per_frame",
    "reuse_rate",
    "cosine_to_dense",
    "agreement",
    "shortfall",
    "clips_share",
    "embed_s",
)


@dataclass(frozen=True, slots=True)
class Tried:
    """A setting, and what its trial reported last."""

    setting: Setting
    metrics: Mapping[str, float]

    @property
    def whole(self) -> bool:
        """Whether it was tried on all clips; else it was stopped before, and is never compared with others."""
        return self.metrics["clips_share"] == 1


def write_tried(path: StorePath, trials: Iterable[tuple[Mapping[str, Any], Mapping[str, Any]]]) -> None:
    """Write what a finished experiment tried: the config and the last report of each trial."""
    write_json(
        path,
        [
            {"setting": config["setting"], "metrics": {name: last[name] for name in SHOWN if name in last}}
            for config, last in trials
        ],
    )


def read_tried(path: StorePath, name: Callable[[MethodConfig], Setting]) -> list[Tried]:
    """Read what `write_tried` wrote."""
    rows = json.loads(path.read_text(encoding="utf-8"))
    return [Tried(name(config_from_dict(row["setting"]["config"])), row["metrics"]) for row in rows]


def tried_runs(
    scores: Sequence[SettingScore], stopped: Sequence[Tried], chosen: Sequence[Setting], tags: Mapping[str, str]
) -> list[Run]:
    """Return a run for each setting that was tried, kept apart from the points on test clips.

    Metrics are called `val_...`, and `part_...` where a trial was stopped, so that no chart of MLflow draws validation
    or part of it beside test.

    `scores` are on all validation clips, `stopped` those that were not tried on all.
    """
    ids = {setting.setting_id for setting in chosen}
    runs = [
        _run("val", score.setting, validation_metrics(score), {**tags, "chosen": str(score.setting.setting_id in ids)})
        for score in scores
    ]
    return runs + [_run("part", one.setting, one.metrics, {**tags, "chosen": "False"}) for one in stopped]


def _run(split: str, setting: Setting, metrics: Mapping[str, float], tags: Mapping[str, str]) -> Run:
    return Run(
        name=f"{split} {setting.method} {setting.label}",
        params={"method": setting.method, "setting": setting.label, "split": split},
        metrics={f"{split}_{name}": value for name, value in metrics.items()},
        tags={**tags, "split": split, "chosen": tags["chosen"].lower()},
    )
