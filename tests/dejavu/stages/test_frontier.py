from __future__ import annotations

import json
from pathlib import Path

import pytest

from dejavu.embedding.batch import EmbedConfig
from dejavu.observability.tracking import Tracking
from dejavu.records import ParetoPoint
from dejavu.stages.frontier import Evidence, Journal, compare, describe, draw_frontier, gather_points, log_frontier
from dejavu.stages.measure import Timing
from dejavu.stages.score import SettingScore
from dejavu.storage.setting import name_setting
from dejavu.tasks.neighbours import Agreement
from reuse_models.baselines.frame_skip import FrameSkipConfig
from reuse_models.baselines.original import OriginalConfig
from reuse_models.method import MethodConfig
from reuse_models.reusevit.method import ReuseVitConfig
from reuse_models.tower.shape import VitShape

pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]

TAGS = {"recipe": "tiny", "git_commit": "abc"}


def point(method: str, setting: str, accuracy: float, reduction: float) -> ParetoPoint:
    """A setting of 4 clips with an accuracy and a cost."""
    cost = {"gflops_per_frame": 1 / reduction, "flops_reduction": reduction, "speedup": reduction / 2}
    return ParetoPoint(
        method=method, setting=setting, split="test", num_clips=4, accuracy=accuracy, dense_precision="float32", **cost,
    )  # fmt: skip


def test_the_ui_is_told_what_to_show(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    (tmp_path / "config.yaml").write_text("recipe: tiny\n")
    (tmp_path / "failures.csv").write_text("clip,stage,reason\n")
    points = [
        point("original", "dense", 0.90, 1.0),
        point("cmc", "t=3", 0.89, 2.0),
        point("cmc", "t=9", 0.50, 4.0),
        point("eventful", "k=8", 0.40, 3.0),
    ]
    draw_frontier(points, tmp_path, title="test", published=False)
    tracking = Tracking.open(tmp_path)
    parent_id = log_frontier(points, Journal(tracking, TAGS), tmp_path)

    import mlflow

    client = mlflow.MlflowClient(tracking.uri)
    parent = client.get_run(parent_id)
    assert parent.data.metrics["best_flops_reduction_within_2pct/cmc"] == 2.0
    assert "best_flops_reduction_within_2pct/eventful" not in parent.data.metrics
    rows = [line for line in parent.data.tags["mlflow.note.content"].splitlines() if line.startswith("| CMC")]
    assert rows == ["| CMC | t=3 | 0.890 | 1.00x | 2.00x fewer |"]

    children = client.search_runs([tracking.experiment_id], f"tags.`mlflow.parentRunId` = '{parent_id}'")
    assert sorted(run.info.run_name for run in children) == ["cmc t=3", "cmc t=9", "eventful k=8", "original dense"]
    assert all(run.data.params["num_clips"] == "4" and "num_clips" not in run.data.metrics for run in children)
    assert all(run.data.tags["dense_precision"] == "float32" for run in children)
    colours = {run.data.params["method"]: run.data.tags["mlflow.runColor"] for run in children}
    assert len(set(colours.values())) == 3

    experiment = client.get_experiment(tracking.experiment_id)
    view = json.loads(experiment.tags["mlflow.sharedViewState.pareto"])
    assert parent_id in view["state"]


def test_a_run_without_a_good_setting_says_so() -> None:
    text = describe([point("original", "dense", 0.9, 1.0), point("cmc", "t=9", 0.5, 4.0)], "accuracy", "/#/here")
    assert "No setting of another method is within 2 % of Original's accuracy, right answers" in text
    assert "(/#/here)" in text
    assert "|" not in text
    assert "| CMC | t=9 | 0.500 |" in describe(
        [point("original", "dense", 0.9, 1.0), point("cmc", "t=9", 0.5, 4.0)], "accuracy", "/#/here", 0.5
    )


def kept(config: MethodConfig, gflops: float, *shares: tuple[float, ...]) -> SettingScore:
    """A setting without answers, and what stayed of the neighbours of each clip's frames."""
    by_clip = {f"clip{index}": some for index, some in enumerate(shares)}
    mean = sum(map(sum, shares)) / sum(map(len, shares))
    return SettingScore(
        name_setting(config, "tower", EmbedConfig().shaping()), len(shares), 4, 0.5, gflops,
        0.9, None, agreement=Agreement(mean, by_clip),
    )  # fmt: skip


def test_the_clock_is_carried_from_the_timed_clips_to_all() -> None:
    original, skip = kept(OriginalConfig(), 4.0, (1.0,)), kept(FrameSkipConfig(every=2), 2.0, (0.9,))
    timing = Timing(
        ms_per_frame=1.0, speedup=3.6, decode_ms_per_frame=0.5, codec_ms_per_frame=0.1, peak_memory_mb=1.0,
        hardware="here", gflops_per_frame=1.0, dense="float32", num_clips=1, num_rounds=3,
    )  # fmt: skip
    shape = VitShape(
        image_px=32, patch_px=8, width=48, num_heads=3, num_layers=4, mlp_width=96, embed_dim=24, has_cls=True
    )
    _, point = gather_points(Evidence([original, skip], {skip.setting.setting_id: timing}, shape, 0))
    assert (point.flops_reduction, point.timed_flops_reduction, point.timed_speedup) == (2.0, 4.0, 3.6)
    assert point.speedup == pytest.approx(3.6 * 2 / 4)  # 0.9 of what its FLOPs promise, there and over all clips


def test_without_answers_agreement_is_compared_at_equal_flops() -> None:
    ours = kept(ReuseVitConfig(forced_rate=0.5), 1.5, (0.9, 0.7), (0.8,))
    skips = [
        kept(FrameSkipConfig(every=4), 1.0, (0.4, 0.4), (0.4,)),
        kept(FrameSkipConfig(every=2), 2.0, (1.0, 0.6), (0.8,)),
    ]
    original = kept(OriginalConfig(), 4.0, (1.0, 1.0), (1.0,))
    shape = VitShape(
        image_px=32, patch_px=8, width=48, num_heads=3, num_layers=4, mlp_width=96, embed_dim=24, has_cls=True
    )
    evidence = Evidence([original, ours, *skips], {}, shape, 0)
    (lead,) = compare(ours, evidence)
    assert (lead.baseline, lead.setting) == ("frame_skip", ours.setting.label)
    assert lead.difference.mean == pytest.approx(0.8 - 0.6)
    assert lead.difference.low <= 0.2 <= lead.difference.high
    assert compare(skips[0], evidence) == []
