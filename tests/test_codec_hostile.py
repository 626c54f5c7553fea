"""Bytes that no codec wrote: a typed error, in bounded memory and time; and records of another schema."""

from __future__ import annotations

import dataclasses
import os
import random
import sys
import time
import tracemalloc
from typing import Any

import msgpack
import msgspec
import numpy  # noqa: F401 - else its import, on first use, would count as memory of a decode
import pytest
from hypothesis import HealthCheck, given, note, seed, settings
from hypothesis import strategies as st

from dgents.runtime.codec import Codec
from dgents.runtime.describe import describe
from dgents.runtime.errors import (
    StateCorruptionError,
    StateError,
    StateSerializationError,
    StateTooLargeError,
)


@dataclasses.dataclass
class Profile:
    name: str
    age: int = 0


class Mixed(msgspec.Struct):
    name: str
    extra: Any = None


SEED = int(os.environ.get("DGENTS_SEED") or random.randrange(2**32))
CODECS: list[Codec[Any]] = [Codec(), Codec(Profile), Codec(Mixed), Codec(list[int]), Codec(local=True)]


def nested_extensions(levels: int) -> bytes:
    data = b"\xc0"
    for _ in range(levels):
        data = msgpack.packb(msgpack.ExtType(1, b"\x91" + data))
    return data


MALFORMED = [
    b"",
    b"\xc1",
    b"\x91",
    b"\xa5ab",
    b"\xa1\xff",
    b"\x01\x02",
    b"\xdb\xff\xff\xff\xff",
    b"\xc6\xff\xff\xff\xffx",
    b"\xdd\xff\xff\xff\xff\x01",
    b"\xdf\xff\xff\xff\xff\x01",
    b"\xc9\xff\xff\xff\xff\x01x",
    b"\x81\x80\x01",
    b"\xd4\x63\x00",  # an extension of type 99
    b"\xd4\x0f\x00",  # an instance of a local class
    b"\xd4\x01\xc0",  # a tuple that is no array
    b"\xd4\x05x",  # a datetime
    b"\xd4\x08x",  # a timedelta
    b"\xd4\x0bx",  # a complex number
    b"\xd4\x09x",  # a Decimal
    b"\xd4\x0ax",  # a UUID
    b"\xd4\xffx",  # a timestamp
    msgpack.packb(msgpack.ExtType(2, b"\x91\x90")),  # a set of a list
    msgpack.packb(msgpack.ExtType(8, b"\x7f\xff\xff\xff" * 3)),  # a timedelta out of range
    msgpack.packb(msgpack.ExtType(13, msgpack.packb(["|O8", [1], b"12345678"]))),
    msgpack.packb(msgpack.ExtType(13, msgpack.packb(["<f8", [2], b"12345678"]))),
    msgpack.packb(msgpack.ExtType(13, msgpack.packb(["<f8", [-1], b""]))),
    msgpack.packb(msgpack.ExtType(13, msgpack.packb(["<f8", [2**62, 2**40], b""]))),
    msgpack.packb(msgpack.ExtType(13, msgpack.packb(["i4,O", [1], b"12345678"]))),
    b"\x91" * 300_000 + b"\x01",
    b"\x81\xa0" * 300_000 + b"\x01",
    b"\xdd\x00\x0f\x00\x00" * 200 + b"\x01" * 2**20,
    nested_extensions(400),
    nested_extensions(3000),
]


@pytest.mark.parametrize("codec", CODECS, ids=lambda codec: str(codec.schema))
@pytest.mark.parametrize("data", MALFORMED, ids=lambda data: f"{data[:8].hex()}-{len(data)}")
def test_malformed_bytes_are_a_corruption_in_bounded_memory_and_time(codec: Codec[Any], data: bytes) -> None:
    tracemalloc.start()
    begun = time.monotonic()
    try:
        with pytest.raises(StateCorruptionError):
            codec.decode(data)
        assert tracemalloc.get_traced_memory()[1] < 4 * 2**20 + 4 * len(data)
        assert time.monotonic() - begun < 5
    finally:
        tracemalloc.stop()


def test_data_beyond_the_bound_is_refused_before_it_is_read() -> None:
    with pytest.raises(StateTooLargeError) as caught:
        Codec(max_bytes=10).decode(b"\x91" * 11)
    assert (caught.value.size, caught.value.limit) == (11, 10)


@pytest.mark.parametrize("max_depth", [1, 8, 256])
def test_nesting_is_bounded_exactly(max_depth: int) -> None:
    codec: Codec[Any] = Codec(max_depth=max_depth)
    padding = b"\xda\x08\x00" + b"x" * 2048
    assert codec.decode(b"\x91" * max_depth + padding) is not None
    with pytest.raises(StateCorruptionError, match=f"more than {max_depth} levels"):
        codec.decode(b"\x91" * (max_depth + 1) + padding)


def test_nested_extensions_are_bounded_whatever_the_recursion_limit() -> None:
    limit = sys.getrecursionlimit()
    sys.setrecursionlimit(20_000)
    try:
        with pytest.raises(StateCorruptionError):
            Codec().decode(nested_extensions(400))
    finally:
        sys.setrecursionlimit(limit)


def test_the_last_of_two_equal_keys_counts() -> None:
    assert Codec().decode(b"\x82\xa1a\x01\xa1a\x02") == {"a": 2}


@given(st.binary(max_size=200), st.sampled_from(CODECS))
@settings(max_examples=400, deadline=None)
def test_any_bytes_decode_or_raise_a_typed_error(data: bytes, codec: Codec[Any]) -> None:
    try:
        state = codec.decode(data)
    except (StateCorruptionError, StateSerializationError):
        return
    codec.encode(state)  # what was read can be stored


@given(st.data())
@settings(max_examples=200, deadline=None)
def test_damaged_records_decode_or_raise_a_typed_error(data: st.DataObject) -> None:
    codec: Codec[Any] = Codec(Mixed)
    stored = bytearray(codec.encode(Mixed("Ada", {"t": (1, {2}), "n": [2**70, None, 1.5], (1,): b"x"})))
    for _ in range(data.draw(st.integers(1, 3))):
        stored[data.draw(st.integers(0, len(stored) - 1))] = data.draw(st.integers(0, 255))
    try:
        codec.decode(bytes(stored))
    except (StateCorruptionError, StateSerializationError):
        return


@pytest.mark.torture
@seed(SEED)
@settings(
    max_examples=50_000,
    deadline=None,
    suppress_health_check=list(HealthCheck),
)
@given(st.binary(max_size=3000), st.sampled_from(CODECS))
def test_many_bytes_decode_or_raise_a_typed_error(data: bytes, codec: Codec[Any]) -> None:
    note(f"DGENTS_SEED={SEED}")
    try:
        codec.decode(data)
        describe(data)
    except StateError:
        return


def test_a_field_of_another_type_is_named_with_what_was_expected_and_found() -> None:
    with pytest.raises(StateSerializationError, match=r"Profile: \$\.age: expected int, found str") as caught:
        Codec(Profile, actor="a").decode(Codec().encode({"name": "Ada", "age": "old"}))
    assert caught.value.path == "$.age"


def test_a_missing_field_is_named() -> None:
    with pytest.raises(StateSerializationError, match="name"):
        Codec(Profile).decode(Codec().encode({"age": 3}))


def rename(tree: Any) -> Any:
    return {"name": tree["nick"], "log": [*tree.get("log", []), 1]}


def grow(tree: Any) -> Any:
    return {**tree, "age": 7, "log": [*tree.get("log", []), 2]}


def test_migrations_lift_an_old_record_each_once_in_order() -> None:
    codec: Codec[Any] = Codec(migrations={2: grow, 1: rename})
    assert codec.version == 3
    assert codec.decode(Codec().encode({"nick": "Ada"}), version=1) == {
        "name": "Ada",
        "age": 7,
        "log": [1, 2],
    }
    assert codec.decode(Codec().encode({"name": "Ada"}), version=2) == {"name": "Ada", "age": 7, "log": [2]}
    assert codec.decode(Codec().encode({"name": "Ada"}), version=3) == {"name": "Ada"}


def test_a_lifted_record_is_read_by_the_schema() -> None:
    codec = Codec(Profile, migrations={1: lambda tree: {"name": tree["nick"]}})
    assert codec.decode(Codec().encode({"nick": "Ada"}), version=1) == Profile("Ada")


def test_a_record_of_a_newer_schema_is_refused_with_both_versions() -> None:
    with pytest.raises(StateSerializationError, match=r"5.*2"):
        Codec(Profile, migrations={1: grow}).decode(Codec().encode({}), version=5)


def test_a_record_older_than_every_migration_is_refused_with_the_missing_step() -> None:
    with pytest.raises(StateSerializationError, match="from schema version 1 to 2"):
        Codec(migrations={2: grow}).decode(Codec().encode({}), version=1)


@pytest.mark.parametrize("broken", [lambda tree: tree["missing"], lambda tree: None])
def test_a_migration_that_fails_is_named(broken: Any) -> None:
    with pytest.raises(StateSerializationError, match="migration from schema version 1"):
        Codec(migrations={1: broken}).decode(Codec().encode({}), version=1)


def test_migrations_with_a_gap_are_refused() -> None:
    with pytest.raises(ValueError, match="follow one another"):
        Codec(migrations={1: grow, 3: grow})
