"""States in a real PostgreSQL, without a runtime: versions, owners, histories, requests, and writes in doubt."""

from __future__ import annotations

import pickle
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from typing import Any

import anyio
import anyio.to_thread
import psycopg
import pytest

import dgents
from dgents.backends.postgres import PostgresBackend
from dgents.runtime.contract import Request
from dgents.runtime.errors import (
    OwnershipLostError,
    StateCorruptionError,
    StorageError,
    UnsupportedOperationError,
    VersionConflictError,
)
from tests.postgres_kit import make, opened, record, save, write
from tests.postgres_server import PostgresServer, postgres_server
from tests.resources import FakeResources, fake_resources
from tests.tcp_proxy import TcpProxy, tcp_proxy

pytestmark = pytest.mark.anyio


@pytest.fixture(scope="module")
def server() -> Iterator[PostgresServer]:
    with postgres_server() as running:
        yield running


@pytest.fixture
def url(server: PostgresServer) -> str:
    return server.fresh_database()


@pytest.fixture
def proxy(server: PostgresServer) -> Iterator[TcpProxy]:
    with tcp_proxy(("127.0.0.1", server.port)) as running:
        yield running


@asynccontextmanager
async def locked(server: PostgresServer, url: str, waiting: int) -> AsyncIterator[anyio.Event]:
    """Hold the lock of every head while the block lasts; the event says that ``waiting`` statements wait for it."""
    arrived = anyio.Event()

    async def watch() -> None:
        waits = "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock'"
        while server.execute(waits) != [(waiting,)]:  # noqa: ASYNC110 (what is waited for is in another process)
            await anyio.sleep(0.005)
        arrived.set()

    with psycopg.connect(url) as holder:
        holder.execute("SELECT * FROM states_heads FOR UPDATE")
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(watch)
            yield arrived
            await anyio.to_thread.run_sync(holder.commit)


async def test_what_was_written_is_read_by_another_process(url: str) -> None:
    async with opened(url) as (backend, found):
        assert found.record is None
        assert await save(backend, 0, b"ada") is None
    async with opened(url) as (other, again):
        assert again.record == record(1, b"ada")
        assert await other.read() == record(1, b"ada")


async def test_a_write_on_an_older_version_is_refused_and_names_both(url: str) -> None:
    async with opened(url) as (mine, _), opened(url) as (theirs, _):
        assert await save(theirs, 0, b"theirs") is None
        answer = await save(mine, 0, b"mine")
        assert isinstance(answer, VersionConflictError)
        assert (answer.expected, answer.actual) == (0, 1)
        assert await mine.read() == record(1, b"theirs")


async def test_a_write_may_name_a_version_that_its_backend_has_not_read(url: str) -> None:
    async with opened(url) as (mine, _), opened(url) as (theirs, _):
        assert await save(theirs, 0, b"1") is None
        assert await save(mine, 1, b"2") is None
        assert await theirs.read() == record(2, b"2")


async def open_many(url: str, count: int, resources: FakeResources) -> list[PostgresBackend]:
    backends = [make(url, resources, f"user/{n}") for n in range(count)]
    async with anyio.create_task_group() as tasks:
        for backend in backends:
            tasks.start_soon(backend.open)
    return backends


async def test_a_thousand_writes_are_one_transaction_and_answered_each(url: str, server: PostgresServer) -> None:
    async with fake_resources() as resources:
        backends = await open_many(url, 1000, resources)
        async with opened(url, "user/500") as (theirs, _):
            assert await save(theirs, 0, b"theirs") is None
        assert backends[0].store is not None
        answers = await backends[0].store.commit([write(backend, 0, b"mine") for backend in backends])
        assert [n for n, answer in enumerate(answers) if answer is not None] == [500]
        assert isinstance(answers[500], VersionConflictError)
        transactions = "SELECT count(DISTINCT xmin::text), count(*) FROM states WHERE key <> 'user/500'"
        assert server.execute(transactions, url=url) == [(1, 999)]
        for backend in backends:
            await backend.close()


async def test_a_write_that_the_server_does_not_take_fails_alone(url: str, server: PostgresServer) -> None:
    async with fake_resources() as resources:
        backends = await open_many(url, 3, resources)
        stray = "INSERT INTO states VALUES ('user/1', 1, 1, 0, 1, 0, NULL, 1)"
        server.execute(stray, url=url)
        assert backends[0].store is not None
        answers = await backends[0].store.commit([write(backend, 0, b"mine") for backend in backends])
        assert [answer is None for answer in answers] == [True, False, True]
        assert isinstance(answers[1], StorageError)
        assert answers[1].outcome == "rolled_back"
        for backend in backends:
            await backend.close()


async def test_the_newest_owner_fences_the_one_before(url: str) -> None:
    async with opened(url, ownership="exclusive") as (old, first):
        assert await save(old, 0, b"old", epoch=first.epoch) is None
        async with opened(url, ownership="exclusive") as (new, second):
            assert second.epoch == first.epoch + 1
            assert second.record == record(1, b"old", first.epoch)
            assert isinstance(await save(old, 1, b"lost", epoch=first.epoch), OwnershipLostError)
            assert await save(new, 1, b"new", epoch=second.epoch) is None
            assert await old.read() == record(2, b"new", second.epoch)


async def test_a_shared_write_fences_an_exclusive_owner(url: str) -> None:
    async with opened(url, ownership="exclusive") as (owner, _), opened(url) as (sharer, _):
        assert await save(owner, 0, b"1") is None
        assert await save(sharer, 1, b"shared") is None
        assert isinstance(await save(owner, 1, b"late"), OwnershipLostError)


async def test_the_history_keeps_the_newest_versions_and_tombstones(url: str, server: PostgresServer) -> None:
    async with opened(url, max_history=3) as (backend, _):
        for base, data in enumerate([b"1", b"2", None, b"4"]):
            assert await save(backend, base, data) is None
        assert await backend.history() == [record(2, b"2"), record(3, None), record(4, b"4")]
        assert await backend.history(2) == [record(3, None), record(4, b"4")]
        assert await backend.history(0) == []
        assert server.execute("SELECT count(*) FROM states", url=url) == [(3,)]


@pytest.mark.parametrize(("kept", "versions"), [(0, [5]), (2, [4, 5]), (9, [1, 2, 3, 4, 5])])
async def test_the_versions_of_one_batch_are_kept_as_far_as_the_bound_goes(
    url: str, server: PostgresServer, kept: int, versions: list[int]
) -> None:
    async with opened(url, max_history=kept) as (backend, _):
        assert await save(backend, 0, *(b"%d" % n for n in range(1, 6))) is None
        assert await backend.history() == [record(n, b"%d" % n) for n in versions]
        rows = server.execute("SELECT version FROM states ORDER BY version", url=url)
        assert [version for (version,) in rows] == versions


async def test_request_ids_are_stored_with_the_write_and_bounded(url: str) -> None:
    async with opened(url) as (backend, _):
        requests = [Request(f"r{n}\0\U0001f600", 1, b"result") for n in range(1200)]
        assert await save(backend, 0, b"1", requests=requests) is None
        assert await backend.requests() == requests[-1000:]
        refused = await save(backend, 0, b"1", requests=[Request("late", 1)])
        assert isinstance(refused, VersionConflictError)
        assert await save(backend, 1, b"2", requests=[Request("next", 2)]) is None
        assert await backend.requests() == [*requests[-999:], Request("next", 2)]


@pytest.mark.parametrize(
    ("damage", "read", "says"),
    [
        ("DELETE FROM states WHERE version = 2", "history", "missing"),
        ("UPDATE states SET version = 12 WHERE version = 2", "history", "checksum"),
        ("UPDATE states SET schema = 7", "read", "checksum"),
        ("UPDATE states SET key = 'user/8'", "read", "missing"),
        ("UPDATE states_requests SET version = 7", "requests", "checksum"),
        ("DELETE FROM states_requests", "requests", "missing"),
    ],
)
async def test_what_somebody_else_changed_is_found(
    url: str, server: PostgresServer, damage: str, read: str, says: str
) -> None:
    async with opened(url) as (backend, _):
        for base in range(3):
            assert await save(backend, base, b"state", requests=[Request(f"r{base}", base + 1)]) is None
        server.execute(damage, url=url)
        with pytest.raises(StateCorruptionError, match=says):
            await getattr(backend, read)()


@pytest.mark.parametrize("key", ["a'b", '"; DROP TABLE states; --', "%s", "?", "é\u202e/..", "x" * 2500])
async def test_any_key_is_a_state_of_its_own(url: str, key: str) -> None:
    async with opened(url, key) as (backend, found), opened(url) as (other, _):
        assert found.record is None
        assert await save(backend, 0, b"own") is None
        assert await backend.history() == [record(1, b"own")]
        assert await other.read() is None


@pytest.mark.parametrize("key", ["", "a\0b", "\ud800", "é" * 1251])
def test_a_key_that_postgresql_can_not_hold_is_refused(key: str) -> None:
    with pytest.raises(ValueError, match=r"key|surrogate"):
        dgents.SQLAgent("postgresql://host/db", key=key).backend("a", FakeResources())


@pytest.mark.parametrize(("direction", "stored"), [("to_server", False), ("to_client", True)])
async def test_a_write_whose_connection_was_cut_is_answered_with_the_truth(
    server: PostgresServer, proxy: TcpProxy, url: str, direction: Any, stored: bool
) -> None:
    through = url.replace(f":{server.port}", f":{proxy.port}")
    async with opened(through) as (backend, _):
        for base in range(2):  # now the server knows the statement, and its first reply is that to the write
            assert await save(backend, base, b"1") is None
        doubtful = write(backend, 2, b"2")
        assert backend.store is not None
        proxy.cut_after(direction, 0)
        with pytest.raises(StorageError) as cut:
            await backend.store.commit([doubtful])
        assert cut.value.outcome == "unknown"
        assert await backend.committed(doubtful) is stored
        assert await backend.read() == (record(3, b"2") if stored else record(2, b"1"))
        assert await save(backend, 3 if stored else 2, b"next") is None


async def test_a_write_that_still_waits_for_a_lock_is_answered_with_the_truth(
    server: PostgresServer, proxy: TcpProxy, url: str
) -> None:
    through = url.replace(f":{server.port}", f":{proxy.port}")
    async with opened(through) as (backend, _):
        assert await save(backend, 0, b"1") is None
        doubtful = write(backend, 1, b"2")
        store, answers = backend.store, []
        assert store is not None

        async def commit_and_ask() -> None:
            with pytest.raises(StorageError):
                await store.commit([doubtful])
            answers.append(await backend.committed(doubtful))

        async with anyio.create_task_group() as tasks, locked(server, url, 1) as waits:
            tasks.start_soon(commit_and_ask)
            await waits.wait()
            proxy.cut()
        is_stored = server.execute("SELECT count(*) FROM states WHERE version = 2", url=url) == [(1,)]
        assert answers == [is_stored]


async def test_a_write_that_was_settled_can_not_arrive_later(server: PostgresServer, proxy: TcpProxy, url: str) -> None:
    async with opened(url.replace(f":{server.port}", f":{proxy.port}") + "?options=-cstatement_timeout%3D300") as it:
        backend = it[0]
        assert await save(backend, 0, b"1") is None
        doubtful = write(backend, 1, b"2")
        assert backend.store is not None
        proxy.hold("to_server")
        with pytest.raises(StorageError):
            await backend.store.commit([doubtful])  # it is on its way, and stays there
    async with opened(url) as (again, _):
        again.fence = backend.fence
        assert await again.committed(doubtful) is False
        proxy.release("to_server")
        assert await save(again, 1, b"other") is None
        assert await again.history() == [record(1, b"1"), record(2, b"other")]


@pytest.mark.parametrize("ownership", ["shared", "exclusive"])
async def test_a_server_that_lost_writes_is_found_out(url: str, server: PostgresServer, ownership: str) -> None:
    async with fake_resources() as resources, opened(url, resources=resources, ownership=ownership) as (backend, _):
        for base in range(3):
            assert await save(backend, base, b"1") is None
        server.execute("DELETE FROM states WHERE version > 1", url=url)
        server.execute("UPDATE states_heads SET version = 1, oldest = 1, mark = 7", url=url)
        if ownership == "exclusive":
            with pytest.raises(StorageError, match="lost writes") as lost:
                await save(backend, 3, b"4")
            assert not isinstance(lost.value, OwnershipLostError)
        else:
            assert await backend.read() == record(1, b"1")
        (warning,) = [details for kind, _, details in resources.events if kind == "warning"]
        assert "version 3" in warning["message"]
        assert "version 1" in warning["message"]
        # The version that was stored and lost is no proof for the next of that number.
        assert await backend.committed(write(backend, 2, b"3")) is False


async def test_tables_that_were_dropped_are_made_anew_by_the_next_owner(url: str, server: PostgresServer) -> None:
    async with opened(url) as (backend, _):
        assert await save(backend, 0, b"1") is None
        server.execute("DROP TABLE states, states_heads, states_requests, dgents_tables CASCADE", url=url)
        with pytest.raises(StorageError, match="not there any more") as gone:
            await save(backend, 1, b"2")
        assert gone.value.outcome == "rolled_back"
    async with opened(url) as (backend, found):
        assert found.record is None
        assert await save(backend, 0, b"1") is None


async def test_a_commit_does_not_mind_that_another_call_lost_its_table(url: str, server: PostgresServer) -> None:
    async with opened(url, ownership="exclusive") as (backend, _):
        store, answers = backend.store, []
        assert store is not None

        async def commit() -> None:
            answers.append(await save(backend, 0, b"1"))

        async with anyio.create_task_group() as tasks, locked(server, url, 1) as waits:
            tasks.start_soon(store.change, _wait_for_the_head)
            await waits.wait()
            tasks.start_soon(commit)  # behind that, on the same connection
            await anyio.wait_all_tasks_blocked()
            with pytest.raises(StorageError, match="not there"):
                await store.look_up(lambda connection: connection.execute("SELECT 1 FROM gone"))
        assert answers == [None]


async def _wait_for_the_head(connection: psycopg.AsyncConnection[Any]) -> None:
    await connection.execute("SELECT * FROM states_heads FOR UPDATE")


def test_an_agent_is_picklable_and_keeps_its_password_to_itself() -> None:
    agent: dgents.SQLAgent[Any] = dgents.SQLAgent(
        "postgresql://ada:s3cret@db:5433/states?sslpassword=s3cret", key="k", max_history=5
    )
    backend = agent.backend("a", FakeResources())
    assert isinstance(backend, PostgresBackend)
    assert pickle.loads(pickle.dumps(agent)) == agent
    assert backend.server.safe == "postgresql://db:5433/states"
    assert "s3cret" not in repr(agent) + repr(backend.server)


@pytest.mark.parametrize("module", ["postgres", "event_log_postgres"])
def test_a_driver_that_is_not_installed_is_named(module: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, f"dgents.backends.{module}", None)
    agents: dict[str, Any] = {
        "postgres": dgents.SQLAgent("postgresql://h/d"),
        "event_log_postgres": dgents.StreamAgent(max, 0, event_log="postgresql://h/d"),
    }
    with pytest.raises(UnsupportedOperationError, match=r"pip install 'dgents\[postgres\]'"):
        agents[module].backend("a", FakeResources())
