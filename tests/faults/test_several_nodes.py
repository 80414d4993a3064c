"""Several machines give what one gives."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from dejavu.backbones.load import load_backbone
from dejavu.embedding.batch import EmbedConfig, EmbedContext, decode_batch, plan
from dejavu.embedding.stored import read_embeddings
from dejavu.experiment import RECIPES
from dejavu.stages.embed import EncodeRow
from dejavu.stages.prepare import draw_world
from dejavu.stages.score import build_eval_set, score_settings
from dejavu.stages.transcode import transcode_clips
from dejavu.storage.setting import name_setting
from dejavu.storage.store import Store
from dejavu.sweep.study import read_chosen
from dejavu.tasks.fidelity import frame_cosines
from reuse_models.baselines.original import OriginalConfig

pytestmark = [pytest.mark.faults, pytest.mark.ray, pytest.mark.slow]


def test_three_machines_give_the_same_bits_as_one(
    bench: Any, undisturbed: Path, same: Callable[..., None], tmp_path: Path
) -> None:
    """One machine made the undisturbed results; batches are composed by content, not by where they are encoded."""
    nodes = [bench.add_node(num_cpus=1) for _ in range(2)]
    results = bench.undone(undisturbed, tmp_path / "results", "embed")
    driver = bench.start(results)
    bench.wait(driver, results, lambda: any(bench.workers("EncodeRow", node.pid) for node in nodes))
    bench.finish(driver, results)
    for node in nodes:
        bench.kill_node(node)
    same(results, tolerance=0.0)


def test_other_batches_change_rounding_alone(undisturbed: Path, tmp_path: Path) -> None:
    """As when a run is resumed with other streams: every frame stays close, and so do the scores."""
    experiment, backbone, theirs = RECIPES["tiny"][1], load_backbone(), Store(undisturbed / "store")
    dataset, _ = draw_world(undisturbed / "world", experiment.synthetic)
    test = [clip for clip in dataset.clips if clip.split == "test"][:4]
    clips = list(transcode_clips(test, theirs, experiment.transcode, backbone.frame_px, make=None).clips.values())
    store = Store.open(tmp_path / "store")
    store.mp4_dir.symlink_to(theirs.mp4_dir)
    one, other = (
        EmbedContext("embedded", where, EmbedConfig(streams=streams)) for where, streams in ((theirs, 2), (store, 3))
    )

    def name(config: Any) -> Any:
        return name_setting(config, backbone.identity, one.config.shaping())

    original = name(OriginalConfig())
    settings = [original, *read_chosen(theirs, name)]
    encoder = EncodeRow(other)
    for batch in plan(clips, settings, other):
        decoded = decode_batch(batch.segments, other)
        for setting in batch.settings:
            encoder.encode(setting, decoded)

    for setting in settings:
        expected, found = (read_embeddings(embedding, setting, clips) for embedding in (one, other))
        assert found.keys() == expected.keys() == {clip.clip_id for clip in clips}
        for clip_id, frames in found.items():
            assert frame_cosines(frames.embeddings_FE, expected[clip_id].embeddings_FE).min() >= 0.999
    eval_set = build_eval_set(clips, dataset.questions, backbone.embed_texts, experiment.prompt)
    pairs = zip(*(score_settings(settings, original, eval_set, embedding) for embedding in (one, other)), strict=True)
    for expected, found in pairs:
        assert found.task.acc_qa == pytest.approx(expected.task.acc_qa, abs=0.001)
        assert found.task.acc_gqa == pytest.approx(expected.task.acc_gqa, abs=0.001)
