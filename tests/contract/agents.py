"""The agents under test: what each is made of, and what it can do. Tests ask for a capability, never for a name.

To add one: a `Subject` in `SUBJECTS`; a networked one also names the server that is started once a session.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from dgents import PersistentAgent, RedisAgent, SQLAgent, VolatileAgent
from tests.postgres_server import postgres_server
from tests.redis_server import redis_server

Capability = Literal["durable", "history", "exclusive", "shared"]
Server = Callable[[Path], AbstractContextManager[Any]]


@dataclass(frozen=True)
class Subject:
    """One kind of agent.

    Attributes:
        make: ``make(place, key, **options)``: the agent of the state ``key`` in ``place``, a folder of the test's own,
            or the URL of the server. ``options`` are ``schema``, ``max_history`` and ``migrations``.
        can: ``durable``: the state outlives its runtime; ``history``: earlier versions are kept; ``exclusive`` or
            ``shared``: the ownership.
        server: starts what the states live in, in a folder that it is given.
    """

    name: str
    make: Callable[..., Any]
    can: frozenset[Capability]
    server: Server | None = None


def _volatile(place: Path, key: str, **options: Any) -> VolatileAgent[Any]:
    return VolatileAgent(**options)


def _file(format: Literal["json", "msgpack"], compression: Literal["gzip", "zstd"] | None) -> Callable[..., Any]:
    def make(place: Path, key: str, **options: Any) -> PersistentAgent[Any]:
        return PersistentAgent(place / f"{key}.state", format=format, compression=compression, **options)

    return make


def _sqlite(ownership: Literal["exclusive", "shared"]) -> Callable[..., Any]:
    def make(place: Path, key: str, **options: Any) -> SQLAgent[Any]:
        return SQLAgent(str(place / "state.db"), key=key, ownership=ownership, **options)

    return make


def _redis(ownership: Literal["exclusive", "shared"]) -> Callable[..., Any]:
    def make(place: Any, key: str, **options: Any) -> RedisAgent[Any]:
        return RedisAgent(place.url, key, ownership=ownership, **{"max_history": 100, **options})

    return make


def _postgres(ownership: Literal["exclusive", "shared"]) -> Callable[..., Any]:
    def make(place: Any, key: str, **options: Any) -> SQLAgent[Any]:
        return SQLAgent(place.url, key=key, ownership=ownership, **options)

    return make


def _latest(make: Callable[..., Any]) -> Callable[..., Any]:
    """Return what makes the same agents without a history."""
    return lambda place, key, **options: make(place, key, **{"max_history": 0, **options})


@contextmanager
def _a_postgres(_: Path) -> Iterator[Any]:
    with postgres_server() as server:
        yield server


_EXCLUSIVE: frozenset[Capability] = frozenset({"durable", "history", "exclusive"})
_SHARED: frozenset[Capability] = frozenset({"durable", "history", "shared"})

SUBJECTS = (
    Subject("volatile", _volatile, frozenset({"history", "exclusive"})),
    Subject("json", _file("json", None), _EXCLUSIVE),
    Subject("json-gzip", _file("json", "gzip"), _EXCLUSIVE),
    Subject("msgpack", _file("msgpack", None), _EXCLUSIVE),
    Subject("msgpack-zstd", _file("msgpack", "zstd"), _EXCLUSIVE),
    Subject("sqlite", _sqlite("exclusive"), _EXCLUSIVE),
    Subject("sqlite-shared", _sqlite("shared"), _SHARED),
    Subject("redis", _redis("exclusive"), _EXCLUSIVE, redis_server),
    Subject("redis-shared", _redis("shared"), _SHARED, redis_server),
    Subject("redis-latest", _latest(_redis("shared")), _SHARED - {"history"}, redis_server),  # as it is by default
    Subject("sqlite-latest", _latest(_sqlite("exclusive")), _EXCLUSIVE - {"history"}),
    Subject("postgres", _postgres("exclusive"), _EXCLUSIVE, _a_postgres),
    Subject("postgres-shared", _postgres("shared"), _SHARED, _a_postgres),
)
