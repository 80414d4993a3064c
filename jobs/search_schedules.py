"""Search DiffRate's schedules for any backbone on a folder of videos, without a cluster or labels.

    python jobs/search_schedules.py --backbone DIR --videos DIR --out schedules --schedules.shares 0.505 0.627

Writes one JSON file for each share of the dense FLOPs; the pipeline tries them with
`--sweep.diffrate-schedules schedules/0.505.json ...`. With training clips, the pipeline's train stage does the same.
"""

import _bootstrap  # noqa: F401  first: makes the packages importable

import sys
import tempfile
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path

import tyro

from dejavu.backbones.load import EMBEDDED, load_backbone
from dejavu.datasets.video_folder import clips_by_name
from dejavu.embedding.batch import EmbedConfig, EmbedContext
from dejavu.stages.search_schedules import FRAMES_PER_CLIP, SchedulesConfig, gather_frames
from dejavu.stages.transcode import one_after_the_other, transcode_clips
from dejavu.storage.one_line import exit_status
from dejavu.storage.store import Store, write_json
from dejavu.video.mp4 import TranscodeConfig
from reuse_models.baselines.diffrate.search import search_schedule


@dataclass(frozen=True, kw_only=True, slots=True)
class SearchSchedulesConfig:
    """What is searched, and where it goes."""

    videos: Path
    """Folder of videos in any format; only a few frames of some videos are read."""
    out: Path
    """Folder for the schedules."""
    backbone: str = EMBEDDED
    """Backbone: `embedded`, a directory written by save_pretrained, or a name on the Hugging Face hub."""
    image_px: int | None = None
    """Side of the tower's input frames in pixels. If not given, the size of the backbone's image processor."""
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
    clips = tuple(clips_by_name(config.videos).values())
    with tempfile.TemporaryDirectory() as folder:
        embedding = EmbedContext(config.backbone, Store(Path(folder)), EmbedConfig(), config.image_px)
        # As many videos as frames are wanted of, spread over the folder.
        every = -(-len(clips) // max(1, config.schedules.num_frames // FRAMES_PER_CLIP))
        px, view, run = backbone.frame_px, backbone.preprocess.view, one_after_the_other
        made = transcode_clips(clips[::every], embedding.store, config.transcode, px, view=view, run=run)
        transcoded = list(made.clips.values())
        frames_FHW3, failures = gather_frames(transcoded, config.schedules.num_frames, px, embedding)
    for failure in (*made.failures, *failures):
        print(f"left out: {failure.clip_id}: {failure.reason}", flush=True)
    print(f"{len(frames_FHW3)} frames of {len(transcoded)} videos", flush=True)
    for share in config.schedules.shares:
        start = time.monotonic()
        found = search_schedule(backbone.vit, frames_FHW3, share, config.schedules.search, backbone.preprocess)
        path = config.out / f"{share:g}.json"
        write_json(path, asdict(found.schedule))
        print(
            f"{path}: costs {found.schedule.achieved_share:.4f} of dense, cosine to it {found.cosine:.4f}, of the same "
            f"rate in every layer {found.uniform_cosine:.4f}, {time.monotonic() - start:.1f} s",
            flush=True,
        )


def main() -> int:
    """Search; return the exit status."""
    prog = "python jobs/search_schedules.py"
    return exit_status(lambda: search(tyro.cli(SearchSchedulesConfig, prog=prog, description=__doc__)))


if __name__ == "__main__":
    sys.exit(main())
