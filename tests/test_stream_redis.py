"""A stream in a real Redis server: a Redis Stream whose newest owner wins."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import anyio
import pytest

import dgents
from dgents import Runtime
from tests.redis_server import RedisServer, redis_server
from tests.stream_kit import UserCreated, UserRenamed, UserState, agent_maker
from tests.test_stream_model import run

pytestmark = pytest.mark.anyio

ALICE, ALICIA = UserCreated("u1", "Alice"), UserRenamed("u1", "Alicia")


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    with redis_server(tmp_path_factory.mktemp("redis")) as server:
        yield server


@pytest.fixture
def server(running: RedisServer) -> RedisServer:
    with running.client() as client:
        client.flushall()
    return running


def agent(server: RedisServer, **options: Any) -> Any:
    return agent_maker("memory", Path())(event_log=server.url, **options)


async def test_a_stream_in_redis_goes_on_after_a_restart(server: RedisServer) -> None:
    for session in range(1, 4):
        async with Runtime() as rt:
            stream = await rt.spawn("users", agent(server, snapshot_every=2, chain=True))
            await stream.append_all([UserCreated(f"{session}.{n}", "x") for n in range(3)])
            assert await stream.append(ALICE, request_id="r") == 4
            assert (await stream.load()).changes == await stream.verify() == 3 * session + 1
            assert [state.changes for state in await stream.history(2)] == [3 * session, 3 * session + 1]


async def test_a_compacted_stream_in_redis_goes_on(server: RedisServer) -> None:
    for session in range(1, 3):
        async with Runtime() as rt:
            stream = await rt.spawn("users", agent(server, chain=True))
            await stream.append_all([ALICE] * 3)
            assert await stream.compact(before=3 * session + 1) == 0
            assert await stream.verify() == 0
            assert (await stream.load(version=3 * session)).changes == 3 * session


async def test_many_tasks_are_numbered_without_gaps(server: RedisServer) -> None:
    numbers: list[int] = []
    async with Runtime() as rt:
        stream = await rt.spawn("users", agent(server))

        async def append(task: int) -> None:
            numbers.append(await stream.append(UserCreated(f"u{task}", "x")))

        async with anyio.create_task_group() as tasks:
            for task in range(100):
                tasks.start_soon(append, task)
        assert sorted(numbers) == list(range(1, 101))


async def test_an_owner_that_was_replaced_writes_nothing(server: RedisServer) -> None:
    async with Runtime() as rt, Runtime() as other:
        old = await rt.spawn("users", agent(server))
        await old.append(ALICE)
        new = await other.spawn("users", agent(server))
        assert await new.append(ALICIA) == 2
        with pytest.raises(dgents.OwnershipLostError):
            await old.append(ALICE)
        assert [event async for event in new.events()] == [ALICE, ALICIA]


async def test_a_log_that_lost_its_newest_event_is_not_gone_on_with(server: RedisServer) -> None:
    async with Runtime() as rt:
        await (await rt.spawn("users", agent(server))).append_all([ALICE, ALICIA])
    with server.client() as client:
        client.xdel("dgents:{events/users}:history", "2-0")
    async with Runtime() as rt:
        with pytest.raises(dgents.StateCorruptionError) as found:
            await rt.spawn("users", agent(server))
        assert found.value.event == 2


async def test_an_event_that_is_gone_is_located(server: RedisServer) -> None:
    async with Runtime() as rt:
        stream = await rt.spawn("users", agent(server, chain=True))
        await stream.append_all([ALICE] * 5)
        with server.client() as client:
            client.xdel("dgents:{events/users}:history", "3-0")
        with pytest.raises(dgents.StateCorruptionError) as found:
            await stream.verify()
        assert found.value.event == 3


async def test_a_stream_in_redis_agrees_with_a_plain_list(server: RedisServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tests.test_stream_model.agent_maker", lambda *_: lambda **options: agent(server, **options))
    await run("redis", Path(), 100, seed=3)


def test_a_signed_head_is_not_for_redis() -> None:
    with pytest.raises(ValueError, match="not in Redis"):
        agent_maker("memory", Path())(event_log="redis://x", initial=UserState(), chain=True, signing_key=bytes(32))
