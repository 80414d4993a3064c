"""Find moments in a stored collection by text: `python jobs/search.py "a red circle leaves" --store DIR`.

Prints one line per hit: video, seconds, score. With `--videos DIR`, new videos are transcoded and embedded first; what
is already in the store is left untouched. See docs/search.md.
"""

import _bootstrap  # noqa: F401  first: makes the packages importable

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import yaml
from numpy.typing import ArrayLike

from dejavu.cluster import cluster
from dejavu.cluster.no_error import without_advice
from dejavu.backbones.load import EMBEDDED, Backbone, load_backbone
from dejavu.backbones.locate import DRAWINGS_ALONE, locate
from dejavu.retrieval.contact_sheet import Tile, draw_contact_sheet
from dejavu.datasets.video_folder import clips_by_name, passed_over
from dejavu.experiment import RECIPES
from dejavu.storage.one_line import exit_status
from dejavu.storage.results_folder import read_config
from dejavu.storage.store_path import StorePath, is_file, is_folder, listed, store_path
from dejavu.records import Failure
from dejavu.retrieval.search import Frames, Moment, MomentConfig, find_moments
from dejavu.storage.setting import Setting, name_setting
from dejavu.embedding.batch import EmbedConfig, EmbedContext, cut
from dejavu.retrieval.collect import StoredSetting, find_kept, list_settings, look_up, read_frames
from dejavu.stages.embed import embed_clips
from dejavu.embedding.memory import shrink_to_memory
from dejavu.storage.failed import say_odd, write_failures_csv, write_odd_csv
from dejavu.retrieval.frame_index import INDEX_FROM_FRAMES, count_frames, has_faiss, open_index
from dejavu.stages.transcode import transcode_clips
from dejavu.storage.store import Store, local_copy, write_json, write_text
from dejavu.tasks.zero_shot import USUAL_SHARE
from dejavu.video.decode import decode
from dejavu.video.mp4 import TranscodeConfig
from dejavu.video.source import VideoError
from reuse_models.method import MethodConfig
from reuse_models.baselines.original import OriginalConfig
from reuse_models.registry import config_from_dict


@dataclass(frozen=True, slots=True)
class Collection:
    """A results folder, or one that is about to become one, and how its clips are cut and embedded."""

    results: StorePath
    store: Store
    backbone: str
    transcode: TranscodeConfig
    embed: EmbedConfig
    image_px: int | None


def say(text: str) -> None:
    """Print what is not a hit."""
    print(text, file=sys.stderr, flush=True)


# ---------------------------------------------------------------------------------------------------- the collection
def open_collection(folder: StorePath, backbone: str | None, videos: StorePath | None) -> Collection:
    """Open a results folder (or the `store` inside it) as its own config.yaml says; begin one where videos are given.

    Raises:
        ValueError: There is no store and no videos to begin one with.
    """
    results = folder.parent if folder.name == "store" and is_folder(folder / "embeddings") else folder
    if not is_folder(results / "store" / "embeddings"):
        if videos is None:
            raise ValueError(
                f"--store: got {folder} without store/embeddings, expected a results folder; run a pipeline with "
                "--results there, or give --videos to begin a collection"
            )
        clips_by_name(videos)  # before anything is written
        store = Store.open(results / "store")
        if not is_file(results / "config.yaml"):
            if (backbone or EMBEDDED) == EMBEDDED:
                print(DRAWINGS_ALONE, file=sys.stderr, flush=True)
            recipe = replace(
                RECIPES["folder"][1], videos=videos.absolute(), backbone=backbone or EMBEDDED, embed=EmbedConfig()
            )
            write_text(results / "config.yaml", recipe.to_yaml())
    else:
        store = Store(results / "store")
    config = read_config(results)
    return Collection(
        results,
        store,
        backbone or config.get("backbone", EMBEDDED),
        TranscodeConfig(**config.get("transcode", {})),
        _embed_config(config.get("embed", {})),
        config.get("image_px"),
    )


def _embed_config(written: dict[str, Any]) -> EmbedConfig:
    """Read how a run embeds; one that has not come to it has chosen no precision."""
    config = EmbedConfig(**written)
    return replace(config, precision="float32") if config.precision == "auto" else config


def check_backbone(collection: Collection, backbone: Backbone) -> None:
    """Refuse a backbone that the store's embeddings were not made with.

    Raises:
        ValueError: They were made with another.
    """
    made_with = {str(note["backbone_identity"]): note["backbone"] for note in collection.store.described().values()}
    if not made_with and (config := read_config(collection.results)):
        name = config.get("backbone", EMBEDDED)
        made_with = {backbone.identity if name == backbone.name else locate(name).identity(collection.image_px): name}
    if made_with and backbone.identity not in made_with:
        raise ValueError(
            f"--backbone: got {backbone.name}, expected {' or '.join(sorted(set(made_with.values())))}, with which the "
            "embeddings of this store were made; leave it out, or use another --store"
        )


def stored_settings(collection: Collection, backbone: Backbone) -> list[StoredSetting]:
    """List what is embedded on this backbone; a store of an older version is asked for Original and what it chose."""
    configs: list[MethodConfig] = [OriginalConfig()]
    chosen = collection.store.root / "chosen.json"
    if is_file(chosen):
        configs += [config_from_dict(row) for row in json.loads(chosen.read_text(encoding="utf-8"))]
    named = [
        StoredSetting(name(config, collection, backbone), backbone.name)
        for config in configs
        # A name needs the weights' content.
        if not (weights := getattr(config, "weights", None)) or is_file(store_path(weights))
    ]
    found = list_settings(collection.store, named)
    return [stored for stored in found if stored.setting.backbone_identity == backbone.identity]


def name(config: MethodConfig, collection: Collection, backbone: Backbone) -> Setting:
    """Name a method's config on this backbone."""
    return name_setting(config, backbone.identity, collection.embed.shaping())


def choose_setting(words: str, stored: Sequence[StoredSetting]) -> MethodConfig:
    """Read a setting: a method (`original`), its setting as pareto.csv has it, or the fields of its config.

    Raises:
        ValueError: Method or field is unknown, or a method alone has several settings stored.
    """
    method, *rest = words.split() or [""]
    fitting = [one for one in stored if one.name == " ".join(words.split())]
    if not fitting and not rest:
        fitting = [one for one in stored if one.setting.method == method]
    if len({one.name for one in fitting}) > 1:
        names = ", ".join(repr(name) for name in sorted({one.name for one in fitting}))
        raise ValueError(f"--setting: got {words!r}, expected one of {names}; name one of them")
    if fitting:
        return fitting[0].setting.config
    if method == OriginalConfig.method and rest == ["dense"]:
        rest = []
    if lacking := [word for word in rest if "=" not in word]:
        raise ValueError(
            f"--setting: got {lacking[0]!r} in {words!r}, expected field=value; give a method and its fields, such as "
            "'eventful refreshed_tokens=16'"
        )
    values = {key: yaml.safe_load(value) for key, _, value in (word.partition("=") for word in rest)}
    return config_from_dict({"method": method, **values})


# ---------------------------------------------------------------------------------------------------- new videos
def add_videos(videos: StorePath, collection: Collection, settings: Sequence[Setting]) -> None:
    """Transcode and embed what the store lacks under every one of these settings, with the first of them."""
    clips = tuple(clips_by_name(videos).values())
    backbone = load_backbone(collection.backbone, collection.image_px)
    px, view = backbone.frame_px, backbone.preprocess.view
    known = transcode_clips(clips, collection.store, collection.transcode, px, view=view, make=None).clips
    failures: list[Failure] = []
    if len(known) < len(clips):
        cluster.connect()
        made = transcode_clips(clips, collection.store, collection.transcode, px, view=view)
        known, failures = made.clips, [*made.failures]
    done = {unit for setting in settings for unit in collection.store.done(setting.setting_id)}
    lacking = [
        clip
        for clip in known.values()
        if any(segment.unit_id not in done for segment in cut([clip], collection.embed.segment_frames))
    ]
    if lacking:
        cluster.connect()
        pool = cluster.actor_pool(None, None)
        embedding = EmbedContext(collection.backbone, collection.store, collection.embed, collection.image_px)
        embedding, pool = shrink_to_memory(backbone, settings[:1], embedding, pool)
        failures += embed_clips(lacking, settings[:1], embedding, pool, "search").failures
    if failures:
        write_failures_csv(collection.store, collection.results / "failures.csv")
    odd = say_odd(write_odd_csv(known.values(), collection.results))
    failed = {failure.clip_id for failure in failures}
    say(f"videos: {len(clips)} in {videos}, {len(lacking)} embedded now, {len(failed)} failed")
    if others := passed_over(videos):
        say(f"  passed over, no videos by their endings: {others}")
    for failure in failures:
        say(f"  {failure.clip_id}  {failure.stage}  {failure.reason}")
    for line in odd:
        say(f"  {line}")


# ---------------------------------------------------------------------------------------------------- the search
def search(arguments: argparse.Namespace) -> None:
    """Find and print the best moments, having embedded new videos where asked to.

    Raises:
        ValueError: The query is empty, or the store lacks what is asked for.
    """
    query = arguments.query.strip()
    if not query:
        raise ValueError("query: got nothing, expected words; say what is to be seen, such as 'a red circle'")
    config = MomentConfig(top=arguments.top, merge_s=arguments.merge_s, usual_share=arguments.usual_share)
    collection = open_collection(arguments.store, arguments.backbone, arguments.videos)
    backbone = load_backbone(collection.backbone, collection.image_px)
    check_backbone(collection, backbone)
    query_E = backbone.embed_texts([query])[0].numpy()
    stored = stored_settings(collection, backbone)
    method = choose_setting(arguments.setting, stored)
    current = name(method, collection, backbone)
    # Embeddings that an earlier version of the code made are as good as they were, so they are searched as well.
    same = [one.setting for one in stored if one.name == f"{current.method} {current.label}"]
    settings = [current, *(setting for setting in same if setting != current)]
    if arguments.videos is not None:
        add_videos(arguments.videos, collection, settings)
    elif not any(collection.store.done(setting.setting_id) for setting in settings):
        raise ValueError(
            f"--setting: got {arguments.setting!r}, expected one that is embedded in {collection.results}: "
            f"{list_names(stored, collection.store)}; name one of them, or give --videos to embed with it"
        )
    frames = read_worthwhile(collection.store, settings, query_E, config, always_indexed=arguments.index)
    if arguments.gone == "drop":
        found = find_kept(frames, query_E, config, collection.store)
    else:
        found = look_up(find_moments(frames, query_E, config), collection.store)
    if num_gone := sum(hit.gone for hit in found):
        say(f"{num_gone} of the hits are in videos that are no longer where they were; --gone drop leaves these out")
    say(f"searched {len(frames.seconds_R)} frames of {len(frames.clip_ids)} videos, {method.method} {method.setting}")
    if arguments.json:
        write_json(
            arguments.json, {"query": query, "setting": arguments.setting, "hits": [asdict(hit) for hit in found]}
        )
    for line in lines(found):
        print(line)
    if arguments.contact_sheet:
        draw_hits(found, collection.store, arguments.contact_sheet, f"{query}   ·   {method.method} {method.setting}")


def read_worthwhile(
    store: Store, settings: Sequence[Setting], query_E: ArrayLike, config: MomentConfig, *, always_indexed: bool
) -> Frames:
    """Read all frames of a collection; of a large one, or where asked to, those of the clips that an index names."""
    num_frames = count_frames(store, settings)
    if not always_indexed and num_frames <= INDEX_FROM_FRAMES:
        return read_frames(store, settings)
    if not has_faiss():
        say(f"index: got no faiss, expected it for {num_frames} frames; searching exactly, pip install faiss-cpu")
        return read_frames(store, settings)
    likely = open_index(store, settings, config.usual_share).likely(query_E, config.top)
    say(f"index: of {num_frames} frames, those of {len(likely.content_ids)} likely videos are read")
    return read_frames(store, settings, likely)


def list_names(stored: Sequence[StoredSetting], store: Store) -> str:
    """Return the names of stored settings, and how many there are whose name is lost."""
    names = [repr(name) for name in sorted({one.name for one in stored})]
    named = {one.setting.setting_id for one in stored}
    lost = {path.parent.name for path in listed(store.root / "embeddings", "*/*.parquet")} - named
    if lost:
        names.append(f"{len(lost)} that another version of the code or another backbone left without a name")
    return ", ".join(names) or "none at all"


def lines(found: Sequence[Moment]) -> list[str]:
    """Return one line per hit: video, seconds, score."""
    width = max((len(hit.clip_id) for hit in found), default=0)
    return [
        f"{hit.clip_id:<{width}}  {hit.seconds:8.1f} s  {hit.score:7.4f}"
        f"{'  damaged here' * hit.concealed}{'  gone' * hit.gone}"
        for hit in found
    ]


def draw_hits(found: Sequence[Moment], store: Store, path: Path, title: str) -> None:
    """Draw each hit's frame with its place in the list, its score, its video and its time."""
    tiles = []
    for rank, hit in enumerate(found, 1):
        rgb = None
        try:
            with local_copy(store.mp4_path(hit.content_id)) as mp4:
                rgb = next(decode(mp4, start=hit.frame, count=1)).rgb_FHWC[0]
        except (VideoError, OSError, StopIteration) as error:
            say(f"contact sheet: got no picture of {hit.clip_id} at {hit.seconds:.1f} s ({error}); its tile is empty")
        seen = f"{hit.seconds:.1f} s ({hit.start_s:.1f} to {hit.end_s:.1f})"
        shown = hit.clip_id if len(hit.clip_id) <= 24 else f"{hit.clip_id[:23]}…"
        tiles.append(Tile(rgb, f"{rank}.  {hit.score:.3f}  {seen}", shown))
    draw_contact_sheet(tiles, path, title=title)


def parse(words: Sequence[str]) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        prog="python jobs/search.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("query", help="text that describes what to find")
    parser.add_argument(
        "--store", type=store_path, required=True, help="results folder to search; with --videos, created if absent"
    )
    parser.add_argument("--top", type=int, default=10, help="maximum number of hits (default 10)")
    parser.add_argument(
        "--setting", default="original", help="stored method, with its setting if it has several (default original)"
    )
    parser.add_argument("--videos", type=store_path, help="folder of videos; new ones are embedded first")
    parser.add_argument("--backbone", help="backbone as in the pipeline; default: the store's")
    parser.add_argument("--merge-s", type=float, default=5.0, help="seconds within which hits are merged (default 5)")
    parser.add_argument(
        "--usual-share",
        type=float,
        default=USUAL_SHARE,
        help="share of a video's median cosine subtracted from its frames' (default %(default)s; 0: plain cosine)",
    )
    parser.add_argument(
        "--index", action="store_true", help=f"also use an index below {INDEX_FROM_FRAMES:,} frames; see docs/search.md"
    )
    parser.add_argument(
        "--gone",
        choices=("keep", "drop"),
        default="keep",
        help="what to do with videos removed since: find them and mark them as gone (default), or leave them out",
    )
    parser.add_argument("--contact-sheet", type=Path, metavar="PNG", help="image of the hits' frames to write")
    parser.add_argument("--json", type=Path, metavar="FILE", help="file for the hits with their spans and frames")
    return parser.parse_args(words)


def main() -> int:
    """Search; return the exit status."""
    return exit_status(lambda: search(parse(sys.argv[1:])))


if __name__ == "__main__":
    with without_advice():
        sys.exit(main())
