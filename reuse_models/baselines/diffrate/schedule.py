"""DiffRate's schedule as a file: a small JSON that a search writes and a setting is made of.

{"flops_share": 0.627, "achieved_share": 0.6254, "num_tokens": 65, "prune_kept": [...], "merge_kept": [...]}
"""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path

from reuse_models.baselines.diffrate.method import DiffRateConfig, schedule_work
from reuse_models.flops import dense_flops, flops_per_frame
from reuse_models.tower.shape import VitShape

PUBLISHED_SHARES = (0.505, 0.565, 0.627, 0.689, 0.751)
"""The published targets (31.0 34.7 38.5 42.3 46.1 GMAC of ViT-L at 197 tokens) as shares of dense."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Schedule:
    """Tokens kept in each layer of one tower."""

    flops_share: float
    """Asked for, as a share of dense."""
    achieved_share: float
    """What the schedule costs on its tower."""
    num_tokens: int
    """Of the tower, CLS counted."""
    prune_kept: tuple[int, ...]
    merge_kept: tuple[int, ...]

    def config(self) -> DiffRateConfig:
        """Return the setting, named after the share that was asked for.

        Raises:
            ValueError: The numbers grow from layer to layer, or leave nothing to merge into.
        """
        return DiffRateConfig(
            prune_kept=self.prune_kept, merge_kept=self.merge_kept, label=f"searched {self.flops_share:g}"
        )

    def check(self, shape: VitShape, subject: str) -> None:
        """Refuse, by a ValueError, what differs from the tower in layers, tokens or cost."""
        for name, got, expected in (
            ("layers", len(self.prune_kept), shape.num_layers),
            ("tokens", self.num_tokens, shape.num_tokens),
        ):
            if got != expected:
                raise ValueError(
                    f"{subject}: got {got} {name}, expected {expected} as in the tower; "
                    "search a schedule for this backbone"
                )
        if max(self.prune_kept) > self.num_tokens:
            raise ValueError(
                f"{subject}: got {max(self.prune_kept)} kept, expected at most the tower's {self.num_tokens} tokens; "
                "search a schedule for this backbone"
            )
        cost = cost_share(shape, self.prune_kept, self.merge_kept)
        if abs(cost - self.achieved_share) > 1e-3:
            raise ValueError(
                f"{subject}: got achieved_share {self.achieved_share:g}, expected {cost:.4f}, which these numbers cost "
                "on the tower; search a schedule for this backbone"
            )


def cost_share(shape: VitShape, prune_kept: tuple[int, ...], merge_kept: tuple[int, ...]) -> float:
    """Return what a schedule costs as a share of `dense_flops`."""
    return float(flops_per_frame(shape, schedule_work(shape, prune_kept, merge_kept))[0]) / dense_flops(shape)


def read_schedule(path: Path, shape: VitShape) -> Schedule:
    """Read a schedule and hold it against the tower.

    Raises:
        ValueError: The file is missing or no such JSON, has unknown or lacking keys, or does not fit; in one line.
    """
    subject = f"diffrate schedule {path}"
    if not path.is_file():
        raise ValueError(f"{subject}: got no file, expected what jobs/search_schedules.py writes; check the path")
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{subject}: got {error}, expected JSON; search it again") from error
    names = {field.name for field in dataclasses.fields(Schedule)}
    if not isinstance(values, dict) or values.keys() != names:
        got = ", ".join(sorted(values)) if isinstance(values, dict) else type(values).__name__
        raise ValueError(f"{subject}: got {got or 'nothing'}, expected {', '.join(sorted(names))}; search it again")
    for name in ("prune_kept", "merge_kept"):
        if not isinstance(values[name], list) or not all(type(kept) is int for kept in values[name]):
            raise ValueError(f"{subject}: got {name} {values[name]!r}, expected whole numbers; search it again")
        values[name] = tuple(values[name])
    for name in ("flops_share", "achieved_share", "num_tokens"):
        if type(values[name]) not in (int, float) or not values[name] > 0:
            raise ValueError(f"{subject}: got {name} {values[name]!r}, expected a number above 0; search it again")
    schedule = Schedule(**values)
    try:
        schedule.config()
    except ValueError as error:
        raise ValueError(f"{subject}: {error}") from error
    schedule.check(shape, subject)
    return schedule
