from __future__ import annotations

from pathlib import Path

from dejavu.stages.score import SettingScore
from dejavu.storage.setting import Setting, name_setting
from dejavu.sweep.tried import Tried, read_tried, tried_runs, write_tried
from reuse_models.baselines.cmc import CmcConfig
from reuse_models.baselines.eventful import EventfulConfig
from reuse_models.method import MethodConfig


def name(config: MethodConfig) -> Setting:
    return name_setting(config, "tower", {})


WHOLE, STOPPED = name(EventfulConfig(refreshed_tokens=8)), name(CmcConfig(threshold=2.5))


def test_what_was_tried_reads_back(tmp_path: Path) -> None:
    rows = [
        ({"setting": WHOLE.to_row()}, {"quality": 0.5, "clips_share": 1.0, "embed_s": 2.0, "pid": 7}),
        ({"setting": STOPPED.to_row()}, {"quality": 0.4, "clips_share": 0.25, "embed_s": 1.0, "pid": 7}),
    ]
    write_tried(tmp_path / "tried.json", rows)
    tried = read_tried(tmp_path / "tried.json", name)
    assert [(one.setting, one.whole) for one in tried] == [(WHOLE, True), (STOPPED, False)]
    assert tried[0].metrics == {"quality": 0.5, "clips_share": 1.0, "embed_s": 2.0}


def test_no_metric_of_validation_or_of_part_of_it_is_called_as_one_of_test() -> None:
    score = SettingScore(
        setting=WHOLE,
        num_clips=1,
        num_frames=1,
        reuse_rate=0.5,
        gflops_per_frame=2.0,
        cosine_to_dense=0.9,
        task=None,
    )
    stopped = Tried(STOPPED, {"quality": 0.4, "clips_share": 0.25})
    val, part = tried_runs([score], [stopped], [WHOLE], {"recipe": "tiny"})
    assert (val.name, part.name) == ("val eventful k=8", "part cmc t=2.5")
    assert val.tags == {"recipe": "tiny", "split": "val", "chosen": "true"}
    assert part.tags == {"recipe": "tiny", "split": "part", "chosen": "false"}
    assert val.metrics["val_quality"] == 0.9
    assert part.metrics == {"part_quality": 0.4, "part_clips_share": 0.25}
    assert all(metric.startswith("val_") for metric in val.metrics)
    assert (val.params["split"], part.params["split"]) == ("val", "part")
