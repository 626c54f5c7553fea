"""A log of which a part is gone is not gone on with: at open, on an append, wherever something else knows better."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any, NamedTuple

import anyio.lowlevel
import psycopg
import pytest

import dgents
from dgents import Runtime, SQLAgent, VolatileAgent
from dgents.backends.journal import Journal
from dgents.cli import main
from tests.postgres_server import PostgresServer, postgres_server
from tests.redis_server import RedisServer, redis_server
from tests.resources import fake_resources
from tests.stream_kit import UserCreated, agent_maker

pytestmark = pytest.mark.anyio

COUNT = 5
EVENTS = [UserCreated(f"u{n}", "x") for n in range(COUNT)]
NO_SNAPSHOT = 1000


class Log(NamedTuple):
    """A log of a stream, and what takes a part of it away."""

    place: str
    lose: Callable[[str], None]

    def agent(self, **options: Any) -> Any:
        return agent_maker("memory", Path())(event_log=self.place, **options)


@pytest.fixture(scope="module")
def postgres() -> Iterator[PostgresServer]:
    with postgres_server() as server:
        yield server


@pytest.fixture(scope="module")
def redis(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    with redis_server(tmp_path_factory.mktemp("redis")) as server:
        yield server


# What is done to the tables of a database; it is the same in both.
TABLES = {
    "head": ["DELETE FROM events_heads"],
    "events": ["DELETE FROM events"],
    "newest": ["DELETE FROM events WHERE version = 5"],
    "events and head": ["DELETE FROM events", "DELETE FROM events_heads"],
    "end": ["DELETE FROM events WHERE version > 2", "UPDATE events_heads SET version = 2"],
    "head set back": ["UPDATE events_heads SET version = 2"],
}
KEYS = {"state": [""], "history": [":history"], "all events": ["", ":history"]}


def lose_file(directory: Path, part: str) -> None:
    paths = list(directory.glob("*.journal"))
    if part == "events":
        for path in paths:
            path.unlink()
        return
    assert part == "end"
    journal = Journal(directory)
    journal.open()
    kept = [record for _, record in journal.read()][:2]
    journal.close()
    for path in paths:
        path.unlink()
    journal = Journal(directory)  # another one: this one would know that its records are gone
    journal.open()
    journal.append(kept)
    journal.close()


def make_log(kind: str, request: pytest.FixtureRequest, folder: Path) -> Log:
    """Return an empty log."""
    if kind == "journal":
        return Log(str(folder / "log"), lambda part: lose_file(folder / "log" / "users", part))
    if kind == "sqlite":

        def lose(part: str) -> None:
            with closing(sqlite3.connect(folder / "events.db")) as stranger, stranger:
                for statement in TABLES[part]:
                    stranger.execute(statement)

        return Log(f"sqlite:///{folder}/events.db", lose)
    server = request.getfixturevalue(kind)
    if kind == "postgres":
        url = server.fresh_database()

        def lose_rows(part: str) -> None:
            with psycopg.connect(url, autocommit=True) as stranger:
                for statement in TABLES[part]:
                    stranger.execute(statement)

        return Log(url, lose_rows)

    def lose_keys(part: str) -> None:
        with server.client() as client:
            assert client.delete(*(f"dgents:{{events/users}}{name}" for name in KEYS[part])) == len(KEYS[part])

    with server.client() as client:
        client.flushall()
    return Log(server.url, lose_keys)


async def fill(log: Log, **options: Any) -> None:
    async with Runtime() as rt:
        stream = await rt.spawn("users", log.agent(**options))
        for event in EVENTS:
            await stream.append(event)
        await snapshot_stored(stream)


async def snapshot_stored(stream: Any) -> None:
    while stream._cell.keeping:
        await anyio.lowlevel.checkpoint()


# What is gone, and whether a snapshot is needed to know of it.
AT_OPEN = [
    *[("journal", part, True) for part in ("events", "end")],
    *[(kind, part, False) for kind in ("sqlite", "postgres") for part in ("head", "events", "newest", "head set back")],
    *[(kind, part, True) for kind in ("sqlite", "postgres") for part in ("events and head", "end")],
    *[("redis", part, False) for part in ("state", "history")],
    ("redis", "all events", True),
]


@pytest.mark.parametrize(("kind", "part", "by_snapshot"), AT_OPEN)
async def test_what_is_gone_is_missed_at_open(
    kind: str, part: str, by_snapshot: bool, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    log = make_log(kind, request, tmp_path)
    options = {"snapshot_every": COUNT if by_snapshot else NO_SNAPSHOT}
    await fill(log, **options)
    log.lose(part)
    for _ in range(2):  # the first try has mended nothing, and has begun nothing
        async with Runtime() as rt:
            with pytest.raises(dgents.StateCorruptionError) as found:
                await rt.spawn("users", log.agent(**options))
    assert found.value.path
    assert found.value.key
    assert found.value.hint


# The history of a Redis stream is looked for by the commit itself.
LIVE = [
    ("journal", "events"),
    *[(kind, part) for kind in ("sqlite", "postgres") for part in ("head", "events", "newest", "events and head")],
    *[("redis", part) for part in ("state", "all events")],
]


@pytest.mark.parametrize(("kind", "part"), LIVE)
async def test_nothing_is_appended_to_what_has_lost_a_part(
    kind: str, part: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    log = make_log(kind, request, tmp_path)
    async with Runtime() as rt:
        stream = await rt.spawn("users", log.agent(snapshot_every=NO_SNAPSHOT))
        await stream.append_all(EVENTS)
        log.lose(part)
        with pytest.raises(dgents.StateCorruptionError) as found:
            await stream.append(EVENTS[0])
        assert found.value.hint
        with pytest.raises(dgents.ActorStoppedError):
            await stream.append(EVENTS[0])


async def test_an_actor_beside_a_stream_that_has_lost_its_head_goes_on(tmp_path: Path) -> None:
    place = f"sqlite:///{tmp_path}/events.db"
    async with Runtime() as rt:
        log = Log(place, lambda part: None)
        lost, other = [await rt.spawn(name, log.agent()) for name in ("users", "other")]
        await lost.append_all(EVENTS)
        await other.append_all(EVENTS)
        with closing(sqlite3.connect(tmp_path / "events.db")) as stranger, stranger:
            stranger.execute("DELETE FROM events_heads WHERE key = 'users'")
        outcomes: list[Any] = []

        async def append(stream: Any) -> None:
            try:
                outcomes.append(await stream.append(EVENTS[0]))
            except dgents.StateCorruptionError as error:
                outcomes.append(error.outcome)

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(append, lost)
            tasks.start_soon(append, other)
        assert sorted(outcomes, key=str) == [COUNT + 1, "rolled_back"]


@pytest.mark.parametrize("kind", ["sqlite", "postgres", "redis"])
async def test_an_event_that_is_gone_from_the_middle_is_located(
    kind: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    log = make_log(kind, request, tmp_path)
    await fill(log)
    if kind == "redis":
        with request.getfixturevalue("redis").client() as client:
            client.xdel("dgents:{events/users}:history", "3-0")
    else:
        TABLES["middle"] = ["DELETE FROM events WHERE version = 3"]
        log.lose("middle")
    async with Runtime() as rt:
        with pytest.raises(dgents.StateCorruptionError) as found:
            await rt.spawn("users", log.agent())
    assert found.value.event == 3


def test_the_command_line_misses_the_events_that_a_snapshot_knows_of(
    tmp_path: Path, request: pytest.FixtureRequest, capsys: pytest.CaptureFixture[str]
) -> None:
    for kind, where in (("journal", "log"), ("sqlite", "events.db")):
        log = make_log(kind, request, tmp_path)
        anyio.run(lambda log=log: fill(log, snapshot_every=COUNT))
        assert main(["verify", str(tmp_path / where)]) == 0
        log.lose("end")
        assert main(["verify", str(tmp_path / where)]) == 1
        assert "ends at event 2" in capsys.readouterr().out


async def test_a_cut_log_of_which_nothing_else_knows_is_shorter(tmp_path: Path, request: pytest.FixtureRequest) -> None:
    """Without a chain and before the first snapshot nobody can tell: docs/streams.md says so."""
    log = make_log("journal", request, tmp_path)
    await fill(log)
    log.lose("end")
    async with Runtime() as rt:
        assert (await (await rt.spawn("users", log.agent())).snapshot()).version == 2


async def test_events_that_a_projection_has_are_missed(tmp_path: Path, request: pytest.FixtureRequest) -> None:
    log = make_log("journal", request, tmp_path)
    target: Any = SQLAgent(str(tmp_path / "target.db"))

    def count(n: int, event: Any) -> int:
        return n + 1

    async with Runtime() as rt:
        stream = await rt.spawn("users", log.agent())
        await stream.append_all(EVENTS)
        await rt.project(stream, count, into=await rt.spawn("count", target), default=0)
    log.lose("end")
    async with Runtime() as rt:
        stream = await rt.spawn("users", log.agent())
        counted = await rt.spawn("count", target)
        for _ in range(2):
            with pytest.raises(dgents.StateCorruptionError, match="ends at event 2, and event 5 was projected"):
                await rt.project(stream, count, into=counted, default=0)
        await stream.append_all(EVENTS)
        assert await counted.load() == COUNT
        fresh: Any = await rt.spawn("fresh", VolatileAgent(0))
        await rt.project(stream, count, into=fresh)
        assert await fresh.load() == COUNT + 2


@pytest.mark.parametrize("kind", ["redis", "postgres"])
async def test_what_a_newer_owner_appends_while_this_one_opens_is_no_damage(
    kind: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    log = make_log(kind, request, tmp_path)
    await fill(log)
    async with fake_resources() as resources:
        backend = log.agent().backend("users", resources)
        claim = backend.inner.inner.open

        async def claim_and_be_overtaken() -> Any:
            opened = await claim()
            async with Runtime() as rt:
                assert await (await rt.spawn("users", log.agent())).append(EVENTS[0]) == COUNT + 1
            return opened

        backend.inner.inner.open = claim_and_be_overtaken
        opened = await backend.open()
        assert opened.record.version == COUNT
        await backend.close()
