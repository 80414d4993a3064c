from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from dejavu.embedding import reader
from dejavu.embedding.batch import DecodedBatch, EmbedConfig, EmbedContext, Segment
from dejavu.embedding.reader import DecodeMade
from dejavu.records import Clip, Transcoded
from dejavu.stages.transcode_embed import usual_batch_frames
from dejavu.storage.setting import name_setting
from dejavu.storage.store import Store
from dejavu.video.plain import write_moving_texture
from reuse_models.baselines.original import OriginalConfig

ROOT = Path(__file__).resolve().parents[3]
CONFIG = EmbedConfig(streams=2, segment_frames=8, batch_frames=16)
SETTING = name_setting(OriginalConfig(), "tower", CONFIG.shaping())
LENGTHS = {"a": 5, "b": 17, "torn": 0, "c": 3, "d": 9}
"""Frames of source clips of 2 a second; one is no video."""
DRIVER = """
import json, sys
from pathlib import Path
from dejavu.backbones.load import load_backbone
from dejavu.cluster import cluster
from dejavu.cluster.cluster import Pool
from dejavu.embedding.batch import EmbedConfig, EmbedContext, plan
from dejavu.records import Clip
from dejavu.stages.embed import embed_clips
from dejavu.stages.transcode import transcode_clips
from dejavu.stages.transcode_embed import EmbedAsMade
from dejavu.storage.setting import name_setting
from dejavu.storage.store import Store
from dejavu.video.mp4 import TranscodeConfig
from reuse_models.baselines.original import OriginalConfig

folder = Path(sys.argv[1])
backbone, config = load_backbone(), EmbedConfig(**json.loads(sys.argv[2]))
setting = name_setting(OriginalConfig(), backbone.identity, config.shaping())
# Less than one batch takes in the object store: even then all of it moves.
pool = Pool(num_actors=1, cpus_per_actor=0.5, gpus_per_actor=0, cpus_per_reader=1, store_bytes=1.0)
names = sys.argv[3:]
clips = [Clip(clip_id=name, path=str(folder / "videos" / f"{name}.mp4"), split="test") for name in names]
cluster.connect()
for out in ("apart", "together", "again"):
    embedding = EmbedContext("embedded", Store(folder / out), config)
    run = EmbedAsMade(setting, embedding, pool, frozenset(names) - {"d"})
    also = {} if out == "apart" else {"run": run}
    found = transcode_clips(clips, embedding.store, TranscodeConfig(), backbone.frame_px, **also)
    wanted = [clip for name, clip in found.clips.items() if name != "d"]
    lacking = sum(len(batch.segments) for batch in plan(wanted, [setting], embedding))
    unwanted = sum(len(batch.segments) for batch in plan([found.clips["d"]], [setting], embedding))
    failures = [(one.clip_id, one.stage) for one in found.failures]
    print(json.dumps([found.num_made, sorted(found.clips), failures, lacking, unwanted]))
    if out == "apart":
        embed_clips(wanted, [setting], embedding, pool, "test")
"""


def embeddings(store: Path) -> dict[tuple[str, int], np.ndarray]:
    """By clip and frame, from every shard there is."""
    found = {}
    for path in store.glob("embeddings/*/*.parquet"):
        table = pq.read_table(path)
        rows = np.stack(table["embedding"].to_numpy())
        found.update(zip(zip(table["clip_id"].to_pylist(), table["frame"].to_pylist(), strict=True), rows, strict=True))
    return found


@pytest.mark.ray
@pytest.mark.slow
def test_clips_embedded_as_they_are_made_are_what_both_stages_make_of_them(
    ray_environment: dict[str, str], tmp_path: Path
) -> None:
    (tmp_path / "videos").mkdir()
    for name, num_frames in LENGTHS.items():
        source = tmp_path / "videos" / f"{name}.mp4"
        write_moving_texture(source, num_frames, 128) if num_frames else source.write_bytes(b"no video")
    for left in (tmp_path / "videos").glob("*.source.mp4"):
        left.unlink()
    environment = {**ray_environment, "PYTHONPATH": f"{ROOT / 'platform'}:{ROOT}"}
    words = [sys.executable, "-c", DRIVER, str(tmp_path), json.dumps(asdict(CONFIG)), *LENGTHS]
    done = subprocess.run(words, env=environment, capture_output=True, text=True, check=False, timeout=900)
    assert done.returncode == 0, done.stderr[-3000:]
    apart, together, again = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("[")]
    whole = sorted(set(LENGTHS) - {"torn"})
    assert apart == [4, whole, [["torn", "transcode"]], 5, 2]
    assert together == again == [4, whole, [["torn", "transcode"]], 0, 2]
    one, other = (embeddings(tmp_path / name) for name in ("apart", "together"))
    assert one.keys() == other.keys()
    for frame, row in one.items():
        np.testing.assert_allclose(other[frame], row, atol=2e-3)
    for path in (tmp_path / "together").glob("embeddings/*/*.parquet"):
        twin = tmp_path / "again" / path.relative_to(tmp_path / "together")
        assert pq.read_table(path).equals(pq.read_table(twin)), "bit by bit"


def made(name: str, num_frames: int, content_id: str | None = None) -> dict[str, str]:
    record = Transcoded(
        clip_id=name, content_id=content_id or name, path=f"mp4/{name}.mp4", num_frames=num_frames, frame_px=128,
        fps=2.0, duration_s=num_frames / 2, codec_metadata=True,
    )  # fmt: skip
    return {"clip_id": name, "record": json.dumps(asdict(record)), "error": ""}


RESULTS = [
    made("a", 5),
    {"clip_id": "torn", "record": "", "error": "no video"},
    made("b", 17),
    made("twin of a", 5, "a"),
    made("d", 9),
]


@pytest.mark.parametrize(
    ("wanted", "batches"),
    [
        ({"a", "b", "twin of a"}, [["a:0+5", "b:0+8"], ["b:8+8", "b:16+1"]]),
        ({"d"}, [["d:0+8", "d:8+1"]]),
        (set(), [[]]),
    ],
)
def test_what_is_made_becomes_batches_and_is_told_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, wanted: set[str], batches: list[list[str]]
) -> None:
    asked: list[list[str]] = []

    def note(segments: Sequence[Segment], _: EmbedContext) -> DecodedBatch:
        asked.append([one.unit_id for one in segments])
        return DecodedBatch((), (), ())

    monkeypatch.setattr(reader, "decode_batch", note)
    embedding = EmbedContext("embedded", Store(tmp_path), CONFIG)
    by_name = {row["clip_id"]: row for row in RESULTS}
    make = DecodeMade(SETTING, embedding, frozenset(wanted), lambda row: by_name[row["clip"]["clip_id"]])
    rows = list(make({"rows": json.dumps([{"clip": {"clip_id": name}} for name in by_name])}))
    assert asked == batches
    assert [json.loads(row["made"]) for row in rows] == [RESULTS, *([[]] * (len(batches) - 1))]


def test_a_usual_batch_is_estimated_by_what_files_declare(tmp_path: Path) -> None:
    def clip(name: str, num_frames: int) -> Clip:
        if num_frames:
            write_moving_texture(tmp_path / name, num_frames, 64)
        else:
            (tmp_path / name).write_text("no video")
        return Clip(clip_id=name, path=str(tmp_path / name), split="test")

    clips = [clip("5.mp4", 5), clip("torn.mp4", 0), clip("17.mp4", 17)]
    # Two streams of (5 + 8) / 2: what is longer than a segment comes in pieces.
    assert usual_batch_frames(clips, 2.0, CONFIG) == pytest.approx(13, abs=0.5)
    assert usual_batch_frames(clips, 4.0, CONFIG) == pytest.approx(16)
    assert usual_batch_frames(clips[1:2], 2.0, CONFIG) is None
    in_a_bucket = Clip(clip_id="far", path="s3://bucket/far.mp4", split="test")
    assert usual_batch_frames([in_a_bucket], 2.0, CONFIG) is None
