from __future__ import annotations

from dejavu.cluster.ray_map import waves


def test_waves_hold_every_item_once_in_order() -> None:
    assert [list(wave) for wave in waves(range(5), 2)] == [[0, 1], [2, 3], [4]]
    assert list(waves((), 2)) == []
