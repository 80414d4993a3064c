"""The faithful Eventful: how many tokens each gate refreshes."""

from reuse_models.baselines.eventful_full import EventfulFullConfig
from tune_spaces import eventful
from tune_spaces.grid_inputs import Density, GridInputs
from tune_spaces.ranges import Ranges


def grid(inputs: GridInputs, density: Density) -> tuple[EventfulFullConfig, ...]:
    """Return the same numbers of tokens as Eventful's grid."""
    return tuple(
        EventfulFullConfig(refreshed_tokens=config.refreshed_tokens) for config in eventful.grid(inputs, density)
    )


def ranges(inputs: GridInputs) -> Ranges:
    """Return the same numbers of tokens as Eventful's range."""
    return Ranges((EventfulFullConfig(),), eventful.ranges(inputs).fields)
