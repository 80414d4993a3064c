"""Show that embedding's memory does not grow with the number of videos: `python jobs/benchmarks/memory.py`.

Embeds N short clips with Ray Data on a cluster of its own, for each N in turn, and prints the peak of the proportional
set size (shared memory counted once) of the driver and all processes of that cluster.
"""

import _bootstrap_jobs  # noqa: F401  first: makes the packages importable

import contextlib
import json
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Annotated

import numpy as np
import psutil
import tyro

import submit
from dejavu.cluster import cluster
from dejavu.backbones.load import load_backbone
from dejavu.records import Transcoded
from dejavu.storage.setting import name_setting
from dejavu.embedding.batch import EmbedContext, EmbedConfig
from dejavu.stages.embed import embed_clips
from dejavu.storage.store import Store
from dejavu.video.write import write_video
from reuse_models.baselines.eventful import EventfulConfig
from reuse_models.baselines.original import OriginalConfig


def main(
    videos: Annotated[tuple[int, ...], tyro.conf.arg(help="Numbers of clips, each embedded by itself.")] = (50, 500),
    num_frames: Annotated[int, tyro.conf.arg(help="Frames of each clip.")] = 24,
) -> None:
    """Measure each number of clips in a process and a cluster of its own, and print one table."""
    print(f"{'clips':>6} {'frames':>8} {'seconds':>8} {'peak MiB':>9}")
    for count in videos:
        with submit.cluster(Path(sys.executable).with_name("ray")) as started:
            script = f"import memory as b; b.report({count}, {num_frames}, {started.pid})"
            done = subprocess.run(
                [sys.executable, "-c", script],
                env=submit.environment(started.token) | {"RAY_ADDRESS": started.address},
                cwd=Path(__file__).parent,
                stdout=subprocess.PIPE,
                text=True,
                check=True,
            )
        row = json.loads(done.stdout.strip().splitlines()[-1])
        print(f"{count:6} {count * num_frames:8} {row['seconds']:8.1f} {row['peak_mib']:9.0f}", flush=True)


def report(num_clips: int, num_frames: int, cluster_pid: int) -> None:
    """Embed so many clips under two settings, watching memory; print what was seen as JSON."""
    backbone = load_backbone()
    with tempfile.TemporaryDirectory() as folder:
        store = Store.open(Path(folder))
        clips = [draw(store, index, num_frames, backbone.frame_px) for index in range(num_clips)]
        embedding = EmbedContext("embedded", store, EmbedConfig())
        configs = (OriginalConfig(), EventfulConfig(refreshed_tokens=16))
        settings = [name_setting(config, backbone.identity, embedding.config.shaping()) for config in configs]
        cluster.connect()
        watch = Watch(cluster_pid)
        watch.start()
        started = time.monotonic()
        result = embed_clips(clips, settings, embedding, cluster.actor_pool(None, None), "test")
        seconds = time.monotonic() - started
        watch.stop()
    if result.num_clips != num_clips:
        raise RuntimeError(f"embedding: got {result.num_clips} clips, expected {num_clips}; see {result.failures[:1]}")
    print(json.dumps({"seconds": seconds, "peak_mib": watch.peak_bytes / 2**20}))


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


class Watch(threading.Thread):
    """Looks at the memory of this process and of the cluster's, all the time."""

    def __init__(self, cluster_pid: int) -> None:
        super().__init__(daemon=True)
        self.roots = (psutil.Process(), psutil.Process(cluster_pid))
        self.peak_bytes = 0
        self.done = threading.Event()

    def run(self) -> None:
        while not self.done.wait(0.1):
            total = 0
            for process in [*self.roots, *self.roots[1].children(recursive=True)]:
                with contextlib.suppress(psutil.Error):
                    total += process.memory_full_info().pss
            self.peak_bytes = max(self.peak_bytes, total)

    def stop(self) -> None:
        """Stop looking."""
        self.done.set()
        self.join()


if __name__ == "__main__":
    tyro.cli(main)
