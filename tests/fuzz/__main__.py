"""`python -m tests.fuzz`: damage videos, stored clips, annotations and checkpoints; see what the product makes of it.

`--only NAME --number N` does one draw again and keeps its files.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT / "platform"), str(ROOT)]

from tests.fuzz.campaign import OUTCOMES, Limits, Outcome, campaign, table  # noqa: E402
from tests.fuzz.seeds import Seed, annotation_seeds, checkpoint_seeds, store_seeds, video_seeds  # noqa: E402

PROGRESS_PERIOD_S = 30.0


def main() -> int:
    """Run it; return 1 where anything was found that must not be."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("--counts", nargs=4, type=int, default=(6000, 1500, 4000, 2000), metavar="N",
                        help="damaged videos, stored clips, annotation files and checkpoints")  # fmt: skip
    parser.add_argument("--first", type=int, default=0, help="number of the first draw")
    parser.add_argument("--videos", type=Path, help="a folder of real videos to damage as well")
    parser.add_argument("--log", type=Path, help="file to which the counts are appended")
    parser.add_argument("--keep", type=Path, default=Path("results/fuzz"), help="folder for files of violations")
    parser.add_argument("--only", help="a seed's name, for one draw")
    parser.add_argument("--number", type=int, default=0, help="of that draw")
    words = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="fuzz-seeds-") as name:
        folder = Path(name)
        families = [
            list(video_seeds(words.videos)),
            list(store_seeds(folder)),
            list(annotation_seeds()),
            list(checkpoint_seeds(folder)),
        ]
    if words.only:
        return _again([seed for seeds in families for seed in seeds], words.only, words.number, words.keep)
    found: list[Outcome] = []
    for seeds, count in zip(families, words.counts, strict=True):
        found += _run(seeds, range(words.first, words.first + count), words.keep, words.log)
    print(table(found))
    return int(any(one.outcome == "violation" for one in found))


def _run(seeds: list[Seed], numbers: range, keep: Path, log: Path | None) -> list[Outcome]:
    found: list[Outcome] = []
    start = printed = time.monotonic()
    for outcome in campaign(seeds, numbers, Limits(), keep):
        found.append(outcome)
        if outcome.outcome in ("contained", "violation"):
            print(f"{outcome.outcome}: {outcome.seed.name} {outcome.number} {outcome.mutation.kinds}: {outcome.line}")
        if time.monotonic() - printed > PROGRESS_PERIOD_S:
            printed = time.monotonic()
            print(f"  {seeds[0].family}: {len(found)} of {len(numbers)}, {printed - start:.0f} s", flush=True)
    if log is not None and found:
        log.parent.mkdir(parents=True, exist_ok=True)
        counts = [f"{sum(one.outcome == name for one in found)} {name}" for name in OUTCOMES]
        when = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
        with log.open("a", encoding="utf-8") as file:
            what = f"fuzz {seeds[0].family} {numbers.start}..{numbers.stop - 1}"
            file.write("\t".join((when, what, ", ".join(counts), f"{time.monotonic() - start:.1f}")) + "\n")
    return found


def _again(seeds: list[Seed], name: str, number: int, keep: Path) -> int:
    """Do one draw again. A number is a seed's own only in its turn, so the seed stands at every place here."""
    chosen = [seed for seed in seeds if seed.name == name]
    if not chosen:
        sys.exit(f"--only: got {name}, expected one of {', '.join(seed.name for seed in seeds)}; pass one of them")
    outcome = next(campaign(chosen, range(number, number + 1), Limits(), keep))
    print(f"{outcome.outcome}: {outcome.mutation.kinds}, {len(outcome.mutation.content)} bytes: {outcome.line}")
    path = keep / f"{name}-{number}-{chosen[0].target}"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(outcome.mutation.content)
    print(path)
    return int(outcome.outcome == "violation")


if __name__ == "__main__":
    sys.exit(main())
