"""What MessagePack lacks: an untyped value as bytes and back, every type as it was.

The layout: plain MessagePack, and these extension types for the rest.

    1 tuple   2 set   3 frozenset            a MessagePack array; the items of sets in one order, whatever their hashes
    4 int beyond 64 bits                     two's complement, big-endian
    5 datetime  6 date  7 time  9 Decimal    their text, see `times` (a datetime in UTC: MessagePack's timestamp, -1)
    8 timedelta                              days, seconds, microseconds
    10 UUID   11 complex                     16 bytes
    13 numpy array   14 numpy scalar         dtype, shape, bytes in C order
    15 an instance of a local class          number in a table in memory, its fields

Nothing here imports, looks up or calls what the data names: a reader is chosen by number in a fixed table, a
numpy dtype must match a pattern, a time zone is looked up among time zones only, and a local class is an index into
the table of the codec that wrote it.
"""

from __future__ import annotations

import datetime
import decimal
import enum
import re
import struct
import sys
import threading
import uuid
from collections.abc import Callable, Collection, Mapping
from functools import cached_property
from typing import Any, TypeAlias

import msgpack
import msgspec

from dgents.runtime.shapes import field_names, is_pydantic
from dgents.runtime.times import read_time, write_time

TUPLE, SET, FROZENSET, BIGINT, DATETIME, DATE, TIME, TIMEDELTA, DECIMAL = range(1, 10)
UUID, COMPLEX, ARRAY, SCALAR, INSTANCE = 10, 11, 13, 14, 15

Adapt: TypeAlias = Callable[[Any], Any]

_EPOCH = datetime.datetime(1970, 1, 1, tzinfo=datetime.UTC)
_DTYPE = re.compile(r"[<>|][biufcmMSU][1-9][0-9]{0,8}(\[[0-9]{0,6}[A-Za-zμ]{1,7}\])?")
_KEPT_PACKER_BYTES = 256 * 1024
_ORDERED = {str, int, bytes}  # as the items of a set; NaN is in order with nothing
_BUILTIN_BASES = (dict, list, set, frozenset, str, int, float, bytes, bytearray, BaseException)


class UnsupportedValueError(TypeError):
    """``value`` itself, not something within it, has no form in the store."""

    def __init__(self, value: object, reason: str | None = None) -> None:
        super().__init__(reason or f"{type(value).__name__} can't be stored")
        self.value = value


class NestingError(ValueError):
    """The value is nested deeper than the codec allows."""


class Tree:
    """Packs and unpacks untyped values; one instance for each level of nested extensions.

    A packer's or decoder's hook has no argument for depth, so each level has hooks of its own, and the chain
    ends after ``room`` levels: hostile data can't recurse further. Safe to use from several threads.

    Args:
        room: how many levels of extensions inside extensions are allowed.
        adapt: turns a value into another that can be packed; raises `UnsupportedValueError` for others.
        classes: where instances of local classes may be stored; None refuses them.
    """

    def __init__(self, room: int, adapt: Adapt | None = None, classes: LocalClasses | None = None) -> None:
        self.room = room
        self.adapt = adapt
        self.classes = classes
        self._idle: list[Any] = []
        self.decode = msgspec.msgpack.Decoder(ext_hook=self.revive).decode

    @cached_property
    def inner(self) -> Tree:
        if self.room <= 0:
            raise NestingError("values are nested too deeply")
        return type(self)(self.room - 1, self.adapt, self.classes)

    def pack(self, value: Any) -> bytes:
        """Return ``value`` as MessagePack. A bytearray would become bytes: the caller checks for it."""
        try:
            packer = self._idle.pop()
        except IndexError:
            packer = msgpack.Packer(strict_types=True, default=self.extend, buf_size=4096)
        data: bytes = packer.pack(value)
        # A packer is kept only after a success, and only while its buffer is small.
        if len(data) < _KEPT_PACKER_BYTES and len(self._idle) < 4:
            self._idle.append(packer)
        return data

    def extend(self, value: Any) -> Any:
        """Return the form in which ``value``, which MessagePack lacks, is packed."""
        kind = type(value)
        write = _WRITERS.get(kind)
        if write is not None:
            return write(value, self)
        if self.adapt is not None:
            try:
                return self.adapt(value)
            except UnsupportedValueError:
                if self.classes is None:
                    raise
        if kind.__module__ == "numpy" and (packed := _write_numpy(value, self)) is not None:
            return packed
        if self.classes is not None:
            return self.classes.write(value, self)
        raise UnsupportedValueError(value)

    def revive(self, code: int, payload: memoryview) -> Any:
        """Return the value of one extension."""
        read = _READERS.get(code)
        if read is not None:
            try:
                return read(payload, self)
            except struct.error as error:
                raise ValueError(f"extension type {code} has the wrong length") from error
        if code == INSTANCE and self.classes is not None:
            return self.classes.read(payload, self)
        raise ValueError(f"unknown extension type {code}")


class LocalClasses:
    """The classes whose instances one codec has stored, for states that never leave the process."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._numbers: dict[type, int] = {}
        self._classes: list[type] = []

    def write(self, value: Any, tree: Tree) -> Any:
        """Return ``value`` as an extension: the number of its class, and its fields."""
        cls = type(value)
        fields = _dismantle(value)
        number = self._numbers.get(cls)
        if number is None:
            with self._lock:
                number = self._numbers.setdefault(cls, len(self._classes))
                if number == len(self._classes):
                    self._classes.append(cls)
        return msgpack.ExtType(INSTANCE, tree.inner.pack([number, fields]))

    def read(self, payload: memoryview, tree: Tree) -> Any:
        number, fields = tree.inner.decode(payload)
        if type(number) is not int or not 0 <= number < len(self._classes):
            raise ValueError(f"no local class has the number {number}")
        return _assemble(self._classes[number], fields)


def _dismantle(value: Any) -> Any:
    """Return what `_assemble` needs to make an equal instance without running its ``__init__``."""
    cls = type(value)
    if isinstance(value, enum.Enum):
        # A combination of flags has no name of its own among the members.
        return [value.name, None] if value.name in cls.__members__ else [None, value.value]
    if is_pydantic(cls):
        return value.__getstate__()
    names = field_names(cls)
    if names is None:
        raise UnsupportedValueError(value)
    if issubclass(cls, tuple):
        return list(value)
    if issubclass(cls, _BUILTIN_BASES):
        raise UnsupportedValueError(value, f"{cls.__name__}, a subclass of a built-in type, can't be stored")
    fields = dict(getattr(value, "__dict__", ()))
    fields.update((name, getattr(value, name)) for name in names if hasattr(value, name))
    return fields


def _assemble(cls: Any, fields: Any) -> Any:
    if issubclass(cls, enum.Enum):
        name, content = fields
        return cls(content) if name is None else cls[name]
    if issubclass(cls, tuple):
        return cls._make(fields)
    if issubclass(cls, msgspec.Struct):
        made = cls(**{name: fields[name] for name in cls.__struct_fields__})
        for name, content in fields.items():  # undoes what __post_init__ did a second time
            msgspec.structs.force_setattr(made, name, content)
        return made
    made = cls.__new__(cls)
    if is_pydantic(cls):
        made.__setstate__(fields)
    else:
        for name, content in fields.items():
            object.__setattr__(made, name, content)
    return made


def _write_datetime(value: datetime.datetime, tree: Tree) -> Any:
    if value.tzinfo is datetime.UTC and not value.fold:
        since = value - _EPOCH
        return msgpack.Timestamp(since.days * 86400 + since.seconds, since.microseconds * 1000)
    return _write_clock(DATETIME, value)


def _write_clock(code: int, value: datetime.datetime | datetime.time) -> Any:
    try:
        return msgpack.ExtType(code, write_time(value).encode())
    except ValueError as error:
        raise UnsupportedValueError(value, str(error)) from error


def _write_int(value: int, tree: Tree) -> Any:
    return msgpack.ExtType(BIGINT, value.to_bytes(value.bit_length() // 8 + 1, "big", signed=True))


def _write_timedelta(value: datetime.timedelta, tree: Tree) -> Any:
    return msgpack.ExtType(TIMEDELTA, struct.pack(">iii", value.days, value.seconds, value.microseconds))


def in_order(items: Collection[Any], pack: Callable[[Any], bytes]) -> list[Any]:
    """Return the items of a set in an order that depends on them alone: of themselves, or of their bytes."""
    kinds = set(map(type, items))
    if len(kinds) == 1 and kinds <= _ORDERED:
        return sorted(items)
    return sorted(items, key=pack)


def _set(code: int) -> Callable[[Any, Tree], Any]:
    return lambda value, tree: msgpack.ExtType(code, tree.inner.pack(in_order(value, tree.inner.pack)))


def _text(code: int) -> Callable[[Any, Tree], Any]:
    return lambda value, tree: msgpack.ExtType(code, str(value).encode())


def _write_numpy(value: Any, tree: Tree) -> Any:
    """Return a numpy array or scalar as an extension, None for anything else of numpy."""
    numpy = sys.modules["numpy"]
    if type(value) is not numpy.ndarray and not isinstance(value, numpy.generic):
        return None
    name = value.dtype.str
    if not _DTYPE.fullmatch(name) or value.dtype.fields is not None:
        raise UnsupportedValueError(value, f"a numpy value of dtype {value.dtype} can't be stored")
    code = ARRAY if type(value) is numpy.ndarray else SCALAR
    if code == SCALAR and value.dtype.kind in "SU":  # numpy drops the zeros at the end of these
        raise UnsupportedValueError(value)
    return msgpack.ExtType(code, tree.inner.pack([name, list(value.shape), value.tobytes()]))


def _read_numpy(payload: memoryview, tree: Tree) -> Any:
    import numpy  # optional: only a state that holds numpy values needs it

    name, shape, content = tree.inner.decode(payload)
    if type(name) is not str or not _DTYPE.fullmatch(name):
        raise ValueError(f"a numpy dtype of {name!r} is not allowed")
    if type(shape) is not list or not all(type(size) is int and size >= 0 for size in shape):
        raise ValueError("the shape of a numpy array is not a list of sizes")
    # frombuffer shares read-only memory; the copy can be written to.
    return numpy.frombuffer(content, dtype=numpy.dtype(name)).reshape(shape).copy()


def _read_timedelta(payload: memoryview, tree: Tree) -> datetime.timedelta:
    return datetime.timedelta(*struct.unpack(">iii", payload))


def _read_decimal(payload: memoryview, tree: Tree) -> decimal.Decimal:
    try:
        return decimal.Decimal(str(payload, "utf-8"))
    except decimal.InvalidOperation as error:
        raise ValueError("malformed Decimal") from error


_WRITERS: Mapping[type, Callable[[Any, Tree], Any]] = {
    tuple: lambda value, tree: msgpack.ExtType(TUPLE, tree.inner.pack(list(value))),
    set: _set(SET),
    frozenset: _set(FROZENSET),
    int: _write_int,
    datetime.datetime: _write_datetime,
    datetime.date: lambda value, tree: msgpack.ExtType(DATE, value.isoformat().encode()),
    datetime.time: lambda value, tree: _write_clock(TIME, value),
    datetime.timedelta: _write_timedelta,
    decimal.Decimal: _text(DECIMAL),
    uuid.UUID: lambda value, tree: msgpack.ExtType(UUID, value.bytes),
    complex: lambda value, tree: msgpack.ExtType(COMPLEX, struct.pack(">dd", value.real, value.imag)),
}

_READERS: Mapping[int, Callable[[memoryview, Tree], Any]] = {
    TUPLE: lambda payload, tree: tuple(tree.inner.decode(payload)),
    SET: lambda payload, tree: set(tree.inner.decode(payload)),
    FROZENSET: lambda payload, tree: frozenset(tree.inner.decode(payload)),
    BIGINT: lambda payload, tree: int.from_bytes(payload, "big", signed=True),
    DATETIME: lambda payload, tree: read_time(datetime.datetime, str(payload, "utf-8")),
    DATE: lambda payload, tree: datetime.date.fromisoformat(str(payload, "utf-8")),
    TIME: lambda payload, tree: read_time(datetime.time, str(payload, "utf-8")),
    TIMEDELTA: _read_timedelta,
    DECIMAL: _read_decimal,
    UUID: lambda payload, tree: uuid.UUID(bytes=bytes(payload)),
    COMPLEX: lambda payload, tree: complex(*struct.unpack(">dd", payload)),
    ARRAY: _read_numpy,
    SCALAR: lambda payload, tree: _read_numpy(payload, tree)[()],
}
