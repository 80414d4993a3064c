"""One method setting on one backbone: what it is called, and the identity that names its results."""

from __future__ import annotations

import atexit
import tempfile
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dejavu.storage.code_version import closure_version
from dejavu.storage.store import fetch, file_sha256, identity
from dejavu.storage.store_path import StorePath, is_file, listed, store_path

if TYPE_CHECKING:  # they need torch, which readers, who import this module, do without
    from reuse_models.method import MethodConfig


@dataclass(frozen=True, slots=True)
class Setting:
    """A method's config with the identity of everything that its embeddings depend on but the clip."""

    config: MethodConfig
    setting_id: str
    backbone_identity: str = field(default="", compare=False)
    """Of the tower; empty where the setting has travelled to a worker."""

    @property
    def method(self) -> str:
        """The method's name, as in pareto.csv."""
        return self.config.method

    @property
    def label(self) -> str:
        """The knob as a person reads it."""
        return self.config.setting

    def to_row(self) -> dict[str, Any]:
        """Return plain values that `from_row` reads back on a worker."""
        from reuse_models.registry import config_to_dict  # noqa: PLC0415  see above

        return {"id": self.setting_id, "config": config_to_dict(self.config)}

    @staticmethod
    def from_row(row: dict[str, Any]) -> Setting:
        """Read what `to_row` wrote; weights that lie in an object store are copied to where this process is."""
        from reuse_models.registry import config_from_dict  # noqa: PLC0415  see above

        return Setting(with_local_weights(config_from_dict(row["config"])), row["id"])


def name_setting(config: MethodConfig, backbone_identity: str, embedding: dict[str, Any]) -> Setting:
    """Name a setting by its config, its add-on weights' content, the backbone, how frames are cut, and the code.

    Args:
        config: The method's config; a `weights` field is a path whose content counts, not its name.
        backbone_identity: Of the tower's weights and config.
        embedding: Whatever else shapes the result, such as the length of a segment.
    """
    from reuse_models.registry import config_to_dict  # noqa: PLC0415  see above

    row = config_to_dict(config)
    weights = row.get("weights")
    if weights:
        path = store_path(weights)
        row["weights"] = file_sha256(path) if is_file(path) else _folder_sha256(path)
    parts = {"config": row, "backbone": backbone_identity, "embedding": embedding}
    parts["code"] = kernel_version(type(config).__module__)
    return Setting(config, identity(parts), backbone_identity)


DECODED_BY = ("dejavu.video.decode", "dejavu.backbones.preprocess")
"""What frames come from, with all that these import."""
ENCODED_BY = ("dejavu.embedding.batch", "dejavu.embedding.encode")
"""What cuts clips and drives a method: itself alone, since what it imports moves data and changes no number."""


@cache
def kernel_version(*modules: str) -> str:
    """Hash the code that numbers of some modules (dotted names) follow from, decoding and preprocessing included."""
    return closure_version((*modules, *DECODED_BY), alone=ENCODED_BY)


def with_local_weights(config: MethodConfig) -> MethodConfig:
    """Return a config that can be built: its weights, if it has any, are a local file, fetched once in a process."""
    from reuse_models.baselines.residual_vit.method import ResidualVitConfig  # noqa: PLC0415  see above
    from reuse_models.reusevit.method import ReuseVitConfig  # noqa: PLC0415

    if not isinstance(config, ReuseVitConfig | ResidualVitConfig) or config.weights is None:
        return config
    is_local = isinstance(store_path(config.weights), Path)
    return config if is_local else replace(config, weights=_fetched(config.weights))


@cache
def _fetched(weights: str) -> str:
    """Copy weights, and the JSON beside them that names their shape, for as long as this process lives."""
    folder = tempfile.TemporaryDirectory(prefix="dejavu-weights-")
    atexit.register(folder.cleanup)
    source = store_path(weights)
    for path in (source, source.with_suffix(".json")):
        if not isinstance(path, Path) and is_file(path):
            fetch(path, Path(folder.name) / path.name)
    return str(Path(folder.name) / source.name)


def _folder_sha256(folder: StorePath) -> str:
    return identity({path.name: file_sha256(path) for path in listed(folder, "*") if is_file(path)})
