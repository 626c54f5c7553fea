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
from dgents.backends.redis_url import parse_redis_url
from dgents.backends.seal import Seal
from dgents.backends.sql import check_postgres, needs_psycopg, sql_ledger, sqlite_path
from dgents.backends.sqlite_tables import check_table_name
from dgents.backends.stream_backend import StreamBackend
from dgents.backends.stream_cell import StreamCell
from dgents.backends.stream_ref import StreamRef
from dgents.backends.stream_replays import Plan
from dgents.backends.url import is_half_a_url
from dgents.runtime.arguments import check_count, check_database_key, check_key, check_path
from dgents.runtime.codec import Codec
from dgents.runtime.contract import Resources
from dgents.runtime.errors import StateError
from dgents.runtime.ledger import Ledger
from dgents.runtime.migrations import Migration
from dgents.runtime.shapes import field_names
from dgents.runtime.state_type import S
from dgents.runtime.turns import own_copy

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
        initial: the state before the first event. Each actor begins with a copy of what it is now.
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
        StateSerializationError (a TypeError): ``initial`` can't be stored.

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
        _check_classes(self.events)
        if isinstance(self.initial, type):
            raise TypeError(f"initial is the class {self.initial.__name__}; give the state before the first event")
        check_count("snapshot_every", self.snapshot_every, of="number of events")
        check_count("max_event_bytes", self.max_event_bytes, most=_MAX_EVENT_BYTES, of="number of bytes")
        if not isinstance(self.chain, bool):
            raise TypeError(f"chain is {self.chain!r}; give True or False")
        if self.key is not None:
            check_key("key", self.key)
        check_key("table", self.table)
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
            log = check_path("event_log", log)
            object.__setattr__(self, "event_log", log)
            _check_place(log, self.table)
        if self.schema is None and not self.local and field_names(type(self.initial)) is not None:
            object.__setattr__(self, "schema", type(self.initial))
        object.__setattr__(self, "initial", own_copy(self.initial))
        self.plan()

    @property
    def local(self) -> bool:
        """Whether nothing leaves this process: any class may then be kept without naming it."""
        return self.event_log is None or isinstance(self.event_log, list)

    def plan(self) -> Plan:
        """Return what all actors of this agent have in common: among it what encodes the states and the events.

        Raises:
            StateSerializationError: ``initial`` can't be stored.
        """
        made: Plan | None = self.__dict__.get("_plan")
        if made is None:
            events: EventCodec[E] = EventCodec(
                self.events or (), self.upcasters, local=self.local, max_bytes=self.max_event_bytes
            )
            codec: Codec[S] = Codec(self.schema, migrations=self.migrations, local=self.local)
            try:
                initial = codec.encode(self.initial)
            except StateError as error:
                error.message = error.message.replace("the state", "initial", 1)
                raise
            made = Plan(self.fold, initial, codec, events, self.chain)
            object.__setattr__(self, "_plan", made)
        return made

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "_plan"}

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
            UnsupportedOperationError: a library for its log or its signatures is not installed.
        """
        key = self.key if self.key is not None else name
        plan = self.plan()
        seal = Seal(key, name, self.signing_key)
        return StreamBackend(key, name, self._log(key, name, plan.events, seal, resources), plan, seal, resources)

    def _log(self, key: str, name: str, events: EventCodec[E], seal: Seal, resources: Resources) -> EventLog:
        log = self.event_log
        if log is None or isinstance(log, list):
            return MemoryLog(log, events, chain=self.chain)
        uri = os.fspath(log)
        if uri.startswith(("sqlite:", *_POSTGRES)):
            check_database_key("the key of a stream", key)
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


def _check_place(log: str, table: str) -> None:
    """Check what can be checked of the place of a log without opening it.

    Raises:
        ValueError: it can't be right. Nothing of it is in the message.
    """
    if log.startswith(_REDIS):
        parse_redis_url(log)
    elif log.startswith(_POSTGRES):
        check_postgres(log, table)
    elif "://" in log or is_half_a_url(log):
        sqlite_path(log)


def _check_classes(events: Any) -> None:
    """Refuse what can't be the classes of events.

    Raises:
        TypeError: it is no list of classes.
    """
    if isinstance(events, type):
        raise TypeError(f"events is the class {events.__name__}; give a list of classes")
    if events is not None and not isinstance(events, Sequence):
        raise TypeError(f"events is {events!r}; give a list of classes")
    for cls in events or ():
        if not isinstance(cls, type):
            raise TypeError(f"events has {cls!r}, which is no class; give a list of classes, which tell events apart")
