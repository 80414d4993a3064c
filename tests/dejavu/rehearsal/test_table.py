"""The table has a row for each stage and their sum, and the record says the same."""

from __future__ import annotations

import json

from dejavu.rehearsal.spent import OTHER, Spent, StageSpent, StepKey, Steps
from dejavu.rehearsal.table import markdown, record
from dejavu.rehearsal.whole import Hardware, Line, forecast

MIB = 2**20
SPENT = Spent(
    stages={
        "transcode": StageSpent(
            seconds=10, fixed_s=4, driver=5 * MIB, workers=80 * MIB, total=90 * MIB, written=2 * MIB
        ),
        OTHER: StageSpent(seconds=20, fixed_s=20, driver=7 * MIB, workers=60 * MIB, total=70 * MIB, written=MIB),
    },
    steps={StepKey("transcode", "transcode"): Steps(3, 6, 30)},
)
LINE = Line(stage="transcode", what="transcode", unit="frames", done=30, busy_s=6, whole=36_000, holder="cpu")


def cells(row: str) -> list[str]:
    return [cell.strip() for cell in row.strip("|").split("|")]


def test_rows_are_stages_and_their_sum() -> None:
    whole = forecast([LINE], SPENT, Hardware(cpus=2), (1, 2))
    head, _, transcode, other, every = map(cells, markdown(SPENT, whole, Hardware(cpus=2)).splitlines())
    assert head[0] == "stage"
    assert "GPU, MiB" not in head
    row = dict(zip(head, transcode, strict=True))
    assert (row["s"], row["driver, MiB"], row["workers, MiB"], row["all, MiB"]) == ("10", "5", "80", "90")
    assert (row["whole: worker hours"], row["hours on 1 machine"], row["hours on 2 machines"]) == ("2", "1", "0.5")
    assert row["written, GB"] == f"{2 * MIB * 1200 / 1e9:.2g}"
    assert (other[0], every[0]) == (OTHER, "**all**")
    total = dict(zip(head, every, strict=True))
    # Seconds and bytes add up, peaks do not.
    assert (total["s"], total["driver, MiB"], total["all, MiB"], total["written, MiB"]) == ("30", "7", "90", "3")


def test_a_machine_with_gpus_has_their_column() -> None:
    whole = forecast([LINE], SPENT, Hardware(cpus=2, gpus=1), (1,))
    assert "GPU, MiB" in cells(markdown(SPENT, whole, Hardware(cpus=2, gpus=1)).splitlines()[0])


def test_the_record_is_plain_and_complete() -> None:
    whole = forecast([LINE], SPENT, Hardware(cpus=2), (1,))
    found = json.loads(json.dumps(record(SPENT, whole, [LINE], {"backbone": "x"}), allow_nan=False))
    assert found["backbone"] == "x"
    assert found["stages"]["transcode"]["whole"]["worker_h"] == 2
    assert found["steps"] == [
        {"stage": "transcode", "step": "transcode", "method": "", "count": 3, "seconds": 6, "frames": 30}
    ]
    assert found["work"][0]["at_once"] is None
