"""What an actor asks of the backend that it owns: the only words that runtime and backends have in common.

An **agent** is a plain description (`VolatileAgent(...)`, `SQLAgent(...)`). It makes one **backend** for each actor,
without any I/O; `open` claims the state and reads it. Backends that write to the same place (a database, a directory,
a server) share one **store**, and a store commits the writes of many actors at once.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Hashable, Sequence
from typing import Any, Literal, NamedTuple, Protocol, TypeAlias, TypeVar

import msgspec

from dgents.runtime.errors import DgentError

T = TypeVar("T")
Ownership: TypeAlias = Literal["exclusive", "shared"]


class Record(msgspec.Struct, frozen=True, gc=False):
    """One version of one state, as it is stored.

    ``data`` is the encoded state (None: a tombstone, the state was deleted). ``delta`` is the encoded change that
    leads here from the version before (see `codec.encode_patch`); a backend with ``deltas`` may store it in place
    of ``data``. ``saved_at`` is in seconds since 1970, UTC; it informs and never decides.
    """

    version: int
    epoch: int
    saved_at: float
    data: bytes | None
    schema: int = 1
    delta: bytes | None = None


class Request(msgspec.Struct, frozen=True, gc=False):
    """A request id that was applied, and what its first answer was.

    ``result`` is the encoded new state for an ``update``, None where the version is the whole answer.
    """

    id: str
    version: int
    result: bytes | None = None


class Opened(msgspec.Struct):
    """What a backend found when it was opened. ``epoch`` is the one to write with from now on."""

    record: Record | None
    epoch: int


class StateIdentity(NamedTuple):
    """Which state it is that a backend keeps, however the place is called.

    Attributes:
        place: equal for all agents that reach the same place.
        key: what the state is called there.
        text: how the place is called in messages, without secrets.
    """

    place: Hashable
    key: str
    text: str


class Write(msgspec.Struct):
    """What one actor hands to its store in one batch.

    Invariants: ``records`` is not empty, oldest first, versions consecutive; the first is ``base + 1``, or later if the
    bound of the history would drop the ones before it. A store keeps the newest ``backend.max_history`` of them and may
    skip the others. ``requests`` are stored in the same atomic step. ``backend`` is the innermost one, of the store's
    own kind.
    """

    backend: Backend
    base: int
    records: list[Record]
    requests: Sequence[Request]
    actor: str = ""


class Store(Protocol):
    """One place that commits: the writes of many actors, in one transaction or one fsync.

    A store that works beside this process (a server) may have an attribute ``most_writes``: how many writes it is given
    in one commit. Others get all that wait.
    """

    async def commit(self, writes: Sequence[Write]) -> Sequence[DgentError | None]:
        """Make the writes durable, and answer for each: None when it is, or why this one was refused.

        A refusal (`OwnershipLostError`, `VersionConflictError`, `StateTooLargeError`, ...) means that nothing of that
        write was stored; the others are not affected by it. Runs in a task that is never cancelled.

        Raises:
            StorageError: the batch failed; what is stored is not known until `Backend.open` has read it again.
        """
        ...


class Backend(Protocol):
    """The storage of one actor's state.

    Attributes:
        key: what the state is called in the store.
        ownership: ``exclusive``: `open` claims a new epoch, the actor keeps the state in memory, every write is
            conditional on the epoch. ``shared``: every write is a compare-and-set on ``Write.base``.
        max_history: how many versions are kept, the current one among them; 0 keeps the current one only.
        deltas: whether the store can keep ``Record.delta`` in place of ``Record.data``.
        store: where the writes go; None for a state that is not stored at all. Valid once open.

    A backend of a database or a server may have an attribute ``identity``, a `StateIdentity`: two actors of one runtime
    may have the same one only if both are shared. (Files have their locks.)
    """

    key: str
    ownership: Ownership
    max_history: int
    deltas: bool

    @property
    def store(self) -> Store | None: ...

    async def open(self) -> Opened:
        """Claim the state and read it. Called again after a failure, on the same backend, after `close`.

        Raises:
            StateLockedError: another process owns it.
            StateCorruptionError: it can't be read; it is left as it was.
            StorageError: the store can't be reached or refuses.
        """
        ...

    async def read(self) -> Record | None:
        """Return the stored version as it is now, or None if there is none."""
        ...

    async def history(self, limit: int | None = None) -> list[Record]:
        """Return the kept versions with ``data``, oldest first, the current one last; the newest ``limit`` of them."""
        ...

    async def requests(self) -> list[Request]:
        """Return the remembered request ids, oldest first: at most the last 1,000."""
        ...

    async def committed(self, write: Write) -> bool | None:
        """Tell whether a shared write that failed was stored after all; None if that can't be known."""
        ...

    async def close(self) -> None:
        """Let go of the state. Never raises for a store that is gone."""
        ...


class Resources(Protocol):
    """What the backends of one runtime share: one connection a database, one lock a directory."""

    async def acquire(self, key: Hashable, opener: Callable[[], Awaitable[T]]) -> T:
        """Return the value under ``key``, opening it on first use; concurrent callers wait for one opening."""
        ...

    async def release(self, key: Hashable) -> None:
        """Give it back; the last one to do so closes it (``await value.close()``)."""
        ...

    async def run_asyncio(self, fn: Callable[..., Awaitable[T]], *args: Any) -> T:
        """Await ``fn(*args)`` on an asyncio loop, for libraries that know only asyncio.

        Under asyncio that is the running loop. Under trio it is one portal thread of this runtime.
        Cancellation: shielded; the call always runs to its end.
        """
        ...

    def emit(self, kind: str, actor: str | None = None, **details: Any) -> None:
        """Publish a lifecycle event."""
        ...


class Agent(Protocol):
    """A plain description of an actor: picklable, no I/O, may be used for many actors."""

    def backend(self, name: str, resources: Resources) -> Backend:
        """Make the backend of the actor ``name``; no I/O happens before `Backend.open`."""
        ...
