"""A worker process is killed in every stage; the job goes on as if nothing had been."""

from __future__ import annotations

import contextlib
import csv
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import av
import numpy as np
import psutil
import pytest

pytestmark = [pytest.mark.faults, pytest.mark.ray, pytest.mark.slow]


@pytest.mark.parametrize(
    ("stage", "worker"), [("transcode", "transcode_one"), ("embed", "EncodeRow"), ("sweep", "ImplicitFu")]
)
def test_a_worker_killed_in_a_stage_costs_time_alone(
    bench: Any, undisturbed: Path, same: Callable[[Path], None], tmp_path: Path, stage: str, worker: str
) -> None:
    results = bench.undone(undisturbed, tmp_path / "results", stage)
    driver = bench.start(results)
    victims: list[psutil.Process] = []

    def killed() -> bool:
        """Kill a worker where one is found that has not ended by itself meanwhile."""
        for victim in bench.workers(worker) if bench.made(results, stage) else ():
            with contextlib.suppress(psutil.NoSuchProcess):
                victim.kill()
                victims.append(victim)
                return True
        return False

    bench.wait(driver, results, killed)
    assert len(bench.made(results, stage)) < len(bench.made(undisturbed, stage)), "the kill came too late"
    bench.finish(driver, results)
    same(results)
    assert not victims[0].is_running()


def test_a_video_that_crashes_ffmpeg_is_a_row_and_the_others_go_on(bench: Any, tmp_path: Path) -> None:
    """The crash is a real SIGSEGV of the process that reads the video, in the middle of it, under Ray."""
    videos = tmp_path / "videos"
    videos.mkdir()
    for number, path in enumerate(sorted(bench.world.rglob("*.mp4"))[:3]):
        shutil.copy(path, videos / f"{number}.mp4")
    crash = videos / "crash.mp4"
    write_noise(crash, num_frames=1500)
    results = tmp_path / "results"
    results.mkdir()
    words = ("--videos", str(videos), "--stages", "transcode,sweep,embed", "--sweep.methods", "frame_skip")
    driver = bench.start(results, *words, "--max-failed-fraction", "0.3", recipe="folder")
    found: list[psutil.Process] = []

    def reads_it() -> bool:
        found[:] = [process for process in psutil.process_iter() if _has_open(process, crash)]
        return bool(found)

    bench.wait(driver, results, reads_it)
    found[0].send_signal(signal.SIGSEGV)
    printed = bench.finish(driver, results)
    with (results / "failures.csv").open(newline="", encoding="utf-8") as file:
        (row,) = csv.DictReader(file)
    assert (row["clip"], row["stage"]) == ("crash.mp4", "transcode")
    assert "crash.mp4: got a crash of FFmpeg (SIGSEGV), expected an intact video; leave it out" in row["reason"]
    assert "transcoded 3 clips, 3 ready, 1 failed" in printed
    assert "embedded 3 clips under" in printed
    assert not list((results / "store" / "mp4").glob(".*"))


def write_noise(path: Path, num_frames: int) -> None:
    """Write a video that takes seconds to read."""
    rng = np.random.default_rng(0)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=30, options={"preset": "ultrafast"})
        stream.width, stream.height, stream.pix_fmt = 640, 480, "yuv420p"
        noise = rng.integers(0, 255, (480, 640, 3), dtype=np.uint8)
        for index in range(num_frames):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(np.roll(noise, index, axis=1), "rgb24")))
        container.mux(stream.encode(None))


def _has_open(process: psutil.Process, path: Path) -> bool:
    with contextlib.suppress(psutil.Error):
        named = "dejavu.video.transcode_apart" in process.cmdline()
        return named and any(Path(file.path) == path for file in process.open_files())
    return False
