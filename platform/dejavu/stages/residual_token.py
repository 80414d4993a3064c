"""Fit ResidualViT's token for one backbone on training clips: one Ray task, the store's dense embeddings as teacher.

<store>/tokens/<backbone>/<id>.safetensors   the token's weights
<store>/tokens/<backbone>/<id>.json          what they are worth on validation clips; written last
<store>/tokens/<backbone>/latest.json        those of the last fit, for stages that run by themselves
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Final

import ray

from dejavu.backbones.load import Backbone, load_backbone
from dejavu.cluster.cluster import PROCESS_BYTES
from dejavu.embedding.batch import EmbedContext
from dejavu.embedding.stored import clips_identity
from dejavu.embedding.windows import SHUFFLED_WINDOWS, Window, open_windows, to_batch
from dejavu.embedding.worker_memory import tower_bytes
from dejavu.observability.metrics import Step, failed, first_line, metered
from dejavu.records import Failure, Transcoded
from dejavu.stages.train import long_enough
from dejavu.stages.train_task import TrainError, within_memory
from dejavu.storage.setting import Setting, kernel_version
from dejavu.storage.store import atomic, identity, write_json
from dejavu.storage.store_path import StorePath, is_file
from reuse_models.baselines.residual_vit.fit import Pairs, TokenFitConfig, fit_tokenizer
from reuse_models.baselines.residual_vit.method import ResidualTokenizer, ResidualVitConfig, num_kept, save_tokenizer
from reuse_models.reusevit.frame_order import PUBLISHED_PATTERN
from reuse_models.tower.vit import Vit
from reuse_models.training.memory import return_large_blocks

STAGE: Final = "token"
MOST_APART = 3
"""Frames from a key frame to one that is learned from: a window has five such pairs."""
HELD_OUT_WINDOWS = 8
KEPT_INPUTS = 24
"""Bound on what the backward pass keeps of a token in a layer, in widths, the allocator's loss included."""


@dataclass(frozen=True, slots=True)
class TokenResult:
    """What the stage leaves."""

    weights: StorePath
    cosine: float | None
    """Of frames of validation clips to dense, mean over shares of patches; None without such clips."""
    cosine_without: float | None
    """The same without a token."""
    is_new: bool = False

    @property
    def config(self) -> ResidualVitConfig:
        """The method as it is worth using: without a token where that is better."""
        helps = self.cosine is None or self.cosine_without is None or self.cosine > self.cosine_without
        return ResidualVitConfig(weights=str(self.weights) if helps else None)


def fit_residual_token(
    clips: Mapping[str, Sequence[Transcoded]],
    original: Setting,
    backbone: Backbone,
    embedding: EmbedContext,
    config: TokenFitConfig,
) -> TokenResult:
    """Fit the token unless the store has it.

    Clips are by split, `train` and `val`; the dense embeddings of both must be in the store. The task loads the tower
    by `embedding.backbone`.

    Raises:
        TrainError: No training clip is long enough, no machine has the memory, or the loss is no number.
    """
    train, held_out = long_enough(clips["train"]), long_enough(clips.get("val", ()))
    parts: dict[str, Any] = {
        "clips": clips_identity(train),
        "judges": clips_identity(held_out),
        "teacher": original.setting_id,
    }
    parts |= {"config": asdict(config), "code": kernel_version(fit_tokenizer.__module__)}
    folder = _folder(embedding, backbone)
    weights = folder / f"{identity(parts)}.safetensors"
    is_new = not is_file(weights.with_suffix(".json"))
    if is_new:
        if not train:
            raise TrainError(
                "residual token: got no training clip of 13 frames or more, expected one; give longer videos"
            )
        needed = check_memory(backbone.vit, config)
        gpus = min(1, ray.cluster_resources().get("GPU", 0))
        task = ray.remote(_fit).options(num_cpus=1, num_gpus=gpus, memory=needed)
        outcome = ray.get(task.remote(train, held_out, original, embedding, config))
        if isinstance(outcome, str):
            raise TrainError(outcome)
        tokenizer, note, unreadable = outcome
        with atomic(weights) as temporary:
            save_tokenizer(tokenizer, temporary)
        write_json(weights.with_suffix(".json"), note)
        embedding.store.write_failures(STAGE, unreadable)
        failed(unreadable)
    write_json(folder / "latest.json", weights.name)
    return _read(weights, is_new=is_new)


def read_residual_token(embedding: EmbedContext, backbone: Backbone) -> TokenResult | None:
    """Return what the last fit for this backbone left in this results folder; nothing where there was none."""
    latest = _folder(embedding, backbone) / "latest.json"
    return _read(latest.with_name(json.loads(latest.read_text(encoding="utf-8")))) if is_file(latest) else None


def _read(weights: StorePath, *, is_new: bool = False) -> TokenResult:
    note = json.loads(weights.with_suffix(".json").read_text(encoding="utf-8"))
    return TokenResult(weights, note["cosine"], note["cosine_without"], is_new)


def _folder(embedding: EmbedContext, backbone: Backbone) -> StorePath:
    return embedding.store.root.resolve() / "tokens" / backbone.identity[:12]


def task_bytes(vit: Vit, config: TokenFitConfig) -> int:
    """Bound the memory of the task: interpreter, tower while it is loaded, frames, and one window's backward pass."""
    shape = vit.shape
    kept = shape.num_prefix + 1 + max(num_kept(shape, keep) for keep in config.keeps)
    backward = 4 * KEPT_INPUTS * shape.width * shape.num_layers * kept * len(PAIRS)
    windows = (SHUFFLED_WINDOWS + config.windows_per_step + HELD_OUT_WINDOWS) * len(PUBLISHED_PATTERN)
    frames = windows * 3 * shape.image_px**2 + 4 * config.windows_per_step * 4 * 3 * shape.image_px**2 * 6
    return PROCESS_BYTES + 2 * tower_bytes(vit) + backward + frames


def check_memory(vit: Vit, config: TokenFitConfig) -> int:
    """Return the bytes of the task.

    Raises:
        TrainError: No machine has as many.
    """
    advice = "lower --residual.keeps, or leave residualvit out of --sweep.methods"
    return within_memory(task_bytes(vit, config), "residual token", "", advice)


def apart(frames: Sequence[int], most: int) -> list[tuple[int, int]]:
    """Return places (key, other) of all frames that follow another at most so far behind."""
    places = itertools.permutations(range(len(frames)), 2)
    return [(key, other) for key, other in places if 0 < frames[other] - frames[key] <= most]


PAIRS = apart([step.frame for step in PUBLISHED_PATTERN], MOST_APART)
"""Of a window."""


def pairs_of(window: Window, backbone: Backbone) -> Pairs:
    """Return the frames of a window beside those shortly before them."""
    batch = to_batch([window], backbone)
    keys, others = zip(*PAIRS, strict=True)
    pixels_F3HW, dense_FE = batch.pixels_CF3HW[0], batch.teacher.embeddings_CFE[0]
    return Pairs(pixels_F3HW[list(others)], pixels_F3HW[list(keys)], dense_FE[list(keys)], dense_FE[list(others)])


Outcome = tuple[ResidualTokenizer, Mapping[str, float | None], list[Failure]] | str
"""The token, its worth and which clips could not be read; or in one line why there are none."""


def _fit(
    train: Sequence[Transcoded],
    held_out: Sequence[Transcoded],
    original: Setting,
    embedding: EmbedContext,
    config: TokenFitConfig,
) -> Outcome:
    return_large_blocks()  # the bound on this task's memory says so
    backbone = load_backbone(embedding.backbone, embedding.image_px, device="auto")
    stream, judges = (open_windows(embedding, original, clips) for clips in (train, held_out))

    def steps() -> Iterator[list[Pairs]]:
        windows = stream.shuffled(config.seed)
        while True:
            yield [pairs_of(next(windows), backbone) for _ in range(config.windows_per_step)]

    try:
        judged = [pairs_of(window, backbone) for window in judges.first(HELD_OUT_WINDOWS)]
        with metered(Step(stage="train", step=STAGE)) as done:
            found = fit_tokenizer(backbone.vit, steps(), judged, config)
            done.num_frames = frames_seen(config)
    except ValueError as error:
        return first_line(error)
    cosines = (found.cosine, found.cosine_without) if judged else (None, None)
    worth = dict(zip(("cosine", "cosine_without"), cosines, strict=True))
    return found.tokenizer.cpu(), worth, [*stream.failures.values(), *judges.failures.values()]


def frames_seen(config: TokenFitConfig) -> int:
    """Return how many frames a fit computes, each with some of its patches."""
    return config.steps * config.windows_per_step * len(PAIRS)
