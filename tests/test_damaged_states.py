"""A stored state that can't be read: a typed error for each caller at once; it stays as it is until it is mended."""

from __future__ import annotations

import sqlite3
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import anyio
import psycopg
import pytest

import dgents
from dgents.runtime.contract import Record
from tests.bench import Bench, open_bench
from tests.calls import calls
from tests.fake_store import FakeAgent, fails_after, fails_before
from tests.postgres_server import PostgresServer, postgres_server
from tests.redis_server import RedisServer, redis_server

pytestmark = pytest.mark.anyio

NO_PAUSE = dgents.Backoff(0, 0)


@dataclass
class Place:
    """A shared store that holds the state ``a``: as an agent, and as whoever may change its bytes."""

    make: Callable[..., Any]
    read: Callable[[], bytes]
    write: Callable[[bytes], object]


def sqlite_place(path: Path) -> Place:
    def do(sql: str, *parameters: object) -> Any:
        with closing(sqlite3.connect(path)) as connection, connection:
            return connection.execute(sql, parameters).fetchone()

    return Place(
        lambda **options: dgents.SQLAgent(str(path), ownership="shared", **options),
        lambda: do("SELECT state FROM states WHERE key = 'a' ORDER BY version DESC LIMIT 1")[0],
        lambda data: do("UPDATE states SET state = ? WHERE version = (SELECT max(version) FROM states)", data),
    )


def postgres_place(url: str) -> Place:
    def do(sql: str, *parameters: object) -> Any:
        with psycopg.connect(url, autocommit=True) as connection:
            cursor = connection.execute(sql, parameters)  # type: ignore[call-overload]
            return cursor.fetchone() if cursor.description else None

    return Place(
        lambda **options: dgents.SQLAgent(url, **options),
        lambda: do("SELECT state FROM states WHERE key = 'a' ORDER BY version DESC LIMIT 1")[0],
        lambda data: do("UPDATE states SET state = %s WHERE version = (SELECT max(version) FROM states)", data),
    )


def redis_place(server: RedisServer) -> Place:
    def get() -> Any:
        with server.client() as client:
            return client.get("dgents:{a}")

    def put(data: bytes) -> None:
        with server.client() as client:
            client.set("dgents:{a}", data)

    return Place(lambda **options: dgents.RedisAgent(server.url, **options), get, put)


@pytest.fixture(scope="module")
def postgres() -> Iterator[PostgresServer]:
    with postgres_server() as running:
        yield running


@pytest.fixture(scope="module")
def redis(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    with redis_server(tmp_path_factory.mktemp("redis")) as running:
        yield running


@pytest.fixture(params=["sqlite", "postgres", "redis"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Place:
    if request.param == "sqlite":
        return sqlite_place(tmp_path / "a.db")
    server = request.getfixturevalue(request.param)
    if request.param == "postgres":
        return postgres_place(server.fresh_database())
    with server.client() as client:
        client.flushall()
    return redis_place(server)


async def damage(place: Place, kind: str) -> Callable[[], Awaitable[None]]:
    """Make what is stored unreadable to an actor of ints; return what mends it."""
    if kind == "bytes":
        good = place.read()
        place.write(good[:-1] + bytes([good[-1] ^ 0x40]))

        async def put_back() -> None:
            place.write(good)

        return put_back

    schema: dict[str, Any] = {"schema": int, "migrations": {1: lambda n: n}} if kind == "schema" else {}
    async with dgents.Runtime() as rt:
        newer = await rt.spawn("a", place.make(**schema))
        await newer.update(lambda _: 7 if schema else "text")

    async def delete() -> None:
        async with dgents.Runtime() as rt:
            await (await rt.spawn("a", place.make(**schema))).delete()

    return delete


USES: dict[str, Callable[[Any], Awaitable[Any]]] = {
    "load": lambda ref: ref.load(),
    "load with a default": lambda ref: ref.load(default=0),
    "snapshot": lambda ref: ref.snapshot(),
    "watch": lambda ref: anext(ref.watch()),
    "save": lambda ref: ref.save(1),
    "update": lambda ref: ref.update(lambda n: n + 1, default=0),
    "update once": lambda ref: ref.update(lambda n: n + 1, default=0, request_id="1"),
    "patch": lambda ref: ref.patch({"a": 1}),
    "delete": lambda ref: ref.delete(),
    "lens": lambda ref: ref.at("a").load(),
    "ask": lambda ref: ref.ask(dgents.Save(1)),
}


async def transact(ref: Any) -> None:
    async with ref.transaction() as tx:
        tx.state = 1


@pytest.mark.parametrize("kind", ["bytes", "schema", "shape"])
async def test_an_actor_that_finds_its_shared_state_damaged_says_so_and_answers_well_once_it_is_mended(
    place: Place, kind: str
) -> None:
    async with dgents.Runtime() as rt, calls() as run:
        a = await rt.spawn("a", place.make(schema=int))
        await a.save(5)
        mend = await damage(place, kind)
        with pytest.raises(dgents.StateError):
            await a.load()
        damaged = place.read()
        for use in (*USES.values(), transact):
            with pytest.raises(dgents.StateError, match="'a'") as failed:
                await run(use, a).result()
            assert failed.value.outcome == "rolled_back"
            assert place.read() == damaged
        together = [run(use, a) for use in USES.values()]
        for call in together:
            with pytest.raises(dgents.StateError):
                await call.result()
        assert place.read() == damaged
        watch = a.watch()
        with pytest.raises(dgents.StateError):
            await anext(watch)
        await mend()
        assert await a.load(default="nothing") == (5 if kind == "bytes" else "nothing")
        assert await a.update(lambda n: n + 1, default=5) == 6
        with anyio.fail_after(5):
            assert (await anext(watch)).state == 6
        assert "a" in rt.names()


@pytest.mark.parametrize("kind", ["bytes", "schema", "shape"])
async def test_an_actor_is_not_spawned_on_a_damaged_state_which_stays_as_it_is(place: Place, kind: str) -> None:
    async with dgents.Runtime() as rt:
        await (await rt.spawn("a", place.make(schema=int))).save(5)
    mend = await damage(place, kind)
    damaged = place.read()
    async with dgents.Runtime() as rt:
        rt.register("v", lambda _: place.make(schema=int, key="a"))
        for call in (lambda: rt.spawn("a", place.make(schema=int)), lambda: rt.ref("v/a").save(1)):
            with pytest.raises(dgents.StateError):
                await call()
        assert place.read() == damaged
        await mend()
        assert await (await rt.spawn("a", place.make(schema=int))).update(lambda n: n + 1, default=5) == 6
        assert await rt.ref("v/a").load() == 6


# On a store that does as it is told


@pytest.fixture
async def bench(anyio_backend: str) -> AsyncIterator[Bench]:
    async with open_bench() as bench:
        yield bench


def overwrite(bench: Bench, data: bytes) -> None:
    """Put other bytes in the place of the newest version."""
    last = bench.store.records["a"][-1]
    bench.store.records["a"][-1] = Record(last.version, last.epoch, last.saved_at, data)


async def test_a_cached_state_that_is_damaged_when_it_is_read_again_is_an_error_until_it_is_mended(
    bench: Bench,
) -> None:
    agent = dgents.CachedAgent(dgents.VolatileAgent(), FakeAgent(bench.store, schema=int), ttl=60)
    a = await bench.rt.spawn("a", agent)
    await a.save(5)
    overwrite(bench, b"\xc1")
    a._cell.expire()
    with pytest.raises(dgents.StateCorruptionError):
        await a.load()
    together = [bench.run(use, a) for use in USES.values()]
    for call in together:
        with pytest.raises(dgents.StateCorruptionError):
            await call.result()
    assert bench.store.records["a"][-1].data == b"\xc1"
    overwrite(bench, b"\x06")
    assert await a.load() == 6
    assert await a.update(lambda n: n + 1) == 7
    assert bench.kinds("a") == ["spawned"]


@pytest.mark.parametrize("answer", [None, dgents.StateCorruptionError("injected: damaged"), ZeroDivisionError()])
async def test_a_write_in_doubt_is_answered_although_the_store_cant_say_what_became_of_it(
    bench: Bench, answer: Any
) -> None:
    class Unsure(FakeAgent):
        def backend(self, name: str, resources: Any) -> Any:
            backend = super().backend(name, resources)

            async def committed(write: Any) -> None:
                if answer is not None:
                    raise answer

            backend.committed = committed  # type: ignore[method-assign, assignment]
            return backend

    a = await bench.rt.spawn("a", Unsure(bench.store, "shared"))
    bench.store.faults.append(fails_after)
    with pytest.raises((dgents.StorageError, dgents.StateCorruptionError)) as failed:
        await a.save(1)
    assert failed.value.outcome == "unknown"
    assert await a.update(lambda n: n + 1) == 2


@pytest.mark.parametrize("ownership", ["exclusive", "shared"])
async def test_a_state_that_is_damaged_when_its_actor_is_restarted_ends_it_and_answers_everybody(
    bench: Bench, ownership: Any
) -> None:
    group = await bench.rt.supervisor("group", max_restarts=0, backoff=NO_PAUSE)
    a = await group.spawn("a", FakeAgent(bench.store, ownership, schema=int))
    await a.save(5)
    bench.store.hold()
    save = await bench.run.blocked(a.save, 6)
    waiting = [await bench.run.blocked(use, a) for use in (*USES.values(), transact)]
    overwrite(bench, b"\xc1")
    bench.store.faults += [fails_before, fails_before]
    bench.store.let_go()
    for call in (save, *waiting):
        with pytest.raises((dgents.DgentError, StopAsyncIteration)):
            await call.result()
    assert bench.store.records["a"][-1].data == b"\xc1"
    escalated = [event for event in bench.events if event.kind == "escalated"]
    assert isinstance(escalated[-1].details["error"], dgents.StateCorruptionError)
