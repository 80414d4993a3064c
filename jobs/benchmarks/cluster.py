"""What a cluster costs: `python jobs/benchmarks/cluster.py` embeds the same clips in a plain loop and on several nodes.

Both take the same batches. The processor time of the stage's processes counts, each from its first clip to its last:
the one process of the plain loop, and on the cluster (raylets on this machine, one CPU each) every process that decodes
or encodes. What the driver takes meanwhile, and Ray's own processes and the start and end of workers, stands apart.
Cores that work side by side slow each other down, on memory and caches: so the plain loop is also run as many times at
once as there are raylets, a share of the batches each, without Ray.
"""

import _bootstrap_jobs  # noqa: F401  first: makes the packages importable

import contextlib
import itertools
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import psutil
import pyarrow.parquet as pq
import ray
import tyro
from numpy.typing import NDArray

import submit
from apart import report_of
from memory import draw
from dejavu.cluster import cluster
from dejavu.backbones.load import load_backbone
from dejavu.observability.looking import looking
from dejavu.records import Transcoded
from dejavu.storage.setting import Setting, name_setting
from dejavu.stages import embed
from dejavu.embedding.batch import EmbedConfig, EmbedContext, decode_batch, plan
from dejavu.embedding.reader import DecodeRow
from dejavu.cluster.ray_map import Row
from dejavu.storage.store import Store, write_json
from reuse_models.baselines.eventful import EventfulConfig
from reuse_models.baselines.original import OriginalConfig

ONE_THREAD = {"OMP_NUM_THREADS": "1"}
"""As Ray gives its workers."""
SPANS = "spans"
"""Folder in a store where each process of the stage notes what it had spent before its first clip and after each."""


def main(
    clips: Annotated[int, tyro.conf.arg(help="Number of clips, each embedded in two settings.")] = 1000,
    frames: Annotated[int, tyro.conf.arg(help="Number of frames per clip.")] = 24,
    nodes: Annotated[int, tyro.conf.arg(help="Number of raylets, all on this machine.")] = 4,
    rounds: Annotated[int, tyro.conf.arg(help="Number of times that both run, one after the other.")] = 3,
    json_path: Annotated[Path | None, tyro.conf.arg(name="json", help="JSON file that also gets the figures.")] = None,
) -> None:
    """Run a plain loop and a cluster in turn, each in a process of its own, and print one table."""
    call = partial(report_of, "cluster", environment=dict(os.environ) | ONE_THREAD)
    rows: list[dict[str, float]] = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        px = load_backbone().frame_px
        drawn = [draw(Store(folder), index, frames, px) for index in range(clips)]
        write_json(folder / "clips.json", [asdict(clip) for clip in drawn])
        print(f"{clips} clips of {frames} frames under 2 settings, {nodes} raylets; processor seconds")
        columns = ("round", "plain", "at once", "cluster", "more", "than at once", "driver", "Ray")
        print(" ".join(f"{column:>8}" for column in columns))
        for number in range(rounds):
            plain = call(f"report_plain({str(folder)!r}, 'plain-{number}', 0, 1)")["plain_s"]
            shares = [
                f"report_plain({str(folder)!r}, 'share-{number}-{node}', {node}, {nodes})" for node in range(nodes)
            ]
            with ThreadPoolExecutor(nodes) as pool:
                at_once = sum(row["plain_s"] for row in pool.map(call, shares))
            with submit.cluster(num_cpus=1) as started:
                environment = submit.environment(started.token) | ONE_THREAD | {"RAY_ADDRESS": started.address}
                report = f"report_cluster({str(folder)!r}, 'cluster-{number}', {nodes}, {started.pid})"
                row = {"plain_s": plain, "at_once_s": at_once} | report_of("cluster", report, environment)
            row["more"] = row["cluster_s"] / plain - 1
            row["more_than_at_once"] = row["cluster_s"] / at_once - 1
            row["shards"], row["equal_shards"] = compare(folder / f"plain-{number}", folder / f"cluster-{number}")
            rows.append(row)
            seconds = [f"{row[column]:8.1f}" for column in ("plain_s", "at_once_s", "cluster_s")]
            extra = [f"{row['more']:+8.1%}", f"{row['more_than_at_once']:+12.1%}"]
            spent = [f"{row[column]:8.1f}" for column in ("driver_s", "ray_s")]
            print(f"{number + 1:8}", *seconds, *extra, *spent, flush=True)
    more, than_at_once = (statistics.median(row[name] for row in rows) for name in ("more", "more_than_at_once"))
    print(f"more, median: {more:+.1%} than one loop alone, {than_at_once:+.1%} than as many at once; aim +15 %")
    equal, shards = (sum(int(row[column]) for row in rows) for column in ("equal_shards", "shards"))
    print(f"{equal} of {shards} shards are equal bit for bit")
    if json_path:
        write_json(json_path, {"clips": clips, "frames": frames, "nodes": nodes, "rounds": rows})


def compare(one: Path, other: Path) -> tuple[int, int]:
    """Count the shards of embeddings that one store has, and those that the other has with the same content."""
    shards = sorted((one / "embeddings").glob("*/*.parquet"))
    theirs = [other / shard.relative_to(one) for shard in shards]
    equal = [b.is_file() and pq.read_table(a).equals(pq.read_table(b)) for a, b in zip(shards, theirs, strict=True)]
    return len(shards), sum(equal)


def report_plain(folder: str, name: str, share: int, num_shares: int) -> dict[str, float]:
    """Embed every `num_shares`-th batch in this process; return what that took."""
    clips, settings, embedding = work(Path(folder), name)
    encoder = embed.EncodeRow(embedding)
    before = time.process_time()
    for batch in itertools.islice(plan(clips, settings, embedding), share, None, num_shares):
        decoded = decode_batch(batch.segments, embedding)
        for setting in batch.settings:
            encoder.encode(setting, decoded)
    spent = time.process_time() - before
    if num_shares == 1:
        check(clips, settings, embedding)
    return {"plain_s": spent}


def report_cluster(folder: str, name: str, num_nodes: int, head_pid: int) -> dict[str, float]:
    """Embed everything on the cluster, whose other nodes are started first; return what that took."""
    # Workers do not see this file: what they need of it travels with the work.
    ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])
    embed.DecodeRow = _Decode  # type: ignore[attr-defined]
    embed.EncodeRow = _Encode  # type: ignore[misc]
    clips, settings, embedding = work(Path(folder), name)
    spans = Path(folder) / name / SPANS
    spans.mkdir()
    started = submit.Cluster(os.environ["RAY_ADDRESS"], "", Path(os.environ["RAY_AUTH_TOKEN_PATH"]), head_pid)
    node_pids = [submit.add_node(started, num_cpus=1).pid for _ in range(num_nodes - 1)]
    cluster.connect()
    watch = Watch(spans, [head_pid, *node_pids])
    with looking(watch.look, 0.2):
        embed.embed_clips(clips, settings, embedding, cluster.actor_pool(None, None), "test")
    check(clips, settings, embedding)
    return watch.spent()


def work(folder: Path, name: str) -> tuple[list[Transcoded], list[Setting], EmbedContext]:
    """Return the clips, two settings, and a new store beside the others that shares their videos."""
    clips = [Transcoded(**row) for row in json.loads((folder / "clips.json").read_text(encoding="utf-8"))]
    store = Store.open(folder / name)
    store.mp4_dir.symlink_to(folder / "mp4")
    embedding = EmbedContext("embedded", store, EmbedConfig())
    backbone = load_backbone(embedding.backbone)
    configs = (OriginalConfig(), EventfulConfig(refreshed_tokens=16))
    return clips, [name_setting(one, backbone.identity, embedding.config.shaping()) for one in configs], embedding


def check(clips: Sequence[Transcoded], settings: Sequence[Setting], embedding: EmbedContext) -> None:
    """See that all is embedded.

    Raises:
        RuntimeError: Something is missing: the figures would be of less work.
    """
    for setting in settings:
        if (count := len(embedding.store.done(setting.setting_id))) != len(clips):
            raise RuntimeError(f"embedding: got {count} clips under {setting.label}, expected {len(clips)}")


class _Decode(DecodeRow):
    """Decodes, and notes from when to when its process did."""

    def __call__(self, row: Row) -> Row:
        with _noted(self.embedding):
            return super().__call__(row)


class _Encode(embed.EncodeRow):
    """Encodes, and notes from when to when its process did."""

    def __call__(self, rows: dict[str, NDArray[Any]]) -> dict[str, list[str]]:
        with _noted(self.embedding):
            return super().__call__(rows)


@contextlib.contextmanager
def _noted(embedding: EmbedContext) -> Iterator[None]:
    """Write down what this process had spent before its first clip, and what it has after this one."""
    path = embedding.store.root / SPANS / str(os.getpid())
    first = json.loads(path.read_text(encoding="ascii"))[0] if path.exists() else time.process_time()
    yield
    write_json(path, [first, time.process_time()])


class Watch:
    """Looks at the processor time of all processes of the cluster, and of this one, from the stage's first clip on."""

    def __init__(self, spans: Path, node_pids: Sequence[int]) -> None:
        self.spans = spans
        self.nodes = [psutil.Process(pid) for pid in node_pids]
        self.first: dict[int, float] = {}
        self.last: dict[int, float] = {}

    def look(self) -> None:
        """Note what each process has spent."""
        if not any(self.spans.iterdir()):
            return
        family = [process for node in self.nodes for process in node.children(recursive=True)]
        for process in [psutil.Process(), *family]:
            with contextlib.suppress(psutil.Error):
                times = process.cpu_times()
                self.last[process.pid] = times.user + times.system
                self.first.setdefault(process.pid, self.last[process.pid])

    def spent(self) -> dict[str, float]:
        """Return seconds of the stage, the driver, and everything else of Ray's, beginnings and ends of workers too."""
        seconds = {pid: self.last[pid] - self.first[pid] for pid in self.last}
        driver = seconds.pop(os.getpid())
        spans = [json.loads(path.read_text(encoding="ascii")) for path in self.spans.glob("[0-9]*")]
        stage: float = sum(last - first for first, last in spans)
        return {"cluster_s": stage, "driver_s": driver, "ray_s": sum(seconds.values()) - stage}


if __name__ == "__main__":
    tyro.cli(main)
