"""Time one-pass reading (RGB frames + codec grid) against a plain decode of the same file to RGB frames.

Uses one thread, measures CPU time, and alternates between the two in one run.
Run: `python jobs/benchmarks/decode.py [--num-frames 400] [--frame-px 256] [--rounds 15]`.
"""

import _bootstrap_jobs  # noqa: F401

import argparse
import gc
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from dejavu.video.decode import decode
from dejavu.video.plain import decode_plain, write_moving_texture


def measure(path: Path, num_frames: int, rounds: int) -> tuple[list[float], list[float]]:
    """Read `path` both ways `rounds` times, alternating; return CPU milliseconds a frame, plain and in one pass.

    Raises:
        ValueError: A reader gave another number of frames.
    """
    plain, one_pass = [], []
    for _ in range(rounds):
        plain.append(_cpu_ms(lambda: sum(1 for _ in decode_plain(path)), num_frames))
        one_pass.append(_cpu_ms(lambda: sum(len(piece.seconds_F) for piece in decode(path)), num_frames))
    return plain, one_pass


def _cpu_ms(read: Callable[[], int], num_frames: int) -> float:
    gc.collect()
    begin = time.process_time()
    num_read = read()
    spent = time.process_time() - begin
    if num_read != num_frames:
        raise ValueError(f"frames: got {num_read}, expected {num_frames}; the video was not written whole")
    return 1e3 * spent / num_frames


def main() -> None:
    """Make a video, measure, print one table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--num-frames", type=int, default=400, help="number of frames of the video")
    parser.add_argument("--frame-px", type=int, default=256, help="side of a frame in pixels")
    parser.add_argument("--rounds", type=int, default=15, help="number of rounds")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        path, num_frames = Path(folder) / "texture.mp4", arguments.num_frames
        write_moving_texture(path, num_frames, arguments.frame_px)
        plain, one_pass = measure(path, num_frames, arguments.rounds)
    ratios = [ours / theirs for ours, theirs in zip(one_pass, plain, strict=True)]
    print(f"{num_frames} frames, CPU ms per frame, median of {arguments.rounds} alternating rounds")
    print(f"{'plain decode to RGB':<28}{statistics.median(plain):8.3f}")
    print(f"{'RGB and codec grid, one pass':<28}{statistics.median(one_pass):8.3f}")
    spread = f"rounds {min(ratios):.2f}..{max(ratios):.2f}"
    print(f"{'ratio':<28}{statistics.median(ratios):8.2f}   ({spread}; at most 1.8, aim 1.4)")


if __name__ == "__main__":
    main()
