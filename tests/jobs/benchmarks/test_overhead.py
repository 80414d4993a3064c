"""The load benchmark's kernels leave what real ones leave, and its figures are of runs that did their work."""

from __future__ import annotations

import json
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest

from dejavu.embedding.batch import EmbedConfig, EmbedContext, plan
from dejavu.embedding.stored import read_embeddings
from dejavu.stages.transcode import transcode_clips, transcode_one
from dejavu.storage.store import Store
from dejavu.video.mp4 import TranscodeConfig

JOBS = Path(__file__).resolve().parents[3] / "jobs"


def test_equal_contents_are_stored_once_and_no_clip_is_lost(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import overhead

    monkeypatch.setattr("dejavu.stages.transcode.spread", lambda kernel, rows, **_: map(kernel, rows))
    store, config = Store(tmp_path / "store"), TranscodeConfig()
    clips = overhead.write_sources(tmp_path / "sources", 40)
    make = partial(transcode_one, encode=overhead.make_nothing)
    transcoded = list(transcode_clips(clips, store, config, 128, make=make).clips.values())
    setting, embedding = overhead.name_settings(1)[0], EmbedContext("none", store, EmbedConfig())
    waiter = overhead.Waiter(embedding)
    for batch in plan(transcoded, [setting], embedding):
        (setting,) = batch.settings
        waiter.encode(setting, overhead.decode_nothing(batch.segments, embedding))
    assert plan(transcoded, [setting], embedding) == []
    assert len(store.done(setting.setting_id)) == 36
    assert set(read_embeddings(embedding, setting, transcoded)) == {clip.clip_id for clip in clips}
    assert transcode_clips(clips, store, config, 128).num_made == 0


def test_a_manifest_is_planned_against_what_the_store_holds(tmp_path: Path) -> None:
    import overhead

    index_s = overhead.fill_store(Store(tmp_path), 200)
    row = overhead.report_planning(str(tmp_path), 200, index_s)
    # 180 contents, 8 to a batch: the first half lacks one setting, the second two.
    assert (row["num_rows"], row["num_shards"], row["num_batches"]) == (200, 23 + 12, 12 + 12)


def test_what_the_store_holds_is_scored(tmp_path: Path) -> None:
    import overhead

    overhead.fill_embeddings(Store(tmp_path), 20)
    row = overhead.report_scoring(str(tmp_path), 20)
    assert (row["num_clips"], row["num_frames"]) == (20, 480)
    assert row["peak_mib"] >= row["before_mib"] > 0


@pytest.mark.ray
def test_a_manifest_goes_through_both_stages_and_back(ray_environment: dict[str, str]) -> None:
    call = [sys.executable, "-c", "import json, overhead as b; print(json.dumps(b.report_load(30)))"]
    done = subprocess.run(
        call, cwd=JOBS / "benchmarks", env=ray_environment, capture_output=True, text=True, timeout=900, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    row = json.loads(done.stdout.strip().splitlines()[-1])
    assert (row["num_clips"], row["num_contents"]) == (30, 27)
    assert row["peak_mib"] >= row["before_mib"] > 0
