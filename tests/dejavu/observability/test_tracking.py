from __future__ import annotations

import os
import shlex
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
from filelock import FileLock

from dejavu.observability import tracking as tracking_module
from dejavu.observability.tracking import LoggedAddon, Run, Tracking, TrackingError, without_secrets

ROOT = Path(__file__).resolve().parents[3]

pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:.*ype hint:UserWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]


@pytest.mark.parametrize("name", ["plain", "who? me=1&you #2 50%20 é"])
def test_a_run_and_its_children_are_found_again(tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    folder = tmp_path / name
    tracking = Tracking.open(folder)
    plot = folder / "pareto.png"
    plot.write_bytes(b"png")
    parent = Run(name="tiny", params={"seed": 0}, metrics={}, tags={"recipe": "tiny"}, artifacts=(plot,))
    child = Run(name="cmc t=3", params={"method": "cmc"}, metrics={"accuracy": 0.5, "speedup": None}, tags={})
    parent_id = tracking.log(parent, [child])

    import mlflow

    client = mlflow.MlflowClient(tracking.uri)
    found = client.search_runs([tracking.experiment_id], f"tags.`mlflow.parentRunId` = '{parent_id}'")
    assert [(run.info.run_name, run.info.status, run.data.metrics) for run in found] == [
        ("cmc t=3", "FINISHED", {"accuracy": 0.5})
    ]
    assert [artifact.path for artifact in client.list_artifacts(parent_id)] == ["pareto.png"]
    assert (folder / "mlflow.db").is_file()
    assert {path.name for path in tmp_path.iterdir()} == {name}, "nothing lies beside the folder"
    assert Tracking.open(folder).experiment_id == tracking.experiment_id


@pytest.mark.slow
def test_runs_that_begin_at_once_in_a_new_folder_share_one_database(tmp_path: Path) -> None:
    code = "import sys; from pathlib import Path; from dejavu.observability.tracking import Tracking\n"
    code += "print(Tracking.open(Path(sys.argv[1])).experiment_id)"
    environment = {name: value for name, value in os.environ.items() if name != "MLFLOW_TRACKING_URI"}
    path = os.pathsep.join(str(ROOT / part) for part in ("platform", "."))
    runs = [
        subprocess.Popen(
            [sys.executable, "-c", code, str(tmp_path)],
            env=environment | {"PYTHONPATH": path},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for _ in range(3)
    ]
    said = [run.communicate(timeout=900) for run in runs]
    assert [run.returncode for run in runs] == [0, 0, 0], said
    assert len({out for out, _ in said}) == 1


def test_a_database_that_another_run_keeps_to_itself_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.setattr(tracking_module, "LOCK_TIMEOUT_S", 0)
    with FileLock(tmp_path / ".mlflow.lock"), pytest.raises(TrackingError, match="got another run at work on"):
        Tracking.open(tmp_path)


def test_a_saved_view_is_a_tag_of_the_experiment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    tracking = Tracking.open(tmp_path)
    tracking.save_view("pareto", "{}")

    import mlflow

    tags = mlflow.MlflowClient(tracking.uri).get_experiment(tracking.experiment_id).tags
    assert tags["mlflow.sharedViewState.pareto"] == "{}"
    assert tags["mlflow.experimentKind"] == "custom_model_development"
    assert f"/experiments/{tracking.experiment_id}/runs?viewStateShareKey=pareto" in tracking.view_url("pareto")


def test_what_a_person_types_survives_a_shell(tmp_path: Path) -> None:
    folder = tmp_path / "with space & 'quote'"
    words = shlex.split(Tracking(f"sqlite:///{folder}/mlflow.db", "1").ui_command)
    assert Path(words[0]).name == "mlflow"
    assert words[1:4] == ["ui", "--backend-store-uri", f"sqlite:///{folder}/mlflow.db"]


def test_a_view_on_a_server_is_below_its_address_without_the_password() -> None:
    tracking = Tracking("https://me:secret@host/", "7")
    assert tracking.view_url("pareto").startswith("https://host/#/experiments/7/runs?")


def test_a_server_that_does_not_answer_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://user:secret@127.0.0.1:9")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with pytest.raises(TrackingError, match=r"MLflow: got no answer from http://127.0.0.1:9 ") as raised:
        Tracking.open(tmp_path)
    assert "secret" not in str(raised.value)
    assert "\n" not in str(raised.value)


def test_a_uri_is_shown_without_its_password() -> None:
    assert without_secrets("https://me:secret@host/x") == "https://host/x"
    assert without_secrets("sqlite:////a/b.db") == "sqlite:////a/b.db"


def test_curves_keep_their_steps_and_an_addon_is_a_model_that_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    import mlflow
    import torch

    from dejavu.backbones.load import load_backbone
    from reuse_models.method import Chunk
    from reuse_models.reusevit.addon import Addon, addon_shape, save_addon
    from reuse_models.reusevit.method import ReuseVitConfig

    vit = load_backbone("embedded").vit
    weights = tmp_path / "target=0.8.safetensors"
    save_addon(Addon(addon_shape(vit.shape)), weights)
    tracking = Tracking.open(tmp_path)
    addon = LoggedAddon(weights, "embedded", None)
    with warnings.catch_warnings(record=True) as said:
        run_id = tracking.log(
            Run(name="fit", params={}, metrics={}, tags={}, curves={"loss": [(5, 0.5), (10, 0.25)]}, addon=addon), []
        )
    assert not [str(one.message) for one in said if issubclass(one.category, UserWarning)], "MLflow's advice"
    client = mlflow.MlflowClient(tracking.uri)
    assert "MLFLOW_TRACKING_URI" not in os.environ, "a process started from here would log to another run's database"
    assert [(m.step, m.value) for m in client.get_metric_history(run_id, "loss")] == [(5, 0.5), (10, 0.25)]

    pixels, codec = torch.randn(3, 3, vit.shape.image_px, vit.shape.image_px), torch.rand(3, 4, 8, 8)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", tracking.uri)
    (model,) = client.search_logged_models([tracking.experiment_id])
    found = mlflow.pyfunc.load_model(model.model_uri).predict({"pixels": pixels.numpy(), "codec": codec.numpy()})
    method = ReuseVitConfig(weights=str(weights)).build(vit)
    with torch.inference_mode():
        expected = method.encode(Chunk((pixels,), (codec,), (True,)), method.start(1)).embeddings[0]
    torch.testing.assert_close(torch.as_tensor(found), expected)
