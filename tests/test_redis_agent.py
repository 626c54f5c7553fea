"""RedisAgent through the whole runtime, on a real server: by several processes, and while the server fails."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from time import monotonic
from typing import Any

import anyio
import pytest

import dgents
from dgents import CachedAgent, RedisAgent, Runtime, StorageError, VolatileAgent
from tests.redis_server import RedisServer, free_port, redis_server
from tests.tcp_proxy import tcp_proxy

pytestmark = pytest.mark.anyio

QUICK = "?socket_timeout=0.3"
SOON = 10.0  # seconds: the limits of the URL, the restarts within the budget, a busy machine
INCREMENTS = """
import anyio, dgents, sys
async def main(url, count):
    async with dgents.Runtime() as rt:
        ref = await rt.spawn("n", dgents.RedisAgent(url))
        async with anyio.create_task_group() as group:
            for _ in range(int(count)):
                group.start_soon(ref.update, lambda n: n + 1)
anyio.run(main, *sys.argv[1:])
"""


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    with redis_server(tmp_path_factory.mktemp("redis")) as server:
        yield server


@pytest.fixture
def server(running: RedisServer) -> Iterator[RedisServer]:
    with running.client() as client:
        client.flushall()
        yield running
        client.client_unpause()
        client.config_set("maxmemory", 0)
        client.replicaof("NO", "ONE")


def increment(n: int) -> int:
    return n + 1


@pytest.mark.parametrize(
    ("processes", "each"), [(4, 200), pytest.param(8, 1000, marks=pytest.mark.torture)], ids=["short", "long"]
)
async def test_processes_that_share_a_key_lose_no_increment(server: RedisServer, processes: int, each: int) -> None:
    async with Runtime() as rt:
        ref = await rt.spawn("n", RedisAgent(server.url))
        await ref.save(0)
        command = [sys.executable, "-c", INCREMENTS, server.url, str(each)]
        async with anyio.create_task_group() as group:
            for _ in range(processes):
                group.start_soon(anyio.run_process, command)  # raises unless it exits with 0
        assert await ref.load() == processes * each


async def test_a_replaced_owner_writes_nothing_more_and_says_so(server: RedisServer) -> None:
    agent: RedisAgent[Any] = RedisAgent(server.url, "k", ownership="exclusive")
    async with Runtime() as first, Runtime() as second:
        old = await first.spawn("old", agent)
        await old.save("old")
        new = await second.spawn("new", agent)
        await new.save("new")
        with pytest.raises(dgents.OwnershipLostError):
            await old.update(str.upper)
        assert await new.load() == "new"
        with server.client() as client:
            assert b"OLD" not in (client.get("dgents:{k}") or b"")


@pytest.mark.parametrize("ownership", ["shared", "exclusive"])
async def test_acknowledged_updates_survive_a_crash_and_none_is_applied_twice(tmp_path: Path, ownership: Any) -> None:
    with redis_server(tmp_path, "--appendonly", "yes", "--appendfsync", "always") as server:
        acknowledged: list[int] = []
        halfway = anyio.Event()

        async def write(ref: Any) -> None:
            for n in range(100):
                with suppress(dgents.DgentError):  # given up while the server was away
                    await ref.update(lambda ids, n=n: [*ids, n])
                    acknowledged.append(n)
                if n == 40:
                    halfway.set()

        async with Runtime() as rt, anyio.create_task_group() as group:
            ref = await rt.spawn("a", RedisAgent(server.url + QUICK, ownership=ownership, durability="aof"))
            await ref.save([])
            group.start_soon(write, ref)
            await halfway.wait()
            server.kill()
            await anyio.to_thread.run_sync(server.start)
        async with Runtime() as rt:
            stored = await (await rt.spawn("a", RedisAgent(server.url))).load()
        assert set(acknowledged) <= set(stored)
        assert len(stored) == len(set(stored))


@pytest.mark.parametrize("ownership", ["shared", "exclusive"])
async def test_a_server_that_lost_its_data_is_told_of_once(tmp_path: Path, ownership: Any) -> None:
    told: list[str] = []
    with redis_server(tmp_path) as server:
        async with Runtime(on_event=lambda event: told.append(str(event))) as rt:
            ref = await rt.spawn("n", RedisAgent(server.url + QUICK, ownership=ownership))
            await ref.save(1)
            await ref.save(2)
            server.kill()
            server.start()
            with suppress(StorageError):  # an owner's update is refused: the version that it was made from is gone
                await ref.update(increment, default=10)
            assert await ref.load(default=0) in (0, 11)
        assert len([event for event in told if "went back from version 2" in event]) == 1


@pytest.mark.parametrize("ownership", ["shared", "exclusive"])
@pytest.mark.parametrize("count", [0, 1])
async def test_an_update_whose_reply_is_cut_is_applied_once(server: RedisServer, ownership: Any, count: int) -> None:
    with tcp_proxy(("127.0.0.1", server.port)) as proxy:
        async with Runtime() as rt:
            ref = await rt.spawn("n", RedisAgent(f"redis://127.0.0.1:{proxy.port}/0{QUICK}", ownership=ownership))
            await ref.save(0)
            proxy.cut_after("to_client", count)
            assert await ref.update(increment) == 1
            assert proxy.cuts == 1
            assert await ref.load() == 1
            assert (await ref.snapshot()).version == 2


async def test_a_paused_server_hangs_nobody(server: RedisServer) -> None:
    async with Runtime() as rt:
        ref = await rt.spawn("n", RedisAgent(server.url + QUICK))
        await ref.save(0)
        with server.client() as client:
            client.client_pause(60_000, all=False)  # a pause of all would hold the UNPAUSE too
            start = monotonic()
            with pytest.raises(dgents.DgentError):
                await ref.update(increment)
            assert monotonic() - start < SOON
            client.client_unpause()


@pytest.mark.parametrize("fault", ["full", "replica"])
async def test_a_server_that_takes_no_writes_is_a_typed_error(server: RedisServer, fault: str) -> None:
    async with Runtime() as rt:
        ref = await rt.spawn("n", RedisAgent(server.url))
        await ref.save(0)
        with server.client() as client:
            _ = client.config_set("maxmemory", 1) if fault == "full" else client.replicaof("127.0.0.1", free_port())
        with pytest.raises(StorageError) as refused:
            await ref.update(increment)
        assert refused.value.outcome == "rolled_back"


async def test_a_wrong_password_and_a_closed_port_are_typed_errors(server: RedisServer) -> None:
    for address in (f"127.0.0.1:{server.port}", f"127.0.0.1:{free_port()}"):
        async with Runtime() as rt:
            with anyio.fail_after(SOON), pytest.raises(StorageError) as refused:
                await rt.spawn("n", RedisAgent(f"redis://someone:hunter2@{address}/0{QUICK}"))
            assert "hunter2" not in f"{refused.value} {refused.value!r} {refused.value.__cause__!r}"


async def test_a_value_of_another_type_is_refused_and_left(server: RedisServer) -> None:
    with server.client() as client:
        client.rpush("dgents:{n}", "theirs")
        async with Runtime() as rt:
            with pytest.raises(dgents.StateCorruptionError):
                await rt.spawn("n", RedisAgent(server.url))
        assert client.lrange("dgents:{n}", 0, -1) == [b"theirs"]


async def test_a_request_id_counts_in_every_runtime(server: RedisServer) -> None:
    async with Runtime() as one, Runtime() as two:
        first = await one.spawn("n", RedisAgent(server.url))
        second = await two.spawn("n", RedisAgent(server.url))
        assert await first.save(7, request_id="r") == 1
        assert await second.save(8, request_id="r") == 1
        assert await second.load() == 7


async def test_a_state_of_short_life_is_gone_after_its_ttl(server: RedisServer) -> None:
    async with Runtime() as rt:
        ref = await rt.spawn("n", RedisAgent(server.url, ttl=60))
        await ref.save(1)
        with server.client() as client:
            assert 0 < client.pttl("dgents:{n}") <= 60_000
            client.pexpire("dgents:{n}", 0)
        with pytest.raises(dgents.StateNotFoundError):
            await ref.load()


async def test_a_watcher_sees_the_last_state_after_its_subscription_was_lost(server: RedisServer) -> None:
    async with Runtime() as one, Runtime() as two:
        writer = await one.spawn("n", RedisAgent(server.url))
        reader = await two.spawn("n", RedisAgent(server.url))
        await writer.save(0)
        with anyio.fail_after(SOON):
            changes = aiter(reader.watch())
            assert (await anext(changes)).state == 0
            await writer.save(1)
            while (await anext(changes)).state != 1:
                pass
            with server.client() as client:
                client.client_kill_filter(_type="pubsub")
            await writer.save(2)
            while (await anext(changes)).state != 2:
                pass


async def test_a_cache_over_redis_learns_of_a_foreign_change(server: RedisServer) -> None:
    async with Runtime() as one, Runtime() as two:
        cached = await one.spawn("n", CachedAgent(VolatileAgent(), RedisAgent(server.url)))
        await cached.save(1)
        assert await cached.load() == 1
        await (await two.spawn("n", RedisAgent(server.url))).save(2)
        with anyio.fail_after(SOON):
            while await cached.load() != 2:
                await anyio.to_thread.run_sync(lambda: None)


async def test_raw_commands_run_in_turn_with_the_other_messages(server: RedisServer) -> None:
    async with Runtime() as rt:
        ref = await rt.spawn("n", RedisAgent(server.url))
        async with anyio.create_task_group() as group:
            for _ in range(50):
                group.start_soon(ref.execute, "INCR", "counter")
        assert await ref.execute("GET", "counter") in (b"50", "50")


async def test_write_behind_reaches_redis(server: RedisServer) -> None:
    agent = RedisAgent[int](server.url, ownership="exclusive")
    async with Runtime() as rt:
        ref = await rt.spawn("n", CachedAgent(VolatileAgent(), agent, policy="write-behind"))
        for n in range(100):
            await ref.save(n)
        await ref.flush()
        async with Runtime() as other:
            assert await (await other.spawn("n", RedisAgent(server.url))).load() == 99
