"""What a task has seen is bounded: the oldest is forgotten, never what was noted last."""

from __future__ import annotations

import pytest

from dgents.runtime import seen
from dgents.runtime.seen import Seen


@pytest.fixture(autouse=True)
def bound(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(seen, "MOST_REMEMBERED", 32)


def test_the_oldest_are_forgotten_some_at_a_time() -> None:
    known = Seen()
    for number in range(33):
        known.note(number, 1)

    assert list(known) == list(range(2, 33))


def test_it_never_grows_beyond_its_bound_and_knows_the_newest() -> None:
    known = Seen()
    for number in range(1_000):
        known.note(number, number)

        assert len(known) <= 32
        assert known[number] == number


def test_what_is_noted_again_is_not_forgotten_for_having_come_first() -> None:
    known = Seen()
    for number in range(40):
        known[number] = 1  # as a turn in its sender's task does, which doesn't count
    known.note(0, 2)

    assert known[0] == 2
