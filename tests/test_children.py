"""Children: added and removed while all runs, stopped when they are temporary, and never all looked at for one."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

import dgents
from dgents.runtime.events import Event
from tests.fake_store import FakeAgent, FakeStore, fails_before

pytestmark = pytest.mark.anyio

NO_PAUSE = dgents.Backoff(0, 0)


class Counted(dict[str, Any]):
    """Children that count how many of them were looked at one after the other."""

    looked_at = 0

    def __iter__(self) -> Iterator[str]:
        for name in super().__iter__():
            self.looked_at += 1
            yield name

    def values(self) -> Any:
        self.looked_at += len(self)
        return super().values()

    def items(self) -> Any:
        self.looked_at += len(self)
        return super().items()

    def keys(self) -> Any:
        self.looked_at += len(self)
        return super().keys()


async def test_a_start_a_crash_and_a_stop_look_at_no_other_of_ten_thousand_children(anyio_backend: str) -> None:
    store = FakeStore()
    async with dgents.Runtime() as rt:
        group = await rt.supervisor("group", backoff=NO_PAUSE)
        for n in range(10_000):
            await group.spawn(f"a{n}", dgents.VolatileAgent(0))
        group._children = children = Counted(group._children)
        ref = await group.spawn("b", FakeAgent(store))
        store.faults.append(fails_before)
        assert await ref.save(1) == 1
        await group.stop(ref)
        assert len(store.opened) == 2
        assert children.looked_at == 0
        assert len(group.children()) == 10_000
        assert children.looked_at == 10_000, "the count does count"


async def test_a_temporary_child_is_stopped_where_its_siblings_are_restarted(anyio_backend: str) -> None:
    stores = {name: FakeStore() for name in "abc"}
    async with dgents.Runtime() as rt:
        group = await rt.supervisor("group", strategy="one_for_all", backoff=NO_PAUSE)
        a = await group.spawn("a", FakeAgent(stores["a"]))
        b = await group.spawn("b", FakeAgent(stores["b"]), restart="temporary")
        c = await group.spawn("c", FakeAgent(stores["c"]))
        stores["a"].faults.append(fails_before)
        await a.save(1)
        assert await c.load(default=None) is None
        with pytest.raises(dgents.DgentError):
            await b.load()
        assert group.children() == ["a", "c"]
        assert [len(store.opened) for store in stores.values()] == [2, 1, 2]


@pytest.mark.parametrize("restart", ["permanent", "temporary"])
@pytest.mark.parametrize("given_up", [False, True])
async def test_a_healthy_child_that_is_stopped_for_its_siblings_sake_loses_nothing_acknowledged(
    anyio_backend: str, restart: Any, given_up: bool
) -> None:
    bad, good = FakeStore(), FakeStore()
    agent = dgents.CachedAgent(
        dgents.VolatileAgent(), FakeAgent(good), policy="write-behind", flush=dgents.Flush(max_delay=3600)
    )
    async with dgents.Runtime() as rt:
        group = await rt.supervisor("g", strategy="one_for_all", max_restarts=0 if given_up else 3, backoff=NO_PAUSE)
        a = await group.spawn("a", FakeAgent(bad))
        b = await group.spawn("b", agent, restart=restart)
        assert [await b.save("one"), await b.save("two")] == [1, 2]
        bad.faults.append(fails_before)
        if given_up:
            bad.open_faults = 10**9
            with pytest.raises(dgents.StorageError):
                await a.save(1)
        else:
            await a.save(1)
    assert good.versions("b") == [1, 2]


async def test_a_child_whose_start_fails_is_no_child_and_harms_no_sibling(anyio_backend: str) -> None:
    store, bad = FakeStore(), FakeStore()
    async with dgents.Runtime() as rt:
        group = await rt.supervisor("group", strategy="one_for_all")
        a = await group.spawn("a", FakeAgent(store))
        bad.open_faults = 1
        with pytest.raises(dgents.StorageError, match="can't be opened"):
            await group.spawn("b", FakeAgent(bad))
        assert group.children() == ["a"]
        assert store.opened == ["a"]
        b = await group.spawn("b", FakeAgent(bad))
        assert [await a.save(1), await b.save(1)] == [1, 1]


async def test_a_message_that_crashes_its_actor_twice_is_set_aside_with_its_payload(anyio_backend: str) -> None:
    store, events = FakeStore(), list[Event]()

    def note(event: Event) -> None:
        events.append(event)
        if event.kind == "restarted" and len(events) < 5:
            store.read_faults = 1  # and so it fails in the same turn again

    async with dgents.Runtime(on_event=note) as rt:
        ref = await rt.spawn("a", FakeAgent(store, "shared"))
        await ref.save("fine")
        store.read_faults = 1
        with pytest.raises(dgents.StorageError, match="can't be read"):
            await ref.history()
        assert await ref.load() == "fine"
    (letter,) = [event for event in events if event.kind == "dead_letter"]
    assert letter.details["message"] == ("history", None)
    assert [event.kind for event in events if event.kind == "restarted"] == ["restarted"] * 2
