"""The description of a SQL state, its queries, and the look at its database from outside."""

from __future__ import annotations

import pickle
import time
from collections.abc import AsyncIterator
from pathlib import Path

import msgspec
import pytest

from dgents.backends.sql import SQLAgent
from dgents.backends.sqlite import SqliteBackend
from dgents.backends.sqlite_inspect import SqliteInspector
from dgents.runtime.contract import Record, Write
from dgents.runtime.errors import (
    StateError,
    UnsupportedOperationError,
)
from tests.resources import FakeResources, fake_resources
from tests.sqlite_kit import exists, make, save, state

pytestmark = pytest.mark.anyio


@pytest.fixture
async def resources(anyio_backend: str) -> AsyncIterator[FakeResources]:
    async with fake_resources() as resources:
        yield resources


@pytest.fixture
def path(tmp_path: Path) -> str:
    return str(tmp_path / "state.db")


@pytest.fixture
async def filled(path: str, resources: FakeResources) -> AsyncIterator[SqliteBackend]:
    backend, other = make(path, resources, "a"), make(path, resources, "b")
    await backend.open()
    await other.open()
    await save(backend, 0, {"score": 1}, {"score": 2})
    await save(other, 0, {"score": 10, "tags": {"x"}}, None)
    yield backend
    await other.close()
    await backend.close()


async def test_a_query_answers_with_the_states_it_selects(filled):
    recent = await filled.query(
        "SELECT state FROM states WHERE timestamp > ? ORDER BY key, version", (time.time() - 60,)
    )
    assert [msgspec.msgpack.decode(data)["score"] for data, _ in recent] == [1, 2, 10]
    assert {schema for _, schema in recent} == {1}


async def test_a_query_can_look_into_states_and_at_current_ones_only(filled):
    sql = "SELECT * FROM states WHERE json_extract(state_json(state), '$.score') >= :least ORDER BY key"
    assert len(await filled.query(sql, {"least": 2})) == 2
    ((data, _),) = await filled.query("SELECT state FROM states_current")
    assert msgspec.msgpack.decode(data) == {"score": 2}


async def test_a_query_over_several_schema_versions_must_select_the_schema(filled):
    newer = Record(3, 1, time.time(), msgspec.msgpack.encode("new"), schema=2)
    await filled.store.commit([Write(filled, 2, [newer], [])])
    rows = await filled.query("SELECT state, schema FROM states WHERE key = 'a' ORDER BY version")
    assert [schema for _, schema in rows] == [1, 1, 2]
    with pytest.raises(UnsupportedOperationError, match="schema versions 1 to 2"):
        await filled.query("SELECT state FROM states")


@pytest.mark.parametrize(
    "sql",
    [
        "DELETE FROM states",
        "UPDATE states SET version = 9 RETURNING state",
        "DROP TABLE states",
        "INSERT INTO states_heads SELECT * FROM states_heads",
        "PRAGMA query_only = OFF",
        "ATTACH '{path}.other' AS other",
        "VACUUM INTO '{path}.other'",
        "BEGIN IMMEDIATE",
        "SELECT state FROM states; DELETE FROM states",
        "SELECT load_extension('x') AS state",
        "CREATE TEMP TABLE t (a)",
        "SELECT version FROM states",
    ],
)
async def test_a_query_that_does_more_than_read_is_refused(filled, path, sql):
    with pytest.raises(StateError) as caught:
        await filled.query(sql.format(path=path))
    assert isinstance(caught.value, UnsupportedOperationError)
    assert await filled.aggregate("COUNT(*)", "key") == 4
    assert not exists(path + ".other")


async def test_wrong_sql_is_an_error_of_the_caller(filled):
    for sql, parameters in (
        ("SELEC state", ()),
        ("SELECT nothing FROM states", ()),
        ("SELECT ? AS state", ()),
    ):
        with pytest.raises(StateError, match="query failed"):
            await filled.query(sql, parameters)


@pytest.mark.parametrize(
    ("expression", "column", "value"),
    [
        ("COUNT(*)", "state", 3),
        ("count(*)", "key", 4),
        ("COUNT(DISTINCT key)", "key", 2),
        ("MAX", "version", 2),
        ("SUM(state.score)", "state", 13),
        ("AVG", "state.score", pytest.approx(13 / 3)),
    ],
)
async def test_an_aggregate_is_one_value_over_the_table(filled, expression, column, value):
    assert await filled.aggregate(expression, column) == value


async def test_an_aggregate_takes_a_condition_with_parameters(filled):
    assert await filled.aggregate("SUM", "state.score", "key = ?", ("a",)) == 3


@pytest.mark.parametrize(
    ("expression", "column"),
    [
        ("COUNT(*) FROM states; DROP TABLE states; --", "state"),
        ("load_extension('x')", "state"),
        ("COUNT(*)", "state) FROM sqlite_schema --"),
        ("MAX(secret)", "state"),
        ("MAX(version.x)", "state"),
        ("randomblob(9)", "state"),
    ],
)
async def test_an_aggregate_of_anything_else_is_refused(filled, expression, column):
    with pytest.raises(UnsupportedOperationError):
        await filled.aggregate(expression, column)


@pytest.mark.parametrize(
    "table",
    [
        "states; DROP TABLE x",
        'a"b',
        "",
        "1st",
        "sqlite_master",
        "dgents_x",
        "tabelle-ä",
        "x" * 61,
        "a.b",
        "a\n",
    ],
)
def test_a_table_name_that_is_no_identifier_is_refused_before_anything_is_opened(table):
    with pytest.raises(ValueError, match="table"):
        SQLAgent("state.db", table)


@pytest.mark.parametrize(
    "uri",
    [
        ":memory:",
        "sqlite://",
        "sqlite:///",
        "sqlite:///:memory:",
        "mysql://u:pw@h/d",
        "file:x.db",
        "a\0b",
        "sqlite:///x?a=b",
    ],
)
def test_a_uri_that_names_no_file_is_refused_without_repeating_it(uri):
    with pytest.raises(ValueError, match="db_uri") as caught:
        SQLAgent(uri)
    assert "pw" not in str(caught.value)


@pytest.mark.parametrize(
    ("uri", "expected"), [("sqlite:///a.db", "a.db"), ("sqlite:////tmp/a.db", "/tmp/a.db"), ("b.db", "b.db")]
)
def test_a_uri_names_a_relative_or_an_absolute_path(uri, expected):
    assert SQLAgent(uri).backend("k", FakeResources()).path == expected


@pytest.mark.parametrize("options", [{"max_history": -1}, {"max_history": True}, {"ownership": "mine"}, {"key": ""}])
def test_a_wrong_option_is_refused(options):
    with pytest.raises(ValueError, match=next(iter(options))):
        SQLAgent("state.db", **options)


def test_an_agent_is_a_picklable_description_that_hides_its_uri():
    agent = SQLAgent("sqlite:///secret.db", "t", dict, key="k", max_history=3)
    assert pickle.loads(pickle.dumps(agent)) == agent
    assert "secret" not in repr(agent)


def test_a_url_of_another_kind_is_refused_without_its_password():
    with pytest.raises(ValueError, match="mysql") as caught:
        SQLAgent("mysql://me:secret@host/db")
    assert "secret" not in str(caught.value)


def test_sqlite_is_exclusive_unless_told_otherwise():
    resources = FakeResources()
    assert SQLAgent("a.db").backend("k", resources).ownership == "exclusive"
    assert SQLAgent("a.db", ownership="shared").backend("k", resources).ownership == "shared"


async def test_the_inspector_lists_states_and_finds_nothing_wrong_in_a_sound_database(filled, path):
    with SqliteInspector(path) as database:
        assert database.tables() == ["states"]
        states = list(database.states("states"))
        assert [(it.key, it.version, it.size is None, it.versions) for it in states] == [
            ("a", 2, False, 2),
            ("b", 2, True, 2),
        ]
        assert state(database.current("states", "a")) == {"score": 2}
        assert [record.version for record in database.history("states", "b")] == [1, 2]
        assert list(database.verify()) == []


async def test_a_key_that_is_no_unicode_text_is_refused(path, resources):
    with pytest.raises(ValueError, match="surrogate"):
        make(path, resources, "\ud800")
