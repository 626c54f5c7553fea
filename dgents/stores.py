"""What a place that keeps states says when somebody looks into it: the words that its readers have in common."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple, Protocol

from dgents.backends.event_codec import StoredEvent
from dgents.runtime.contract import Record, Request
from dgents.runtime.describe import describe
from dgents.runtime.errors import StateCorruptionError


class Stored(NamedTuple):
    """One state: its versions, oldest first, the current one last, and the request ids that were applied to it.

    It has no versions if it was claimed and never saved, or has expired since it was listed.

    Attributes:
        classes: of a stream, whose events these are, the name of each one's class.
    """

    table: str | None
    key: str
    records: list[Record]
    requests: list[Request]
    classes: list[str] | None = None


def stored_stream(table: str | None, key: str, events: Sequence[StoredEvent]) -> Stored:
    """Return a stream."""
    records = [Record(it.version, it.epoch, it.saved_at, bytes(it.payload), it.schema) for it in events]
    requests = [Request(it.request, it.version) for it in events if it.request is not None]
    return Stored(table, key, records, requests, [event.tag for event in events])


class Summary(NamedTuple):
    """One state in a list of them.

    Attributes:
        version: the current one; 0 if it was never saved.
        versions: how many are kept.
        size: of the current version in bytes; None if it was deleted.
        is_stream: whether these are the events of a stream.
    """

    table: str | None
    key: str
    version: int
    versions: int
    size: int | None
    saved_at: float
    is_stream: bool = False


class Entry(NamedTuple):
    """One state that is there, read when it is asked for.

    Either call raises `StateCorruptionError` where the state can't be trusted.
    """

    read: Callable[[], Stored]
    summary: Callable[[], Summary]


class Other(NamedTuple):
    """What a place holds besides states, in words; ``is_checked`` says whether `Store.damage` has looked at it."""

    what: str
    is_checked: bool


class NotOurs(StateCorruptionError):
    """What is there does not begin as anything of dgents does: another program's, or nothing any more."""


class Store(Protocol):
    """A place that is open for reading."""

    def entries(self) -> Iterator[Entry]:
        """Yield every state, by table and key."""
        ...

    def find(self, key: str, table: str | None = None) -> list[Stored]:
        """Return the state or stream ``key``: from ``table``, or from each table that has one."""
        ...

    def damage(self) -> Iterator[StateCorruptionError]:
        """Yield what is wrong with the place itself; its states are checked as they are read."""
        ...

    def others(self) -> list[Other]:
        """Return what is there besides states: streams, vectors, reminders."""
        ...


def verify(store: Store) -> Iterator[Stored | StateCorruptionError]:
    """Read everything: yield each state that is whole, and each thing that is not, once."""
    told: set[str] = set()
    for finding in _findings(store):
        if isinstance(finding, StateCorruptionError):
            if str(finding) in told:
                continue
            told.add(str(finding))
        yield finding


def summarize(stored: Stored) -> Summary:
    """Return what a list says of a state."""
    if not stored.records:
        return Summary(stored.table, stored.key, 0, 0, None, 0.0)
    current = stored.records[-1]
    size = None if current.data is None else len(current.data)
    is_stream = stored.classes is not None
    return Summary(stored.table, stored.key, current.version, len(stored.records), size, current.saved_at, is_stream)


class Counts:
    """How much was read whole."""

    def __init__(self) -> None:
        self._counts: dict[tuple[str, str], list[int]] = {}

    def add(self, stored: Stored) -> None:
        """Count a state with its versions, or a stream with its events; nothing for what was never saved."""
        if stored.records:
            nouns = ("state", "version") if stored.classes is None else ("stream", "event")
            counts = self._counts.setdefault(nouns, [0, 0])
            counts[0] += 1
            counts[1] += len(stored.records)

    def __bool__(self) -> bool:
        return bool(self._counts)

    def text(self) -> str:
        """Return it in words."""
        counts = self._counts or {("state", "version"): [0, 0]}
        return ", ".join(
            f"{counted(wholes, whole)} with {counted(parts, part)}" for (whole, part), (wholes, parts) in counts.items()
        )


def counted(number: int, noun: str) -> str:
    """Return ``"1 state"``, ``"2 states"``."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def entry(read: Callable[[], Stored]) -> Entry:
    """Return the entry of a state that has to be read to be summarized."""
    return Entry(read, lambda: summarize(read()))


def _findings(store: Store) -> Iterator[Stored | StateCorruptionError]:
    try:
        yield from store.damage()
        for one in store.entries():
            try:
                stored = one.read()
            except StateCorruptionError as error:
                yield error
            else:
                yield from _check_data(stored)
                yield stored
    except StateCorruptionError as error:
        yield error  # of the place as a whole


def _check_data(stored: Stored) -> Iterator[StateCorruptionError]:
    """What fits its checksum has to be a state, too."""
    for record in stored.records:
        try:
            if record.data is not None:
                describe(record.data)
        except StateCorruptionError as error:
            yield StateCorruptionError(
                f"version {record.version} of {stored.key!r} is damaged: {error}", path=stored.key
            )
