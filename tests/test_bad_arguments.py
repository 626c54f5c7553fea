"""What can't be right is refused in words, by the constructor or the call that it is given to: nothing has happened."""

from __future__ import annotations

import math
import os
from collections.abc import AsyncIterator, Callable
from functools import partial
from pathlib import Path
from typing import Any

import anyio
import pytest

import dgents

pytestmark = pytest.mark.anyio

INF, NAN = math.inf, math.nan
REDIS = "redis://h"


class User:
    pass


def fold(total: int, event: int) -> int:
    return total + event


def volatile(**options: Any) -> Any:
    return dgents.VolatileAgent(0, **options)


def refuse(*wrong: Any, because: str, error: type[Exception] = ValueError) -> tuple[tuple[Any, ...], Any, str]:
    return wrong, error, because


mistyped = partial(refuse, error=TypeError)
SECONDS = refuse(INF, NAN, True, 0, -1, -INF, "1", 1e300, because="give seconds, more than 0")
DELAYS = refuse(NAN, True, -1, "1", None, because="give seconds, 0 or more")
COUNTS = refuse(NAN, INF, True, 0, -1, 1.5, "1", None, because="give a .*, 1 or more")
HISTORY = refuse(NAN, INF, True, -1, 1.5, "1", None, because="give a number of versions, 0 or more")
TEXT = mistyped(5, b"x", because="is 5|is b'x'")
A_CLASS = mistyped(User, because="give schema=User")
EMPTY = refuse("", because="is empty")
NO_TEXT = refuse("", "\ud800", because="is empty|surrogate")
PATHS = refuse("", "a\0b", because="names no file")
UNDECODABLE = refuse("a\ud800", os.fsdecode(b"a\xff"), Path(os.fsdecode(b"\xfe")), because="can't be decoded")
NO_PATHS = mistyped(5, b"x", User, because="give a path")
NO_STEPS = mistyped({"1": fold}, {1.5: fold}, {True: fold}, {1: 5}, [fold], 5, because="migrations")
GAPS = refuse({0: fold}, {1: fold, 3: fold}, because="follow one another")
SHARES = refuse(NAN, INF, -INF, True, 0, -1, 2, "1", because="give a share")
CHOICES = refuse("foo", 5, True, [], None, because="give one of")

AGENTS: dict[str, Callable[..., Any]] = {
    "VolatileAgent": volatile,
    "SQLAgent": lambda **options: dgents.SQLAgent("s.db", **options),
    "PersistentAgent": lambda **options: dgents.PersistentAgent("s", **options),
    "RedisAgent": lambda **options: dgents.RedisAgent(REDIS, **options),
    "StreamAgent": lambda **options: dgents.StreamAgent(fold, 0, **options),
    "VectorAgent": lambda **options: dgents.VectorAgent(3, **options),
}
HAVE_KEYS = ("SQLAgent", "RedisAgent", "StreamAgent")
Table = dict[str, tuple[Callable[[Any], Any], list[tuple[tuple[Any, ...], Any, str]]]]
CONSTRUCTORS: Table = {
    **{
        f"{name}(migrations=)": (lambda v, make=make: make(migrations=v), [NO_STEPS, GAPS])
        for name, make in AGENTS.items()
    },
    **{
        f"{name}(max_history=)": (lambda v, make=make: make(max_history=v), [HISTORY])
        for name, make in list(AGENTS.items())[:4]
    },
    **{
        f"{name}(key=)": (lambda v, make=AGENTS[name]: make(key=v), [TEXT, EMPTY, A_CLASS])  # type: ignore[misc]
        for name in HAVE_KEYS
    },
    "SQLAgent(key=surrogate)": (lambda v: dgents.SQLAgent("s.db", key=v), [NO_TEXT]),
    "SQLAgent(path)": (dgents.SQLAgent, [PATHS, UNDECODABLE, NO_PATHS]),
    "SQLAgent(path, table)": (lambda v: dgents.SQLAgent("s.db", v), [A_CLASS, TEXT, NO_TEXT]),
    "SQLAgent(postgresql, table)": (lambda v: dgents.SQLAgent("postgresql://h/d", v), [A_CLASS, TEXT, NO_TEXT]),
    "PersistentAgent(path)": (dgents.PersistentAgent, [PATHS, UNDECODABLE, NO_PATHS]),
    "PersistentAgent(format=)": (lambda v: dgents.PersistentAgent("s", format=v), [CHOICES]),
    "PersistentAgent(durability=)": (lambda v: dgents.PersistentAgent("s", durability=v), [CHOICES]),
    "RedisAgent(url)": (dgents.RedisAgent, [mistyped(5, b"x", None, User, because="give a")]),
    "RedisAgent(url, key)": (lambda v: dgents.RedisAgent(REDIS, v), [A_CLASS]),
    "SQLAgent(ownership=)": (
        lambda v: dgents.SQLAgent("s.db", ownership=v),
        [refuse("foo", 5, [], because="give one")],
    ),
    "RedisAgent(ttl=)": (lambda v: dgents.RedisAgent(REDIS, ttl=v), [SECONDS]),
    "RedisAgent(ownership=)": (lambda v: dgents.RedisAgent(REDIS, ownership=v), [CHOICES]),
    "StreamAgent(fold)": (lambda v: dgents.StreamAgent(v, 0), [mistyped(5, because="fold")]),
    "StreamAgent(initial)": (
        lambda v: dgents.StreamAgent(fold, v),
        [mistyped(User, because="give the state before")],
    ),
    "StreamAgent(event_log=)": (
        lambda v: dgents.StreamAgent(fold, 0, event_log=v),
        [PATHS, UNDECODABLE, NO_PATHS],
    ),
    "StreamAgent(events=)": (
        lambda v: dgents.StreamAgent(fold, 0, events=v),
        [mistyped(User, [5], because="give a list of classes")],
    ),
    "StreamAgent(snapshot_every=)": (lambda v: dgents.StreamAgent(fold, 0, snapshot_every=v), [COUNTS]),
    "StreamAgent(max_event_bytes=)": (
        lambda v: dgents.StreamAgent(fold, 0, max_event_bytes=v),
        [refuse(NAN, True, 0, 1.5, 2**40, because="give a number of bytes, from 1 to")],
    ),
    "VectorAgent(dimension)": (dgents.VectorAgent, [refuse(NAN, True, 0, 1.5, "1", None, because="dimension is")]),
    "VectorAgent(path=)": (lambda v: dgents.VectorAgent(3, path=v), [PATHS, UNDECODABLE, NO_PATHS]),
    "VolatileAgent(initial)": (dgents.VolatileAgent, [mistyped(User, because="or schema=User")]),
    "CachedAgent(ttl=)": (lambda v: dgents.CachedAgent(volatile(), volatile(), ttl=v), [SECONDS]),
    "CachedAgent(policy=)": (lambda v: dgents.CachedAgent(volatile(), volatile(), policy=v), [CHOICES]),
    "Flush(max_delay)": (dgents.Flush, [DELAYS, refuse(INF, because="give seconds")]),
    "Flush(max_pending)": (lambda v: dgents.Flush(0.1, v), [COUNTS]),
    "Flush(journal=)": (lambda v: dgents.Flush(journal=v), [PATHS, UNDECODABLE, NO_PATHS]),
    "EntropyConstrainedAgent(budget)": (lambda v: dgents.EntropyConstrainedAgent(volatile(), v), [SHARES]),
    "EntropyConstrainedAgent(max_size_bytes)": (
        lambda v: dgents.EntropyConstrainedAgent(volatile(), 1, v),
        [COUNTS],
    ),
    "EntropyConstrainedAgent.at_depth": (
        lambda v: dgents.EntropyConstrainedAgent.at_depth(volatile(), v),
        [refuse(NAN, INF, True, -1, 1.5, "1", None, because="depth is")],
    ),
    "Backoff(first)": (dgents.Backoff, [DELAYS, refuse(INF, 6, because="Backoff")]),
    "Backoff(most)": (lambda v: dgents.Backoff(0.05, v), [DELAYS, refuse(INF, 0.01, because="Backoff")]),
    "Backoff(factor=)": (lambda v: dgents.Backoff(factor=v), [refuse(NAN, True, 0.5, "2", None, because="factor is")]),
    "Backoff(jitter=)": (
        lambda v: dgents.Backoff(jitter=v),
        [refuse(NAN, True, 2, -1, "1", None, because="jitter")],
    ),
    "Runtime(mailbox_size=)": (lambda v: dgents.Runtime(mailbox_size=v), [COUNTS]),
    "Runtime(overflow=)": (lambda v: dgents.Runtime(overflow=v), [CHOICES]),
    "Runtime(shutdown_timeout=)": (lambda v: dgents.Runtime(shutdown_timeout=v), [DELAYS]),
    "Runtime(on_event=)": (lambda v: dgents.Runtime(on_event=v), [mistyped(5, because="give a")]),
    "Runtime(inspect=)": (lambda v: dgents.Runtime(inspect=v), [PATHS, UNDECODABLE, NO_PATHS]),
    "Runtime.restore": (dgents.Runtime.restore, [PATHS, UNDECODABLE, NO_PATHS]),
    "Runtime.restore(agents=)": (
        lambda v: dgents.Runtime.restore("cut", agents=v),
        [mistyped(5, [volatile()], because="give a mapping")],
    ),
    "Save(if_version=)": (
        lambda v: dgents.Save(1, v),
        [mistyped(True, 1.5, "1", because="whole number")],
    ),
    "Append(if_version)": (
        lambda v: dgents.Append(1, v),
        [mistyped(True, 1.5, "1", because="whole number")],
    ),
    "History(limit)": (dgents.History, [mistyped(True, 1.5, "1", NAN, because="whole number")]),
    "History(-1)": (dgents.History, [refuse(-1, because="0 or more")]),
    "Patch(changes)": (dgents.Patch, [mistyped(5, None, [("a", 1)], because="path.to.field")]),
    "Update(fn)": (dgents.Update, [mistyped(5, None, {}, because="no function")]),
}


@pytest.mark.parametrize("place", CONSTRUCTORS)
def test_a_description_that_can_not_be_right_is_refused_when_it_is_made(place: str) -> None:
    make, refusals = CONSTRUCTORS[place]
    for wrong, error, because in refusals:
        for value in wrong:
            with pytest.raises(error, match=because):
                make(value)


@pytest.mark.parametrize(
    "make",
    [
        lambda: dgents.RedisAgent(REDIS, ttl=0.5),
        lambda: dgents.CachedAgent(volatile(), volatile(), ttl=3600),
        lambda: dgents.Flush(0, 1),
        lambda: dgents.EntropyConstrainedAgent(volatile(), 1),
        lambda: dgents.EntropyConstrainedAgent(volatile(), None),
        lambda: dgents.EntropyConstrainedAgent.at_depth(volatile(), 0),
        lambda: dgents.Backoff(0, 0, 1, 0),
        lambda: dgents.Runtime(shutdown_timeout=INF),
        lambda: dgents.Runtime(shutdown_timeout=0, mailbox_size=1, inspect="socket"),
        lambda: dgents.SQLAgent(Path("ä.db"), max_history=0, migrations={2: fold, 3: fold}),
        lambda: dgents.PersistentAgent("states/", migrations={}),
    ],
)
def test_the_least_and_the_most_that_can_be_right_are_taken(make: Callable[[], Any]) -> None:
    make()


WHOLE = mistyped(NAN, INF, True, 1.5, "1", because="give a whole number")
NAMES = mistyped(5, None, b"x", [], because="name|prefix is")
FUNCTIONS = mistyped(5, None, "x", because="no function|give a function|is no agent|no ref")
AGAIN = mistyped(5, "x", dgents.VolatileAgent, because="give")


def nothing(*args: Any) -> None:
    pass


async def first(items: AsyncIterator[Any]) -> Any:
    return [item async for item in items][:1]


OF_A_RUNTIME: dict[str, tuple[Callable[[Any, Any], Any], list[tuple[tuple[Any, ...], Any, str]]]] = {
    "spawn": (lambda rt, v: rt.spawn(v, volatile()), [refuse(5, None, "", [], b"x", because="name")]),
    "spawn(agent)": (
        lambda rt, v: rt.spawn("new", v),
        [mistyped(5, None, dgents.SQLAgent, because="no agent")],
    ),
    "spawn(restart=)": (lambda rt, v: rt.spawn("new", volatile(), restart=v), [CHOICES]),
    "spawn(while_restarting=)": (lambda rt, v: rt.spawn("new", volatile(), while_restarting=v), [CHOICES]),
    "spawn(supervisor=)": (lambda rt, v: rt.spawn("new", volatile(), supervisor=v), [AGAIN]),
    "get": (lambda rt, v: rt.get(v), [NAMES]),
    "ref": (lambda rt, v: rt.ref(v), [NAMES]),
    "stop": (lambda rt, v: rt.stop(v), [NAMES]),
    "register": (lambda rt, v: rt.register(v, nothing), [NAMES, NO_TEXT]),
    "register(factory)": (lambda rt, v: rt.register("new", v), [FUNCTIONS]),
    "register(idle_timeout=)": (lambda rt, v: rt.register("new", nothing, idle_timeout=v), [SECONDS]),
    "register(max_active=)": (
        lambda rt, v: rt.register("new", nothing, max_active=v),
        [refuse(NAN, True, 0, 1.5, "1", because="give a number of actors")],
    ),
    "supervisor": (lambda rt, v: rt.supervisor(v), [NAMES, NO_TEXT]),
    "supervisor(strategy=)": (lambda rt, v: rt.supervisor("new", strategy=v), [CHOICES]),
    "supervisor(max_restarts=)": (
        lambda rt, v: rt.supervisor("new", max_restarts=v),
        [refuse(NAN, INF, True, -1, 1.5, "1", None, because="max_restarts is")],
    ),
    "supervisor(within=)": (lambda rt, v: rt.supervisor("new", within=v), [SECONDS]),
    "supervisor(backoff=)": (lambda rt, v: rt.supervisor("new", backoff=v), [AGAIN]),
    "checkpoint": (lambda rt, v: rt.checkpoint(v), [PATHS, UNDECODABLE, NO_PATHS]),
    "checkpoint(refs)": (lambda rt, v: rt.checkpoint("cut", v), [mistyped(5, ["a"], because="ref")]),
    "fork": (lambda rt, v: rt.fork(v), [PATHS, UNDECODABLE, NO_PATHS]),
    "fork(rename)": (lambda rt, v: rt.fork("cut", v), [FUNCTIONS]),
    "project(stream)": (lambda rt, v: rt.project(v, fold, into=rt.get("a")), [FUNCTIONS]),
    "project(fn)": (lambda rt, v: rt.project(rt.get("s"), v, into=rt.get("a")), [FUNCTIONS]),
    "project(into=)": (lambda rt, v: rt.project(rt.get("s"), fold, into=v), [FUNCTIONS]),
    "portal.call": (lambda rt, v: anyio.to_thread.run_sync(rt.portal.call, v), [FUNCTIONS]),
    "load(version=)": (lambda rt, v: rt.get("a").load(version=v), [WHOLE]),
    "save(if_version=)": (lambda rt, v: rt.get("a").save(1, if_version=v), [WHOLE]),
    "save(request_id=)": (lambda rt, v: rt.get("a").save(1, request_id=v), [TEXT, NO_TEXT]),
    "update": (lambda rt, v: rt.get("a").update(v), [FUNCTIONS]),
    "patch": (lambda rt, v: rt.get("a").patch(v), [mistyped(5, None, because="path.to.field")]),
    "patch({path: 1})": (lambda rt, v: rt.get("a").patch({v: 1}), [mistyped(5, None, because="a path")]),
    "at": (lambda rt, v: rt.get("a").at(v), [mistyped(5, None, [], because="a path")]),
    "at.at": (lambda rt, v: rt.get("a").at("n").at(v), [mistyped(5, None, [], because="a path")]),
    "at.update": (lambda rt, v: rt.get("a").at("n").update(v), [FUNCTIONS]),
    "history": (lambda rt, v: rt.get("a").history(v), [WHOLE, refuse(-1, because="0 or more")]),
    "ask": (lambda rt, v: rt.get("a").ask(v), [mistyped(5, None, dgents.Load, because="no message")]),
    "ask(timeout=)": (
        lambda rt, v: rt.get("a").ask(dgents.Load(), timeout=v),
        [refuse(*DELAYS[0][:-1], because="sec")],
    ),
    "tell": (lambda rt, v: rt.get("a").tell(v), [mistyped(5, None, dgents.Load, because="no message")]),
    "for_update(lease=)": (
        lambda rt, v: rt.get("a").for_update(lease=v),
        [refuse(NAN, True, 0, -1, "1", None, because="lease is")],
    ),
    "remind": (lambda rt, v: rt.get("a").remind(v, dgents.Delete(), every=60), [NAMES, NO_TEXT]),
    "remind(every=)": (
        lambda rt, v: rt.get("a").remind("x", dgents.Delete(), every=v),
        [refuse(NAN, 0, -1, because="sec")],
    ),
    "remind(every=True)": (
        lambda rt, v: rt.get("a").remind("x", dgents.Delete(), every=v),
        [mistyped(True, "1", because="give seconds")],
    ),
    "forget": (lambda rt, v: rt.get("a").forget(v), [NAMES, NO_TEXT]),
    "Symbiont": (lambda rt, v: dgents.Symbiont(v, rt.get("a")), [FUNCTIONS]),
    "query": (lambda rt, v: rt.get("q").query(v), [mistyped(5, None, b"x", because="sql is")]),
    "aggregate": (lambda rt, v: rt.get("q").aggregate(v), [mistyped(5, None, because="expression is")]),
    "append_all": (lambda rt, v: rt.get("s").append_all(v), [mistyped(5, "x", None, because="a list")]),
    "events": (lambda rt, v: first(rt.get("s").events(v)), [WHOLE, refuse(-1, because="since is -1")]),
    "stream.history": (lambda rt, v: rt.get("s").history(v), [WHOLE, refuse(-1, because="0 or more")]),
    "stream.load(version=)": (lambda rt, v: rt.get("s").load(version=v), [WHOLE]),
    "save_many": (lambda rt, v: rt.get("v").save_many(v), [mistyped(5, "x", None, because="a list")]),
}


@pytest.mark.parametrize("place", OF_A_RUNTIME)
async def test_a_call_that_can_not_be_right_is_refused_and_leaves_no_trace(
    anyio_backend: str, tmp_path: Path, place: str
) -> None:
    call, refusals = OF_A_RUNTIME[place]
    events: list[dgents.Event] = []
    async with dgents.Runtime() as rt:
        for name, agent in {
            "a": dgents.VolatileAgent({"n": 1}),
            "q": dgents.SQLAgent(tmp_path / "s.db"),
            "s": dgents.StreamAgent(fold, 0),
            "v": dgents.VectorAgent(2),
        }.items():
            await rt.spawn(name, agent)
        rt._events._on_event = events.append
        there = list(rt.stats())
        for wrong, error, because in refusals:
            for value in wrong:
                with pytest.raises(error, match=because):
                    await _settled(call(rt, value))
        assert list(rt.stats()) == there == rt.children()
        assert await rt.get("a").load() == {"n": 1}
        assert await rt.get("a").history() == [{"n": 1}]
    assert {event.kind for event in events} <= {"stopped"}


async def _settled(reply: Any) -> Any:
    return await reply if hasattr(reply, "__await__") else reply


@pytest.mark.parametrize("options", [{"mailbox_size": True}, {"shutdown_timeout": NAN}])
def test_a_synchronous_runtime_refuses_what_a_runtime_refuses(options: Any) -> None:
    with pytest.raises(ValueError, match="give"), dgents.open_sync(**options):
        pass
