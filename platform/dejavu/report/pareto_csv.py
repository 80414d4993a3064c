"""pareto.csv: one row per method setting, columns in the order of ParetoPoint's fields, an empty cell for None."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import fields, replace
from typing import Any

from dejavu.records import ParetoPoint
from dejavu.storage.store import write_records
from dejavu.storage.store_path import StorePath

COLUMNS = tuple(field.name for field in fields(ParetoPoint))
_TEXT = ("method", "setting", "split")
_WORDS = ("dense_precision",)
"""Text that may be absent."""
_FLAGS = ("trained", "on_frontier")


def write_pareto_csv(path: StorePath, points: Sequence[ParetoPoint]) -> None:
    """Write all points, whole or not at all; numbers are written so that they read back equal."""
    write_records(path, ParetoPoint, points)


def read_pareto_csv(path: StorePath, needed: Sequence[str] = COLUMNS) -> list[ParetoPoint]:
    """Read what write_pareto_csv wrote.

    Columns that are `needed` must be there. All of them, and no others, unless some are named: then a column that is
    absent reads as not measured, and one that is unknown is left out, as in files of another version. Before
    `timed_speedup` was a column, `speedup` was of the timed clips: it is carried to all.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: It has other columns, or a cell that is not of its column's kind.
    """
    with path.open(newline="", encoding="utf-8") as file:
        reader = csv.DictReader(file)
        found = tuple(reader.fieldnames or ())
        if found != COLUMNS if needed == COLUMNS else not set(needed) <= set(found):
            lacking = [column for column in needed if column not in found]
            raise ValueError(
                f"{path} columns: got {','.join(found)}, expected {','.join(needed)}"
                f"{' (not there: ' + ', '.join(lacking) + ')' if lacking else ''}; take a pareto.csv of this version"
            )
        points = [_point(f"{path.name} line {reader.line_num}", row) for row in reader]
    return points if "timed_speedup" in found else [_carried(point) for point in points]


def _carried(point: ParetoPoint) -> ParetoPoint:
    """Turn a speed-up of the timed clips into one of all clips, where the point says what both computed."""
    if point.speedup is None or point.flops_reduction is None or not point.timed_flops_reduction:
        return point
    carried = point.speedup * point.flops_reduction / point.timed_flops_reduction
    return replace(point, speedup=carried, timed_speedup=point.speedup)


def _point(where: str, row: dict[str, str]) -> ParetoPoint:
    try:
        return ParetoPoint(**{column: _parse(column, row.get(column, "")) for column in COLUMNS})
    except (ValueError, TypeError, KeyError) as error:
        raise ValueError(f"{where}: got {error}, expected a number or an empty cell; write the file again") from error


def _parse(column: str, cell: str) -> Any:
    if column in _TEXT:
        return cell
    if column == "num_clips":
        return int(cell)
    if cell == "":
        return None
    if column in _WORDS:
        return cell
    if column in _FLAGS:
        return {"true": True, "false": False}[cell]
    return float(cell)
