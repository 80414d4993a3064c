"""The failures table, and when failures end a run."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence

from dejavu.records import Failure
from dejavu.storage.place import Place
from dejavu.storage.store import Store, write_text


class TooManyFailures(RuntimeError):  # noqa: N818  it is what happened, not what went wrong in the code
    """More clips failed than the run allows; the message ends in the table."""


def write_failures_csv(store: Store, path: Place) -> list[Failure]:
    """Write what every stage could not do, one row per clip and stage, and return it."""
    failures = store.failures()
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(["clip", "stage", "reason"])
    writer.writerows([failure.clip_id, failure.stage, failure.reason] for failure in failures)
    write_text(path, buffer.getvalue())
    return failures


def check_failures(failures: Sequence[Failure], num_clips: int, num_left: int, limit: float) -> None:
    """End the run where too much failed, or nothing is left.

    Args:
        failures: Of all stages.
        num_clips: Clips that the dataset has.
        num_left: Clips that are still in the run.
        limit: Share of clips that may fail, 0..1.

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
