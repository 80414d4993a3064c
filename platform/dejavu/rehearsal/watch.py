"""Watch the memory of a run's processes and what it writes, all the while, from a thread of another process."""

from __future__ import annotations

import contextlib
import shutil
import subprocess
import threading
import time
from dataclasses import dataclass
from pathlib import Path

import psutil

PERIOD_S = 0.5
SHARE = 0.04
"""Of a core, at most, that looking takes: where processes have many pages or are many, samples are rarer."""
WORKER = "ray::"
"""How the command line of a Ray worker begins, whatever it works on."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Sample:
    """What was seen at one moment. Bytes of memory are proportional: what processes share counts once."""

    time: float
    """Seconds since 1970."""
    driver: int
    workers: int
    """All of them together."""
    largest_worker: int
    others: int
    """Ray's own processes, and what workers start."""
    gpu: int
    """Of all GPUs, whoever holds it; 0 without one."""
    written: int
    """Bytes of the files in the results folder."""


class Watch(threading.Thread):
    """Takes a sample every half second or, where that costs more than SHARE, less often, from `start` to `stop`.

    It looks at the processes with the ids `driver` and `cluster`, with all below them, and at the folder `results`.
    """

    def __init__(self, driver: int, cluster: int, results: Path) -> None:
        super().__init__(daemon=True)
        self.driver, self.cluster, self.results = driver, cluster, results
        self.samples: list[Sample] = []
        self.ended = threading.Event()
        self.has_gpu = shutil.which("nvidia-smi") is not None

    def run(self) -> None:
        """Take samples until told to stop."""
        pause_s = PERIOD_S
        while not self.ended.wait(pause_s):
            start = time.thread_time()
            self.samples.append(self._look())
            pause_s = max(PERIOD_S, (time.thread_time() - start) / SHARE)

    def stop(self) -> list[Sample]:
        """Return all samples."""
        self.ended.set()
        self.join()
        return self.samples

    def _look(self) -> Sample:
        driver = sum(memory_bytes(one) for one in _family(self.driver))
        workers, others = [], 0
        for process in _family(self.cluster):
            size = memory_bytes(process)
            if is_worker(process):
                workers.append(size)
            else:
                others += size
        return Sample(
            time=time.time(),
            driver=driver,
            workers=sum(workers),
            largest_worker=max(workers, default=0),
            others=others,
            gpu=gpu_bytes() if self.has_gpu else 0,
            written=folder_bytes(self.results),
        )


def _family(pid: int) -> list[psutil.Process]:
    with contextlib.suppress(psutil.Error):
        process = psutil.Process(pid)
        return [process, *process.children(recursive=True)]
    return []


def is_worker(process: psutil.Process) -> bool:
    """Whether a process is a Ray worker."""
    with contextlib.suppress(psutil.Error):
        return process.cmdline()[:1] != [] and process.cmdline()[0].startswith(WORKER)
    return False


def memory_bytes(process: psutil.Process) -> int:
    """Return the proportional set size of a process, or its resident set where there is no other; 0 if it ended."""
    with contextlib.suppress(psutil.Error):
        info = process.memory_full_info()
        return int(getattr(info, "pss", info.rss))
    return 0


def gpu_bytes() -> int:
    """Return what is in use of the memory of all GPUs."""
    command = ["nvidia-smi", "--query-gpu=memory.used", "--format=csv,noheader,nounits"]
    with contextlib.suppress(OSError, subprocess.SubprocessError, ValueError):
        said = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True).stdout
        return 2**20 * sum(int(line) for line in said.split())
    return 0


def folder_bytes(folder: Path) -> int:
    """Return the bytes of all files below a folder; those that vanish meanwhile do not count."""
    total = 0
    for path in folder.rglob("*"):
        with contextlib.suppress(OSError):
            if path.is_file() and not path.is_symlink():
                total += path.stat().st_size
    return total
