import json
from dataclasses import replace
from pathlib import Path

import av
import pytest

from dejavu.datasets import synthetic
from dejavu.datasets.next_qa import load_frame_times, load_next_qa
from dejavu.datasets.synthetic import SyntheticConfig, invent, list_videos, make_one, make_world, video_path
from dejavu.synthetic.play import seen_spans

SMALL = SyntheticConfig(
    num_train=1, num_val=2, num_test=2, min_duration_s=6, max_duration_s=8, questions_per_video=3, seed=4
)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_world(tmp_path_factory.mktemp("world"), SMALL)


def test_the_adapter_of_next_gqa_reads_it(world: Path) -> None:
    data = load_next_qa(world / "videos", world / "annotations", splits=("train", "val", "test"))
    assert [clip.split for clip in data.clips] == ["train", "val", "val", "test", "test"]
    assert data.missing == ()
    assert len(data.questions) == 15
    for question in data.questions:
        assert question.kind in {"CW", "CH", "TN", "TP", "TC"}
        assert len(set(question.answers)) == 5
        if question.split != "train":
            assert question.spans_s
            assert all(0 <= start < end <= question.duration_s for start, end in question.spans_s)


def test_spans_are_what_the_script_really_shows(world: Path) -> None:
    spec = list_videos(SMALL)[-1]
    script, _ = invent(spec)
    annotated = json.loads((world / "annotations" / "gsub_test.json").read_text())[spec.video_id]
    assert annotated["duration"] == script.duration_s
    for qid, spans in enumerate(seen_spans(script)):
        assert annotated["location"][str(qid)] == [[pytest.approx(t, abs=0.051) for t in span] for span in spans]


def test_videos_are_h264_of_the_annotated_length(world: Path) -> None:
    for spec in list_videos(SMALL):
        script, _ = invent(spec)
        with av.open(str(video_path(world, spec))) as container:
            (stream,) = container.streams
            assert stream.codec_context.name == "h264"
            assert (stream.width, stream.height) == (script.width_px, script.height_px)
            times = [frame.time for frame in container.decode(stream)]
        assert times == pytest.approx([frame / script.fps for frame in range(script.num_frames)], abs=1e-4)


def test_frame_times_are_32_within_the_clip(world: Path) -> None:
    for times in load_frame_times(world / "annotations", "test").values():
        assert len(times) == 32
        assert 0 < times[0] < times[-1] < 8


def test_made_once_and_kept(world: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(synthetic, "draw_video", lambda spec, path: pytest.fail("drawn again"))
    before = (world / "annotations" / "test.csv").read_bytes()
    make_world(world, SMALL)
    assert (world / "annotations" / "test.csv").read_bytes() == before


def test_a_missing_or_changed_video_is_drawn_again(tmp_path: Path) -> None:
    spec = replace(list_videos(SMALL)[0], duration_s=(4, 4), num_questions=1)
    assert make_one(spec, tmp_path)
    content = video_path(tmp_path, spec).read_bytes()
    assert not make_one(spec, tmp_path)
    video_path(tmp_path, spec).unlink()
    assert make_one(spec, tmp_path)
    assert video_path(tmp_path, spec).read_bytes() == content
    assert make_one(replace(spec, seed=(9, 9, 9)), tmp_path)
    assert video_path(tmp_path, spec).read_bytes() != content


def test_a_larger_world_keeps_the_videos_of_a_smaller_one() -> None:
    small, large = list_videos(SyntheticConfig(num_train=2)), list_videos(SyntheticConfig(num_train=3))
    assert {spec.content_hash for spec in small} < {spec.content_hash for spec in large}
    assert len({spec.video_id for spec in large}) == len(large)


def test_impossible_configs_are_refused() -> None:
    with pytest.raises(ValueError, match=r"synthetic durations: got 24\.\.12 s"):
        SyntheticConfig(min_duration_s=24, max_duration_s=12)
    with pytest.raises(ValueError, match="questions per video: got 0"):
        SyntheticConfig(questions_per_video=0)
    with pytest.raises(ValueError, match="synthetic videos: got -1"):
        SyntheticConfig(num_train=-1)
