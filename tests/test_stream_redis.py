"""A stream in a real Redis server that loses what it should not; see test_stream_servers.py for the rest."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import dgents
from dgents import Runtime
from tests.redis_server import RedisServer, redis_server
from tests.stream_kit import UserCreated, UserRenamed, UserState, agent_maker

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


def test_a_signed_head_is_not_for_redis() -> None:
    with pytest.raises(ValueError, match="not on a server"):
        agent_maker("memory", Path())(event_log="redis://x", initial=UserState(), chain=True, signing_key=bytes(32))
