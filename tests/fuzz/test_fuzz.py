"""A hundred and some draws of the fuzz, always the same ones; `make fuzz` runs thousands."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from dejavu.video.mp4 import TranscodeConfig, transcode
from tests.fuzz.campaign import Limits, campaign, table
from tests.fuzz.mutate import BYTE_DAMAGE, TEXT_DAMAGE, mutate
from tests.fuzz.seeds import (
    FRAME_PX,
    Seed,
    annotation_seeds,
    checkpoint_seeds,
    odd_videos,
    store_seeds,
    video_seeds,
)

SEEDS: dict[str, tuple[Callable[[Path], Iterator[Seed]], int]] = {
    "video": (lambda _: video_seeds(), 70),
    "store": (store_seeds, 10),
    "annotations": (lambda _: annotation_seeds(), 66),
    "checkpoint": (checkpoint_seeds, 20),
}


@pytest.mark.parametrize("family", SEEDS)
def test_damaged_files_are_done_or_refused_and_nothing_else(family: str, tmp_path: Path) -> None:
    make, count = SEEDS[family]
    found = list(campaign(list(make(tmp_path)), range(count), Limits()))
    bad = [
        f"{one.seed.name} {one.number} {one.mutation.kinds}: {one.line}" for one in found if one.outcome == "violation"
    ]
    assert bad == []
    counts = Counter(one.outcome for one in found)
    assert counts["done"] > 0, table(found)
    assert counts["refused"] > 0, table(found)


@pytest.mark.parametrize("family", SEEDS)
def test_whole_files_are_done(family: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """So that a refusal comes of the damage, not of the file."""
    from tests.fuzz import campaign as module
    from tests.fuzz.mutate import Mutation

    monkeypatch.setattr(module, "mutate", lambda content, _key, **_: Mutation((), content))
    seeds = [seed for seed in SEEDS[family][0](tmp_path) if seed.name != "m4a-aac"]  # sound alone is refused
    found = list(campaign(seeds, range(len(seeds)), Limits()))
    assert [(one.seed.name, one.line) for one in found if one.outcome != "done"] == []


def test_whole_odd_videos_have_all_their_pictures(tmp_path: Path) -> None:
    """Two seconds, or twice that where two recordings were joined; a second of 25 pictures where MPEG-2 knows no 12."""
    expected = dict.fromkeys(odd_videos(), (4, 0.0))
    expected |= {"ts-joined": (8, 0.0), "mpg-joined": (4, 0.0), "mp4-late": (4, 1.0), "mkv-late": (4, 1.0)}
    found = {}
    for name, content in odd_videos().items():
        (source := tmp_path / f"source.{name.split('-')[0]}").write_bytes(content)
        info = transcode(source, tmp_path / "out.mp4", frame_px=FRAME_PX, config=TranscodeConfig(damaged="refuse"))
        found[name] = (info.num_frames, info.start_s)
    assert found == expected


@pytest.mark.parametrize("kind", [*BYTE_DAMAGE, *TEXT_DAMAGE])
def test_damage_is_damage_and_can_be_had_again(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from tests.fuzz import mutate as module

    known = {**BYTE_DAMAGE, **TEXT_DAMAGE}[kind]
    monkeypatch.setattr(module, "BYTE_DAMAGE", {kind: known})
    content = b"".join(b'{"name": [%d, "some text"]},\n' % number for number in range(300))
    first = [mutate(content, f"x:{number}").content for number in range(20)]
    assert first == [mutate(content, f"x:{number}").content for number in range(20)]
    assert sum(damaged != content for damaged in first) > 15
    assert len(set(first)) > 10


def test_what_must_not_be_is_noticed(tmp_path: Path) -> None:
    unknown = Seed("nothing", "unknown", "x", {"x": b"some content"})  # type: ignore[arg-type]
    (wrong,) = campaign([unknown], range(1), Limits(), keep=tmp_path)
    assert (wrong.outcome, wrong.line) == ("violation", "KeyError: 'nothing'")
    assert [path.name for path in (tmp_path / "unknown-0").iterdir()] == ["x"]
    video = next(video_seeds())
    (hung,) = campaign([video], range(1), Limits(trial_s=0.001))
    assert (hung.outcome, hung.line) == ("violation", "hung for 0.001 s")
