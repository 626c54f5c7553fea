"""An actor whose state is in a file of its own."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import KW_ONLY, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, Literal, TypeAlias, get_args

import anyio
import anyio.to_thread

from dgents.backends.compression import Compression, check_available
from dgents.backends.file_format import Format, Shape
from dgents.backends.file_inspect import SUFFIX
from dgents.backends.file_state import StateFile
from dgents.backends.file_store import FileStore
from dgents.backends.file_upkeep import Settings
from dgents.backends.files import safe_name
from dgents.runtime.arguments import check_choice, check_history, check_path
from dgents.runtime.contract import Opened, Ownership, Record, Request, Resources, Write
from dgents.runtime.errors import StorageError
from dgents.runtime.ledger import Entries, Ledger
from dgents.runtime.migrations import Migrations
from dgents.runtime.state_type import S

if TYPE_CHECKING:
    from dgents.runtime.ref import Ref

REMINDERS = ".reminders"  # the folder beside the states
Durability: TypeAlias = Literal["fsync", "os"]


@dataclass(frozen=True)
class PersistentAgent(Generic[S]):
    """A state in a file, with its earlier versions in another one beside it.

    Durability: with ``"fsync"`` a version is on the disk before it is acknowledged. With ``"os"`` it survives
    the death of the process, not of the machine.

    Ownership: exclusive. A second process, or a second actor with the same path, gets `StateLockedError`.

    Args:
        path: the file; folders that are missing are made. If it ends in a separator, or is a folder, each actor
            has a file of its own in it, named after the actor: one description for many actors.
        schema: the type of the state; None for plain builtins.
        format: ``"json"``, which a person can read, or ``"msgpack"``, which is smaller and writes only what a
            patch changed. What is there is read in either, and goes over to this one with the next save.
        compression: ``"gzip"``, ``"zstd"`` or None; `zcat` and `zstdcat` read the file.
        max_history: how many versions are kept, the current one among them; 0 keeps that one only.
        durability: ``"fsync"`` or ``"os"``.
        migrations: by schema version, the function that lifts a state from it to the next.

    Raises:
        ValueError, TypeError: an argument can't be right; nothing was opened.

    Example:
        >>> PersistentAgent("states/", max_history=10).format
        'json'
    """

    path: str | os.PathLike[str]
    schema: type[S] | None = None
    _: KW_ONLY
    format: Format = "json"
    compression: Compression | None = None
    max_history: int = 100
    durability: Durability = "fsync"
    migrations: Mapping[int, Callable[[Any], Any]] | None = None

    if TYPE_CHECKING:

        @property
        def ref_type(self) -> type[Ref[S]]: ...

    def __post_init__(self) -> None:
        path = check_path("path", self.path)
        if "://" in path:
            raise ValueError("path is a URL: give a file, or use a SQLAgent, a RedisAgent or a StreamAgent for it")
        object.__setattr__(self, "path", path)
        check_choice("format", self.format, get_args(Format))
        check_choice("compression", self.compression, (None, *get_args(Compression)))
        check_choice("durability", self.durability, get_args(Durability))
        check_history(self.max_history)
        Migrations(self.migrations, None)

    def reminders(self, name: str) -> Ledger:
        """Return where the reminders of the actor ``name`` are kept: in a folder beside the state's file."""
        path = os.fspath(self.path)
        in_folder = path.endswith(_SEPARATORS) or os.path.isdir(path)
        file = Path(path, safe_name(name)) if in_folder else Path(path)
        return file_ledger(file.absolute().parent / REMINDERS / file.name)

    def backend(self, name: str, resources: Resources) -> FileBackend:
        """Make the backend of the actor ``name``; no I/O happens before `Backend.open`."""
        settings = Settings(Shape(self.format, self.compression), self.max_history, self.durability == "fsync")
        return FileBackend(os.fspath(self.path), name, settings, resources)


def file_ledger(path: Path) -> Ledger:
    """Return a ledger of reminders in a file of its own."""

    async def exists(resources: Resources) -> bool:
        return os.path.exists(path)  # noqa: ASYNC240 (a microsecond, where a thread costs a hundred)

    return Ledger(PersistentAgent(path, schema=Entries, format="msgpack", max_history=0), exists)


class FileBackend:
    """The state of the actor ``key``, in the file ``path`` or in a file in the folder ``path``."""

    ownership: Ownership = "exclusive"

    def __init__(self, path: str, key: str, settings: Settings, resources: Resources) -> None:
        self.key = key
        self.max_history = settings.max_history
        self.deltas = settings.deltas
        self._in_folder = path.endswith(_SEPARATORS)
        self._path = Path(os.path.abspath(path))
        self._settings = settings
        self._resources = resources
        self._state: StateFile | None = None
        self._store: FileStore | None = None

    @property
    def store(self) -> FileStore | None:
        """The store that this state's writes go to; None while closed."""
        return self._store

    @property
    def state(self) -> StateFile:
        """The file; there once `open` was called."""
        if self._state is None:
            raise StorageError(f"{self._path} is not open", actor=self.key, hint="open it first")
        return self._state

    async def open(self) -> Opened:
        """Lock the state, clean up what a dead owner left, and read it.

        Raises:
            StateLockedError: another owner has it; it names that process and its host.
            StateCorruptionError: the file was changed, or is missing while its history is there.
            StorageError: it can't be read or written, or a newer dgents wrote it.
            UnsupportedOperationError: the library for its compression is not installed.
        """
        check_available(self._settings.shape.compression)
        try:
            if self._state is None:
                self._state = StateFile(await self._find(), self.key, self._settings)
            if self._store is None:
                self._store = await self._acquire(self._state.path.parent)
            return await self._store.run(self._state.open)
        except BaseException:
            with anyio.CancelScope(shield=True):
                await self.close()
            raise

    async def read(self) -> Record | None:
        """Return the current version from the file."""
        return await self._opened().run(self.state.read)

    async def history(self, limit: int | None = None) -> list[Record]:
        """Return the newest ``limit`` of the kept versions, oldest first, the current one last.

        Raises:
            StateCorruptionError: one of them was changed or is missing; the current one may still be readable.
        """
        return await self._opened().run(lambda: self.state.history(limit))

    async def requests(self) -> list[Request]:
        """Return the remembered request ids, oldest first."""
        return self.state.requests()

    async def committed(self, write: Write) -> bool | None:
        """Nothing is known here that `open` does not tell: no other process writes this state."""
        return None

    async def close(self) -> None:
        """Let go of the file, so that another process can own it."""
        store, self._store = self._store, None
        if store is None:
            return
        with anyio.CancelScope(shield=True):
            try:
                await store.run(self.state.close)
            finally:
                await self._resources.release(_store_key(store.directory))

    async def _find(self) -> Path:
        """Return the file's path: in the folder, if the path is one."""
        if self._in_folder or await anyio.to_thread.run_sync(os.path.isdir, self._path):
            return self._path / (safe_name(self.key) + SUFFIX)
        return self._path

    async def _acquire(self, directory: Path) -> FileStore:
        async def make() -> FileStore:
            return FileStore(directory)

        return await self._resources.acquire(_store_key(directory), make)

    def _opened(self) -> FileStore:
        if self._store is None:
            raise StorageError(f"{self._path} is not open", actor=self.key, hint="open it first")
        return self._store


_SEPARATORS = tuple(separator for separator in (os.sep, os.altsep) if separator)


def _store_key(directory: Path) -> tuple[str, str]:
    return ("files", str(directory))
