"""From a backbone's name to a directory with its config and weights."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dejavu.storage.one_line import OneLineError

EMBEDDED = "embedded"
"""Name of the small CLIP that is shipped with the platform."""
DRAWINGS_ALONE = (
    "backbone: embedded, the demo's, was trained on drawings and knows nothing of real video; "
    "give --backbone, such as facebook/dinov2-small"
)
"""Said wherever it is put to other use, by default or not."""

WANTED = ("*.json", "*.safetensors", "*.txt", "*.model")
"""What is fetched from the hub: no pickled weights, no code."""


class BackboneError(OneLineError):
    """A backbone cannot be used; one line says why and what to do."""


@dataclass(frozen=True, slots=True)
class BackboneFiles:
    """A directory as `save_pretrained` writes it."""

    directory: Path
    config: dict[str, Any]
    weights: tuple[Path, ...]

    @property
    def model_type(self) -> str:
        """As the config names it: clip, siglip_vision_model, dinov2 and so on."""
        return str(self.config.get("model_type"))

    def preprocessor(self) -> dict[str, Any] | None:
        """Return the image processor's config as transformers finds it, None where there is none.

        Raises:
            BackboneError: The file is damaged.
        """
        nested = self.directory / "processor_config.json"
        if nested.is_file() and (processor := _read_json(nested).get("image_processor")) is not None:
            return _object(nested, processor)
        path = self.directory / "preprocessor_config.json"
        return _read_json(path) if path.is_file() else None

    def identity(self, image_px: int | None = None) -> str:
        """Return the SHA-256 of everything that decides an embedding: config, preprocessor, weights, and its size.

        `image_px` is the side of the frames; None for the preprocessor's own.
        """
        parts = [self.config, self.preprocessor(), *([] if image_px is None else [image_px])]
        digest = hashlib.sha256(json.dumps(parts, sort_keys=True).encode())
        for path in self.weights:
            with path.open("rb") as file:
                digest.update(hashlib.file_digest(file, "sha256").digest())
        return digest.hexdigest()


def locate(name: str) -> BackboneFiles:
    """Find the files of a backbone: `embedded`, a local directory, or a name on the Hugging Face hub.

    Raises:
        BackboneError: There is no such directory, it lacks a config or safetensors weights, or the hub is out of
            reach and the backbone not in its cache.
    """
    directory = Path(__file__).parent / "embedded" if name == EMBEDDED else Path(name).expanduser()
    if not directory.is_dir():
        directory = _fetch(name)
    config_path = directory / "config.json"
    if not config_path.is_file():
        raise BackboneError(
            f"backbone {name}: got a directory without config.json, expected one written by save_pretrained; "
            "point to the model's own directory"
        )
    weights = sorted(directory.glob("*.safetensors"))
    if not weights:
        raise BackboneError(
            f"backbone {name}: got a directory without safetensors weights, expected model.safetensors; "
            "save it again with save_pretrained(..., safe_serialization=True)"
        )
    return BackboneFiles(directory, _read_json(config_path), tuple(weights))


def _fetch(name: str) -> Path:
    where = f"a directory, {EMBEDDED!r}, or a name on the hub such as openai/clip-vit-large-patch14"
    if name.startswith((".", "/", "~")) or name.count("/") != 1:
        raise BackboneError(f"backbone: got {name}, which is no directory, expected {where}; check the path")
    return fetch(name, where, "backbone")


def fetch(name: str, where: str, subject: str = "text encoder") -> Path:
    """Download a snapshot from the hub, or find it in the cache.

    `where` says in the message what else a name may be, `subject` what is looked for.

    Raises:
        BackboneError: It is not on the hub, or the hub is out of reach and it not in the cache.
    """
    from huggingface_hub import snapshot_download  # noqa: PLC0415  slow to import, and seldom needed
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, RepositoryNotFoundError  # noqa: PLC0415

    try:
        return Path(snapshot_download(name, allow_patterns=list(WANTED)))
    except (HFValidationError, RepositoryNotFoundError) as error:
        raise BackboneError(
            f"{subject}: got {name}, which neither is a directory nor on the hub, expected {where}; check the name"
        ) from error
    except (OSError, HfHubHTTPError) as error:
        raise BackboneError(
            f"{subject}: got {name}, which is no directory here, and the hub cannot be reached, expected {where}; "
            "download it where there is a network and pass its directory"
        ) from error


def _read_json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (RecursionError, ValueError) as error:
        raise BackboneError(f"{path}: got {error}, expected JSON; download or save the backbone again") from error
    return _object(path, value)


def _object(path: Path, value: Any) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise BackboneError(f"{path}: got {str(value)[:40]}, expected an object; download or save the backbone again")
    return value
