"""From a made-up rehearsal to the whole, by hand."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from dejavu.experiment import RECIPES, Experiment
from dejavu.rehearsal.spent import OTHER, Spent, StageSpent, StepKey, Steps
from dejavu.rehearsal.whole import (
    NEXT_QA,
    DataSet,
    Extent,
    Hardware,
    Line,
    forecast,
    grid_sizes,
    list_lines,
    search_passes,
)
from dejavu.stages.search_schedules import SchedulesConfig
from dejavu.stages.train_task import TrainConfig
from dejavu.sweep.study import SweepConfig
from reuse_models.baselines.diffrate import search as diffrate_search
from reuse_models.baselines.diffrate.method import DiffRate
from reuse_models.baselines.diffrate.search import SearchConfig, search_schedule
from reuse_models.flops import dense_flops
from reuse_models.tower.known_shapes import KNOWN_SHAPES
from reuse_models.tower.vit import Vit
from reuse_models.training.fit import FitConfig
from reuse_models.training.warm_up import WarmUpConfig

PAGE = Path(__file__).resolve().parents[3] / "docs" / "nextqa.md"
LARGE = KNOWN_SHAPES["openai/clip-vit-large-patch14"]
DATA = DataSet(
    videos={"train": 100, "val": 10, "test": 20},
    seconds={"train": 4000, "val": 400, "test": 800},
    windows=320,
    texts=500,
)
RECIPE = Experiment(
    train=TrainConfig(
        targets=(0.9, 0.8), epochs=5, min_steps=1, fit=FitConfig(clips_per_step=16), warm_up=WarmUpConfig(num_clips=48)
    ),
    sweep=SweepConfig(density="paper", chosen_per_method=6),
)
REHEARSED = Experiment(
    train=TrainConfig(targets=(0.9,), warm_up=WarmUpConfig(steps=20)), schedules=SchedulesConfig(shares=(0.565,))
)


def extent(hardware: Hardware) -> Extent:
    return Extent(shape=LARGE, rehearsed=REHEARSED, recipe=RECIPE, data=DATA, hardware=hardware)


def lines_of(steps: dict[StepKey, Steps], hardware: Hardware | None = None) -> dict[tuple[str, str], Line]:
    lines = list_lines(Spent(steps=steps), extent(hardware or Hardware(cpus=2)))
    return {(line.stage, line.what): line for line in lines}


def test_a_line_is_a_rate_times_an_amount_over_the_workers() -> None:
    line = Line(stage="embed", what="encode", unit="frames", done=10, busy_s=5, whole=1000, at_once=8)
    assert line.worker_s == 500
    # Two CPUs, three machines of two, and more workers than can share it.
    assert [line.wall_s(Hardware(cpus=2), machines) for machines in (1, 3, 100)] == [250, 500 / 6, 62.5]
    assert line.wall_s(Hardware(cpus=16, gpus=1), 2) == 250  # an encoder holds a GPU where there is one
    assert replace(line, holder="cpu").wall_s(Hardware(cpus=4, gpus=1), 1) == 125


def test_what_is_fixed_is_added_once_and_not_scaled() -> None:
    spent = Spent(
        stages={
            "embed": StageSpent(seconds=40, fixed_s=7, written=300),
            "texts": StageSpent(seconds=12, units=30, last_s=2),
            OTHER: StageSpent(seconds=50, fixed_s=50, written=9),
        },
        steps={StepKey("embed", "encode", "original"): Steps(2, 30, 60)},
    )
    lines = [
        Line(stage="embed", what="encode original", unit="frames", done=60, busy_s=30, whole=7200),
        Line(stage="texts", what="embed", unit="texts", done=30, busy_s=2, whole=5400, at_once=1),
    ]
    found = forecast(lines, spent, Hardware(cpus=2), (1, 4))
    assert found["embed"].worker_h == 1
    assert found["embed"].hours == {1: pytest.approx((7 + 1800) / 3600), 4: pytest.approx((7 + 450) / 3600)}
    assert found["embed"].written == 300 * 7200 / 60
    # Loading, before the first texts, was not in the last ones.
    assert found["texts"].hours == {1: pytest.approx((10 + 360) / 3600), 4: pytest.approx((10 + 360) / 3600)}
    assert found[OTHER].hours == {1: pytest.approx(50 / 3600), 4: pytest.approx(50 / 3600)}
    assert found[OTHER].written == 9


def test_frames_are_those_of_the_splits_that_a_stage_reads() -> None:
    lines = lines_of(
        {
            StepKey("transcode", "transcode"): Steps(3, 6, 30),
            StepKey("embed", "encode", "original"): Steps(1, 1, 10),
            StepKey("embed", "encode", "tome"): Steps(1, 1, 10),
            StepKey("sweep", "encode", "eventful"): Steps(1, 1, 10),
            StepKey("sweep", "decode", "eventful"): Steps(1, 1, 10),
        }
    )
    # Two frames a second. The grid has 5 settings of ToMe, of which all are chosen, and 15 of Eventful.
    assert lines["transcode", "transcode"].whole == lines["embed", "encode original"].whole == 2 * 5200
    assert lines["embed", "encode tome"].whole == 2 * 800 * 5
    assert lines["sweep", "encode eventful"].whole == lines["sweep", "decode eventful"].whole == 2 * 400 * 15
    assert lines["sweep", "encode eventful"].at_once == sum(grid_sizes(LARGE, RECIPE).values())
    assert lines["transcode", "transcode"].holder == "cpu"


def test_training_is_counted_in_steps_of_windows() -> None:
    steps = {
        StepKey("train", step): Steps(2, 8, 24)
        for step in ("decode", "fit", "gather", "validate", "calibrate", "warm_up", "token")
    }
    lines = lines_of(steps)
    # 320 windows are 20 steps of 16 an epoch; a window is computed on 6 of its frames.
    assert lines["train", "decode"].whole == 5 * 20 * 16 * 6
    assert lines["train", "fit"].whole == 2 * lines["train", "decode"].whole
    assert lines["train", "gather"].whole == 48 * 6
    assert lines["train", "validate"].whole == 5 * 2 * 32 * 6
    # 11 biases on 8 clips of 80 frames, for each of two targets.
    assert lines["train", "calibrate"].whole == 11 * 8 * 80 * 2
    assert (lines["train", "warm_up"].done, lines["train", "warm_up"].whole) == (2 * 20, 2 * 200)
    # 150 steps of four windows, in each of which five frames stand beside a key frame.
    assert lines["train", "token"].whole == 150 * 4 * 5
    shared = ("decode", "fit", "validate", "calibrate")
    assert [lines["train", step].at_once for step in (*shared, "gather", "token")] == [2, 2, 2, 2, 1, 1]
    # As many as there are GPUs, but no more than have a window or a clip.
    lines = lines_of(steps, Hardware(cpus=16, gpus=2))
    assert [lines["train", step].at_once for step in shared] == [float("inf"), float("inf"), 32, 8]


def test_every_stage_of_the_recipe_that_reads_video_is_a_line() -> None:
    recipe = RECIPES["nextqa"][1]
    sizes = grid_sizes(LARGE, recipe)
    # The paper's grids; of ReuseViT four targets, as trained and at six rates.
    assert sizes == {
        "frame_skip": 10,
        "adaptive_skip": 7,
        "key_frames": 7,
        "low_resolution": 5,
        "eventful": 15,
        "eventful_full": 15,
        "cmc": 15,
        "diffrate": 5,
        "tome": 5,
        "residualvit": 8,
        "reusevit": 28,
    }
    # The paper's grids are for its own towers; another family has a handful of settings of every method.
    assert set(grid_sizes(KNOWN_SHAPES["google/siglip-base-patch16-224"], recipe)) == set(sizes)
    assert NEXT_QA.frames("val", 2) + NEXT_QA.frames("test", 2) == pytest.approx(126_000, rel=0.01)


def test_the_page_says_what_follows_from_the_recipe() -> None:
    recipe, page = RECIPES["nextqa"][1], PAGE.read_text(encoding="utf-8")
    sizes = grid_sizes(LARGE, recipe)
    chosen = sum(min(recipe.sweep.chosen_per_method, size) for size in sizes.values())
    steps = recipe.train.epochs * (NEXT_QA.windows // recipe.train.fit.clips_per_step)
    frames = {split: NEXT_QA.frames(split, 2) for split in ("train", "val", "test")}
    embedded = sum(frames.values()) + frames["val"] * sum(sizes.values()) + frames["test"] * chosen
    flops = dense_flops(LARGE)
    settings = (embedded + sum(frames.values())) / 2  # Original is dense, the others half of that
    fitted = steps * recipe.train.fit.clips_per_step * 6 * len(recipe.train.targets)
    expected = (
        f"{sum(sizes.values())} settings on validation clips, {chosen} of them at most on test clips",
        f"{len(recipe.train.targets)} targets, {steps:,} steps of {recipe.train.fit.clips_per_step} windows",
        f"| {sum(frames.values()) / 1e3:.0f},000 |",
        f"| {embedded / 1e6:.1f} million |",
        f"| {embedded * 2 * LARGE.embed_dim / 1e9:.0f} GB |",
        f"| {settings * flops:.1e} FLOP |".replace("e+", "e"),
        f"| {3 * fitted * flops:.1e} FLOP |".replace("e+", "e"),
    )
    assert not [text for text in expected if text not in page]


def test_the_passes_of_a_search_are_those_that_it_makes(monkeypatch: pytest.MonkeyPatch) -> None:
    shape = replace(LARGE, image_px=56, width=32, num_heads=2, num_layers=4, mlp_width=64, embed_dim=32)
    vit = Vit.random(shape, seed=5)
    made = {"dense": 0, "judged": 0, "relaxed": 0}
    dense, embed, relaxed = Vit.forward, DiffRate.embed, diffrate_search.relaxed_embed

    def count(name: str, frames: int) -> None:
        made[name] += frames

    monkeypatch.setattr(Vit, "forward", lambda self, x: (count("dense", len(x)), dense(self, x))[1])
    monkeypatch.setattr(DiffRate, "embed", lambda self, x: (count("judged", len(x)), embed(self, x))[1])
    monkeypatch.setattr(
        diffrate_search,
        "relaxed_embed",
        lambda vit, x, *more, **named: (count("relaxed", len(x)), relaxed(vit, x, *more, **named))[1],
    )
    config = SchedulesConfig(
        shares=(0.7,), num_frames=24, search=SearchConfig(steps=6, frames_per_step=4, judged_every=4)
    )
    search_schedule(vit, torch.rand(24, 3, 56, 56), 0.7, config.search)
    assert (made["dense"], made["relaxed"]) == (24, 24)
    # Starts that cannot reach the share are left out by the search, and counted here.
    expected = 24 + 0.7 * made["judged"] + 3 * made["relaxed"]
    assert expected <= search_passes(config, shape) <= expected * 1.3
