"""A Redis that refuses: each operation is answered with a typed error that says what is and what to do."""

from __future__ import annotations

import socket
import threading
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from time import monotonic
from typing import Any

import pytest
import redis
from anyio import create_task_group

import dgents
from dgents import DgentError, RedisAgent, Runtime, StorageError, StreamAgent
from dgents.cli import main
from tests.redis_kit import opened
from tests.redis_server import RedisServer, free_port, redis_server
from tests.tcp_proxy import tcp_proxy

pytestmark = pytest.mark.anyio

QUICK = "?socket_timeout=1"
SOON = 8.0  # seconds: well below the limits of a subscription and the restarts together


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    with redis_server(tmp_path_factory.mktemp("redis")) as server:
        yield server


@pytest.fixture
def server(running: RedisServer) -> Iterator[RedisServer]:
    with running.client() as client:
        client.flushall()
        client.set("something", "x" * 1000)
        yield running
        client.config_set("maxmemory", 0)
        client.config_set("min-replicas-to-write", 0)
        client.replicaof("NO", "ONE")


def refuse_writes(client: redis.Redis, how: str) -> None:
    if how == "replica":
        client.replicaof("127.0.0.1", free_port())
    elif how == "full":
        client.config_set("maxmemory", 1)
    else:
        client.config_set("min-replicas-to-write", 1)


def fold(state: Any, event: dict[str, Any]) -> Any:
    return state + 1


def agents(url: str) -> dict[str, Any]:
    return {
        "shared": RedisAgent(url, max_history=3),
        "exclusive": RedisAgent(url, max_history=3, ownership="exclusive"),
        "stream": StreamAgent(fold, 0, event_log=url),
    }


def tomorrow() -> datetime:
    return datetime.now(UTC) + timedelta(days=1)


WRITES: dict[str, Callable[[Any], Awaitable[Any]]] = {
    "save": lambda ref: ref.save(2),
    "save once": lambda ref: ref.save(2, request_id="a"),
    "update": lambda ref: ref.update(lambda n: n + 1),
    "delete": lambda ref: ref.delete(),
    "execute": lambda ref: ref.execute("SET", "mine", "1"),
    "remind": lambda ref: ref.remind("r", dgents.Save(3), at=tomorrow()),
}


async def refusal(attempt: Awaitable[Any]) -> StorageError:
    """Return the typed error of an attempt; that of redis-py would be none."""
    with pytest.raises(StorageError) as refused:
        await attempt
    assert "redis.exceptions" not in repr(refused.value)
    return refused.value


@pytest.mark.parametrize("how", ["replica", "full", "few replicas"])
@pytest.mark.parametrize("kind", ["exclusive", "stream"])
async def test_an_owner_is_refused_in_words_by_a_server_that_takes_no_writes(
    server: RedisServer, kind: str, how: str
) -> None:
    with server.client() as client:
        refuse_writes(client, how)
        async with Runtime() as rt:
            error = await refusal(rt.spawn("n", agents(server.url)[kind]))
            assert (error.outcome, error.retryable) == ("rolled_back", True)
    assert main(["copy", server.url, server.url]) == 2


@pytest.mark.parametrize("how", ["replica", "full", "few replicas"])
@pytest.mark.parametrize("operation", WRITES)
async def test_each_write_is_refused_in_words_by_a_server_that_takes_no_more(
    server: RedisServer, operation: str, how: str
) -> None:
    async with Runtime() as rt:
        ref = await rt.spawn("n", agents(server.url)["shared"])
        await ref.save(1)
        with server.client() as client:
            refuse_writes(client, how)
            error = await refusal(WRITES[operation](ref))
        assert (error.outcome, error.retryable) == ("rolled_back", True)
        assert (await ref.load(), await ref.history()) == (1, [1])


@pytest.mark.parametrize("right", ["set", "get", "getrange", "evalsha", "xadd", "xrevrange"])
@pytest.mark.parametrize("kind", ["shared", "exclusive", "stream"])
async def test_a_user_without_a_right_is_refused_in_words(server: RedisServer, kind: str, right: str) -> None:
    with server.client() as client:
        client.acl_setuser("app", True, nopass=True, keys=["*"], channels=["*"], categories=["+@all"])
        client.acl_setuser("app", True, commands=[f"-{right}"])
        client.script_flush()
    errors: list[DgentError] = []
    async with Runtime() as rt:
        try:
            ref = await rt.spawn("n", agents(server.url.replace("//", "//app:nothing@"))[kind])
            await (ref.append({}) if kind == "stream" else ref.save(1))
            await ref.history()
        except DgentError as error:
            errors.append(error)
    assert all(isinstance(error, StorageError) and not error.retryable for error in errors)
    assert all("this user may not do that" in str(error) for error in errors)
    assert errors or (kind, right) in [("stream", "xrevrange")]


@pytest.mark.parametrize(
    ("answer", "says", "retryable"),
    [
        (b"-LOADING Redis is loading the dataset in memory\r\n", "loading", True),
        (b"-MASTERDOWN Link with MASTER is down\r\n", "primary is down", True),
        (b"-BUSY Redis is busy running a script\r\n", "busy", True),
        (b"-ERR max number of clients reached\r\n", "max number of clients", True),
        (b"-NOAUTH Authentication required.\r\n", "asks for a password", False),
        (b"-MOVED 1 127.0.0.1:1\r\n", "redis\\+cluster", False),
        (b"HTTP/1.1 400 Bad Request\r\n\r\n", "as a Redis does", False),
        (b":1\r\n" * 9, "as a Redis does", False),
        (b"*1\r\n:1\r\n" * 9, "as a Redis does", False),
        (b"$3\r\nabc\r\n" * 9, "did not write", None),
        (b"", "can't be reached", True),
    ],
)
@pytest.mark.parametrize("kind", ["shared", "exclusive", "stream"])
async def test_whatever_a_server_answers_is_a_typed_error(
    answer: bytes, says: str, retryable: bool | None, kind: str
) -> None:
    with answering(answer) as port:
        url = f"redis://127.0.0.1:{port}/0{QUICK}"
        async with Runtime() as rt:
            with pytest.raises(DgentError, match=says) as refused:
                await rt.spawn("n", agents(url)[kind])
        assert getattr(refused.value, "retryable", None) is retryable


@contextmanager
def answering(answer: bytes) -> Iterator[int]:
    """Listen as a server that gives one answer to whatever it is told; an empty one hangs up."""

    def serve(connection: socket.socket) -> None:
        with connection, suppress(OSError):
            while connection.recv(1 << 16) and answer:
                connection.sendall(answer)

    def accept() -> None:
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            threading.Thread(target=serve, args=(connection,), daemon=True).start()

    with socket.create_server(("127.0.0.1", 0)) as listener:
        threading.Thread(target=accept, daemon=True).start()
        yield listener.getsockname()[1]
        listener.shutdown(socket.SHUT_RDWR)


@pytest.mark.parametrize(("password", "says"), [("", "asks for a password"), ("wrong", "refused the user")])
@pytest.mark.parametrize("scheme", ["redis", "redis+cluster"])
async def test_a_password_that_is_missing_or_wrong_is_told_apart(
    tmp_path: Path, scheme: str, password: str, says: str
) -> None:
    options = ("--cluster-enabled", "yes") if scheme == "redis+cluster" else ()
    with redis_server(tmp_path, "--requirepass", "right", *options) as server:
        url = f"{scheme}://{f':{password}@' if password else ''}127.0.0.1:{server.port}{QUICK}"
        async with Runtime() as rt:
            error = await refusal(rt.spawn("n", RedisAgent(url)))
        assert says in str(error)
        assert not error.retryable


async def test_a_user_who_may_not_subscribe_is_told_so_at_once(server: RedisServer) -> None:
    with server.client() as client:
        client.acl_setuser("app", True, nopass=True, keys=["*"], channels=["*"], categories=["+@all"])
        client.acl_setuser("app", True, commands=["-subscribe"])
    async with opened(server.url.replace("//", "//app:nothing@")) as (backend, _):
        started = monotonic()
        with pytest.raises(StorageError, match="this user may not do that"):
            await backend.subscribe(lambda: None)
        assert monotonic() - started < SOON


async def test_a_raw_command_whose_reply_is_lost_runs_once(server: RedisServer) -> None:
    with tcp_proxy(("127.0.0.1", server.port)) as proxy, server.client() as client:
        async with Runtime() as rt:
            ref = await rt.spawn("n", RedisAgent(f"redis://127.0.0.1:{proxy.port}/0{QUICK}"))
            proxy.cut_after("to_client", 0)
            error = await refusal(ref.execute("INCR", "counter"))
            assert error.outcome == "unknown"
            assert client.get("counter") == b"1"
            assert await ref.execute("INCR", "counter") == 2
            assert await ref.save(1) == 1


@pytest.mark.parametrize(
    "wrong", ["\ud800", 10**5000, True, None, object()], ids=["text", "digits", "bool", "none", "object"]
)
async def test_a_command_that_can_not_be_sent_is_refused_alone(server: RedisServer, wrong: Any) -> None:
    async with opened(server.url) as (backend, _), create_task_group() as group:
        for n in range(5):
            group.start_soon(backend.execute, "INCRBY", "counter", n)
        with pytest.raises((TypeError, ValueError)):
            await backend.execute("SET", "mine", wrong)
    with server.client() as client:
        assert client.get("counter") == b"10"


async def test_a_script_of_the_users_that_failed_half_way_is_in_doubt(server: RedisServer) -> None:
    with server.client() as client:
        client.acl_setuser("app", True, nopass=True, keys=["*"], channels=["*"], categories=["+@all"])
        client.acl_setuser("app", True, commands=["-del"])
        async with opened(server.url.replace("//", "//app:nothing@")) as (backend, _):
            script = "redis.call('SET', KEYS[1], 1) redis.call('DEL', KEYS[1])"
            for failing in (script, "redis.call('SET', KEYS[1], 1) return {err = 'OOM of its own'}"):
                error = await refusal(backend.execute("EVAL", failing, 1, "mine"))
                assert error.outcome == "unknown"
            assert client.get("mine") == b"1"
