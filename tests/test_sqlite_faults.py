"""What the SQLite backend survives, and how it says so."""

from __future__ import annotations

import os
import sqlite3
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from functools import partial
from pathlib import Path

import aiosqlite
import anyio
import msgspec
import pytest

from dgents.backends.sqlite import SqliteBackend
from dgents.backends.sqlite_inspect import SqliteInspector
from dgents.backends.sqlite_tables import FORMAT, states_table
from dgents.runtime.contract import Request
from dgents.runtime.errors import (
    StateCorruptionError,
    StorageError,
)
from tests.resources import FakeResources, fake_resources
from tests.sqlite_kit import change, content, exists, make, save, state, write_file

pytestmark = pytest.mark.anyio


@pytest.fixture
async def resources(anyio_backend: str) -> AsyncIterator[FakeResources]:
    async with fake_resources() as resources:
        yield resources


@pytest.fixture
def path(tmp_path: Path) -> str:
    return str(tmp_path / "state.db")


async def test_another_programs_transaction_is_waited_for(path, resources):
    backend = make(path, resources)
    await backend.open()
    other = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
    other.execute("BEGIN EXCLUSIVE")
    answers = []

    async def write() -> None:
        answers.append(await save(backend, 0, "waited"))

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(write)
        await anyio.sleep(0.1)  # the fault itself: a lock that is held for so long
        assert answers == []
        other.execute("COMMIT")
    assert answers == [None]
    other.close()
    await backend.close()


async def test_a_database_that_stays_locked_is_a_retryable_error_in_time(path, resources):
    backend = SqliteBackend(path, states_table("states"), "k", resources, busy_timeout=0.1)
    await backend.open()
    other = sqlite3.connect(path, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    with pytest.raises(StorageError, match="locked by another connection") as caught:
        await save(backend, 0, "late")
    assert caught.value.retryable
    other.execute("ROLLBACK")
    other.close()
    assert await save(backend, 0, "in time") is None
    await backend.close()


async def test_a_full_disk_is_an_error_that_changes_nothing_and_passes(path, resources):
    script = """
import anyio, resource, sys, tests.sqlite_kit as t
from dgents.runtime.errors import StorageError
from tests.resources import fake_resources
async def main():
    async with fake_resources() as resources:
        backend = t.make(sys.argv[1], resources)
        opened = await backend.open()
        await t.save(backend, 0, "old", epoch=opened.epoch)
        resource.setrlimit(resource.RLIMIT_FSIZE, (500_000, -1))
        try:
            await t.save(backend, 1, "x" * 1_000_000, epoch=opened.epoch)
        except StorageError as error:
            print(error.retryable, end=" ")
        await backend.close()
        opened = await backend.open()
        print(t.state(opened.record), await t.save(backend, 1, "new", epoch=opened.epoch), end=" ")
        print(t.state(await backend.read()))
        await backend.close()
anyio.run(main)
"""
    arguments = [sys.executable, "-c", script, path]
    done = await anyio.run_process(arguments, stderr=subprocess.STDOUT)
    assert done.stdout.decode() == "True old None new\n"


async def test_a_flipped_bit_in_a_state_is_found_and_named(path, resources):
    backend = make(path, resources)
    await backend.open()
    await save(backend, 0, "aaaa", "bbbb", "cccc")
    change(path, "UPDATE states SET state = ? WHERE version = 2", msgspec.msgpack.encode("bbbc"))
    assert state(await backend.read()) == "cccc"
    with pytest.raises(StateCorruptionError, match=r"'k'.*version 2 fails its checksum") as caught:
        await backend.history()
    assert caught.value.path == path
    assert await save(backend, 3, "dddd") is None
    await backend.close()
    with SqliteInspector(path) as database:
        assert [str(error) for error in database.verify()] == [str(caught.value)]


async def test_bits_flipped_in_the_file_never_give_a_wrong_state(path, resources, tmp_path):
    backend = make(path, resources)
    await backend.open()
    states = [{"text": "the quick brown fox", "n": n} for n in range(30)]
    await save(backend, 0, *states)
    await backend.close()
    image = content(path)
    for number, offset in enumerate(range(101, len(image), 509)):
        damaged = str(tmp_path / f"{number}.db")
        write_file(damaged, image[:offset] + bytes([image[offset] ^ 16]) + image[offset + 1 :])
        other = make(damaged, resources)
        try:
            await other.open()
            assert [state(record) for record in await other.history()] == states
        except (StateCorruptionError, StorageError):
            pass
        await other.close()


@pytest.mark.parametrize("lost", ["version = 2", "version = 3", "version = 1"])
async def test_a_missing_version_is_found(path, resources, lost):
    backend = make(path, resources)
    await backend.open()
    await save(backend, 0, "a", "b", "c")
    change(path, f"DELETE FROM states WHERE {lost}")
    with pytest.raises(StateCorruptionError, match=r"version . is missing"):
        await backend.history()
    await backend.close()


@pytest.mark.parametrize(
    "damage",
    [
        "DELETE FROM states_heads",
        "UPDATE states_heads SET version = 1",
        "DELETE FROM states WHERE version = 2",
    ],
)
async def test_a_state_whose_head_and_rows_disagree_is_not_opened_and_left_as_it_is(path, resources, damage):
    backend = make(path, resources)
    await backend.open()
    await save(backend, 0, "a", "b")
    await backend.close()
    change(path, damage)
    with pytest.raises(StateCorruptionError):
        await backend.open()
    assert resources.in_use() == 0


@pytest.mark.parametrize(
    "damage",
    ["DELETE FROM states_requests WHERE id = 'r2'", "UPDATE states_requests SET id = 'r3' WHERE id = 'r2'"],
)
async def test_a_lost_or_changed_request_is_found(path, resources, damage):
    backend = make(path, resources)
    await backend.open()
    await save(backend, 0, "a", requests=(Request("r1", 1), Request("r2", 1)))
    change(path, damage)
    with pytest.raises(StateCorruptionError, match="request"):
        await backend.requests()
    await backend.close()


async def test_a_file_that_is_no_database_is_refused_and_untouched(path, resources):
    write_file(path, b"this is a letter, not a database\n" * 100)
    with pytest.raises(StateCorruptionError, match="not a database"):
        await make(path, resources).open()
    assert content(path) == b"this is a letter, not a database\n" * 100


async def test_a_database_that_is_refused_leaves_no_thread_that_answers_a_loop_that_has_ended(
    path, resources, monkeypatch
):
    write_file(path, b"this is a letter, not a database\n" * 100)
    stop = aiosqlite.Connection.stop
    threads = []

    def stop_slowly(connection):
        threads.append(connection._thread)
        connection._tx.put_nowait((None, partial(time.sleep, 0.2)))
        return stop(connection)

    monkeypatch.setattr(aiosqlite.Connection, "stop", stop_slowly)
    with pytest.raises(StateCorruptionError):
        await make(path, resources).open()
    assert threads
    assert not any(thread.is_alive() for thread in threads)


@pytest.mark.parametrize("name", ["states", "states_heads", "STATES", "states_current"])
async def test_a_foreign_table_of_the_same_name_is_refused_and_the_file_untouched(path, resources, name):
    change(path, f"CREATE TABLE {name} (mine TEXT)")
    before = content(path)
    with pytest.raises(StorageError, match="did not make"):
        await make(path, resources).open()
    assert content(path) == before


async def test_tables_of_a_newer_format_are_refused_with_both_versions(path, resources):
    backend = make(path, resources)
    await backend.open()
    await backend.close()
    change(path, "UPDATE dgents_tables SET format = 7")
    with pytest.raises(StorageError, match=f"format 7, this release reads up to {FORMAT}"):
        await backend.open()


async def test_a_database_that_was_removed_while_open_is_an_error_and_not_made_anew(path, resources):
    backend = make(path, resources)
    await backend.open()
    await save(backend, 0, "a")
    os.rename(path, path + ".away")
    with pytest.raises(StorageError, match="removed or replaced"):
        await save(backend, 1, "b")
    with pytest.raises(StorageError):
        await save(backend, 1, "b")
    assert not exists(path)
    await backend.close()


async def test_a_path_that_cant_be_a_database_is_a_typed_error(resources, tmp_path):
    (tmp_path / "file").write_bytes(b"")
    (tmp_path / "link").symlink_to(tmp_path / "elsewhere.db")
    for name in (".", "file/state.db", "x" * 300, "link"):
        with pytest.raises(StorageError) as caught:
            await make(str(tmp_path / name), resources).open()
        assert not caught.value.retryable
    assert not (tmp_path / "elsewhere.db").exists()


async def test_only_this_user_may_read_the_files(path, resources):
    backend = make(path, resources)
    await backend.open()
    await save(backend, 0, "secret")
    for name in (path, path + "-wal", path + "-shm"):
        assert os.stat(name).st_mode & 0o077 == 0
    assert os.stat(path + ".owners").st_mode & 0o077 == 0
    await backend.close()


async def test_nobody_but_sqlite_opens_the_databases_files(path, resources):
    opened: list[str] = []
    watching = [True]

    def hook(event: str, arguments: tuple[object, ...]) -> None:
        if watching and event == "open" and str(arguments[0]) in (path, path + "-wal", path + "-shm"):
            opened.append(str(arguments[0]))

    sys.addaudithook(hook)
    backend = make(path, resources)
    await backend.open()
    await save(backend, 0, "a")
    await backend.history()
    await backend.close()
    watching.clear()
    assert opened == []


async def test_a_child_of_a_fork_is_refused(path, resources):
    backend = make(path, resources)
    await backend.open()
    backend.store.database._process += 1
    with pytest.raises(StorageError, match="after a fork"):
        await save(backend, 0, "a")
    backend.store.database._process -= 1
    await backend.close()
