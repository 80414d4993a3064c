from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from dejavu.experiment import RECIPES, STAGES, UNTRAINED, ExperimentError, parse


def test_without_arguments_the_demo_runs() -> None:
    experiment = parse([])
    assert (experiment.recipe, experiment.backbone, experiment.stages) == ("demo", "embedded", STAGES)
    assert parse(["--num-workers", "2"]).recipe == "demo"


def test_a_recipe_and_typed_overrides() -> None:
    words = "folder --videos v --results out --max-failed-fraction 0.6 --transcode.crf 30 --gpus-per-worker 0.5"
    experiment = parse(words.split())
    assert experiment.dataset == "video_folder"
    assert (experiment.videos, experiment.results) == (Path("v"), Path("out"))
    assert (experiment.max_failed_fraction, experiment.transcode.crf, experiment.gpus_per_worker) == (0.6, 30, 0.5)


def test_nextqa_runs_the_papers_grids() -> None:
    experiment = parse(["nextqa", "--videos", "v", "--annotations", "a", "--backbone", "openai/clip-vit-large-patch14"])
    assert (experiment.dataset, experiment.sweep.density) == ("next_qa", "paper")


def test_tiny_has_22_videos_and_two_settings_of_each_method() -> None:
    experiment = parse(["tiny"])
    world = experiment.synthetic
    assert (world.num_train, world.num_val, world.num_test) == (8, 6, 8)
    assert experiment.sweep.density == "tiny"


def test_stages_are_a_comma_separated_list_in_their_own_order() -> None:
    assert parse(["tiny", "--stages", "embed,transcode"]).stages == ("transcode", "embed")


@pytest.mark.parametrize("words", ["tiny --stages embed,cook", "tiny --no-such-flag", "tiny --transcode.crf many"])
def test_a_word_that_means_nothing_ends_with_status_2(words: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        parse(words.split())
    assert ended.value.code == 2
    assert words.rsplit(maxsplit=1)[-1].rsplit(",", maxsplit=1)[-1].lstrip("-") in capsys.readouterr().err


def test_help_names_every_recipe(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        parse(["--help"])
    assert ended.value.code == 0
    text = capsys.readouterr().out
    assert all(recipe in text for recipe in ("demo", "tiny", "folder", "nextqa"))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("classes --task.head temp_clip", "--task.head: got temp_clip, expected zero_shot; recipe classes asks"),
        ("tiny --allowed-loss 1", "allowed_loss: got 1.0, expected 0 or more and less than 1"),
        ("tiny --max-failed-fraction 2", "max_failed_fraction: got 2.0, expected 0..1"),
        ("tiny --num-workers 0", "num_workers: got 0, expected 1 or more"),
        ("tiny --prompt {colour}", "prompt: got '{colour}'"),
    ],
)
def test_a_value_out_of_range_is_one_line(words: str, message: str) -> None:
    with pytest.raises(ExperimentError) as raised:
        parse(words.split())
    assert str(raised.value).startswith(message)
    assert "\n" not in str(raised.value)


def test_a_recipe_without_its_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ExperimentError, match="--videos: got nothing, expected a folder"):
        parse(["folder"]).check_folders()
    with pytest.raises(ExperimentError, match=r"--annotations: got .*gone, which is no folder"):
        parse(["nextqa", "--videos", str(tmp_path), "--annotations", str(tmp_path / "gone")]).check_folders()


def test_the_resolved_configuration_reads_back() -> None:
    values = yaml.safe_load(parse(["tiny", "--embed.streams", "3"]).to_yaml())
    assert (values["recipe"], values["embed"]["streams"], values["stages"]) == ("tiny", 3, list(UNTRAINED))


def test_numbers_of_tests_are_the_same_on_every_machine() -> None:
    """Elsewhere the machine says what is faster."""
    precisions = {name: recipe.embed.precision for name, (_, recipe) in RECIPES.items()}
    assert {name for name, precision in precisions.items() if precision == "float32"} == {"tiny"}
    assert {precisions[name] for name in ("demo", "folder", "classes", "nextqa", "msrvtt", "how2qa")} == {"auto"}
