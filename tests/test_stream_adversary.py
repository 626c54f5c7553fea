"""One row, column or key of a stored stream is changed at random: it is found, or it changes nothing."""

from __future__ import annotations

import os
import random
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import psycopg
import pytest

import dgents
from dgents import Runtime
from tests.postgres_server import PostgresServer, postgres_server
from tests.redis_server import RedisServer, redis_server
from tests.stream_kit import UserCreated, UserState, agent_maker

pytestmark = pytest.mark.anyio

EVENTS = [UserCreated(f"u{n}", f"name {n}") for n in range(8)]
FLOOR = 2
TABLES = ["events", "events_heads", "events_snapshots", "events_requests"]
Damage = Callable[[random.Random], str]


@pytest.fixture(scope="module")
def postgres() -> Iterator[PostgresServer]:
    with postgres_server() as server:
        yield server


@pytest.fixture(scope="module")
def redis(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    with redis_server(tmp_path_factory.mktemp("redis")) as server:
        yield server


def altered(value: Any, chance: random.Random) -> Any:
    """Return another value of the same kind."""
    if isinstance(value, bytes | memoryview) and len(value):
        data = bytearray(value)
        data[chance.randrange(len(data))] ^= 1 << chance.randrange(8)
        return bytes(data) if chance.random() < 0.8 else bytes(data[: chance.randrange(len(data))])
    if isinstance(value, int | float):
        return value + chance.choice([-1, 1, 1000])
    return "x"


def damage_table(execute: Callable[..., list[Any]], row_id: Callable[[str], str], mark: str, chance: Any) -> str:
    """Delete a row, or change one column of it."""
    table = chance.choice(TABLES)
    id = row_id(table)
    row = chance.choice(execute(f"SELECT {id}, * FROM {table}"))
    if chance.random() < 0.3:
        execute(f"DELETE FROM {table} WHERE {id} = {mark}", (row[0],))
        return f"deleted from {table}: {row[1:3]}"
    column = chance.randrange(1, len(row))
    name = execute(f"SELECT * FROM {table} LIMIT 0", names=True)[column - 1]
    value = altered(row[column], chance)
    try:
        execute(f"UPDATE {table} SET {name} = {mark} WHERE {id} = {mark}", (value, row[0]))
    except (sqlite3.IntegrityError, psycopg.Error) as refused:
        return f"nothing: {refused}"  # two rows can't be one, and NULL can't be everywhere
    return f"{table}.{name} of {row[1:3]}: {row[column]!r} -> {value!r}"


def sqlite_damage(path: Path) -> Damage:
    def damage(chance: random.Random) -> str:
        with closing(sqlite3.connect(path)) as stranger, stranger:

            def execute(sql: str, values: Any = (), names: bool = False) -> list[Any]:
                cursor = stranger.execute(sql, values)
                return [it[0] for it in cursor.description] if names else cursor.fetchall()

            return damage_table(execute, lambda table: "key" if table == "events_heads" else "rowid", "?", chance)

    return damage


def postgres_damage(url: str) -> Damage:
    def damage(chance: random.Random) -> str:
        with psycopg.connect(url, autocommit=True) as stranger:

            def execute(sql: str, values: Any = (), names: bool = False) -> list[Any]:
                cursor = stranger.execute(sql, values)
                if names:
                    return [f'"{it.name}"' for it in cursor.description or ()]
                return cursor.fetchall() if cursor.description else []

            return damage_table(execute, lambda table: "ctid", "%s", chance)

    return damage


def redis_damage(server: RedisServer) -> Damage:
    def damage(chance: random.Random) -> str:
        with server.client() as client:
            name = chance.choice(sorted(client.keys("dgents:{events/users}*")))  # type: ignore[type-var,arg-type]
            if chance.random() < 0.3:
                client.delete(name)
                return f"deleted {name!r}"
            kind = client.type(name)
            if kind == b"string":
                client.set(name, altered(client.get(name), chance))
            elif kind == b"stream":
                entries: Any = client.xrange(name)
                gone = chance.randrange(len(entries))
                changed = chance.random() < 0.5
                client.delete(name)
                for n, (id, fields) in enumerate(entries):
                    if n != gone:
                        client.xadd(name, fields, id=id)
                    elif changed:
                        client.xadd(name, {b"r": altered(fields[b"r"], chance)}, id=id)
            else:
                client.lset(name, 0, altered(client.lindex(name, 0), chance))
            return f"changed {name!r}"

    return damage


@pytest.fixture(params=["sqlite", "postgres", "redis"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Callable[[], str], Callable[[str], Damage]]:
    """Return what makes the URL of an empty log, and what damages it."""
    names = iter(range(10**6))
    if request.param == "sqlite":
        return (
            lambda: f"sqlite:///{tmp_path}/{next(names)}.db",
            lambda url: sqlite_damage(Path(url.removeprefix("sqlite:///"))),
        )
    server = request.getfixturevalue(request.param)
    if request.param == "postgres":
        return server.fresh_database, postgres_damage

    def emptied() -> str:
        with server.client() as client:
            client.flushall()
        return str(server.url)

    return emptied, lambda url: redis_damage(server)


async def fill(agent: Any) -> UserState:
    async with Runtime() as rt:
        stream = await rt.spawn("users", agent)
        await stream.append_all(EVENTS[:4])
        await stream.compact(before=FLOOR + 1)
        for event in EVENTS[4:]:
            await stream.append(event, request_id=event.user_id)
        state: UserState = await stream.load()
        return state


async def attack(url: str, damage: Damage, chance: random.Random) -> bool:
    """Fill a log, damage it, and say whether that was found."""
    agent = agent_maker("memory", Path())(event_log=url, chain=True, snapshot_every=3)
    expected = await fill(agent)
    what = damage(chance)
    print(what)
    try:
        async with Runtime() as rt:
            stream = await rt.spawn("users", agent)
            assert await stream.load() == expected, what
            assert [event async for event in stream.events()] == EVENTS[FLOOR:], what
            assert await stream.verify() == len(EVENTS) - FLOOR, what
            assert await stream.append(EVENTS[0]) == len(EVENTS) + 1, what
    except (dgents.StateCorruptionError, dgents.StorageError):
        return True
    return False


async def attack_many(place: Any, rounds: int, seed: int) -> None:
    print("DGENTS_SEED", seed)
    make, damage_of = place
    found = 0
    for n in range(rounds):
        url = make()
        found += await attack(url, damage_of(url), random.Random(f"{seed}.{n}"))
    assert found > rounds // 3


async def test_a_random_damage_is_found_or_changes_nothing(place: Any) -> None:
    await attack_many(place, 12, seed=1)


@pytest.mark.torture
async def test_many_random_damages_are_found_or_change_nothing(place: Any) -> None:
    await attack_many(place, 60, int(os.environ.get("DGENTS_SEED") or random.randrange(2**32)))
