"""A stream on a real server, Redis (one, and a cluster) or PostgreSQL: its newest owner wins."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import anyio
import anyio.to_thread
import pytest

import dgents
from dgents import Runtime
from dgents.cli import main
from tests.postgres_server import PostgresServer, postgres_server
from tests.redis_server import cluster_url, redis_cluster, redis_server
from tests.stream_kit import UserCreated, UserRenamed, agent_maker
from tests.test_stream_model import run

pytestmark = pytest.mark.anyio

ALICE, ALICIA = UserCreated("u1", "Alice"), UserRenamed("u1", "Alicia")


@pytest.fixture(scope="module")
def redis(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    with redis_server(tmp_path_factory.mktemp("redis")) as server:
        yield server


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    with redis_cluster(tmp_path_factory.mktemp("cluster")) as server:
        yield server


@pytest.fixture(scope="module")
def postgres() -> Iterator[PostgresServer]:
    with postgres_server() as server:
        yield server


@pytest.fixture(params=["redis", "cluster", "postgres"])
def url(request: pytest.FixtureRequest) -> str:
    """Return the URL of an empty database."""
    server = request.getfixturevalue(request.param)
    if request.param == "postgres":
        return str(server.fresh_database())
    with server.client() as client:
        client.flushall()
    return cluster_url(server) if request.param == "cluster" else str(server.url)


def agent(url: str, **options: Any) -> Any:
    return agent_maker("memory", Path())(event_log=url, **options)


async def test_a_stream_on_a_server_goes_on_after_a_restart(url: str) -> None:
    for session in range(1, 4):
        async with Runtime() as rt:
            stream = await rt.spawn("users", agent(url, snapshot_every=2, chain=True))
            await stream.append_all([UserCreated(f"{session}.{n}", "x") for n in range(3)])
            assert await stream.append(ALICE, request_id="r") == 4
            assert (await stream.load()).changes == await stream.verify() == 3 * session + 1
            assert [state.changes for state in await stream.history(2)] == [3 * session, 3 * session + 1]


async def test_a_compacted_stream_on_a_server_goes_on(url: str) -> None:
    for session in range(1, 3):
        async with Runtime() as rt:
            stream = await rt.spawn("users", agent(url, chain=True))
            await stream.append_all([ALICE] * 3)
            assert await stream.compact(before=3 * session + 1) == 0
            assert await stream.verify() == 0
            assert (await stream.load(version=3 * session)).changes == 3 * session


async def test_many_tasks_are_numbered_without_gaps(url: str) -> None:
    numbers: list[int] = []
    async with Runtime() as rt:
        stream = await rt.spawn("users", agent(url))

        async def append(task: int) -> None:
            numbers.append(await stream.append(UserCreated(f"u{task}", "x")))

        async with anyio.create_task_group() as tasks:
            for task in range(100):
                tasks.start_soon(append, task)
        assert sorted(numbers) == list(range(1, 101))


async def test_an_owner_that_was_replaced_writes_nothing(url: str) -> None:
    async with Runtime() as rt, Runtime() as other:
        old = await rt.spawn("users", agent(url))
        await old.append(ALICE)
        new = await other.spawn("users", agent(url))
        assert await new.append(ALICIA) == 2
        with pytest.raises(dgents.OwnershipLostError):
            await old.append(ALICE)
        assert [event async for event in new.events()] == [ALICE, ALICIA]


async def test_a_stream_on_a_server_agrees_with_a_plain_list(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tests.test_stream_model.agent_maker", lambda *_: lambda **options: agent(url, **options))
    await run("server", Path(), 100, seed=3)


async def test_the_command_line_shows_the_events_of_a_stream_in_a_database(
    postgres: PostgresServer, capsys: pytest.CaptureFixture[str]
) -> None:
    url = str(postgres.fresh_database())
    async with Runtime() as rt:
        stream = await rt.spawn("users", agent(url))
        await stream.append_all([ALICE, ALICIA])
    assert await anyio.to_thread.run_sync(main, ["history", url, "users"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[-1] for line in lines[::2]] == ["UserCreated", "UserRenamed"]
    assert '"Alicia"' in lines[3]
