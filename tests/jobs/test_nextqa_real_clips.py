"""The whole `nextqa` recipe, training included, on a shallow tower of ViT-L/14's sizes and clips of ragged lengths."""

from __future__ import annotations

import csv
import json
import math
import subprocess
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path

import av
import numpy as np
import pyarrow.parquet as pq
import pytest
import rehearse
import torch

from dejavu.backbones.load import load_backbone
from dejavu.records import Split
from dejavu.rehearsal.footage import WORDS, Clip, FootageConfig, annotate, draw_clip
from dejavu.rehearsal.weights import write_weights
from dejavu.video.plain import decode_plain
from dejavu.video.write import write_video
from reuse_models.tower.known_shapes import KNOWN_SHAPES

pytestmark = [pytest.mark.ray, pytest.mark.slow]

Pipeline = Callable[..., "subprocess.CompletedProcess[str]"]
SHARED = Path(__file__).resolve().parents[3] / "shared" / "data"
SHAPE = replace(KNOWN_SHAPES["openai/clip-vit-large-patch14"], num_layers=3, embed_dim=64)
"""257 tokens of width 1024 in 16 heads; the text tower is as narrow as the common space."""
SAMPLED: dict[Split, tuple[int, ...]] = {"train": (2, 13, 18), "val": (1, 14), "test": (1, 2, 3, 5, 18)}
"""Frames of each clip after sampling at 2 a second. Of the test clips, one alone goes beyond the first chunk of 16."""
DRAWN = FootageConfig(width_px=160, height_px=120, fps=10)


@dataclass(frozen=True)
class Run:
    """A run that has ended."""

    results: Path
    backbone: Path
    output: str


def sources(split: Split, folder: Path) -> list[Path]:
    """Return real clips of a split, or drawn ones of twenty seconds where the folder of real ones is not here."""
    found = sorted((SHARED / "natural" / split).glob("*.mp4"), key=lambda path: path.stat().st_size)[:2]
    found += sorted((SHARED / "surveillance" / split).glob("*/*.mp4"))[:1]
    return found or [draw_clip(folder / f"{split}{index}.mp4", 200, DRAWN).path for index in range(2)]


def cut(source: Path, target: Path, num_sampled: int) -> Clip:
    """Write a source's frames, again and again if it is short, until they make so many at 2 a second."""
    with av.open(str(source)) as container:
        rate = container.streams.video[0].average_rate
    fps = max(2, round(rate or 10))

    def frames() -> Iterator[np.ndarray]:
        while True:
            for rgb in decode_plain(source):
                yield rgb[: rgb.shape[0] // 2 * 2, : rgb.shape[1] // 2 * 2]

    count = math.ceil(num_sampled * fps / 2)
    first = next(frames())
    write_video(target, islice(frames(), count), fps, 23)
    return Clip(path=target, num_frames=count, width_px=first.shape[1], height_px=first.shape[0], fps=fps)


@pytest.fixture(scope="module")
def run(pipeline: Pipeline, tmp_path_factory: pytest.TempPathFactory) -> Run:
    root = tmp_path_factory.mktemp("nextqa")
    clips: dict[Split, dict[str, Clip]] = {}
    for split, lengths in SAMPLED.items():
        some = sources(split, root / "drawn")
        names = [f"{split}{length:02d}" for length in lengths]
        clips[split] = {
            name: cut(some[index % len(some)], root / "videos" / f"{name}.mp4", length)
            for index, (name, length) in enumerate(zip(names, lengths, strict=True))
        }
    annotate(root, clips)
    write_weights(SHAPE, WORDS, root / "backbone")
    config = rehearse.RehearseConfig(backbone=str(root / "backbone"), results=root / "results")
    inputs = {"--videos": root / "videos", "--annotations": root / "annotations", "--backbone": config.backbone}
    done = pipeline(*rehearse.pipeline_words(config, inputs, ["--train.warm-up.num-pairs", "1024"]))
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return Run(root / "results" / "run", root / "backbone", done.stdout)


def test_no_clip_fails_and_every_one_has_its_length(run: Run) -> None:
    assert (run.results / "failures.csv").read_text() == "clip,stage,reason\n"
    records = [json.loads(path.read_text()) for path in (run.results / "store").glob("transcoded/*.json")]
    expected = {f"{split}{length:02d}": length for split, lengths in SAMPLED.items() for length in lengths}
    assert {record["clip_id"]: record["num_frames"] for record in records} == expected
    assert {record["frame_px"] for record in records} == {256}


def test_every_method_is_scored_on_all_test_clips(run: Run) -> None:
    with (run.results / "pareto.csv").open(newline="", encoding="utf-8") as file:
        points = list(csv.DictReader(file))
    methods = Counter(point["method"] for point in points)
    assert methods.keys() == {"original", *rehearse.RECIPES["nextqa"][1].sweep.methods}
    assert {(point["split"], int(point["num_clips"])) for point in points} == {("test", len(SAMPLED["test"]))}
    for point in points:
        assert all(0 <= float(point[name]) <= 1 for name in ("accuracy", "acc_gqa", "miop", "reuse_rate")), point
        assert float(point["ms_per_frame"]) > 0
        assert -1 <= float(point["cosine_to_dense"]) <= 1.0001
    # All methods compute less than dense, ReuseViT by decisions that were trained here. Only those that look at pixels
    # may find nothing to leave out: thresholds come from the validation clips, and the test clips may move more.
    for point in points:
        reduction, method = float(point["flops_reduction"]), point["method"]
        by_pixels = method in ("original", "adaptive_skip", "key_frames")
        assert reduction > 1 or (by_pixels and reduction == 1), point
    assert "trained 1 of 1 add-ons, 0 clips unreadable" in run.output
    assert "searched 1 of 1 DiffRate schedules" in run.output


def test_a_ragged_batch_embeds_each_clip_as_the_whole_model_does_alone(run: Run) -> None:
    from transformers import CLIPVisionModelWithProjection

    backbone = load_backbone(str(run.backbone))
    model = CLIPVisionModelWithProjection.from_pretrained(run.backbone).eval()
    store = run.results / "store"
    records = [json.loads(path.read_text()) for path in store.glob("transcoded/*.json")]
    notes = {path.parent.name: json.loads(path.read_text()) for path in (store / "embeddings").glob("*/setting.json")}
    (original,) = (name for name, note in notes.items() if note["method"] == "original")
    (precision,) = {note["embedding"].get("precision", "float32") for note in notes.values()}
    tolerance = {"float32": 3e-3, "bfloat16": 2e-2}[precision]  # which one is the machine's choice
    rows = [
        row for path in (store / "embeddings" / original).glob("*.parquet") for row in pq.read_table(path).to_pylist()
    ]
    compared = 0
    for record in records:
        if not record["clip_id"].startswith("test"):
            continue
        own = sorted((row for row in rows if row["content_id"] == record["content_id"]), key=lambda row: row["frame"])
        frames_FHWC = np.stack(list(decode_plain(store / "mp4" / Path(record["path"]).name)))
        with torch.inference_mode():
            expected = model(pixel_values=backbone.preprocess(frames_FHWC)).image_embeds.numpy()
        found = np.array([row["embedding"] for row in own], dtype=np.float32)
        np.testing.assert_allclose(found, expected, atol=tolerance * np.abs(expected).max())
        compared += len(found)
    assert compared == sum(SAMPLED["test"])
