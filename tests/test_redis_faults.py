"""What holds when the server or the network misbehaves: the answer comes in time, is typed, and is true."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from random import Random, randrange
from time import monotonic
from typing import Any

import anyio
import pytest

from dgents.backends.redis import RedisBackend
from dgents.backends.redis_keys import RedisKeys
from dgents.backends.redis_scripts import COMMIT
from dgents.runtime.contract import Request, Write
from dgents.runtime.errors import DgentError, OwnershipLostError, StorageError, VersionConflictError
from tests.redis_kit import commit, opened, record, write
from tests.redis_server import RedisServer, free_port, redis_server
from tests.resources import fake_resources
from tests.tcp_proxy import TcpProxy, tcp_proxy

pytestmark = pytest.mark.anyio

QUICK = "?socket_timeout=0.3"
PATIENT = "&socket_connect_timeout=5"  # to connect may take long where many tests run at once
SOON = 3.0  # seconds: the limits of the URL, some threads, a busy machine


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    with redis_server(tmp_path_factory.mktemp("redis")) as server:
        yield server


@pytest.fixture
def server(running: RedisServer) -> Iterator[RedisServer]:
    with running.client() as client:
        client.flushall()
        client.script_load(COMMIT.source)  # or what is cut would be the question for it, before anything is written
        yield running
        client.config_set("maxmemory", 0)
        client.replicaof("NO", "ONE")


@pytest.fixture
def proxy(server: RedisServer) -> Iterator[TcpProxy]:
    with tcp_proxy(("127.0.0.1", server.port)) as proxy:
        yield proxy


def through(proxy: TcpProxy) -> str:
    return f"redis://127.0.0.1:{proxy.port}/0{QUICK}{PATIENT}"


async def failing_commit(backend: RedisBackend, doubtful: Write) -> StorageError:
    assert backend.store is not None
    with pytest.raises(StorageError) as failure:
        await backend.store.commit([doubtful])
    return failure.value


# Connecting


@pytest.mark.parametrize("address", ["127.0.0.1:{closed}", "nowhere.invalid:6379"])
async def test_an_unreachable_server_is_a_typed_error_in_time(address: str) -> None:
    started = monotonic()
    with pytest.raises(StorageError) as refused:
        async with opened(f"redis://ada:s3cret@{address.format(closed=free_port())}/0?socket_connect_timeout=1"):
            pass
    assert monotonic() - started < SOON
    assert refused.value.retryable
    assert "s3cret" not in repr(refused.value) + str(refused.value)


async def test_a_wrong_password_is_an_error_that_does_not_show_it(tmp_path: Path) -> None:
    with redis_server(tmp_path, "--requirepass", "right") as server:
        for login, word in ((":wr0ng@", "password"), ("", "password")):
            with pytest.raises(StorageError, match=word) as refused:
                async with opened(server.url.replace("//", f"//{login}")):
                    pass
            assert not refused.value.retryable
            assert "wr0ng" not in str(refused.value)
        async with opened(server.url.replace("//", "//:right@")) as (backend, _):
            assert await commit(backend, 1) is None


async def test_a_user_of_the_acl_needs_only_what_is_documented(server: RedisServer) -> None:
    with server.client() as client:
        client.execute_command(
            "ACL", "SETUSER", "ada", "on", ">pw", "resetkeys", "~dgents:*", "resetchannels", "&dgents:*",
            "-@all", "+@read", "+@write", "+@scripting", "+@connection", "+@pubsub", "+info", "+wait",
        )  # fmt: skip
    url = server.url.replace("//", "//ada:pw@")
    async with opened(url, max_history=2, ownership="exclusive") as (backend, _):
        assert await commit(backend, 1) is None
        assert await backend.history() == [record(1)]
        with pytest.raises(StorageError, match="may not") as refused:
            await backend.execute("GET", "elsewhere")
        assert not refused.value.retryable


# A connection that is cut: applied once or not at all, and the truth is found


@pytest.mark.parametrize("count", [0, 1, 40, 150])
async def test_a_request_cut_on_its_way_was_not_stored(server: RedisServer, proxy: TcpProxy, count: int) -> None:
    async with opened(through(proxy)) as (backend, _):
        assert await commit(backend, 1) is None
        proxy.cut_after("to_server", count)
        doubtful = write(backend, 2, b"cut")
        assert (await failing_commit(backend, doubtful)).outcome == "unknown"
        await backend.close()
        await backend.open()
        assert await backend.committed(doubtful) is False
        assert proxy.cuts == 1
        assert await commit(backend, 2, b"again") is None


@pytest.mark.parametrize("ownership", ["shared", "exclusive"])
@pytest.mark.parametrize("count", [0, 1, 3])
async def test_a_write_whose_reply_is_cut_was_stored_once(
    server: RedisServer, proxy: TcpProxy, count: int, ownership: str
) -> None:
    async with opened(through(proxy), ownership=ownership) as (backend, _):
        assert await commit(backend, 1) is None
        proxy.cut_after("to_client", count)
        doubtful = write(backend, 2, b"stored")
        assert (await failing_commit(backend, doubtful)).outcome == "unknown"
        await backend.close()
        assert (await backend.open()).record == record(2, b"stored")
        assert await backend.committed(doubtful) is True
        assert await commit(backend, 3, b"next") is None


async def test_a_first_write_whose_reply_is_cut_was_stored_once(server: RedisServer, proxy: TcpProxy) -> None:
    async with opened(through(proxy)) as (backend, _):
        proxy.cut_after("to_client", 0)
        doubtful = write(backend, 1)
        await failing_commit(backend, doubtful)
        assert await backend.committed(doubtful) is True


@pytest.mark.parametrize("base", [0, 1])
async def test_a_write_that_arrives_after_it_was_given_up_is_not_stored(
    server: RedisServer, proxy: TcpProxy, base: int
) -> None:
    async with opened(through(proxy)) as (backend, _), opened(server.url) as (witness, _):
        for version in range(1, base + 1):
            assert await commit(backend, version) is None
        proxy.hold("to_server")
        doubtful = write(backend, base + 1, b"late")
        assert (await failing_commit(backend, doubtful)).outcome == "unknown"
        assert await _settled_elsewhere(server, backend, doubtful) is False
        proxy.release("to_server")
        assert await commit(backend, base + 1, b"again") is None
        assert await witness.read() == record(base + 1, b"again")


async def _settled_elsewhere(server: RedisServer, backend: RedisBackend, doubtful: Write) -> bool | None:
    """Ask what became of a write over another way than the one that it is held up on."""
    async with opened(server.url) as (elsewhere, _):
        backend._store, elsewhere._store = elsewhere._store, backend._store
        try:
            return await backend.committed(doubtful)
        finally:
            backend._store, elsewhere._store = elsewhere._store, backend._store


async def test_a_write_that_others_wrote_over_is_found_in_the_history(server: RedisServer, proxy: TcpProxy) -> None:
    async with opened(through(proxy), max_history=9) as (backend, _), opened(server.url) as (other, _):
        proxy.cut_after("to_client", 0)
        doubtful = write(backend, 1, b"mine")
        await failing_commit(backend, doubtful)
        assert await commit(other, 2, b"over it") is None
        assert await backend.committed(doubtful) is True


async def test_a_write_that_others_wrote_over_is_found_by_its_request_id(server: RedisServer, proxy: TcpProxy) -> None:
    async with opened(through(proxy)) as (backend, _), opened(server.url) as (other, _):
        proxy.cut_after("to_client", 0)
        doubtful = write(backend, 1, b"mine", [Request("r1", 1)])
        await failing_commit(backend, doubtful)
        assert await commit(other, 2, b"over it") is None
        assert await backend.committed(doubtful) is True
        assert await backend.committed(write(backend, 1)) is None


async def test_a_call_that_reaches_the_server_twice_is_written_once(
    server: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with opened(server.url, max_history=9) as (backend, _):
        call = backend.store._call

        async def call_twice(*args: Any) -> list[Any]:
            await call(*args)
            return await call(*args)

        monkeypatch.setattr(backend.store, "_call", call_twice)
        for version in (1, 2):
            assert await commit(backend, version) is None
        assert await backend.history() == [record(1), record(2)]


async def test_a_write_that_arrives_while_it_is_looked_for_is_found(
    server: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with opened(server.url) as (backend, _):
        call, read = backend.store._call, backend.store.read_confirmed
        underway: list[Any] = []

        async def lose(*args: Any) -> list[Any]:
            underway.extend(args)
            raise StorageError("cut", outcome="unknown")

        async def read_then_arrive(keys: RedisKeys) -> bytes | None:
            value = await read(keys)
            await call(*underway)
            return value

        monkeypatch.setattr(backend.store, "_call", lose)
        doubtful = write(backend, 1)
        await failing_commit(backend, doubtful)
        monkeypatch.setattr(backend.store, "_call", call)
        monkeypatch.setattr(backend.store, "read_confirmed", read_then_arrive)
        assert await backend.committed(doubtful) is True


async def test_others_may_write_on_a_version_that_was_settled(server: RedisServer, proxy: TcpProxy) -> None:
    async with opened(through(proxy)) as (backend, _), opened(server.url) as (other, _):
        assert await commit(backend, 1) is None
        await other.read()
        proxy.cut_after("to_server", 9)
        doubtful = write(backend, 2)
        await failing_commit(backend, doubtful)
        assert await backend.committed(doubtful) is False
        assert await commit(other, 2, b"theirs") is None


async def test_a_raw_command_is_never_sent_twice(server: RedisServer, proxy: TcpProxy) -> None:
    async with opened(through(proxy)) as (backend, _):
        proxy.cut_after("to_client", 0)
        with pytest.raises(StorageError) as failure:
            await backend.execute("INCR", "counter")
        assert failure.value.outcome == "unknown"
        assert await backend.execute("GET", "counter") == b"1"


async def test_a_read_survives_an_idle_connection_that_was_cut(server: RedisServer) -> None:
    async with opened(server.url) as (backend, _):
        assert await commit(backend, 1) is None
        with server.client() as client:
            client.client_kill_filter(_type="normal", skipme=True)
        assert await backend.read() == record(1)


# A server that is slow, full, read-only or gone


async def test_a_paused_server_is_an_error_in_time(server: RedisServer) -> None:
    async with opened(server.url + QUICK) as (backend, _):
        with server.client() as client:
            client.client_pause(1200)
        doubtful = write(backend, 1)
        started = monotonic()
        failure = await failing_commit(backend, doubtful)
        assert monotonic() - started < SOON
        assert (failure.outcome, failure.retryable) == ("unknown", True)
        with pytest.raises(StorageError):
            await backend.committed(doubtful)


async def test_a_stopped_server_is_an_error_in_time_and_serves_again(tmp_path: Path) -> None:
    with redis_server(tmp_path) as server:
        async with opened(server.url + QUICK) as (backend, _):
            server.pause()
            started = monotonic()
            with pytest.raises(StorageError, match="did not answer"):
                await backend.read()
            assert monotonic() - started < SOON
            server.resume()
            assert await commit(backend, 1) is None


@pytest.mark.parametrize("ownership", ["shared", "exclusive"])
async def test_a_full_server_stores_nothing_and_takes_writes_once_there_is_room(
    server: RedisServer, ownership: str
) -> None:
    async with opened(server.url, ownership=ownership, max_history=3) as (backend, found):
        assert await commit(backend, 1) is None
        with server.client() as client:
            client.config_set("maxmemory", 1)
            refusal = await _answer_or_error(backend, 2)
            assert isinstance(refusal, StorageError)
            assert (refusal.outcome, refusal.retryable) == ("rolled_back", True)
            assert "maxmemory" in str(refusal)
            again = await backend.open()
            assert (again.record, again.epoch) == (record(1), found.epoch)
            client.config_set("maxmemory", 0)
        assert await commit(backend, 2) is None
        assert await backend.history() == [record(1), record(2)]


async def _answer_or_error(backend: RedisBackend, version: int) -> DgentError | None:
    """Return the refusal: it is answered to a shared actor, and raised to an owner who has to open again."""
    try:
        return await commit(backend, version)
    except StorageError as error:
        return error


@pytest.mark.parametrize("ownership", ["shared", "exclusive"])
async def test_a_read_only_replica_stores_nothing(server: RedisServer, ownership: str) -> None:
    async with opened(server.url, ownership=ownership) as (backend, _):
        assert await commit(backend, 1) is None
        with server.client() as client:
            client.replicaof("127.0.0.1", free_port())
            refusal = await _answer_or_error(backend, 2)
            assert isinstance(refusal, StorageError)
            assert (refusal.outcome, refusal.retryable) == ("rolled_back", True)
            assert "replica" in str(refusal)
            client.replicaof("NO", "ONE")
        assert await commit(backend, 2) is None


async def test_what_an_append_only_server_acknowledged_survives_its_crash(tmp_path: Path) -> None:
    options = ("--appendonly", "yes", "--appendfsync", "always")
    with redis_server(tmp_path, *options) as server:
        async with opened(server.url, durability="aof", ownership="exclusive", max_history=9) as (
            backend,
            first,
        ):
            for version in (1, 2, 3):
                assert await commit(backend, version) is None
            server.kill()
            with pytest.raises(StorageError):
                await commit(backend, 4)
            server.start()
            await backend.close()
            again = await backend.open()
            assert (again.record, again.epoch) == (record(3), first.epoch + 1)
            assert backend.went_back is None
            assert await backend.history() == [record(1), record(2), record(3)]


@pytest.mark.parametrize("ownership", ["shared", "exclusive"])
async def test_a_server_that_lost_its_data_is_found_out(tmp_path: Path, ownership: str) -> None:
    with redis_server(tmp_path) as server:
        async with (
            fake_resources() as resources,
            opened(server.url, resources=resources, ownership=ownership) as (backend, _),
        ):
            for version in (1, 2):
                assert await commit(backend, version) is None
            server.kill()
            server.start()
            assert isinstance(await _answer_or_error(backend, 3), StorageError | VersionConflictError)
            await backend.close()
            assert (await backend.open()).record is None
            assert backend.went_back == (2, 0)
            assert [details["reason"] for kind, _, details in resources.events if kind == "warning"] == ["went_back"]
            assert await commit(backend, 1) is None


async def test_an_owner_is_told_that_the_server_lost_its_writes(server: RedisServer) -> None:
    async with opened(server.url, ownership="exclusive") as (backend, _):
        assert await commit(backend, 1) is None
        with server.client() as client:
            client.flushall()
        with pytest.raises(StorageError, match="lost writes") as failure:
            await commit(backend, 2)
        assert not isinstance(failure.value, OwnershipLostError)


@pytest.mark.parametrize("each", [25, pytest.param(1000, marks=pytest.mark.torture)])
async def test_writers_lose_no_increment_over_a_failing_network(server: RedisServer, each: int) -> None:
    seed = int(os.environ.get("DGENTS_SEED") or randrange(1 << 32))
    print(f"DGENTS_SEED={seed}")
    async with anyio.create_task_group() as tasks:
        for number in range(3):
            tasks.start_soon(_count, server, each, Random(seed + number))
    async with opened(server.url, "counter") as (_, found):
        assert found.record == record(3 * each, b"%d" % (3 * each))


async def _count(server: RedisServer, each: int, random: Random) -> None:
    """Add ``each`` to a counter, while connections are cut at random."""
    done = 0
    with tcp_proxy(("127.0.0.1", server.port)) as proxy:
        async with opened(through(proxy), "counter", max_history=10_000) as (backend, _):
            while done < each:
                now = await backend.read()
                version = now.version if now else 0
                if random.random() < 0.3:
                    proxy.cut_after(
                        *random.choice([("to_client", random.randrange(3)), ("to_server", random.randrange(300))])
                    )
                done += await _is_stored(backend, write(backend, version + 1, b"%d" % (version + 1)))


async def _is_stored(backend: RedisBackend, attempt: Write) -> bool:
    """Write once, and find out whether it was stored."""
    assert backend.store is not None
    try:
        (answer,) = await backend.store.commit([attempt])
    except StorageError:
        while True:
            try:
                stored = await backend.committed(attempt)
            except StorageError:  # cut once more
                continue
            assert stored is not None
            return stored
    return answer is None
