"""Files that are taken away, replaced or linked while somebody has them: an error, and nothing is begun anew."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import dgents
from dgents.cli import main
from dgents.runtime.codec import Codec
from dgents.runtime.contract import Record, Write
from dgents.runtime.errors import DgentError, OwnershipLostError, StateCorruptionError, StateLockedError, StorageError
from dgents.supervisors.flush_journal import FlushJournal
from tests.resources import fake_resources

pytestmark = pytest.mark.anyio


def journaled(place: Path) -> Any:
    """Return an agent of which only the journal is in ``place``."""
    flush = dgents.Flush(max_delay=3600, journal=place / "j")
    store: Any = dgents.SQLAgent(str(place.with_name("store.db")))
    return dgents.CachedAgent(dgents.VolatileAgent(), store, policy="write-behind", flush=flush)


AGENTS: dict[str, Callable[[Path], Any]] = {
    "sqlite": lambda place: dgents.SQLAgent(str(place / "s.db")),
    "sqlite-shared": lambda place: dgents.SQLAgent(str(place / "s.db"), ownership="shared"),
    "json": lambda place: dgents.PersistentAgent(place / "s"),
    "msgpack": lambda place: dgents.PersistentAgent(place / "s", format="msgpack"),
    "latest": lambda place: dgents.PersistentAgent(place / "s", format="msgpack", max_history=0),
    "journal": journaled,
    "vectors": lambda place: dgents.VectorAgent(2, path=place / "v"),
}
STORES = {name: agent for name, agent in AGENTS.items() if name not in ("journal", "vectors")}


async def write(ref: Any, number: int) -> None:
    await (ref.save({"n": number}, id=0, embedding=[1, 0]) if hasattr(ref, "search") else ref.save({"n": number}))


async def state(ref: Any) -> Any:
    return await (ref.get(0) if hasattr(ref, "search") else ref.load())


def files_in(place: Path) -> list[Path]:
    return sorted(path for path in place.rglob("*") if path.is_file() and path.suffix != ".lock")


def move_files(place: Path, away: Path) -> None:
    for path in files_in(place):
        (away / path.relative_to(place)).parent.mkdir(parents=True, exist_ok=True)
        path.rename(away / path.relative_to(place))


def move_folder(place: Path, away: Path) -> None:
    place.rename(away)


def replace_folder(place: Path, away: Path) -> None:
    place.rename(away)
    place.mkdir()


def empty_files(place: Path, away: Path) -> None:
    names = files_in(place)
    move_files(place, away)
    for path in names:
        path.with_name("other").touch()
        path.with_name("other").rename(path)


async def give_up(ref: Any) -> None:
    """Write until the actor has stopped: a write may find its store gone, or an older one in its place."""
    for number in range(10, 20):
        with pytest.raises(DgentError):
            await write(ref, number)


@pytest.mark.parametrize("take", [move_files, move_folder, replace_folder, empty_files])
@pytest.mark.parametrize("name", AGENTS)
async def test_a_store_that_is_taken_away_from_its_only_actor_is_an_error_and_not_begun_anew(
    name: str, take: Callable[[Path, Path], None], tmp_path: Path
) -> None:
    place, away = tmp_path / "place", tmp_path / "away"
    place.mkdir()
    async with dgents.Runtime() as rt:
        ref = await rt.spawn("a", AGENTS[name](place))
        for number in range(1, 4):
            await write(ref, number)
        take(place, away)
        await give_up(ref)
        assert not any(path.stat().st_size for path in files_in(place) if not path.name.endswith("-shm"))
        shutil.rmtree(place, ignore_errors=True)
        away.rename(place)
    async with dgents.Runtime() as rt:
        assert await state(await rt.spawn("a", AGENTS[name](place))) == {"n": 3}


async def commit(backend: Any, version: int, epoch: int) -> Any:
    record = Record(version, epoch, float(version), Codec().encode({"n": version}))
    (answer,) = await backend.store.commit([Write(backend, version - 1, [record], [])])
    return answer


async def saved(backend: Any, *versions: int) -> None:
    opened = await backend.open()
    for version in versions:
        assert await commit(backend, version, opened.epoch) is None


@pytest.mark.parametrize("is_replaced", [False, True])
@pytest.mark.parametrize("ending", ["-wal", "-shm"])
@pytest.mark.parametrize("name", ["sqlite", "sqlite-shared"])
async def test_a_log_that_was_removed_or_replaced_serves_nobody(
    name: str, ending: str, is_replaced: bool, tmp_path: Path
) -> None:
    log = tmp_path / f"s.db{ending}"
    async with fake_resources() as resources:
        backend = AGENTS[name](tmp_path).backend("a", resources)
        await saved(backend, 1)
        log.rename(tmp_path / "away")
        if is_replaced:
            shutil.copy(tmp_path / "away", log)
        with pytest.raises(StorageError, match="removed or replaced"):
            await commit(backend, 2, 1)
        await backend.close()
        opened = await backend.open()
        assert opened.record is not None
        assert opened.record.version == 1
        assert await commit(backend, 2, opened.epoch) is None
        await backend.close()


@pytest.mark.parametrize("how", ["removed", "emptied"])
async def test_a_log_whose_database_is_gone_is_kept(how: str, tmp_path: Path) -> None:
    place, killed = tmp_path / "place", tmp_path / "killed"
    async with fake_resources() as resources:
        backend = dgents.SQLAgent(str(place / "s.db")).backend("a", resources)
        await saved(backend, 1, 2)
        shutil.copytree(place, killed)  # as a kill at this moment would leave it
        await backend.close()
        (killed / "s.db").rename(killed / "away.db")
        if how == "emptied":
            (killed / "s.db").touch()
        log = (killed / "s.db-wal").read_bytes()
        again = dgents.SQLAgent(str(killed / "s.db")).backend("a", resources)
        for _ in range(2):
            with pytest.raises(StateCorruptionError, match="its log"):
                await again.open()
        assert main(["verify", str(killed / "s.db")]) != 0
        assert (killed / "s.db-wal").read_bytes() == log
        (killed / "away.db").rename(killed / "s.db")
        opened = await again.open()
        assert opened.record is not None
        assert opened.record.version == 2
        await again.close()


async def test_another_database_is_not_opened_with_the_log_of_the_one_before(tmp_path: Path) -> None:
    path = tmp_path / "s.db"
    async with fake_resources() as resources:
        other = dgents.SQLAgent(str(tmp_path / "other.db")).backend("b", resources)
        await saved(other, 1)
        await other.close()
        backend = dgents.SQLAgent(str(path)).backend("a", resources)
        await saved(backend, 1, 2)
        path.rename(tmp_path / "away")
        shutil.copy(tmp_path / "other.db", path)
        log = (tmp_path / "s.db-wal").read_bytes()
        with pytest.raises(StorageError, match="removed or replaced"):
            await commit(backend, 3, 1)
        await backend.close()
        with pytest.raises(StateCorruptionError, match="the log of the one before"):
            await backend.open()
        assert path.read_bytes() == (tmp_path / "other.db").read_bytes()
        assert (tmp_path / "s.db-wal").read_bytes() == log
        (tmp_path / "away").rename(path)
        opened = await backend.open()
        assert opened.record is not None
        assert opened.record.version == 2
        await backend.close()


async def reopened(name: str, tmp_path: Path, change: Callable[[Path], None]) -> None:
    """Let a backend save three versions; change its files while it is closed, and open it again."""
    place = tmp_path / "place"
    place.mkdir()
    async with fake_resources() as resources:
        backend = STORES[name](place).backend("a", resources)
        await saved(backend, 1, 2)
        await backend.close()
        shutil.copytree(place, tmp_path / "older")
        opened = await backend.open()
        assert await commit(backend, 3, opened.epoch) is None
        await backend.close()
        change(place)
        before = {path: path.read_bytes() for path in files_in(place)}
        try:
            await backend.open()
        finally:
            await backend.close()
            if name.startswith("sqlite"):
                assert all(path.suffix == ".db" for path in files_in(place))
            else:
                assert {path: path.read_bytes() for path in files_in(place)} == before


def put_back(place: Path, folder: Path) -> None:
    shutil.rmtree(place)
    shutil.copytree(folder, place)


@pytest.mark.parametrize("name", STORES)
async def test_a_store_that_is_gone_when_it_is_opened_again_is_not_made_anew(name: str, tmp_path: Path) -> None:
    for what, change in enumerate((shutil.rmtree, lambda place: move_files(place, tmp_path / "away"))):
        (tmp_path / str(what)).mkdir()
        with pytest.raises((StorageError, StateCorruptionError)) as caught:
            await reopened(name, tmp_path / str(what), change)
        assert not getattr(caught.value, "retryable", False)
        assert not files_in(tmp_path / str(what) / "place")


@pytest.mark.parametrize("name", STORES)
async def test_an_older_store_in_its_place_is_found_out_and_left_as_it_is(name: str, tmp_path: Path) -> None:
    with pytest.raises(StateCorruptionError, match=r"holds version 2 now, and version 3 of 'a' was stored"):
        await reopened(name, tmp_path, lambda place: put_back(place, tmp_path / "older"))


@pytest.mark.parametrize("name", STORES)
async def test_another_store_in_its_place_is_found_out(name: str, tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    async with fake_resources() as resources:
        backend = STORES[name](tmp_path / "other").backend("a", resources)
        await backend.open()
        for version in (1, 2, 3):
            record = Record(version, 1, 100.0 + version, Codec().encode("another"))
            assert await backend.store.commit([Write(backend, version - 1, [record], [])]) == [None]
        await backend.close()
    with pytest.raises(StateCorruptionError, match="holds another version 3 now"):
        await reopened(name, tmp_path, lambda place: put_back(place, tmp_path / "other"))


@pytest.mark.parametrize("name", STORES)
async def test_a_copy_of_what_was_there_is_gone_on_with(name: str, tmp_path: Path) -> None:
    def move_and_copy(place: Path) -> None:
        place.rename(tmp_path / "moved")
        shutil.copytree(tmp_path / "moved", place)

    await reopened(name, tmp_path, move_and_copy)


async def test_looking_for_reminders_makes_no_database(tmp_path: Path) -> None:
    async with fake_resources() as resources:
        ledger = dgents.SQLAgent(str(tmp_path / "s.db")).reminders("a")
        assert not await ledger.exists(resources)
    assert not files_in(tmp_path)


def link_all(place: Path, other: Path) -> None:
    """Give each file in ``place`` a second name in ``other``, as `cp -al` does."""
    for path in place.rglob("*"):
        if path.is_file() and path.suffix != ".lock":
            (other / path.relative_to(place)).parent.mkdir(parents=True, exist_ok=True)
            os.link(path, other / path.relative_to(place))


@pytest.mark.parametrize("name", AGENTS)
async def test_a_hard_link_to_what_somebody_owns_is_refused_and_the_owner_goes_on(name: str, tmp_path: Path) -> None:
    place, other = tmp_path / "place", tmp_path / "other"
    async with dgents.Runtime() as rt:
        ref = await rt.spawn("a", AGENTS[name](place))
        for number in range(1, 4):
            await write(ref, number)
        link_all(place, other)
        with pytest.raises(StorageError, match=r"hard links|owned by"):
            await rt.spawn("b", AGENTS[name](other))
        await write(ref, 4)
    shutil.rmtree(other)
    async with dgents.Runtime() as rt:
        assert await state(await rt.spawn("a", AGENTS[name](place))) == {"n": 4}


@pytest.mark.parametrize("name", AGENTS)
async def test_hard_links_are_refused_under_each_name_and_left_as_they_are(name: str, tmp_path: Path) -> None:
    place, other = tmp_path / "place", tmp_path / "other"
    async with dgents.Runtime() as rt:
        ref = await rt.spawn("a", AGENTS[name](place))
        for number in range(1, 4):
            await write(ref, number)
    link_all(place, other)
    before = {path: path.read_bytes() for path in files_in(tmp_path) if path.parent != tmp_path}
    async with dgents.Runtime() as rt:
        for folder in (place, other):
            with pytest.raises(StorageError, match="hard links") as caught:
                await rt.spawn("a", AGENTS[name](folder))
            assert not caught.value.retryable
    assert {path: path.read_bytes() for path in files_in(tmp_path) if path.parent != tmp_path} == before
    shutil.rmtree(other)
    async with dgents.Runtime() as rt:
        assert await state(await rt.spawn("a", AGENTS[name](place))) == {"n": 3}


@pytest.mark.parametrize("name", ["sqlite", *list(AGENTS)[2:]])
@pytest.mark.parametrize("same_runtime", [True, False])
async def test_a_folder_under_another_name_has_the_same_owner(name: str, same_runtime: bool, tmp_path: Path) -> None:
    place = tmp_path / "place"
    place.mkdir()
    (tmp_path / "alias").symlink_to(place, target_is_directory=True)
    async with dgents.Runtime() as rt, dgents.Runtime() as another:
        await write(await rt.spawn("a", AGENTS[name](place)), 1)
        agent: Any = AGENTS[name](tmp_path / "alias")
        if name == "sqlite":
            agent = dgents.SQLAgent(agent.db_uri, key="a")
        with pytest.raises(StateLockedError):
            await (rt if same_runtime else another).spawn("b", agent)


async def test_a_journal_whose_lock_was_taken_away_takes_no_write(tmp_path: Path) -> None:
    async with dgents.Runtime() as rt:
        ref = await rt.spawn("a", journaled(tmp_path / "place"))
        await write(ref, 1)
        (tmp_path / "place" / "j.lock").unlink()
        async with dgents.Runtime() as another:
            second = await FlushJournal.acquire(tmp_path / "place" / "j", another.resources)
            with pytest.raises(OwnershipLostError):
                await write(ref, 2)
            await second.release(another.resources)
