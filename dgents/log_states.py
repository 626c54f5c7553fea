"""The states in logs, read without owning them: the entries of vector stores, the events of streams."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Literal

from dgents.backends.file import REMINDERS
from dgents.backends.files import safe_name
from dgents.backends.stream_inspect import is_stream, read_stream, stream_key
from dgents.backends.vector_inspect import is_vectors, read_vectors
from dgents.runtime.errors import StateCorruptionError
from dgents.stores import Entry, Other, Stored, entry, stored_stream


def kind_of(path: Path) -> Literal["vectors", "streams"] | None:
    """Say what logs a folder holds: of a vector store, of a stream, or of nothing but streams; None for neither."""
    if is_vectors(path):
        return "vectors"
    if is_stream(path):
        return "streams"
    others = [inner for inner in path.iterdir() if inner.name != REMINDERS]
    return "streams" if others and all(map(is_stream, others)) else None


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
        self._path = path
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
        # Those of a folder with other things in it, too, are told of by the folder.
        is_told_here = self._reminders.is_dir() and kind_of(self._path) == "streams"
        return [Other("reminders", False)] if is_told_here else []


def _read_stream(path: Path) -> Stored:
    return stored_stream(None, stream_key(path), read_stream(path))
