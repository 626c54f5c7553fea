"""Two actors on one state: the second is refused before it claims anything, and told which actor has it."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

import dgents
from tests.calls import calls
from tests.contract.conftest import Servers
from tests.postgres_server import postgres_server
from tests.redis_server import redis_server
from tests.stream_kit import add

pytestmark = pytest.mark.anyio

Make = Callable[[], Any]


def stream(log: str) -> Make:
    return lambda: dgents.StreamAgent(add, 0, event_log=log, schema=int, events=[int], key="k")


def cached(make: Make, journal: Path | None = None) -> Make:
    def agent() -> Any:
        flush = dgents.Flush(journal=journal) if journal is not None else None
        policy = "write-behind" if journal is not None else "write-through"
        return dgents.CachedAgent(dgents.VolatileAgent(), make(), policy=policy, flush=flush)  # type: ignore[arg-type]

    return agent


def embedded(folder: Path) -> dict[str, Make]:
    database = str(folder / "s.db")
    return {
        "json": lambda: dgents.PersistentAgent(folder / "s.json"),
        "msgpack": lambda: dgents.PersistentAgent(folder / "s.bin", format="msgpack", compression="gzip"),
        "sqlite": lambda: dgents.SQLAgent(database, key="k"),
        "sqlite-cached": cached(lambda: dgents.SQLAgent(database, key="k")),
        "sqlite-behind": cached(lambda: dgents.SQLAgent(database, key="k"), folder / "journal"),
        "file-behind": cached(lambda: dgents.PersistentAgent(folder / "s.json"), folder / "journal"),
        "budget": lambda: dgents.EntropyConstrainedAgent(dgents.SQLAgent(database, key="k"), 1.0),
        "stream-folder": stream(str(folder / "log")),
        "stream-sqlite": stream(f"sqlite:///{database}"),
        "vectors": lambda: dgents.VectorAgent(2, path=str(folder / "v")),
    }


EMBEDDED = list(embedded(Path()))
SERVED = ["postgres", "redis", "redis-cached", "stream-postgres", "stream-redis"]


@pytest.fixture(scope="module")
def servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Servers]:
    running = Servers(tmp_path_factory)
    yield running
    running.stop()


def served(name: str, servers: Servers, key: str) -> Make:
    if name.endswith("postgres"):
        url = servers.get(_postgres).url
        if name == "stream-postgres":
            return lambda: dgents.StreamAgent(add, 0, event_log=url, schema=int, events=[int], key=key)
        return lambda: dgents.SQLAgent(url, key=key, ownership="exclusive")
    url = servers.get(redis_server).url
    if name == "stream-redis":
        return lambda: dgents.StreamAgent(add, 0, event_log=url, schema=int, events=[int], key=key)
    plain = partial(dgents.RedisAgent, url, key, ownership="exclusive")
    return cached(plain) if name == "redis-cached" else plain


def _postgres(_: Path) -> Any:
    return postgres_server()


@pytest.fixture(params=[*EMBEDDED, *SERVED])
def make(request: pytest.FixtureRequest, tmp_path: Path, anyio_backend: str) -> Make:
    """Return what makes the agents of one state that has one owner."""
    if request.param in EMBEDDED:
        return embedded(tmp_path)[request.param]
    return served(request.param, request.getfixturevalue("servers"), f"{request.param}-{anyio_backend}-{tmp_path.name}")


async def change(ref: Any) -> int:
    """Write once, and return how many writes there are."""
    if isinstance(ref, dgents.VectorRef):
        await ref.save({"n": 1}, embedding=[1, 0])
        return await ref.count()
    if isinstance(ref, dgents.StreamRef):
        return await ref.append(1)
    return await ref.update(lambda n: n + 1, default=0)  # type: ignore[no-any-return]


async def test_a_second_actor_of_a_runtime_is_told_who_has_the_state_and_the_first_goes_on(make: Make) -> None:
    events: list[str] = []
    async with dgents.Runtime(on_event=lambda event: events.append(event.kind)) as rt:
        first = await rt.spawn("a", make())
        assert await change(first) == 1
        for name in ("b", "c"):
            with pytest.raises(dgents.StateLockedError, match="actor 'a' of this") as caught:
                await rt.spawn(name, make())
            error = caught.value
            assert (error.actor, error.pid, error.outcome) == (name, os.getpid(), "not_started")
            assert error.hint
        rt.register("v", lambda _: make())
        with pytest.raises(dgents.StateLockedError, match="actor 'a' of this"):
            await change(rt.ref("v/1"))
        assert await change(first) == 2
        assert rt.names() == ["a"]
        await rt.stop("a")
        second = await rt.spawn("b", make())
        assert await change(second) == 3
        with pytest.raises(dgents.StateLockedError, match="actor 'b' of this"):
            await rt.spawn("a", make())
    assert not {"crashed", "ownership_lost", "restarted"} & set(events)


@pytest.mark.parametrize("kind", EMBEDDED)
async def test_a_second_runtime_of_the_process_is_told_which_actor_has_the_state(
    anyio_backend: str, kind: str, tmp_path: Path
) -> None:
    make = embedded(tmp_path)[kind]
    async with dgents.Runtime() as rt, dgents.Runtime() as other:
        first = await rt.spawn("a", make())
        with pytest.raises(dgents.StateLockedError, match="actor 'a' of this process") as caught:
            await other.spawn("b", make())
        assert caught.value.pid == os.getpid()
        assert await change(first) == 1
        await rt.stop("a")
        assert await change(await other.spawn("b", make())) == 2


@pytest.fixture(params=["sqlite", "postgres", "redis"])
def mixed(request: pytest.FixtureRequest, tmp_path: Path, anyio_backend: str) -> Callable[[str], Any]:
    """Return what makes agents of one state by their ownership."""
    key = f"{anyio_backend}-{tmp_path.name}"
    if request.param == "sqlite":
        return lambda ownership: dgents.SQLAgent(str(tmp_path / "s.db"), key=key, ownership=ownership)  # type: ignore[arg-type]
    servers: Servers = request.getfixturevalue("servers")
    if request.param == "postgres":
        url = servers.get(_postgres).url
        return lambda ownership: dgents.SQLAgent(url, key=key, ownership=ownership)  # type: ignore[arg-type]
    url = servers.get(redis_server).url
    return lambda ownership: dgents.RedisAgent(url, key, ownership=ownership)  # type: ignore[arg-type]


@pytest.mark.parametrize(("theirs", "mine"), [("exclusive", "shared"), ("shared", "exclusive")])
async def test_an_owner_and_those_who_share_do_not_mix(mixed: Any, theirs: str, mine: str) -> None:
    async with dgents.Runtime() as rt:
        first = await rt.spawn("a", mixed(theirs))
        assert await change(first) == 1
        with pytest.raises(dgents.StateLockedError, match="actor 'a' of this runtime"):
            await rt.spawn("b", mixed(mine))
        assert await change(first) == 2


async def test_those_who_share_may_be_many_in_one_runtime(mixed: Any) -> None:
    async with dgents.Runtime() as rt:
        first, second = await rt.spawn("a", mixed("shared")), await rt.spawn("b", mixed("shared"))
        assert [await change(ref) for ref in (first, second, first)] == [1, 2, 3]
        await rt.stop("a")
        with pytest.raises(dgents.StateLockedError, match="actor 'b'"):
            await rt.spawn("c", mixed("exclusive"))
        await rt.stop("b")
        assert await change(await rt.spawn("c", mixed("exclusive"))) == 4


async def test_a_state_is_known_by_what_it_is_and_not_by_how_its_place_is_written(
    anyio_backend: str, servers: Servers, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    redis = servers.get(redis_server).url
    postgres = servers.get(_postgres).url
    database = str(tmp_path / "s.db")
    key = f"written-{anyio_backend}"
    pairs: list[tuple[Any, Any]] = [
        (dgents.SQLAgent(database, key=key), dgents.SQLAgent("s.db", key=key)),
        (dgents.SQLAgent("s.db", "t", key=key), dgents.SQLAgent(f"sqlite:///{database}", "t", key=key)),
        (
            dgents.SQLAgent(postgres, key=key, ownership="exclusive"),
            dgents.SQLAgent(f"{postgres}?connect_timeout=9", key=key, ownership="exclusive"),
        ),
        (
            dgents.RedisAgent(redis, key, ownership="exclusive"),
            dgents.RedisAgent(f"{redis.removesuffix('/0')}?socket_timeout=3", key, ownership="exclusive"),
        ),
    ]
    async with dgents.Runtime() as rt:
        for number, (one, other) in enumerate(pairs):
            await rt.spawn(f"a{number}", one)
            with pytest.raises(dgents.StateLockedError, match=f"actor 'a{number}'"):
                await rt.spawn("b", other)
        # Another table, key or database is another state.
        await rt.spawn("c", dgents.SQLAgent(database, "u", key=key))
        await rt.spawn("d", dgents.SQLAgent(database, key="other"))
        await rt.spawn("e", dgents.SQLAgent(str(tmp_path / "u.db"), key=key))


async def test_one_that_could_not_be_opened_holds_no_claim(anyio_backend: str, tmp_path: Path) -> None:
    (tmp_path / "s.db").write_bytes(b"no database at all" * 100)
    async with dgents.Runtime() as rt:
        for name in ("a", "b"):
            with pytest.raises(dgents.DgentError) as caught:
                await rt.spawn(name, dgents.SQLAgent(str(tmp_path / "s.db"), key="k"))
            assert not isinstance(caught.value, dgents.StateLockedError)


async def test_a_restart_keeps_the_claim(anyio_backend: str, tmp_path: Path) -> None:
    def agent() -> Any:
        return dgents.SQLAgent(str(tmp_path / "s.db"), key="k")

    async with dgents.Runtime() as rt:
        ref = await rt.spawn("a", agent())
        await change(ref)
        ref._cell.crash(dgents.StorageError("injected"))
        assert await change(ref) == 2
        with pytest.raises(dgents.StateLockedError, match="actor 'a'"):
            await rt.spawn("b", agent())


async def test_of_two_that_are_spawned_at_once_one_has_the_state(make: Make) -> None:
    async with dgents.Runtime() as rt, calls() as run:
        both = [run(rt.spawn, name, make()) for name in "ab"]
        outcomes: list[Any] = []
        for call in both:
            try:
                outcomes.append(await call.result())
            except dgents.StateLockedError as error:
                outcomes.append(error)
        (ref,) = [outcome for outcome in outcomes if isinstance(outcome, dgents.Ref)]
        assert await change(ref) == 1
