"""Configs survive a round trip through JSON."""

from __future__ import annotations

import json

import pytest

from reuse_models.baselines.diffrate.method import DiffRateConfig
from reuse_models.baselines.eventful import EventfulConfig
from reuse_models.registry import METHODS, config_from_dict, config_to_dict


def test_every_method_is_known_by_its_name() -> None:
    for name, config in METHODS.items():
        assert config.method == name


def test_a_config_survives_json() -> None:
    for config in (
        EventfulConfig(refreshed_tokens=7),
        DiffRateConfig(prune_kept=(9, 5), merge_kept=(7, 4), size_aware=True),
    ):
        assert config_from_dict(json.loads(json.dumps(config_to_dict(config)))) == config


def test_every_method_with_defaults_survives_json() -> None:
    for name in METHODS:
        if name == "diffrate":  # has no default schedule: it belongs to a tower
            continue
        config = config_from_dict({"method": name})
        assert config_from_dict(json.loads(json.dumps(config_to_dict(config)))) == config
        assert config.setting


def test_unknown_names_are_refused() -> None:
    with pytest.raises(ValueError, match="method: got 'magic', expected one of original"):
        config_from_dict({"method": "magic"})
    with pytest.raises(ValueError, match="eventful: got unknown k"):
        config_from_dict({"method": "eventful", "k": 3})
    with pytest.raises(ValueError, match="every: got 0"):
        config_from_dict({"method": "frame_skip", "every": 0})
    with pytest.raises(ValueError, match="diffrate: lacks merge_kept, prune_kept"):
        config_from_dict({"method": "diffrate"})
