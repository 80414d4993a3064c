from __future__ import annotations

import re
from dataclasses import replace

import pytest

from dejavu.records import ParetoPoint
from dejavu.report.frontier import quality_of
from dejavu.report.headline import (
    dominators,
    faster_at_a_loss,
    headlines,
    relative_text,
    summarise,
    surely_within,
    verdict,
)


def point(method: str, setting: str, quality: float, reduction: float, **values: float) -> ParetoPoint:
    return ParetoPoint(
        method=method, setting=setting, split="test", num_clips=60, acc_gqa=quality, flops_reduction=reduction, **values
    )  # type: ignore[arg-type]


ORIGINAL = point("original", "dense", 0.80, 1.0, speedup=1.0, acc_gqa_ci_low=0.75, acc_gqa_ci_high=0.85)
GOOD = point("cmc", "t=1", 0.792, 2.0, speedup=0.5, acc_gqa_loss_ci_low=-0.03, acc_gqa_loss_ci_high=0.01)
CHEAP = point("cmc", "t=9", 0.40, 4.0, speedup=3.0, acc_gqa_loss_ci_low=-0.5, acc_gqa_loss_ci_high=-0.3)
FAST = point("tome", "r=4", 0.785, 1.5, speedup=1.4, acc_gqa_loss_ci_low=-0.0155, acc_gqa_loss_ci_high=-0.01)
POOR = point("eventful", "k=4", 0.30, 3.0, speedup=2.0, acc_gqa_loss_ci_low=-0.6, acc_gqa_loss_ci_high=-0.4)
POINTS = [ORIGINAL, GOOD, CHEAP, FAST, POOR]
STEPS = (0.9, 1.1, 1.2, 1.3, 1.5, 1.6, 2.0, 3.0, 3.1, 3.5, 5.0)


def test_the_best_of_each_method_keeps_98_per_cent_of_original() -> None:
    found = {head.method: head for head in headlines(POINTS, "acc_gqa")}
    assert list(found) == ["tome", "cmc", "eventful"]  # the fastest first, those without a setting last
    assert (found["cmc"].best, found["cmc"].fastest) == (GOOD, GOOD)  # t=9 is cheaper and faster, and loses half
    assert (found["tome"].best, found["tome"].fastest) == (FAST, FAST)  # 0.785 is just above 0.784
    assert (found["eventful"].best, found["eventful"].fastest) == (None, None)
    assert [found[name].num_settings for name in found] == [1, 2, 1]


def test_the_area_is_that_of_the_rectangles() -> None:
    found = {head.method: head for head in headlines(POINTS, "acc_gqa")}
    assert found["cmc"].hypervolume == pytest.approx(1.0 * 0.792 + 2.0 * 0.40)
    assert found["tome"].hypervolume == pytest.approx(0.5 * 0.785)


def test_a_dominated_point_names_the_best_of_those_that_beat_it() -> None:
    assert dominators(POINTS, "acc_gqa") == [None, None, None, GOOD, CHEAP]
    assert [head.num_dominated for head in headlines(POINTS, "acc_gqa")] == [1, 0, 1]
    twin = point("tome", "r=5", 0.792, 2.0)
    assert dominators([ORIGINAL, GOOD, twin], "acc_gqa") == [None, None, None]  # equal on both axes beats nobody


def test_what_is_inside_the_noise_is_called_so() -> None:
    assert [verdict(one, "acc_gqa") for one in (GOOD, CHEAP, FAST)] == ["noise", "worse", "worse"]
    better = point("cmc", "t=0", 0.9, 1.1, acc_gqa_loss_ci_low=0.01, acc_gqa_loss_ci_high=0.2)
    assert verdict(better, "acc_gqa") == "better"
    assert verdict(point("cmc", "t=0", 0.9, 1.1), "acc_gqa") == "unknown"
    assert surely_within(FAST, POINTS, "acc_gqa") is True  # -1.55 points, and 2 % of 80 are 1.6
    assert surely_within(GOOD, POINTS, "acc_gqa") is False


def test_the_summary_says_who_at_what_loss_how_fast_and_how_sure() -> None:
    text = " ".join(summarise(POINTS, "acc_gqa", 360))
    assert "80.0 % Acc@GQA" in text
    assert "360 questions about 60 test clips, with a 95 % interval from 75.0 % to 85.0 %" in text
    assert "78.4 % or more, that is within 2 % of Original, the fastest by the clock is ToMe (r=4): 1.40 times" in text
    assert "(−1.5 points, 95 % interval −1.6 to −1.0; below Original beyond the noise), for 1.50 times fewer" in text
    assert "computes least is CMC (t=1): 2.00 times fewer executed FLOPs at 79.2 %, 1.0 % below Original" in text
    assert "(−0.8 points, 95 % interval −3.0 to +1.0; inside the noise" in text
    assert "though losing more than 2 % is not ruled out" in text
    assert "0.50 times Original's speed: the work that it saves is not time saved here" in text
    assert text.index("ToMe") < text.index("CMC")  # what the clock says comes first


def test_what_may_be_lost_decides_who_leads() -> None:
    text = " ".join(summarise(POINTS, "acc_gqa", 360, 0.5))
    assert "40.0 % or more, that is within 50 % of Original, the fastest by the clock is CMC (t=9): 3.00 times" in text
    assert "It is also the one that computes least." in text
    assert "0.5 %" in " ".join(summarise(POINTS, "acc_gqa", 360, 0.005))
    assert surely_within(GOOD, POINTS, "acc_gqa", 0.05) is True


def test_a_run_in_which_nothing_holds_says_so() -> None:
    text = " ".join(summarise([ORIGINAL, CHEAP, POOR], "acc_gqa", 360))
    assert "No setting of another method keeps 78.4 % or more" in text
    assert "What a larger loss buys by the clock: CMC (t=9) 3.00 times Original's speed at 40.0 %. " in text
    assert text.endswith("`--allowed-loss 0.5` allows the first of them.")  # POOR is slower and worse
    assert summarise([ORIGINAL, POOR, CHEAP], "acc_gqa", 360, 0.5)[1].startswith("Of the settings that keep 40.0 %")
    alone = [ORIGINAL, point("cmc", "t=1", 0.8, 2.0, speedup=0.9)]
    text = " ".join(summarise(alone, "acc_gqa", 9))
    assert "none is faster than Original by the clock here; CMC (t=1) comes closest, at 0.90 times its speed" in text
    assert "computes least is CMC (t=1): 2.00 times fewer executed FLOPs" in text


def test_what_a_loss_buys_is_told_in_steps_that_are_worth_it() -> None:
    points = [ORIGINAL, *(point("tome", f"r={speed}", 0.8 - speed / 10, 2.0, speedup=speed) for speed in STEPS)]
    assert [one.speedup for one in faster_at_a_loss(points, "acc_gqa")] == [1.2, 1.5, 2.0, 3.0, 3.5, 5.0]
    told = summarise(points, "acc_gqa", 9, 0.0001)[-1]
    assert told.count("times Original's speed") == 4
    assert summarise([ORIGINAL, point("tome", "r=1", 0.1, 2.0)], "acc_gqa", 9)[-1].startswith("No setting")


def test_a_loss_that_is_named_allows_it() -> None:
    for dense, kept in ((0.025, 0.001), (1.0, 0.7), (0.8, 0.004)):
        points = [replace(ORIGINAL, acc_gqa=dense), point("tome", "r=1", kept, 2.0, speedup=2.0)]
        told = summarise(points, "acc_gqa", 9)[-1]
        if found := re.search(r"--allowed-loss (\S+)`", told):
            assert "ToMe (r=1): 2.00 times" in " ".join(summarise(points, "acc_gqa", 9, float(found[1])))
        else:
            assert kept < 0.01 * dense


def test_without_answers_the_cosine_is_told_and_no_interval() -> None:
    points = [
        ParetoPoint(method=name, setting="s", split="test", num_clips=3, flops_reduction=gain, cosine_to_dense=cosine)
        for name, gain, cosine in (("original", 1.0, 1.0), ("cmc", 2.0, 0.99))
    ]
    text = " ".join(summarise(points, "cosine_to_dense", 0))
    assert "reaches 1.0000 cosine to Original" in text
    assert "questions" not in text
    assert "interval" not in text
    assert "none was timed; the one that computes least is CMC (s): 2.00 times fewer executed FLOPs at 0.9900" in text


def test_without_answers_the_agreement_of_neighbours_is_told_with_its_interval() -> None:
    original = ParetoPoint(
        method="original", setting="s", split="test", num_clips=3, flops_reduction=1.0, speedup=1.0,
        cosine_to_dense=1.0, agreement=1.0, agreement_ci_low=1.0, agreement_ci_high=1.0,
        agreement_loss_ci_low=0.0, agreement_loss_ci_high=0.0,
    )  # fmt: skip
    lossy = replace(
        original, method="cmc", flops_reduction=3.0, speedup=3.0, cosine_to_dense=0.999, agreement=0.7,
        agreement_loss_ci_low=-0.4, agreement_loss_ci_high=-0.2,
    )  # fmt: skip
    near = replace(
        lossy, method="tome", flops_reduction=1.2, speedup=1.1, cosine_to_dense=0.99, agreement=0.985,
        agreement_loss_ci_low=-0.03, agreement_loss_ci_high=-0.005,
    )  # fmt: skip
    points = [original, lossy, near]
    assert quality_of(points) == "agreement"
    text = " ".join(summarise(points, quality_of(points), 0))
    assert "reaches 100.0 % agreement of neighbours" in text
    assert "the fastest by the clock is ToMe (s): 1.10 times Original's speed at 98.5 %, 1.5 % below Original" in text
    assert "interval −3.0 to −0.5; below Original beyond the noise, though losing more than 2 % is not ruled" in text
    assert "CMC" not in text  # 0.999 of cosine, and three in ten neighbours gone


def test_an_original_that_gets_nothing_right_is_no_denominator() -> None:
    assert relative_text(0.1, 0.0) == "above Original's nothing"
    assert relative_text(0.0, 0.0) == "equal to Original"
    assert relative_text(0.3, 0.4) == "25.0 % below Original"


def test_the_quality_is_called_by_what_it_is() -> None:
    choices = [ParetoPoint(method="original", setting="s", split="test", num_clips=3, flops_reduction=1, accuracy=0.5)]
    assert "reaches 50.0 % accuracy (right answers) on 9 questions about 3" in summarise(choices, "accuracy", 9)[0]
    retrieval = [replace(one, median_rank=2.0) for one in choices]
    told = summarise(retrieval, "accuracy", 4)[0]
    assert "reaches 50.0 % R@1 (captions whose own video is found first) on 4 captions about 3 test clips" in told
