"""All methods on your own footage and tower, and one page of what came of it.

    python jobs/benchmarks/evidence.py --backbone DINOV2 --sets classes:8:SURVEILLANCE folder:2:NATURAL --out OUT

Each set is RECIPE:FRAMES_PER_SECOND:VIDEOS. One after the other they go through `jobs/pipeline.py` with every stage,
training included, into a results folder of their own; what a run has done is not done again. From their pareto.csv
comes `evidence.md`: a table for each set with quality and its intervals, executed FLOPs and wall clock on the same
points, fastest first. The first tested clip of each is drawn with what was recomputed (`jobs/overlay.py`). Times want
an idle machine.
"""

import _bootstrap_jobs  # noqa: F401

import csv
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import tyro

from dejavu.cluster.cluster import hardware
from dejavu.records import ParetoPoint
from dejavu.report.frontier import has_agreement_beside
from dejavu.report.style import styles_of
from dejavu.report.pareto_csv import read_pareto_csv
from dejavu.storage.one_line import exit_status
from dejavu.storage.store import write_text

JOBS = Path(__file__).resolve().parents[1]
PAGE = "evidence.md"
RECIPES = ("folder", "classes")


@dataclass(frozen=True, slots=True)
class VideoSet:
    """Videos, and how they are run."""

    recipe: str
    fps: float
    videos: Path

    @classmethod
    def parse(cls, text: str) -> "VideoSet":
        """Read RECIPE:FRAMES_PER_SECOND:VIDEOS.

        Raises:
            ValueError: It is none, or the folder is not there.
        """
        recipe, _, rest = text.partition(":")
        fps, _, folder = rest.partition(":")
        try:
            rate = float(fps)
        except ValueError:
            rate = 0.0
        if recipe not in RECIPES or not rate > 0 or not folder:
            raise ValueError(
                f"--sets: got {text!r}, expected {' or '.join(RECIPES)}, frames a second and a folder, such as "
                "folder:2:videos; check the three parts"
            )
        if not Path(folder).is_dir():
            raise ValueError(f"--sets: got {Path(folder)}, which is no folder; check the path")
        return cls(recipe, rate, Path(folder))

    @property
    def name(self) -> str:
        """That of its results folder."""
        return self.videos.resolve().name


@dataclass(frozen=True, kw_only=True)
class Evidence:
    """Run every method on several sets of videos and write one page."""

    sets: tuple[str, ...]
    """Sets, each as RECIPE:FRAMES_PER_SECOND:VIDEOS; their folders need different names."""
    backbone: str
    """Backbone as in jobs/pipeline.py."""
    out: Path
    """Folder for the page and for one results folder per set."""
    options: str = ""
    """Further options for jobs/pipeline.py, as one argument: `"--options=--measure.num-rounds 3"`."""


def command_of(one: VideoSet, job: Evidence) -> list[str]:
    """Return the pipeline's command for a set: what a person would type."""
    words = [sys.executable, str(JOBS / "pipeline.py"), one.recipe, "--videos", str(one.videos)]
    words += ["--transcode.fps", f"{one.fps:g}", "--backbone", job.backbone, "--results", str(job.out / one.name)]
    return words + job.options.split()


def table(points: Sequence[ParetoPoint]) -> str:
    """Return all points as Markdown, the fastest by the clock first; a column that no point fills is left out."""
    ordered = sorted(points, key=lambda point: -(point.speedup or 0.0))
    columns = {name: [fill(point) for point in ordered] for name, fill in COLUMNS.items()}
    shown = {name: cells for name, cells in columns.items() if any(cells)}
    lines = ["| " + " | ".join(shown) + " |", "|" + "---|" * len(shown)]
    lines += ["| " + " | ".join(row) + " |" for row in zip(*shown.values(), strict=True)]
    return "\n".join(lines)


def with_decoding(point: ParetoPoint) -> float | None:
    """Return the timed speed-up where decoding a frame, on one core, counts as well; dense reads no codec grid."""
    times = (point.ms_per_frame, point.timed_speedup, point.decode_ms_per_frame, point.codec_ms_per_frame)
    if any(one is None for one in times):
        return None
    ours, speedup, decode, codec = (one for one in times if one is not None)
    reads_grid = max(0.0, codec) if point.method == "reusevit" else 0.0
    return (speedup * ours + decode) / (ours + decode + reads_grid)


def _number(digits: int, value: float | None) -> str:
    return "" if value is None else f"{value:.{digits}f}"


def _with_interval(value: float | None, low: float | None, high: float | None) -> str:
    if value is None:
        return ""
    return f"{value:.3f}" + ("" if low is None or high is None else f" [{low:.3f}, {high:.3f}]")


def by_motion(folder: Path) -> str:
    """Return agreement, or the cosine where there is none, by thirds of the clips' motion, as Markdown.

    Of the settings that the run's report shows, from its breakdown.csv.
    """
    with (folder / "breakdown.csv").open(newline="", encoding="utf-8") as file:
        rows = [row for row in csv.DictReader(file) if row["split_by"] == "motion_px"]
    if not rows:
        return ""
    shown = "agreement" if any(row["agreement"] for row in rows) else "cosine_to_dense"
    settings = dict.fromkeys((row["method"], row["setting"]) for row in rows)
    cells = {(row["method"], row["setting"], row["value"]): row for row in rows}
    bounds = {row["value"]: f"{row['value']}, {float(row['low']):.2g} to {float(row['high']):.2g} px" for row in rows}
    lines = [f"| {shown.removesuffix('_to_dense')} where motion is | " + " | ".join(bounds.values()) + " |"]
    lines.append("|---|" + "---|" * len(bounds))
    for method, setting in settings:
        values = [_number(3, float(cells[method, setting, third][shown] or "nan")) for third in bounds]
        lines.append(f"| {styles_of([method])[method].name} {setting} | " + " | ".join(values) + " |")
    return "\n".join(lines)


COLUMNS: dict[str, Callable[[ParetoPoint], str]] = {
    "setting": lambda p: f"{styles_of([p.method])[p.method].name} {p.setting}".strip(),
    "by the clock": lambda p: _number(2, p.speedup),
    "fewer FLOPs": lambda p: _number(2, p.flops_reduction),
    "timed: clock": lambda p: _number(2, p.timed_speedup),
    "timed: with decoding": lambda p: _number(2, with_decoding(p)),
    "timed: fewer FLOPs": lambda p: _number(2, p.timed_flops_reduction),
    "agreement [95 %]": lambda p: _with_interval(p.agreement, p.agreement_ci_low, p.agreement_ci_high),
    "cosine": lambda p: _number(3, p.cosine_to_dense),
    "probe [loss, 95 %]": lambda p: _with_interval(p.accuracy, p.accuracy_loss_ci_low, p.accuracy_loss_ci_high),
    "nearest clips": lambda p: _number(3, p.knn_accuracy),
    "MiB": lambda p: _number(0, p.peak_memory_mb),
}


def page(sets: Sequence[VideoSet], job: Evidence, seconds: Sequence[float]) -> str:
    """Return the page: a table for each set and the command that made it."""
    parts = [f"# Evidence\n\n{job.backbone}, on {hardware()}.\n"]
    for one, spent in zip(sets, seconds, strict=True):
        points = read_pareto_csv(job.out / one.name / "pareto.csv")
        command = " ".join(["python", "jobs/pipeline.py", *command_of(one, job)[2:]])
        plot = "agreement.png" if has_agreement_beside(points) else "pareto.png"
        parts.append(
            f"## {one.name}, {one.fps:g} frames a second\n\n```\n{command}\n```\n\n{points[0].num_clips} test clips; "
            f"{spent:.0f} s for what was not done before.\n\n![Quality against the clock and computation]"
            f"({one.name}/{plot})\n\n{table(points)}\n\n{by_motion(job.out / one.name)}\n"
        )
    return "\n".join(parts)


def draw(one: VideoSet, job: Evidence) -> None:
    """Write a video of the first tested clip beside what was recomputed of it; a run without reuse has none."""
    results = job.out / one.name
    with (results / "splits.csv").open(newline="", encoding="utf-8") as file:
        tested = [row["path"] for row in csv.DictReader(file) if row["split"] == "test"]
    words = [sys.executable, str(JOBS / "overlay.py"), tested[0], "--results", str(results)]
    subprocess.run([*words, "--out", str(job.out / f"{one.name}.mp4")], check=False)


def run(job: Evidence) -> int:
    """Run all sets, then write the page; return the exit status of the first run that fails."""
    sets = [VideoSet.parse(text) for text in job.sets]
    if len({one.name for one in sets}) < len(sets):
        raise ValueError(f"--sets: got two folders of one name in {job.sets}, expected different ones; rename one")
    seconds = []
    for one in sets:
        begin = time.monotonic()
        done = subprocess.run(command_of(one, job), check=False)
        if done.returncode:
            return done.returncode
        seconds.append(time.monotonic() - begin)
        draw(one, job)
    write_text(job.out / PAGE, page(sets, job, seconds))
    print(f"page       {job.out / PAGE}", flush=True)
    return 0


def main(arguments: list[str] | None = None) -> int:
    """Run; return the exit status."""
    return exit_status(lambda: run(tyro.cli(Evidence, prog="python jobs/benchmarks/evidence.py", args=arguments)))


if __name__ == "__main__":
    sys.exit(main())
