"""States in a real Redis server: versions, owners, histories, requests and raw commands."""

from __future__ import annotations

import pickle
from collections.abc import Iterator

import anyio
import pytest
from redis.crc import key_slot

from dgents.backends.redis import RedisAgent
from dgents.runtime.contract import Request, Write
from dgents.runtime.errors import (
    OwnershipLostError,
    StateCorruptionError,
    StorageError,
    UnsupportedOperationError,
    VersionConflictError,
)
from tests.redis_kit import commit, opened, record, write
from tests.redis_server import RedisServer, redis_server
from tests.resources import fake_resources

pytestmark = pytest.mark.anyio


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    with redis_server(tmp_path_factory.mktemp("redis")) as server:
        yield server


@pytest.fixture
def server(running: RedisServer) -> RedisServer:
    with running.client() as client:
        client.flushall()
    return running


async def test_what_was_written_is_read_by_another_process(server: RedisServer) -> None:
    async with opened(server.url) as (backend, found):
        assert found.record is None
        assert await commit(backend, 1, b"ada") is None
    async with opened(server.url) as (other, again):
        assert again.record == record(1, b"ada")
        assert await other.read() == record(1, b"ada")


async def test_a_write_on_an_older_version_is_refused_and_names_both(server: RedisServer) -> None:
    async with opened(server.url) as (mine, _), opened(server.url) as (theirs, _):
        assert await commit(theirs, 1, b"theirs") is None
        answer = await commit(mine, 1, b"mine")
        assert isinstance(answer, VersionConflictError)
        assert (answer.expected, answer.actual) == (0, 1)
        assert await mine.read() == record(1, b"theirs")


async def test_a_write_may_name_a_version_that_its_backend_has_not_read(server: RedisServer) -> None:
    async with opened(server.url) as (mine, _), opened(server.url) as (theirs, _):
        assert await commit(theirs, 1) is None
        assert await commit(mine, 2, b"mine") is None
        assert await theirs.read() == record(2, b"mine")


async def test_a_thousand_writes_are_one_commit_and_answered_each(server: RedisServer) -> None:
    async with fake_resources() as resources:
        backends = [RedisAgent(server.url).backend(f"user/{n}", resources) for n in range(1000)]
        async with anyio.create_task_group() as tasks:
            for backend in backends:
                tasks.start_soon(backend.open)
        with server.client() as client:
            client.set("dgents:{user/500}", "somebody else's")
        store = backends[0].store
        assert store is not None
        answers = await store.commit([write(backend, 1, backend.key.encode()) for backend in backends])
        assert [n for n, answer in enumerate(answers) if answer is not None] == [500]
        assert isinstance(answers[500], StateCorruptionError)
        assert await backends[999].read() == record(1, b"user/999")
        for backend in backends:
            await backend.close()


async def test_the_newest_owner_fences_the_one_before(server: RedisServer) -> None:
    async with opened(server.url, ownership="exclusive") as (old, first):
        assert await commit(old, 1, b"old") is None
        async with opened(server.url, ownership="exclusive") as (new, second):
            assert second.epoch == first.epoch + 1
            assert second.record == record(1, b"old")
            assert isinstance(await commit(old, 2, b"lost"), OwnershipLostError)
            assert await commit(new, 2, b"new") is None
            assert await old.read() == record(2, b"new")


async def test_a_shared_write_fences_an_exclusive_owner(server: RedisServer) -> None:
    async with opened(server.url, ownership="exclusive") as (owner, _), opened(server.url) as (sharer, _):
        assert await commit(owner, 1) is None
        await sharer.read()
        assert await commit(sharer, 2, b"shared") is None
        assert isinstance(await commit(owner, 2, b"late"), OwnershipLostError)


async def test_a_state_expires_after_its_ttl_and_begins_anew(server: RedisServer) -> None:
    async with opened(server.url, ttl=60, max_history=3) as (backend, _):
        assert await commit(backend, 1) is None
        with server.client() as client:
            names = client.keys("dgents:*")
            assert len(names) == 2
            assert all(0 < client.pttl(name) <= 60_000 for name in names)
            client.delete("dgents:{user/7}")  # what an expiry does
        assert await backend.read() is None
        assert backend.went_back is None
        assert await commit(backend, 1, b"anew") is None
        assert await backend.history() == [record(1, b"anew")]


async def test_a_version_of_another_life_is_a_conflict(server: RedisServer) -> None:
    async with opened(server.url, ttl=60) as (mine, _), opened(server.url, ttl=60) as (theirs, _):
        assert await commit(mine, 1, b"first life") is None
        with server.client() as client:
            client.delete("dgents:{user/7}")
        await theirs.read()
        assert await commit(theirs, 1, b"second life") is None
        answer = await commit(mine, 2, b"built on the first life")
        assert isinstance(answer, VersionConflictError)
        assert "written anew" in str(answer)


async def test_the_history_keeps_the_newest_versions_and_tombstones(server: RedisServer) -> None:
    async with opened(server.url, max_history=3) as (backend, _):
        for version, data in enumerate([b"1", b"2", None, b"4"], start=1):
            assert await commit(backend, version, data) is None
        assert await backend.history() == [record(2, b"2"), record(3, None), record(4, b"4")]
        assert await backend.history(2) == [record(3, None), record(4, b"4")]
        assert await backend.history(0) == []
        with server.client() as client:
            assert client.xlen("dgents:{user/7}:history") == 3


async def test_the_versions_of_one_batch_are_in_the_history(server: RedisServer) -> None:
    async with opened(server.url, max_history=2) as (backend, _):
        assert backend.store is not None
        batch = Write(backend, 0, [record(n, b"%d" % n) for n in range(1, 6)], [])
        assert await backend.store.commit([batch]) == [None]
        assert await backend.history() == [record(4, b"4"), record(5, b"5")]


async def test_without_a_history_only_the_current_version_is_kept(server: RedisServer) -> None:
    async with opened(server.url) as (backend, _):
        assert await commit(backend, 1) is None
        assert await commit(backend, 2, b"two") is None
        assert await backend.history() == [record(2, b"two")]


async def test_request_ids_are_stored_with_the_write_and_bounded(server: RedisServer) -> None:
    async with opened(server.url) as (backend, _):
        assert backend.store is not None
        requests = [Request(f"r{n}", 1, b"result") for n in range(1200)]
        assert await backend.store.commit([write(backend, 1, requests=requests)]) == [None]
        assert await backend.requests() == requests[-1000:]
        (refused,) = await backend.store.commit([write(backend, 1, requests=[Request("late", 1)])])
        assert isinstance(refused, VersionConflictError)
        assert (await backend.requests())[-1] == requests[-1]


@pytest.mark.parametrize("ownership", ["shared", "exclusive"])
@pytest.mark.parametrize("foreign", ["list", "string", "empty"])
async def test_what_somebody_else_stored_is_left_as_it_is(server: RedisServer, ownership: str, foreign: str) -> None:
    with server.client() as client:
        if foreign == "list":
            client.rpush("dgents:{user/7}", "theirs")
        else:
            client.set("dgents:{user/7}", "theirs" * 20 if foreign == "string" else "")
        before = client.dump("dgents:{user/7}")
        with pytest.raises(StateCorruptionError):
            async with opened(server.url, ownership=ownership):
                pass
        assert client.dump("dgents:{user/7}") == before


@pytest.mark.parametrize("theirs", ["", "theirs"])
async def test_what_somebody_else_stores_meanwhile_is_not_overwritten(server: RedisServer, theirs: str) -> None:
    async with opened(server.url) as (backend, _):
        with server.client() as client:
            client.set("dgents:{user/7}", theirs)
            assert isinstance(await commit(backend, 1), StateCorruptionError)
            assert client.get("dgents:{user/7}") == theirs.encode()


async def test_a_foreign_history_key_refuses_the_write_whole(server: RedisServer) -> None:
    async with opened(server.url, max_history=3) as (backend, _):
        with server.client() as client:
            client.set("dgents:{user/7}:history", "theirs")
        assert isinstance(await commit(backend, 1), StateCorruptionError)
        assert await backend.read() is None


@pytest.mark.parametrize("ownership", ["shared", "exclusive"])
async def test_each_flipped_byte_of_the_data_is_found(server: RedisServer, ownership: str) -> None:
    async with opened(server.url) as (backend, _):
        assert await commit(backend, 1, b"a state") is None
        with server.client() as client:
            whole = client.get("dgents:{user/7}")
            assert isinstance(whole, bytes)
            for place in range(28, len(whole)):
                damaged = whole[:place] + bytes([whole[place] ^ 4]) + whole[place + 1 :]
                client.set("dgents:{user/7}", damaged)
                with pytest.raises(StateCorruptionError):
                    await backend.read()
            with pytest.raises(StateCorruptionError):
                async with opened(server.url, ownership=ownership):
                    pass
            assert client.get("dgents:{user/7}") == damaged


@pytest.mark.parametrize("key", ["a}b", "}", "{}", "%7D", "a:history", "", "né\ud800", "x" * 4096, "nul\0"])
async def test_any_key_is_a_state_of_its_own_in_one_slot(server: RedisServer, key: str) -> None:
    if not key:
        with pytest.raises(ValueError, match="empty"):
            RedisAgent(server.url, key=key)
        return
    async with opened(server.url, key=key, max_history=2) as (backend, found):
        assert found.record is None
        assert await commit(backend, 1, b"own") is None
        assert await backend.history() == [record(1, b"own")]
        with server.client() as client:
            slots = {key_slot(name) for name in client.keys("dgents:*")}
            assert slots == {backend.keys.slot}


async def test_raw_commands_go_to_the_users_own_keys(server: RedisServer) -> None:
    async with opened(server.url) as (backend, _):
        results: list[int] = []

        async def count() -> None:
            results.append(await backend.execute("INCR", "counter"))

        async with anyio.create_task_group() as tasks:
            for _ in range(100):
                tasks.start_soon(count)
        assert sorted(results) == list(range(1, 101))
        assert await backend.execute("set", "text", "é") is True
        assert await backend.execute("GET", "text") == "é".encode()
        assert await backend.execute("BLPOP", "nothing", 0.01) is None


async def test_a_raw_command_that_is_refused_fails_alone(server: RedisServer) -> None:
    async with opened(server.url) as (backend, _):
        await backend.execute("SET", "text", "x")
        with pytest.raises(StorageError, match="not an integer") as refused:
            await backend.execute("INCR", "text")
        assert (refused.value.outcome, refused.value.retryable) == ("rolled_back", False)
        with pytest.raises(UnsupportedOperationError):
            await backend.execute("MULTI")
        with pytest.raises(TypeError):
            await backend.execute("SET", "text", None)


async def test_a_server_that_forgot_its_scripts_is_given_them_again(server: RedisServer) -> None:
    async with opened(server.url) as (backend, _):
        with server.client() as client:
            for version in (1, 2):
                client.script_flush()
                assert await commit(backend, version) is None


async def test_an_agent_is_picklable_and_keeps_its_password_to_itself() -> None:
    agent = RedisAgent("redis://ada:s3cret@cache/1?password=s3cret", key="k", max_history=5)
    assert pickle.loads(pickle.dumps(agent)) == agent
    assert "s3cret" not in repr(agent) + agent.place.safe + repr(agent.place)


@pytest.mark.parametrize(
    "wrong",
    [
        {"redis_url": "http://ada:s3cret@cache"},
        {"redis_url": "redis://ada:s3cret@cache:port"},
        {"redis_url": "redis+sentinel://cache"},
        {"ttl": 0},
        {"ttl": 5, "ownership": "exclusive"},
        {"max_history": -1},
        {"ownership": "mine"},
        {"durability": "replicas:0"},
        {"durability": "replicas:1", "redis_url": "redis+cluster://cache"},
    ],
)
async def test_arguments_that_cannot_be_right_are_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=r".") as refused:
        RedisAgent(**{"redis_url": "redis://cache", **wrong})  # type: ignore[arg-type]
    assert "s3cret" not in str(refused.value)
