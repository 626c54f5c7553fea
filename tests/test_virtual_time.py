"""Policies that wait, on a clock that jumps: backoff, windows, flushes, ttl, deadlines, and a storm of an hour."""

from __future__ import annotations

import random
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from typing import Any

import anyio
import pytest

import dgents
from dgents.runtime.codec import Codec
from dgents.runtime.events import Event
from tests.fake_store import FakeAgent, FakeStore, fails_after, fails_before
from tests.seeds import seeded
from tests.virtual_time import run

Program = Callable[[], Awaitable[Any]]


@pytest.fixture(params=["asyncio", "trio"])
def in_virtual_time(request: pytest.FixtureRequest) -> Callable[[Program], Any]:
    """Return what runs a program on either loop; hours of it take no time."""

    def run_it(program: Program) -> Any:
        started = time.monotonic()
        result = run(request.param, program)
        assert time.monotonic() - started < 60, "virtual time is not to be waited for"
        return result

    return run_it


def clock() -> float:
    return anyio.current_time()


class Log:
    """The events of a runtime, each with its virtual time."""

    def __init__(self) -> None:
        self.seen: list[tuple[float, Event]] = []

    def __call__(self, event: Event) -> None:
        self.seen.append((clock(), event))

    def times(self, kind: str) -> list[float]:
        return [at for at, event in self.seen if event.kind == kind]

    def of(self, kind: str) -> list[Event]:
        return [event for _, event in self.seen if event.kind == kind]


def behind(store: FakeStore, **flush: Any) -> dgents.CachedAgent:
    return dgents.CachedAgent(
        dgents.VolatileAgent(), FakeAgent(store), policy="write-behind", flush=dgents.Flush(**flush)
    )


def test_restarts_wait_longer_each_time_and_not_at_all_after_a_calm_time(in_virtual_time: Any) -> None:
    async def program() -> None:
        log, store = Log(), FakeStore()
        async with dgents.Runtime(on_event=log) as rt:
            backoff = dgents.Backoff(1.0, 8.0, jitter=0.0)
            patient = await rt.supervisor("patient", max_restarts=100, within=60.0, backoff=backoff)
            ref = await patient.spawn("a", FakeAgent(store))
            store.faults.append(fails_before)
            store.open_faults = 5
            await ref.save(1)
            assert [event.details["delay"] for event in log.of("crashed")] == [0, 1, 2, 4, 8, 8]
            assert clock() == pytest.approx(23, abs=0.1)
            await anyio.sleep(61)  # a calm time
            store.faults.append(fails_before)
            await ref.save(2)
            assert log.of("crashed")[-1].details["delay"] == 0

    in_virtual_time(program)


def test_jitter_shortens_a_pause_by_its_share_at_most(in_virtual_time: Any) -> None:
    async def program() -> None:
        log, store = Log(), FakeStore()
        async with dgents.Runtime(on_event=log) as rt:
            patient = await rt.supervisor("p", max_restarts=100, backoff=dgents.Backoff(1.0, 1.0, jitter=0.5))
            ref = await patient.spawn("a", FakeAgent(store))
            store.faults.append(fails_before)
            store.open_faults = 30
            await ref.save(1)
            pauses = [event.details["delay"] for event in log.of("crashed")][1:]
            assert all(0.5 <= pause <= 1.0 for pause in pauses)
            assert len(set(pauses)) > 20

    in_virtual_time(program)


def test_a_budget_counts_only_what_happened_within_its_window(in_virtual_time: Any) -> None:
    async def program() -> None:
        log, store = Log(), FakeStore()
        async with dgents.Runtime(on_event=log) as rt:
            group = await rt.supervisor("g", max_restarts=2, within=10.0, backoff=dgents.Backoff(0, 0))
            ref = await group.spawn("a", FakeAgent(store))
            for n in range(20):  # two in any ten seconds
                store.faults.append(fails_before)
                await ref.save(n)
                await anyio.sleep(5.1)
            assert log.of("escalated") == []
            store.faults.append(fails_before)
            store.open_faults = 2
            await ref.save(99)  # the third within the window: the parent restarts the group
            assert [event.details["supervisor"] for event in log.of("escalated")] == ["g"]
            assert await ref.load() == 99

    in_virtual_time(program)


def test_callers_wait_during_a_restart_no_longer_than_they_said(in_virtual_time: Any) -> None:
    async def program() -> None:
        store = FakeStore()
        async with dgents.Runtime() as rt:
            group = await rt.supervisor(
                "g", max_restarts=100, within=1.0, backoff=dgents.Backoff(100.0, 100.0, jitter=0)
            )
            ref = await group.spawn("a", FakeAgent(store))
            store.faults.append(fails_before)
            store.open_faults = 1
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(ref.save, 1)
                await anyio.sleep(1)
                with pytest.raises(dgents.AskTimeoutError) as late:
                    await ref.ask(dgents.Load(), timeout=10)
                assert clock() == pytest.approx(11, abs=0.1)
                assert late.value.outcome == "not_started"
            assert await ref.load() == 1

    in_virtual_time(program)


@pytest.mark.parametrize(("writes", "at"), [(5, 3.0), (10, 0.0)])
def test_write_behind_flushes_after_its_delay_or_its_count(in_virtual_time: Any, writes: int, at: float) -> None:
    async def program() -> None:
        log, store = Log(), FakeStore()
        async with dgents.Runtime(on_event=log) as rt:
            ref = await rt.spawn("a", behind(store, max_delay=3.0, max_pending=10))
            for n in range(writes):
                await ref.save(n)
            assert clock() == 0
            assert rt.stats()["a"].at_risk == writes
            await anyio.sleep(10)
            assert log.times("flushed") == [pytest.approx(at, abs=0.1)]
            assert store.records["a"][-1].version == writes
            assert rt.stats()["a"].at_risk == 0

    in_virtual_time(program)


def test_a_store_that_is_away_for_an_hour_gets_everything_on_its_return(in_virtual_time: Any) -> None:
    async def program() -> None:
        log, store = Log(), FakeStore()
        async with dgents.Runtime(on_event=log) as rt:
            refs = [await rt.spawn(f"a{n}", behind(store, max_delay=1.0)) for n in range(5)]
            store.faults.extend([fails_before] * 10_000)
            store.open_faults = 10**9
            for ref in refs:
                await ref.save("kept")
            await anyio.sleep(3600)
            assert log.of("flushed") == []
            assert all(rt.stats()[ref.name].at_risk_seconds >= 3600 for ref in refs)
            assert [await ref.load() for ref in refs] == ["kept"] * 5  # readers are served meanwhile
            store.faults.clear()
            store.open_faults = 0
            back = clock()
            for ref in refs:
                await ref.flush()
            assert clock() - back <= 5.1  # the longest pause between two attempts
        assert all(store.versions(f"a{n}") == [1] for n in range(5))

    in_virtual_time(program)


def test_a_store_that_stays_away_until_the_end_is_an_error_that_names_every_key(in_virtual_time: Any) -> None:
    async def program() -> None:
        store, log = FakeStore(), Log()

        async def lose() -> None:
            async with dgents.Runtime(shutdown_timeout=30.0, on_event=log) as rt:
                refs = [await rt.spawn(f"key-{n}", behind(store, max_delay=1.0)) for n in range(5)]
                store.faults.extend([fails_before] * 10_000)
                store.open_faults = 10**9
                for ref in refs:
                    await ref.save("at risk")

        with pytest.raises(dgents.StorageError) as lost:
            await lose()
        assert clock() == pytest.approx(30, abs=0.5)
        assert all(f"'key-{n}'" in str(lost.value) for n in range(5))
        assert lost.value.outcome == "unknown"

    in_virtual_time(program)


def test_a_commit_that_never_ends_does_not_hold_up_the_end_for_longer_than_the_deadline(in_virtual_time: Any) -> None:
    async def program() -> None:
        store = FakeStore()

        async def leave() -> None:
            async with dgents.Runtime(shutdown_timeout=7.0) as rt:
                ref = await rt.spawn("a", FakeAgent(store))
                store.hold()
                async with anyio.create_task_group() as tasks:
                    tasks.start_soon(ref.save, 1)
                    await anyio.sleep(1)
                    tasks.cancel_scope.cancel()

        with pytest.raises(dgents.StorageError, match="'a'"):
            await leave()
        assert clock() == pytest.approx(8, abs=0.5)
        store.let_go()
        await anyio.sleep(1)

    in_virtual_time(program)


def test_too_much_at_risk_makes_writers_wait_until_there_is_room(in_virtual_time: Any) -> None:
    async def program() -> None:
        store = FakeStore()
        async with dgents.Runtime() as rt:
            ref = await rt.spawn("a", behind(store, max_delay=0.1, max_pending=2))
            store.faults.extend([fails_before] * 10_000)
            store.open_faults = 10**9
            waiting = 0

            async def write(n: int) -> None:
                nonlocal waiting
                waiting += 1
                await ref.update(lambda _: n, default=None)
                waiting -= 1

            async with anyio.create_task_group() as tasks:
                for n in range(100):
                    tasks.start_soon(write, n)
                    await anyio.sleep(1)
                assert waiting > 50
                store.faults.clear()
                store.open_faults = 0
            assert waiting == 0
        assert store.versions("a")[-1] == 100

    in_virtual_time(program)


def test_a_cached_state_is_read_again_after_its_ttl(in_virtual_time: Any) -> None:
    async def program() -> None:
        store = FakeStore()
        async with dgents.Runtime() as rt:
            shared = FakeAgent(store, "shared")
            ref = await rt.spawn("a", dgents.CachedAgent(dgents.VolatileAgent(), shared, ttl=10.0))
            await ref.save("old")
            known = store.records["a"][-1]
            data = Codec[str]().encode("new")
            store.records["a"].append(type(known)(known.version + 1, known.epoch, known.saved_at, data))
            assert await ref.load() == "old"
            await anyio.sleep(9)
            assert await ref.load() == "old"
            await anyio.sleep(2)
            assert await ref.load() == "new"
            stats = rt.stats()["a"]
            assert (stats.hits, stats.misses) >= (2, 1)

    in_virtual_time(program)


def _versions(store: FakeStore) -> list[int]:
    return [record.version for records in store.records.values() for record in records]


async def storm(actors: int, seconds: float, chance: random.Random) -> None:
    """Crash actors at random; every call is answered, what was acknowledged is kept, each restart is told of."""
    log = Log()
    stores = [FakeStore() for _ in range(actors)]
    told: list[list[int]] = [[] for _ in stores]
    calls = answers = 0

    async def write(ref: Any, kept: list[int]) -> None:
        nonlocal calls, answers
        number = 0
        while clock() < seconds:
            number += 1
            calls += 1
            try:
                await ref.update(lambda state, number=number: [*state[-50:], number], default=[])
                kept.append(number)
            except dgents.StorageError as error:
                assert error.outcome in ("rolled_back", "not_started", "unknown")  # noqa: PT017 (either may happen)
            answers += 1
            await anyio.sleep(chance.uniform(0, 0.5))

    async with dgents.Runtime(on_event=log) as rt:
        backoff = dgents.Backoff(0.01, 0.1)
        groups = [
            await rt.supervisor(f"g{n}", strategy=strategy, max_restarts=10_000, backoff=backoff)
            for n, strategy in enumerate(["one_for_one", "one_for_all", "rest_for_one"] * 4)
        ]
        agents = [FakeAgent(store) if n % 5 else behind(store, max_delay=0.05) for n, store in enumerate(stores)]
        refs = [await groups[n % 12].spawn(f"a{n}", agent) for n, agent in enumerate(agents)]
        async with anyio.create_task_group() as tasks:
            for ref, kept in zip(refs, told, strict=True):
                tasks.start_soon(write, ref, kept)
            while clock() < seconds:
                store = chance.choice(stores)
                store.faults.append(chance.choice([fails_before, fails_after]))
                store.open_faults = chance.choice([0, 0, 0, 1, 2])
                await anyio.sleep(chance.uniform(0, 0.02))
            for store in stores:
                store.faults.clear()
                store.open_faults = 0
        assert calls == answers
        for ref, kept in zip(refs, told, strict=True):
            state = await ref.load(default=[])
            assert state == sorted(set(state)), "none twice, in order"
            assert set(kept[-40:]) <= set(state), "none lost"
            await ref.flush()
        assert all(versions == list(range(1, len(versions) + 1)) for versions in map(_versions, stores))
        restarts = Counter(event.actor for event in log.of("restarted"))
        assert {name: stats.restarts for name, stats in rt.stats().items() if stats.restarts} == dict(restarts)
        assert sum(restarts.values()) > seconds
    print(f"\n{actors} actors, {seconds:.0f} s: {calls} calls answered, {sum(restarts.values())} restarts explained")


def test_a_storm_of_crashes_is_survived(in_virtual_time: Any) -> None:
    chance = seeded()
    in_virtual_time(lambda: storm(60, 10, chance))


@pytest.mark.torture
@pytest.mark.parametrize("loop", ["asyncio", "trio"])
def test_a_storm_of_a_minute_over_hundreds_of_actors_is_survived(loop: str) -> None:
    run(loop, storm, 500, 60, seeded())
