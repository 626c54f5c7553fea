"""Times come back on the same clock: zone, offset and the second of two equal hours; or they are refused by path."""

from __future__ import annotations

import dataclasses
import datetime as dt
import io
import zoneinfo
from pathlib import Path
from typing import Any

import msgpack
import pydantic
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import dgents
from dgents.runtime.codec import Codec
from dgents.runtime.errors import StateCorruptionError, StateSerializationError
from dgents.runtime.roundtrip import find_difference
from dgents.runtime.times import is_same_time

BERLIN = zoneinfo.ZoneInfo("Europe/Berlin")
TWICE = dt.datetime(2024, 10, 27, 2, 30)  # an hour that this night has two of


@dataclasses.dataclass
class Meeting:
    at: dt.datetime
    daily: dt.time | None = None
    others: list[dt.datetime] = dataclasses.field(default_factory=list)
    by_day: dict[dt.date, dt.datetime] = dataclasses.field(default_factory=dict)
    until: tuple[dt.datetime, int] | None = None


class Model(pydantic.BaseModel):
    at: dt.datetime
    daily: dt.time | None = None


class Frozen(dt.datetime):
    """As of a library that stops the clock."""


class Zone(dt.tzinfo):
    def utcoffset(self, when: dt.datetime | None) -> dt.timedelta:
        return dt.timedelta(hours=1)

    def dst(self, when: dt.datetime | None) -> dt.timedelta:
        return dt.timedelta(0)

    def tzname(self, when: dt.datetime | None) -> str:
        return "zone"


def fixed(**offset: int) -> dt.timezone:
    return dt.timezone(dt.timedelta(**offset))


ZONES = [
    None,
    dt.UTC,
    BERLIN,
    zoneinfo.ZoneInfo("UTC"),
    zoneinfo.ZoneInfo("America/Argentina/Buenos_Aires"),
    zoneinfo.ZoneInfo("Etc/GMT+5"),
    fixed(hours=5, minutes=30),
    fixed(hours=-23, minutes=-59, seconds=-59, microseconds=-999999),
    fixed(hours=1, seconds=3, microseconds=4),
    dt.timezone(dt.timedelta(0), "UTC"),
    dt.timezone(dt.timedelta(hours=2), "CEST [é]%"),
    dt.timezone(dt.timedelta(hours=2), ""),
    pydantic.TypeAdapter(dt.datetime).validate_json('"2024-01-01T00:00:00+02:00"').tzinfo,
]
CODECS: dict[str, tuple[Codec[Any], Any]] = {
    "untyped": (Codec(), lambda at: {"at": at, "set": {at}}),
    "local": (Codec(local=True), lambda at: Meeting(at)),
    "dataclass": (Codec(Meeting), lambda at: Meeting(at, others=[at, at], by_day={at.date(): at}, until=(at, 1))),
    "model": (Codec(Model), lambda at: Model(at=at)),
    "part": (Codec(Meeting).at(("at",)), lambda at: at),
}


@pytest.mark.parametrize("kind", CODECS)
@pytest.mark.parametrize("fold", [0, 1])
@pytest.mark.parametrize("zone", ZONES, ids=repr)
@pytest.mark.parametrize("at", [TWICE, dt.datetime.min, dt.datetime.max], ids=str)
def test_a_datetime_comes_back_on_the_same_clock(kind: str, at: dt.datetime, zone: Any, fold: int) -> None:
    codec, wrap = CODECS[kind]
    state = wrap(at.replace(tzinfo=zone, fold=fold))
    data = codec.encode(state)
    assert find_difference(state, codec.decode(data)) is None
    assert codec.encode(codec.decode(data)) == data


@pytest.mark.parametrize("codec", [Codec(), Codec(dt.time), Codec(dt.time | None)], ids=lambda codec: str(codec.schema))
@pytest.mark.parametrize("fold", [0, 1])
@pytest.mark.parametrize("zone", ZONES, ids=repr)
def test_a_time_comes_back_on_the_same_clock(codec: Codec[Any], zone: Any, fold: int) -> None:
    state = dt.time(2, 30, 1, 5, zone, fold=fold)
    assert is_same_time(codec.decode(codec.encode(state)), state)


OFFSETS = st.timedeltas(dt.timedelta(hours=-24, microseconds=1), dt.timedelta(hours=24, microseconds=-1))
TIMES = st.datetimes(
    timezones=st.none() | st.just(dt.UTC) | st.timezones() | st.builds(dt.timezone, OFFSETS) | st.just(Zone())
).flatmap(lambda at: st.sampled_from([at, at.replace(fold=1 - at.fold)]))


@given(st.sampled_from(sorted(CODECS)), TIMES)
@settings(max_examples=300, deadline=None)
def test_any_datetime_comes_back_or_is_refused_with_its_path(kind: str, at: dt.datetime) -> None:
    codec, wrap = CODECS[kind]
    state = wrap(at)
    if isinstance(at.tzinfo, Zone):
        with pytest.raises(StateSerializationError, match=r"\$(.at)?: a time zone of the class"):
            codec.encode(state)
    else:
        assert find_difference(state, codec.decode(codec.encode(state))) is None


@pytest.mark.parametrize("kind", CODECS)
@pytest.mark.parametrize(
    ("at", "words"),
    [
        (TWICE.replace(tzinfo=Zone()), "use zoneinfo"),
        (Frozen(2024, 1, 1), "Frozen"),
        (
            TWICE.replace(
                tzinfo=zoneinfo.ZoneInfo.from_file(
                    io.BytesIO(b"TZif2" + bytes(39) + b"TZif2" + bytes(39) + b"\n<X>-3\n"), key="Europe/Berlin"
                )
            ),
            "not the one that its name stands for",
        ),
    ],
    ids=["class", "subclass", "file"],
)
def test_a_datetime_that_would_change_is_refused_with_its_path(kind: str, at: dt.datetime, words: str) -> None:
    codec, wrap = CODECS[kind]
    with pytest.raises(StateSerializationError, match=words) as caught:
        codec.encode(wrap(at))
    assert caught.value.path == ("$" if kind == "part" else "$.at")


def test_records_of_times_without_tags_are_read() -> None:
    old = msgpack.packb({"at": msgpack.ExtType(5, b"2024-10-27T02:30:00+02:00")})
    expected = TWICE.replace(tzinfo=fixed(hours=2))
    assert is_same_time(Codec().decode(old)["at"], expected)
    assert is_same_time(Codec(Meeting).decode(old).at, expected)


@pytest.mark.parametrize(
    "text",
    [
        "2024-01-01T00:00:00[",
        "2024-01-01[]",
        "[_fold=1]",
        "2024-01-01[../../etc/passwd]",
        "2024-01-01[_name=x]",
        "x[UTC]",
    ],
)
def test_a_malformed_text_is_a_corruption(text: str) -> None:
    with pytest.raises(StateCorruptionError):
        Codec().decode(msgpack.packb(msgpack.ExtType(5, text.encode())))


def test_a_zone_that_is_not_known_here_is_named() -> None:
    with pytest.raises(StateSerializationError, match=r"time zone 'Mars/Olympus' \(install tzdata\)"):
        Codec().decode(msgpack.packb(msgpack.ExtType(5, b"2024-01-01T00:00:00+00:00[Mars/Olympus]")))


@pytest.mark.anyio
@pytest.mark.parametrize("schema", [None, Meeting], ids=["untyped", "dataclass"])
@pytest.mark.parametrize("format", ["json", "msgpack", "sqlite"])
async def test_a_time_in_a_zone_comes_back_from_each_store(
    anyio_backend: str, tmp_path: Path, format: Any, schema: Any
) -> None:
    at, later = TWICE.replace(tzinfo=BERLIN, fold=1), TWICE.replace(tzinfo=BERLIN)
    state: Any = {"at": at} if schema is None else Meeting(at)

    def agent() -> Any:
        if format == "sqlite":
            return dgents.SQLAgent(str(tmp_path / "s.db"), schema=schema)
        return dgents.PersistentAgent(tmp_path / "state", schema=schema, format=format)

    async with dgents.Runtime() as rt:
        ref = await rt.spawn("a", agent())
        await ref.save(state)
        assert find_difference(state, await ref.load()) is None
        await ref.patch({"at": later})
        assert is_same_time(await ref.at("at").load(), later)
        await ref.at("at").save(at)
    async with dgents.Runtime() as rt:
        ref = await rt.spawn("a", agent())
        assert find_difference(state, await ref.load()) is None
        assert find_difference([state] * 2, (await ref.history())[::2]) is None
