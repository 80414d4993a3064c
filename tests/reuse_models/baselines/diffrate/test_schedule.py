"""A schedule's file: what is written reads back, and what does not fit is one line."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from reuse_models.baselines.diffrate.schedule import Schedule, cost_share, read_schedule
from reuse_models.tower.vit import Vit

Edit = Callable[[dict[str, Any]], Any]


def schedule(vit: Vit) -> Schedule:
    pruned, merged = (17, 9, 5), (11, 5, 5)
    return Schedule(
        flops_share=0.627,
        achieved_share=round(cost_share(vit.shape, pruned, merged), 6),
        num_tokens=17,
        prune_kept=pruned,
        merge_kept=merged,
    )


def test_a_schedule_reads_back_and_is_a_setting_with_a_name(clip_vit: Vit, tmp_path: Path) -> None:
    path = tmp_path / "0.627.json"
    path.write_text(json.dumps(asdict(schedule(clip_vit))))
    found = read_schedule(path, clip_vit.shape)
    assert found == schedule(clip_vit)
    assert found.config().setting == "searched 0.627"
    found.config().build(clip_vit)


EDITS: dict[str, tuple[Edit, str]] = {
    "key": (lambda v: v | {"rate": 1}, "got achieved_share, .*rate, expected achieved_share, flops_share"),
    "lacking": (lambda v: {"prune_kept": v["prune_kept"]}, "got prune_kept, expected achieved_share"),
    "list": (lambda v: [v], "got list, expected"),
    "layers": (
        lambda v: v | {"prune_kept": [17, 9], "merge_kept": [11, 5]},
        "got 2 layers, expected 3 as in the tower",
    ),
    "lengths": (lambda v: v | {"prune_kept": [17, 9]}, "got 2 and 3 layers"),
    "tokens": (lambda v: v | {"num_tokens": 65}, "got 65 tokens, expected 17 as in the tower"),
    "more": (lambda v: v | {"prune_kept": [18, 9, 5]}, "got 18 kept, expected at most the tower's 17 tokens"),
    "growing": (lambda v: v | {"prune_kept": [17, 12, 5]}, "schedule of layer 1: got 12 kept"),
    "fractions": (lambda v: v | {"merge_kept": [11.5, 5, 5]}, r"got merge_kept \[11.5, 5, 5\], expected whole numbers"),
    "truth": (lambda v: v | {"merge_kept": [True, 1, 1]}, "expected whole numbers"),
    "share": (lambda v: v | {"flops_share": "much"}, "got flops_share 'much', expected a number above 0"),
    "cost": (
        lambda v: v | {"achieved_share": 0.2},
        r"got achieved_share 0.2, expected 0\.7085, which these",
    ),
}


@pytest.mark.parametrize("name", EDITS)
def test_what_does_not_fit_is_one_line(clip_vit: Vit, tmp_path: Path, name: str) -> None:
    edit, message = EDITS[name]
    path = tmp_path / "schedule.json"
    path.write_text(json.dumps(edit(asdict(schedule(clip_vit)))))
    with pytest.raises(ValueError, match=message) as raised:
        read_schedule(path, clip_vit.shape)
    assert str(raised.value).startswith(f"diffrate schedule {path}: ")
    assert "\n" not in str(raised.value)


def test_no_file_and_no_json_are_one_line(clip_vit: Vit, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"got no file, expected what jobs/search_schedules\.py writes"):
        read_schedule(tmp_path / "none.json", clip_vit.shape)
    (tmp_path / "torn.json").write_text('{"flops_share": 0.6,')
    with pytest.raises(ValueError, match="expected JSON; search it again"):
        read_schedule(tmp_path / "torn.json", clip_vit.shape)
