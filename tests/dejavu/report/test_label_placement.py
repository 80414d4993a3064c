from __future__ import annotations

import numpy as np

from dejavu.report.label_placement import Box, Room, place

NONE = np.empty((0, 2))
FRAME = Box(0, 0, 400, 300)


def test_in_an_empty_room_a_label_stands_close_and_free() -> None:
    spot = place((60, 12), [(200.0, 150.0)], Room(FRAME, NONE, NONE))
    assert spot.cost == 0
    nearest = spot.box.nearest((200.0, 150.0))
    assert 4 < np.hypot(nearest[0] - 200, nearest[1] - 150) <= 13


def test_marks_labels_and_the_frame_are_kept_clear_of() -> None:
    # A corner: the frame ends at the right, marks lie above, a label at the left; only below is free.
    marks = np.array([[x, 270.0] for x in range(300, 400, 4)])
    room = Room(FRAME, marks, NONE, labels=[Box(280, 235, 375, 262)])
    spot = place((60, 12), [(390.0, 250.0)], room)
    assert spot.cost == 0
    assert spot.box.right <= FRAME.right
    assert spot.box.overlap(room.labels[0]) == 0
    assert spot.box.count(marks, margin=8) == 0


def test_the_first_anchor_is_taken_while_it_has_room_and_another_when_not() -> None:
    wall = np.array([[x, y] for x in range(0, 200, 6) for y in range(0, 300, 6)], dtype=float)
    anchors = [(100.0, 150.0), (300.0, 150.0)]
    assert place((60, 12), anchors, Room(FRAME, NONE, NONE)).anchor == anchors[0]
    assert place((60, 12), anchors, Room(FRAME, wall, NONE)).anchor == anchors[1]


def test_many_labels_at_one_point_do_not_overlap() -> None:
    room = Room(FRAME, np.array([[200.0, 150.0]]), NONE)
    for _ in range(6):
        room.labels.append(place((60, 12), [(200.0, 150.0)], room).box)
    pairs = [(a, b) for i, a in enumerate(room.labels) for b in room.labels[:i]]
    assert all(a.overlap(b) == 0 for a, b in pairs)
