"""docs/scaling.md says what jobs/benchmarks/scaling.py computes."""

from __future__ import annotations

from pathlib import Path

import pytest
import scaling

PAGE = Path(__file__).resolve().parents[3] / "docs" / "scaling.md"
VALUE = {name: row.value for name, row in scaling.INPUTS.items()}


def test_the_page_holds_the_tables_that_follow_from_its_inputs() -> None:
    assert scaling.tables(VALUE) in PAGE.read_text(encoding="utf-8")


def test_one_hour_by_hand() -> None:
    given = VALUE | {"clip_s": 36, "fps": 2, "transcode_ms": 30, "decode_ms": 3, "dense_fps": 2, "reuse_speedup": 4}
    given |= {"dense_gflop": 100, "gpu_tflops": 10, "source_mbit": 8, "mp4_kb": 4, "embedding_kb": 1}
    given |= {"driver_ms": 8, "cpu_node_cores": 10, "segments_a_batch": 8}
    given |= {"score_ms": 0.05, "score_kb": 2, "score_part_gib": 1}
    scale = scaling.compute(1_000, given)
    assert (scale["clips"], scale["frames"]) == (100_000, 7_200_000)
    assert scale["transcode_core_h"] == pytest.approx(30)
    assert scale["decode_core_h"] == pytest.approx(6)
    assert scale["dense_core_h"] == pytest.approx(2000)  # a core second a frame
    assert scale["reuse_core_h"] == pytest.approx(500)
    assert scale["cpu_nodes"] == 3  # 536 core hours, 240 a machine in a day
    assert scale["gpu_nodes"] == 1  # 20 hours
    assert scale["read_tb"] == pytest.approx(3.6 + 0.0288)
    assert scale["written_tb"] == pytest.approx(0.036)
    assert scale["requests"] == pytest.approx(412_500)
    assert scale["driver_h"] == pytest.approx(800 / 3600)
    assert scale["score_h"] == pytest.approx(2 * 7.2e6 * 0.05e-3 / 3600)
    # 100,000 clips of 2 KiB each, and two numbers of 8 bytes for the frames that a clip of 24 does not have.
    assert scale["score_gib"] == pytest.approx(1 + (100_000 * 2048 + 4_800_000 * 16) / 2**30)


def test_what_grows_with_the_collection_grows_in_proportion() -> None:
    small, large = scaling.compute(1_000, VALUE), scaling.compute(100_000, VALUE)
    # Counted in whole machines, with a head by the hour, or with what is the same for every size.
    fixed = {"cpu_nodes", "gpu_nodes", "cpu_dollars", "dense_cpu_dollars", "gpu_dollars", "score_gib"}
    for name in small.keys() - fixed:
        assert large[name] == pytest.approx(100 * small[name]), name


def test_own_inputs_change_the_tables_and_wrong_ones_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert scaling.main(["clip_s=10"]) == 0
    assert "| clips | 360 k |" in capsys.readouterr().out
    for word in ("clip=10", "clip_s", "clip_s=fast", "clip_s=-1"):
        assert scaling.main([word]) == 2
        assert f"input: got {word}, expected NAME=NUMBER" in capsys.readouterr().err
