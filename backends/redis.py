"""An actor whose state is in Redis: shared by default, by any number of processes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import KW_ONLY, dataclass, field
from typing import TYPE_CHECKING, Any, Generic, get_args

import anyio

from dgents.backends.redis_durability import Durability, warnings
from dgents.backends.redis_fence import MAX_REQUESTS, Fence, Sent, decode_request
from dgents.backends.redis_keys import RedisKeys
from dgents.backends.redis_record import Header, decode, decode_all, decode_header
from dgents.backends.redis_ref import RedisRef
from dgents.backends.redis_url import RedisPlace, parse_redis_url
from dgents.runtime.arguments import check_choice, check_history, check_key, check_seconds
from dgents.runtime.contract import Opened, Ownership, Record, Request, Resources, StateIdentity, Write
from dgents.runtime.errors import StateCorruptionError, StorageError, UnsupportedOperationError
from dgents.runtime.ledger import Entries, Ledger
from dgents.runtime.migrations import Migrations
from dgents.runtime.state_type import S

if TYPE_CHECKING:
    from dgents.backends.redis_store import RedisStore


REMINDERS_KEY = "dgents:reminders"
_SETTLED_LIFE = 24 * 3600.0  # seconds that the mark of a write that never arrived is kept; no network delays longer


@dataclass(frozen=True)
class RedisAgent(Generic[S]):
    """A state in a Redis server, a sentinel's master, or a cluster.

    Args:
        redis_url: ``redis://``, ``rediss://`` (TLS), ``unix://``, ``redis+sentinel://`` or
            ``redis+cluster://``; user, password and redis-py's options may be in it. See docs/redis.md.
        key: what the state is called in Redis; None for the actor's name.
        schema: the type of the state; None for plain builtins.
        ttl: seconds after the last write at which the state expires; None: never. Only for a shared state,
            since an exclusive owner keeps it in memory.
        max_history: how many versions are kept, the current one among them; 0 keeps that one only.
        ownership: ``"shared"`` (compare-and-set, any number of processes) or ``"exclusive"`` (the newest
            owner).
        durability: when a write counts: ``"memory"`` once the server has it, ``"aof"`` once it is in its
            append-only file, ``"replicas:N"`` once N replicas have it too.
        migrations: by schema version, the function that lifts a state from it to the next.

    Raises:
        ValueError: an argument can't be right; nothing was connected.

    Example:
        >>> RedisAgent("redis://user:secret@cache.example/0", ttl=3600).place.safe
        'redis://cache.example:6379/0'
    """

    redis_url: str = field(repr=False)  # it may hold a password
    key: str | None = None
    schema: type[S] | None = None
    _: KW_ONLY
    ttl: float | None = None
    max_history: int = 0
    ownership: Ownership = "shared"
    durability: str = "memory"
    migrations: Mapping[int, Callable[[Any], Any]] | None = None

    if TYPE_CHECKING:

        @property
        def ref_type(self) -> type[RedisRef[S]]: ...
    else:
        ref_type = RedisRef

    def __post_init__(self) -> None:
        place, durability = self.place, Durability.parse(self.durability)
        if self.key is not None:
            check_key("key", self.key)
        check_choice("ownership", self.ownership, get_args(Ownership))
        check_history(self.max_history)
        if self.ttl is not None:
            check_seconds("ttl", self.ttl, default="; None keeps the state for ever")
        Migrations(self.migrations, None)
        if self.ttl is not None and self.ownership == "exclusive":
            raise ValueError("ttl needs ownership='shared': an exclusive owner keeps the state in memory")
        if durability.replicas and place.kind == "cluster":
            raise ValueError("durability='replicas:N' can't be had from a cluster; use its min-replicas-to-write")

    @property
    def place(self) -> RedisPlace:
        """Where the URL points to; ``place.safe`` may be printed."""
        return parse_redis_url(self.redis_url)

    def reminders(self, name: str) -> Ledger:
        """Return where the reminders of the actor ``name`` are kept: in a state of the same Redis database."""
        return redis_ledger(self.redis_url)

    def backend(self, name: str, resources: Resources) -> RedisBackend:
        """Make the backend of the actor ``name``; no I/O happens before `Backend.open`.

        Raises:
            ValueError: ``name`` is to be the key, and is empty.
            UnsupportedOperationError: redis-py or hiredis is not installed.
        """
        try:
            import hiredis  # noqa: F401  # optional dependencies, said by name before anything needs them
            import redis  # noqa: F401
        except ImportError as error:
            raise UnsupportedOperationError(
                "a RedisAgent needs redis-py and hiredis", actor=name, hint="pip install 'dgents[redis]'"
            ) from error
        return RedisBackend(name, self, resources)


def redis_ledger(redis_url: str) -> Ledger:
    """Return the ledger of reminders in a Redis database; any number of processes may share it."""

    async def exists(resources: Resources) -> bool:
        return True  # to ask would cost as much as to open it, which writes nothing

    return Ledger(RedisAgent(redis_url, REMINDERS_KEY, Entries), exists)


class RedisBackend:
    """The storage of one actor's state in Redis.

    Attributes:
        fence: what this actor knows about its stored state, and may therefore write.
        went_back: (had, has) if the server holds a version below one that it acknowledged to this backend: it
            was restarted without its data, failed over to a lagging replica, or evicted the state.
    """

    deltas = False

    def __init__(self, name: str, agent: RedisAgent[Any], resources: Resources) -> None:
        self.name = name
        self.key = agent.key if agent.key is not None else check_key("the actor's name", name)
        self.ownership = agent.ownership
        self.max_history = agent.max_history
        self.keys = RedisKeys(self.key)
        self.went_back: tuple[int, int] | None = None
        self.fence = Fence(
            name,
            self.key,
            agent.ownership,
            ttl=max(1, int(agent.ttl * 1000)) if agent.ttl is not None else 0,
            max_history=agent.max_history,
            on_went_back=self._note_went_back,
        )
        self._agent = agent
        self._resources = resources
        self._store: RedisStore | None = None
        self._listeners: dict[Callable[[], None], Callable[[bytes | None], None]] = {}

    @property
    def identity(self) -> StateIdentity:
        """Which state this is: the same in every agent that names this database and key."""
        place = self._agent.place
        return StateIdentity(("redis", *place.database), self.key, place.safe)

    @property
    def store(self) -> RedisStore | None:
        return self._store

    async def open(self) -> Opened:
        """Read the state; an exclusive owner claims it, too, so that no earlier owner can write any more.

        An owner whose writes were refused, and who is not in doubt about any, still owns the state and keeps
        its epoch.

        Raises:
            StateCorruptionError: something else is under the key; it is left as it is.
            StorageError: the server can't be reached or refuses.
        """
        if self._store is None:
            await self._acquire()
        try:
            self._warn()
            header, record = await self._read()
            if self.ownership == "shared":
                return Opened(record, record.epoch if record else 1)
            if header is None or not self.fence.still_owns(header):
                value = await self._open_store.claim(self.keys, self.fence.new_mark())
                assert value is not None, "a claim makes what it does not find"
                header, record = decode(value, self.key)
            return Opened(record, self.fence.claimed(header))
        except BaseException:
            await self.close()
            raise

    async def read(self) -> Record | None:
        """Return the stored version as it is now, or None if there is none."""
        return (await self._read())[1]

    async def history(self, limit: int | None = None) -> list[Record]:
        """Return the kept versions, oldest first, the current one last; the newest ``limit`` of them."""
        count = self.max_history if limit is None else min(limit, self.max_history)
        if limit == 0:
            return []
        value, entries = await self._open_store.history(self.keys, max(count, 1))
        return decode_all(self.key, value, entries)[-max(count, 1) :]

    async def requests(self) -> list[Request]:
        """Return the remembered request ids, oldest first; the last 1,000."""
        stored = await self._open_store.ask(self.keys, "LRANGE", self.keys.requests, -MAX_REQUESTS, -1)
        return [decode_request(data) for data in stored]

    async def committed(self, write: Write) -> bool | None:
        """Find out whether a write was stored whose commit failed; None if others have written over it since.

        A write that has not arrived by now never will: the state gets a new mark, which the write does not
        name.
        """
        sent = self.fence.sent
        if sent is None or sent.version != write.records[-1].version:
            return False  # it never went out
        try:
            value = await self._open_store.read_confirmed(self.keys)
            header = decode_header(value, self.key) if value is not None else None
            if _stamp(header) == sent.expected and self.ownership == "shared":
                mark = self.fence.new_mark()
                value = await self._open_store.claim(self.keys, mark, sent.expected, _SETTLED_LIFE)
                header = decode_header(value, self.key) if value is not None else None
                if header is not None and header.mark == mark:
                    self.fence.see(header)
                    return False
            if sent.is_in(header):
                return True
            if header is None or header.version <= sent.version:
                return None if _stamp(header) == sent.expected else False
            return await self._was_stored(sent, write)
        except StateCorruptionError:
            return None

    async def execute(self, *args: Any) -> Any:
        """Run a raw Redis command; the keys in it are the user's own. The reply is shaped as redis-py does.

        Raises:
            UnsupportedOperationError: the command would change the connection that all actors share.
            StorageError: the server refused it, or the connection failed; it is never sent twice.
        """
        return await self._open_store.execute(*args)

    async def subscribe(self, changed: Callable[[], None]) -> None:
        """Call ``changed`` whenever another process may have changed the state, from now on.

        It is called on the loop of the runtime, once at the start and after each lost connection too; then
        the state has to be read to know.
        """

        def listener(stamp: bytes | None) -> None:
            if stamp is None or not self.fence.has_seen(stamp):
                changed()

        self._listeners[changed] = listener
        await self._open_store.subscriber.add(self.keys.state, listener)

    async def unsubscribe(self, changed: Callable[[], None]) -> None:
        """Stop calling ``changed``."""
        listener = self._listeners.pop(changed, None)
        if listener is not None and self._store is not None:
            await self._store.subscriber.remove(self.keys.state, listener)

    async def close(self) -> None:
        """Let go of the state. Never raises for a server that is gone."""
        if self._store is None:
            return
        with anyio.CancelScope(shield=True):
            for changed in list(self._listeners):
                await self.unsubscribe(changed)
            self._store = None
            await self._resources.release(self._place_key)

    @property
    def _open_store(self) -> RedisStore:
        if self._store is None:
            raise StorageError(f"{self.name!r} is not open", actor=self.name, key=self.key)
        return self._store

    @property
    def _place_key(self) -> tuple[str, str, str]:
        return ("redis", self._agent.redis_url, self._agent.durability)

    async def _acquire(self) -> None:
        from dgents.backends.redis_store import RedisStore  # needs redis-py, an optional dependency

        place, durability = self._agent.place, Durability.parse(self._agent.durability)
        self._store = await self._resources.acquire(
            self._place_key, lambda: RedisStore.open(place, self._resources, durability)
        )

    async def _read(self) -> tuple[Header | None, Record | None]:
        value = await self._open_store.read(self.keys)
        header, record = decode(value, self.key) if value is not None else (None, None)
        if self.ownership == "shared":
            self.fence.see(header)
        return header, record

    async def _was_stored(self, sent: Sent, write: Write) -> bool | None:
        """Look for a write that others have written over in the history and among the request ids."""
        entry = f"{sent.version}-0"
        found = await self._open_store.ask(self.keys, "XRANGE", self.keys.history, entry, entry)
        if found:
            return sent.is_in(decode_header(found[0][1][1], self.key))
        remembered = {request.id: request.version for request in await self.requests()} if write.requests else {}
        if any(remembered.get(request.id) == request.version for request in write.requests):
            return True
        return None

    def _note_went_back(self, had: int, has: int) -> None:
        self.went_back = (had, has)
        self._resources.emit(
            "warning",
            self.name,
            reason="went_back",
            message=f"{self._agent.place.safe} went back from version {had} of {self.name!r} to version "
            f"{has}: it lost writes that it had acknowledged",
        )

    def _warn(self) -> None:
        """Say once for each connection what the server will not do although it is relied on."""
        store = self._open_store
        if store.has_warned:
            return
        store.has_warned = True
        for reason, text in warnings(store.durability, store.facts, ttl=self._agent.ttl is not None):
            self._resources.emit("warning", self.name, reason=reason, message=f"{self._agent.place.safe}: {text}")


def _stamp(header: Header | None) -> bytes:
    return header.stamp if header is not None else b""
