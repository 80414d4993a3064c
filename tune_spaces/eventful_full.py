"""The faithful Eventful: how many tokens each gate refreshes."""

from reuse_models.baselines.eventful_full import EventfulFullConfig
from tune_spaces import eventful
from tune_spaces.ranges import Ranges
from tune_spaces.tower import Density, Tower


def grid(tower: Tower, density: Density) -> tuple[EventfulFullConfig, ...]:
    """Return the same numbers of tokens as Eventful's grid."""
    return tuple(
        EventfulFullConfig(refreshed_tokens=config.refreshed_tokens) for config in eventful.grid(tower, density)
    )


def ranges(tower: Tower) -> Ranges:
    """Return the same numbers of tokens as Eventful's range."""
    return Ranges((EventfulFullConfig(),), eventful.ranges(tower).fields)
