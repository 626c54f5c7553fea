"""Parts of a state, changes to them, and stored bytes shown as JSON."""

from __future__ import annotations

import dataclasses
import datetime as dt
import json
from typing import Any

import msgpack
import numpy
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dgents.runtime.codec import Codec
from dgents.runtime.describe import describe
from dgents.runtime.errors import StateCorruptionError, StateNotFoundError, StateSerializationError
from dgents.runtime.patch import apply_patch, encode_patch, get_part, parse_path, set_part


@dataclasses.dataclass(frozen=True)
class Point:
    x: int


@pytest.mark.parametrize(
    ("path", "segments"),
    [
        ("a", ("a",)),
        ("users.u1.name", ("users", "u1", "name")),
        (r"a\.b.c", ("a.b", "c")),
        (r"a\\.b", ("a\\", "b")),
    ],
)
def test_a_path_is_split_at_its_dots(path: str, segments: tuple[str, ...]) -> None:
    assert parse_path(path) == segments


@pytest.mark.parametrize("path", ["", ".", "a..b", "a.", ".a", "a\\"])
def test_a_malformed_path_is_refused(path: str) -> None:
    with pytest.raises(ValueError, match="the path"):
        parse_path(path)


@given(st.lists(st.text(min_size=1), min_size=1))
def test_any_segments_can_be_written_as_a_path(segments: list[str]) -> None:
    path = ".".join(part.replace("\\", "\\\\").replace(".", "\\.") for part in segments)
    assert parse_path(path) == tuple(segments)


def test_a_part_is_read_where_it_was_put() -> None:
    tree: Any = {"users": [{"name": "Ada"}], "by": {7: 1}}
    set_part(tree, ("users", "0", "name"), "Eva")
    set_part(tree, ("users", "0", "age"), 3)
    set_part(tree, ("by", "7"), 2)
    assert get_part(tree, ("users", "0")) == {"name": "Eva", "age": 3}
    assert tree["by"] == {7: 2}


@pytest.mark.parametrize("path", ["a.x.y", "b.2", "b.-1", "b.x", "c.0", "b.٣.x"])
def test_nothing_is_put_where_there_is_no_place(path: str) -> None:
    tree = {"a": {}, "b": [1, 2], "c": 5}
    with pytest.raises(StateNotFoundError):
        set_part(tree, parse_path(path), 1)
    assert tree == {"a": {}, "b": [1, 2], "c": 5}


def test_a_missing_part_is_named_up_to_where_it_is_missing() -> None:
    with pytest.raises(StateNotFoundError, match=r"'users\.u1'"):
        get_part({"users": {}}, ("users", "u1", "name"))


def test_a_part_of_a_local_instance_is_a_field() -> None:
    codec: Codec[Any] = Codec(local=True)
    tree = codec.to_tree(codec.encode({"p": Point(1)}))
    set_part(tree, ("p", "x"), 2)
    assert codec.decode(codec.from_tree(tree)) == {"p": Point(2)}


def test_a_patch_makes_all_its_changes() -> None:
    tree: Any = {"a": 1, "b": {"c": [1, 2]}}
    apply_patch(tree, encode_patch({"a": (1, 2), "b.c.1": {3}, "new": {}, "new.x": 1}))
    assert tree == {"a": (1, 2), "b": {"c": [1, {3}]}, "new": {"x": 1}}


def test_a_patch_that_can_not_make_one_change_makes_none() -> None:
    tree: Any = {"a": 1, "b": [1]}
    with pytest.raises(StateNotFoundError):
        apply_patch(tree, encode_patch({"a": 2, "b.0": 5, "new": 1, "missing.x": 1}))
    assert tree == {"a": 1, "b": [1]}


@pytest.mark.parametrize("patch", [b"\xc1", b"\x01", b"\x81\x01\x01", b"\x82\xa1a\x02\xa0\x01"])
def test_a_damaged_patch_is_a_corruption_and_changes_nothing(patch: bytes) -> None:
    tree = {"a": 1}
    with pytest.raises(StateCorruptionError):
        apply_patch(tree, patch)
    assert tree == {"a": 1}


def test_a_patch_of_what_can_not_be_stored_is_refused() -> None:
    with pytest.raises(StateSerializationError):
        encode_patch({"a": print})


def test_stored_bytes_are_shown_as_json() -> None:
    state = {
        "t": (1, {2}),
        7: b"\x00",
        (1, 2): dt.date(2024, 1, 1),
        "nan": [float("nan"), float("inf")],
        "array": numpy.arange(2),
        "big": 2**70,
    }
    shown = describe(Codec().encode(state))
    assert json.loads(json.dumps(shown, allow_nan=False)) == {
        "t": [1, [2]],
        "7": {"$bytes": "AA=="},
        "[1, 2]": "2024-01-01",
        "nan": ["nan", "inf"],
        "array": [0, 1],
        "big": 2**70,
    }


def test_an_unknown_extension_is_shown_by_its_number() -> None:
    assert describe(msgpack.packb([msgpack.ExtType(99, b"x")])) == [{"$extension": 99, "$bytes": "eA=="}]


@pytest.mark.parametrize("data", [b"", b"\xc1", b"\x91" * 100_000])
def test_bytes_that_are_no_state_are_not_shown(data: bytes) -> None:
    with pytest.raises(StateCorruptionError):
        describe(data)
