"""Search DiffRate's schedules for one backbone on training clips: a Ray task for each FLOP target that is lacking.

No label and no stored embedding is read: a few hundred frames and the tower itself are all it takes. What memory a
task needs is known beforehand: Ray starts no more of them on a machine than fit, and what fits nowhere is refused.

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
from dejavu.cluster.cluster import PROCESS_BYTES
from dejavu.cluster.ray_map import Row, report_progress
from dejavu.embedding.batch import EmbedContext, Segment, decode_segment
from dejavu.embedding.stored import clips_identity
from dejavu.embedding.worker_memory import tower_bytes
from dejavu.observability.events import Work
from dejavu.observability.metrics import Step, failed, first_line, metered, watched
from dejavu.records import Failure, Transcoded
from dejavu.stages.train_task import TrainError, within_memory
from dejavu.storage.setting import kernel_version
from dejavu.storage.store import identity, local_copy, write_json
from dejavu.storage.store_path import StorePath, is_file
from reuse_models.baselines.diffrate.relaxed import plan_turns, search_bytes
from reuse_models.baselines.diffrate.schedule import PUBLISHED_SHARES, Schedule, read_schedule
from reuse_models.baselines.diffrate.search import SearchConfig, SearchResult, search_schedule
from reuse_models.tower.vit import Vit
from reuse_models.training.memory import return_large_blocks

STAGE = "schedules"
FRAMES_PER_CLIP = 4
"""Unless there are too few clips for that; from the middle of each, spread over at most STRETCH frames."""
STRETCH = 32


@dataclass(frozen=True, kw_only=True, slots=True)
class SchedulesConfig:
    """FLOP targets for which DiffRate's schedules are searched, and the number of frames used."""

    shares: tuple[float, ...] = PUBLISHED_SHARES
    """FLOP targets as shares of dense, 0..1; a schedule is searched for each."""
    num_frames: int = 384
    """Number of training frames; up to 96 of them only judge schedules."""
    search: SearchConfig = field(default_factory=SearchConfig)

    def __post_init__(self) -> None:
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
    clips: Sequence[Transcoded], backbone: Backbone, embedding: EmbedContext, config: SchedulesConfig
) -> SchedulesResult:
    """Search what the store lacks.

    Clips are those of training. The tower has a CLS; tasks load it by `embedding.backbone`.

    Raises:
        TrainError: There are too few frames, a target is out of the tower's reach, or no machine has the memory.
    """
    folder = _folder(embedding, backbone)
    follows_from = {"clips": clips_identity(clips), "backbone": backbone.identity, "num_frames": config.num_frames}
    follows_from |= {"code": kernel_version(search_schedule.__module__), "search": asdict(config.search)}
    paths = {share: folder / f"{identity({**follows_from, 'share': share})}.json" for share in config.shares}
    pending = [share for share in config.shares if not is_file(paths[share])]
    found: dict[float, SearchResult] = {}
    failures: set[Failure] = set()
    if pending:
        work = Work(stage=STAGE, total=len(pending), unit="schedules", kept=len(paths) - len(pending))
        needed = check_memory(backbone, config)
        tasks = watched(_start(pending, clips, embedding, config, needed), work)
        for row in report_progress(tasks, total=len(pending), stage=STAGE, unit="schedules"):
            share, outcome = row["share"], row["outcome"]
            if isinstance(outcome, str):
                raise TrainError(f"diffrate schedule {share:g}: {outcome}")
            found[share], unreadable = outcome
            failures.update(unreadable)
            write_json(paths[share], asdict(found[share].schedule))
        embedding.store.write_failures(STAGE, sorted(failures, key=lambda failure: failure.clip_id))
        failed(failures)
    write_json(folder / "latest.json", [path.name for path in paths.values()])
    return SchedulesResult(read_schedules(embedding, backbone), found, tuple(failures))


def read_schedules(embedding: EmbedContext, backbone: Backbone) -> tuple[Schedule, ...]:
    """Return what the last search for this backbone left in this results folder; nothing where there was none."""
    folder = _folder(embedding, backbone)
    if not is_file(folder / "latest.json"):
        return ()
    names = json.loads((folder / "latest.json").read_text(encoding="utf-8"))
    return tuple(_read_schedule(folder / name, backbone) for name in names)


def _read_schedule(path: StorePath, backbone: Backbone) -> Schedule:
    with local_copy(path) as here:
        return read_schedule(here, backbone.vit.shape)


def gather_frames(
    clips: Sequence[Transcoded], num_frames: int, frame_px: int, embedding: EmbedContext
) -> tuple[Tensor, tuple[Failure, ...]]:
    """Return uint8 [F, H, W, 3], a few frames of each of some clips; and the clips that cannot be read.

    Clips are taken in the order of their content ids, which is as good as drawn.
    """
    wanted = sorted(clips, key=lambda clip: clip.content_id)[: max(1, num_frames // FRAMES_PER_CLIP)]
    per_clip = -(-num_frames // len(wanted)) if wanted else 0
    chosen: list[Tensor] = []
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
        chosen.append(torch.from_numpy(frames_FHWC[at]))
    return torch.cat([torch.zeros(0, frame_px, frame_px, 3, dtype=torch.uint8), *chosen]), tuple(failures)


def task_bytes(vit: Vit, frame_px: int, config: SchedulesConfig) -> int:
    """Bound the memory of a process that searches one target, tower and interpreter included."""
    turns = plan_turns(vit.shape, config.search.frames_per_step, config.search.kept_mib)
    frame_bytes = 3 * frame_px**2
    # Frames lie there twice while those of all clips are joined; the tower does while it is loaded.
    searching = search_bytes(vit.shape, turns, config.num_frames, 2 * frame_bytes) + STRETCH * frame_bytes
    return PROCESS_BYTES + tower_bytes(vit) + max(tower_bytes(vit), searching)


def check_memory(backbone: Backbone, config: SchedulesConfig) -> int:
    """Return the bytes of a task.

    Raises:
        TrainError: No machine has as many.
    """
    needed = task_bytes(backbone.vit, backbone.frame_px, config)
    of_it = f" for a search, {tower_bytes(backbone.vit) / 2**30:.1f} GiB of it the tower"
    advice = "lower --schedules.search.kept-mib or --schedules.num-frames, or use a smaller backbone"
    return within_memory(needed, "diffrate schedules", of_it, advice)


def _folder(embedding: EmbedContext, backbone: Backbone) -> StorePath:
    return embedding.store.root / "schedules" / backbone.identity[:12]


Outcome = tuple[SearchResult, tuple[Failure, ...]] | str
"""What was found and which clips could not be read, or in one line why nothing was found."""


def _start(
    shares: Sequence[float], clips: Sequence[Transcoded], embedding: EmbedContext, config: SchedulesConfig, needed: int
) -> Iterator[Row]:
    """Yield share and outcome in the order of completion; a task whose worker dies is begun again by Ray."""
    gpus = min(1, ray.cluster_resources().get("GPU", 0))
    kernel = ray.remote(_search).options(num_cpus=1, num_gpus=gpus, memory=needed)
    running = {kernel.remote(share, tuple(clips), embedding, config): share for share in shares}
    while running:
        (done, *_), _ = ray.wait(list(running))
        yield {"share": running.pop(done), "outcome": ray.get(done)}


def _search(share: float, clips: Sequence[Transcoded], embedding: EmbedContext, config: SchedulesConfig) -> Outcome:
    return_large_blocks()  # the bound on this task's memory says so
    backbone = load_backbone(embedding.backbone, embedding.image_px, device="auto")
    frames_FHW3, failures = gather_frames(clips, config.num_frames, backbone.frame_px, embedding)
    try:
        with metered(Step(stage=STAGE, step="search", method=f"diffrate {share:g}")) as done:
            result = search_schedule(backbone.vit, frames_FHW3, share, config.search, backbone.preprocess)
            done.num_frames = len(frames_FHW3)
        return result, failures
    except ValueError as error:
        return first_line(error)
