"""Compare two runs, or two kinds of hardware: `python jobs/compare.py A/pareto.csv B/pareto.csv --out compare.png`.

Draws both in one plot, quality against FLOP reduction and against the clock, and lists the settings that both have; the
list is also written beside the plot as CSV. Of two towers (a smaller one beside), both stand on one scale: gains are
counted from A's Original. Their times mean something where one idle machine took both.
"""

import _bootstrap  # noqa: F401  first: makes the packages importable

import sys
from dataclasses import dataclass
from pathlib import Path

import tyro

from dejavu.report.comparison import (
    COMPARED,
    Run,
    common_quality,
    from_original_of,
    pairs,
    plot_comparison,
    two_towers,
    write_pairs_csv,
)
from dejavu.records import ParetoPoint
from dejavu.report.frontier import Quality, words_of
from dejavu.storage.given_path import GivenPath
from dejavu.report.style import styles_of
from dejavu.report.pareto_csv import read_pareto_csv
from dejavu.storage.one_line import exit_status
from dejavu.storage.store_path import StorePath

NEEDED = ("method", "setting", "split", "num_clips")
"""Columns without which a row names no setting; a pareto.csv of another version may lack others."""


@dataclass(frozen=True, kw_only=True)
class Compare:
    """Draw two runs in one plot and list where they differ."""

    first: tyro.conf.Positional[GivenPath]
    """pareto.csv of run A."""
    second: tyro.conf.Positional[GivenPath]
    """pareto.csv of run B."""
    out: Path
    """PNG file to write; the table goes next to it as CSV."""
    names: tuple[str, str] | None = None
    """Names of the runs. If not given, the names of their folders."""


def main(arguments: list[str] | None = None) -> int:
    """Draw, write and print; return the exit status."""
    return exit_status(lambda: run(tyro.cli(Compare, prog="python jobs/compare.py", args=arguments)))


def run(job: Compare) -> None:
    """Compare.

    Raises:
        ValueError: A file lacks a column, or the runs have nothing in common to compare by.
        OSError: A file cannot be read or written.
    """
    names = job.names or run_names(job.first, job.second)
    first, second = (
        Run(name, read_pareto_csv(path, NEEDED)) for name, path in zip(names, (job.first, job.second), strict=True)
    )
    quality = common_quality(first, second)
    if two_towers(first, second):
        second = from_original_of(first, second)
        print(f"two towers: gains of {second.name} are counted from the Original of {first.name}")
    found = pairs(first, second)
    plot_comparison(first, second, quality, job.out)
    table = job.out.with_suffix(".csv")
    write_pairs_csv(table, found, quality)
    print(f"A: {first.name}, {len(first.points)} settings; B: {second.name}, {len(second.points)} settings")
    print(f"{len(found)} settings in both, {words_of([*first.points, *second.points], quality).name} of each:\n")
    print("\n".join(lines(found, quality)))
    print(f"\nplot   {job.out}\ntable  {table}")


def run_names(first: StorePath, second: StorePath) -> tuple[str, str]:
    """Return the names of the folders that the files lie in, or the files' own where those are the same."""
    names = tuple(path.absolute().parent.name for path in (first, second))
    return (names[0], names[1]) if names[0] != names[1] else (str(first), str(second))


def lines(found: list[tuple[ParetoPoint, ParetoPoint]], quality: Quality) -> list[str]:
    """Return the table as lines of text: B's value beside A's, and B minus A or B over A."""
    heads = ("method", "setting", "quality A", "B", "B−A", "FLOPs A", "B", "speed A", "B", "ms A", "B", "A/B")
    rows: list[tuple[str, ...]] = [heads]
    scale = 1 if quality == "cosine_to_dense" else 100
    for a, b in found:
        qualities = getattr(a, quality), getattr(b, quality)
        pace = a.ms_per_frame / b.ms_per_frame if a.ms_per_frame and b.ms_per_frame else None
        rows.append(
            (
                styles_of([a.method])[a.method].name,
                a.setting,
                *(_text(value, scale, 2) for value in qualities),
                _text(qualities[1] - qualities[0], scale, 2, "+"),
                *(_text(getattr(one, name), 1, 2) for name in COMPARED for one in (a, b)),
                _text(pace, 1, 2),
            )
        )
    widths = [max(len(row[column]) for row in rows) for column in range(len(heads))]
    return [
        "  ".join(
            cell.ljust(width) if column < 2 else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]


def _text(value: float | None, scale: float, digits: int, sign: str = "") -> str:
    return "—" if value is None else f"{scale * value:{sign}.{digits}f}"


if __name__ == "__main__":
    sys.exit(main())
