"""Search DiffRate's schedules for one backbone on training clips: a Ray task for each FLOP target that is lacking.

No label and no stored embedding is read: a few hundred frames and the tower itself are all it takes.

    <store>/schedules/<backbone>/<id>.json      one target's schedule, as `read_schedule` reads it
    <store>/schedules/<backbone>/latest.json    those of the last search, for stages that run by themselves
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field

import numpy as np
import ray
import torch
from torch import Tensor

from dejavu.backbones.load import Backbone, load_backbone
from dejavu.events import Work
from dejavu.place import Place, is_file
from dejavu.records import Failure, Transcoded
from dejavu.setting import kernel_version
from dejavu.stages.batch import Embedding, Segment, decode_segment
from dejavu.stages.meter import Step, failed, metered, watched
from dejavu.stages.read import clips_identity
from dejavu.stages.spread import Row, report_progress
from dejavu.stages.train import TrainError
from dejavu.stages.transcode import first_line
from dejavu.store import identity, local_copy, write_json
from reuse_models.diffrate_schedule import PUBLISHED_SHARES, Schedule, read_schedule, schedule_json
from reuse_models.diffrate_search import SearchConfig, SearchResult, search_schedule

STAGE = "schedules"
FRAMES_PER_CLIP = 4
"""Unless there are too few clips for that; from the middle of each, spread over at most STRETCH frames."""
STRETCH = 32


@dataclass(frozen=True, kw_only=True, slots=True)
class SchedulesConfig:
    """Which targets are searched, and on how much."""

    shares: tuple[float, ...] = PUBLISHED_SHARES
    """FLOPs as shares of dense, 0..1; a schedule is searched for each."""
    num_frames: int = 384
    """Training frames; up to 96 of them judge."""
    search: SearchConfig = field(default_factory=SearchConfig)

    def __post_init__(self) -> None:
        """Check what can be checked without a tower.

        Raises:
            ValueError: A share is outside 0..1 or stands twice, or there are too few frames.
        """
        if not self.shares or len(set(self.shares)) != len(self.shares) or not all(0 < s <= 1 for s in self.shares):
            raise ValueError(f"schedules.shares: got {self.shares}, expected different numbers in 0..1; correct them")
        if self.num_frames < 2 * self.search.frames_per_step:
            raise ValueError(
                f"schedules.num_frames: got {self.num_frames}, expected {2 * self.search.frames_per_step} or more; "
                "raise it or lower --schedules.search.frames-per-step"
            )


@dataclass(frozen=True, slots=True)
class SchedulesResult:
    """What the stage leaves."""

    schedules: tuple[Schedule, ...]
    found: dict[float, SearchResult]
    """Those searched now, by target, with what they are worth; empty where all were there."""
    failures: tuple[Failure, ...] = ()


def search_schedules(
    clips: Sequence[Transcoded], backbone: Backbone, embedding: Embedding, config: SchedulesConfig
) -> SchedulesResult:
    """Search what the store lacks.

    Args:
        clips: Training clips.
        backbone: A tower with CLS; tasks load it by `embedding.backbone`.
        embedding: Where the clips lie.
        config: Targets and effort.

    Raises:
        TrainError: There are too few frames, or a target is out of the tower's reach.
    """
    folder = _folder(embedding, backbone)
    paths = {share: folder / f"{_schedule_id(share, clips, backbone, config)}.json" for share in config.shares}
    pending = [share for share in config.shares if not is_file(paths[share])]
    found: dict[float, SearchResult] = {}
    failures: set[Failure] = set()
    if pending:
        work = Work(stage=STAGE, total=len(pending), unit="schedules", kept=len(paths) - len(pending))
        tasks = watched(_start(pending, clips, embedding, config), work)
        for row in report_progress(tasks, total=len(pending), stage=STAGE, unit="schedules"):
            share, outcome = row["share"], row["outcome"]
            if isinstance(outcome, str):
                raise TrainError(f"diffrate schedule {share:g}: {outcome}")
            found[share], unreadable = outcome
            failures.update(unreadable)
            write_json(paths[share], schedule_json(found[share].schedule))
        embedding.store.write_failures(STAGE, sorted(failures, key=lambda failure: failure.clip_id))
        failed(failures)
    write_json(folder / "latest.json", [path.name for path in paths.values()])
    return SchedulesResult(read_schedules(embedding, backbone), found, tuple(failures))


def read_schedules(embedding: Embedding, backbone: Backbone) -> tuple[Schedule, ...]:
    """Return what the last search for this backbone left in this results folder; nothing where there was none."""
    folder = _folder(embedding, backbone)
    if not is_file(folder / "latest.json"):
        return ()
    names = json.loads((folder / "latest.json").read_text(encoding="utf-8"))
    return tuple(_read_schedule(folder / name, backbone) for name in names)


def _read_schedule(path: Place, backbone: Backbone) -> Schedule:
    with local_copy(path) as here:
        return read_schedule(here, backbone.vit.shape)


def gather_frames(
    clips: Sequence[Transcoded], num_frames: int, backbone: Backbone, embedding: Embedding
) -> tuple[Tensor, tuple[Failure, ...]]:
    """Return [F, 3, H, W] ready for the tower, a few frames of each of some clips; and the clips that cannot be read.

    Clips are taken in the order of their content ids, which is as good as drawn.
    """
    wanted = sorted(clips, key=lambda clip: clip.content_id)[: max(1, num_frames // FRAMES_PER_CLIP)]
    per_clip = -(-num_frames // len(wanted)) if wanted else 0
    pixels: list[Tensor] = []
    failures: list[Failure] = []
    for clip in wanted:
        length = min(clip.num_frames, max(STRETCH, per_clip))
        segment = Segment(
            clip_id=clip.clip_id,
            content_id=clip.content_id,
            path=clip.path,
            start=(clip.num_frames - length) // 2,
            num_frames=length,
        )
        try:
            frames_FHWC = decode_segment(segment, embedding).rgb_FHWC
        except Exception as error:  # any file may be broken in any way; the run goes on and the table says so
            failures.append(Failure(clip_id=clip.clip_id, stage=STAGE, reason=first_line(error)))
            continue
        at = np.unique(np.linspace(0, length - 1, min(per_clip, length)).round().astype(int))
        pixels.append(backbone.preprocess(frames_FHWC[at]))
    side = backbone.vit.shape.image_px
    return torch.cat([torch.zeros(0, 3, side, side, device=backbone.vit.position.device), *pixels]), tuple(failures)


def _folder(embedding: Embedding, backbone: Backbone) -> Place:
    return embedding.store.root / "schedules" / backbone.identity[:12]


def _schedule_id(share: float, clips: Sequence[Transcoded], backbone: Backbone, config: SchedulesConfig) -> str:
    """Name a schedule by everything that it follows from."""
    parts = {"share": share, "clips": clips_identity(clips), "backbone": backbone.identity, "code": kernel_version()}
    return identity({**parts, "num_frames": config.num_frames, "search": asdict(config.search)})


Outcome = tuple[SearchResult, tuple[Failure, ...]] | str
"""What was found and which clips could not be read, or in one line why nothing was found."""


def _start(
    shares: Sequence[float], clips: Sequence[Transcoded], embedding: Embedding, config: SchedulesConfig
) -> Iterator[Row]:
    """Yield share and outcome in the order of completion; a task whose worker dies is begun again by Ray."""
    kernel = ray.remote(_search).options(num_cpus=1, num_gpus=min(1, ray.cluster_resources().get("GPU", 0)))
    running = {kernel.remote(share, tuple(clips), embedding, config): share for share in shares}
    while running:
        (done, *_), _ = ray.wait(list(running))
        yield {"share": running.pop(done), "outcome": ray.get(done)}


def _search(share: float, clips: Sequence[Transcoded], embedding: Embedding, config: SchedulesConfig) -> Outcome:
    backbone = load_backbone(embedding.backbone, embedding.image_px, device="auto")
    frames_F3HW, failures = gather_frames(clips, config.num_frames, backbone, embedding)
    try:
        with metered(Step(stage=STAGE, step="search", method=f"diffrate {share:g}")) as done:
            result = search_schedule(backbone.vit, frames_F3HW, share, config.search)
            done.num_frames = len(frames_F3HW)
        return result, failures
    except ValueError as error:
        return first_line(error)
