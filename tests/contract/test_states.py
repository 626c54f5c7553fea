"""Saving and loading: every type, copies, absence, versions, staleness, deletion."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import anyio
import pytest

import dgents
from tests.calls import calls
from tests.contract.states import STATES, Point, Profile, same
from tests.contract.world import World

pytestmark = pytest.mark.anyio


class TestRoundTrip:
    @pytest.mark.parametrize("kind", STATES)
    async def test_a_state_comes_back_as_it_was_type_by_type(self, world: World, kind: str) -> None:
        schema, state = STATES[kind]
        ref = await world.spawn(schema=schema)
        await ref.save(state)
        assert same(await ref.load(), state)

    @pytest.mark.needs("durable")
    async def test_every_kind_of_state_is_there_after_a_restart(self, world: World) -> None:
        for number, (schema, state) in enumerate(STATES.values()):
            await (await world.spawn(f"s{number}", schema=schema)).save(state)
        await world.close()
        await world.open()
        for number, (schema, state) in enumerate(STATES.values()):
            assert same(await (await world.spawn(f"s{number}", schema=schema)).load(), state)

    async def test_what_can_not_be_stored_is_refused_with_its_path_and_changes_nothing(self, world: World) -> None:
        ref = await world.spawn()
        await ref.save({"x": 1})
        with pytest.raises(dgents.StateSerializationError) as caught:
            await ref.save({"callback": lambda: None})
        assert (caught.value.path, caught.value.actor) == ("$.callback", "a")
        assert (await ref.snapshot()).version == 1

    async def test_an_update_to_what_can_not_be_stored_changes_nothing(self, world: World) -> None:
        ref = await world.spawn()
        await ref.save({"x": 1})
        with pytest.raises(dgents.StateSerializationError):
            await ref.update(lambda state: {**state, "f": open})
        assert await ref.load() == {"x": 1}

    async def test_a_state_that_does_not_fit_its_schema_is_refused(self, world: World) -> None:
        ref = await world.spawn(schema=Profile)
        with pytest.raises(dgents.StateSerializationError):
            await ref.save({"name": 5})


class TestCopies:
    async def test_what_was_saved_is_not_changed_by_its_sender_later(self, world: World) -> None:
        ref = await world.spawn()
        state: dict[str, list[int]] = {"items": []}
        await ref.save(state)
        state["items"].append(1)
        assert await ref.load() == {"items": []}

    async def test_each_load_is_a_copy_of_the_callers_own(self, world: World) -> None:
        ref = await world.spawn(schema=Profile)
        await ref.save(Profile("Ada"))
        (await ref.load()).friends.append("Bob")
        (await ref.snapshot()).state.tags.add("x")
        (await ref.history())[0].tags.add("y")
        assert await ref.load() == Profile("Ada")

    async def test_a_function_that_fails_after_changing_its_argument_changes_nothing(self, world: World) -> None:
        ref = await world.spawn()
        await ref.save([1])

        def spoil(items: list[int]) -> list[int]:
            items.append(2)
            raise ValueError("after the change")

        with pytest.raises(ValueError, match="after the change"):
            await ref.update(spoil)
        assert await ref.load() == [1]

    async def test_the_result_of_an_update_is_a_copy_too(self, world: World) -> None:
        ref = await world.spawn()
        await ref.save([1])
        (await ref.update(lambda items: [*items, 2])).append(3)
        assert await ref.load() == [1, 2]


class TestAbsence:
    async def test_loading_nothing_is_an_error_that_names_the_actor(self, world: World) -> None:
        ref = await world.spawn()
        with pytest.raises(dgents.StateNotFoundError) as caught:
            await ref.load()
        assert caught.value.actor == "a"

    async def test_loading_nothing_gives_the_default(self, world: World) -> None:
        ref = await world.spawn()
        assert await ref.load(default=None) is None
        assert await ref.history() == []

    async def test_none_is_a_state_as_any_other(self, world: World) -> None:
        ref = await world.spawn()
        await ref.save(None)
        assert await ref.load(default=1) is None

    async def test_an_update_of_nothing_starts_from_the_default_or_fails(self, world: World) -> None:
        ref = await world.spawn()
        with pytest.raises(dgents.StateNotFoundError):
            await ref.update(lambda n: n + 1)
        assert await ref.update(lambda n: n + 1, default=0) == 1


class TestVersions:
    async def test_each_write_is_one_version_more(self, world: World) -> None:
        ref = await world.spawn()
        assert [await ref.save(n) for n in range(3)] == [1, 2, 3]
        await ref.update(str)
        snapshot = await ref.snapshot()
        assert (snapshot.state, snapshot.version) == ("2", 4)

    async def test_a_snapshot_tells_when_it_was_saved_and_by_which_owner(self, world: World) -> None:
        ref = await world.spawn()
        before = datetime.now(UTC)
        await ref.save(1)
        snapshot = await ref.snapshot()
        assert before.timestamp() - 1 <= snapshot.saved_at.timestamp() <= datetime.now(UTC).timestamp() + 1
        assert snapshot.saved_at.tzinfo is UTC
        assert snapshot.epoch >= 0

    async def test_if_version_writes_only_over_that_version(self, world: World) -> None:
        ref = await world.spawn()
        await ref.save("one")
        assert await ref.save("two", if_version=1) == 2
        with pytest.raises(dgents.VersionConflictError) as caught:
            await ref.save("three", if_version=1)
        assert (caught.value.expected, caught.value.actual, caught.value.actor) == (1, 2, "a")
        assert await ref.load() == "two"

    async def test_if_version_0_writes_only_if_nothing_is_there(self, world: World) -> None:
        ref = await world.spawn()
        assert await ref.save("first", if_version=0) == 1
        with pytest.raises(dgents.VersionConflictError):
            await ref.save("second", if_version=0)
        await ref.delete()
        assert await ref.save("third", if_version=0) == 3

    async def test_of_many_who_claim_a_name_one_succeeds(self, world: World) -> None:
        ref = await world.spawn()
        won: list[int] = []

        async def claim(n: int) -> None:
            try:
                await ref.save(n, if_version=0)
                won.append(n)
            except dgents.VersionConflictError:
                pass

        async with anyio.create_task_group() as tasks:
            for n in range(10):
                tasks.start_soon(claim, n)
        assert won == [await ref.load()]


class TestStaleness:
    """`load`, think, `save` loses updates under a lock per message; here the stale save is refused."""

    async def stale(self, ref: dgents.Ref[Any]) -> None:
        await ref.save(0)
        assert await ref.load() == 0
        async with calls() as run:
            await run(ref.update, lambda n: n + 1).result()

    async def test_a_save_over_a_version_that_this_task_never_saw_is_refused(self, world: World) -> None:
        ref = await world.spawn()
        await self.stale(ref)
        with pytest.raises(dgents.StaleStateError) as caught:
            await ref.save(100)
        assert (caught.value.expected, caught.value.actual) == (1, 2)
        for way_out in ("update(fn)", "transaction()", "for_update()"):
            assert way_out in str(caught.value)
        assert await ref.load() == 1

    async def test_an_update_is_a_way_out(self, world: World) -> None:
        ref = await world.spawn()
        await self.stale(ref)
        assert await ref.update(lambda n: n + 1) == 2

    async def test_a_transaction_is_a_way_out(self, world: World) -> None:
        ref = await world.spawn()
        await self.stale(ref)
        async with ref.transaction() as tx:
            tx.state += 1
        assert await ref.load() == 2

    async def test_the_view_for_update_is_a_way_out(self, world: World) -> None:
        ref = await world.spawn()
        await self.stale(ref)
        view = ref.for_update()
        assert await view.save(await view.load() + 1) == 3

    async def test_loading_again_is_a_way_out(self, world: World) -> None:
        ref = await world.spawn()
        await self.stale(ref)
        assert await ref.save(await ref.load() + 1) == 3

    async def test_a_task_that_never_loaded_saves_blindly(self, world: World) -> None:
        ref = await world.spawn()
        await self.stale(ref)
        async with calls() as run:
            assert await run(ref.save, "blind").result() == 3

    async def test_no_naive_writer_loses_an_update_not_even_the_first(self, world: World) -> None:
        ref = await world.spawn()

        async def add() -> None:
            while True:
                try:
                    seen = await ref.load(default=0)
                    await anyio.lowlevel.checkpoint()
                    await ref.save(seen + 1)
                    return
                except dgents.StaleStateError:
                    pass

        async with anyio.create_task_group() as tasks:
            for _ in range(5):
                tasks.start_soon(add)
        assert await ref.load() == 5


class TestDeletion:
    async def test_a_deleted_state_is_absent_and_versions_go_on(self, world: World) -> None:
        ref = await world.spawn()
        await ref.save("x")
        await ref.delete()
        with pytest.raises(dgents.StateNotFoundError):
            await ref.load()
        assert await ref.save("y") == 3

    async def test_what_was_never_saved_may_be_deleted(self, world: World) -> None:
        ref = await world.spawn()
        await ref.delete()
        assert await ref.save("x") == 1

    @pytest.mark.needs("durable")
    async def test_a_deleted_state_stays_deleted(self, world: World) -> None:
        ref = await world.spawn()
        await ref.save("x")
        await ref.delete()
        ref = await world.reopen()
        assert await ref.load(default=None) is None
        assert await ref.save("y", if_version=0) == 3

    async def test_who_deleted_a_state_does_not_overwrite_what_others_saved_since(self, world: World) -> None:
        ref = await world.spawn()
        await ref.save("x")
        await ref.delete()
        async with calls() as run:
            await run(ref.save, "theirs").result()
        with pytest.raises(dgents.StaleStateError):
            await ref.save("mine")

    async def test_a_save_that_did_not_see_the_deletion_is_refused(self, world: World) -> None:
        ref = await world.spawn()
        await ref.save("x")
        async with calls() as run:
            await run(ref.delete).result()
        with pytest.raises(dgents.StaleStateError):
            await ref.save("y")


class TestImmutability:
    @pytest.mark.needs("history")
    async def test_an_immutable_state_round_trips_through_updates(self, world: World) -> None:
        ref = await world.spawn(schema=Point)
        await ref.save(Point(0, 0))
        for _ in range(3):
            await ref.update(lambda point: Point(point.x + 1, point.y))
        assert await ref.history() == [Point(n, 0) for n in range(4)]
