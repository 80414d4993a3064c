"""Many trials one after the other: damage, trial, outcome; each can be had again by its number."""

from __future__ import annotations

import shutil
import signal
import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from dejavu.video.apart import Apart, ApartError
from tests.fuzz.mutate import Mutation, mutate
from tests.fuzz.seeds import Seed

OUTCOMES = ("done", "refused", "contained", "violation")


@dataclass(frozen=True, slots=True)
class Limits:
    """Seconds, generous: a trial takes some hundredths."""

    clip_s: float = 30.0
    """What transcoding one clip may take before it is ended."""
    trial_s: float = 90.0
    """What a whole trial may take before it counts as a hang."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What came of one damaged file."""

    seed: Seed
    number: int
    mutation: Mutation
    outcome: str
    line: str


def campaign(seeds: Sequence[Seed], numbers: range, limits: Limits, keep: Path | None = None) -> Iterator[Outcome]:
    """Damage the seeds in turn, one for each number, and yield what the product makes of it.

    Args:
        seeds: In an order that is always the same.
        numbers: Name the draws.
        limits: Of time.
        keep: Folder for the files of violations.
    """
    process = Apart("tests.fuzz.trial")
    try:
        for number in numbers:
            seed = seeds[number % len(seeds)]
            mutation = mutate(seed.files[seed.target], f"{seed.name}:{number}", is_text=seed.is_text)
            with tempfile.TemporaryDirectory(prefix="fuzz-") as name:
                outcome = _try(process, seed, number, mutation, Path(name), limits)
                if outcome.outcome == "violation" and keep is not None:
                    shutil.copytree(name, keep / f"{seed.name}-{number}", dirs_exist_ok=True)
            yield outcome
    finally:
        process.close()


def _try(process: Apart, seed: Seed, number: int, mutation: Mutation, folder: Path, limits: Limits) -> Outcome:
    for name, content in seed.files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(mutation.content if name == seed.target else content)
    request = {"family": seed.family, "name": seed.name, "target": seed.target, "folder": str(folder)}
    try:
        reply = process.ask({**request, "clip_limit_s": limits.clip_s}, limits.trial_s)
    except ApartError as error:
        what = f"hung for {limits.trial_s:g} s" if error.signal == signal.SIGALRM else f"crashed: {error}"
        return Outcome(seed, number, mutation, "violation", what)
    return Outcome(seed, number, mutation, reply["outcome"], reply["line"])


def table(outcomes: Sequence[Outcome]) -> str:
    """Return the counts by seed, a line each, and of all."""
    counts = {name: Counter(one.outcome for one in outcomes if one.seed.name == name) for name in _names(outcomes)}
    counts["all"] = Counter(one.outcome for one in outcomes)
    lines = [f"{'seed':32} {'files':>6} " + " ".join(f"{name:>9}" for name in OUTCOMES)]
    for name, count in counts.items():
        lines.append(f"{name:32} {count.total():6} " + " ".join(f"{count[outcome]:9}" for outcome in OUTCOMES))
    return "\n".join(lines)


def _names(outcomes: Sequence[Outcome]) -> list[str]:
    return list(dict.fromkeys(one.seed.name for one in outcomes))
