"""What the drivers decide before a stage begins: which clips, and whether there is enough to learn from."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pytest

from dejavu.backbones.load import load_backbone
from dejavu.cluster import cluster
from dejavu.cluster.cluster import Pool
from dejavu.embedding.batch import EmbedConfig, EmbedContext
from dejavu.experiment import Experiment
from dejavu.observability.tracking import Tracking
from dejavu.pipeline import fits, videos
from dejavu.pipeline.job import Job
from dejavu.pipeline.settings import given_schedules, published_configs
from dejavu.pipeline.videos import embedded_whole, leave_twins_out, run_of
from dejavu.records import Clip, Dataset, Split, Transcoded
from dejavu.stages.transcode import one_task_each
from dejavu.storage.store import Store

SPLITS: dict[str, Split] = {"a": "train", "b": "train", "c": "val", "d": "test"}
OWN = Experiment(recipe="folder", dataset="video_folder", embed=EmbedConfig(precision="float32"))


def transcoded(name: str, content_id: str, num_frames: int = 13) -> Transcoded:
    return Transcoded(
        clip_id=name,
        content_id=content_id,
        path=f"mp4/{name}.mp4",
        num_frames=num_frames,
        frame_px=128,
        fps=2.0,
        duration_s=num_frames / 2,
        codec_metadata=True,
    )


def job(tmp_path: Path, experiment: Experiment = OWN) -> Job:
    clips = tuple(Clip(clip_id=name, path=f"{name}.mp4", split=split) for name, split in SPLITS.items())
    store = Store(tmp_path)
    made = Job(
        experiment,
        tmp_path,
        store,
        Tracking("sqlite://", "0"),
        load_backbone(),
        Dataset(name="video_folder", clips=clips, questions=()),
        EmbedContext("embedded", store, experiment.embed),
    )
    made.clips = {name: transcoded(name, f"content {name}") for name in SPLITS}
    return made


def test_a_job_runs_the_stages_that_were_asked_for(tmp_path: Path) -> None:
    some = job(tmp_path, replace(OWN, stages=("transcode", "embed")))
    assert some.runs("embed")
    assert some.runs("sweep", "embed")
    assert not some.runs("sweep", "score")
    assert some.original is some.original


def test_a_clip_that_was_not_transcoded_is_in_no_split(tmp_path: Path) -> None:
    some = job(tmp_path)
    del some.clips["a"]
    assert [clip.clip_id for clip in some.of_split("train")] == ["b"]


@pytest.mark.parametrize(
    ("experiment", "splits"),
    [
        (OWN, {"train", "val", "test"}),
        (replace(OWN, stages=("transcode", "train")), {"train", "val"}),
        (replace(OWN, stages=("transcode", "sweep", "embed")), {"test"}),
        (replace(OWN, stages=("transcode", "sweep")), set()),
        (replace(OWN, dataset="class_folders", stages=("transcode", "sweep")), {"train", "val"}),
        (replace(OWN, stages=("transcode",)), set()),
    ],
)
def test_splits_that_are_embedded_whole_whatever_is_chosen(
    tmp_path: Path, experiment: Experiment, splits: set[Split]
) -> None:
    assert embedded_whole(job(tmp_path, experiment)) == splits


@pytest.mark.parametrize(
    ("gpus", "grows", "experiment", "together"),
    [
        (1.0, False, OWN, True),
        (0.0, False, OWN, False),
        (1.0, True, OWN, False),
        (1.0, False, replace(OWN, stages=("transcode",)), False),
    ],
)
def test_clips_are_embedded_as_they_are_made_where_a_gpu_would_wait_for_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, gpus: float, grows: bool, experiment: Experiment, together: bool
) -> None:
    monkeypatch.setattr(cluster, "gpus_per_actor", lambda _: gpus)
    monkeypatch.setattr(cluster, "grows", lambda: grows)
    assert (run_of(job(tmp_path, experiment)) is not one_task_each) == together


@pytest.mark.parametrize(("num_rows", "stored", "together"), [(16, False, True), (15, False, False), (16, True, False)])
def test_a_few_clips_or_a_store_that_has_some_are_made_by_themselves(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, num_rows: int, stored: bool, together: bool
) -> None:
    some = job(tmp_path)
    if stored:
        some.store.write_embeddings(some.original.setting_id, pa.table({"embedding": [1.0]}), ["a:0+1"])
    pool = Pool(num_actors=1, cpus_per_actor=1, gpus_per_actor=1, cpus_per_reader=1)
    monkeypatch.setattr(cluster, "num_cpus", lambda: 2.0)
    monkeypatch.setattr(cluster, "actor_pool", lambda *_: pool)
    monkeypatch.setattr(videos, "one_task_each", lambda *_: iter([{"made": "alone"}]))
    monkeypatch.setattr(videos.EmbedAsMade, "__call__", lambda *_: iter([{"made": "together"}]))
    (row,) = videos.embed_as_made(some, {"a"}, lambda row: row, [{}] * num_rows, 0)
    assert row["made"] == ("together" if together else "alone")


def test_a_copy_of_a_tested_video_is_not_trained_on(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    some = job(tmp_path)
    some.clips["b"] = transcoded("b", "content d")
    leave_twins_out(some)
    assert set(some.clips) == {"a", "c", "d"}
    assert "b is left out of train: d in test has the same content" in capsys.readouterr().out


def test_copies_stay_where_a_recipe_says_what_is_trained_on(tmp_path: Path) -> None:
    some = job(tmp_path, Experiment())
    some.clips["b"] = transcoded("b", "content d")
    leave_twins_out(some)
    assert set(some.clips) == set(SPLITS)


def test_little_video_teaches_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(fits, "embed_dense", lambda _job: pytest.fail("nothing is to be embedded"))
    fits.fit_addons(job(tmp_path))
    fits.fit_token(job(tmp_path))
    said = capsys.readouterr().out
    assert "2 training clips give 2 windows: ReuseViT is not trained" in said
    assert "ResidualViT is left out" in said


def test_nothing_is_published_or_given_unless_asked_for(tmp_path: Path) -> None:
    some = job(tmp_path)
    assert published_configs(some) == []
    assert given_schedules(some.experiment, some.backbone) == []


def test_a_broken_checkpoint_ends_the_run_before_any_work(tmp_path: Path) -> None:
    (tmp_path / "broken.ckpt").write_bytes(b"no checkpoint")
    with pytest.raises(ValueError, match=r"broken\.ckpt"):
        published_configs(job(tmp_path, replace(OWN, published_checkpoints=tmp_path)))
