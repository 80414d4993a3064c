"""A trained ReuseViT as MLflow loads it: this file is logged as code, and run by `mlflow.pyfunc.load_model`."""

from __future__ import annotations

from typing import Any

import mlflow
import torch
from mlflow.models import set_model

from dejavu.backbones.load import load_backbone
from reuse_models.method import Chunk
from reuse_models.reusevit.method import ReuseVitConfig


class ReuseVitModel(mlflow.pyfunc.PythonModel):  # type: ignore[misc, name-defined]
    """Pixels [F, 3, S, S] and codec grids [F, 4, P, P] of one video in, embeddings [F, E] out."""

    def load_context(self, context: Any) -> None:
        """Build the method on its backbone."""
        trained = context.model_config
        config = ReuseVitConfig(weights=context.artifacts["weights"])
        self.method = config.build(load_backbone(trained["backbone"], trained["image_px"]).vit)

    def predict(self, context, model_input, params=None):  # type: ignore[no-untyped-def]
        """Embed one whole video. Without annotations, from which MLflow would guess a signature: it has one."""
        pixels, codec = (torch.as_tensor(model_input[name]) for name in ("pixels", "codec"))
        with torch.inference_mode():
            encoded = self.method.encode(Chunk((pixels,), (codec,), (True,)), self.method.start(1))
        return encoded.embeddings[0].numpy()


set_model(ReuseVitModel())
