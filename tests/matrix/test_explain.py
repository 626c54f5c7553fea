"""The search for a serial order accepts what one owner can have done, and nothing else."""

from __future__ import annotations

from typing import Any

import pytest

from dgents.testing.lives.explain import Explanation, Found
from dgents.testing.lives.record import Fate, Record

NOTHING = Found()
ONE, TWO = ({"by": n, "items": list(range(1, n + 1)), "f": {}} for n in (1, 2))
SAVED = {"by": 3, "items": [], "f": {}}


def wrote(n: int, start: int, end: int | None, fate: Fate = "must", **fields: Any) -> Record:
    return Record(fields.pop("do", "update"), n, start, end, fate, **fields)


def read(state: Any, start: int, end: int) -> Record:
    return Record("load", 0, start, end, "seen", ("state", state))


def found(version: int, state: Any, window: int = 1, **kept: Any) -> Found:
    return Found(version, state, {int(key[1:]): value for key, value in kept.items()}, window)


def explained(records: list[Record], after: Found, lossy: frozenset[int] = frozenset()) -> bool:
    return Explanation(NOTHING, records, after, {}, lossy).ok


def test_what_was_acknowledged_is_there() -> None:
    assert explained([wrote(1, 1, 2)], found(1, ONE))
    assert not explained([wrote(1, 1, 2)], NOTHING)


def test_what_was_refused_is_not_there() -> None:
    assert explained([wrote(1, 1, 2, "never")], NOTHING)
    assert not explained([wrote(1, 1, 2, "never")], found(1, ONE))


@pytest.mark.parametrize("after", [NOTHING, found(1, ONE)])
def test_of_what_is_not_known_either_may_be(after: Found) -> None:
    assert explained([wrote(1, 1, 2, "may")], after)


def test_nothing_is_there_twice() -> None:
    assert not explained([wrote(1, 1, 2)], found(2, {"by": 1, "items": [1, 1], "f": {}}))


def test_who_was_answered_first_comes_first() -> None:
    assert explained([wrote(1, 1, 2), wrote(2, 3, 4)], found(2, TWO))
    assert not explained([wrote(2, 1, 2), wrote(1, 3, 4)], found(2, TWO))
    assert explained([wrote(2, 1, 3), wrote(1, 2, 4)], found(2, TWO))


def test_a_read_shows_what_was_acknowledged_before_it() -> None:
    assert explained([wrote(1, 1, 2), read(ONE, 3, 4)], found(1, ONE))
    assert not explained([wrote(1, 1, 2), read(None, 3, 4)], found(1, ONE))
    assert explained([wrote(1, 1, 4), read(None, 2, 3)], found(1, ONE))


def test_a_read_shows_nothing_that_was_undone() -> None:
    assert not explained([wrote(1, 1, 4, "never"), read(ONE, 2, 3)], NOTHING)


def test_a_reply_names_the_version_that_it_made() -> None:
    records = [wrote(1, 1, 2), wrote(3, 3, 4, do="save", saw=("version", 2))]
    assert explained(records, found(2, SAVED))
    assert not explained([wrote(3, 3, 4, do="save", saw=("version", 2))], found(1, SAVED))


def test_a_kept_history_has_every_version() -> None:
    records = [wrote(1, 1, 2), wrote(2, 3, 4)]
    assert explained(records, found(2, TWO, 100, v1=ONE, v2=TWO))
    assert not explained(records, found(2, TWO, 100, v2=TWO))


def test_a_deletion_is_a_version_without_a_state() -> None:
    records = [wrote(1, 1, 2), wrote(4, 3, 4, do="delete")]
    assert explained(records, found(2, None, 100, v1=ONE))
    assert not explained(records[:1], found(2, None, 100, v1=ONE))


def test_a_deletion_of_nothing_makes_no_version() -> None:
    assert explained([wrote(4, 1, 2, do="delete"), wrote(1, 3, 4)], found(1, ONE))


def test_a_request_is_applied_once_and_answered_alike() -> None:
    again = [wrote(3, start, start + 1, do="save", saw=("version", 1), request=True) for start in (1, 3)]
    assert explained(again, found(1, SAVED))
    assert not explained(again, found(2, SAVED))


def test_a_crash_takes_the_last_ones_only() -> None:
    records = [wrote(1, 1, 2), wrote(2, 3, 4)]
    lossy = frozenset({1, 3})
    assert explained(records, found(1, ONE), lossy)
    assert explained(records, NOTHING, lossy)
    assert not explained(records, found(1, {"by": 2, "items": [2], "f": {}}), lossy)


def test_two_ways_to_one_state_differ_in_what_a_request_was_answered() -> None:
    both = {"by": 2, "items": [1, 2], "f": {}}
    records = [
        wrote(1, 1, 2),
        wrote(2, 3, None, "may", request=True),  # its caller left: it may be before the deletion, or after it
        wrote(0, 5, 6, do="delete"),
        wrote(9, 7, 8, do="save"),
        wrote(3, 9, 10, do="save"),
    ]
    assert explained([*records, wrote(2, 11, 12, request=True, saw=("state", both))], found(5, SAVED))
    assert not explained([*records, wrote(2, 11, 12, request=True, saw=("state", SAVED))], found(5, SAVED))


def test_a_reminder_of_which_nothing_is_left_may_ring_yet() -> None:
    ringing, left = wrote(2, 3, None, "may", do="remind"), wrote(7, 4, None, "may")  # one of them has made version 2
    records = [wrote(1, 1, 2), ringing, left, wrote(9, 5, 6, do="save"), wrote(3, 7, 8, do="save")]
    explanation = Explanation(NOTHING, records, found(4, SAVED), {})
    assert explanation.ok
    assert ringing in explanation.open
