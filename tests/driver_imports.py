"""What every driver imports, and what it asks for later; imported once, by the process that drivers are forked from."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "jobs"))

import matplotlib.pyplot  # noqa: F401
import mlflow.store.tracking.sqlalchemy_store  # noqa: F401
import pipeline  # noqa: F401
import sklearn.linear_model  # noqa: F401
from transformers import AutoTokenizer, CLIPModel, CLIPTextModelWithProjection  # noqa: F401
