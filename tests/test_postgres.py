"""SQLAgent and the command line on a real PostgreSQL: what only that server has."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import anyio
import pytest

import dgents
from tests.postgres_server import PASSWORD, PostgresServer, postgres_server

pytestmark = pytest.mark.anyio


def dgents_command(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "dgents", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=60)


@pytest.fixture(scope="module")
def server() -> Iterator[PostgresServer]:
    with postgres_server() as running:
        yield running


@pytest.fixture
def url(server: PostgresServer) -> str:
    return server.fresh_database()


async def test_versions_are_rows_that_sql_can_read(url: str, server: PostgresServer) -> None:
    async with dgents.Runtime() as rt:
        ref = await rt.spawn("a", dgents.SQLAgent(url, max_history=3))
        for n in range(5):
            await ref.save({"n": n})
        assert await ref.query("SELECT state FROM states WHERE key = ? ORDER BY version", ("a",)) == [
            {"n": 2},
            {"n": 3},
            {"n": 4},
        ]
        assert await ref.aggregate("COUNT(*)", "state") == 3
    assert server.execute("SELECT version FROM states ORDER BY version", url=url) == [(3,), (4,), (5,)]


@pytest.mark.parametrize(
    "sql",
    ["DELETE FROM states", "WITH gone AS (DELETE FROM states RETURNING *) SELECT state FROM gone", "DROP TABLE states"],
)
async def test_a_query_can_not_write(url: str, sql: str) -> None:
    async with dgents.Runtime() as rt:
        ref = await rt.spawn("a", dgents.SQLAgent(url))
        await ref.save(1)
        with pytest.raises(dgents.UnsupportedOperationError):
            await ref.query(sql)
        assert await ref.load() == 1
        assert len(await ref.history()) == 1


@pytest.mark.parametrize(
    ("sql", "error"),
    [
        ("SELECT state FROM states, pg_sleep(60)", "given up"),
        ("SELECT state FROM states WHERE 1 / (version - 1) > 0", "division by zero"),
        ("SELECT set_config('transaction_read_only', 'off', true)", "refused"),
    ],
)
async def test_a_query_that_fails_fails_alone(url: str, sql: str, error: str) -> None:
    async with dgents.Runtime() as rt:
        ref = await rt.spawn("a", dgents.SQLAgent(url + "?options=-cstatement_timeout%3D300"))
        await ref.save(1)
        with pytest.raises(dgents.StateError, match=error):
            await ref.query(sql)
        assert await ref.load() == 1
        assert rt.stats()["a"].restarts == 0


async def test_a_role_that_may_not_make_tables_is_told_what_to_run(url: str, server: PostgresServer) -> None:
    name = "guest_of_" + url.rpartition("/")[2]
    server.execute(f"CREATE ROLE {name} LOGIN PASSWORD 'guest-secret'", url=url)
    guest = url.replace(f"dgents:{PASSWORD}", f"{name}:guest-secret")
    async with dgents.Runtime() as rt:
        with pytest.raises(dgents.StorageError, match="CREATE TABLE") as refused:
            await rt.spawn("a", dgents.SQLAgent(guest))
        assert "guest-secret" not in str(refused.value)
    script = str(refused.value)[str(refused.value).index("CREATE TABLE") :]
    server.execute(script, url=url)
    for table in ("states", "states_heads", "states_requests", "dgents_tables"):
        server.execute(f"GRANT SELECT, INSERT, UPDATE, DELETE ON {table} TO {name}", url=url)
    async with dgents.Runtime() as rt:
        ref = await rt.spawn("a", dgents.SQLAgent(guest))
        await ref.save("mine")
        assert await ref.load() == "mine"


async def test_a_table_of_somebody_else_is_left_alone(url: str, server: PostgresServer) -> None:
    server.execute("CREATE TABLE states (id int)", url=url)
    async with dgents.Runtime() as rt:
        with pytest.raises(dgents.StorageError, match="did not make"):
            await rt.spawn("a", dgents.SQLAgent(url))
    assert server.execute("SELECT count(*) FROM states", url=url) == [(0,)]


async def test_states_and_events_do_not_share_a_table(url: str) -> None:
    async with dgents.Runtime() as rt:
        await (await rt.spawn("a", dgents.SQLAgent(url, "events"))).save(1)
        with pytest.raises(dgents.StorageError, match="events"):
            await rt.spawn("s", dgents.StreamAgent(lambda total, event: total + event, 0, event_log=url))


async def test_a_schema_may_be_named_with_the_table(url: str, server: PostgresServer) -> None:
    server.execute("CREATE SCHEMA agents", url=url)
    async with dgents.Runtime() as rt:
        await (await rt.spawn("a", dgents.SQLAgent(url, "agents.notes"))).save(1)
    assert server.execute("SELECT key FROM agents.notes", url=url) == [("a",)]


@pytest.mark.parametrize(
    "wrong", ["postgresql://u:p@ss@host/db", "postgresql://host:port/db", "postgresql://h/d?nonsense=1"]
)
def test_a_url_that_can_not_be_right_is_refused_and_not_repeated(wrong: str) -> None:
    with pytest.raises(ValueError) as refused:  # noqa: PT011
        dgents.SQLAgent(wrong)
    assert wrong not in str(refused.value)


async def test_a_row_that_was_changed_by_hand_is_found(url: str, server: PostgresServer) -> None:
    async with dgents.Runtime() as rt:
        await (await rt.spawn("a", dgents.SQLAgent(url))).save([1, 2, 3])
    server.execute("UPDATE states SET state = 'x'", url=url)
    async with dgents.Runtime() as rt:
        with pytest.raises(dgents.StateCorruptionError):
            await rt.spawn("a", dgents.SQLAgent(url))
    done = await anyio.to_thread.run_sync(dgents_command, "verify", url)
    assert done.returncode == 1


@pytest.mark.parametrize("anyio_backend", ["asyncio"])  # the command line is a process of its own
async def test_the_command_line_looks_in_and_copies(url: str, server: PostgresServer, tmp_path: Path) -> None:
    async with dgents.Runtime() as rt:
        ref = await rt.spawn("a", dgents.SQLAgent(url))
        for n in range(3):
            await ref.save({"n": n})
    other = server.fresh_database()
    for arguments, says in [
        (("inspect", url), "states"),
        (("inspect", url, "a"), '"n": 2'),
        (("history", url, "a"), "~ n: 1 -> 2"),
        (("verify", url), "1 state with 3 versions, all whole"),
        (("copy", url, str(tmp_path / "b.db")), "copied 1 state with 3 versions"),
        (("copy", str(tmp_path / "b.db"), other), "copied 1 state with 3 versions"),
        (("verify", other), "1 state with 3 versions, all whole"),
    ]:
        done = await anyio.to_thread.run_sync(dgents_command, *arguments)
        assert done.returncode == 0, done.stderr
        assert says in done.stdout
        assert PASSWORD not in done.stdout + done.stderr
