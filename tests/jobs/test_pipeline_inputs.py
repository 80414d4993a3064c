"""What the job does with bad input, with a folder of videos, and with NExT-QA's layout."""

from __future__ import annotations

import csv
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import av
import numpy as np
import pytest

from dejavu.datasets.synthetic import SyntheticConfig, make_world
from dejavu.video.write import write_video

pytestmark = [pytest.mark.ray, pytest.mark.slow]

Pipeline = Callable[..., "subprocess.CompletedProcess[str]"]


def moving(num_frames: int, seed: int) -> list[np.ndarray]:
    rng = np.random.default_rng(seed)
    texture = rng.integers(0, 255, (96, 160, 3), dtype=np.uint8)
    return [np.roll(texture, 3 * index, axis=1) for index in range(num_frames)]


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


@pytest.fixture(scope="module")
def bad_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three videos that work, two of them oddly named or of one frame, and five files that do not."""
    folder = tmp_path_factory.mktemp("videos")
    write_video(folder / "good.mp4", iter(moving(60, 0)), 10, 20)
    (folder / "sub").mkdir()
    write_video(folder / "sub" / 'it\'s a "quoted" näme.mp4', iter(moving(40, 1)), 10, 20)
    write_video(folder / "one.mp4", iter(moving(1, 2)), 10, 20)
    whole = (folder / "good.mp4").read_bytes()
    (folder / "truncated.mp4").write_bytes(whole[: len(whole) // 2])
    (folder / "text.mp4").write_text("this is not a video")
    (folder / "zero.mp4").write_bytes(b"")
    (folder / "notes.txt").write_text("ignored")
    return folder


def test_bad_files_end_the_run_with_the_table(pipeline: Pipeline, bad_folder: Path, tmp_path: Path) -> None:
    done = pipeline("folder", "--videos", bad_folder, "--results", tmp_path)
    assert done.returncode == 1
    assert "failures: got 3 of 6 clips failed, expected at most 1%" in done.stderr
    assert "Traceback" not in done.stderr
    assert {row["stage"] for row in rows(tmp_path / "failures.csv")} == {"transcode"}


def test_with_leave_the_rest_is_measured(pipeline: Pipeline, bad_folder: Path, tmp_path: Path) -> None:
    done = pipeline(
        "folder", "--videos", bad_folder, "--results", tmp_path, "--max-failed-fraction", "0.6",
        "--sweep.density", "tiny", "--sweep.methods", "eventful", "frame_skip",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    failures = rows(tmp_path / "failures.csv")
    assert list(failures[0]) == ["clip", "stage", "reason"]
    assert len(failures) == 3
    assert all(row["reason"] for row in failures)
    points = rows(tmp_path / "pareto.csv")
    assert {point["num_clips"] for point in points} == {"3"}
    assert all(point["accuracy"] == "" and point["acc_gqa"] == "" for point in points)
    assert all(0.5 < float(point["cosine_to_dense"]) <= 1 for point in points)
    assert (tmp_path / "pareto.png").stat().st_size > 10_000
    assert (tmp_path / "config.yaml").is_file()


def test_odd_videos_are_used_and_said_and_damage_is_refused_where_asked(pipeline: Pipeline, tmp_path: Path) -> None:
    videos = tmp_path / "videos"
    videos.mkdir()
    write_video(videos / "whole.mp4", iter(moving(100, 0)), 10, 20)
    with av.open(str(videos / "whole.mp4")) as container:
        packet = [packet for packet in container.demux(video=0) if packet.size][50]
        place, size = packet.pos + 4, packet.size - 4
    data = bytearray((videos / "whole.mp4").read_bytes())
    data[place : place + size] = np.random.default_rng(0).bytes(size)
    (videos / "damaged.mp4").write_bytes(data)
    words = ("folder", "--videos", videos, "--results", tmp_path / "out", "--stages", "transcode")
    done = pipeline(*words)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "1 clips have damaged or missing pictures, which were concealed: damaged.csv" in done.stdout
    (damaged,) = rows(tmp_path / "out" / "damaged.csv")
    assert (damaged["clip"], damaged["missing"]) == ("damaged.mp4", "0")
    assert 0 < float(damaged["share"]) <= 0.02
    assert damaged["concealed_frames"]
    assert rows(tmp_path / "out" / "remarks.csv") == []
    done = pipeline(*words, "--damaged", "refuse")
    assert done.returncode == 1
    assert [row["clip"] for row in rows(tmp_path / "out" / "failures.csv")] == ["damaged.mp4"]


def test_a_folder_in_which_nothing_works_is_no_success(pipeline: Pipeline, tmp_path: Path) -> None:
    videos = tmp_path / "videos"
    videos.mkdir()
    (videos / "text.mp4").write_text("no")
    done = pipeline("folder", "--videos", videos, "--results", tmp_path / "out", "--max-failed-fraction", "1")
    assert done.returncode == 1
    assert "got no clip left of 1" in done.stderr


def test_nextqa_runs_on_its_own_layout_with_a_saved_backbone(pipeline: Pipeline, tmp_path: Path) -> None:
    from transformers import CLIPModel

    import dejavu.backbones.load as loading

    embedded = Path(loading.__file__).parent / "embedded"
    backbone = tmp_path / "backbone"
    shutil.copytree(embedded, backbone)
    CLIPModel.from_pretrained(embedded).save_pretrained(backbone)

    world = make_world(tmp_path / "world", SyntheticConfig(num_train=1, num_val=2, num_test=3))
    gone = sorted((world / "videos").rglob("3*.mp4"))[0]
    gone.unlink()
    done = pipeline(
        "nextqa", "--videos", world / "videos", "--annotations", world / "annotations", "--backbone", backbone,
        "--results", tmp_path / "out", "--sweep.density", "tiny", "--sweep.methods", "cmc", "--prompt", "{answer}",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    assert f"missing: 1 annotated videos are not in the folder and are left out: {gone.stem}" in done.stdout
    assert rows(tmp_path / "out" / "failures.csv") == []
    assert {point["num_clips"] for point in rows(tmp_path / "out" / "pareto.csv")} == {"2"}


def filled(words: list[str], tmp_path: Path) -> list[str]:
    """Put an empty folder and a file where words ask for them, and results into a new folder."""
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").write_text("x")
    found = [word.format(empty=tmp_path / "empty", file=tmp_path / "file") for word in words]
    return found if "--results" in found else [*found, "--results", str(tmp_path / "out")]


def is_one_line(said: str, message: str) -> bool:
    errors = [line for line in said.splitlines() if line.startswith("error: ")]
    return len(errors) == 1 and message in errors[0] and "; " in errors[0] and "Traceback" not in said


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["tiny", "--backbone", "openai/clip-vit-base-patch16"], "openai/clip-vit-base-patch16"),
        (["folder", "--videos", "{empty}"], "expected"),
        (
            ["nextqa", "--videos", "{empty}", "--annotations", "{empty}", "--backbone", "embedded"],
            "map_vid_vidorID.json",
        ),
    ],
)
def test_a_mistake_at_the_start_is_one_line(pipeline: Pipeline, tmp_path: Path, words: list[str], message: str) -> None:
    done = pipeline(*filled(words, tmp_path))
    assert done.returncode == 1
    assert is_one_line(done.stderr, message), done.stderr


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["nextqa"], "error: --videos: got nothing, expected a folder"),
        (["tiny", "--backbone", "{empty}"], "without"),
        (["tiny", "--results", "{file}/below"], "error: results folder: got"),
        (["folder", "--videos", "{empty}", "--published-checkpoints", "{empty}"], "without any *.ckpt"),
    ],
)
def test_a_mistake_before_ray_is_asked_is_one_line(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], tmp_path: Path, words: list[str], message: str
) -> None:
    """In this process, which need not import all that a job imports for each of them."""
    import pipeline

    monkeypatch.setattr("dejavu.pipeline.start.keep_status", lambda *_: None)
    with pytest.raises(SystemExit, match=r"^1$"), pipeline.reported_end():
        pipeline.run(pipeline.start(pipeline.parse(filled(words, tmp_path))))
    said = capfd.readouterr().err
    assert is_one_line(said, message), said


def test_published_checkpoints_run_at_every_published_refresh(
    pipeline: Pipeline, shared_dir: Path, tmp_path: Path
) -> None:
    import torch
    from safetensors.torch import load_file
    from transformers import CLIPConfig, CLIPModel, CLIPVisionConfig

    import dejavu.backbones.load as loading

    embedded = Path(loading.__file__).parent / "embedded"
    vision = CLIPVisionConfig.from_pretrained(shared_dir / "golden" / "clip_vision_config.json")
    text = CLIPConfig.from_pretrained(embedded).text_config
    torch.manual_seed(0)
    config = CLIPConfig(text_config=text.to_dict(), vision_config=vision.to_dict(), projection_dim=32)
    backbone = tmp_path / "backbone"
    CLIPModel(config).save_pretrained(backbone)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(embedded / name, backbone / name)

    state = load_file(shared_dir / "golden" / "reference_state.safetensors")
    checkpoints = tmp_path / "checkpoints"
    checkpoints.mkdir()
    torch.save({"state_dict": {f"net.{name}": value for name, value in state.items()}}, checkpoints / "r80.ckpt")

    world = make_world(tmp_path / "world", SyntheticConfig(num_train=1, num_val=1, num_test=2))
    words = ["nextqa", "--videos", world / "videos", "--annotations", world / "annotations", "--backbone", backbone]
    words += ["--published-checkpoints", checkpoints, "--variant", "released", "--results", tmp_path / "out"]
    done = pipeline(*words, "--sweep.density", "tiny", "--sweep.methods", "frame_skip", "--prompt", "{answer}")
    assert done.returncode == 0, done.stderr[-3000:]
    points = rows(tmp_path / "out" / "pareto.csv")
    published = [point["setting"] for point in points if point["method"] == "reusevit"]
    assert len(published) == 4
    assert {setting.rpartition("R=")[2] if "R=" in setting else "none" for setting in published} == {
        "4", "8", "32", "none",
    }  # fmt: skip
    assert all("released" in setting for setting in published)
    assert all(point["trained"] == "true" for point in points if point["method"] == "reusevit")
