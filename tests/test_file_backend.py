"""The backend of PersistentAgent, by itself: what the contract promises, and what happens to files."""

from __future__ import annotations

import json
import os
import pickle
import sys
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
import pytest

from dgents.backends import file_commit, file_upkeep, files
from dgents.backends.file import FileBackend, PersistentAgent
from dgents.backends.file_inspect import read_states
from dgents.runtime.contract import Opened, Record, Request, Write
from dgents.runtime.errors import (
    DgentError,
    OwnershipLostError,
    StateCorruptionError,
    StateLockedError,
    StorageError,
    VersionConflictError,
)
from tests.file_states import CODEC, Owner, delta_of, live, record_of, state_of
from tests.file_states import settings as settings_of
from tests.resources import fake_resources

pytestmark = pytest.mark.anyio
SHAPES: list[dict[str, Any]] = [
    {},
    {"compression": "gzip"},
    {"compression": "zstd"},
    {"format": "msgpack"},
    {"format": "msgpack", "compression": "zstd"},
    {"durability": "os"},
]
each_shape = pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: "-".join(shape.values()) or "json")


@asynccontextmanager
async def opened(agent: PersistentAgent[Any], name: str = "a") -> AsyncIterator[tuple[FileBackend, Opened]]:
    async with fake_resources() as resources:
        backend = agent.backend(name, resources)
        try:
            yield backend, await backend.open()
        finally:
            await backend.close()


async def commit(backend: FileBackend, base: int, *records: Record, requests: tuple[Request, ...] = ()) -> Any:
    assert backend.store is not None
    (answer,) = await backend.store.commit([Write(backend, base, list(records), list(requests))])
    return answer


async def save(backend: FileBackend, *versions: int, epoch: int = 1, pad: int = 0) -> None:
    records = [record_of(version, epoch, pad) for version in versions]
    assert await commit(backend, versions[0] - 1, *records) is None


async def versions(backend: FileBackend, limit: int | None = None) -> list[int]:
    records = await backend.history(limit)
    assert all(CODEC.decode(record.data or b"")["version"] == record.version for record in records)
    return [record.version for record in records]


def size_of(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.iterdir())


@each_shape
async def test_what_was_saved_is_there_after_reopening(shape: dict[str, Any], tmp_path: Path) -> None:
    agent: PersistentAgent[Any] = PersistentAgent(tmp_path / "new" / "s", **shape)
    async with opened(agent) as (backend, found):
        assert found == Opened(None, 1)
        await save(backend, 1, 2)
        await save(backend, 3)
    async with opened(agent) as (backend, found):
        assert found == Opened(record_of(3, 1), 2)
        assert await backend.read() == record_of(3, 1)
        assert await versions(backend) == [1, 2, 3]


@each_shape
@pytest.mark.parametrize("pad", [0, 5000])
async def test_the_history_is_bounded_and_without_gaps(shape: dict[str, Any], pad: int, tmp_path: Path) -> None:
    agent: PersistentAgent[Any] = PersistentAgent(tmp_path / "s", max_history=4, **shape)
    version = 0
    for _ in range(2):
        async with opened(agent) as (backend, found):
            for size in (1, 2, 7, 1, 1, 3):
                await save(backend, *range(version + 1, version + size + 1), epoch=found.epoch, pad=pad)
                version += size
                assert await versions(backend) == list(range(max(1, version - 3), version + 1))
            assert await versions(backend, 2) == [version - 1, version]
    assert size_of(tmp_path) < 20 * (pad + 300)


@each_shape
async def test_without_a_history_only_the_current_version_is_kept(shape: dict[str, Any], tmp_path: Path) -> None:
    async with opened(PersistentAgent(tmp_path / "s", max_history=0, **shape)) as (backend, _):
        for version in range(1, 6):
            await save(backend, version)
        assert await versions(backend) == [5]


@each_shape
async def test_a_deletion_is_a_version_without_a_state(shape: dict[str, Any], tmp_path: Path) -> None:
    agent: PersistentAgent[Any] = PersistentAgent(tmp_path / "s", **shape)
    async with opened(agent) as (backend, _):
        await save(backend, 1)
        assert await commit(backend, 1, Record(2, 1, 5.0, None)) is None
        await save(backend, 3)
        assert await commit(backend, 3, Record(4, 1, 5.0, None)) is None
    async with opened(agent) as (backend, found):
        assert found.record == Record(4, 1, 5.0, None)
        assert [record.data is None for record in await backend.history()] == [False, True, False, True]


@each_shape
async def test_requests_are_remembered_the_last_thousand_of_them(shape: dict[str, Any], tmp_path: Path) -> None:
    agent: PersistentAgent[Any] = PersistentAgent(tmp_path / "s", **shape)
    asked = [Request(f"id {number}", 1 + number // 600, b"\xff" if number % 2 else None) for number in range(1200)]
    async with opened(agent) as (backend, _):
        await commit(backend, 0, record_of(1, 1), requests=tuple(asked[:600]))
        await commit(backend, 1, record_of(2, 1), requests=tuple(asked[600:]))
        await save(backend, 3)
        assert await backend.requests() == asked[200:]
    async with opened(agent) as (backend, _):
        assert await backend.requests() == asked[200:]


async def test_a_patch_is_appended_and_the_file_of_the_state_is_left_alone(tmp_path: Path) -> None:
    agent: PersistentAgent[Any] = PersistentAgent(tmp_path / "s", format="msgpack")
    async with opened(agent) as (backend, _):
        assert backend.deltas
        await save(backend, 1, pad=1_000_000)
        await save(backend, 2, pad=1_000_000)
        before = (tmp_path / "s").stat(), (tmp_path / "s.history").stat().st_size
        for version in range(3, 8):
            assert await commit(backend, version - 1, delta_of(version, 1)) is None
        assert (tmp_path / "s").stat() == before[0]
        assert (tmp_path / "s.history").stat().st_size < before[1] + 1000
    async with opened(agent) as (backend, found):
        assert found.record is not None
        assert CODEC.decode(found.record.data or b"") == state_of(7, 1_000_000)
        assert await versions(backend) == [1, 2, 3, 4, 5, 6, 7]


@pytest.mark.parametrize("max_history", [0, 3, 500])
async def test_after_a_hundred_patches_the_file_of_the_state_is_written_anew(max_history: int, tmp_path: Path) -> None:
    agent: PersistentAgent[Any] = PersistentAgent(tmp_path / "s", format="msgpack", max_history=max_history)
    async with opened(agent) as (backend, _):
        await save(backend, 1, 2)
        for version in range(3, 260):
            assert await commit(backend, version - 1, delta_of(version, 1)) is None
    async with opened(agent) as (backend, found):
        assert found.record is not None
        assert CODEC.decode(found.record.data or b"") == state_of(259)
        assert len(await versions(backend)) == max(1, min(max_history, 259))
        place = backend.state._place
        assert place is not None
        assert place.tail_count <= file_upkeep.TAIL_COUNT


async def test_a_batch_may_mix_states_and_patches(tmp_path: Path) -> None:
    agent: PersistentAgent[Any] = PersistentAgent(tmp_path / "s", format="msgpack", max_history=2)
    async with opened(agent) as (backend, _):
        await commit(backend, 0, record_of(1, 1), delta_of(2, 1))
        await commit(backend, 2, delta_of(3, 1), record_of(4, 1), delta_of(5, 1), delta_of(6, 1))
        await commit(backend, 6, *[delta_of(version, 1) for version in range(7, 12)])
        assert await versions(backend) == [10, 11]
    async with opened(agent) as (backend, found):
        assert found.record is not None
        assert CODEC.decode(found.record.data or b"") == state_of(11)


@pytest.mark.parametrize("second", SHAPES, ids=str)
@pytest.mark.parametrize("first", SHAPES[:4], ids=str)
async def test_another_format_takes_over_with_the_next_save(
    first: dict[str, Any], second: dict[str, Any], tmp_path: Path
) -> None:
    for pad in (0, 5000):
        path = tmp_path / str(pad) / "s"
        async with opened(PersistentAgent(path, **first)) as (backend, _):
            await save(backend, 1, 2, pad=pad)
            await save(backend, 3, pad=pad)
            await save(backend, 4, pad=pad)
        for version, shape in ((5, second), (6, second), (7, first)):
            async with opened(PersistentAgent(path, **shape)) as (backend, found):
                assert found.record == record_of(version - 1, max(1, version - 4), pad)
                assert await versions(backend) == list(range(1, version))
                await save(backend, version, epoch=found.epoch, pad=pad)
                assert await versions(backend) == list(range(1, version + 1))


async def test_a_history_that_is_given_up_is_removed_and_can_begin_again(tmp_path: Path) -> None:
    for bound, expected in ((9, [1]), (9, [1, 2]), (0, [3]), (9, [3, 4]), (9, [3, 4, 5])):
        async with opened(PersistentAgent(tmp_path / "s", max_history=bound)) as (backend, found):
            await save(backend, expected[-1], epoch=found.epoch, pad=5000)
            assert await versions(backend) == expected
        assert ("s.history" in os.listdir(tmp_path)) == (bound > 0)


async def test_one_description_serves_many_actors_in_a_folder(tmp_path: Path) -> None:
    agent: PersistentAgent[Any] = PersistentAgent(f"{tmp_path}/states/")
    names = ["a", "A", "a/b", "..", "é\ud800", "n" * 4096, "\0"]
    async with fake_resources() as resources:
        backends = [agent.backend(name, resources) for name in names]
        for number, backend in enumerate(backends):
            await backend.open()
            await save(backend, *range(1, number + 2))
        assert len({id(backend.store) for backend in backends}) == 1
        for backend in backends:
            await backend.close()
    found = {key: len(records) for key, records, _ in read_states(tmp_path / "states")}
    assert sorted(found.values()) == list(range(1, len(names) + 1))
    assert found["a/b"] == 3
    assert os.listdir(tmp_path) == ["states"]


async def test_an_existing_folder_is_taken_for_a_folder_of_states(tmp_path: Path) -> None:
    async with opened(PersistentAgent(tmp_path), "me") as (backend, _):
        await save(backend, 1)
    assert (tmp_path / "me.state").exists()


async def test_many_actors_of_a_folder_commit_in_one_call(tmp_path: Path) -> None:
    agent: PersistentAgent[Any] = PersistentAgent(f"{tmp_path}/")
    async with fake_resources() as resources:
        backends = [agent.backend(str(number), resources) for number in range(40)]
        for backend in backends:
            await backend.open()
        for version in range(1, 4):
            writes = [Write(backend, version - 1, [record_of(version, 1)], []) for backend in backends]
            assert backends[0].store is not None
            assert list(await backends[0].store.commit(writes)) == [None] * 40
        for backend in backends:
            assert await versions(backend) == [1, 2, 3]
            await backend.close()


async def test_a_refused_write_does_not_touch_the_others_of_its_batch(tmp_path: Path) -> None:
    agent: PersistentAgent[Any] = PersistentAgent(f"{tmp_path}/")
    async with fake_resources() as resources:
        backends = [agent.backend(name, resources) for name in "abc"]
        for backend in backends:
            await backend.open()
            await save(backend, 1)
        writes = [Write(backend, 1, [record_of(2, 1)], []) for backend in backends]
        writes[0].base = 0
        writes[1].records = [record_of(2, 0)]
        assert backends[0].store is not None
        stale, fenced, fine = await backends[0].store.commit(writes)
        assert isinstance(stale, VersionConflictError)
        assert isinstance(fenced, OwnershipLostError)
        assert fine is None
        assert [await versions(backend) for backend in backends] == [[1], [1], [1, 2]]
        for backend in backends:
            await backend.close()


async def test_files_are_private(tmp_path: Path) -> None:
    async with opened(PersistentAgent(tmp_path / "new" / "s")) as (backend, _):
        await save(backend, 1, pad=5000)
        assert (tmp_path / "new").stat().st_mode & 0o777 == 0o700
        assert {path.stat().st_mode & 0o777 for path in (tmp_path / "new").iterdir()} == {0o600}


async def test_a_second_owner_is_refused_with_the_name_of_the_first(tmp_path: Path) -> None:
    agent: PersistentAgent[Any] = PersistentAgent(tmp_path / "s")
    async with opened(agent), fake_resources() as others:
        second = agent.backend("b", others)
        with pytest.raises(StateLockedError) as caught:
            await second.open()
        assert caught.value.pid == os.getpid()


async def test_another_process_is_refused_and_its_death_frees_the_state(tmp_path: Path) -> None:
    program = (
        "import sys, pathlib; from dgents.backends.lock import OwnerLock\n"
        "OwnerLock(pathlib.Path(sys.argv[1])).acquire(); print('held', flush=True); sys.stdin.read()"
    )
    async with await anyio.open_process([sys.executable, "-c", program, str(tmp_path / "s.lock")]) as owner:
        assert owner.stdout is not None
        await owner.stdout.receive()
        with pytest.raises(StateLockedError) as caught:
            async with opened(PersistentAgent(tmp_path / "s")):
                pass
        assert caught.value.pid == owner.pid
        owner.kill()
    async with opened(PersistentAgent(tmp_path / "s")) as (backend, _):
        await save(backend, 1)


async def test_a_changed_byte_is_found_and_the_file_left_as_it_was(tmp_path: Path) -> None:
    agent: PersistentAgent[Any] = PersistentAgent(tmp_path / "s")
    async with opened(agent) as (backend, _):
        await save(backend, 1)
    content = bytearray((tmp_path / "s").read_bytes())
    content[-10] ^= 1
    (tmp_path / "s").write_bytes(content)
    with pytest.raises(StateCorruptionError) as caught:
        async with opened(agent):
            pass
    assert caught.value.path == str(tmp_path / "s")
    assert caught.value.offset is not None
    assert (tmp_path / "s").read_bytes() == content


@pytest.mark.parametrize("format", ["json", "msgpack"])
async def test_a_damaged_history_leaves_the_current_state_readable(format: Any, tmp_path: Path) -> None:
    agent: PersistentAgent[Any] = PersistentAgent(tmp_path / "s", format=format, max_history=2)
    async with opened(agent) as (backend, _):
        for version in (1, 2, 3):
            await save(backend, version, pad=5000)
    log = tmp_path / "s.history"
    content = bytearray(log.read_bytes())
    content[200] ^= 1
    log.write_bytes(content)
    async with opened(agent) as (backend, found):
        assert found.record is not None
        with pytest.raises(StateCorruptionError, match=r"s\.history"):
            await backend.history()
        for version in range(4, 10):
            await save(backend, version, epoch=2, pad=5000)
    assert log.read_bytes().startswith(content)


@pytest.mark.parametrize("format", ["json", "msgpack"])
@pytest.mark.parametrize("name", ["s", "s.history"])
def test_each_changed_byte_of_the_two_files_is_found(
    name: str, format: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(file_commit, "UNLOGGED_BYTES", 0)
    live(tmp_path / "s", settings_of(format, max_history=9), (1, 1, 1, 2, 1), lambda version: None)
    content = (tmp_path / name).read_bytes()
    for place in range(len(content)):
        (tmp_path / name).write_bytes(content[:place] + bytes([content[place] ^ 4]) + content[place + 1 :])
        with pytest.raises(StateCorruptionError):
            list(read_states(tmp_path / "s"))


async def test_a_missing_main_file_beside_a_history_is_not_taken_for_a_new_state(tmp_path: Path) -> None:
    agent: PersistentAgent[Any] = PersistentAgent(tmp_path / "s")
    async with opened(agent) as (backend, _):
        await save(backend, 1, pad=5000)
    (tmp_path / "s").unlink()
    with pytest.raises(StateCorruptionError, match="is missing, and its history"):
        async with opened(agent):
            pass
    assert (tmp_path / "s.history").exists()


@pytest.mark.parametrize("format", ["json", "msgpack"])
async def test_a_missing_log_that_may_hold_newer_versions_is_an_error(format: Any, tmp_path: Path) -> None:
    agent: PersistentAgent[Any] = PersistentAgent(tmp_path / "s", format=format)
    async with opened(agent) as (backend, _):
        for version in (1, 2, 3):
            await save(backend, version, pad=5000)
    (tmp_path / "s.history").unlink()
    with pytest.raises(StateCorruptionError, match="it is missing"):
        async with opened(agent):
            pass


async def test_a_file_cut_short_by_a_power_cut_is_read_from_its_log(tmp_path: Path) -> None:
    agent: PersistentAgent[Any] = PersistentAgent(tmp_path / "s")
    async with opened(agent) as (backend, _):
        for version in (1, 2, 3, 4):
            request = Request(f"r{version}", version)
            await commit(backend, version - 1, record_of(version, 1, 5000), requests=(request,))
    content = (tmp_path / "s").read_bytes()
    for torn in (b"", content[:1], content[:3000], content[:-1], bytes(len(content)), bytes(3000) + content[3000:]):
        (tmp_path / "s").write_bytes(torn)
        async with opened(agent) as (backend, found):
            assert found.record == record_of(4, 1, 5000)
            assert await versions(backend) == [1, 2, 3, 4]
            assert [request.version for request in await backend.requests()] == [1, 2, 3, 4]


async def test_the_readable_file_shows_the_current_version_once_closed(tmp_path: Path) -> None:
    async with opened(PersistentAgent(tmp_path / "s")) as (backend, _):
        for version in range(1, 6):
            await save(backend, version, pad=5000)
    assert json.loads((tmp_path / "s").read_bytes())["state"]["version"] == 5


def test_the_readable_file_shows_the_current_version_soon(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shown = threading.Event()
    monkeypatch.setattr(files.layer, "step", lambda name: shown.set() if name == "refreshed" else None)
    owner = Owner(tmp_path / "s", settings_of(), pad=5000)
    owner.open()
    for version in range(5):
        owner.version = version
        assert owner.store._commit([owner.write()]) == [None]
    assert shown.wait(20)
    assert json.loads((tmp_path / "s").read_bytes())["version"] == 5
    owner.close()


@pytest.mark.parametrize("what", ["main", "lock", "folder"])
async def test_a_file_that_is_replaced_while_open_is_not_written(what: str, tmp_path: Path) -> None:
    path = tmp_path / "states" / "s"
    async with opened(PersistentAgent(path)) as (backend, _):
        await save(backend, 1)
        if what == "folder":
            path.parent.rename(tmp_path / "away")
            path.parent.mkdir()
        else:
            target = path if what == "main" else path.with_name("s.lock")
            target.rename(tmp_path / "away")
            target.write_bytes(b"something else")
        answer = await commit(backend, 1, record_of(2, 1))
        assert isinstance(answer, StorageError)
        assert "replaced while" in str(answer)
        assert not [name for _, _, names in os.walk(tmp_path) for name in names if name.endswith(".tmp")]


async def test_a_log_that_is_replaced_while_open_is_not_written(tmp_path: Path) -> None:
    async with opened(PersistentAgent(tmp_path / "s")) as (backend, _):
        await save(backend, 1, pad=5000)
        (tmp_path / "s.history").rename(tmp_path / "away")
        (tmp_path / "s.history").write_bytes(b"something else")
        assert isinstance(await commit(backend, 1, record_of(2, 1, 5000)), StorageError)
        assert (tmp_path / "s.history").read_bytes() == b"something else"


async def test_a_removed_folder_is_a_typed_error(tmp_path: Path) -> None:
    path = tmp_path / "states" / "s"
    async with opened(PersistentAgent(path)) as (backend, _):
        for file in path.parent.iterdir():
            file.unlink()
        path.parent.rmdir()
        assert isinstance(await commit(backend, 0, record_of(1, 1)), DgentError)
        assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("what", ["symlink", "fifo", "long name", "file in the path"])
async def test_a_path_that_can_not_be_a_state_is_refused_at_open(what: str, tmp_path: Path) -> None:
    path = tmp_path / "s"
    if what == "symlink":
        (tmp_path / "elsewhere").write_bytes(b"")
        path.symlink_to(tmp_path / "elsewhere")
    elif what == "fifo":
        os.mkfifo(path)
    elif what == "long name":
        path = tmp_path / ("n" * 300)
    else:
        path.write_bytes(b"")
        path = path / "s"
    with pytest.raises(StorageError):
        async with opened(PersistentAgent(path)):
            pass


@pytest.mark.parametrize("refused", ["folder", "file"])
async def test_what_can_not_be_written_is_refused_at_open(
    refused: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with opened(PersistentAgent(tmp_path / "s")) as (backend, _):
        await save(backend, 1)
    where = tmp_path if refused == "folder" else tmp_path / "s"
    monkeypatch.setattr(os, "access", lambda path, mode: path != where)  # root may write everything
    with pytest.raises(StorageError, match=f"{where} can't be written by this user"):
        async with opened(PersistentAgent(tmp_path / "s")):
            pass


async def test_a_closed_backend_refuses_to_commit_and_to_read(tmp_path: Path) -> None:
    async with opened(PersistentAgent(tmp_path / "s")) as (backend, _):
        store = backend.store
        assert store is not None
        async with fake_resources() as resources:
            other = PersistentAgent(tmp_path / "t").backend("b", resources)
            await other.open()
            await other.close()
            (answer,) = await store.commit([Write(other, 0, [record_of(1, 1)], [])])
            assert isinstance(answer, StorageError)
            with pytest.raises(StorageError, match="not open"):
                await other.history()


async def test_owners_open_and_close_in_any_order(tmp_path: Path) -> None:
    agent: PersistentAgent[Any] = PersistentAgent(f"{tmp_path}/")
    async with fake_resources() as resources:

        async def live(name: str) -> None:
            backend = agent.backend(name, resources)
            for epoch in range(1, 6):
                found = await backend.open()
                assert found.epoch == epoch
                await save(backend, epoch, epoch=epoch)
                await backend.close()
                await backend.close()

        async with anyio.create_task_group() as tasks:
            for number in range(8):
                tasks.start_soon(live, str(number))


async def test_a_cancelled_open_lets_go_of_the_lock(tmp_path: Path) -> None:
    agent: PersistentAgent[Any] = PersistentAgent(tmp_path / "s")
    async with fake_resources() as resources:
        for _ in range(5):
            with anyio.CancelScope() as scope:
                scope.cancel()
                await agent.backend("a", resources).open()
        backend = agent.backend("a", resources)
        await backend.open()
        await backend.close()


async def test_states_are_read_without_their_lock(tmp_path: Path) -> None:
    async with opened(PersistentAgent(tmp_path / "s", format="msgpack"), "the key") as (backend, _):
        await commit(backend, 0, record_of(1, 1), requests=(Request("r", 1),))
        await save(backend, 2)
        await save(backend, 3)
        ((key, records, requests),) = read_states(tmp_path / "s")
        assert key == "the key"
        assert [CODEC.decode(record.data or b"") for record in records] == [state_of(v) for v in (1, 2, 3)]
        assert requests == [Request("r", 1)]


def test_reading_what_is_not_there_is_said() -> None:
    with pytest.raises(FileNotFoundError):
        list(read_states("/nowhere/at/all"))


def test_an_agent_is_a_description_that_pickles() -> None:
    agent: PersistentAgent[Any] = PersistentAgent("s", dict, max_history=7)
    assert pickle.loads(pickle.dumps(agent)) == agent
    assert (agent.schema, agent.migrations) == (dict, None)


@pytest.mark.parametrize(
    "wrong",
    [
        {"path": ""},
        {"path": "a\0b"},
        {"format": "xml"},
        {"compression": "lzma"},
        {"durability": "none"},
        {"max_history": -1},
        {"max_history": True},
    ],
)
def test_wrong_arguments_are_refused_without_io(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"."):
        PersistentAgent(**{"path": "s", **wrong})
