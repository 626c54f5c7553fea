"""`dgents copy`: from any kind of backend to any other, whole, once, and to its end whatever happens."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import anyio
import pytest

import dgents
from dgents.backends.redis import RedisAgent
from dgents.backends.sqlite_store import SqliteStore
from dgents.cli import main
from dgents.copying import Target, copy
from dgents.places import Place, locate, open_place
from dgents.runtime.contract import Record, Request
from dgents.runtime.errors import StorageError
from dgents.stores import Stored
from tests.redis_server import redis_server

STATES: dict[str, list[Any]] = {
    "user/Ada ü": [{"visits": 1}, {"visits": 2, "at": datetime(2026, 1, 2, tzinfo=UTC), "tags": {"a"}}],
    "deleted": ["here", None],
    "deleted and back": ["here", None, (1, b"\0")],
    "long": list(range(150)),
}


@pytest.fixture(scope="module")
def redis_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with redis_server(tmp_path_factory.mktemp("redis")) as server:
        yield server.url


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def agent_for(uri: str) -> Any:
    """Describe an actor in the place that ``uri`` names."""
    if uri.startswith("redis"):
        return RedisAgent(uri, max_history=100)
    return dgents.PersistentAgent(uri) if uri.endswith("/") else dgents.SQLAgent(uri)


def make(uri: str, states: dict[str, list[Any]]) -> None:
    """Save each list of states under its key, one after the other; None deletes."""

    async def save(ref: dgents.Ref[Any], values: list[Any]) -> None:
        for number, value in enumerate(values):
            await (ref.delete() if value is None else ref.save(value, request_id=f"r{number}"))

    async def save_all() -> None:
        async with dgents.Runtime() as rt, anyio.create_task_group() as tasks:
            for key, values in states.items():
                tasks.start_soon(save, await rt.spawn(key, agent_for(uri)), values)

    anyio.run(save_all)


def content(uri: str) -> dict[str, Any]:
    """Return everything that is copied: versions, times, schemas, states, request ids; by key."""
    with open_place(locate(uri)) as store:
        found = [one.read() for one in store.entries()]
    return {
        stored.key: (
            [(one.version, one.saved_at, one.schema, one.data) for one in stored.records],
            [(one.id, one.version, one.result) for one in stored.requests],
        )
        for stored in found
    }


def flushed(uri: str) -> str:
    """Empty the Redis that is named, so that a test starts from nothing."""
    if uri.startswith("redis"):
        import redis

        with redis.Redis.from_url(uri) as client:
            client.flushdb()
    return uri


@pytest.mark.parametrize("source", ["a.db", "a/", "redis"])
@pytest.mark.parametrize("destination", ["b.db", "b/", "redis"])
def test_every_key_goes_with_its_history_from_any_place_to_any_other(
    folder: Path, redis_url: str, source: str, destination: str
) -> None:
    source = flushed(redis_url if source == "redis" else source)
    destination = flushed(redis_url.replace("/0", "/1") if destination == "redis" else destination)
    make(source, STATES)
    done = copy(locate(source), locate(destination))
    assert (done.states, done.present) == (4, 0)
    assert content(destination) == content(source)
    versions = [version for version, *_ in content(destination)["long"][0]]
    assert versions == list(range(versions[0], 151))
    assert versions[0] == 51 or source == "a/"  # a file holds more than its bound until it is made anew
    again = copy(locate(source), locate(destination))
    assert (again.states, again.versions, again.present) == (0, 0, 4)


@pytest.mark.parametrize("destination", ["b.db", "b/", "redis"])
def test_a_copied_state_is_used_as_if_it_had_always_been_there(folder: Path, redis_url: str, destination: str) -> None:
    destination = flushed(redis_url if destination == "redis" else destination)
    make("a.db", STATES)
    copy(locate("a.db"), locate(destination))

    async def use() -> None:
        async with dgents.Runtime() as rt:
            ref = await rt.spawn("long", agent_for(destination))
            assert await ref.history() == list(range(50, 150))
            assert await ref.save("never", request_id="r149") == 150  # answered before, at the source
            assert await ref.save("next") == 151
            gone = await rt.spawn("deleted", agent_for(destination))
            assert await gone.load(default="nothing") == "nothing"

    anyio.run(use)


def test_the_file_of_one_state_is_copied_to_a_database_and_back(folder: Path) -> None:
    make("a.db", {"ada": [1, 2, 3]})
    copy(locate("a.db"), locate("one.json"))
    copy(locate("one.json"), locate("b.db"), table="others")
    assert content("one.json") == content("b.db") == content("a.db")
    assert main(["inspect", "b.db", "ada", "--table", "others"]) == 0


def test_tables_stay_tables_and_one_of_them_can_be_chosen(folder: Path) -> None:
    async def two_tables() -> None:
        async with dgents.Runtime() as rt:
            for table in ("cats", "dogs"):
                ref = await rt.spawn(table, dgents.SQLAgent("a.db", table=table, key="rex"))
                await ref.save(table)

    anyio.run(two_tables)
    assert copy(locate("a.db"), locate("b.db")).states == 2
    with open_place(locate("b.db")) as store:
        assert [one.summary().table for one in store.entries()] == ["cats", "dogs"]
    with pytest.raises(ValueError, match=r"'rex' is in the tables 'cats' and 'dogs'.*--table"):
        copy(locate("a.db"), locate("both/"))
    assert copy(locate("a.db"), locate("dogs/"), table="dogs").states == 1


@pytest.mark.parametrize("destination", ["b.db", "b/", "redis"])
def test_another_state_at_the_destination_is_an_error_and_stays(
    folder: Path, redis_url: str, destination: str, capsys: pytest.CaptureFixture[str]
) -> None:
    destination = flushed(redis_url if destination == "redis" else destination)
    make("a.db", {"ada": [1, 2], "bob": [1]})
    make(destination, {"ada": ["mine"]})
    before = content(destination)["ada"]
    assert main(["copy", "a.db", destination]) == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1
    assert "'ada'" in err
    assert content(destination)["ada"] == before


def test_a_state_that_is_saved_while_it_is_copied_is_not_overwritten(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make("a.db", {"ada": [1]})
    make("b.db", {"ada": ["mine"]})
    before = content("b.db")
    monkeypatch.setattr(Target, "present", lambda *_: None)  # it was not there yet when it was looked for
    with pytest.raises(dgents.StateError, match="'ada'"):
        copy(locate("a.db"), locate("b.db"))
    assert content("b.db") == before


def test_an_owned_state_is_not_written_but_can_be_read(folder: Path) -> None:
    make("a.db", {"ada": [1]})

    async def run() -> None:
        async with dgents.Runtime() as rt:
            await rt.spawn("ada", dgents.SQLAgent("a.db"))
            await anyio.to_thread.run_sync(lambda: copy(locate("a.db"), locate("b/")))
            await rt.spawn("b", dgents.SQLAgent("c.db", key="ada"))
            with pytest.raises(dgents.StateLockedError):
                await anyio.to_thread.run_sync(lambda: copy(locate("a.db"), locate("c.db")))

    anyio.run(run)
    assert content("b/") == content("a.db")


def test_a_killed_copy_is_finished_by_running_it_again(folder: Path) -> None:
    make("a.db", {f"user/{number}": [number, number + 1] for number in range(450)})
    program = (
        "from dgents.copying import copy\nfrom dgents.places import locate\n"
        "copy(locate('a.db'), locate('b/'), on_progress=lambda done, total: print(done, flush=True))"
    )
    with subprocess.Popen([sys.executable, "-c", program], cwd=folder, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if line == "150\n":
                process.kill()
    present = len(content("b/"))
    assert 100 <= present < 450
    done = copy(locate("a.db"), locate("b/"))
    assert (done.states, done.present) == (450 - present, present)
    assert content("b/") == content("a.db")


@pytest.mark.parametrize("stored", [False, True], ids=["before it is stored", "after it is stored"])
def test_a_copy_that_failed_in_a_commit_is_finished_by_running_it_again(
    folder: Path, monkeypatch: pytest.MonkeyPatch, stored: bool
) -> None:
    make("a/", {f"user/{number}": [number] for number in range(150)})
    commit, calls = SqliteStore.commit, []

    async def failing(self: SqliteStore, writes: Any) -> Any:
        calls.append(len(writes))
        if len(calls) == 2:
            if stored:
                await commit(self, writes)
            raise StorageError("the disk is full")
        return await commit(self, writes)

    monkeypatch.setattr(SqliteStore, "commit", failing)
    with pytest.raises(StorageError, match="full"):
        copy(locate("a/"), locate("b.db"))
    done = copy(locate("a/"), locate("b.db"))
    assert (done.states, done.present) == ((0, 150) if stored else (50, 100))
    assert content("b.db") == content("a/")


def test_versions_before_a_gap_are_numbered_up_to_those_after_it() -> None:
    records = [Record(version, 1, float(version), b"\x01") for version in (1, 2, 7, 8)]
    stored = Stored(None, "ada", records, [Request("r2", 2), Request("r5", 5), Request("r8", 8)])
    planned = Target(Place("sqlite", "b.db", "b.db")).plan(stored)
    assert [one.version for one in planned.records] == [5, 6, 7, 8]
    assert [one.saved_at for one in planned.records] == [1.0, 2.0, 7.0, 8.0]
    assert [(one.id, one.version) for one in planned.requests] == [("r2", 6), ("r5", 5), ("r8", 8)]


def test_a_damaged_state_at_the_source_is_named(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make("a/", {"ada": ["x"]})
    path = folder / "a" / "ada.state"
    path.write_bytes(path.read_bytes().replace(b'"x"', b'"y"'))
    assert main(["copy", "a", "b.db"]) == 2
    assert "ada.state" in capsys.readouterr().err


def test_the_commands_look_into_a_redis(folder: Path, redis_url: str, capsys: pytest.CaptureFixture[str]) -> None:
    make(flushed(redis_url), {"ada": [{"n": 1}, {"n": 2}], "bob": [1]})
    for arguments, expected in (
        (["inspect", redis_url], "ada"),
        (["inspect", redis_url, "ada"], '"n": 2'),
        (["history", redis_url, "ada"], "~ n: 1 -> 2"),
        (["verify", redis_url], "2 states with 3 versions, all whole"),
    ):
        assert main(arguments) == 0
        assert expected in capsys.readouterr().out


def test_verify_goes_on_behind_a_damaged_value_in_redis(redis_url: str, capsys: pytest.CaptureFixture[str]) -> None:
    import redis

    make(flushed(redis_url), {"ada": [1], "bob": [1]})
    with redis.Redis.from_url(redis_url) as client:
        client.setrange("dgents:{ada}", 61, b"\x02")
    assert main(["verify", redis_url]) == 1
    damaged, end = capsys.readouterr().out.splitlines()
    assert "'ada'" in damaged
    assert end.endswith("1 fault found; 1 state with 1 version could be read whole")
