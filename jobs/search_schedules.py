"""Search DiffRate's schedules for any backbone on a folder of videos, without a cluster and without labels.

    python jobs/search_schedules.py --backbone DIR --videos DIR --out schedules --schedules.shares 0.505 0.627

Writes one JSON for each share of the dense FLOPs; the pipeline tries them with
`--sweep.diffrate-schedules schedules/0.505.json ...`. In a pipeline with training clips the train stage does the same.
"""

import _bootstrap  # noqa: F401  first: makes the packages importable

import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import tyro

from dejavu.backbones.load import EMBEDDED, Backbone, BackboneError, load_backbone
from dejavu.datasets.video_folder import load_video_folder
from dejavu.records import Clip, Transcoded
from dejavu.embedding.batch import EmbedConfig, EmbedContext
from dejavu.stages.search_schedules import FRAMES_PER_CLIP, SchedulesConfig, gather_frames
from dejavu.stages.transcode import geometry, source_key, transcode_clips, transcode_one
from dejavu.storage.store import Store, write_json
from dejavu.video.mp4 import TranscodeConfig
from reuse_models.baselines.diffrate.schedule import schedule_json
from reuse_models.baselines.diffrate.search import search_schedule


@dataclass(frozen=True, kw_only=True, slots=True)
class SearchSchedulesConfig:
    """What is searched, and where it goes."""

    videos: Path
    """Folder of videos in any format; a few frames of some of them are read."""
    out: Path
    """Folder of the schedules."""
    backbone: str = EMBEDDED
    """`embedded`, a directory written by save_pretrained, or a name on the Hugging Face hub."""
    image_px: int | None = None
    """Side in pixels of the frames that the tower sees; its image processor's unless given."""
    schedules: SchedulesConfig = field(default_factory=SchedulesConfig)
    transcode: TranscodeConfig = field(default_factory=TranscodeConfig)


def search(config: SearchSchedulesConfig) -> None:
    """Search and write one schedule after the other.

    Raises:
        BackboneError: The backbone does not load.
        ValueError: Too few videos can be read, or a share is out of reach.
        OSError: The folder of videos is not there, or that of the schedules cannot be written.
    """
    backbone = load_backbone(config.backbone, config.image_px, device="auto")
    clips = load_video_folder(config.videos).clips
    with tempfile.TemporaryDirectory() as folder:
        embedding = EmbedContext(config.backbone, Store(Path(folder)), EmbedConfig(), config.image_px)
        transcoded = _transcode(clips, config, backbone, embedding.store)
        frames_FHW3, failures = gather_frames(transcoded, config.schedules.num_frames, backbone.frame_px, embedding)
    for failure in failures:
        print(f"left out: {failure.clip_id}: {failure.reason}", flush=True)
    print(f"{len(frames_FHW3)} frames of {len(transcoded)} videos", flush=True)
    for share in config.schedules.shares:
        start = time.monotonic()
        found = search_schedule(backbone.vit, frames_FHW3, share, config.schedules.search, backbone.preprocess)
        path = config.out / f"{share:g}.json"
        write_json(path, schedule_json(found.schedule))
        print(
            f"{path}: costs {found.schedule.achieved_share:.4f} of dense, cosine to it {found.cosine:.4f}, of the same "
            f"rate in every layer {found.uniform_cosine:.4f}, {time.monotonic() - start:.1f} s",
            flush=True,
        )


def _transcode(
    clips: Sequence[Clip], config: SearchSchedulesConfig, backbone: Backbone, store: Store
) -> list[Transcoded]:
    """Transcode as many videos as frames are wanted of, spread over the folder."""
    wanted = max(1, config.schedules.num_frames // FRAMES_PER_CLIP)
    every = -(-len(clips) // wanted)
    px, view = backbone.frame_px, backbone.preprocess.view
    for clip in clips[::every]:
        row = {
            "clip": asdict(clip),
            "key": source_key(clip, config.transcode, px, view),
            "store": str(store.root),
            **geometry(px, view),
            "config": asdict(config.transcode),
        }
        if error := transcode_one(row)["error"]:
            print(f"left out: {clip.clip_id}: {error}", flush=True)
    return list(transcode_clips(clips, store, config.transcode, px, view=view, make=None).clips.values())


def main() -> int:
    """Search; return the exit status."""
    try:
        search(tyro.cli(SearchSchedulesConfig, prog="python jobs/search_schedules.py", description=__doc__))
    except (BackboneError, ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr, flush=True)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
