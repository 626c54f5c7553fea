"""A PostgreSQL that refuses, or of which a part is gone: each operation is answered with a typed error that is true."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator
from datetime import UTC, datetime, timedelta
from time import monotonic
from typing import Any

import psycopg
import pytest

from dgents import DgentError, Runtime, Save, SQLAgent, StateCorruptionError, StorageError, StreamAgent
from dgents.cli import main
from tests.postgres_kit import opened, save
from tests.postgres_server import PASSWORD, PostgresServer, postgres_server

pytestmark = pytest.mark.anyio

SOON = 8.0  # seconds: a subscription waits for ten where waiting can help


@pytest.fixture(scope="module")
def server() -> Iterator[PostgresServer]:
    with postgres_server("max_connections=20") as server:
        server.execute("CREATE ROLE app LOGIN PASSWORD 'apppw'")
        yield server


@pytest.fixture
def url(server: PostgresServer) -> str:
    return server.fresh_database()


def fold(state: Any, event: dict[str, Any]) -> Any:
    return state + 1


def as_app(url: str) -> str:
    return url.replace(f"dgents:{PASSWORD}", "app:apppw")


def agents(url: str) -> dict[str, Any]:
    return {
        "shared": SQLAgent(url),
        "exclusive": SQLAgent(url, ownership="exclusive"),
        "stream": StreamAgent(fold, 0, event_log=url),
    }


def check(error: DgentError, *, retryable: bool) -> None:
    assert isinstance(error, StorageError)
    assert (error.outcome, error.retryable) == ("rolled_back", retryable)
    assert "psycopg" not in repr(error)


REFUSED_AT_ONCE: dict[str, tuple[str, str, bool]] = {
    "no database": ("", "no such database", False),
    "no connect": ("REVOKE CONNECT ON DATABASE {} FROM PUBLIC", "may not do that", False),
    "no login": ("ALTER ROLE app NOLOGIN", "refused the user", False),
    "expired": ("ALTER ROLE app VALID UNTIL '2001-01-01'", "refused the user", False),
    "too many": ("ALTER ROLE app CONNECTION LIMIT 0", "too many connections", True),
    "closed": ("ALTER DATABASE {} ALLOW_CONNECTIONS false", "takes no connections", True),
}


@pytest.mark.parametrize("how", REFUSED_AT_ONCE)
@pytest.mark.parametrize("kind", ["shared", "exclusive", "stream"])
async def test_a_server_that_takes_no_connection_says_why(
    server: PostgresServer, url: str, how: str, kind: str, capsys: pytest.CaptureFixture[str]
) -> None:
    sql, says, retryable = REFUSED_AT_ONCE[how]
    server.execute("ALTER ROLE app LOGIN CONNECTION LIMIT -1 VALID UNTIL 'infinity'")
    if sql:
        server.execute(sql.format(url.rpartition("/")[2]))
    app = as_app(url) if sql else as_app(url) + "no"
    async with Runtime() as rt:
        with pytest.raises(DgentError, match=says) as refused:
            await rt.spawn("n", agents(app)[kind])
        check(refused.value, retryable=retryable)
    assert main(["inspect", app]) == 2
    captured = capsys.readouterr()
    assert says in captured.err
    assert "apppw" not in captured.err


OPERATIONS: dict[str, Callable[[Any], Awaitable[Any]]] = {
    "save": lambda ref: ref.save(2),
    "save once": lambda ref: ref.save(2, request_id="a"),
    "history": lambda ref: ref.history(),
    "load": lambda ref: ref.load(),
    "delete": lambda ref: ref.delete(),
}


@pytest.mark.parametrize(
    ("right", "table"),
    [
        *(("SELECT", table) for table in ("states", "states_heads", "states_requests", "dgents_tables")),
        ("INSERT", "states"),
        ("UPDATE", "states_heads"),
        ("INSERT", "states_requests"),
        ("DELETE", "states"),
    ],
)
async def test_a_role_without_a_right_is_refused_in_words_and_a_shared_actor_lives_on(
    server: PostgresServer, url: str, right: str, table: str
) -> None:
    async with Runtime() as rt:
        await (await rt.spawn("n", SQLAgent(url, max_history=1))).save(1, request_id="b")
    server.execute("ALTER ROLE app LOGIN CONNECTION LIMIT -1 VALID UNTIL 'infinity'")
    server.execute("GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA public TO app", url=url)
    server.execute(f"REVOKE {right} ON {table} FROM app", url=url)
    refused: list[DgentError] = []
    async with Runtime() as rt:
        patient = await rt.supervisor("patient", max_restarts=50)
        try:
            ref = await patient.spawn("n", SQLAgent(as_app(url), max_history=1))
        except DgentError as error:
            refused.append(error)
        else:
            for operation in OPERATIONS.values():
                try:
                    await operation(ref)
                except DgentError as error:
                    refused.append(error)
    for error in refused:
        check(error, retryable=False)
        assert "this role may not do that" in str(error)
    assert refused


async def test_who_is_not_let_in_is_not_made_to_wait_for_a_subscription(server: PostgresServer, url: str) -> None:
    server.execute("ALTER ROLE app LOGIN CONNECTION LIMIT -1 VALID UNTIL 'infinity'")
    server.execute("GRANT ALL ON SCHEMA public TO app", url=url)
    async with opened(as_app(url)) as (backend, _):
        server.execute("ALTER ROLE app NOLOGIN")
        started = monotonic()
        with pytest.raises(StorageError, match="refused the user") as refused:
            await backend.subscribe(lambda: None)
        check(refused.value, retryable=False)
        assert monotonic() - started < SOON


async def test_a_connection_that_the_server_ended_while_it_was_idle_is_not_used(
    server: PostgresServer, url: str
) -> None:
    async with opened(url) as (backend, _):
        assert await save(backend, 0, b"1") is None
        ended = "SELECT count(pg_terminate_backend(pid, 5000)) FROM pg_stat_activity WHERE datname = %s"
        server.execute(ended, url.rpartition("/")[2])
        assert await save(backend, 1, b"2") is None
        assert [record.data for record in await backend.history()] == [b"1", b"2"]


# Parts that are gone


@pytest.mark.parametrize("ownership", ["shared", "exclusive"])
@pytest.mark.parametrize("left", ["states", "states_requests"])
async def test_what_is_left_of_a_state_without_its_head_is_not_built_on(
    server: PostgresServer, url: str, left: str, ownership: Any
) -> None:
    agent: Any = SQLAgent(url, ownership=ownership, max_history=2)
    async with Runtime() as rt:
        ref = await rt.spawn("n", agent)
        for n in range(4):
            await ref.save(n, request_id=f"r{n}")
        await (await rt.spawn("other", agent)).save("whole")
    for table in {"states", "states_heads", "states_requests"} - {left}:
        server.execute(f"DELETE FROM {table} WHERE key = 'n'", url=url)
    before = server.execute(f"SELECT * FROM {left}", url=url)
    async with Runtime() as rt:
        with pytest.raises(StateCorruptionError, match="no head"):
            await rt.spawn("n", agent)
        assert await (await rt.spawn("other", agent)).load() == "whole"
    assert server.execute(f"SELECT * FROM {left}", url=url) == before
    assert server.execute("SELECT key FROM states_heads", url=url) == [("other",)]
    assert main(["verify", url]) == 1


@pytest.mark.parametrize("ownership", ["shared", "exclusive"])
async def test_a_head_that_vanishes_is_missed_by_each_operation(
    server: PostgresServer, url: str, ownership: Any
) -> None:
    async with opened(url, ownership=ownership) as (backend, _):
        assert await save(backend, 0, b"1") is None
        server.execute("DELETE FROM states_heads", url=url)
        for attempt in (backend.read, backend.history, backend.open):
            with pytest.raises(StateCorruptionError):
                await attempt()
        assert server.execute("SELECT count(*) FROM states_heads", url=url) == [(0,)]
        assert server.execute("SELECT version FROM states", url=url) == [(1,)]


@pytest.mark.parametrize("table", ["states", "states_heads", "states_requests"])
@pytest.mark.parametrize("kind", ["shared", "exclusive"])
async def test_a_table_that_is_gone_beside_the_others_is_not_made_anew(
    server: PostgresServer, url: str, table: str, kind: str
) -> None:
    async with Runtime() as rt:
        await (await rt.spawn("n", agents(url)[kind])).save(1)
    server.execute(f"DROP TABLE {table} CASCADE", url=url)
    async with Runtime() as rt:
        with pytest.raises(StateCorruptionError, match=table):
            await rt.spawn("n", agents(url)[kind])
    assert server.execute("SELECT to_regclass(%s) IS NULL", table, url=url) == [(True,)]
    assert main(["verify", url]) in (1, 2)


@pytest.mark.parametrize(
    ("sql", "parameters"),
    [
        ("SELECT state FROM states WHERE key = ?", ("\ud800",)),
        ("SELECT state FROM states WHERE key = ?", ("a\0",)),
        ("SELECT state FROM states WHERE key = ?", (object(),)),
        ("SELECT state, 'x' AS schema FROM states", ()),
        ("SELECT set_config('client_encoding', 'LATIN1', false), nothing FROM states", ()),
    ],
)
async def test_a_question_that_can_not_be_asked_is_a_typed_error_of_its_own(
    url: str, sql: str, parameters: tuple[Any, ...]
) -> None:
    async with Runtime() as rt:
        ref = await rt.spawn("é☃", SQLAgent(url))
        await ref.save(1)
        with pytest.raises(DgentError):
            await ref.query(sql, parameters)
        assert await ref.query("SELECT state FROM states WHERE key = ?", ("é☃",)) == [1]
        assert (await ref.save(2), await ref.load()) == (2, 2)


async def test_a_reminder_that_can_not_be_kept_is_refused_in_words(server: PostgresServer, url: str) -> None:
    server.execute("ALTER ROLE app LOGIN CONNECTION LIMIT -1 VALID UNTIL 'infinity'")
    async with Runtime() as rt:
        await (await rt.spawn("n", SQLAgent(url))).save(1)
    server.execute("GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA public TO app", url=url)
    async with Runtime() as rt:
        ref = await rt.spawn("n", SQLAgent(as_app(url)))
        with pytest.raises(DgentError, match="may not make it") as refused:
            await ref.remind("r", Save(2), at=datetime.now(UTC) + timedelta(days=1))
        check(refused.value, retryable=False)


@pytest.mark.parametrize("kind", ["shared", "exclusive", "stream"])
async def test_a_server_that_is_full_or_shuts_down_may_be_tried_again(kind: str) -> None:
    with postgres_server("max_connections=4", "superuser_reserved_connections=1") as server:
        held = [psycopg.connect(server.url) for _ in range(4)]
        async with Runtime() as rt:
            with pytest.raises(StorageError, match="too many connections") as refused:
                await rt.spawn("n", agents(server.url)[kind])
            check(refused.value, retryable=True)
            for connection in held[1:]:
                connection.close()
            server.shut_down()  # which waits for the last one
            with pytest.raises(StorageError, match="starting or stopping") as refused:
                await rt.spawn("n", agents(server.url)[kind])
            check(refused.value, retryable=True)
        held[0].close()
