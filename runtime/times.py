"""Dates and times as text that keeps what ISO 8601 has no place for: the zone, and which of two equal hours it was.

The text is ISO 8601, followed by tags as in RFC 9557 where it takes them to tell:

    2024-10-27T02:30:00+01:00[Europe/Berlin][_fold=1]    a zone of the IANA database, the second 02:30 of that night
    2024-10-27T02:30:00+01:00[_name=CET]                 a fixed offset that has a name, as of ``astimezone()``
    2024-10-27T02:30:00+01:00[_pydantic]                 a fixed offset, as Pydantic reads it out of JSON
"""

from __future__ import annotations

import datetime
import re
import sys
import zoneinfo
from typing import Any, TypeVar
from urllib.parse import quote, unquote

T = TypeVar("T", datetime.datetime, datetime.time)

# What a text names is looked up in the database of zones, and nowhere else.
_ZONE = re.compile(r"[A-Za-z0-9][A-Za-z0-9_+-]{0,63}(/[A-Za-z0-9][A-Za-z0-9_+-]{0,63}){0,3}")
_TAGGED = re.compile(r"([^\[\]]+)((?:\[[^\[\]]+\])*)")
_FOLD, _NAME, _PYDANTIC = "_fold=1", "_name=", "_pydantic"


def is_plain(value: datetime.datetime | datetime.time) -> bool:
    """Say whether ``value`` is told by ISO 8601 alone: without a zone or in UTC, the first of two equal hours."""
    return (value.tzinfo is None or value.tzinfo is datetime.UTC) and not value.fold


def write_time(value: datetime.datetime | datetime.time) -> str:
    """Return the text of ``value``.

    Raises:
        ValueError: it is in a zone that could not be found again.
    """
    tags = "" if value.tzinfo is None or value.tzinfo is datetime.UTC else _zone_tag(value.tzinfo)
    return f"{value.isoformat()}{tags}[{_FOLD}]" if value.fold else value.isoformat() + tags


def _zone_tag(zone: Any) -> str:
    if type(zone) is datetime.timezone:
        name = zone.__getinitargs__()[1:]  # type: ignore[attr-defined]  # none, unless it was given one
        return f"[{_NAME}{quote(name[0], safe=' ')}]" if name else ""
    if type(zone) is zoneinfo.ZoneInfo:
        if not zone.key or _look_up(zone.key) is not zone:
            raise ValueError(f"the time zone {zone!r} can't be stored: it is not the one that its name stands for")
        return f"[{zone.key}]"
    if _is_pydantic(zone):
        return f"[{_PYDANTIC}]"
    kind = f"{type(zone).__module__}.{type(zone).__qualname__}"
    raise ValueError(f"a time zone of the class {kind} can't be stored; use zoneinfo.ZoneInfo or datetime.timezone")


def read_time(kind: type[T], text: str) -> T:
    """Return the date or time that `write_time` wrote as ``text``.

    Raises:
        ValueError: it is no such text.
        ImportError: its zone is not known here.
    """
    parts = _TAGGED.fullmatch(text)
    if parts is None:
        raise ValueError("malformed date or time")
    value = kind.fromisoformat(parts[1])
    for tag in parts[2][1:-1].split("][") if parts[2] else ():
        value = value.replace(fold=1) if tag == _FOLD else value.replace(tzinfo=_zone(value, tag))
    return value


def _zone(value: datetime.datetime | datetime.time, tag: str) -> datetime.tzinfo:
    if tag.startswith(_NAME) or tag == _PYDANTIC:
        offset = value.utcoffset()
        if offset is None:
            raise ValueError(f"a time without an offset is tagged {tag!r}")
        if tag != _PYDANTIC:
            return datetime.timezone(offset, unquote(tag.removeprefix(_NAME)))
        from pydantic_core import TzInfo  # optional: only a state that holds such a zone needs it

        return TzInfo(offset.total_seconds())
    zone = _look_up(tag)
    if zone is None:
        raise ImportError(f"the time zone {tag!r} (install tzdata)")
    return zone


def _look_up(key: str) -> zoneinfo.ZoneInfo | None:
    if not _ZONE.fullmatch(key):
        raise ValueError(f"no time zone is called {key!r}")
    try:
        return zoneinfo.ZoneInfo(key)
    except (zoneinfo.ZoneInfoNotFoundError, OSError):
        return None


def is_same_time(one: datetime.datetime | datetime.time, other: datetime.datetime | datetime.time) -> bool:
    """Say whether two of one type show the same time on the same clock; equal ones may be in different zones."""
    return (
        one.fold == other.fold
        and one.replace(tzinfo=None) == other.replace(tzinfo=None)
        and _is_same_zone(one.tzinfo, other.tzinfo)
    )


def _is_same_zone(one: datetime.tzinfo | None, other: datetime.tzinfo | None) -> bool:
    # The text tells apart what compares as equal: offsets with and without a name.
    return one is other or (type(one) is type(other) and one == other and repr(one) == repr(other))


def _is_pydantic(zone: Any) -> bool:
    core = sys.modules.get("pydantic_core")
    return core is not None and type(zone) is core.TzInfo
