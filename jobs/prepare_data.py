"""Check downloaded data before a run: `python jobs/prepare_data.py nextqa --check DIR`.

Reads annotations and file sizes; decodes and writes nothing. The exit status is 0 if the pipeline can run.
"""

import _bootstrap  # noqa: F401  first: makes the packages importable

import shlex
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import tyro

from dejavu.datasets.next_qa_check import SplitCheck, check_next_qa, find_layout
from dejavu.storage.one_line import exit_status

SHOWN_IDS = 10
EMBEDDED_FPS = 2
"""The pipeline's default, with which the estimate counts frames."""


@dataclass(frozen=True, kw_only=True)
class NextQa:
    """NExT-QA's videos with NExT-GQA's annotation files; docs/nextqa.md says where to get them."""

    check: Path
    """Folder into which videos and annotations were unpacked."""
    videos: Path | None = None
    """Folder of the videos, if it is not below --check."""
    annotations: Path | None = None
    """Folder of the annotation files, if it is not below --check."""


def run(job: NextQa) -> int:
    """Print what there is and what to do next; return the exit status."""
    videos, annotations = find_layout(job.check, job.videos, job.annotations)
    print(f"videos:      {videos}")
    print(f"annotations: {annotations}\n")
    trainable = (annotations / "train.csv").exists()
    splits = check_next_qa(videos, annotations, ("train", "val", "test") if trainable else ("val", "test"))
    print("split  videos    here  missing  empty  questions  without a span")
    for split in splits:
        print(
            f"{split.split:<5}  {split.num_videos:6}  {split.num_usable:6}  {len(split.missing):7}  "
            f"{len(split.empty):5}  {split.num_questions:9}  {split.num_without_span:14}"
        )
    print()
    if not trainable:
        print("train.csv is not there: nothing can be trained on NExT-QA; methods without weights of their own run.\n")
    for split in splits:
        name(f"{split.split}: missing, left out for all methods alike", split.missing)
        name(f"{split.split}: empty, each a failed clip", split.empty)
        name(f"{split.split}: without frame times, no post-hoc span", split.without_frame_times)
    return verdict(videos, annotations, splits)


def name(what: str, clip_ids: Sequence[str]) -> None:
    """Print some ids and the number of the others."""
    if clip_ids:
        more = f" and {len(clip_ids) - SHOWN_IDS} more" if len(clip_ids) > SHOWN_IDS else ""
        print(f"{what}: {', '.join(clip_ids[:SHOWN_IDS])}{more}\n")


def verdict(videos: Path, annotations: Path, splits: Sequence[SplitCheck]) -> int:
    """Say whether the pipeline can run, and how; return the exit status."""
    here = {split.split: split.num_usable for split in splits}
    if not here["test"]:
        print(
            "Not ready: no video of test is there, and only test clips are reported. Put the videos where the id map "
            "says, such as 0101/2909445186.mp4, or all in one folder."
        )
        return 1
    if num_empty := sum(len(split.empty) for split in splits):
        print(f"Not ready: {num_empty} videos have no bytes. Download them again, or delete them to leave them out.")
        return 1
    if not here["val"]:
        print("No video of val is there: nothing chooses among the settings, so all of them go on to the test clips.\n")
    scored = [split for split in splits if split.split != "train"]
    num_frames = EMBEDDED_FPS * sum(split.duration_s for split in scored)
    gigabytes = sum(split.num_bytes for split in scored) / 1e9
    print(f"Ready: {gigabytes:.2f} GB of video to score, about {num_frames:,.0f} frames at {EMBEDDED_FPS} a second.\n")
    print(
        f"  python jobs/pipeline.py nextqa --videos {shlex.quote(str(videos))} "
        f"--annotations {shlex.quote(str(annotations))} --backbone openai/clip-vit-large-patch14"
    )
    return 0


def main(arguments: Sequence[str]) -> int:
    """Run the check that the command line names; a mistake is one line on standard error."""
    job = tyro.extras.subcommand_cli_from_dict(
        {"nextqa": NextQa}, prog="python jobs/prepare_data.py", description=__doc__, args=list(arguments)
    )
    return exit_status(lambda: run(job))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
