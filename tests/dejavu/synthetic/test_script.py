from dataclasses import replace

import numpy as np
import pytest

from dejavu.synthetic.play import draw_frames, seen_spans, sprites_at
from dejavu.synthetic.script import Script, write_script, wrong_answers


@pytest.fixture(scope="module")
def scripts() -> list[Script]:
    return [write_script(np.random.default_rng([7, seed]), 6, (12, 24)) for seed in range(25)]


def test_no_kind_is_there_twice(scripts: list[Script]) -> None:
    for script in scripts:
        kinds = [kind for track in script.tracks for kind in {look[1] for look in track.looks} if kind is not None]
        assert len(kinds) == len(set(kinds))
        assert len({target.kind for target in script.targets}) == 6


def test_targets_are_there_for_two_to_six_sampled_frames(scripts: list[Script]) -> None:
    lengths = {round((t.end_s - t.start_s) / 0.5, 6) for script in scripts for t in script.targets}
    assert lengths == {2, 3, 4, 5, 6}
    assert all(t.start_s >= 0 and t.end_s <= s.duration_s for s in scripts for t in s.targets)


def test_all_that_the_world_promises_happens(scripts: list[Script]) -> None:
    assert {target.how for script in scripts for target in script.targets} == {"appears", "changes", "hides"}
    assert any(len(script.sceneries) > 1 for script in scripts)
    pans = {scenery.pan_x_px_s != 0 for script in scripts for scenery in script.sceneries}
    assert pans == {True, False}
    assert all(min(s.width_px, s.height_px) >= 128 and max(s.width_px, s.height_px) <= 256 for s in scripts)


def test_spans_lie_where_the_target_is(scripts: list[Script]) -> None:
    for script in scripts[:8]:
        for target, spans in zip(script.targets, seen_spans(script), strict=True):
            for start_s, end_s in spans:
                assert start_s >= target.start_s - 0.2 - 1 / script.fps
                assert end_s <= target.end_s + 0.2 + 1 / script.fps


def test_what_stands_behind_the_whole_frame_is_not_seen(scripts: list[Script]) -> None:
    script = scripts[0]
    wall = replace(script.tracks[0], size_px=1000, times_s=(0.0,), xs=(0.5,), ys=(0.5,), appears_s=0.0, leaves_s=99.0)
    wall = replace(wall, looks=((0.0, None, (128.0, 128.0, 128.0)),))
    assert seen_spans(replace(script, tracks=(*script.tracks, wall))) == [[] for _ in script.targets]


def test_every_frame_is_drawn_once_and_alike_each_time(scripts: list[Script]) -> None:
    script = replace(scripts[1], duration_s=4)
    first, second = (list(draw_frames(script)) for _ in range(2))
    assert len(first) == 4 * script.fps
    assert all((one.rgb == other.rgb).all() for one, other in zip(first, second, strict=True))
    assert first[0].rgb.shape == (script.height_px, script.width_px, 3)


def test_a_changed_object_is_drawn_in_its_new_colour(scripts: list[Script]) -> None:
    script, target = next((s, t) for s in scripts for t in s.targets if t.how == "changes")
    track = script.tracks[target.track]
    assert track.look(target.start_s)[0] == target.kind
    assert track.look(target.start_s - 0.01)[0] == target.other == track.look(target.end_s)[0]
    sprites, tracks = sprites_at(replace(script, tracks=(track,)), (target.start_s + target.end_s) / 2)
    assert [sprite.shape for sprite in sprites] == [target.kind.shape] * len(tracks)


def test_wrong_answers_are_nowhere_in_the_clip_and_near_the_right_one(scripts: list[Script]) -> None:
    for script in scripts:
        for target in script.targets:
            wrong = wrong_answers(np.random.default_rng(0), script, target)
            assert len(set(wrong)) == 4
            assert not set(wrong) & script.kinds()
            assert sum(kind.colour == target.kind.colour or kind.shape == target.kind.shape for kind in wrong) >= 2
