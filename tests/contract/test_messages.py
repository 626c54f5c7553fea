"""History, watching, messages, request ids, names, stopping, and coming back."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import anyio
import pytest

import dgents
from tests.calls import calls
from tests.contract.world import World

pytestmark = pytest.mark.anyio


@pytest.mark.needs("history")
class TestHistory:
    async def test_history_is_oldest_first_with_the_current_state_last(self, world: World) -> None:
        ref = await world.spawn()
        for text in "abc":
            await ref.save(text)
        assert await ref.history() == ["a", "b", "c"]
        assert [await ref.history(limit) for limit in (0, 2, 9)] == [[], ["b", "c"], ["a", "b", "c"]]

    async def test_history_keeps_the_newest_within_its_bound(self, world: World) -> None:
        ref = await world.spawn(max_history=3)
        for number in range(10):
            await ref.save(number)
        assert await ref.history() == [7, 8, 9]

    async def test_history_of_one_batch_keeps_the_bound_too(self, world: World) -> None:
        ref = await world.spawn(max_history=3)
        async with anyio.create_task_group() as tasks:
            for number in range(10):
                tasks.start_soon(ref.save, number)
        assert len(await ref.history()) == 3
        assert (await ref.snapshot()).version == 10

    async def test_a_bound_of_0_keeps_the_current_state_only(self, world: World) -> None:
        ref = await world.spawn(max_history=0)
        for number in range(3):
            await ref.save(number)
        assert await ref.history() == [2]

    async def test_a_version_can_be_loaded_from_the_history(self, world: World) -> None:
        ref = await world.spawn(max_history=3)
        for text in "abcd":
            await ref.save(text)
        assert [await ref.load(version=version) for version in (2, 4)] == ["b", "d"]
        for version in (0, 1, 5):
            with pytest.raises(dgents.StateNotFoundError, match=str(version)):
                await ref.load(version=version)
        assert await ref.load(version=1, default="none") == "none"

    async def test_deleted_versions_do_not_count(self, world: World) -> None:
        ref = await world.spawn()
        await ref.save("a")
        await ref.save("b")
        await ref.delete()
        assert await ref.history() == ["a", "b"]
        await ref.save("c")
        assert await ref.history(2) == ["b", "c"]

    @pytest.mark.parametrize("limit", [-1])
    async def test_a_negative_limit_is_refused(self, world: World, limit: int) -> None:
        ref = await world.spawn()
        with pytest.raises(ValueError, match="-1"):
            await ref.history(limit)

    async def test_history_shows_the_acknowledged_writes_that_went_before(self, world: World) -> None:
        ref = await world.spawn()
        seen: list[list[int]] = []

        async def write_and_look(n: int) -> None:
            await ref.save(n)
            seen.append(await ref.history())
            assert n in seen[-1]

        async with anyio.create_task_group() as tasks:
            for n in range(5):
                tasks.start_soon(write_and_look, n)
        final = await ref.history()
        assert all(history == final[: len(history)] for history in seen)


class TestWatch:
    async def test_a_watcher_begins_with_the_current_state(self, world: World) -> None:
        ref = await world.spawn()
        await ref.save("now")
        snapshot = await anext(ref.watch())
        assert (snapshot.state, snapshot.version) == ("now", 1)

    async def test_a_slow_watcher_gets_the_latest_and_the_last_arrives(self, world: World) -> None:
        ref = await world.spawn()
        watch = ref.watch()
        for number in range(10):
            await ref.save(number)
        with anyio.fail_after(5):
            assert (await anext(watch)).version == 10
        async with calls() as run:
            last = await run.blocked(watch.__anext__)
            await ref.save("last")
            assert (await last.result()).state == "last"

    async def test_a_watcher_sees_versions_in_order_and_each_at_most_once(self, world: World) -> None:
        ref = await world.spawn()
        seen: list[int] = []

        async def look() -> None:
            async for snapshot in ref.watch():
                seen.append(snapshot.version)
                if snapshot.version == 20:
                    return

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(look)
            with anyio.fail_after(10):
                for number in range(20):
                    await ref.save(number)
        assert seen == sorted(set(seen))
        assert seen[-1] == 20

    async def test_watching_ends_when_the_actor_stops(self, world: World) -> None:
        ref = await world.spawn()
        await ref.save(1)
        watch = ref.watch()
        await anext(watch)
        async with calls() as run:
            end = await run.blocked(lambda: anext(watch, "end"))
            await world.rt.stop(ref)
            assert await end.result() == "end"

    async def test_watching_goes_on_when_the_actor_is_spawned_again(self, world: World) -> None:
        ref = await world.spawn()
        await ref.save(1)
        watch = ref.watch()
        await anext(watch)
        await world.rt.stop(ref)
        await world.spawn()
        for number in (2, 3):
            await ref.update(lambda _, number=number: number, default=0)
            with anyio.fail_after(5):
                assert (await anext(watch)).state == number

    async def test_a_deletion_is_passed_over_until_there_is_a_state_again(self, world: World) -> None:
        ref = await world.spawn()
        await ref.save(1)
        watch = ref.watch()
        await anext(watch)
        await ref.delete()
        await ref.save(2)
        with anyio.fail_after(5):
            assert (await anext(watch)).state == 2


class TestMessages:
    @pytest.mark.needs("history")
    async def test_messages_do_what_the_methods_do(self, world: World) -> None:
        ref = await world.spawn()
        assert await ref.ask(dgents.Load(default=None)) is None
        assert await ref.ask(dgents.Save({"n": 1})) == 1
        assert await ref.ask(dgents.Patch({"n": 2})) == 2
        assert await ref.ask(dgents.Update(lambda state: {"n": state["n"] + 1})) == {"n": 3}
        assert await ref.ask(dgents.Load()) == {"n": 3}
        assert await ref.ask(dgents.History(2)) == [{"n": 2}, {"n": 3}]
        await ref.ask(dgents.Delete())
        with pytest.raises(dgents.StateNotFoundError):
            await ref.ask(dgents.Load())

    async def test_tells_are_applied_in_order_before_what_follows(self, world: World) -> None:
        ref = await world.spawn()
        for letter in "abc":
            ref.tell(dgents.Update(lambda text, letter=letter: text + letter, default=""))
        assert await ref.load() == "abc"

    async def test_a_tell_that_fails_is_a_dead_letter(self, world: World) -> None:
        ref = await world.spawn()
        message = dgents.Update(lambda _: 1 // 0, default=0)
        await ref.tell(message)
        assert await ref.load(default="nothing") == "nothing"
        (letter,) = [event for event in world.events if event.kind == "dead_letter"]
        assert (letter.actor, letter.details["message"]) == ("a", message)
        assert isinstance(letter.details["error"], ZeroDivisionError)

    async def test_an_ask_that_times_out_before_its_turn_leaves_no_trace(self, world: World) -> None:
        ref = await world.spawn()
        await ref.save(0)
        async with calls() as run:
            async with ref.transaction():
                ask = run(lambda: ref.ask(dgents.Save(1), timeout=0.01))
                with pytest.raises(dgents.AskTimeoutError, match="'a'") as caught:
                    await ask.result()
            assert caught.value.outcome == "not_started"
        assert await ref.load() == 0

    async def test_an_ask_that_times_out_in_its_turn_is_unknown_and_the_turn_completes(self, world: World) -> None:
        ref = await world.spawn()
        await ref.save(0)
        go_on = anyio.Event()

        async def slow(number: int) -> int:
            await go_on.wait()
            return number + 1

        with pytest.raises(dgents.AskTimeoutError) as caught:
            await ref.ask(dgents.Update(slow), timeout=0.3)
        assert caught.value.outcome == "unknown"
        go_on.set()
        assert await ref.load() == 1

    async def test_a_full_mailbox_refuses_a_tell_and_gives_it_back(self, world: World) -> None:
        await world.close()
        await world.open(mailbox_size=2, overflow="reject")
        ref = await world.spawn()
        async with calls() as run, ref.transaction():
            ref.tell(dgents.Save(1))
            ref.tell(dgents.Save(2))
            with pytest.raises(dgents.MailboxFullError, match="'a'") as told:
                ref.tell(dgents.Save(3))
            with pytest.raises(dgents.MailboxFullError):
                await run(ref.load).result()
        assert told.value.refused == dgents.Save(3)
        while world.rt.stats()["a"].busy:
            await anyio.lowlevel.checkpoint()
        assert await ref.load() == 2


class TestRequests:
    async def test_the_same_id_is_applied_once_and_answered_as_the_first_time(self, world: World) -> None:
        ref = await world.spawn()
        assert [await ref.save(text, request_id="s") for text in "xy"] == [1, 1]
        assert [await ref.update(lambda text: text + "!", request_id="u") for _ in range(3)] == ["x!"] * 3
        await ref.save("z")
        assert await ref.update(lambda text: text + "!", request_id="u") == "x!"
        await ref.delete(request_id="d")
        await ref.save("again")
        await ref.delete(request_id="d")
        assert await ref.load() == "again"

    @pytest.mark.needs("durable")
    async def test_an_id_is_remembered_after_a_restart(self, world: World) -> None:
        ref = await world.spawn()
        await ref.save([1])
        assert await ref.update(lambda items: [*items, 2], request_id="u") == [1, 2]
        assert await ref.patch({"0": 9}, request_id="p") == 3
        ref = await world.reopen()
        assert await ref.update(lambda items: [*items, 2], request_id="u") == [1, 2]
        assert await ref.patch({"0": 0}, request_id="p") == 3
        assert await ref.load() == [9, 2]

    async def test_an_update_that_failed_is_not_remembered(self, world: World) -> None:
        ref = await world.spawn()
        await ref.save(0)
        with pytest.raises(ZeroDivisionError):
            await ref.update(lambda n: 1 // n, request_id="u")
        assert await ref.update(lambda n: n + 1, request_id="u") == 1

    async def test_of_concurrent_calls_with_one_id_one_is_applied(self, world: World) -> None:
        ref = await world.spawn()
        await ref.save(0)
        async with calls() as run:
            same = [run(lambda: ref.update(lambda n: n + 1, request_id="u")) for _ in range(10)]
            assert [await call.result() for call in same] == [1] * 10
        assert await ref.load() == 1

    async def test_the_last_thousand_ids_are_remembered(self, world: World) -> None:
        ref = await world.spawn(max_history=0)
        async with anyio.create_task_group() as tasks:
            for number in range(1001):
                tasks.start_soon(lambda n: ref.save(n, request_id=str(n)), number)
        if world.is_durable:
            ref = await world.reopen()
        applied = [number for number in range(1001) if await self.known(ref, number)]
        assert len(applied) == 1000

    async def known(self, ref: dgents.Ref[Any], number: int) -> bool:
        try:
            await ref.save("never", if_version=0, request_id=str(number))
        except dgents.VersionConflictError:
            return False
        return True


@dataclass
class Old:
    name: str


@dataclass
class New:
    first: str
    last: str


def split_name(state: dict[str, Any]) -> dict[str, Any]:
    first, _, last = state["name"].partition(" ")
    return {"first": first, "last": last}


@pytest.mark.needs("durable")
class TestRestart:
    @pytest.mark.needs("history")
    async def test_state_version_and_history_are_there_after_a_restart(self, world: World) -> None:
        ref = await world.spawn()
        for text in "abc":
            await ref.save(text)
        ref = await world.reopen()
        snapshot = await ref.snapshot()
        assert (snapshot.state, snapshot.version) == ("c", 3)
        assert await ref.history() == ["a", "b", "c"]
        assert await ref.load(version=2) == "b"
        assert await ref.save("d", if_version=3) == 4

    @pytest.mark.needs("exclusive")
    async def test_each_owner_has_an_epoch_of_its_own(self, world: World) -> None:
        ref = await world.spawn()
        await ref.save(1)
        first = (await ref.snapshot()).epoch
        ref = await world.reopen()
        assert (await ref.snapshot()).epoch > first

    async def test_stopping_and_spawning_again_goes_on_where_it_was(self, world: World) -> None:
        ref = await world.spawn()
        await ref.save(1)
        await world.rt.stop(ref)
        with pytest.raises(dgents.ActorStoppedError, match="'a'"):
            await ref.load()
        again = await world.spawn()
        assert await again.update(lambda n: n + 1) == 2
        assert await ref.load() == 2, "the old ref finds the new actor"

    @pytest.mark.needs("history")
    async def test_old_states_are_lifted_when_they_are_opened(self, world: World) -> None:
        ref = await world.spawn(schema=Old)
        await ref.save(Old("Ada Lovelace"))
        await ref.save(Old("Alan Turing"))
        ref = await world.reopen(schema=New, migrations={1: split_name})
        assert await ref.load() == New("Alan", "Turing")
        assert await ref.history() == [New("Ada", "Lovelace"), New("Alan", "Turing")]
        assert await ref.update(lambda state: New("Grace", "Hopper")) == New("Grace", "Hopper")
        ref = await world.reopen()
        assert [state.first for state in await ref.history()] == ["Ada", "Alan", "Grace"]

    async def test_a_state_of_a_newer_schema_is_refused_and_left_alone(self, world: World) -> None:
        ref = await world.spawn(schema=New, migrations={1: split_name})
        await ref.save(New("Ada", "Lovelace"))
        await world.close()
        await world.open()

        async def read_with_an_older_program() -> Old:
            old: Old = await (await world.spawn(schema=Old, migrations=None)).load()
            return old

        with pytest.raises(dgents.StateError, match="version"):
            await read_with_an_older_program()
        if "a" in world.rt.names():
            await world.rt.stop("a")
        again = await world.spawn(schema=New, migrations={1: split_name})
        assert await again.load() == New("Ada", "Lovelace")

    async def test_what_was_told_before_the_end_is_there_after_it(self, world: World) -> None:
        ref = await world.spawn()
        for _ in range(20):
            ref.tell(dgents.Update(lambda n: n + 1, default=0))
        ref = await world.reopen()
        assert await ref.load() == 20


class TestNames:
    @pytest.mark.parametrize("name", ["user/1", "..", "ü–日本", "with space", "a" * 200, "'; DROP TABLE states; --"])
    async def test_an_actor_may_have_any_name(self, subject: Any, place: Any, name: str, anyio_backend: str) -> None:
        async with dgents.Runtime() as rt:
            ref = await rt.spawn(name, subject.make(place, f"n{hash(name)}"))
            await ref.save(name)
            assert rt.get(name) == ref
            assert await ref.load() == name

    async def test_a_name_is_taken_until_its_actor_stops(self, world: World) -> None:
        ref = await world.spawn()
        with pytest.raises(dgents.NameTakenError, match="'a'"):
            await world.spawn()
        await world.rt.stop("a")
        assert world.rt.names() == []
        assert await world.spawn() == ref

    async def test_two_names_are_two_states(self, world: World) -> None:
        one, two = await world.spawn("one"), await world.spawn("two")
        await one.save(1)
        assert await two.load(default=None) is None
        await two.save(2)
        assert await one.load() == 1

    async def test_every_error_names_its_actor(self, world: World) -> None:
        ref = await world.spawn()
        failing = [
            ref.load(),
            ref.save(1, if_version=7),
            ref.patch({"x": 1}),
            ref.update(lambda n: n),
            ref.load(version=9),
            ref.at("x").load(),
        ]
        for call in failing:
            with pytest.raises(dgents.StateError) as caught:
                await call
            assert caught.value.actor == "a", caught.value
