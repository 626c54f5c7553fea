"""Changes of one process are seen in the others, also after the subscription was lost."""

from __future__ import annotations

from collections.abc import Iterator

import anyio
import pytest

from dgents.runtime.errors import StorageError
from tests.redis_kit import commit, opened, record
from tests.redis_server import RedisServer, redis_server
from tests.resources import fake_resources

pytestmark = pytest.mark.anyio


class Changes:
    """Counts calls, and lets a test wait for the next one."""

    def __init__(self) -> None:
        self.count = 0
        self._event = anyio.Event()

    def __call__(self) -> None:
        self.count += 1
        self._event.set()

    async def next(self) -> None:
        with anyio.fail_after(10):
            await self._event.wait()
        self._event = anyio.Event()


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    with redis_server(tmp_path_factory.mktemp("redis")) as server:
        yield server


@pytest.fixture
def server(running: RedisServer) -> RedisServer:
    with running.client() as client:
        client.flushall()
    return running


async def test_a_change_of_another_process_is_seen(server: RedisServer) -> None:
    async with opened(server.url) as (mine, _), opened(server.url) as (theirs, _):
        changed = Changes()
        await mine.subscribe(changed)
        await changed.next()  # the subscription itself
        assert await commit(theirs, 1, b"theirs") is None
        await changed.next()
        assert await mine.read() == record(1, b"theirs")


async def test_an_actor_does_not_hear_of_its_own_writes(server: RedisServer) -> None:
    async with opened(server.url) as (mine, _), opened(server.url) as (theirs, _):
        changed = Changes()
        await mine.subscribe(changed)
        await changed.next()
        before = changed.count
        for version in range(1, 6):
            assert await commit(mine, version) is None
        await theirs.read()
        assert await commit(theirs, 6) is None
        await changed.next()
        assert changed.count == before + 1


async def test_many_actors_share_one_subscribed_connection(server: RedisServer) -> None:
    async with (
        fake_resources() as resources,
        opened(server.url, "a", resources=resources) as (first, _),
        opened(server.url, "b", resources=resources) as (second, _),
        opened(server.url, "b") as (other, _),
    ):
        quiet, changed = Changes(), Changes()
        await first.subscribe(quiet)
        await second.subscribe(changed)
        await quiet.next()
        await changed.next()
        with server.client() as client:
            assert len(client.client_list(_type="pubsub")) == 1
        before = quiet.count
        assert await commit(other, 1) is None
        await changed.next()
        assert quiet.count == before


async def test_a_lost_subscription_is_made_again_and_everything_read_anew(server: RedisServer) -> None:
    async with (
        fake_resources() as resources,
        opened(server.url, resources=resources) as (mine, _),
        opened(server.url) as (theirs, _),
    ):
        changed = Changes()
        await mine.subscribe(changed)
        await changed.next()
        with server.client() as client:
            client.client_kill_filter(_type="pubsub")
        assert await commit(theirs, 1, b"missed") is None
        await changed.next()
        assert await mine.read() == record(1, b"missed")
        assert await commit(theirs, 2, b"seen") is None
        while (await mine.read()) != record(2, b"seen"):
            await changed.next()
        assert any("subscription" in details["message"] for _, _, details in resources.events)


async def test_after_unsubscribing_nothing_is_heard_and_nothing_is_connected(server: RedisServer) -> None:
    async with opened(server.url) as (mine, _), opened(server.url) as (theirs, _):
        changed = Changes()
        await mine.subscribe(changed)
        await changed.next()
        await mine.unsubscribe(changed)
        before = changed.count
        assert await commit(theirs, 1) is None
        assert await mine.read() == record(1)
        assert changed.count == before


async def test_a_subscription_that_the_server_does_not_confirm_is_an_error_in_time(tmp_path_factory) -> None:  # type: ignore[no-untyped-def]
    with redis_server(tmp_path_factory.mktemp("paused")) as server:
        async with opened(server.url + "?socket_timeout=0.2") as (mine, _):
            server.pause()
            with pytest.raises(StorageError, match="did not answer"):
                await mine.subscribe(Changes())
            server.resume()
