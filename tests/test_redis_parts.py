"""The keys of one state in Redis: they live and expire together, and a part that is gone is found."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator
from typing import Any

import pytest

import dgents
from dgents import RedisAgent, Runtime, StateCorruptionError
from dgents.cli import main
from dgents.runtime.contract import Request
from tests.redis_kit import commit, opened, write
from tests.redis_server import RedisServer, redis_server

pytestmark = pytest.mark.anyio

STATE, HISTORY, REQUESTS = NAMES = [f"dgents:{{n}}{part}" for part in ("", ":history", ":requests")]
LIFE = 60.0  # seconds

Change = Callable[[Any], Awaitable[object]]

CHANGES: dict[str, Change] = {
    "save": lambda ref: ref.save({"n": 2}),
    "update": lambda ref: ref.update(lambda state: {**state, "n": 2}),
    "an update that waits": lambda ref: ref.update(_waiting),
    "patch": lambda ref: ref.patch({"n": 2}),
    "delete": lambda ref: ref.delete(),
    "lens": lambda ref: ref.at("n").save(2),
    "another request": lambda ref: ref.save({"n": 2}, request_id="b"),
}


async def _waiting(state: Any) -> Any:
    return {**state, "n": 2}


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    with redis_server(tmp_path_factory.mktemp("redis")) as server:
        yield server


@pytest.fixture
def server(running: RedisServer) -> RedisServer:
    with running.client() as client:
        client.flushall()
    return running


def lives(server: RedisServer) -> list[float]:
    """Return how many seconds each key of the state has to live; -0.001: for ever; -0.002: it is not there."""
    with server.client() as client:
        return [client.pttl(name) / 1000 for name in NAMES]


def age(server: RedisServer, left: float = 5.0) -> None:
    """Let almost the whole life pass."""
    with server.client() as client:
        for name in NAMES:
            client.pexpire(name, int(left * 1000))


@pytest.mark.parametrize("keep", [0, 3])
@pytest.mark.parametrize("change", CHANGES)
async def test_each_write_gives_every_key_of_the_state_the_whole_life_again(
    server: RedisServer, change: str, keep: int
) -> None:
    async with Runtime() as rt:
        ref = await rt.spawn("n", RedisAgent(server.url, ttl=LIFE, max_history=keep))
        await ref.save({"n": 1}, request_id="a")
        age(server)
        await CHANGES[change](ref)
        state, history, requests = lives(server)
        assert state > LIFE / 2
        assert abs(requests - state) < 1
        assert abs(history - state) < 1 if keep else history == -0.002


async def test_a_request_id_is_known_as_long_as_the_state_lives(server: RedisServer) -> None:
    async with Runtime() as one, Runtime() as two:
        ref = await one.spawn("n", RedisAgent(server.url, ttl=LIFE))
        await ref.update(lambda n: n + 1, default=0, request_id="a")
        age(server)
        await ref.update(lambda n: n + 10)
        other = await two.spawn("n", RedisAgent(server.url, ttl=LIFE))
        assert await other.update(lambda n: n + 1, default=0, request_id="a") == 1
        assert await other.load() == 11
        assert min(lives(server)[0], lives(server)[2]) > LIFE / 2


@pytest.mark.parametrize("ownership", ["shared", "exclusive"])
async def test_a_state_that_is_to_stay_keeps_its_history_and_ids(server: RedisServer, ownership: Any) -> None:
    async with Runtime() as rt:
        ref = await rt.spawn("n", RedisAgent(server.url, ttl=LIFE, max_history=3))
        await ref.save(1, request_id="a")
    async with Runtime() as rt:
        ref = await rt.spawn("n", RedisAgent(server.url, ownership=ownership))
        if ownership == "shared":
            await ref.save(2)
        assert lives(server) == [-0.001] * 3
        assert await ref.save(3, request_id="a") == 1


async def test_a_state_that_expired_begins_anew_without_its_ids_and_history(server: RedisServer) -> None:
    async with Runtime() as rt:
        ref = await rt.spawn("n", RedisAgent(server.url, ttl=LIFE, max_history=3))
        await ref.save(1, request_id="a")
        await ref.save(2)
        age(server)
        with server.client() as client:
            client.pexpire(STATE, 0)
        assert await ref.update(lambda n: n + 7, default=0, request_id="a") == 7
        assert await ref.history() == [7]


@pytest.mark.parametrize("ownership", ["shared", "exclusive"])
@pytest.mark.parametrize("kept", [HISTORY, REQUESTS])
async def test_a_state_that_is_gone_beside_its_parts_is_not_begun_anew(
    server: RedisServer, kept: str, ownership: Any
) -> None:
    agent: RedisAgent[Any] = RedisAgent(server.url, ownership=ownership, max_history=3)
    async with Runtime() as rt:
        await (await rt.spawn("n", agent)).save(1, request_id="a")
    with server.client() as client:
        for name in {*NAMES} - {kept}:
            client.delete(name)
        before = client.dump(kept)
        async with Runtime() as rt:
            with pytest.raises(StateCorruptionError):
                await rt.spawn("n", agent)
        assert client.keys() == [kept.encode()]
        assert client.dump(kept) == before


@pytest.mark.parametrize("ownership", ["shared", "exclusive"])
async def test_a_state_that_vanishes_beside_its_parts_is_not_written_anew(server: RedisServer, ownership: str) -> None:
    async with opened(server.url, "n", max_history=3, ownership=ownership) as (backend, _):
        assert await commit(backend, 1) is None
        with server.client() as client:
            client.delete(STATE)
            for attempt in (backend.read, backend.history, backend.open):
                with pytest.raises(StateCorruptionError):
                    await attempt()
            assert client.keys() == [HISTORY.encode()]


@pytest.mark.parametrize("ownership", ["shared", "exclusive"])
@pytest.mark.parametrize("lost", [HISTORY, REQUESTS])
async def test_nothing_is_built_on_a_state_that_lost_a_part(server: RedisServer, lost: str, ownership: Any) -> None:
    agent: RedisAgent[Any] = RedisAgent(server.url, ownership=ownership, max_history=3)
    with server.client() as client:
        async with Runtime() as rt:
            ref = await rt.spawn("n", agent)
            await ref.save(1, request_id="a")
            client.delete(lost)
            stored = client.get(STATE)
            with pytest.raises(StateCorruptionError):
                await ref.save(2)
        async with Runtime() as rt:
            ref = await rt.spawn("n", agent)
            assert await ref.load() == 1
            with pytest.raises(StateCorruptionError):
                await (ref.history() if lost == HISTORY else ref.save(2, request_id="a"))
        assert client.get(STATE)[20:28] != stored[20:28] or client.get(STATE) == stored
        assert client.get(STATE)[28:] == stored[28:]


async def test_a_history_without_its_oldest_versions_is_found(server: RedisServer) -> None:
    async with opened(server.url, "n", max_history=5) as (backend, _):
        for version in range(1, 6):
            assert await commit(backend, version) is None
        with server.client() as client:
            client.xdel(HISTORY, "1-0")
        with pytest.raises(StateCorruptionError, match="version 1"):
            await backend.history()
        assert [record.version for record in await backend.history(4)] == [2, 3, 4, 5]


async def test_who_keeps_no_history_leaves_a_gap_and_no_damage(server: RedisServer) -> None:
    async with opened(server.url, "n", max_history=5) as (keeper, _), opened(server.url, "n") as (other, _):
        assert await commit(keeper, 1) is None
        assert await commit(other, 2) is None
        assert await commit(other, 3) is None
        assert await commit(keeper, 4) is None
        assert await commit(keeper, 5) is None
        assert [record.version for record in await keeper.history()] == [1, 4, 5]


@pytest.mark.parametrize(
    "right", ["set", "xadd", "rpush", "ltrim", "pexpire", "persist", "eval", "evalsha", "getrange"]
)
@pytest.mark.parametrize("life", [None, LIFE])
async def test_a_write_that_lacks_one_right_leaves_nothing_half_done(
    server: RedisServer, right: str, life: float | None
) -> None:
    with server.client() as client:
        client.acl_setuser("app", enabled=True, nopass=True, keys=["*"], channels=["*"], categories=["+@all"])
        url = server.url.replace("//", "//app:x@")
        async with opened(url, "n", max_history=3, ttl=life) as (backend, _):
            assert await commit(backend, 1) is None
            client.acl_setuser("app", enabled=True, commands=[f"-{right}"])
            request = Request("a", 2)
            (answer,) = await backend.store.commit([write(backend, 2, requests=[request])])
            client.acl_setuser("app", enabled=True, commands=[f"+{right}"])
            if answer is not None:
                assert (type(answer), answer.outcome) == (dgents.StorageError, "rolled_back")
                (answer,) = await backend.store.commit([write(backend, 2, requests=[request])])
            assert answer is None
            assert [record.version for record in await backend.history()] == [1, 2]
            assert await backend.requests() == [request]


def test_verify_finds_what_was_left_behind(server: RedisServer, capsys: pytest.CaptureFixture[str]) -> None:
    with server.client() as client:
        client.xadd(HISTORY, {"r": b""}, id="1-0")
        assert main(["verify", server.url]) == 1
        assert "'n'" in capsys.readouterr().out
        client.delete(HISTORY)
        assert main(["verify", server.url]) == 0
