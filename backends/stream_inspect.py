"""Reading the events of a stream in a directory without owning it: for people and for tools."""

from __future__ import annotations

import contextlib
from pathlib import Path
from urllib.parse import unquote_to_bytes

import msgspec

from dgents.backends.chain import GENESIS, Links, broken
from dgents.backends.chain_head import check_head, check_reach, reach_of
from dgents.backends.event_codec import StoredEvent
from dgents.backends.event_log import LogState, StateSnapshot, check_numbers
from dgents.backends.event_log_files import FLOOR, HEAD, LATEST, OWNER_LOCK, read_snapshot
from dgents.backends.head_file import HeadFile
from dgents.backends.journal_reader import read_journal
from dgents.backends.seal import read_head
from dgents.backends.stream_checks import check_length
from dgents.backends.vector_inspect import is_vectors
from dgents.runtime.errors import StateCorruptionError

_ATTEMPTS = 5

_decode = msgspec.msgpack.Decoder(StoredEvent).decode


def is_stream(directory: Path) -> bool:
    """Say whether a directory holds the events of one stream; a vector store has a lock and a journal, too."""
    has_events = (directory / OWNER_LOCK).exists() and any(directory.glob("*.journal"))
    return has_events and not is_vectors(directory)


def stream_key(directory: Path) -> str:
    """Return what the stream is called in its log, as far as the name of its folder tells."""
    return unquote_to_bytes(directory.name).decode("utf-8", "surrogatepass")


def read_stream(directory: Path) -> list[StoredEvent]:
    """Return the events of a stream, after checking their numbers, their links and its head.

    Takes no lock and writes nothing; also while an owner writes. A signature is not checked: that needs the key.

    Raises:
        StateCorruptionError: ``event`` is the first one that is not what was appended.
        StorageError: a file can't be read.
    """
    name = str(directory)
    for attempt in range(_ATTEMPTS):
        floor = read_snapshot(directory / FLOOR, name)
        try:
            return _read(directory, floor)
        except StateCorruptionError:
            # The owner may have removed what is in front of a new floor.
            if attempt == _ATTEMPTS - 1 or read_snapshot(directory / FLOOR, name) == floor:
                raise
    raise AssertionError("the last attempt returns or raises")


def _read(directory: Path, floor: StateSnapshot | None) -> list[StoredEvent]:
    name = str(directory)
    # Before the events: an owner writes them after those.
    heads = HeadFile(directory / HEAD).open()
    latest = None
    with contextlib.suppress(StateCorruptionError):  # a stream opens without it
        latest = read_snapshot(directory / LATEST, name)
    links = Links(name, floor.version if floor else 0, (floor.link if floor else None) or GENESIS)
    events: list[StoredEvent] = []
    for batch in read_journal(directory, links.version + 1):
        for number, record in enumerate(batch.records(), batch.first):
            try:
                event = _decode(record)
            except msgspec.DecodeError as error:
                raise broken(name, number, f"it can't be read ({error})") from error
            if number > links.version:
                events.append(event)
    check_numbers(name, events, links.version + 1)
    if events and events[0].link is not None:
        links.follow(events)
    last = events[-1].version if events else links.version
    check_length(name, LogState(last, None, 0, floor, latest), 0)
    if heads is not None:
        reach = reach_of(name, [read_head(name, head) if head else None for head in heads])
        check_reach(name, reach, last)
        named = reach.head.version - (floor.version if floor else 0)
        if named > 0:
            check_head(name, reach.head, reach.head.version, events[named - 1].link or GENESIS)
    elif links.link != GENESIS:
        raise broken(name, last + 1, "the head of the chain is missing, so it may have been cut off")
    return events
