"""Files of states and their logs: every value comes back, and no changed byte goes unnoticed."""

from __future__ import annotations

import base64
import datetime
import decimal
import gzip
import json
import math
import uuid
from typing import Any
from zlib import crc32

import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from dgents.backends.file_format import LogMark, MainFile, Shape, decode_main, encode_main, from_iso, to_iso
from dgents.backends.file_log import decode_head, encode_entry, encode_head, kind_of
from dgents.backends.file_log_reader import LogReader, TornError
from dgents.backends.file_records import make_whole, newest
from dgents.backends.tagged_json import from_json, to_json
from dgents.runtime.codec import Codec
from dgents.runtime.contract import Record, Request
from dgents.runtime.errors import StateCorruptionError, StorageError
from tests.file_states import delta_of, record_of, state_of

CODEC: Codec[Any] = Codec()
SHAPES = [Shape(f, c) for f in ("json", "msgpack") for c in (None, "gzip", "zstd")]
LOG_SHAPES = [Shape("json", None), Shape("msgpack", None), Shape("msgpack", "gzip")]
ODD: list[Any] = [
    b"bytes", math.nan, math.inf, -math.inf, -0.0, 5e-324, 2**64 - 1, -(2**63), 2**200, -(2**64), 10**5000,
    (1, (2, 3)), {1, 2}, frozenset([1]), {1: "one", False: 2}, {(1, 2): 3, None: b"x"}, {1.5: 1, b"k": 2},
    {"$bytes": "aGk="}, {"$": 1, "$$": {"$msgpack": "x"}}, {"$ext": [1, "AA=="]}, "$bytes", ["$map"],
    datetime.datetime(2026, 11, 23, 4, 50, tzinfo=datetime.UTC), datetime.datetime(1, 1, 1), datetime.date.max,
    datetime.time(1, 2, 3, 4), datetime.timedelta(-1, 2, 3), decimal.Decimal("1.50"), complex(1, -2),
    uuid.UUID(int=7), "\u2028\0é\U0001f600",
]  # fmt: skip
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.binary() | st.sampled_from(["$", "$x"]),
    lambda inner: (
        st.lists(inner)
        | st.tuples(inner, inner)
        | st.dictionaries(st.text() | st.integers() | st.binary() | st.just("$ext"), inner)
    ),
    max_leaves=20,
)


@pytest.mark.parametrize("value", ODD, ids=range(len(ODD)))
def test_a_value_that_json_lacks_comes_back_exactly(value: Any) -> None:
    for data in (CODEC.encode(value), CODEC.encode({"inside": [value]})):
        assert from_json(to_json(data)) == data


@given(VALUES)
@settings(max_examples=200, deadline=None)
def test_any_value_comes_back_exactly(value: Any) -> None:
    data = CODEC.encode(value)
    assert from_json(to_json(data)) == data


@given(st.binary(max_size=60))
@settings(max_examples=200, deadline=None)
def test_any_bytes_come_back_exactly(data: bytes) -> None:
    assert from_json(to_json(data)) == data


def test_plain_states_are_plain_json() -> None:
    state = {"name": "Ada", "visits": [1, 2.5, None, True]}
    assert json.loads(to_json(CODEC.encode(state))) == state


def test_states_nested_to_the_bound_come_back_exactly() -> None:
    deep: Any = b""
    for _ in range(250):
        deep = {"$a": [deep]} if isinstance(deep, bytes) else [deep]
    data = CODEC.encode(deep)
    assert from_json(to_json(data)) == data


@pytest.mark.parametrize("text", [b'{"$bytes":1}', b'{"$bytes":"!"}', b'{"$nothing":1}', b'{"$ext":[1]}', b"{"])
def test_a_malformed_tag_is_a_value_error(text: bytes) -> None:
    with pytest.raises(ValueError, match=r"."):
        from_json(text)


def example(shape: Shape, data: bytes | None = CODEC.encode(state_of(7))) -> MainFile:
    earlier = [encode_entry([record_of(6, 2)], [], shape)]
    requests = [Request("a", 6, b"\xff"), Request("b", 7)]
    return MainFile("user/7", Record(7, 2, 1_700_000_000.125, data, 3), LogMark(3, 4, 5, True), requests, earlier)


@pytest.mark.parametrize("data", [CODEC.encode(state_of(7)), None], ids=["state", "tombstone"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_a_main_file_gives_back_what_it_was_given(shape: Shape, data: bytes | None) -> None:
    main = example(shape, data)
    assert decode_main(encode_main(main, shape), "path") == (main, shape)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_each_flipped_bit_and_each_cut_of_a_main_file_is_found(shape: Shape) -> None:
    content = encode_main(example(shape), shape)
    broken = [content[:size] for size in range(len(content))]
    for place in range(len(content)):
        for bit in range(8):
            changed = bytearray(content)
            changed[place] ^= 1 << bit
            broken.append(bytes(changed))
    for damaged in broken:
        with pytest.raises(StateCorruptionError) as caught:
            decode_main(damaged, "path")
        assert caught.value.path == "path"
        assert caught.value.offset is not None


def test_the_json_file_can_be_read_by_any_json_parser() -> None:
    document = json.loads(encode_main(example(Shape("json", None)), Shape("json", None)))
    assert document["state"]["version"] == 7
    assert document["saved_at"] == "2023-11-14T22:13:20.125000000Z"
    assert base64.b64decode(document["state"]["bytes"]["$bytes"]) == b"\xff"


def test_the_gzip_file_can_be_read_by_gzip() -> None:
    content = encode_main(example(Shape("json", "gzip")), Shape("json", "gzip"))
    assert json.loads(gzip.decompress(content))["version"] == 7


def test_the_zstd_file_can_be_read_by_zstd() -> None:
    content = encode_main(example(Shape("json", "zstd")), Shape("json", "zstd"))
    frames = zstandard.ZstdDecompressor().stream_reader(content, read_across_frames=True)
    assert json.loads(frames.read())["version"] == 7


def test_a_newer_format_is_refused_with_both_versions() -> None:
    _, _, rest = encode_main(example(Shape("json", None)), Shape("json", None)).partition(b"\n")
    newer = b'{"dgents-state": 9, "checksum": "%08x",\n%s' % (crc32(rest, crc32(b"9")), rest)
    with pytest.raises(StorageError, match=r"format 9; this dgents reads formats up to 1"):
        decode_main(newer, "path")


@given(st.floats(min_value=0, max_value=2**32) | st.integers(0, 2**32))
def test_times_come_back_to_the_nanosecond(seconds: float) -> None:
    assert abs(from_iso(to_iso(seconds)) - seconds) < 1e-9


@given(st.floats(min_value=1_700_000_000, max_value=2**32))
def test_times_of_this_century_come_back_exactly(seconds: float) -> None:
    assert from_iso(to_iso(seconds)) == seconds


def log_of(shape: Shape) -> tuple[bytes, list[int]]:
    """Return a log of four versions and the places behind each entry."""
    content = encode_head(kind_of(shape), -40, [Request("r", 1)])
    ends = [len(content)]
    for version in range(1, 5):
        content += encode_entry([record_of(version, 1)], [], shape)
        ends.append(len(content))
    return content, ends


def read(content: bytes) -> list[int]:
    head = decode_head(content, "path")
    entries = LogReader(content, head, "path").entries(head.size)
    return [record.version for _, entry in entries for record in entry.records]


@pytest.mark.parametrize("shape", LOG_SHAPES, ids=str)
def test_a_log_gives_back_its_versions(shape: Shape) -> None:
    content, ends = log_of(shape)
    head = decode_head(content, "path")
    entries = list(LogReader(content, head, "path").entries(head.size))
    assert [end for end, _ in entries] == ends[1:]
    assert [record for _, entry in entries for record in entry.records] == [record_of(v, 1) for v in range(1, 5)]
    assert head.offset(head.place(17)) == 17


@pytest.mark.parametrize("shape", LOG_SHAPES, ids=str)
def test_each_flipped_bit_of_a_log_is_found(shape: Shape) -> None:
    content, _ = log_of(shape)
    for place in range(len(content)):
        for bit in range(8):
            changed = bytearray(content)
            changed[place] ^= 1 << bit
            with pytest.raises((StateCorruptionError, TornError)) as caught:
                read(bytes(changed))
            # Only the end of the last line can look as if it had not been written to its end.
            assert isinstance(caught.value, StateCorruptionError) or place == len(content) - 1


@pytest.mark.parametrize("shape", LOG_SHAPES, ids=str)
def test_a_log_that_is_cut_is_torn_at_its_last_whole_entry(shape: Shape) -> None:
    content, ends = log_of(shape)
    for size in range(ends[0], len(content)):
        if size in ends:
            assert len(read(content[:size])) == ends.index(size)
            continue
        with pytest.raises(TornError) as caught:
            read(content[:size])
        assert caught.value.place == max(end for end in ends if end <= size)


@pytest.mark.parametrize("lost", [0, 1, 2])
def test_an_entry_with_a_sector_that_was_never_written_is_torn(lost: int) -> None:
    shape = Shape("msgpack", None)
    content, ends = log_of(shape)
    entry = encode_entry([record_of(5, 1, pad=1500)], [], shape)
    start = (len(content) // 512 + lost) * 512
    whole = bytearray(content + entry)
    whole[max(start, ends[-1]) : start + 512] = bytes(start + 512 - max(start, ends[-1]))
    with pytest.raises(TornError) as caught:
        read(bytes(whole))
    assert caught.value.place == ends[-1]


def test_changes_are_made_whole_in_order() -> None:
    records = [record_of(1, 1), delta_of(2, 1), delta_of(3, 1), record_of(4, 1)]
    assert [CODEC.decode(record.data or b"") for record in make_whole(records)] == [state_of(v) for v in range(1, 5)]


def test_a_change_of_nothing_is_corruption() -> None:
    with pytest.raises(StateCorruptionError):
        make_whole([delta_of(2, 1)])
    with pytest.raises(StateCorruptionError):
        make_whole([delta_of(2, 1)], Record(1, 1, 0.0, None))


def test_the_newest_records_come_with_what_they_are_changes_of() -> None:
    records = [record_of(1, 1), record_of(2, 1), delta_of(3, 1), delta_of(4, 1)]
    assert [record.version for record in newest(records, 1)] == [2, 3, 4]
    assert [record.version for record in newest(records, 3)] == [2, 3, 4]
