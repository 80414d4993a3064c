"""Time the way from video files to embeddings: a plain user loop against `jobs/embed.py`, dense and with reuse.

    python jobs/benchmarks/end_to_end.py --videos DIR --backbone openai/clip-vit-base-patch16 --json rows.json

Every way runs in processes of its own, one after the other, on the same videos and weights: plain_loop.py with PyAV
and, where it can be imported, with torchcodec, in float32 or bfloat16, whichever is faster here; then `jobs/embed.py`
for each of --settings, with a cluster of its own. With `--repeat N` that job gets N copies of each video (Matroska,
without sound), which differ in a remark alone, since what is there already would not be embedded again; the loop, which
is no faster for more of them, gets each once.

Seconds count from the moment at which models are loaded and the cluster is up; what came before is `start_s`. CPU
seconds are those of all processes, by what they did. `engine_share` compares with the bare engine on frames that lie in
memory, on all cores: what decoding, moving and storing leave of its speed. The folder must hold nothing but videos.
"""

import _bootstrap_jobs  # noqa: F401

import argparse
import dataclasses
import json
import re
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import psutil
import search
import speed
import submit
import torch

from dejavu.backbones.load import load_backbone
from dejavu.backbones.locate import locate
from dejavu.cluster.cluster import hardware
from dejavu.embedding.precision import gains_of
from dejavu.observability.looking import looking
from dejavu.observability.metrics import first_line
from dejavu.rehearsal.watch import memory_bytes
from dejavu.rehearsal.weights import write_weights_apart
from dejavu.report.style import GOLD, MUTED, STYLES
from dejavu.video.plain import copy_remarked
from reuse_models.tower.known_shapes import KNOWN_SHAPES

HERE = Path(__file__).resolve().parent
SETTINGS = ("original", "reusevit forced_rate=0.8", "reusevit forced_rate=0.9")
DECODERS = ("pyav", "torchcodec")
NUM_STREAMS = 8
ENGINE_ROUNDS = 3
PERIOD_S = 0.5
SAID = re.compile(r"embedded (\d+) of (\d+) videos in ([\d.]+) s.* (\d+) failed")
TABLE = re.compile(r"table .*, (\d+) frames of")
KINDS = {"EncodeRow": "encode", "ReadVideos": "read"}
"""By what stands in the title of a Ray worker while it works."""
LOOP, OURS = MUTED, STYLES["reusevit"].colour
PARTS = {
    "loop": (LOOP, ("loop",)),
    "encode": (OURS, ("encode",)),
    "read": (STYLES["eventful"].colour, ("read",)),
    "Ray and driver": (GOLD, ("cluster", "driver")),
}
"""Of processor time, as drawn: a name, a colour, and which of `Row.cpu_s` it adds up."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Row:
    """One way."""

    way: str
    precision: str
    frames: int
    video_s: float
    """Of all videos together."""
    seconds: float
    start_s: float
    speed: float
    """Video-seconds a second."""
    cpu_s: dict[str, float]
    """By part: `encode` and `read`, `driver`, and `cluster` for what Ray does beside them; a loop is one part."""
    peak_mb: float
    """Of all processes together; what they share counts once."""
    engine_share: float | None = None
    """Frames a second over those of the bare engine; None for loops."""


class CpuTimes:
    """Adds up what processes and their descendants spend, by what they were last seen at, and watches their memory."""

    def __init__(self, roots: dict[str, int]) -> None:
        """Watch processes, by what is spent in them unless their titles say otherwise."""
        self.roots = roots
        self.spent: dict[int, float] = {}
        self.part: dict[int, str] = {}
        self.peak = 0

    def look(self) -> None:
        """Note what each process has spent so far, and what all hold."""
        memory = 0
        for usual, root in self.roots.items():
            with suppress(psutil.Error):
                for process in (psutil.Process(root), *psutil.Process(root).children(recursive=True)):
                    with suppress(psutil.Error):
                        self._note(process, usual)
                        memory += memory_bytes(process)
        self.peak = max(self.peak, memory)

    def _note(self, process: psutil.Process, usual: str) -> None:
        title = " ".join(process.cmdline()[:1])
        times = process.cpu_times()
        self.spent[process.pid] = times.user + times.system
        found = next((part for word, part in KINDS.items() if word in title), None)
        if found or process.pid not in self.part:
            # Videos are read in processes that readers start.
            parent = self.part.get(process.ppid())
            self.part[process.pid] = found or ("read" if parent == "read" else usual)

    def by_part(self) -> dict[str, float]:
        """Return CPU seconds by part."""
        parts: dict[str, float] = defaultdict(float)
        for pid, seconds in self.spent.items():
            parts[self.part[pid]] += seconds
        return dict(parts)


def main(arguments: list[str] | None = None) -> int:
    """Run the benchmark and return the exit code."""
    options = _options(arguments)
    with tempfile.TemporaryDirectory(prefix="dejavu-end-to-end-") as folder:
        backbone = _weights(options.backbone, Path(folder))
        options.copies = options.videos
        if options.repeat > 1:
            try:
                options.copies = repeat(options.videos, options.repeat, Path(folder) / "videos")
            except ValueError as error:
                print(error, file=sys.stderr)
                return 2
        rows = []
        for row in _rows(options, backbone, Path(folder)):
            rows.append(row)
            print(_line(row, rows[0]), flush=True)
    if options.json is not None:
        about = {"hardware": hardware(), "backbone": options.backbone, "fps": options.fps, "repeat": options.repeat}
        options.json.write_text(
            json.dumps({**about, "rows": [dataclasses.asdict(row) for row in rows]}, indent=1) + "\n"
        )
    if options.plot is not None:
        plot(rows, f"{options.backbone}, {hardware()}", options.plot)
    return 0


def _options(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__.split("\n\n", maxsplit=1)[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("--videos", type=Path, required=True, help="folder of videos")
    parser.add_argument("--repeat", type=int, default=1, help="number of copies of each video for jobs/embed.py")
    parser.add_argument("--backbone", default="openai/clip-vit-base-patch16", help="known name, or a directory")
    parser.add_argument("--fps", type=float, default=2.0, help="frames per second")
    parser.add_argument("--settings", nargs="*", default=list(SETTINGS), help="settings for jobs/embed.py")
    parser.add_argument("--decoders", nargs="*", choices=DECODERS, default=list(DECODERS), help="of the plain loop")
    parser.add_argument("--json", type=Path, default=None, help="JSON file for the rows")
    parser.add_argument("--plot", type=Path, default=None, help="PNG file for speed, and what the processors spend")
    return parser.parse_args(arguments)


def repeat(videos: Path, times: int, folder: Path) -> Path:
    """Write copies of the videos of a folder, without sound, each with a remark of its own; return where they lie.

    Raises:
        ValueError: One cannot be copied into Matroska.
    """
    folder.mkdir()
    for index, path in enumerate(sorted(path for path in videos.rglob("*") if path.is_file())):
        for number in range(times):
            try:
                copy_remarked(path, folder / f"{index}-{number}-{path.stem}.mkv", f"copy {number}")
            except (OSError, ValueError) as error:
                raise ValueError(
                    f"--repeat: got {path} ({first_line(error)}), expected videos that Matroska can hold; leave it out"
                ) from error
    return folder


def _weights(backbone: str, folder: Path) -> str:
    """Return a directory; random weights where a size is given."""
    if backbone not in KNOWN_SHAPES or Path(backbone).is_dir():
        return str(locate(backbone).directory)
    write_weights_apart(KNOWN_SHAPES[backbone], ("a", "video"), folder / "backbone")
    return str(folder / "backbone")


def _rows(options: argparse.Namespace, backbone: str, folder: Path) -> Iterator[Row]:
    dense = gains_of(load_backbone(backbone).vit).dense
    for decoder in options.decoders:
        row = _loop(decoder, options, backbone, "bfloat16" if dense > 1 else "float32")
        if row is not None:
            yield row
    for number, words in enumerate(options.settings):
        yield _embed(words, options, backbone, folder / f"out{number}")


def _loop(decoder: str, options: argparse.Namespace, backbone: str, dtype: str) -> Row | None:
    command = [sys.executable, str(HERE / "plain_loop.py"), "--decoder", decoder, "--dtype", dtype]
    command += ["--videos", str(options.videos), "--backbone", backbone, "--fps", str(options.fps)]
    begin = time.monotonic()
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    times = CpuTimes({"loop": process.pid})
    with looking(times.look, PERIOD_S):
        said, complaints = process.communicate()
        wall = time.monotonic() - begin
    if process.returncode:
        print(f"{decoder} is left out: {(complaints.strip().splitlines() or ['?'])[-1]}", flush=True)
        return None
    found = json.loads(said.splitlines()[-1])
    return Row(
        way=f"loop, {decoder}",
        precision=dtype,
        start_s=wall - found["seconds"],
        speed=found["video_s"] / found["seconds"],
        cpu_s=times.by_part(),
        peak_mb=times.peak / 2**20,
        **found,
    )


def _embed(words: str, options: argparse.Namespace, backbone: str, out: Path) -> Row:
    with submit.cluster() as cluster:
        environment = submit.environment(cluster.token) | {"RAY_ADDRESS": cluster.address, "HF_HUB_OFFLINE": "1"}
        command = [sys.executable, str(HERE.parent / "embed.py"), "--setting", words, "--videos", str(options.copies)]
        command += ["--out", str(out), "--backbone", backbone, "--fps", str(options.fps)]
        begin = time.monotonic()
        process = subprocess.Popen(
            command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        times = CpuTimes({"driver": process.pid, "cluster": cluster.pid})
        with looking(times.look, PERIOD_S):
            said, _ = process.communicate()
            wall = time.monotonic() - begin
    embedded, table = SAID.search(said), TABLE.search(said)
    if process.returncode or embedded is None or table is None:
        raise RuntimeError(f"embed.py, {words}: got exit status {process.returncode}, expected 0\n{said[-2000:]}")
    frames, seconds = int(table[1]), float(embedded[3])
    (noted,) = json.loads((out / "store" / "precision.json").read_text()).values()
    return Row(
        way=words,
        precision=noted["precision"],
        frames=frames,
        video_s=frames / options.fps,
        seconds=seconds,
        start_s=wall - seconds,
        speed=frames / options.fps / seconds,
        cpu_s=times.by_part(),
        peak_mb=times.peak / 2**20,
        engine_share=frames / seconds / engine_speed(words, backbone, noted["precision"]),
    )


@torch.inference_mode()
def engine_speed(words: str, backbone: str, precision: str) -> float:
    """Return the frames a second of a setting's engine on random frames in memory, on all cores, in steady state."""
    vit = load_backbone(backbone, device="auto", dtype=getattr(torch, precision)).vit
    first, chunk = speed.make_chunks(vit, NUM_STREAMS)
    setting = speed.start_setting(search.choose_setting(words, ()), 0.0, vit, first, chunk)
    return max(setting.num_frames / speed.seconds_of(setting.step, vit) for _ in range(ENGINE_ROUNDS))


def _line(row: Row, first: Row) -> str:
    parts = ", ".join(f"{part} {1e3 * spent / row.video_s:.0f}" for part, spent in sorted(row.cpu_s.items()))
    share = "" if row.engine_share is None else f"  {row.engine_share:.2f} of the engine"
    times = row.speed / first.speed
    return (
        f"{row.way:<26} {row.precision:<8} {row.speed:7.2f} s of video a second, {times:5.2f}x{share}  "
        f"CPU ms a second of video: {parts}  peak {row.peak_mb:.0f} MiB  started in {row.start_s:.0f} s"
    )


def plot(rows: Sequence[Row], title: str, path: Path) -> None:
    """Draw each way's speed, also as a multiple of the first one's, and beside it where its processor time goes."""
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    figure, (fast, spent) = plt.subplots(1, 2, figsize=(11, 0.55 * len(rows) + 1.6), sharey=True, layout="constrained")
    ways = [f"{row.way}, {row.precision}" for row in rows]
    bars = fast.barh(
        ways, [row.speed for row in rows], color=[LOOP if row.engine_share is None else OURS for row in rows]
    )
    fast.bar_label(bars, [f"{row.speed:.1f}, {row.speed / rows[0].speed:.2f}x" for row in rows], padding=4)
    fast.set(xlabel="video-seconds a second", title=title, xlim=(0, 1.25 * max(row.speed for row in rows)))
    fast.title.set(ha="left", x=0.0)
    left = [0.0] * len(rows)
    for name, (colour, parts) in PARTS.items():
        width = [1e3 * sum(row.cpu_s.get(part, 0.0) for part in parts) / row.video_s for row in rows]
        if any(width):
            spent.barh(ways, width, left=left, color=colour, label=name)
            left = [a + b for a, b in zip(left, width, strict=True)]
    spent.set(xlabel="CPU milliseconds a second of video")
    spent.legend(frameon=False, loc="lower right")
    for axes in (fast, spent):
        axes.spines[["top", "right", "left"]].set_visible(False)
        axes.tick_params(left=False)
    fast.invert_yaxis()  # shared: the first way is on top
    figure.savefig(path, dpi=150)
    plt.close(figure)


if __name__ == "__main__":
    sys.exit(main())
