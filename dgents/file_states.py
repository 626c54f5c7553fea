"""The states in files, read without owning them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from dgents.backends import files
from dgents.backends.file import REMINDERS
from dgents.backends.file_format import begins_as_state
from dgents.backends.file_inspect import SUFFIX, read_states, state_files
from dgents.backends.file_reader import LOG_SUFFIX
from dgents.backends.file_state import LOCK_SUFFIX
from dgents.backends.files import safe_name, storage_errors
from dgents.backends.journal_reader import read_journal
from dgents.backends.stream_inspect import is_stream
from dgents.backends.vector_inspect import is_vectors
from dgents.runtime.errors import StateCorruptionError, StorageError, UnsupportedOperationError
from dgents.stores import Entry, NotOurs, Other, Store, Stored, counted, entry


@contextmanager
def open_files(place: str) -> Iterator[Store]:
    """Open the file of a state, or a folder of them, while the block lasts.

    Raises:
        StorageError: there is nothing.
        NotOurs: it is a file of another program.
        UnsupportedOperationError: it is the folder of a journal.
    """
    path = Path(place)
    if not path.exists():
        raise StorageError(f"there is nothing at {place}", retryable=False, hint="check the path")
    if path.is_dir() and any(path.glob("*.journal")):
        raise UnsupportedOperationError(
            f"{place} is a journal, which holds no states by key",
            hint="open it with the agent that wrote it; a StreamAgent's ref has verify() and events()",
        )
    if path.is_file():
        _check_beginning(path)
    yield FileStates(path)


class FileStates:
    """A file a state; see `stores.Store`."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def entries(self) -> Iterator[Entry]:
        for path in self._paths():
            yield entry(partial(_read_file, path))

    def find(self, key: str, table: str | None = None) -> list[Stored]:
        if self._path.is_dir():
            path = self._path / (safe_name(key) + SUFFIX)
            if path.exists():
                return [_read_file(path)]
        # A file of its own may be called anything.
        return [stored for stored in map(_read_file, self._paths()) if stored.key == key]

    def damage(self) -> Iterator[StateCorruptionError]:
        for path in self._journals():
            try:
                for batch in read_journal(path):
                    batch.records()
            except StateCorruptionError as error:
                yield error

    def others(self) -> list[Other]:
        if not self._path.is_dir():
            kept = self._path.parent / REMINDERS / self._path.name
            return [Other("reminders", False)] if kept.exists() else []
        journals = len(self._journals())
        found = [Other(counted(journals, "journal"), True)] if journals else []
        if (self._path / REMINDERS).is_dir() and state_files(self._path / REMINDERS):
            found.append(Other("reminders", False))
        return found

    def _journals(self) -> list[Path]:
        """Return the folders of what was written behind: those of streams and of vector stores are no part of this."""
        if not self._path.is_dir():
            return []
        folders = [path for path in sorted(self._path.iterdir()) if path.is_dir() and any(path.glob("*.journal"))]
        return [path for path in folders if not is_stream(path) and not is_vectors(path)]

    def _paths(self) -> list[Path]:
        if not self._path.is_dir():
            return [self._path]
        found = set(state_files(self._path))
        for log in self._path.glob(f"*{LOG_SUFFIX}"):
            path = log.with_name(log.name.removesuffix(LOG_SUFFIX))
            # A history whose state is gone is damage, and is found by reading the state.
            if path.suffix == SUFFIX or path.with_name(path.name + LOCK_SUFFIX).exists():
                found.add(path)
        return sorted(found)


def _check_beginning(path: Path) -> None:
    """Tell a file of another program from one of ours that is damaged: ours has its lock or its history beside it."""
    if path.suffix == SUFFIX or any(path.with_name(path.name + end).exists() for end in (LOCK_SUFFIX, LOG_SUFFIX)):
        return
    with storage_errors(path, "read"):
        content = files.layer.read(path)
    if not begins_as_state(content):
        raise NotOurs(
            f"{path} is no file of dgents: it does not begin as one",
            path=str(path),
            offset=0,
            hint="it was left as it is; check the path, or restore a backup if it held a state",
        )


def _read_file(path: Path) -> Stored:
    ((key, records, requests),) = read_states(path)
    return Stored(None, key, records, requests)
