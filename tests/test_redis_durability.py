"""A write is acknowledged when what was asked for has happened; a server that can't do it is warned of."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TypeVar

import anyio
import pytest

from dgents.backends.redis_durability import Durability, ServerFacts, confirmation, shortfall, warnings
from dgents.runtime.errors import StorageError
from tests.redis_kit import commit, opened, record, write
from tests.redis_server import RedisServer, redis_server
from tests.resources import fake_resources

pytestmark = pytest.mark.anyio

T = TypeVar("T")


def synced_replica(primary: RedisServer, replica: RedisServer) -> None:
    """Make one server a replica of another, and return when it has everything."""
    with replica.client() as client, primary.client() as source:
        client.replicaof("127.0.0.1", primary.port)
        source.set("marker", "x")
        while source.wait(1, 100) < 1:
            pass


async def once_confirmed(ask: Callable[[], Awaitable[T]]) -> T:
    """Return what ``ask`` returns once the replica that was paused has caught up."""
    with anyio.fail_after(20):
        while True:
            try:
                return await ask()
            except StorageError as error:
                if "replicas have it" not in str(error):
                    raise


async def test_a_write_waits_for_its_replicas(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    with (
        redis_server(tmp_path / "a", "--repl-diskless-sync-delay", "0") as primary,
        redis_server(tmp_path / "b") as replica,
    ):
        synced_replica(primary, replica)
        options = {"durability": "replicas:1", "ownership": "exclusive"}
        async with opened(primary.url + "?socket_timeout=0.5", **options) as (backend, _):
            assert await commit(backend, 1) is None
            with replica.client() as client:
                assert client.get("dgents:{user/7}") is not None
            replica.pause()
            with pytest.raises(StorageError, match="0 of 1 replicas") as failure:
                await commit(backend, 2, b"in doubt")
            assert failure.value.outcome == "unknown"
            await backend.close()
            with pytest.raises(StorageError):
                await backend.open()
            replica.resume()
            assert (await once_confirmed(backend.open)).record == record(2, b"in doubt")


async def test_a_shared_write_in_doubt_is_confirmed_once_its_replicas_have_it(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    with (
        redis_server(tmp_path / "a", "--repl-diskless-sync-delay", "0") as primary,
        redis_server(tmp_path / "b") as replica,
    ):
        synced_replica(primary, replica)
        async with opened(primary.url + "?socket_timeout=2", durability="replicas:1") as (backend, _):
            replica.pause()
            doubtful = write(backend, 1)
            assert backend.store is not None
            with pytest.raises(StorageError, match="0 of 1 replicas"):
                await backend.store.commit([doubtful])
            with pytest.raises(StorageError, match="0 of 1 replicas"):
                await backend.committed(doubtful)
            replica.resume()
            assert await once_confirmed(lambda: backend.committed(doubtful)) is True


@pytest.mark.parametrize(
    ("options", "agent", "reason"),
    [
        ((), {"durability": "aof"}, "persistence"),
        (("--appendonly", "yes", "--appendfsync", "everysec"), {"durability": "aof"}, "persistence"),
        (("--appendonly", "yes", "--appendfsync", "always"), {"durability": "aof"}, None),
        (("--maxmemory", "100mb", "--maxmemory-policy", "allkeys-lru"), {}, "eviction"),
        (("--maxmemory", "100mb", "--maxmemory-policy", "volatile-lru"), {}, None),
        (("--maxmemory", "100mb", "--maxmemory-policy", "volatile-lru"), {"ttl": 60}, "eviction"),
        ((), {"durability": "replicas:1"}, "replicas"),
        ((), {}, None),
    ],
)
async def test_what_the_server_will_not_do_is_a_warning_at_the_start(
    tmp_path: Path, options: tuple[str, ...], agent: dict[str, object], reason: str | None
) -> None:
    with redis_server(tmp_path, *options) as server:
        async with fake_resources() as resources, opened(server.url, resources=resources, **agent):
            async with opened(server.url, "user/8", resources=resources, **agent):
                pass
            reasons = [details["reason"] for kind, _, details in resources.events if kind == "warning"]
            assert reasons == ([reason] if reason else [])


async def test_a_server_that_hides_its_settings_is_warned_of(tmp_path: Path) -> None:
    with redis_server(tmp_path, "--rename-command", "CONFIG", "", "--rename-command", "INFO", "") as server:
        async with (
            fake_resources() as resources,
            opened(server.url, resources=resources, durability="aof") as (backend, _),
        ):
            assert await commit(backend, 1) is None
            assert "does not say" in resources.events[0][2]["message"]


AOF, MEMORY, TWO = Durability.parse("aof"), Durability.parse("memory"), Durability.parse("replicas:2")
REDIS_7_2 = ServerFacts(version=(7, 2), appendonly=True, appendfsync="everysec")


def test_a_newer_server_is_asked_to_sync_its_append_only_file() -> None:
    assert confirmation(AOF, REDIS_7_2, 2.0) == [("WAITAOF", 1, 0, 2000)]
    assert list(warnings(AOF, REDIS_7_2, ttl=False)) == []
    assert confirmation(AOF, ServerFacts(version=(7, 0), appendonly=True), 2.0) == []
    assert confirmation(MEMORY, REDIS_7_2, 2.0) == []
    assert confirmation(TWO, REDIS_7_2, 0.0001) == [("WAIT", 2, 1)]


@pytest.mark.parametrize(
    ("durability", "replies", "lacks"),
    [
        (AOF, [[1, 0]], None),
        (AOF, [[0, 0]], "not in the append-only file"),
        (AOF, [ValueError("ERR appendonly is off")], "could not confirm"),
        (TWO, [2], None),
        (TWO, [1], "1 of 2 replicas"),
        (MEMORY, [], None),
    ],
)
def test_a_confirmation_that_falls_short_is_told(
    durability: Durability, replies: list[object], lacks: str | None
) -> None:
    said = shortfall(durability, replies)
    assert said is None if lacks is None else lacks in str(said)


@pytest.mark.parametrize("wrong", ["", "disk", "replicas", "replicas:0", "replicas:x", "replicas:-1", None])
def test_another_durability_is_refused(wrong: str) -> None:
    with pytest.raises(ValueError, match="replicas:N"):
        Durability.parse(wrong)
