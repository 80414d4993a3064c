"""Show that embedding's memory does not grow with the number of videos: `python jobs/benchmarks/memory.py`.

Embeds N short clips with Ray Data on a cluster of its own, for each N in turn, and prints the peak of the proportional
set size (shared memory counted once) of the driver and all processes of that cluster.
"""

import _bootstrap_jobs  # noqa: F401  first: makes the packages importable

import tempfile
import time
from pathlib import Path
from typing import Annotated

import numpy as np
import psutil
import tyro

import submit
from apart import report_of
from dejavu.cluster import cluster
from dejavu.backbones.load import load_backbone
from dejavu.observability.looking import looking
from dejavu.records import Transcoded
from dejavu.rehearsal.watch import memory_bytes
from dejavu.storage.setting import name_setting
from dejavu.embedding.batch import EmbedContext, EmbedConfig
from dejavu.stages.embed import embed_clips
from dejavu.storage.store import Store
from dejavu.video.write import write_video
from reuse_models.baselines.eventful import EventfulConfig
from reuse_models.baselines.original import OriginalConfig


def main(
    videos: Annotated[tuple[int, ...], tyro.conf.arg(help="Numbers of clips; each is measured alone.")] = (50, 500),
    num_frames: Annotated[int, tyro.conf.arg(help="Number of frames per clip.")] = 24,
) -> None:
    """Measure each number of clips in a process and a cluster of its own, and print one table."""
    print(f"{'clips':>6} {'frames':>8} {'seconds':>8} {'peak MiB':>9}")
    for count in videos:
        with submit.cluster() as started:
            environment = submit.environment(started.token) | {"RAY_ADDRESS": started.address}
            row = report_of("memory", f"report({count}, {num_frames}, {started.pid})", environment)
        print(f"{count:6} {count * num_frames:8} {row['seconds']:8.1f} {row['peak_mib']:9.0f}", flush=True)


def report(num_clips: int, num_frames: int, cluster_pid: int) -> dict[str, float]:
    """Embed so many clips under two settings, watching memory; return what was seen."""
    head, peak_bytes = psutil.Process(cluster_pid), 0

    def look() -> None:
        nonlocal peak_bytes
        family = [psutil.Process(), head, *head.children(recursive=True)]
        peak_bytes = max(peak_bytes, sum(memory_bytes(process) for process in family))

    backbone = load_backbone()
    with tempfile.TemporaryDirectory() as folder:
        store = Store.open(Path(folder))
        clips = [draw(store, index, num_frames, backbone.frame_px) for index in range(num_clips)]
        embedding = EmbedContext("embedded", store, EmbedConfig())
        configs = (OriginalConfig(), EventfulConfig(refreshed_tokens=16))
        settings = [name_setting(config, backbone.identity, embedding.config.shaping()) for config in configs]
        cluster.connect()
        started = time.monotonic()
        with looking(look, 0.1):
            result = embed_clips(clips, settings, embedding, cluster.actor_pool(None, None), "test")
            seconds = time.monotonic() - started
    if result.num_clips != num_clips:
        raise RuntimeError(f"embedding: got {result.num_clips} clips, expected {num_clips}; see {result.failures[:1]}")
    return {"seconds": seconds, "peak_mib": peak_bytes / 2**20}


def draw(store: Store, index: int, num_frames: int, frame_px: int) -> Transcoded:
    """Write one clip of noise that moves, as transcoding would have left it."""
    rng = np.random.default_rng(index)
    texture = rng.integers(0, 255, (frame_px, frame_px, 3), dtype=np.uint8)
    path = store.mp4_path(f"clip-{index}")
    assert isinstance(path, Path)
    assert isinstance(store.root, Path)
    write_video(path, (np.roll(texture, 2 * frame, axis=1) for frame in range(num_frames)), 2, 30)
    return Transcoded(
        clip_id=str(index),
        content_id=f"clip-{index}",
        path=str(path.relative_to(store.root)),
        num_frames=num_frames,
        frame_px=frame_px,
        fps=2.0,
        duration_s=num_frames / 2,
        codec_metadata=True,
    )


if __name__ == "__main__":
    tyro.cli(main)
