"""The storage of one vector store: its engine in memory, and the directory that keeps it, if there is one."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import anyio
import anyio.to_thread

from dgents.backends.vector_change import Contents
from dgents.backends.vector_states import States
from dgents.backends.vector_store import VectorStore
from dgents.runtime.codec import Codec
from dgents.runtime.contract import Opened, Ownership, Record, Request, Resources, Write
from dgents.runtime.errors import StateError, UnsupportedOperationError

if TYPE_CHECKING:
    from dgents.backends.vector_index import VectorIndex
    from dgents.backends.vector_input import Metric
    from dgents.backends.vector_upkeep import Upkeep


def vector_engine() -> type[VectorIndex]:
    """Return `VectorIndex`.

    Raises:
        ImportError: numpy or faiss is not installed.
    """
    try:
        from dgents.backends.vector_index import VectorIndex
    except ModuleNotFoundError as error:
        if error.name not in ("numpy", "faiss"):
            raise
        raise ImportError(
            f"VectorAgent needs {error.name}, which is not installed: pip install 'dgents[vector]'",
            name=error.name,
        ) from error
    return VectorIndex


class Kind(NamedTuple):
    """What vectors are kept, and how they are searched."""

    dimension: int
    recipe: str
    metric: Metric

    def empty(self) -> VectorIndex:
        """Return an index without vectors; imports numpy and faiss."""
        return vector_engine()(self.dimension, index=self.recipe, metric=self.metric)

    def restore(self, data: memoryview) -> tuple[VectorIndex, int]:
        """Return the index of a snapshot, and its version.

        Raises:
            UnsupportedOperationError: it has another dimension or metric.
        """
        found, version = vector_engine().restore(data, index=self.recipe)
        if (found.dimension, found.metric) != (self.dimension, self.metric):
            raise UnsupportedOperationError(
                f"the vectors there have dimension {found.dimension} and metric {found.metric!r}, "
                f"not {self.dimension} and {self.metric!r}",
                hint="open them as what they are, or save the states anew into another directory",
            )
        return found, version


class VectorBackend:
    """What an actor owns: ``found`` is what `open` read, until the actor takes it.

    Attributes:
        upkeep: what works beside the turns; it ends before the store is closed.
    """

    ownership: Ownership = "exclusive"
    max_history = 0
    deltas = False

    def __init__(self, name: str, path: Path | None, kind: Kind, codec: Codec[Any], resources: Resources) -> None:
        self.key = name
        self.kind = kind
        self.upkeep: Upkeep | None = None
        self._codec = codec
        self._found: Contents | None = None
        self._is_open = False
        self._store = None
        if path is not None:
            self._store = VectorStore(
                path,
                name,
                resources,
                empty=kind.empty,
                restore=kind.restore,
                lift=self._lift,
                schema=codec.version,
            )

    @property
    def store(self) -> VectorStore | None:
        """Where the changes go; None for vectors in memory."""
        return self._store if self._is_open else None

    async def open(self) -> Opened:
        """Read what the directory holds, in a worker thread.

        Raises:
            ImportError: numpy or faiss is not installed.
            ValueError: faiss has no such index.
            DgentError: see `VectorStore.open`.
        """
        if self._store is None:
            self._found = Contents(await anyio.to_thread.run_sync(self.kind.empty), States())
            return Opened(None, epoch=1)
        try:
            found = self._found = await self._store.open()
        except StateError as error:
            if error.actor is None:
                error.actor = self.key
                error.message = f"{self.key!r}: {error.message}"
            raise
        self._is_open = True
        record = None
        if found.version:
            record = Record(found.version, found.epoch, found.saved_at, b"", self._codec.version)
        return Opened(record, found.epoch + 1)

    def take(self) -> Contents:
        """Return what `open` found, and forget it."""
        found, self._found = self._found, None
        assert found is not None
        return found

    def drop(self) -> None:
        """Forget what `open` found: the actor has it, and more, in its memory."""
        self._found = None

    async def read(self) -> Record | None:
        return None

    async def history(self, limit: int | None = None) -> list[Record]:
        return []

    async def requests(self) -> list[Request]:
        """Return the remembered request ids, oldest first."""
        return list(self._store.requests) if self._store is not None else []

    async def committed(self, write: Write) -> bool | None:
        return None

    async def close(self) -> None:
        """Let go of the directory, once nothing works on it any more."""
        with anyio.CancelScope(shield=True):
            upkeep, self.upkeep = self.upkeep, None
            if upkeep is not None:
                await upkeep.stop()
            self._is_open = False
            if self._store is not None:
                await self._store.close()

    def _lift(self, data: bytes, schema: int) -> bytes:
        if schema == self._codec.version:
            return data
        return self._codec.encode(self._codec.decode(data, schema))
