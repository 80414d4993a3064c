"""The tables of what failed, what was damaged and what else is to be known of clips; when failures end a run."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from dejavu.records import Failure, Transcoded
from dejavu.storage.one_line import OneLineError
from dejavu.storage.store import Store, write_csv
from dejavu.storage.store_path import StorePath

SHOWN = 5
"""Clips whose remarks are printed; all stand in the table."""


class TooManyFailures(OneLineError):  # noqa: N818  it is what happened, not what went wrong in the code
    """More clips failed than the run allows; the message ends in the table."""


def write_failures_csv(store: Store, path: StorePath) -> list[Failure]:
    """Write what every stage could not do, one row per clip and stage, and return it."""
    failures = store.failures()
    rows = ([failure.clip_id, failure.stage, failure.reason] for failure in failures)
    write_csv(path, ["clip", "stage", "reason"], rows)
    return failures


def write_odd_csv(clips: Iterable[Transcoded], results: StorePath) -> list[Transcoded]:
    """Write damaged.csv and remarks.csv, a row for each clip that has damage or remarks; return these clips."""
    odd = sorted((clip for clip in clips if clip.is_odd), key=lambda clip: clip.clip_id)
    damaged = (
        [clip.clip_id, clip.num_damaged, clip.num_missing, f"{clip.damaged_share:.6f}", clip.concealed]
        for clip in odd
        if clip.damaged_share
    )
    write_csv(results / "damaged.csv", ["clip", "damaged", "missing", "share", "concealed_frames"], damaged)
    remarks = ([clip.clip_id, clip.remarks] for clip in odd if clip.remarks)
    write_csv(results / "remarks.csv", ["clip", "remarks"], remarks)
    return odd


def say_odd(odd: Sequence[Transcoded]) -> list[str]:
    """Return what a person reads of such clips: counts, and the first few by name."""
    num_damaged = sum(clip.damaged_share > 0 for clip in odd)
    num_remarked = sum(bool(clip.remarks) for clip in odd)
    lines = []
    if num_damaged:
        lines.append(f"{num_damaged} clips have damaged or missing pictures, which were concealed: damaged.csv")
    if num_remarked:
        lines.append(f"{num_remarked} clips are not as usual: remarks.csv")
    lines += [f"  {clip.clip_id}  {clip.remarks}" for clip in odd if clip.remarks][:SHOWN]
    return lines


def check_failures(failures: Sequence[Failure], num_clips: int, num_left: int, limit: float) -> None:
    """End the run where more than a share of the clips, 0..1, failed, or nothing is left.

    Raises:
        TooManyFailures: The share is above the limit, or no clip is left.
    """
    failed = {failure.clip_id for failure in failures}
    if num_left and len(failed) <= limit * num_clips:
        return
    table = "\n".join(f"  {failure.clip_id}  {failure.stage}  {failure.reason}" for failure in failures)
    got = f"{len(failed)} of {num_clips} clips failed" if num_left else f"no clip left of {num_clips}"
    raise TooManyFailures(
        f"failures: got {got}, expected at most {limit:.0%} and one clip that works; mend or remove them, "
        f"or raise --max-failed-fraction\n{table}"
    )
