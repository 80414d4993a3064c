"""What SECURITY.md claims, held against the code and against hostile input."""

from __future__ import annotations

import ast
import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from tests.mlflow_server import MlflowServer

ROOT = Path(__file__).resolve().parents[1]
SOURCES = sorted(
    path for top in ("platform", "reuse_models", "tune_spaces", "jobs") for path in (ROOT / top).rglob("*.py")
)

NEVER = {
    "eval",
    "exec",
    "compile",
    "__import__",
    "os.system",
    "os.popen",
    "pickle.load",
    "pickle.loads",
    "cloudpickle.load",
    "cloudpickle.loads",
    "joblib.load",
    "dill.load",
    "marshal.loads",
    "shelve.open",
    "yaml.load",
    "yaml.unsafe_load",
    "yaml.full_load",
    "torch.hub.load",
    "pandas.read_pickle",
    "pd.read_pickle",
    "shutil.unpack_archive",
    "tempfile.mktemp",
}
"""Calls that run what a file holds, or trust a name that is not ours."""


HOLDS_NO_WEIGHTS = ("Config.from_pretrained", "Tokenizer.from_pretrained", "Processor.from_pretrained")


def dotted(node: ast.expr) -> str:
    """Return a name such as `torch.load`, with `?` for what is no name."""
    if isinstance(node, ast.Name):
        return node.id
    if isinstance(node, ast.Attribute):
        return f"{dotted(node.value)}.{node.attr}"
    return "?"


def offences(tree: ast.AST) -> Iterator[str]:
    """Name every call in a module that breaks a claim."""
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call):
            continue
        name = dotted(node.func)
        words = {word.arg: word.value for word in node.keywords}
        true = {arg for arg, value in words.items() if isinstance(value, ast.Constant) and value.value is True}
        if name in NEVER or name.endswith((".extract", ".extractall", ".unpack_archive")):
            yield f"line {node.lineno}: {name}"
        if name == "torch.load" and "weights_only" not in true:
            yield f"line {node.lineno}: torch.load without weights_only=True"
        yield from (f"line {node.lineno}: {arg}=True" for arg in true & {"shell", "trust_remote_code", "allow_pickle"})
        if name.endswith(".from_pretrained"):
            if "local_files_only" not in true:
                yield f"line {node.lineno}: from_pretrained may fetch what was not listed"
            if name.startswith("Auto") and "trust_remote_code" not in words:
                yield f"line {node.lineno}: an Auto class that asks whether to run a repository's code"
            if not name.endswith(HOLDS_NO_WEIGHTS) and "use_safetensors" not in true:
                yield f"line {node.lineno}: weights that may be pickled"


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_no_call_runs_what_a_file_holds(path: Path) -> None:
    assert list(offences(ast.parse(path.read_text(encoding="utf-8")))) == []


@pytest.mark.parametrize(
    "line",
    [
        "torch.load(path)",
        "torch.load(path, weights_only=False)",
        "yaml.load(text)",
        "pickle.loads(data)",
        "subprocess.run(words, shell=True)",
        "eval(text)",
        "np.load(path, allow_pickle=True)",
        "archive.extractall(folder)",
        "archive.extract(member, folder)",
        "AutoConfig.from_pretrained(folder, local_files_only=True)",
        "AutoModel.from_pretrained(folder, local_files_only=True, trust_remote_code=True)",
        "CLIPModel.from_pretrained(folder, local_files_only=True)",
    ],
)
def test_the_search_finds_what_it_is_for(line: str) -> None:
    assert list(offences(ast.parse(line)))


def test_only_one_module_reads_pickles_and_it_executes_nothing() -> None:
    importers = [
        path.name
        for path in SOURCES
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Import) and any(alias.name in {"pickle", "dill", "cloudpickle"} for alias in node.names)
    ]
    assert importers == ["pickle_reader.py"]


def imported(path: Path) -> set[str]:
    """Return the modules that a file imports."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names.add(node.module.split(".")[0])
    return names


def test_archives_of_others_are_opened_in_one_place_alone_which_writes_nothing() -> None:
    users = {path.relative_to(ROOT).as_posix() for path in SOURCES if imported(path) & {"zipfile", "tarfile", "gzip"}}
    # The submission looks up the largest file of the package that it has just made itself.
    assert users == {"reuse_models/artifact/pickle_reader.py", "jobs/submit.py"}
    for name in users:
        tree = ast.parse((ROOT / name).read_text(encoding="utf-8"))
        calls = {dotted(node.func).split(".")[-1] for node in ast.walk(tree) if isinstance(node, ast.Call)}
        assert not calls & {"extract", "extractall"}
    reader = ast.parse((ROOT / "reuse_models" / "artifact" / "pickle_reader.py").read_text(encoding="utf-8"))
    calls = {dotted(node.func).split(".")[-1] for node in ast.walk(reader) if isinstance(node, ast.Call)}
    assert not calls & {"write", "write_bytes", "write_text", "mkdir", "symlink_to"}


def test_torch_s_own_reader_is_not_used() -> None:
    assert [path.name for path in SOURCES if "torch.load(" in path.read_text(encoding="utf-8")] == []


# ----------------------------------------------------------------------------------------------------- hostile backbone
def test_a_backbone_directory_that_brings_code_does_not_run_it(tmp_path: Path) -> None:
    from transformers import CLIPConfig, CLIPModel

    from dejavu.backbones.load import load_backbone

    part = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = CLIPConfig(
        text_config={**part, "vocab_size": 8, "max_position_embeddings": 8},
        vision_config={**part, "image_size": 32, "patch_size": 16},
        projection_dim=8,
    )
    CLIPModel(config).save_pretrained(tmp_path)
    trace = tmp_path / "it_ran"
    (tmp_path / "evil.py").write_text(f"open({str(trace)!r}, 'w').close()\nclass Evil: pass\n")
    for name, auto_map in (
        ("config.json", {"AutoConfig": "evil.Evil", "AutoModel": "evil.Evil"}),
        ("tokenizer_config.json", {"AutoTokenizer": ["evil.Evil", None]}),
    ):
        path = tmp_path / name
        value = json.loads(path.read_text()) if path.exists() else {}
        path.write_text(json.dumps(value | {"auto_map": auto_map}))
    (tmp_path / "tokenizer.json").write_text("{}")

    backbone = load_backbone(str(tmp_path))
    with pytest.raises(RuntimeError, match="text tower in"):
        backbone.embed_texts(["a red circle"])
    assert not trace.exists()


# ------------------------------------------------------------------------------------------------------------------ ids
@pytest.mark.parametrize(
    "name", ["../../etc/passwd.mp4", "a/../../b.mp4", "..", "a\\b.mp4", "a b;rm -rf.mp4", "." * 300]
)
def test_a_clip_id_is_one_plain_name(name: str) -> None:
    from dejavu.datasets.video_folder import clip_id_of

    clip_id = clip_id_of(name)
    assert clip_id
    assert Path(clip_id).name == clip_id
    assert not clip_id.startswith(".")
    assert set(clip_id) <= set("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._-")


@pytest.mark.parametrize("clip_id", ["../x", "a/b", "/etc/x", "..", "", "a\\b", "a\0b"])
def test_an_annotated_id_that_leaves_its_folder_is_refused(clip_id: str) -> None:
    from dejavu.datasets.next_qa import check_id

    with pytest.raises(ValueError, match="expected"):
        check_id("val.csv line 2", clip_id)


def test_a_link_out_of_the_video_folder_is_refused(tmp_path: Path) -> None:
    from dejavu.datasets.video_folder import clips_by_name

    (tmp_path / "secret.mp4").write_bytes(b"x")
    videos = tmp_path / "videos"
    videos.mkdir()
    (videos / "innocent.mp4").symlink_to(tmp_path / "secret.mp4")
    with pytest.raises(ValueError, match="a link to"):
        clips_by_name(videos)


def test_a_playlist_reads_no_other_file(tmp_path: Path) -> None:
    from dejavu.video.source import VideoError, open_video

    (tmp_path / "other.mp4").write_bytes(b"x")
    playlist = tmp_path / "clip.mp4"
    playlist.write_text("#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\nother.mp4\n#EXT-X-ENDLIST\n")
    with pytest.raises(VideoError), open_video(playlist):
        pass


def test_the_store_names_nothing_after_an_id(tmp_path: Path) -> None:
    from dejavu.records import Clip
    from dejavu.stages.transcode import transcode_clips
    from dejavu.storage.store import Store
    from dejavu.video.mp4 import TranscodeConfig
    from dejavu.video.write import write_video

    grey = np.full((32, 32, 3), 90, np.uint8)
    write_video(tmp_path / "a.mp4", iter([grey] * 3), 2, 30)
    hostile = Clip(clip_id="../../../escaped", path=str(tmp_path / "a.mp4"), split="test")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("dejavu.stages.transcode.spread", lambda kernel, rows, **_: map(kernel, rows))
        made = transcode_clips([hostile], Store(tmp_path / "results" / "store"), TranscodeConfig(), 32)
    assert list(made.clips) == ["../../../escaped"]
    assert not [path for path in tmp_path.rglob("*") if "escaped" in path.name]
    assert {path.name for path in tmp_path.iterdir()} == {"a.mp4", "results"}


def test_a_picture_of_an_absurd_size_is_refused_before_it_takes_memory(tmp_path: Path) -> None:
    """A JPEG says that it is 60000 x 60000: 10 GB a picture."""
    import av

    from dejavu.video.mp4 import TranscodeConfig
    from dejavu.video.source import VideoError
    from dejavu.video.transcode_apart import transcode_apart

    path = tmp_path / "bomb.mjpeg"
    with av.open(str(path), "w", format="mjpeg") as container:
        stream = container.add_stream("mjpeg", rate=10)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuvj420p"
        picture = av.VideoFrame.from_ndarray(np.full((48, 64, 3), 90, np.uint8), "rgb24")
        container.mux([*stream.encode(picture), *stream.encode(None)])
    content = path.read_bytes()
    start = content.index(b"\xff\xc0") + 5  # of the frame's header: height and width after marker, length and depth
    assert content[start : start + 4] == (48).to_bytes(2, "big") + (64).to_bytes(2, "big")
    path.write_bytes(content[:start] + (60000).to_bytes(2, "big") * 2 + content[start + 4 :])
    with pytest.raises(VideoError, match=r"^bomb.mjpeg: got .*, expected ") as raised:
        transcode_apart(path, tmp_path / "out.mp4", frame_px=32, config=TranscodeConfig(), limit_s=60)
    assert "crash" not in str(raised.value)
    assert [each.name for each in tmp_path.iterdir()] == ["bomb.mjpeg"]


# -------------------------------------------------------------------------------------------------------------- secrets
def test_a_password_is_in_no_line_that_is_printed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from dejavu.observability.tracking import Tracking, TrackingError

    for uri in ("postgresql://user:hunter2@127.0.0.1:9/mlflow", "http://user:hunter2@127.0.0.1:9"):
        assert "hunter2" not in Tracking(uri, "1").ui_command
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://user:hunter2@127.0.0.1:9")
    with pytest.raises(TrackingError) as raised:
        Tracking.open(tmp_path)
    assert "hunter2" not in str(raised.value)


def test_the_resolved_configuration_holds_nothing_of_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    from dejavu.experiment import parse

    for name in ("HF_TOKEN", "AWS_SECRET_ACCESS_KEY", "MLFLOW_TRACKING_PASSWORD", "RAY_AUTH_TOKEN"):
        monkeypatch.setenv(name, "hunter2")
    assert "hunter2" not in parse(["demo"]).to_yaml()


@pytest.mark.filterwarnings("ignore")  # the server's own, in our process
def test_a_password_in_the_tracking_uri_is_printed_logged_and_stored_nowhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.delenv("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", raising=False)
    for name in ("AWS_SECRET_ACCESS_KEY", "MLFLOW_TRACKING_PASSWORD", "HF_TOKEN"):
        monkeypatch.setenv(name, "hunter3")
    from dejavu.observability.tracking import Run, Tracking

    caplog.set_level("DEBUG")
    server = MlflowServer(tmp_path, monkeypatch)
    try:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://user:hunter2@127.0.0.1:{server.port}")
        tracking = Tracking.open(tmp_path)
        plot = tmp_path / "plot.png"
        plot.write_bytes(b"png")
        child = Run(name="child", params={"a": 1}, metrics={"b": 2.0}, tags={})
        tracking.log(Run(name="parent", params={}, metrics={}, tags={}, artifacts=(plot,)), [child])
    finally:
        server.go()
    printed = capfd.readouterr()
    assert "hunter" not in printed.out + printed.err + caplog.text
    assert (tmp_path / "mlflow.db").stat().st_size > 0
    assert [path for path in tmp_path.rglob("*") if path.is_file() and b"hunter" in path.read_bytes()] == []


def test_no_file_holds_a_credential() -> None:
    shapes = re.compile(r"AKIA[0-9A-Z]{16}|hf_[A-Za-z0-9]{30,}|ghp_[A-Za-z0-9]{30,}|-----BEGIN [A-Z ]*PRIVATE KEY-----")
    texts = [*SOURCES, *ROOT.glob("*.yaml"), *ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")]
    assert [path.name for path in texts if shapes.search(path.read_text(encoding="utf-8"))] == []


# -------------------------------------------------------------------------------------------------------------- servers
def test_nothing_of_ours_listens_for_strangers() -> None:
    """One thing does, in a pod, and its line says where to read why."""
    texts = [*SOURCES, *ROOT.glob("*.yaml"), *ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md"), ROOT / "Makefile"]
    everywhere = re.compile(r"0\.0\.0\.0(?!/)|--host[= ](?!127\.0\.0\.1)")
    lines = [
        (path.name, line)
        for path in texts
        for line in path.read_text(encoding="utf-8").splitlines()
        if everywhere.search(line)
    ]
    assert [name for name, _ in lines] == ["kuberay.rayjob.yaml"]
    assert "see SECURITY.md" in lines[0][1]


@pytest.mark.ray
def test_the_dashboard_of_our_cluster_listens_on_loopback(ray_environment: dict[str, str]) -> None:
    import psutil

    port = int(ray_environment["DASHBOARD"].rpartition(":")[2])
    found = [one.laddr for one in psutil.net_connections("tcp") if one.status == psutil.CONN_LISTEN and one.laddr]
    assert {address.ip for address in found if address.port == port} == {"127.0.0.1"}


# -------------------------------------------------------------------------------------------------------------- cluster
def test_our_cluster_asks_for_a_secret_of_this_user() -> None:
    import submit

    token = Path("some") / "token"
    environment = submit.environment(token)
    assert environment["RAY_AUTH_MODE"] == "token"
    assert environment["RAY_AUTH_TOKEN_PATH"] == str(token)
    assert "RAY_AUTH_TOKEN" not in environment


@pytest.mark.ray
def test_without_the_secret_the_cluster_answers_nobody(ray_environment: dict[str, str]) -> None:
    import urllib.error
    import urllib.request

    with pytest.raises(urllib.error.HTTPError) as raised:
        urllib.request.urlopen(f"{ray_environment['DASHBOARD']}/api/jobs/", timeout=10)
    assert raised.value.code == 401
    raised.value.close()

    token = Path(ray_environment["RAY_AUTH_TOKEN_PATH"])
    assert token.stat().st_mode & 0o077 == 0
    stranger = {name: value for name, value in ray_environment.items() if not name.startswith("RAY_AUTH")}
    done = subprocess.run(
        [sys.executable, "-c", "import ray; ray.init(address='auto')"],
        env=stranger | {"RAY_AUTH_MODE": "disabled"},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode != 0
    assert "ConnectionError" in done.stderr
