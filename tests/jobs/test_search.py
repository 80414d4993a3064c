"""The search job: what it prints, what it refuses, and what it leaves alone."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from dejavu.backbones.load import load_backbone
from dejavu.embedding.batch import EmbedConfig
from dejavu.records import Transcoded
from dejavu.storage.setting import name_setting
from dejavu.storage.store import Store, write_json
from dejavu.video.write import write_video
from reuse_models.baselines.eventful import EventfulConfig
from reuse_models.baselines.original import OriginalConfig
from reuse_models.method import MethodConfig
from tests.drivers import run_driver

ROOT = Path(__file__).resolve().parents[2]
QUERY = "a red circle"

Search = Callable[..., int]


def add(results: Path, config: MethodConfig, backbone_identity: str, rows: dict[str, np.ndarray]) -> None:
    """Store made-up embeddings [F, E] of some clips, two frames a second."""
    store = Store.open(results / "store")
    setting = name_setting(config, backbone_identity, EmbedConfig().shaping())
    for clip, embeddings_FE in rows.items():
        num_frames, width = embeddings_FE.shape
        table = pa.table(
            {
                "content_id": [f"content-{clip}"] * num_frames,
                "clip_id": [clip] * num_frames,
                "frame": pa.array(range(num_frames), pa.int32()),
                "seconds": [frame / 2 for frame in range(num_frames)],
                "embedding": pa.FixedSizeListArray.from_arrays(
                    pa.array(embeddings_FE.astype(np.float16).reshape(-1)), width
                ),
            }
        )
        store.write_embeddings(setting.setting_id, table, [f"content-{clip}:0+{num_frames}"])


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store without notes and config, as an early version left it: `shown` has the query's own embedding at 3 s."""
    folder = tmp_path_factory.mktemp("results")
    backbone = load_backbone()
    query_E = backbone.embed_texts([QUERY])[0].numpy()
    noise = np.random.default_rng(0).normal(size=(3, 12, len(query_E)))
    other, shown, late = noise - (noise @ query_E)[..., None] * query_E  # nothing of the query in them
    shown[6] = query_E
    late[2] += 5 * query_E
    add(folder, OriginalConfig(), backbone.identity, {"other": other, "shown": shown, "late": late})
    add(folder, EventfulConfig(refreshed_tokens=4), backbone.identity, {"other": other})
    return folder


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch) -> Search:
    """Run the job in this process."""
    import search

    def main(*words: str | Path) -> int:
        monkeypatch.setattr(sys, "argv", ["search.py", *map(str, words)])
        return search.main()

    return main


def test_one_line_per_hit_best_first(run: Search, results: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(QUERY, "--store", results, "--top", "3") == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[:2] for line in lines[:2]] == [["shown", "3.0"], ["late", "1.0"]]
    assert len(lines) == 3
    assert 0.95 < float(lines[0].split()[-1]) <= 1.05


def test_the_store_itself_may_be_named_and_hits_are_written(run: Search, results: Path, tmp_path: Path) -> None:
    sheet, hits = tmp_path / "sheet.png", tmp_path / "hits.json"
    assert run(QUERY, "--store", results / "store", "--contact-sheet", sheet, "--json", hits) == 0
    best = json.loads(hits.read_text())["hits"][0]
    assert (best["clip_id"], best["frame"], best["seconds"]) == ("shown", 6, 3.0)
    assert best["start_s"] <= 3.0 <= best["end_s"]
    assert sheet.stat().st_size > 3000  # the videos are gone: tiles without pictures


def test_a_removed_video_is_said_to_be_gone_or_left_out(
    run: Search, results: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "results"
    shutil.copytree(results, folder)
    hits = tmp_path / "hits.json"
    assert run(QUERY, "--store", folder, "--json", hits) == 0
    best = json.loads(hits.read_text())["hits"][0]
    record = Transcoded(
        clip_id="shown", content_id=best["content_id"], path="mp4/x.mp4", num_frames=12, frame_px=128, fps=2.0,
        duration_s=6.0, codec_metadata=True, concealed="6", source=str(tmp_path / "shown.mp4"),
    )  # fmt: skip
    write_json(Store(folder / "store").transcoded_path("shown"), asdict(record))
    capsys.readouterr()
    assert run(QUERY, "--store", folder) == 0
    said = capsys.readouterr()
    assert said.out.splitlines()[0].endswith("  damaged here  gone")
    assert "1 of the hits are in videos that are no longer where they were; --gone drop" in said.err
    assert run(QUERY, "--store", folder, "--gone", "drop") == 0
    said = capsys.readouterr()
    assert [line.split()[0] for line in said.out.splitlines()][:2] == ["late", "other"]
    assert "shown" not in said.out
    assert "no longer" not in said.err


def test_an_index_gives_the_hits_of_exact_search(
    run: Search, results: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    words = (QUERY, "--store", shutil.copytree(results, tmp_path / "copy"), "--top", "3")
    assert run(*words) == 0
    exact = capsys.readouterr()
    assert "index" not in exact.err  # far too small a collection
    assert run(*words, "--index") == 0
    indexed = capsys.readouterr()
    assert indexed.out == exact.out
    assert "index: of 36 frames, those of 3 likely videos are read" in indexed.err
    assert run(*words, "--index", "--setting", "eventful refreshed_tokens=4") == 0
    assert "of 12 frames" in capsys.readouterr().err  # another setting has another index
    monkeypatch.setattr("search.has_faiss", lambda: False)
    assert run(*words, "--index") == 0
    without = capsys.readouterr()
    assert without.out == exact.out
    assert [line for line in without.err.splitlines() if "faiss" in line] == [
        "index: got no faiss, expected it for 36 frames; searching exactly, pip install faiss-cpu"
    ]


def error_of(run: Search, capsys: pytest.CaptureFixture[str], *words: str | Path) -> str:
    assert run(*words) == 1
    captured = capsys.readouterr()
    assert captured.out == ""
    lines = [line for line in captured.err.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1
    assert captured.err.strip() == lines[0]
    return lines[0]


def test_bad_input_is_one_line(run: Search, results: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "query: got nothing" in error_of(run, capsys, "  ", "--store", results)
    assert "without store/embeddings" in error_of(run, capsys, QUERY, "--store", tmp_path / "none")
    assert not (tmp_path / "none").exists()
    assert "--top: got 0" in error_of(run, capsys, QUERY, "--store", results, "--top", "0")
    missing = error_of(run, capsys, QUERY, "--store", results, "--setting", "cmc threshold=3")
    assert "'original dense'" in missing
    assert "1 that another version" in missing  # eventful is in the store, but nothing says under which settings
    assert "method: got 'nonsense'" in error_of(run, capsys, QUERY, "--store", results, "--setting", "nonsense")
    assert "expected field=value" in error_of(run, capsys, QUERY, "--store", results, "--setting", "eventful 4")
    assert "no folder" in error_of(run, capsys, QUERY, "--store", tmp_path / "n", "--videos", tmp_path / "gone")


def test_a_setting_is_named_by_its_fields(run: Search, results: Path, capsys: pytest.CaptureFixture[str]) -> None:
    # Without a note, a setting is found by what makes up its name.
    assert run(QUERY, "--store", results, "--setting", "eventful refreshed_tokens=4") == 0
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()][:1] == ["other"]


def test_another_backbone_is_refused(
    run: Search, results: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = tmp_path / "other"
    shutil.copytree(ROOT / "platform" / "dejavu" / "backbones" / "embedded", other)
    config = json.loads((other / "config.json").read_text())
    (other / "config.json").write_text(json.dumps(config | {"comment": "not the same"}))
    described = tmp_path / "described"
    shutil.copytree(results, described)
    note = {"method": "original", "label": "dense", "config": {"method": "original"}, "backbone": "embedded"}
    Store(described / "store").describe("abc", note | {"backbone_identity": load_backbone().identity})
    assert "--backbone: got" in error_of(run, capsys, QUERY, "--store", described, "--backbone", other)
    (results / "config.yaml").write_text("backbone: embedded\n")
    assert "--backbone: got" in error_of(run, capsys, QUERY, "--store", results, "--backbone", other)
    (results / "config.yaml").unlink()


def moving(seed: int) -> list[np.ndarray]:
    texture = np.random.default_rng(seed).integers(0, 255, (96, 96, 3), dtype=np.uint8)
    return [np.roll(texture, 3 * index, axis=1) for index in range(40)]


@pytest.mark.ray
@pytest.mark.slow
def test_new_videos_are_embedded_and_old_ones_are_not_touched(ray_environment: dict[str, str], tmp_path: Path) -> None:
    videos, results = tmp_path / "videos", tmp_path / "results"
    videos.mkdir()

    def search(*words: str) -> subprocess.CompletedProcess[str]:
        return run_driver("search.py", QUERY, "--store", results, *words, env=ray_environment)

    def shards() -> dict[Path, int]:
        kept = [*(results / "store").glob("embeddings/*/*.parquet"), *(results / "store").glob("mp4/*")]
        return {path: path.stat().st_mtime_ns for path in kept}

    write_video(videos / "one.mp4", iter(moving(0)), 10, 20)
    words = ("--videos", str(videos), "--setting", "eventful refreshed_tokens=16")
    first = search(*words)
    assert first.returncode == 0, first.stderr[-3000:]
    assert "1 embedded now, 0 failed" in first.stderr
    before = shards()
    assert len(before) == 2

    write_video(videos / "two.mp4", iter(moving(1)), 10, 20)
    (videos / "broken.mp4").write_text("no video")
    second = search(*words)
    assert second.returncode == 0, second.stderr[-3000:]
    assert "3 in" in second.stderr
    assert "1 embedded now, 1 failed" in second.stderr
    assert "broken.mp4  transcode" in second.stderr
    after = shards()
    assert len(after) == 4
    assert before.items() <= after.items()

    third = search("--setting", "eventful k=16")  # the label, now that it is stored; no videos, no cluster
    assert third.returncode == 0, third.stderr[-3000:]
    assert {line.split()[0] for line in third.stdout.splitlines()} == {"one.mp4", "two.mp4"}
    assert shards() == after


def test_a_run_that_has_embedded_nothing_has_chosen_no_precision(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Such as one of `--stages transcode`, whose videos may be embedded by the search."""
    (tmp_path / "store" / "embeddings").mkdir(parents=True)
    (tmp_path / "config.yaml").write_text("embed: {streams: 3, precision: auto}\n")
    monkeypatch.syspath_prepend(str(ROOT / "jobs"))
    import search

    assert search.open_collection(tmp_path, None, None).embed == EmbedConfig(streams=3)
