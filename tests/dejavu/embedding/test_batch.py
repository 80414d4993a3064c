from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pytest

from dejavu.embedding.batch import Batch, EmbedConfig, EmbedContext, cut, decode_batch, divide_settings, plan
from dejavu.records import Transcoded
from dejavu.storage.setting import Setting, name_setting
from dejavu.storage.store import Store
from reuse_models.baselines.eventful import EventfulConfig
from reuse_models.baselines.original import OriginalConfig


def clip(name: str, num_frames: int = 10, content: str | None = None) -> Transcoded:
    return Transcoded(
        clip_id=name,
        content_id=content or f"content-{name}",
        path=f"mp4/{name}.mp4",
        num_frames=num_frames,
        frame_px=128,
        fps=2.0,
        duration_s=num_frames / 2,
        codec_metadata=True,
    )


def settings() -> list[Setting]:
    configs = (OriginalConfig(), EventfulConfig(refreshed_tokens=8))
    return [name_setting(config, "tower", EmbedConfig().shaping()) for config in configs]


def embedding(root: Path, **config: int) -> EmbedContext:
    return EmbedContext("embedded", Store(root), EmbedConfig(**config))  # type: ignore[arg-type]


def test_a_long_clip_is_cut_and_every_frame_is_in_one_segment() -> None:
    segments = cut([clip("long", 25), clip("short", 3)], 10)
    assert [(s.clip_id, s.start, s.num_frames) for s in segments] == [
        ("long", 0, 10),
        ("long", 10, 10),
        ("long", 20, 5),
        ("short", 0, 3),
    ]


def test_equal_contents_are_embedded_once() -> None:
    assert len(cut([clip("a", content="same"), clip("b", content="same")], 512)) == 1


def test_batches_do_not_depend_on_the_order_of_clips(tmp_path: Path) -> None:
    clips = [clip(name) for name in "abcdefg"]
    one = plan(clips, settings(), embedding(tmp_path, streams=3))
    two = plan(clips[::-1], settings(), embedding(tmp_path, streams=3))
    assert one == two
    assert [len(batch.segments) for batch in one] == [3, 3, 1]


def test_a_batch_holds_no_more_frames_than_allowed(tmp_path: Path) -> None:
    batches = plan(
        [clip(name, 10) for name in "abcde"], settings(), embedding(tmp_path, segment_frames=10, batch_frames=25)
    )
    assert [len(batch.segments) for batch in batches] == [2, 2, 1]


def test_what_is_stored_is_not_planned_again_and_only_what_is_lacking_is(tmp_path: Path) -> None:
    ours = embedding(tmp_path)
    dense, eventful = settings()
    first, second = cut([clip("a"), clip("b")], 512)
    ours.store.write_embeddings(dense.setting_id, pa.table({"frame": [0]}), [first.unit_id, second.unit_id])
    ours.store.write_embeddings(eventful.setting_id, pa.table({"frame": [0]}), [first.unit_id])
    assert plan([clip("a"), clip("b")], [dense, eventful], ours) == [Batch((second,), (eventful,))]


def test_a_plan_asks_for_each_index_once_however_many_clips_there_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked, done = [], Store.done

    def counting(store: Store, setting_id: str) -> dict[str, Path]:
        asked.append(setting_id)
        return done(store, setting_id)  # type: ignore[return-value]

    monkeypatch.setattr(Store, "done", counting)
    for num_clips in (1, 300):
        asked.clear()
        batches = plan([clip(str(index)) for index in range(num_clips)], settings(), embedding(tmp_path, streams=3))
        assert len(batches) == -(-num_clips // 3)
        assert asked == [setting.setting_id for setting in settings()]


@pytest.mark.parametrize(("wanted", "num_settings"), [(1, [5, 5]), (2, [5, 5]), (4, [3, 2, 3, 2]), (100, [1] * 10)])
def test_few_batches_are_divided_by_their_settings(wanted: int, num_settings: list[int]) -> None:
    configs = [EventfulConfig(refreshed_tokens=number) for number in range(1, 6)]
    many = tuple(name_setting(config, "tower", EmbedConfig().shaping()) for config in configs)
    whole = [Batch(tuple(cut([clip(name)], 512)), many) for name in "ab"]
    divided = divide_settings(whole, wanted)
    assert [len(batch.settings) for batch in divided] == num_settings
    pairs = [(batch.segments, setting.setting_id) for batch in divided for setting in batch.settings]
    assert sorted(pairs, key=str) == sorted(
        ((one.segments, each.setting_id) for one in whole for each in many), key=str
    )


def test_nothing_to_embed_stays_nothing() -> None:
    assert divide_settings([], 8) == []


def test_a_batch_travels_as_a_row(tmp_path: Path) -> None:
    batch = plan([clip("a"), clip('b "quoted" ü')], settings(), embedding(tmp_path))[0]
    assert Batch.from_row(batch.to_row()) == batch


def test_a_clip_that_cannot_be_decoded_fails_alone(tmp_path: Path) -> None:
    (tmp_path / "mp4").mkdir()
    (tmp_path / "mp4" / "a.mp4").write_text("not a video")
    batch = plan([clip("a"), clip("gone")], settings(), embedding(tmp_path))[0]
    decoded = decode_batch(batch.segments, embedding(tmp_path))
    assert decoded.segments == ()
    assert {(failure.clip_id, failure.stage) for failure in decoded.failures} == {("a", "embed"), ("gone", "embed")}
    assert all(failure.reason and "\n" not in failure.reason for failure in decoded.failures)


def test_identity_follows_the_setting_and_the_tower() -> None:
    shaping = EmbedConfig().shaping()
    names = {
        name_setting(EventfulConfig(refreshed_tokens=8), "tower", shaping).setting_id,
        name_setting(EventfulConfig(refreshed_tokens=9), "tower", shaping).setting_id,
        name_setting(EventfulConfig(refreshed_tokens=8), "other", shaping).setting_id,
        name_setting(EventfulConfig(refreshed_tokens=8), "tower", EmbedConfig(segment_frames=64).shaping()).setting_id,
    }
    assert len(names) == 4
    # How many clips advance together changes no result beyond rounding.
    assert EmbedConfig(streams=2).shaping() == shaping


def test_counts_out_of_range_are_refused_in_one_line() -> None:
    with pytest.raises(ValueError, match=r"embed.streams: got 0, expected 1 or more"):
        EmbedConfig(streams=0)
    with pytest.raises(ValueError, match=r"embed.batch_frames: got 10, expected at least segment_frames"):
        EmbedConfig(batch_frames=10)
