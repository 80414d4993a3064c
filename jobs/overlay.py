"""Show what a setting recomputes: `python jobs/overlay.py VIDEO --results DIR [--setting NAME] --out OUT.mp4`.

Writes a video of each frame beside its copy in which reused patches are grey and recomputed ones in colour, with the
share reused. The setting is one that a run of the pipeline chose; the video may be any. Needs no cluster.
"""

import _bootstrap  # noqa: F401  first: makes the packages importable

import json
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import tyro
from numpy.typing import NDArray

from dejavu.backbones.load import load_backbone
from dejavu.report.frontier import MAX_LOSS, best_within, quality_of
from dejavu.storage.given_path import GivenPath
from dejavu.report.style import styles_of
from dejavu.report.overlay import draw_overlay
from dejavu.report.pareto_csv import read_pareto_csv
from dejavu.storage.one_line import exit_status
from dejavu.storage.results_folder import read_config
from dejavu.storage.store_path import StorePath, is_file, store_path
from dejavu.report.reuse_stream import follow
from dejavu.storage.setting import with_local_weights
from dejavu.video.decode import decode
from dejavu.video.mp4 import TranscodeConfig, transcode
from dejavu.video.write import write_video
from reuse_models.baselines.adaptive_skip import AdaptiveSkipConfig
from reuse_models.baselines.cmc import CmcConfig
from reuse_models.baselines.eventful import EventfulConfig
from reuse_models.baselines.eventful_full import EventfulFullConfig
from reuse_models.baselines.frame_skip import FrameSkipConfig
from reuse_models.baselines.key_frames import KeyFramesConfig
from reuse_models.method import MethodConfig
from reuse_models.registry import config_from_dict
from reuse_models.reusevit.method import ReuseVitConfig

REUSING = (
    ReuseVitConfig,
    EventfulConfig,
    EventfulFullConfig,
    CmcConfig,
    FrameSkipConfig,
    AdaptiveSkipConfig,
    KeyFramesConfig,
)
"""Methods that reuse between frames; the first that a run has is shown unless another is named."""
OVERLAY_CRF = 18
NEEDED = ("method", "setting", "split", "num_clips", "flops_reduction")
"""Columns of pareto.csv without which no setting can be preferred."""


@dataclass(frozen=True, kw_only=True)
class Overlay:
    """Show, frame by frame, which patches of a video a setting recomputes."""

    video: tyro.conf.Positional[Path]
    """Video in any format that FFmpeg reads."""
    results: GivenPath
    """Results folder of a pipeline run, whose backbone, transcode options and settings are used."""
    out: Path
    """MP4 file to write."""
    setting: str | None = None
    """Setting as in pareto.csv, such as `every=2`, or with its method, such as `cmc t=7.32`. If not given, ReuseViT's
    setting with the largest reduction of FLOPs within the run's allowed loss (2 % unless it says otherwise)."""
    fps: float | None = None
    """Frames per second to process and show. If not given, those of the run."""


def main(arguments: list[str] | None = None) -> int:
    """Write the video; return the exit status."""
    return exit_status(lambda: run(tyro.cli(Overlay, prog="python jobs/overlay.py", args=arguments)))


def run(job: Overlay) -> None:
    """Transcode, encode and draw in constant memory.

    Raises:
        ValueError: The results folder lacks something, or the setting is not one of the run's.
        VideoError: The video cannot be read.
        OSError: Something cannot be read or written.
    """
    if not (resolved := read_config(job.results)):
        raise ValueError(
            f"--results: got {job.results} without config.yaml, expected a results folder; run the pipeline"
        )
    loss = resolved.get("allowed_loss", MAX_LOSS)
    config = choose(job.results, reusing_configs(job.results), job.setting, loss)
    dtype = getattr(torch, resolved["embed"].get("precision", "float32"))
    backbone = load_backbone(resolved["backbone"], resolved.get("image_px"), dtype=dtype)
    method = with_local_weights(config).build(backbone.vit)
    given = TranscodeConfig(**resolved["transcode"])
    wanted = given if job.fps is None else replace(given, fps=job.fps)
    title = f"{styles_of([config.method])[config.method].name}: {config.setting}"
    rates: list[float] = []

    def pictures(path: Path) -> Iterator[NDArray[np.uint8]]:
        pieces = decode(path, motion_binning=resolved["embed"]["motion_binning"], chunk_frames=16)
        first_patch = backbone.vit.shape.num_prefix
        for number, frame in enumerate(follow(method, backbone, pieces)):
            rates.append(float(frame.reuse_LN[:, first_patch:].mean()))
            yield draw_overlay(frame, number, title)

    with tempfile.TemporaryDirectory() as folder:
        mp4 = Path(folder) / "video.mp4"
        transcode(job.video, mp4, frame_px=backbone.frame_px, config=wanted, view=backbone.preprocess.view)
        num_frames = write_video(job.out, pictures(mp4), max(1, round(wanted.fps)), OVERLAY_CRF)
    print(f"{title}: {num_frames} frames, {100 * np.mean(rates):.1f} % of patches reused\n{job.out}")


def reusing_configs(results: StorePath) -> list[MethodConfig]:
    """Return the settings that the run chose and that reuse between frames, ReuseViT's first.

    Raises:
        ValueError: The run has chosen none.
    """
    path = results / "store" / "chosen.json"
    if not is_file(path):
        raise ValueError(f"chosen settings: got no {path}, expected what a sweep chose; run the sweep stage first")
    rows = json.loads(path.read_text(encoding="utf-8"))
    configs = [config_from_dict(at_home(row, results)) for row in rows]
    found: list[MethodConfig] = [config for kind in REUSING for config in configs if isinstance(config, kind)]
    if not found:
        names = ", ".join(kind.method for kind in REUSING)
        raise ValueError(f"chosen settings: got none that reuses between frames, expected one of {names}; sweep one")
    return found


def at_home(row: dict[str, Any], results: StorePath) -> dict[str, Any]:
    """Point add-on weights into this results folder where it has been moved since the run."""
    weights = store_path(row["weights"]) if row.get("weights") else None
    if weights is None or is_file(weights):
        return row
    moved = results / "store" / "addons" / weights.parent.name / weights.name
    return row | {"weights": str(moved)} if is_file(moved) else row


def choose(
    results: StorePath, configs: list[MethodConfig], wanted: str | None, max_loss: float = MAX_LOSS
) -> MethodConfig:
    """Return the setting that was asked for, else the headline's of the first method.

    Raises:
        ValueError: No setting, or more than one, has that name.
    """
    if wanted is not None:
        fits = [one for one in configs if wanted in (one.setting, f"{one.method} {one.setting}")]
        if len(fits) != 1:
            names = ", ".join(f"{one.method} {one.setting}" for one in configs)
            raise ValueError(f"--setting: got {wanted!r}, which names {len(fits)}, expected one of {names}; name one")
        return fits[0]
    path = results / "pareto.csv"
    points = read_pareto_csv(path, NEEDED) if is_file(path) else []
    within = best_within(points, quality_of(points), "flops_reduction", max_loss=max_loss) if points else {}
    best = within.get(configs[0].method)
    named = [one for one in configs if best and (one.method, one.setting) == (best.method, best.setting)]
    return (named or configs)[0]


if __name__ == "__main__":
    sys.exit(main())
