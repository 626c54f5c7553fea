"""Columns as PostgreSQL's binary arrays: a batch of 1,000 rows is a dozen parameters of one statement.

psycopg's own dumper walks over the elements of a list one by one, which takes longer than the server needs to store
them. The layout is that of `array_recv` in PostgreSQL's sources: dimensions, flags, type, length, lower bound, then the
elements.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import ClassVar

from psycopg import AsyncConnection
from psycopg.adapt import Dumper
from psycopg.pq import Format

_HEADER = struct.Struct("!iiIii")
_LENGTH = struct.Struct("!i")
_NULL = b"\xff\xff\xff\xff"
_TEXT, _BYTEA, _INT8, _FLOAT8 = 25, 17, 20, 701


class Array:
    """One parameter, encoded. There is a class for each type, since psycopg finds the type by the class."""

    __slots__ = ("data",)
    array_oid: ClassVar[int]

    def __init__(self, data: bytes) -> None:
        self.data = data


class Texts(Array):
    """``text[]``, from UTF-8."""

    array_oid = 1009

    @classmethod
    def of(cls, values: Sequence[bytes]) -> Texts:
        return cls(_blobs(_TEXT, values))


class Blobs(Array):
    """``bytea[]``; None is NULL."""

    array_oid = 1001

    @classmethod
    def of(cls, values: Sequence[bytes | None]) -> Blobs:
        return cls(_blobs(_BYTEA, values))


class Integers(Array):
    """``int8[]``."""

    array_oid = 1016

    @classmethod
    def of(cls, values: Sequence[int]) -> Integers:
        return cls(_numbers(_INT8, "iq", values))


class Floats(Array):
    """``float8[]``."""

    array_oid = 1022

    @classmethod
    def of(cls, values: Sequence[float]) -> Floats:
        return cls(_numbers(_FLOAT8, "id", values))


def register_arrays(connection: AsyncConnection) -> None:
    """Let a connection take these as parameters (``%b``)."""
    for kind in (Texts, Blobs, Integers, Floats):
        connection.adapters.register_dumper(kind, _DUMPERS[kind])


class _ArrayDumper(Dumper):
    format = Format.BINARY

    def dump(self, obj: Array) -> bytes:
        return obj.data


_DUMPERS = {
    kind: type(f"{kind.__name__}Dumper", (_ArrayDumper,), {"oid": kind.array_oid})
    for kind in (Texts, Blobs, Integers, Floats)
}


def _numbers(oid: int, format: str, values: Sequence[float]) -> bytes:
    count = len(values)
    flat: list[float] = [8] * (2 * count)  # each element is its size in bytes, then itself
    flat[1::2] = values
    return _HEADER.pack(1, 0, oid, count, 1) + struct.pack("!" + format * count, *flat)


def _blobs(oid: int, values: Sequence[bytes | None]) -> bytes:
    parts = [_HEADER.pack(1, 1, oid, len(values), 1)]
    for value in values:
        if value is None:
            parts.append(_NULL)
        else:
            parts += (_LENGTH.pack(len(value)), value)
    return b"".join(parts)
