"""Verify this installation: compare every method with the published artifact's numbers, and fast paths with plain ones.

    python jobs/verify.py --golden DIR [--annotations DIR] [--json OUT]

Run it after installing on new hardware. The model part needs torch, transformers, safetensors and numpy alone; video
and question answering are reported as not checked where their libraries are not installed.
"""

import _bootstrap  # noqa: F401

import argparse
import dataclasses
import json
import sys
from collections.abc import Iterable
from pathlib import Path

from reuse_models.verify.fast_paths import compare_fast_paths
from reuse_models.verify.golden import AbsentError, Golden, Row, attempt, judge

MOTION_TOLERANCE = 1e-5


def main(arguments: list[str] | None = None) -> int:
    """Run all comparisons; return 0 if something was checked and nothing failed."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--golden", type=Path, help="folder of golden numbers to compare with")
    what.add_argument("--fast-paths", action="store_true", help="only compare fast paths with plain ones")
    annotated = "folder of NExT-GQA annotation files (default: GOLDEN/../data/nextgqa)"
    parser.add_argument("--annotations", type=Path, help=annotated)
    parser.add_argument("--json", type=Path, help="JSON file for the rows")
    options = parser.parse_args(arguments)
    if options.fast_paths:
        return _report(attempt("fast paths", "(random tower)", compare_fast_paths), options.json)
    if not options.golden.is_dir():
        complaint = f"golden folder: got no folder {options.golden}, expected golden numbers; check the path"
        print(complaint, file=sys.stderr)
        return 1
    annotations = options.annotations or options.golden / ".." / "data" / "nextgqa"

    golden = Golden(options.golden)
    rows = golden.compare_all()
    rows += attempt("temp_clip", "tempclip_forward.safetensors", lambda: _temp_clip(golden))
    rows += _codec(options.golden)
    rows += attempt("nextgqa", "nextgqa_expected.json", lambda: _nextgqa(golden, annotations))
    checked = sum(row.state == "ok" for row in rows)
    rows += attempt("fast paths", "(random tower)", compare_fast_paths)
    failed = _report(rows, options.json)
    if not checked:
        print(f"golden folder: got nothing to compare in {options.golden}, expected golden numbers; check the path")
    return int(failed or not checked)


def _report(rows: list[Row], out: Path | None) -> int:
    """Print and write the rows; return 1 if one failed."""
    for row in rows:
        print(_line(row))
    if out is not None:
        out.write_text(json.dumps([dataclasses.asdict(row) for row in rows], indent=1) + "\n")
    failed = sum(row.state == "failed" for row in rows)
    absent = sum(row.state == "absent" for row in rows)
    print(f"{len(rows) - failed - absent} ok, {failed} failed, {absent} not checked")
    return int(failed > 0)


def _line(row: Row) -> str:
    error = "-" if row.largest_error is None else f"{row.largest_error:.2e}"
    state = "not checked" if row.state == "absent" else row.state
    note = f"  {row.note}" if row.note else ""
    return f"{state:<11}  {row.name:<44}  error {error:>9}  tolerance {row.tolerance:<7g}  {row.file}{note}"


def _temp_clip(golden: Golden) -> Iterable[Row]:
    state, forward = golden.path("tempclip_state.safetensors"), golden.path("tempclip_forward.safetensors")
    try:
        from dejavu.verify.temp_clip import check_temp_clip
    except ModuleNotFoundError as error:
        raise AbsentError(f"{error.name} is not installed") from error
    return check_temp_clip(state, forward)


def _codec(golden: Path) -> list[Row]:
    """Codec grids of real clips, all read in one pass of our decoder."""
    expected = sorted((golden / "codec").glob("*.codec.npz"))
    if not expected:
        return [Row("codec grid", "codec/*.codec.npz", None, 0.0, "absent", "no such file")]
    rows = []
    for path in expected:
        name = path.name.removesuffix(".codec.npz")
        rows += attempt(f"codec {name}", f"codec/{path.name}", lambda path=path: _codec_of(path))  # type: ignore[misc]
    return rows


def _codec_of(path: Path) -> Iterable[Row]:
    try:
        import numpy as np

        from dejavu.video.decode import decode_all
    except ModuleNotFoundError as error:
        raise AbsentError(f"{error.name} is not installed") from error
    name, file = path.name.removesuffix(".codec.npz"), f"codec/{path.name}"
    video = path.with_name(f"{name}.mp4")
    if not video.is_file():
        raise AbsentError(f"no codec/{video.name}")
    expected = np.load(path)
    ours = decode_all(video)
    published = decode_all(video, motion_binning="published")
    # Axes of the grid: class, motion x, motion y, quantiser.
    grid = ours.codec_F4PP.astype(np.float64)
    for part, got, tolerance in (
        ("mb_type", grid[:, 0], 0.0),
        ("qp", grid[:, 3], 0.0),
        ("mv_by_destination", grid[:, 1:3].transpose(0, 2, 3, 1), MOTION_TOLERANCE),
        ("mv_by_source", published.codec_F4PP[:, 1:3].transpose(0, 2, 3, 1).astype(np.float64), MOTION_TOLERANCE),
    ):
        wanted = expected[part].astype(np.float64)
        if got.shape != wanted.shape:
            note = f"got shape {list(got.shape)}, expected {list(wanted.shape)}"
            yield Row(f"codec {name} {part}", file, None, tolerance, "failed", note)
            continue
        yield judge(f"codec {name} {part}", file, float(np.abs(got - wanted).max()), tolerance)
    types = "".join(expected["picture_type"].tolist())
    yield judge(f"codec {name} picture_type", file, float(ours.picture_types != types), 0.0)


def _nextgqa(golden: Golden, annotations: Path) -> Iterable[Row]:
    predictions, expected = golden.path("nextgqa_predictions.json"), golden.path("nextgqa_expected.json")
    if not annotations.is_dir():
        raise AbsentError(f"no annotations in {annotations}; pass --annotations")
    try:
        from dejavu.verify.nextgqa import check_nextgqa
    except ModuleNotFoundError as error:
        raise AbsentError(f"{error.name} is not installed") from error
    return check_nextgqa(predictions, expected, annotations)


if __name__ == "__main__":
    sys.exit(main())
