"""The states in files, read without owning them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from dgents.backends.file_inspect import SUFFIX, read_states, state_files
from dgents.backends.file_reader import LOG_SUFFIX
from dgents.backends.file_state import LOCK_SUFFIX
from dgents.backends.files import safe_name
from dgents.runtime.errors import StateCorruptionError, StorageError, UnsupportedOperationError
from dgents.stores import Entry, Store, Stored, entry


@contextmanager
def open_files(place: str) -> Iterator[Store]:
    """Open the file of a state, or a folder of them, while the block lasts.

    Raises:
        StorageError: there is nothing.
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
        return iter(())

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


def _read_file(path: Path) -> Stored:
    ((key, records, requests),) = read_states(path)
    return Stored(None, key, records, requests)
