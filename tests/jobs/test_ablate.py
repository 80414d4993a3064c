"""The ablation job's own part: what it refuses, and the document that it writes into."""

from __future__ import annotations

import json
from pathlib import Path

import ablate
import pytest


def test_the_table_goes_between_its_marks_and_nothing_else_changes(tmp_path: Path) -> None:
    document, out = tmp_path / "ablations.md", tmp_path / "out"
    points = [
        {"bias": 0.0, "reduction": reduction, "reuse_rate": 0.5, "cosine": 0.9, "acc_gqa": 0.5, "acc_qa": 0.6}
        for reduction in (2.0, 4.0)
    ]
    (out / "results").mkdir(parents=True)
    (out / "results" / "a.json").write_text(
        json.dumps({"variant": "default", "seed": 0, "steps": 72, "points": points})
    )
    document.write_text(f"# Title\n\nbefore\n\n{ablate.BEGIN}\nold\n{ablate.END}\n\nafter\n")
    for _ in range(2):
        ablate.write_table(out, document)
        text = document.read_text()
        assert text.startswith("# Title\n\nbefore\n\n")
        assert text.endswith("\n\nafter\n")
        assert "old" not in text
        assert text.count("| default | 0.9000 |") == 1


def test_the_table_of_nothing_overwrites_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "ablations.md").write_text("written before")
    monkeypatch.setattr("sys.argv", ["ablate.py", "--table", "--out", str(tmp_path)])
    assert ablate.main() == 1
    assert "without a result, expected one or more" in capsys.readouterr().err
    assert (tmp_path / "ablations.md").read_text() == "written before"


def test_an_unknown_variant_is_refused() -> None:
    with pytest.raises(ValueError, match="--variants: got 'none', expected some of default"):
        ablate.Options(variants=("none",))
