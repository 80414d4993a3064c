"""MLflow's own server in this process, which can go and come back."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest


class MlflowServer:
    """Listens on loopback, keeps its database and artifacts in a folder; what it warns of is to be ignored."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        import submit
        from mlflow.server import handlers

        monkeypatch.setenv("_MLFLOW_SERVER_FILE_STORE", f"sqlite:///{folder / 'mlflow.db'}")
        monkeypatch.setenv("_MLFLOW_SERVER_ARTIFACT_ROOT", (folder / "artifacts").as_uri())
        # It remembers the stores of the first server in a process, and would write to another test's folder.
        for store in ("_tracking_store", "_model_registry_store", "_artifact_repo"):
            monkeypatch.setattr(handlers, store, None)
        (self.port,) = submit.free_ports(1)
        self.come()

    @property
    def uri(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def come(self) -> None:
        from mlflow.server import app
        from werkzeug.serving import make_server

        self.server = make_server("127.0.0.1", self.port, app)
        self.thread = threading.Thread(target=self.server.serve_forever)
        self.thread.start()

    def go(self) -> None:
        self.server.shutdown()
        self.thread.join()
        self.server.server_close()
