"""A cluster whose processes may be killed, and a small world for the job that runs on it meanwhile.

Nothing that was not started here is ever touched: victims are looked for among the descendants of our own `ray start`.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

import psutil
import pyarrow.parquet as pq
import pytest

from tests.drivers import Driver

ROOT = Path(__file__).resolve().parents[2]
DEADLINE_S = 600
"""For one step of a test on a busy machine; on an idle one it takes seconds."""
STAGES = ("--stages", "transcode,sweep,embed", "--sweep.methods", "frame_skip", "cmc", "eventful")
SPLITS = {"1": "train", "2": "val", "3": "test"}
"""By the first digit of a clip's id in the synthetic world."""
BATCHES = ("--embed.streams", "2")
"""Several batches of a few clips, so that there is something between the first and the last."""


@dataclass
class Bench:
    """The cluster, the world, and what a test does to them."""

    cluster: object
    environment: dict[str, str]
    world: Path
    nodes: list[subprocess.Popen[bytes]] = field(default_factory=list)
    drivers: list[Driver] = field(default_factory=list)

    def results(self, folder: Path) -> Path:
        """Return a new results folder that shares the world's videos."""
        folder.mkdir(parents=True)
        (folder / "world").symlink_to(self.world)
        return folder

    def copy(self, done: Path, folder: Path, *without: str) -> Path:
        """Return a new results folder with what another one has, but for these parts of its store."""
        results = self.results(folder)
        shutil.copytree(done / "store", results / "store", ignore=shutil.ignore_patterns(*without))
        return results

    def undone(self, done: Path, folder: Path, stage: str) -> Path:
        """Return a new results folder with what another one has, but for what one stage made."""
        results = self.copy(done, folder, *(("tune", "chosen.json") if stage == "sweep" else ()))
        for path in self.made(results, stage):
            path.unlink()
        return results

    def made(self, results: Path, stage: str) -> list[Path]:
        """List the files that one stage has left in a store so far: `transcode`, `sweep` or `embed`."""
        store = results / "store"
        if stage == "transcode":
            return [*store.glob("transcoded/*.json"), *store.glob("mp4/*.mp4")]
        records = [json.loads(path.read_text()) for path in store.glob("transcoded/*.json")]
        split = {record["content_id"]: SPLITS[record["clip_id"][0]] for record in records}
        found = []
        for note in store.glob("embeddings/*/setting.json"):
            original = json.loads(note.read_text())["method"] == "original"
            for shard in note.parent.glob("*.parquet"):
                (of,) = {split[content_id] for content_id in _contents(shard)}
                if of == "test" if stage == "embed" else (of == "val" and not original):
                    found.append(shard)
        return found

    def start(self, results: Path, *words: str, recipe: str = "tiny") -> Driver:
        """Start the job; what it prints goes to results/driver.log."""
        self.end_drivers()
        words, log = (recipe, "--results", str(results), *(words or STAGES), *BATCHES), results / "driver.log"
        driver = Driver("pipeline.py", *words, env=self.environment, stdout=log, stderr=log)
        self.drivers.append(driver)
        return driver

    def end_drivers(self) -> None:
        """End what a test that failed has left running."""
        for driver in self.drivers:
            driver.kill()
            driver.wait()
        self.drivers.clear()

    def finish(self, driver: Driver, results: Path) -> str:
        """Wait for a job that should succeed; return what it printed."""
        status = driver.wait(DEADLINE_S)
        printed = (results / "driver.log").read_text(encoding="utf-8", errors="replace")
        assert status == 0, printed[-6000:]
        return printed

    def wait(self, driver: Driver, results: Path, reached: Callable[[], object]) -> None:
        """Wait until the running job has reached something."""
        deadline = time.monotonic() + DEADLINE_S
        while not reached():
            assert driver.poll() is None, (results / "driver.log").read_text(errors="replace")[-6000:]
            assert time.monotonic() < deadline, (results / "driver.log").read_text(errors="replace")[-6000:]
            time.sleep(0.05)

    def workers(self, name: str, root: int | None = None) -> list[psutil.Process]:
        """List our Ray workers that have this in their title."""
        found = []
        for pid in [root] if root else [self.cluster.pid, *(node.pid for node in self.nodes)]:  # type: ignore[attr-defined]
            for process in _family(pid):
                with contextlib.suppress(psutil.Error):
                    if any(word.startswith("ray::") and name in word for word in process.cmdline()[:1]):
                        found.append(process)
        return found

    def add_node(self, num_cpus: int = 2) -> subprocess.Popen[bytes]:
        """Start one more node of the cluster on this machine."""
        import submit

        node = submit.add_node(self.cluster, num_cpus)  # type: ignore[arg-type]
        self.nodes.append(node)
        return node

    def kill_node(self, node: subprocess.Popen[bytes]) -> None:
        """End a whole node at once, as when its machine is taken away."""
        for process in [*_family(node.pid), node]:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        node.wait()
        self.nodes.remove(node)


@cache
def _contents(shard: Path) -> frozenset[str]:
    return frozenset(pq.read_table(shard, columns=["content_id"])["content_id"].to_pylist())


def _family(pid: int) -> list[psutil.Process]:
    try:
        return psutil.Process(pid).children(recursive=True)
    except psutil.NoSuchProcess:
        return []


@pytest.fixture(scope="session")
def bench(ray_cluster: object, ray_environment: dict[str, str], world: Path) -> Iterator[Bench]:
    """The cluster that tests share and the tiny recipe's world."""
    settings = {"OMP_NUM_THREADS": "1", "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.5"}  # that of production is 2 s
    bench = Bench(ray_cluster, ray_environment | settings, world)
    try:
        yield bench
    finally:
        bench.end_drivers()
        for node in list(bench.nodes):
            bench.kill_node(node)


@pytest.fixture(scope="session")
def undisturbed(bench: Bench, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The results folder of a run that nobody disturbed."""
    results = bench.results(tmp_path_factory.mktemp("undisturbed") / "results")
    bench.finish(bench.start(results), results)
    return results


def result_set(results: Path) -> dict[tuple[str, str, int], list[float]]:
    """Return every stored frame: (setting, content, frame) -> embedding."""
    found = {}
    for shard in (results / "store" / "embeddings").glob("*/*.parquet"):
        for row in pq.read_table(shard).to_pylist():
            key = (shard.parent.name, row["content_id"], row["frame"])
            assert key not in found, f"a frame is stored twice: {key}"
            found[key] = row["embedding"]
    return found


@pytest.fixture(scope="session")
def same(undisturbed: Path) -> Callable[..., None]:
    """Hold a results folder against the undisturbed one: same frames, each once, same values, no failure."""
    import numpy as np

    expected = result_set(undisturbed)

    def check(results: Path, tolerance: float = 2e-3) -> None:
        found = result_set(results)
        assert found.keys() == expected.keys()
        keys = sorted(expected)
        actual, desired = ([frames[key] for key in keys] for frames in (found, expected))
        np.testing.assert_allclose(actual, desired, atol=tolerance, rtol=0)
        for name in ("transcoded", "mp4"):
            ours, theirs = (sorted(p.name for p in (r / "store" / name).iterdir()) for r in (results, undisturbed))
            assert [one for one in ours if not one.startswith(".")] == theirs
        assert (results / "failures.csv").read_text() == "clip,stage,reason\n"

    return check


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """Append a line for each test to the log that `make soak` names: when, which, how it ended, seconds."""
    log = os.environ.get("SOAK_LOG")
    if not log or "tests/faults" not in report.nodeid or (report.when != "call" and report.passed):
        return
    path = Path(log)
    path.parent.mkdir(parents=True, exist_ok=True)
    when = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    with path.open("a", encoding="utf-8") as file:
        file.write(f"{when}\t{report.nodeid}\t{report.outcome}\t{report.duration:.1f}\n")
