"""A state that is what its events make of it: the audit trail among the agents."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import KW_ONLY, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Generic, TypeVar

from dgents.backends.event_codec import EventCodec, Upcasters
from dgents.backends.event_log import EventLog
from dgents.backends.event_log_journal import JournalLog
from dgents.backends.event_log_memory import MemoryLog
from dgents.backends.event_log_sqlite import SqliteLog
from dgents.backends.file import file_ledger
from dgents.backends.files import safe_name
from dgents.backends.seal import Seal
from dgents.backends.sql import needs_psycopg, sql_ledger, sqlite_path
from dgents.backends.sqlite_tables import check_table_name
from dgents.backends.stream_backend import Plan, StreamBackend
from dgents.backends.stream_cell import StreamCell
from dgents.backends.stream_ref import StreamRef
from dgents.runtime.codec import Codec
from dgents.runtime.contract import Resources
from dgents.runtime.migrations import Migration
from dgents.runtime.reminders import Ledger
from dgents.runtime.shapes import field_names
from dgents.runtime.state_type import S

E = TypeVar("E")

_POSTGRES = ("postgresql://", "postgres://")
_REDIS = ("redis://", "rediss://", "unix://", "redis+", "rediss+")
_MAX_EVENT_BYTES = 64 * 2**20


@dataclass(frozen=True, eq=False)
class StreamAgent(Generic[E, S]):
    """Append events to a log, and keep the state that they make.

    Args:
        fold: ``fold(state, event)`` returns the next state; it may change ``state`` in place and return it. A plain
            function of its two arguments: it is called again when the log is read, in a worker thread. What it raises
            refuses the event.
        initial: the state before the first event. Each actor begins with a copy.
        event_log: where the events are kept. None: in memory. A list: in memory; it begins with these, and a copy of
            each new one is added to it. A directory, for a folder of each stream in it. ``sqlite:///PATH``: a database,
            in ``table``. ``postgresql://...``: the same.
            ``redis://...``: a Redis Stream.
        events: the classes that an event may be: dataclasses, Structs, whatever a schema may be. Left out: any class in
            memory, and built-in types (dicts) in a durable log.
        schema: the type of the state; left out, the class of ``initial`` if it has fields.
        snapshot_every: after how many events the state is kept beside the log, so that not all are read on opening.
        chain: link each event to all before it by a hash, for ``verify()``.
        upcasters: ``{"UserRenamed": {1: fn}}``: what lifts an old event, as dicts and lists, to the next version.
        migrations: by schema version of the state, what lifts a kept state to the next one.
        signing_key: an ed25519 private key, 32 bytes, that signs the head of the chain.
        max_event_bytes: of one encoded event; a larger one is refused.
        key: what the stream is called in its log; None for the actor's name.
        table: in a database, the table of the events.

    Raises:
        ValueError, TypeError: an argument can't be right; nothing was opened.

    Example:
        >>> StreamAgent(lambda total, event: total + event, 0).snapshot_every
        1000
    """

    fold: Callable[[S, E], S]
    initial: S
    _: KW_ONLY
    event_log: list[E] | str | os.PathLike[str] | None = field(default=None, repr=False)  # it may hold a password
    events: Sequence[type[E]] | None = None
    schema: Any = None
    snapshot_every: int = 1000
    chain: bool = False
    upcasters: Upcasters | None = None
    migrations: Mapping[int, Migration] | None = None
    signing_key: bytes | None = field(default=None, repr=False)
    max_event_bytes: int = 16 * 2**20
    key: str | None = None
    table: str = "events"

    if TYPE_CHECKING:

        @property
        def ref_type(self) -> type[StreamRef[S]]: ...
    else:
        ref_type = StreamRef

    cell_type: ClassVar[type[StreamCell]] = StreamCell

    def __post_init__(self) -> None:
        if not callable(self.fold):
            raise TypeError(f"fold is {type(self.fold).__name__}; give a function of the state and an event")
        if isinstance(self.events, type):
            raise TypeError(f"events is the class {self.events.__name__}; give a list of classes")
        if self.snapshot_every < 1:
            raise ValueError(f"snapshot_every is {self.snapshot_every}; give a number of events, 1 or more")
        if not 1 <= self.max_event_bytes <= _MAX_EVENT_BYTES:
            raise ValueError(f"max_event_bytes is {self.max_event_bytes}; give bytes, from 1 to {_MAX_EVENT_BYTES:,}")
        if self.signing_key is not None:
            if isinstance(self.event_log, str) and self.event_log.startswith((*_REDIS, *_POSTGRES)):
                raise ValueError("signing_key: a signed head is kept in a directory or in SQLite, not on a server")
            if not self.chain:
                raise ValueError("signing_key signs the head of a chain: give chain=True with it")
            if not isinstance(self.signing_key, bytes) or len(self.signing_key) != 32:
                raise ValueError("signing_key is an ed25519 private key of 32 bytes")
        check_table_name(self.table)
        log = self.event_log
        if log is not None and not isinstance(log, list):
            log = os.fspath(log)
            object.__setattr__(self, "event_log", log)
            if not log or "\0" in log:
                raise ValueError(f"event_log {log!r} names no directory")
            if "://" in log and not log.startswith((*_POSTGRES, *_REDIS)):
                sqlite_path(log)
        if self.schema is None and not self.local and field_names(type(self.initial)) is not None:
            object.__setattr__(self, "schema", type(self.initial))
        self.codecs()

    @property
    def local(self) -> bool:
        """Whether nothing leaves this process: any class may then be kept without naming it."""
        return self.event_log is None or isinstance(self.event_log, list)

    def codecs(self) -> tuple[Codec[S], EventCodec[E]]:
        """Return what encodes the states and the events: the same ones for all actors of this agent."""
        made: tuple[Codec[S], EventCodec[E]] | None = self.__dict__.get("_codecs")
        if made is None:
            events: EventCodec[E] = EventCodec(
                self.events or (), self.upcasters, local=self.local, max_bytes=self.max_event_bytes
            )
            made = Codec(self.schema, migrations=self.migrations, local=self.local), events
            object.__setattr__(self, "_codecs", made)
        return made

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "_codecs"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)

    def reminders(self, name: str) -> Ledger | None:
        """Return where the reminders of the actor ``name`` are kept: beside its events."""
        log = self.event_log
        if log is None or isinstance(log, list):
            return None
        uri = os.fspath(log)
        if uri.startswith(_REDIS):
            from dgents.backends.redis import redis_ledger

            return redis_ledger(uri)
        if "://" in uri:
            return sql_ledger(uri, self.table)
        return file_ledger(Path(uri).absolute() / ".reminders" / safe_name(self.key or name))

    def backend(self, name: str, resources: Resources) -> StreamBackend[S]:
        """Make the backend of the actor ``name``; no I/O happens before `Backend.open`.

        Raises:
            StateSerializationError: ``initial`` can't be stored.
            UnsupportedOperationError: a library for its log or its signatures is not installed.
        """
        key = self.key if self.key is not None else name
        codec, events = self.codecs()
        seal = Seal(key, name, self.signing_key)
        plan = Plan(self.fold, self.initial, codec, events, self.chain)
        return StreamBackend(key, name, self._log(key, name, events, seal, resources), plan, seal, resources)

    def _log(self, key: str, name: str, events: EventCodec[E], seal: Seal, resources: Resources) -> EventLog:
        log = self.event_log
        if log is None or isinstance(log, list):
            return MemoryLog(log, events, chain=self.chain)
        uri = os.fspath(log)
        if uri.startswith("sqlite:"):
            return SqliteLog(sqlite_path(uri), self.table, key, name, seal, resources)
        if uri.startswith(_POSTGRES):
            try:
                from dgents.backends.event_log_postgres import PostgresLog
            except ImportError as error:
                raise needs_psycopg(error, name) from error
            return PostgresLog(uri, self.table, key, name, seal, resources)
        if uri.startswith(_REDIS):
            from dgents.backends.event_log_redis import RedisLog  # its driver is an optional dependency

            return RedisLog(uri, key, name, seal, resources)
        return JournalLog(Path(os.path.abspath(uri)) / safe_name(key), name, seal, resources)
