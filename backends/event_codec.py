"""Events as bytes and back: told apart by a tag, lifted to the present by upcasters."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Generic, NamedTuple, TypeVar

import msgspec

from dgents.runtime.codec import Codec
from dgents.runtime.contract import Record
from dgents.runtime.errors import StateError, StateSerializationError, StateTooLargeError
from dgents.runtime.migrations import Migration, Migrations
from dgents.runtime.shapes import field_names

E = TypeVar("E")

Upcasters = Mapping[str, Mapping[int, Migration]]

_pack = msgspec.msgpack.Encoder().encode


class StoredEvent(msgspec.Struct, array_like=True, frozen=True, gc=False):
    """One event as a log keeps it.

    Attributes:
        version: its number; the first event of a stream is 1.
        epoch: of the owner that appended it.
        saved_at: seconds since 1970, UTC; never less than that of the event before.
        schema: the version of the event's class, for upcasters.
        tag: the name of the event's class.
        payload: the encoded event.
        link: with a chain, the hash of this event and all before it.
        request: the id of the request that appended it.
        signature: with a key, in a directory, of the newest event of a commit.
    """

    version: int
    epoch: int
    saved_at: float
    schema: int
    tag: str
    payload: msgspec.Raw
    link: bytes | None = None
    request: str | None = None
    signature: bytes | None = None


class Packed(NamedTuple):
    """An event on its way into a log: the stream's own copy of it, and its bytes."""

    event: Any
    tag: str
    schema: int
    head: bytes  # the encoded tag
    payload: bytes


def to_data(tag: bytes, payload: bytes, link: bytes | None) -> bytes:
    """Return what a record holds of an event: the MessagePack array of its tag, itself and its link, if it has one."""
    if link is None:
        return b"".join((b"\x92", tag, payload))
    return b"".join((b"\x93", tag, payload, b"\xc4\x20", link))


class _Body(msgspec.Struct, array_like=True):
    """What a record holds of an event."""

    tag: str
    event: msgspec.Raw
    link: bytes | None = None


_decode_body = msgspec.msgpack.Decoder(_Body).decode


def from_data(record: Record) -> StoredEvent:
    """Return the event in a record; raises `msgspec.DecodeError` if there is none."""
    body = _decode_body(record.data or b"")
    return StoredEvent(record.version, record.epoch, record.saved_at, record.schema, body.tag, body.event, body.link)


def is_linked(data: bytes) -> bool:
    """Say whether what a record holds ends in a link."""
    return data[0] == 0x93


def link_in(data: bytes | None) -> bytes | None:
    """Return the link in what a record holds."""
    return data[-32:] if data and is_linked(data) else None


class Kind:
    """The events of one tag."""

    def __init__(self, tag: str, codec: Codec[Any]) -> None:
        self.tag = tag
        self.head = _pack(tag)
        self.codec = codec
        self.schema = codec.version
        self.read: Callable[[Any], Any] = codec.read

    def unpack(self, payload: msgspec.Raw, schema: int) -> Any:
        """Return an event, whichever program wrote it."""
        return self.codec.decode(bytes(payload), schema)


class EventCodec(Generic[E]):
    """Encodes and decodes the events of one stream.

    Args:
        classes: what an event may be; empty: whatever can be stored without a schema.
        upcasters: by tag and version, what lifts an old event (dicts, lists, ...) to the next version. A tag that no
            class has any more ends in an instance of one that there is.
        local: the events never leave this process: any class will do.
        max_bytes: of one encoded event.

    Raises:
        TypeError: a class can't be stored.
        ValueError: two classes have the same name, or upcasters have a gap.
    """

    def __init__(
        self,
        classes: Iterable[type[E]] = (),
        upcasters: Upcasters | None = None,
        *,
        local: bool = False,
        max_bytes: int = 16 * 2**20,
    ) -> None:
        self._local = local
        _check_upcasters(upcasters)
        self._upcasters = dict(upcasters or {})
        self._kinds: dict[str, Kind] = {}
        self._classes: dict[type, Kind] = {}
        for cls in classes:
            if not isinstance(cls, type):
                raise TypeError(f"events: {cls!r} is no class; give a list of classes")
            tag = cls.__name__
            if tag in self._kinds:
                raise ValueError(f"events: two classes are called {tag!r}, and the name tells events apart")
            steps = self._upcasters.get(tag)
            self._classes[cls] = self._kinds[tag] = Kind(
                tag, Codec(cls, migrations=steps, local=local, max_bytes=max_bytes)
            )
        self._untyped = not self._classes
        self._plain: Codec[Any] = Codec(None, local=local, max_bytes=max_bytes)
        self._gone = {tag: Migrations(steps, None) for tag, steps in self._upcasters.items() if tag not in self._kinds}

    def pack(self, event: E) -> Packed:
        """Return the stream's own copy of an event, and its bytes.

        Raises:
            StateSerializationError: it is of no declared class, or a part of it can't be stored.
            StateTooLargeError: its bytes are more than ``max_bytes``.
        """
        kind = self._classes.get(type(event)) or self._kind_of(event)
        codec = kind.codec
        try:
            payload = codec.encode(event)
            copy = event if codec.is_immutable(event) else codec.decode(payload)
        except StateError as error:
            raise self._refused(kind.tag, error) from error
        return Packed(copy, kind.tag, kind.schema, kind.head, payload)

    def unpack(self, stored: StoredEvent) -> E:
        """Return the event, of the present version of its class.

        Raises:
            StateSerializationError: no class or upcaster fits it.
            StateCorruptionError: it is not what was written.
        """
        kind = self._kinds.get(stored.tag)
        try:
            if kind is None:
                return self._unpack_foreign(stored)
            if stored.schema == kind.schema:
                try:
                    return kind.read(stored.payload)  # type: ignore[no-any-return]
                except (ValueError, TypeError, OverflowError, RecursionError):
                    pass  # the codec says more, and reads what was written under another schema
            return kind.unpack(stored.payload, stored.schema)  # type: ignore[no-any-return]
        except StateError as error:
            error.message = f"event {stored.version} ({stored.tag}) can't be read: {error.message}"
            raise

    def unpack_all(self, chunk: Sequence[StoredEvent]) -> list[E]:
        """Return many events; raises as `unpack`."""
        events: list[E] = []
        add, kinds = events.append, self._kinds
        for stored in chunk:
            kind = kinds.get(stored.tag)
            if kind is not None and stored.schema == kind.schema:
                try:
                    add(kind.read(stored.payload))
                    continue
                except (ValueError, TypeError, OverflowError, RecursionError):
                    pass
            add(self.unpack(stored))
        return events

    def _kind_of(self, event: Any) -> Kind:
        """Return the kind of an event of a class that was not declared, or say why there is none."""
        cls = type(event)
        if not self._untyped:
            names = ", ".join(sorted(self._kinds))
            raise StateSerializationError(
                f"append refused: {cls.__name__} is none of the stream's events ({names})",
                hint=f"add {cls.__name__} to events=[...]",
            )
        if not self._local and field_names(cls) is not None:
            raise StateSerializationError(
                f"append refused: {cls.__name__} events can't be told apart in a durable log without their classes",
                hint=f"pass events=[{cls.__name__}, ...] to StreamAgent",
            )
        kind = self._kinds.get(cls.__name__)
        if kind is None:
            kind = self._open_kind(cls.__name__)
        return kind

    def _open_kind(self, tag: str) -> Kind:
        """Return the kind of events whose class is not declared."""
        steps = self._upcasters.get(tag)
        codec = self._plain if steps is None else Codec(None, migrations=steps, local=self._local)
        kind = self._kinds[tag] = Kind(tag, codec)
        return kind

    def _unpack_foreign(self, stored: StoredEvent) -> E:
        if self._untyped:
            kind = self._open_kind(stored.tag)
            return kind.unpack(stored.payload, stored.schema)  # type: ignore[no-any-return]
        lifted = self._gone.get(stored.tag)
        if lifted is None:
            raise StateSerializationError(
                f"no class in events= has the name {stored.tag!r}",
                hint=f"add {stored.tag} to events=[...], or give upcasters={{{stored.tag!r}: {{1: fn}}}}",
            )
        event = lifted.lift(self._plain.decode(bytes(stored.payload)), stored.schema)
        if type(event) not in self._classes:
            raise StateSerializationError(
                f"its upcaster made a {type(event).__name__} of it, which is none of the stream's events",
                hint="return an instance of a class in events=[...]",
            )
        return event  # type: ignore[no-any-return]

    def _refused(self, tag: str, error: StateError) -> StateError:
        message = f"append of {tag} refused: {error.message.replace('the state', 'the event', 1)}"
        if isinstance(error, StateTooLargeError):
            hint = "split it, or raise max_event_bytes"
            return StateTooLargeError(message, size=error.size, limit=error.limit, hint=hint)
        return StateSerializationError(message, path=getattr(error, "path", None) or "$", hint=error.hint)


def _check_upcasters(upcasters: Any) -> None:
    """Refuse what does not say which class's events are lifted by what.

    Raises:
        TypeError: it doesn't.
    """
    if upcasters is not None and not isinstance(upcasters, Mapping):
        raise TypeError(f"upcasters is {upcasters!r}; give {{'Name': {{1: function}}}}")
    for tag, steps in (upcasters or {}).items():
        if not isinstance(tag, str) or not isinstance(steps, Mapping):
            raise TypeError(f"upcasters has {tag!r}: {steps!r}; give the name of a class and {{version: function}}")
