"""Updates, transactions, leases, lenses, patches and symbionts: each is one turn, or none."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import anyio
import pytest

import dgents
from dgents.runtime.codec import Codec
from tests.calls import calls
from tests.contract.states import Profile, Span
from tests.contract.world import World

pytestmark = pytest.mark.anyio


def add(number: int, step: int = 1) -> int:
    return number + step


async def add_slowly(number: int, step: int = 1) -> int:
    await anyio.lowlevel.checkpoint()
    return number + step


class TestUpdate:
    @pytest.mark.parametrize("fn", [add, add_slowly])
    async def test_an_update_returns_the_new_state_and_takes_arguments(self, world: World, fn: Any) -> None:
        ref = await world.spawn()
        await ref.save(1)
        assert await ref.update(fn) == 2
        assert await ref.update(fn, 40) == 42
        assert await ref.load() == 42

    async def test_an_exception_reaches_the_caller_alone_and_changes_nothing(self, world: World) -> None:
        ref = await world.spawn()
        await ref.save(1)

        async def fail(number: int) -> int:
            await anyio.lowlevel.checkpoint()
            raise KeyError("mine")

        for fn in (lambda _: 1 // 0, fail):
            with pytest.raises((ZeroDivisionError, KeyError)):
                await ref.update(fn)
        assert (await ref.snapshot()).version == 1

    async def test_a_function_that_forgets_to_return_is_refused(self, world: World) -> None:
        ref = await world.spawn()
        await ref.save([1])
        with pytest.raises(dgents.StateSerializationError, match="returned None"):
            await ref.update(lambda items: items.append(2))
        assert await ref.load() == [1]

    @pytest.mark.parametrize("fn", [add, add_slowly])
    async def test_a_thousand_concurrent_updates_are_all_counted(self, world: World, fn: Any) -> None:
        ref = await world.spawn()
        await ref.save(0)
        replies: list[int] = []

        async def one() -> None:
            replies.append(await ref.update(fn))

        async with anyio.create_task_group() as tasks:
            for _ in range(1000):
                tasks.start_soon(one)
        assert await ref.load() == 1000
        assert sorted(replies) == list(range(1, 1001))

    async def test_a_function_whose_awaited_task_was_cancelled_does_not_stop_the_actor(self, world: World) -> None:
        ref = await world.spawn()
        await ref.save(1)

        async def dies(number: int) -> int:
            raise SystemExit(number)  # as a cancellation from elsewhere: no ordinary exception

        with pytest.raises(SystemExit):
            await ref.update(dies)
        with anyio.fail_after(5):
            assert await ref.load() == 1


class TestTransaction:
    async def test_a_clean_exit_commits_one_version(self, world: World) -> None:
        ref = await world.spawn()
        await ref.save([1])
        async with ref.transaction() as tx:
            tx.state.append(2)
            tx.state = [*tx.state, 3]
        snapshot = await ref.snapshot()
        assert (snapshot.state, snapshot.version) == ([1, 2, 3], 2)

    async def test_an_exception_rolls_back(self, world: World) -> None:
        ref = await world.spawn()
        await ref.save([1])

        async def fail() -> None:
            async with ref.transaction() as tx:
                tx.state.append(2)
                raise ValueError("mine")

        with pytest.raises(ValueError, match="mine"):
            await fail()
        assert await ref.load() == [1]

    async def test_a_transaction_that_changes_nothing_writes_nothing(self, world: World) -> None:
        ref = await world.spawn()
        await ref.save([1])
        async with ref.transaction() as tx:
            assert tx.state == [1]
        assert (await ref.snapshot()).version == 1

    async def test_a_transaction_may_begin_with_nothing(self, world: World) -> None:
        ref = await world.spawn()
        async with ref.transaction() as tx:
            with pytest.raises(dgents.StateNotFoundError):
                _ = tx.state
            tx.state = "first"
        assert await ref.load() == "first"

    async def test_others_wait_until_it_ends(self, world: World) -> None:
        ref = await world.spawn()
        await ref.save(1)
        async with calls() as run:
            async with ref.transaction() as tx:
                update = run(ref.update, add)
                for _ in range(20):
                    await anyio.lowlevel.checkpoint()
                assert not update.done
                tx.state = 10
            assert await update.result() == 11

    async def test_a_state_that_can_not_be_stored_rolls_back_and_gives_the_turn_back(self, world: World) -> None:
        ref = await world.spawn()
        await ref.save(1)
        with pytest.raises(dgents.StateSerializationError):
            async with ref.transaction() as tx:
                tx.state = open
        assert await ref.load() == 1

    async def test_a_holder_that_is_cancelled_gives_the_turn_back(self, world: World) -> None:
        ref = await world.spawn()
        await ref.save(1)
        held = anyio.Event()

        async def hold() -> None:
            async with ref.transaction() as tx:
                tx.state = 99
                held.set()
                await anyio.sleep_forever()

        async with calls() as run:
            holder = run(hold)
            await held.wait()
            holder.cancel()
            assert await run(ref.load).result() == 1

    async def test_asking_the_actor_inside_its_own_transaction_is_a_deadlock_at_once(self, world: World) -> None:
        ref = await world.spawn()
        await ref.save(1)
        async with ref.transaction() as tx:
            for ask in (ref.load, ref.history, ref.snapshot, ref.transaction().__aenter__):
                with pytest.raises(dgents.DeadlockError, match="'a'"):
                    await ask()
            tx.state = 2
        assert await ref.load() == 2

    async def test_two_actors_can_be_changed_together(self, world: World) -> None:
        one, two = await world.spawn("a"), await world.spawn("b")
        await one.save(10)
        await two.save(0)
        async with one.transaction() as debit, two.transaction() as credit:
            debit.state -= 3
            credit.state += 3
        assert (await one.load(), await two.load()) == (7, 3)


class TestForUpdate:
    @pytest.mark.needs("history")
    async def test_load_takes_the_turn_and_save_gives_it_back(self, world: World) -> None:
        ref = await world.spawn()
        await ref.save(1)
        view = ref.for_update()
        async with calls() as run:
            state = await view.load()
            other = run(ref.update, add)
            for _ in range(20):
                await anyio.lowlevel.checkpoint()
            assert not other.done
            assert await view.save(state + 10) == 2
            assert await other.result() == 12
        assert await view.history() == [1, 11, 12]

    async def test_writers_that_share_a_view_lose_no_update(self, world: World) -> None:
        ref = await world.spawn()
        await ref.save(0)
        view = ref.for_update()

        async def naive() -> None:
            await view.save(await view.load() + 1)

        async with anyio.create_task_group() as tasks:
            for _ in range(10):
                tasks.start_soon(naive)
        assert await ref.load() == 10

    async def test_a_lease_that_ran_out_gives_the_turn_back_and_refuses_the_save(self, world: World) -> None:
        ref = await world.spawn()
        await ref.save(1)
        view = ref.for_update(lease=0.01)
        await view.load()
        async with calls() as run:
            assert await run(ref.update, add).result() == 2  # waits for the lease, not for ever
        with pytest.raises(dgents.LeaseExpiredError, match=r"0\.01 s") as caught:
            await view.save(100)
        assert caught.value.outcome == "rolled_back"
        assert await ref.load() == 2

    async def test_nothing_saved_gives_the_turn_back(self, world: World) -> None:
        ref = await world.spawn()
        view = ref.for_update()
        with pytest.raises(dgents.StateNotFoundError):
            await view.load()
        assert await ref.save("free") == 1

    async def test_a_default_is_loaded_where_nothing_is_saved(self, world: World) -> None:
        view = (await world.spawn()).for_update()
        assert await view.save(await view.load(default=0) + 1) == 1

    async def test_a_state_that_can_not_be_stored_gives_the_turn_back(self, world: World) -> None:
        ref = await world.spawn()
        await ref.save(1)
        view = ref.for_update()
        await view.load()
        with pytest.raises(dgents.StateSerializationError):
            await view.save(open)
        assert await ref.load() == 1


PARTS: dict[str, tuple[Any, Any]] = {
    "map": ({"u1": {"name": "Ada"}, "u2": {}}, {"name": "Bob", "age": 3}),
    "list": ({"u1": [1, 2], "u2": 0}, [3]),
    "set": ({"u1": {"x", "y", "z"}, "u2": 0}, {"p", "q", "r", "s"}),
    "tuple": ({"u1": (1, 2), "u2": 0}, ("x",)),
    "none": ({"u1": None, "u2": 0}, 0.5),
}


class TestLens:
    @pytest.mark.parametrize("kind", PARTS)
    async def test_the_laws_of_lenses_hold(self, world: World, kind: str) -> None:
        whole, part = PARTS[kind]
        ref = await world.spawn()
        await ref.save(whole)
        lens = ref.at("u1")
        await lens.save(await lens.load())
        assert await ref.load() == whole, "GetPut"
        await lens.save(part)
        assert await lens.load() == part, "PutGet"
        await lens.save(whole["u1"])
        await lens.save(part)
        assert await ref.load() == {**whole, "u1": part}, "PutPut"

    async def test_a_set_is_not_stale_because_its_items_are_in_another_order(self, world: World) -> None:
        ref = await world.spawn()
        await ref.save({"u1": 0})
        items = set(range(100))
        items -= items - {1, 8, 64}  # in a table of this size they come as 1, 8, 64; in a small one as 8, 1, 64
        await ref.at("u1").save(items)
        await ref.at("u1").save({"next"})
        assert await ref.load() == {"u1": {"next"}}

    async def test_the_laws_hold_for_typed_parts(self, world: World) -> None:
        ref = await world.spawn(schema=dict[str, Profile])
        await ref.save({"u1": Profile("Ada", 1, {"x", "y"}), "u2": Profile("Bob")})
        lens = ref.at("u1")
        for part in (Profile("Eve", 2, {"a", "b", "c"}), Profile("Dan")):
            await lens.save(part)
            assert await lens.load() == part
        assert await ref.at("u1").at("name").load() == "Dan"
        assert await ref.at("u1.visits").update(add) == 1
        assert (await ref.load())["u2"] == Profile("Bob")

    async def test_two_lenses_on_different_parts_never_undo_each_other(self, world: World) -> None:
        ref = await world.spawn()
        await ref.save({"x": 0, "y": 0})
        x, y = ref.at("x"), ref.at("y")

        async def write(lens: dgents.Lens[int]) -> None:
            for _ in range(3):
                await lens.save(await lens.load() + 1)

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(write, x)
            tasks.start_soon(write, y)
        assert await ref.load() == {"x": 3, "y": 3}

    async def test_a_part_that_changed_since_it_was_loaded_is_not_overwritten(self, world: World) -> None:
        ref = await world.spawn()
        await ref.save({"x": 0})
        lens = ref.at("x")
        await lens.load()
        async with calls() as run:
            await run(lens.update, add).result()
        with pytest.raises(dgents.StaleStateError, match="'x'"):
            await lens.save(100)
        assert await lens.update(add_slowly) == 2

    async def test_a_missing_part_is_named(self, world: World) -> None:
        ref = await world.spawn()
        await ref.save({"users": {}})
        with pytest.raises(dgents.StateNotFoundError, match=r"users\.u1"):
            await ref.at("users.u1.name").load()
        assert await ref.at("users.u1").load(default=7) == 7

    async def test_an_error_in_an_update_of_a_part_changes_nothing(self, world: World) -> None:
        ref = await world.spawn()
        await ref.save({"x": [1]})
        with pytest.raises(ZeroDivisionError):
            await ref.at("x").update(lambda items: items.append(1 // 0))
        with pytest.raises(dgents.StateSerializationError):
            await ref.at("x").save(open)
        assert await ref.load() == {"x": [1]}


class TestPatch:
    async def test_a_patch_sets_fields_and_leaves_the_others(self, world: World) -> None:
        ref = await world.spawn()
        await ref.save({"a": {"b": 1, "c": 2}, "d": [1, 2]})
        assert await ref.patch({"a.b": 10, "d.1": "two", "new": {3}}) == 2
        assert await ref.load() == {"a": {"b": 10, "c": 2}, "d": [1, "two"], "new": {3}}

    async def test_a_patch_is_all_or_nothing(self, world: World) -> None:
        ref = await world.spawn()
        await ref.save({"a": 1})
        with pytest.raises(dgents.StateNotFoundError, match="'b'"):
            await ref.patch({"a": 2, "b.c.d": 1})
        assert await ref.load() == {"a": 1}
        assert (await ref.snapshot()).version == 1

    @pytest.mark.needs("history")
    async def test_many_patches_and_a_typed_state(self, world: World) -> None:
        ref = await world.spawn(schema=Profile)
        await ref.save(Profile("Ada"))
        for number in range(5):
            await ref.patch({"visits": number, "tags": {str(number)}})
        assert await ref.load() == Profile("Ada", 4, {"4"})
        assert await ref.history(2) == [Profile("Ada", 3, {"3"}), Profile("Ada", 4, {"4"})]
        assert (await ref.load(version=3)).visits == 1

    async def test_a_patch_that_does_not_fit_the_schema_is_refused(self, world: World) -> None:
        ref = await world.spawn(schema=Profile)
        await ref.save(Profile("Ada"))
        for changes in ({"visits": "many"}, {"nothing": 1}):
            with pytest.raises(dgents.StateError):
                await ref.patch(changes)
        assert await ref.load() == Profile("Ada")

    async def test_the_patch_that_makes_a_state_too_large_is_refused(
        self, world: World, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setitem(Codec.__init__.__kwdefaults__, "max_bytes", 2**16)
        ref = await world.spawn()
        await ref.save({})
        for number in range(7):
            await ref.patch({str(number): b"x" * 9000})
        with pytest.raises(dgents.StateTooLargeError, match="'a'") as caught:
            await ref.patch({"0": b"", "7": b"x" * 9000, "8": b"x" * 9000})
        assert caught.value.outcome == "rolled_back"
        assert (await ref.snapshot()).version == 8
        assert set(await ref.load()) == set("0123456")
        assert await ref.patch({"0": b"", "7": b"x" * 9000}) == 9

    @pytest.mark.parametrize("wrap", [list, tuple])
    async def test_the_patch_that_nests_a_state_too_deeply_is_refused(self, world: World, wrap: type) -> None:
        def nested(levels: int, within: Any) -> Any:
            for _ in range(levels):
                within = wrap([within])
            return within

        room = 255 if wrap is list else 100
        ref = await world.spawn()
        await ref.save({"a": nested(60, {})})
        path = ".".join(["a", *["0"] * 60, "x"])
        with pytest.raises(dgents.StateSerializationError, match=r"nested|inside one another"):
            await ref.patch({path: nested(room - 59, 1)})
        assert await ref.load() == {"a": nested(60, {})}
        with pytest.raises(dgents.StateSerializationError, match=r"nested|inside one another"):
            await ref.at(path).save(nested(room - 59, 1))
        assert await ref.patch({path: nested(room - 61, 1)}) == 2

    async def test_a_patch_after_which_the_state_is_none_of_its_schema_is_refused(self, world: World) -> None:
        ref = await world.spawn(schema=Span)
        await ref.save(Span(2, 5, {1: "one"}))
        for change in ({"first": 9}, {"names.2": "two"}):
            with pytest.raises(dgents.StateSerializationError, match="'a'"):
                await ref.patch(change)
        assert await ref.patch({"first": 4, "names.1": "uno"}) == 2
        assert await ref.load() == Span(4, 5, {1: "uno"})

    async def test_a_patch_may_change_a_part_twice(self, world: World) -> None:
        ref = await world.spawn()
        await ref.save({"a": {"b": 1}})
        await ref.patch({"a.b": 2, "a": 3, "new": {}, "new.x": 4})
        assert await ref.load() == {"a": 3, "new": {"x": 4}}

    async def test_a_patch_of_nothing_is_refused(self, world: World) -> None:
        ref = await world.spawn()
        with pytest.raises(dgents.StateNotFoundError):
            await ref.patch({"a": 1})

    @pytest.mark.needs("history")
    async def test_patches_mix_with_saves_and_updates(self, world: World) -> None:
        ref = await world.spawn()
        await ref.save({"n": 0})
        await ref.patch({"n": 1})
        await ref.update(lambda state: {"n": state["n"] + 1, "m": 0})
        await ref.patch({"m": 5})
        await ref.save({**await ref.load(), "k": 1})
        assert await ref.history() == [
            {"n": 0},
            {"n": 1},
            {"n": 2, "m": 0},
            {"n": 2, "m": 5},
            {"n": 2, "m": 5, "k": 1},
        ]


class TestSymbiont:
    async def test_logic_and_memory_are_one_turn(self, world: World) -> None:
        ref = await world.spawn()
        count: dgents.Symbiont[str, int, list[str]] = dgents.Symbiont(
            lambda text, seen: (len(seen), [*seen, text]), ref, default=[]
        )
        outputs: list[int] = []

        async def say(text: str) -> None:
            outputs.append(await count(text))

        async with anyio.create_task_group() as tasks:
            for text in "xyz":
                tasks.start_soon(say, text)
        assert sorted(outputs) == [0, 1, 2]
        assert sorted(await ref.load()) == ["x", "y", "z"]

    async def test_async_logic_that_fails_changes_nothing(self, world: World) -> None:
        ref = await world.spawn(schema=Profile)
        await ref.save(Profile("Ada"))

        async def logic(visits: int, profile: Profile) -> tuple[str, Profile]:
            await anyio.lowlevel.checkpoint()
            if visits < 0:
                raise ValueError("negative")
            return profile.name, replace(profile, visits=visits)

        symbiont = dgents.Symbiont(logic, ref)
        assert await symbiont(3) == "Ada"
        with pytest.raises(ValueError, match="negative"):
            await symbiont(-1)
        assert (await ref.load()).visits == 3
