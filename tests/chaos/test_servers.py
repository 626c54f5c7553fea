"""States on real servers that processes share, that crash, and whose connections break: Redis and PostgreSQL."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import anyio
import anyio.to_thread
import pytest

import dgents
from tests.chaos.server_counting import counter
from tests.chaos.test_processes import start
from tests.postgres_server import postgres_server
from tests.redis_server import redis_server
from tests.seeds import seeded
from tests.tcp_proxy import TcpProxy, tcp_proxy

pytestmark = pytest.mark.anyio


class Server:
    """A server of either kind, as these tests see it."""

    def __init__(self, kind: str, process: Any) -> None:
        self.kind = kind
        self.process = process
        self.url = process.fresh_database() if kind == "postgres" else process.url

    def through(self, proxy: TcpProxy) -> str:
        """Return the URL that leads through a proxy."""
        return self.url.replace(f":{self.process.port}", f":{proxy.port}")

    def with_password(self, password: str) -> str:
        parts = urlsplit(self.url)
        return self.url.replace(parts.netloc, f"dgents:{password}@{parts.hostname}:{parts.port}")


@pytest.fixture(scope="module", params=["redis", "postgres"])
def running(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, Any]]:
    if request.param == "postgres":
        with postgres_server() as process:
            yield "postgres", process
    else:
        options = ("--appendonly", "yes", "--appendfsync", "always")
        with redis_server(tmp_path_factory.mktemp("redis"), *options) as process:
            yield "redis", process


@pytest.fixture
def server(running: tuple[str, Any]) -> Server:
    if running[0] == "redis":
        with running[1].client() as client:
            client.flushall()
    return Server(*running)


def agent(url: str, **options: Any) -> Any:
    """Return the counter's agent, as durable as its server can be."""
    return counter(url, **({"durability": "aof"} if url.startswith("redis:") else {}), **options)


async def increments(server: Server, processes: int, times: int, loop: str) -> Any:
    children = [start("server_counting", server.url, times, loop) for _ in range(processes)]
    for child in children:
        await anyio.to_thread.run_sync(child.communicate)
        assert child.returncode == 0
    async with dgents.Runtime() as rt:
        snapshot = await (await rt.spawn("counter", counter(server.url))).snapshot()
        return snapshot.state, snapshot.version


async def test_processes_that_share_a_state_lose_no_update(server: Server, anyio_backend: str) -> None:
    assert await increments(server, 3, 100, anyio_backend) == (300, 300)


@pytest.mark.torture
async def test_eight_processes_that_share_a_state_lose_no_update(server: Server, anyio_backend: str) -> None:
    assert await increments(server, 8, 1000, anyio_backend) == (8000, 8000)


async def test_an_owner_that_was_replaced_writes_nothing_more(server: Server) -> None:
    async with dgents.Runtime() as rt, dgents.Runtime() as other:
        old = await rt.spawn("counter", agent(server.url, ownership="exclusive"))
        await old.save(1)
        new = await other.spawn("counter", agent(server.url, ownership="exclusive"))
        await new.save(2)
        with pytest.raises(dgents.OwnershipLostError):
            await old.save(3)
        with pytest.raises(dgents.ActorStoppedError):
            await old.load()
        assert await new.load() == 2


async def patient(rt: dgents.Runtime) -> dgents.Supervisor:
    """Return a supervisor that does not give up on a server that fails often."""
    return await rt.supervisor("patient", max_restarts=10_000, backoff=dgents.Backoff(0.01, 0.2))


async def until(holds: Callable[[], bool]) -> None:
    with anyio.fail_after(30):
        while not holds():  # noqa: ASYNC110 (what is waited for is in another process)
            await anyio.sleep(0.002)


async def count_through_failures(ref: Any, until: anyio.Event, told: list[int]) -> None:
    """Add numbers to a list, each once, whatever fails; note those that were acknowledged."""
    number = 0
    while not until.is_set():
        number += 1
        try:
            with anyio.fail_after(30):
                await ref.update(lambda kept, number=number: [*kept, number], default=[])
        except dgents.StorageError as error:
            assert error.outcome in ("not_started", "rolled_back", "unknown")  # noqa: PT017 (it may also succeed)
        else:
            told.append(number)


@pytest.mark.parametrize("ownership", ["shared", "exclusive"])
async def test_a_server_that_crashes_loses_nothing_acknowledged(server: Server, ownership: str) -> None:
    told: list[int] = []
    done = anyio.Event()
    async with dgents.Runtime() as rt:
        ref = await (await patient(rt)).spawn("counter", agent(server.url, ownership=ownership))
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(count_through_failures, ref, done, told)
            for _ in range(2):
                await until(lambda: len(told) >= 20)
                await anyio.to_thread.run_sync(server.process.kill)
                await anyio.to_thread.run_sync(server.process.start)
                before = len(told)
                await until(lambda before=before: len(told) >= before + 20)
            done.set()
    async with dgents.Runtime() as rt:
        kept = await (await rt.spawn("counter", agent(server.url, ownership=ownership))).load()
    assert set(told) <= set(kept)
    assert len(kept) == len(set(kept))


async def cut_connections(server: Server, cuts: int, chance: random.Random) -> tuple[list[int], list[int]]:
    """Return what was acknowledged and what is kept, after connections were cut in the middle of replies."""
    told: list[int] = []
    done = anyio.Event()
    with tcp_proxy(("127.0.0.1", server.process.port)) as proxy:
        async with dgents.Runtime() as rt:
            ref = await (await patient(rt)).spawn("counter", agent(server.through(proxy)))
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(count_through_failures, ref, done, told)
                for _ in range(cuts):
                    before, cut = len(told), proxy.cuts
                    proxy.cut_after(chance.choice(["to_server", "to_client"]), chance.randrange(2000))
                    await until(lambda before=before, cut=cut: len(told) >= before + 5 and proxy.cuts > cut)
                done.set()
    async with dgents.Runtime() as rt:
        return told, await (await rt.spawn("counter", agent(server.url))).load()


async def test_a_connection_that_is_cut_in_a_reply_is_answered_with_the_truth(server: Server) -> None:
    told, kept = await cut_connections(server, 5, seeded())
    assert set(told) <= set(kept)
    assert len(kept) == len(set(kept))


@pytest.mark.torture
async def test_hundreds_of_cut_connections_lose_nothing_and_repeat_nothing(server: Server) -> None:
    told, kept = await cut_connections(server, 200, seeded())
    assert set(told) <= set(kept)
    assert len(kept) == len(set(kept))
    print(f"\n{server.kind}: 200 connections cut, {len(told)} acknowledged updates, none lost, none twice")


async def test_no_call_hangs_past_its_timeout_while_the_server_is_paused(server: Server) -> None:
    async with dgents.Runtime() as rt:
        ref = await rt.spawn("counter", agent(server.url))
        await ref.save(1)
        await anyio.to_thread.run_sync(server.process.pause)
        try:
            with anyio.fail_after(5), pytest.raises(dgents.AskTimeoutError):
                await ref.ask(dgents.Save(2), timeout=0.2)
        finally:
            await anyio.to_thread.run_sync(server.process.resume)
        with anyio.fail_after(30):
            assert await ref.update(lambda _: 3) == 3


async def test_a_wrong_password_and_a_closed_port_are_errors_in_time_without_the_password(server: Server) -> None:
    closed = server.url.replace(f":{server.process.port}", ":1")
    async with dgents.Runtime() as rt:
        for url in (server.with_password("t0psecret"), closed):
            with anyio.fail_after(20), pytest.raises(dgents.StorageError) as refused:
                await rt.spawn("counter", counter(url))
            assert "t0psecret" not in str(refused.value)
            assert rt.names() == []


async def test_a_request_that_two_processes_send_is_applied_once(server: Server) -> None:
    async with dgents.Runtime() as rt, dgents.Runtime() as other:
        one = await rt.spawn("counter", agent(server.url))
        two = await other.spawn("counter", agent(server.url))
        await one.save(0)
        for ref in (one, two, one):
            assert await ref.update(lambda n: n + 1, request_id="payment-7") == 1
        assert await two.load() == 1


async def test_a_watcher_sees_what_another_process_writes(server: Server) -> None:
    async with dgents.Runtime() as rt, dgents.Runtime() as other:
        one = await rt.spawn("counter", agent(server.url))
        two = await other.spawn("counter", agent(server.url))
        await one.save(0)
        with anyio.fail_after(20):
            async for seen in two.watch():
                if seen.state == 3:
                    break
                await one.save(seen.state + 1)


async def test_a_cache_is_refreshed_by_what_another_process_writes(server: Server) -> None:
    async with dgents.Runtime() as rt, dgents.Runtime() as other:
        cached = await rt.spawn("counter", dgents.CachedAgent(dgents.VolatileAgent(), agent(server.url)))
        two = await other.spawn("counter", agent(server.url))
        await cached.save(1)
        assert await cached.load() == 1
        await two.update(lambda n: n + 1)
        with anyio.fail_after(20):
            async for seen in cached.watch():
                if seen.state == 2:
                    break
        assert await cached.load() == 2


async def test_write_behind_on_a_server_is_there_after_the_runtime(server: Server, tmp_path: Path) -> None:
    flush = dgents.Flush(max_delay=5, journal=tmp_path / "journal")
    behind = dgents.CachedAgent(
        dgents.VolatileAgent(), agent(server.url, ownership="exclusive"), policy="write-behind", flush=flush
    )
    async with dgents.Runtime() as rt:
        ref = await rt.spawn("counter", behind)
        for n in range(100):
            await ref.save(n)
    async with dgents.Runtime() as rt:
        assert await (await rt.spawn("counter", agent(server.url))).load() == 99
