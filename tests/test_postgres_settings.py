"""A PostgreSQL of any encoding, with any defaults: what it acknowledged is kept, or it was refused at the open."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from itertools import count
from typing import Any

import anyio
import pytest

from dgents import DgentError, Runtime, Save, SQLAgent, StorageError, StreamAgent
from dgents.cli import main
from tests.postgres_server import PostgresServer, postgres_server

pytestmark = pytest.mark.anyio

_numbers = count(1)
FIRST_USE = """
import anyio, dgents, sys
async def use(url, number):
    async with dgents.Runtime() as rt:
        print("ready", flush=True)
        sys.stdin.readline()
        ref = await rt.spawn("n", dgents.SQLAgent(url))
        await ref.update(lambda n: n + 1, default=0, request_id=number)
        stream = await rt.spawn("s" + number, dgents.StreamAgent(lambda n, _: n + 1, 0, event_log=url))
        await stream.append({})
        await ref.remind("r" + number, dgents.Save(1), every=3600)
anyio.run(use, *sys.argv[1:])
"""


@pytest.fixture(scope="module")
def server() -> Iterator[PostgresServer]:
    with postgres_server() as server:
        yield server


def database(server: PostgresServer, encoding: str = "UTF8", setting: str = "") -> str:
    """Make a database with an encoding of its own, and a setting for whoever connects to it."""
    name = f"own{next(_numbers)}"
    server.execute(f"CREATE DATABASE {name} TEMPLATE template0 ENCODING '{encoding}' LC_COLLATE 'C' LC_CTYPE 'C'")
    if setting:
        server.execute(f"ALTER DATABASE {name} SET {setting}")
    return server.url_of(name)


def fold(state: Any, event: dict[str, Any]) -> Any:
    return state + 1


async def keep_and_find(url: str, key: str) -> None:
    """Use everything that lies in a database, twice."""
    for start in (0, 2):
        async with Runtime() as rt:
            shared = await rt.spawn("shared", SQLAgent(url, key=f"{key}/s"))
            owned = await rt.spawn("owned", SQLAgent(url, key=f"{key}/o", ownership="exclusive"))
            stream = await rt.spawn("stream", StreamAgent(fold, 0, event_log=url, key=key, snapshot_every=1))
            for ref in (shared, owned):
                assert await ref.update(lambda n: n + 1, default=0) == start + 1
                assert await ref.update(lambda n: n + 1, request_id=f"é☃{start}") == start + 2
                assert await ref.update(lambda n: n + 1, request_id=f"é☃{start}") == start + 2
                assert await ref.history() == list(range(1, start + 3))
            await stream.append({"text": "é☃"})
            assert await stream.load() == start // 2 + 1
            await owned.remind(f"é☃{start}", Save(1), every=3600)
            async for snapshot in shared.watch():
                assert snapshot.state == start + 2
                break
    assert main(["verify", url]) == 0
    assert main(["history", url, f"{key}/s"]) == 0


@pytest.mark.parametrize(
    ("encoding", "key"),
    [("UTF8", "é☃"), ("LATIN1", "é"), ("SQL_ASCII", "é☃"), ("WIN1252", "é€"), ("EUC_KR", "한"), ("KOI8R", "ж")],
)
async def test_a_database_of_any_encoding_keeps_what_it_acknowledged(
    server: PostgresServer, encoding: str, key: str
) -> None:
    await keep_and_find(database(server, encoding), key)


@pytest.mark.parametrize(
    "setting", ["client_encoding = 'LATIN1'", "client_encoding = 'SQL_ASCII'", "client_encoding = 'WIN1252'"]
)
async def test_the_encoding_of_clients_is_ours(server: PostgresServer, setting: str) -> None:
    await keep_and_find(database(server, setting=setting), "é☃")


@pytest.mark.parametrize("encoding", ["LATIN1", "SQL_ASCII"])
async def test_the_encoding_that_the_environment_or_the_url_names_is_passed_over(
    server: PostgresServer, encoding: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PGCLIENTENCODING", encoding)
    await keep_and_find(f"{database(server)}?client_encoding={encoding}", "é☃")


@pytest.mark.parametrize("ownership", ["shared", "exclusive"])
async def test_a_key_that_the_encoding_has_not_is_refused_at_the_open_and_alone(
    server: PostgresServer, ownership: Any
) -> None:
    url = database(server, "LATIN1")
    async with Runtime() as rt:
        refs, refused = {}, {}

        async def spawn(name: str) -> None:
            try:
                refs[name] = await rt.spawn(name, SQLAgent(url, ownership=ownership))
            except DgentError as error:
                refused[name] = error

        async with anyio.create_task_group() as group:
            for name in ("a", "☃", "é", "☃☃", "b"):
                group.start_soon(spawn, name)
        assert set(refs) == {"a", "é", "b"}
        for error in refused.values():
            assert isinstance(error, StorageError)
            assert "UTF8" in str(error)
            assert (error.outcome, error.retryable) == ("rolled_back", False)
        for name, ref in refs.items():
            assert await ref.save(name) == 1
            assert await ref.load() == name


async def test_an_encoding_in_which_two_keys_are_one_is_refused(server: PostgresServer) -> None:
    async with Runtime() as rt:
        with pytest.raises(StorageError, match="EUC_JP") as refused:
            await rt.spawn("n", SQLAgent(database(server, "EUC_JP")))
        assert not refused.value.retryable


@pytest.mark.parametrize(
    "setting",
    [
        "default_transaction_isolation = 'serializable'",
        "default_transaction_isolation = 'repeatable read'",
        "default_transaction_deferrable = on",
        "standard_conforming_strings = off",
        "backslash_quote = off",
        "bytea_output = 'escape'",
        "extra_float_digits = 0",
        "intervalstyle = 'iso_8601'",
        "datestyle = 'German'",
        "timezone = 'Asia/Kolkata'",
        "quote_all_identifiers = on",
        "plan_cache_mode = 'force_generic_plan'",
        "enable_indexscan = off",
        "statement_timeout = '1min'",
        "lock_timeout = '2s'",
        "synchronous_commit = off",
    ],
)
async def test_a_default_of_the_database_changes_nothing(server: PostgresServer, setting: str) -> None:
    await keep_and_find(database(server, setting=setting), "é☃")


@pytest.mark.parametrize(
    ("setting", "says", "retryable"),
    [
        ("default_transaction_read_only = on", "read-only", True),
        ("search_path = ''", "no schema", False),
        ("search_path = 'nowhere'", "no schema", False),
        ("statement_timeout = '1ms'", "did not finish in time", True),
    ],
)
@pytest.mark.parametrize("kind", ["shared", "exclusive", "stream"])
async def test_a_default_that_forbids_it_is_a_refusal_at_the_open(
    server: PostgresServer, setting: str, says: str, retryable: bool, kind: str
) -> None:
    url = database(server, setting=setting)
    agent: Any = StreamAgent(fold, 0, event_log=url) if kind == "stream" else SQLAgent(url, ownership=kind)  # type: ignore[arg-type]
    async with Runtime() as rt:
        with pytest.raises(StorageError, match=says) as refused:
            await rt.spawn("n", agent)
    assert (refused.value.outcome, refused.value.retryable) == ("rolled_back", retryable)


@pytest.mark.parametrize("isolation", ["read committed", "repeatable read", "serializable"])
def test_eight_processes_may_use_a_new_database_first(server: PostgresServer, isolation: str) -> None:
    url = database(server, setting=f"default_transaction_isolation = '{isolation}'")
    command = [sys.executable, "-c", FIRST_USE, url]
    pipes: Any = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    children = [subprocess.Popen([*command, str(number)], **pipes) for number in range(8)]
    try:
        for child in children:
            assert child.stdout.readline() == "ready\n"
        for child in children:
            child.stdin.write("go\n")
            child.stdin.flush()
        said = [child.communicate(timeout=60)[1] for child in children]
    finally:
        for child in children:
            child.kill()
    assert [child.returncode for child in children] == [0] * 8, "\n".join(said)
    assert server.execute("SELECT count(*) FROM states", url=url) == [(8,)]
    assert server.execute("SELECT count(*) FROM events", url=url) == [(8,)]
