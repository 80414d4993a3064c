"""A path or an address as a person gives it on a command line."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import tyro
from upath import UPath

from dejavu.storage.store_path import store_path

GivenPath = Annotated[
    Path | UPath,
    tyro.constructors.PrimitiveConstructorSpec(
        nargs=1,
        metavar="PATH",
        instance_from_str=lambda texts: store_path(texts[0]),
        is_instance=lambda value: isinstance(value, Path | UPath),
        str_from_instance=lambda value: [str(value)],
    ),
]
"""As the type of a field that tyro reads: a local path or s3://bucket/prefix."""
