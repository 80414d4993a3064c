"""Embed videos: `python jobs/embed.py --videos DIR --out OUT --setting "frame_skip every=2"`.

One pass over the videos, nothing of them kept; what is embedded already is not done again. `--like RESULTS` embeds as
that run did, so that a setting of its pareto.csv, trained ReuseViT among them, runs on other videos. OUT gets
`embeddings.parquet` (video, seconds, embedding); `jobs/search.py --store OUT` searches it. See docs/embed.md.
"""

import _bootstrap  # noqa: F401  first: makes the packages importable

import argparse
import json
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import search
import yaml

from dejavu.backbones.load import EMBEDDED, Backbone, load_backbone
from dejavu.backbones.locate import DRAWINGS_ALONE
from dejavu.cluster import cluster
from dejavu.cluster.no_error import without_advice
from dejavu.datasets.video_folder import clips_by_name
from dejavu.embedding.batch import PRECISIONS, EmbedContext
from dejavu.embedding.memory import shrink_to_memory
from dejavu.embedding.precision import NOTE as PRECISION_NOTE
from dejavu.embedding.precision import choose_precision
from dejavu.embedding.stored import read_embeddings
from dejavu.experiment import RECIPES
from dejavu.records import Transcoded
from dejavu.report.frontier import MAX_LOSS, original_quality, quality_of
from dejavu.report.headline import faster_at_a_loss, headlines, per_cent
from dejavu.report.pareto_csv import read_pareto_csv
from dejavu.retrieval.collect import StoredSetting
from dejavu.stages.transcode_embed import Source, embed_videos, usual_batch_frames
from dejavu.storage.failed import write_failures_csv
from dejavu.storage.one_line import exit_status
from dejavu.storage.store_path import StorePath, is_file, store_path
from dejavu.storage.setting import Setting, name_setting
from dejavu.storage.store import Store, atomic, write_json, write_text
from dejavu.video.mp4 import TranscodeConfig
from reuse_models.baselines.original import OriginalConfig
from reuse_models.method import MethodConfig
from reuse_models.registry import config_to_dict

NEEDED = ("method", "setting", "split", "num_clips", "flops_reduction", "speedup")
"""Columns of pareto.csv without which no setting can be chosen."""
TABLE = "embeddings.parquet"
NOTE = "embed.json"
"""In OUT: what its embeddings are made with."""


@dataclass(frozen=True, slots=True)
class Plan:
    """What is embedded how, and where it goes."""

    out: StorePath
    setting: Setting
    backbone: Backbone
    embedding: EmbedContext
    transcode: TranscodeConfig


def plan(arguments: argparse.Namespace) -> Plan:
    """Read the setting, and refuse an OUT that holds another one's embeddings.

    Raises:
        ValueError: The setting is unknown or not one of the run's, or OUT holds embeddings made otherwise.
    """
    out: StorePath = arguments.out
    recipe = RECIPES["folder"][1]
    transcode, embed, image_px = recipe.transcode, recipe.embed, arguments.image_px
    backbone_name = arguments.backbone or EMBEDDED
    stored: Sequence[StoredSetting] = ()
    words = arguments.setting
    if arguments.like is not None:
        like = search.open_collection(arguments.like, arguments.backbone, None)
        transcode, embed, backbone_name = like.transcode, like.embed, like.backbone
        image_px = image_px or like.image_px
    if backbone_name == EMBEDDED:
        print(DRAWINGS_ALONE, flush=True)
    if arguments.fps is not None:
        transcode = replace(transcode, fps=arguments.fps)
    backbone = load_backbone(backbone_name, image_px)
    if arguments.like is not None:
        stored = search.stored_settings(like, backbone)
        if not words:
            words, remark = fastest(like.results, arguments.allowed_loss)
            print(f"setting: {words}{remark}", flush=True)
    method: MethodConfig = search.choose_setting(words or OriginalConfig.method, stored)
    embed = replace(embed, precision=arguments.precision or embed.precision)
    if embed.precision == "auto" and not is_file(out / "store" / PRECISION_NOTE):
        cluster.connect()  # it may be measured on a GPU
    store = Store.open(out / "store")
    embed = replace(embed, precision=choose_precision(embed, store, backbone, None))
    setting = name_setting(method, backbone.identity, embed.shaping())
    note = {
        "setting": f"{setting.method} {setting.label}",
        "config": config_to_dict(method),
        "backbone": backbone.identity,
        "transcode": asdict(transcode),
        "embed": embed.shaping(),
    }
    if is_file(out / NOTE):
        found = json.loads((out / NOTE).read_text(encoding="utf-8"))
        if other := [name for name, value in note.items() if found.get(name) != _plain(value)]:
            raise ValueError(
                f"--out: got {out} with embeddings of {found['setting']!r}, which differ in {other[0]}, expected those "
                f"of {note['setting']!r}; give another folder"
            )
    write_json(out / NOTE, note)
    config = replace(
        recipe,
        videos=arguments.videos.absolute(),
        backbone=backbone_name,
        image_px=image_px,
        transcode=transcode,
        embed=embed,
    )
    write_text(out / "config.yaml", config.to_yaml())
    return Plan(out, setting, backbone, EmbedContext(backbone_name, store, embed, image_px), transcode)


def fastest(results: StorePath, allowed_loss: float | None) -> tuple[str, str]:
    """Name the setting that a run's report leads with: the fastest by the clock within the loss allowed, else Original.

    The second text says so where it is Original for want of another.

    The loss allowed is a share of Original's quality; the run's own unless given.

    Raises:
        ValueError: There is no pareto.csv to choose from.
    """
    path = results / "pareto.csv"
    if not is_file(path):
        raise ValueError(f"--like: got {results} without pareto.csv, expected a run that was scored; give --setting")
    points = [point for point in read_pareto_csv(path, NEEDED) if point.split == "test"]
    if allowed_loss is None:
        config = yaml.safe_load((results / "config.yaml").read_text(encoding="utf-8"))
        allowed_loss = config.get("allowed_loss", MAX_LOSS)
    quality = quality_of(points)
    timed = [one.fastest for one in headlines(points, quality, allowed_loss) if one.fastest]
    if timed:
        return f"{timed[0].method} {timed[0].setting}", ""
    remark = f"; no other setting of that run was timed and stays within {per_cent(allowed_loss)}"
    if faster := faster_at_a_loss(points, quality):
        one = faster[0]
        kept = 100 * getattr(one, quality) / original_quality(points, quality)
        remark += f"; {one.method} {one.setting} is {one.speedup:.2f} times as fast and keeps {kept:.1f} %"
    return OriginalConfig.method, f"{remark} (--allowed-loss)"


def run(arguments: argparse.Namespace) -> int:
    """Embed, write the table, say how fast it went; return the exit status."""
    named = clips_by_name(arguments.videos)
    clips = tuple(named.values())
    what = plan(arguments)
    cluster.connect()
    pool = cluster.actor_pool(None, None)
    usual_frames = usual_batch_frames(clips, what.transcode.fps, what.embedding.config)
    embedding, pool = shrink_to_memory(what.backbone, [what.setting], what.embedding, pool, usual_frames)
    source = Source(what.transcode, what.backbone.frame_px, what.backbone.preprocess.view)
    started = time.monotonic()
    result = embed_videos(clips, what.setting, embedding, source, pool)
    spent = time.monotonic() - started
    names = {clip.clip_id: name for name, clip in named.items()}
    rows = write_table(what.out / TABLE, names, result.clips, what)
    write_failures_csv(what.embedding.store, what.out / "failures.csv")
    speed = f", {result.video_s / spent:.1f} s of video a second" if result.num_new else ""
    print(f"embedded {result.num_new} of {len(named)} videos in {spent:.0f} s{speed}, {len(result.failures)} failed")
    for failure in result.failures:
        print(f"  {failure.clip_id}  {failure.reason}")
    print(f"table      {what.out / TABLE}, {rows} frames of {len(result.clips)} videos")
    return int(bool(result.failures))


def write_table(target: StorePath, names: Mapping[str, str], clips: Mapping[str, Transcoded], what: Plan) -> int:
    """Write [video, seconds, embedding] of all frames, whole or not at all; return how many.

    `names` says by clip id what a video is called: its path within the folder.
    """
    rows = 0
    width = what.backbone.vit.shape.embed_dim
    schema = pa.schema({"video": pa.string(), "seconds": pa.float64(), "embedding": pa.list_(pa.float32(), width)})
    with atomic(target) as unfinished, pq.ParquetWriter(unfinished, schema) as writer:
        for clip_id in sorted(clips, key=lambda one: names[one]):
            found = read_embeddings(what.embedding, what.setting, [clips[clip_id]])[clip_id]
            flat = np.ascontiguousarray(found.embeddings_FE, np.float32).reshape(-1)
            columns = {
                "video": pa.array([names[clip_id]] * len(found.seconds_F)),
                "seconds": pa.array(found.seconds_F),
                "embedding": pa.FixedSizeListArray.from_arrays(pa.array(flat), found.embeddings_FE.shape[1]),
            }
            writer.write_table(pa.table(columns).cast(schema))
            rows += len(found.seconds_F)
    return rows


def _plain(value: Any) -> Any:
    """Return a value as JSON gives it back."""
    return json.loads(json.dumps(value))


def main(arguments: list[str] | None = None) -> int:
    """Embed; say in one line what ended it early; return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n", maxsplit=1)[0])
    parser.add_argument("--videos", type=store_path, required=True, help="folder of videos, including its subfolders")
    parser.add_argument(
        "--out", type=store_path, required=True, help="folder for the embeddings; pass it again to resume or add videos"
    )
    parser.add_argument(
        "--setting",
        help="method with its fields, or with --like `method` and `setting` as in that run's pareto.csv; default: with "
        "--like, the run's fastest setting by wall-clock time within --allowed-loss, otherwise original",
    )
    parser.add_argument("--allowed-loss", type=float, help="share of Original's quality to lose; default: --like's")
    parser.add_argument("--like", type=store_path, help="results folder whose backbone, rate and settings are used")
    parser.add_argument("--backbone", help="backbone as in the pipeline; default: that of --like, else the demo's")
    parser.add_argument("--image-px", type=int, help="side in pixels of the tower's input frames")
    parser.add_argument(
        "--precision",
        choices=("auto", *PRECISIONS),
        help="precision of the tower; default: that of --like, otherwise auto, which measures the faster one",
    )
    parser.add_argument("--fps", type=float, help="frames per second; default: that of --like, otherwise 2")
    return exit_status(lambda: run(parser.parse_args(arguments)))


if __name__ == "__main__":
    with without_advice():
        sys.exit(main())
