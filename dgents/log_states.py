"""The states in logs, read without owning them: the entries of vector stores, the events of streams."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Literal

from dgents.backends.file import REMINDERS
from dgents.backends.file_inspect import state_files
from dgents.backends.files import safe_name
from dgents.backends.stream_inspect import is_stream, read_stream, stream_key
from dgents.backends.vector_inspect import is_vectors, read_vectors
from dgents.runtime.contract import Record, Request
from dgents.runtime.errors import StateCorruptionError
from dgents.stores import Entry, Other, Stored, entry


def kind_of(path: Path) -> Literal["vectors", "streams"] | None:
    """Say what logs a folder holds: of a vector store, of a stream, or of nothing but streams; None for neither."""
    if is_vectors(path):
        return "vectors"
    if is_stream(path) or (any(map(is_stream, path.iterdir())) and not state_files(path)):
        return "streams"
    return None


class VectorStates:
    """An entry a state, its id the key; see `stores.Store`."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def entries(self) -> Iterator[Entry]:
        for id, record in sorted(read_vectors(self._path).items(), key=str):
            yield entry(partial(Stored, None, str(id), [record], []))

    def find(self, key: str, table: str | None = None) -> list[Stored]:
        found = {str(id): record for id, record in read_vectors(self._path).items()}
        return [Stored(None, key, [found[key]], [])] if key in found else []

    def damage(self) -> Iterator[StateCorruptionError]:
        return iter(())

    def others(self) -> list[Other]:
        return []


class StreamStates:
    """A stream a state, each of its events a version; see `stores.Store`."""

    def __init__(self, path: Path) -> None:
        self._reminders = (path.parent if is_stream(path) else path) / REMINDERS
        self._paths = [path] if is_stream(path) else sorted(filter(is_stream, path.iterdir()))

    def entries(self) -> Iterator[Entry]:
        for path in self._paths:
            yield entry(partial(_read_stream, path))

    def find(self, key: str, table: str | None = None) -> list[Stored]:
        return [_read_stream(path) for path in self._paths if path.name == safe_name(key)]

    def damage(self) -> Iterator[StateCorruptionError]:
        return iter(())

    def others(self) -> list[Other]:
        return [Other("reminders", False)] if self._reminders.is_dir() else []


def _read_stream(path: Path) -> Stored:
    events = read_stream(path)
    records = [Record(it.version, it.epoch, it.saved_at, bytes(it.payload), it.schema) for it in events]
    requests = [Request(it.request, it.version) for it in events if it.request is not None]
    return Stored(None, stream_key(path), records, requests)
