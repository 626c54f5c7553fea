"""Who may write a state in SQLite: one owner, or many by compare-and-set."""

from __future__ import annotations

import os
import random
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from dgents.runtime.contract import Record, Write
from dgents.runtime.errors import (
    OwnershipLostError,
    StateLockedError,
    VersionConflictError,
)
from tests.resources import FakeResources, fake_resources
from tests.sqlite_kit import change, child, exists, make, save, state

pytestmark = pytest.mark.anyio


@pytest.fixture
async def resources(anyio_backend: str) -> AsyncIterator[FakeResources]:
    async with fake_resources() as resources:
        yield resources


@pytest.fixture
def path(tmp_path: Path) -> str:
    return str(tmp_path / "state.db")


async def test_a_second_process_is_refused_at_once_and_told_who_owns_the_state(path, resources):
    backend = make(path, resources)
    await backend.open()
    with child("own", path) as process:
        assert process.stdout.readline().split() == ["locked", str(os.getpid())]
    other = make(path, resources, "other")
    await other.open()
    await other.close()
    await backend.close()


async def test_a_state_that_was_given_back_can_be_owned_by_another_process(path, resources):
    backend, other = make(path, resources), make(path, resources, "other")
    await other.open()
    await backend.open()
    await backend.close()
    with child("own", path) as process:
        assert process.stdout.readline().split() == ["ready", "2"]
        with pytest.raises(StateLockedError) as caught:
            await backend.open()
        assert caught.value.pid == process.pid
        assert backend.store is None
    await other.close()


async def test_a_killed_owner_frees_its_state_at_once_and_leaves_no_lock_file(path, resources):
    with child("own", path, 5) as process:
        process.stdout.readline()
        process.kill()
        process.wait()
        backend = make(path, resources)
        opened = await backend.open()
        assert (opened.epoch, opened.record.version) == (2, 5)
        assert len(os.listdir(path + ".owners")) == 1
        await backend.close()
    assert not exists(path + ".owners")


async def test_two_actors_of_one_runtime_cant_own_the_same_state(path, resources):
    first, second = make(path, resources), make(path, resources)
    await first.open()
    with pytest.raises(StateLockedError):
        await second.open()
    assert await save(first, 0, "kept") is None
    await first.close()
    assert (await second.open()).epoch == 2
    await second.close()


async def test_two_runtimes_of_one_process_cant_own_the_same_state(path, resources):
    backend = make(path, resources)
    await backend.open()
    async with fake_resources() as others:
        with pytest.raises(StateLockedError):
            await make(path, others).open()
    await backend.close()


async def test_an_owner_that_was_replaced_writes_nothing(path, resources):
    backend = make(path, resources)
    await backend.open()
    await save(backend, 0, "mine")
    change(path, "UPDATE states_heads SET epoch = epoch + 1")
    refusal = await save(backend, 1, "stale")
    assert isinstance(refusal, OwnershipLostError)
    assert state(await backend.read()) == "mine"
    await backend.close()


async def test_a_shared_writer_is_refused_while_the_owner_lives_and_the_owner_goes_on(path, resources):
    owner, writer = make(path, resources), make(path, resources, ownership="shared")
    await owner.open()
    await writer.open()
    for version in range(2):
        assert isinstance(await save(writer, version, "shared"), StateLockedError)
        assert await save(owner, version, "owned") is None
    assert state(await writer.read()) == "owned"
    await owner.close()
    assert await save(writer, 2, "shared") is None
    await writer.close()


async def test_a_shared_writer_is_told_which_process_or_actor_owns_the_state_and_takes_over_from_the_dead(
    path, resources
):
    writer = make(path, resources, ownership="shared")
    await writer.open()
    async with fake_resources() as others:
        owner = make(path, others)
        await owner.open()
        with pytest.raises(StateLockedError, match="the actor 'k' of this process"):
            raise await save(writer, 0, "shared")
        await owner.close()
    with child("own", path, 5) as process:
        process.stdout.readline()
        refusal = await save(writer, 5, "shared")
        assert isinstance(refusal, StateLockedError)
        assert refusal.pid == process.pid
        process.kill()
        process.wait()
        assert await save(writer, 5, "shared") is None
    await writer.close()


async def test_a_shared_write_that_names_another_version_is_a_conflict(path, resources):
    first, second = (make(path, resources, ownership="shared") for _ in range(2))
    await first.open()
    await second.open()
    assert await save(first, 0, "a") is None
    conflict = await save(second, 0, "b")
    assert isinstance(conflict, VersionConflictError)
    assert (conflict.expected, conflict.actual) == (0, 1)
    assert state(await second.read()) == "a"
    await first.close()
    await second.close()


async def test_a_failed_write_is_found_out_to_be_stored_or_not(path, resources):
    backend = make(path, resources, ownership="shared", max_history=2)
    await backend.open()
    record = Record(1, 1, 1.5, b"\x01")
    write = Write(backend, 0, [record], [])
    assert await backend.committed(write) is False
    await backend.store.commit([write])
    assert await backend.committed(write) is True
    assert await backend.committed(Write(backend, 0, [Record(1, 1, 1.6, b"\x01")], [])) is False
    await save(backend, 1, "b", "c")
    assert await backend.committed(write) is None
    await backend.close()


async def test_processes_that_share_a_counter_lose_no_update_and_never_find_it_locked(path, resources):
    with child("add", path, 25) as a, child("add", path, 25) as b, child("add", path, 25) as c:
        for process in (a, b, c):
            assert process.stdout.readline().startswith("added")
    backend = make(path, resources, ownership="shared")
    opened = await backend.open()
    assert (opened.record.data, opened.record.version) == (b"75", 75)
    await backend.close()


@pytest.mark.parametrize("rounds", [4, pytest.param(100, marks=pytest.mark.torture)])
async def test_what_a_killed_process_was_told_is_stored_is_there(path, resources, rounds):
    seed = int(os.environ.get("DGENTS_SEED", "0")) or random.randrange(1, 2**32)
    print("DGENTS_SEED", seed)
    chance = random.Random(seed)
    backend = make(path, resources, max_history=5)
    for _ in range(rounds):
        with child("count", path) as process:
            for _ in range(chance.randrange(1, 40)):
                acknowledged = int(process.stdout.readline())
            process.kill()
            rest = process.stdout.read().split()
        acknowledged = int(rest[-1]) if rest else acknowledged
        record = (await backend.open()).record
        assert record.version in (acknowledged, acknowledged + 1)
        assert record.data == str(record.version).encode()
        assert len(await backend.history()) == min(record.version, 5)
        await backend.close()
