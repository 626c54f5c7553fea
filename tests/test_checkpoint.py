"""Checkpoints: one cut of several actors, restored or brought up beside them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import anyio
import pytest

import dgents
from dgents.runtime.checkpoint import dump, take_cut
from dgents.runtime.saved_message import save_message
from dgents.supervisors.checkpoints import _describe

pytestmark = pytest.mark.anyio


@dataclass
class Account:
    owner: str
    cents: int


async def test_a_checkpoint_is_restored_with_its_states(tmp_path: Path) -> None:
    async with dgents.Runtime() as rt:
        plain = await rt.spawn("plain", dgents.VolatileAgent())
        typed = await rt.spawn("typed", dgents.SQLAgent(str(tmp_path / "a.db"), schema=Account))
        await plain.save({"n": (1, 2)})
        await typed.save(Account("ada", 5))
        await rt.checkpoint(tmp_path / "cut", [plain, typed])
        await typed.save(Account("ada", 99))
    async with dgents.Runtime.restore(tmp_path / "cut") as rt:
        assert await rt.get("plain").load() == {"n": (1, 2)}
        assert await rt.get("typed").load() == Account("ada", 5)


async def test_queued_tells_are_part_of_the_cut(tmp_path: Path) -> None:
    async with dgents.Runtime() as rt:
        ref = await rt.spawn("a", dgents.VolatileAgent({"n": 0}))
        go_on = anyio.Event()

        async def slow(state: dict[str, int]) -> dict[str, int]:
            await go_on.wait()
            return state

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(ref.update, slow)
            await anyio.wait_all_tasks_blocked()
            tasks.start_soon(rt.checkpoint, tmp_path / "cut", [ref])
            await anyio.wait_all_tasks_blocked()
            ref.tell(dgents.Patch({"n": 7}))
            go_on.set()
        assert await ref.load() == {"n": 7}
    async with dgents.Runtime.restore(tmp_path / "cut") as rt:
        assert await rt.get("a").load() == {"n": 7}


async def cut_with_told(path: Path, folder: Path, *messages: tuple[str, dgents.Message[object]]) -> None:
    """Write a checkpoint of two states in a database, with messages in their mailboxes."""
    async with dgents.Runtime() as rt:
        refs = {name: await rt.spawn(name, dgents.SQLAgent(str(folder / "s.db"), schema=int)) for name in "ab"}
        for ref in refs.values():
            await ref.save(0)
        taken = await take_cut([*refs.values()])
        for actor in taken.actors:
            cell = refs[actor.name]._cell
            actor.messages = [save_message(cell, message) for name, message in messages if name == actor.name]
            actor.agent = _describe(cell.agent, actor)
        await anyio.Path(path).write_bytes(dump(taken))
        for ref in refs.values():
            await ref.save(5)


async def test_what_lay_in_a_mailbox_is_queued_again_also_where_mailboxes_are_smaller(tmp_path: Path) -> None:
    told = [("a", dgents.Save(n)) for n in range(1, 31)]
    await cut_with_told(tmp_path / "cut", tmp_path, *told)
    async with dgents.Runtime.restore(tmp_path / "cut", mailbox_size=2) as rt:
        assert (await rt.get("a").load(), await rt.get("b").load()) == (30, 0)


@dgents.remindable
def double(n: int) -> int:
    return 2 * n


async def test_a_message_that_can_not_be_read_changes_no_store_and_leaves_no_actor(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    await cut_with_told(tmp_path / "cut", tmp_path, ("a", dgents.Save(7)), ("b", dgents.Update(double)))
    monkeypatch.setattr("dgents.runtime.saved_message._functions", {})  # as in a program that has not declared it
    async with dgents.Runtime() as rt:
        with pytest.raises(dgents.StateSerializationError, match="double"):
            await rt.fork(tmp_path / "cut")
        assert rt.names() == []
        refs = [await rt.spawn(name, dgents.SQLAgent(str(tmp_path / "s.db"), schema=int)) for name in "ab"]
        assert [await ref.load() for ref in refs] == [5, 5]


async def test_a_fork_whose_name_is_taken_leaves_no_actor_behind(tmp_path: Path) -> None:
    await cut_with_told(tmp_path / "cut", tmp_path)
    async with dgents.Runtime() as rt:
        await rt.spawn("new/b", dgents.VolatileAgent(0))
        with pytest.raises(dgents.NameTakenError):
            await rt.fork(tmp_path / "cut", rename=lambda name: f"new/{name}")
        assert rt.names() == ["new/b"]


async def test_a_fork_lives_beside_the_originals(tmp_path: Path) -> None:
    async with dgents.Runtime() as rt:
        ref = await rt.spawn("a", dgents.VolatileAgent(1))
        await rt.checkpoint(tmp_path / "cut")
        await rt.fork(tmp_path / "cut", rename=lambda name: name + "/fork")
        await rt.get("a/fork").save(2)
        assert (await ref.load(), await rt.get("a/fork").load()) == (1, 2)


async def test_transfers_between_actors_are_whole_in_every_cut(tmp_path: Path) -> None:
    async with dgents.Runtime() as rt:
        ours = await rt.spawn("ours", dgents.VolatileAgent(100))
        theirs = await rt.spawn("theirs", dgents.VolatileAgent(100))

        async def transfer() -> None:
            async with ours.transaction() as mine, theirs.transaction() as other:
                mine.state -= 1
                await anyio.lowlevel.checkpoint()
                other.state += 1

        async with anyio.create_task_group() as tasks:
            for _ in range(20):
                tasks.start_soon(transfer)
            tasks.start_soon(rt.checkpoint, tmp_path / "cut", [theirs, ours])
    async with dgents.Runtime.restore(tmp_path / "cut") as rt:
        assert await rt.get("ours").load() + await rt.get("theirs").load() == 200


async def test_a_queued_function_is_refused_by_name(tmp_path: Path) -> None:
    async with dgents.Runtime() as rt:
        ref = await rt.spawn("a", dgents.VolatileAgent(0))
        async with ref.transaction(), anyio.create_task_group() as tasks:

            async def refused() -> None:
                with pytest.raises(dgents.StateSerializationError, match="this Update"):
                    await rt.checkpoint(tmp_path / "cut", [ref])

            # The checkpoint waits for this transaction; what is told after it lies in the mailbox at the cut.
            tasks.start_soon(wait_then_tell, ref)
            rt.loop.start(run_outside, refused, done := anyio.Event())
        await done.wait()


async def wait_then_tell(ref: dgents.Ref[int]) -> None:
    await anyio.wait_all_tasks_blocked()
    ref.tell(dgents.Update(lambda n: n + 1))


async def run_outside(fn: object, done: anyio.Event) -> None:
    await fn()  # type: ignore[operator]
    done.set()


async def test_a_damaged_checkpoint_is_refused(tmp_path: Path) -> None:
    async with dgents.Runtime() as rt:
        await rt.spawn("a", dgents.VolatileAgent(1))
        await rt.checkpoint(tmp_path / "cut")
    content = bytearray((tmp_path / "cut").read_bytes())
    content[-1] ^= 1
    (tmp_path / "cut").write_bytes(content)
    with pytest.raises(dgents.StateCorruptionError, match="digest"):
        async with dgents.Runtime.restore(tmp_path / "cut"):
            pass


async def test_an_agent_that_the_file_cannot_tell_is_asked_for(tmp_path: Path) -> None:
    cached = dgents.CachedAgent(dgents.VolatileAgent(), dgents.SQLAgent(str(tmp_path / "a.db")))
    async with dgents.Runtime() as rt:
        await (await rt.spawn("a", cached)).save(1)
        await rt.checkpoint(tmp_path / "cut")
    with pytest.raises(dgents.StateSerializationError, match="agents="):
        async with dgents.Runtime.restore(tmp_path / "cut"):
            pass
    async with dgents.Runtime.restore(tmp_path / "cut", agents={"a": cached}) as rt:
        assert await rt.get("a").load() == 1
