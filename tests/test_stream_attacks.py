"""What somebody may do to a stream who can write its files: with a key all of it is found, without one what can be."""

from __future__ import annotations

import shutil
import sqlite3
from collections.abc import Callable
from contextlib import closing
from itertools import product
from pathlib import Path
from typing import Any

import msgspec
import pytest

import dgents
from dgents import Runtime
from dgents.backends.chain import GENESIS
from dgents.backends.event_codec import StoredEvent
from dgents.backends.event_log import StateSnapshot
from dgents.backends.event_log_files import read_snapshot, write_snapshot
from dgents.backends.head_file import HeadFile
from dgents.backends.journal import Journal
from dgents.backends.journal_reader import read_journal
from dgents.backends.seal import Seal
from dgents.cli import main
from tests.stream_kit import UserCreated, UserState, agent_maker
from tests.test_stream_chain import change, relink, remove, renumber, reorder

pytestmark = pytest.mark.anyio

KEY = bytes(range(32))
COUNT = 6
Attack = Callable[[Path], None]


def options(signed: bool, **more: Any) -> dict[str, Any]:
    return {"chain": True, **({"signing_key": KEY} if signed else {}), **more}


async def fill(folder: Path, signed: bool = True, *, name: str = "users", count: int = COUNT, **more: Any) -> Path:
    """Append one after the other, and return the folder of the stream."""
    async with Runtime() as rt:
        stream = await rt.spawn(name, agent_maker("journal", folder)(**options(signed, **more)))
        for n in range(count):
            await stream.append(UserCreated(f"u{n}", f"name {n}"))
    return folder / "log" / name


async def check(folder: Path, signed: bool = True, **more: Any) -> UserState:
    """Open the stream, verify it, and return its state."""
    async with Runtime() as rt:
        stream = await rt.spawn("users", agent_maker("journal", folder)(**options(signed, **more)))
        assert 0 < await stream.verify() <= (await stream.snapshot()).version
        state: UserState = await stream.load()
        return state


def events_of(directory: Path) -> list[StoredEvent]:
    journal = Journal(directory)
    journal.open()
    events = [msgspec.msgpack.decode(data, type=StoredEvent) for _, data in journal.read()]
    journal.close()
    return events


def rewrite(directory: Path, events: list[StoredEvent]) -> None:
    """Write a log of these events, each a commit of its own, with checksums that fit."""
    for path in directory.glob("*.journal"):
        path.unlink()
    journal = Journal(directory)
    journal.open()
    for event in events:
        journal.append([msgspec.msgpack.encode(event)])
    journal.close()


def newer_slot(directory: Path) -> int:
    """Return where the newest head begins in its file."""
    content = (directory / "head").read_bytes()
    versions = [int.from_bytes(content[start + 4 : start + 12], "little") for start in (0, 512)]
    return 512 * versions.index(max(versions))


def zero_newer_head(directory: Path) -> None:
    content = bytearray((directory / "head").read_bytes())
    start = newer_slot(directory)
    content[start : start + 512] = bytes(512)
    (directory / "head").write_bytes(content)


def repeat_older_head(directory: Path) -> None:
    content = (directory / "head").read_bytes()
    older = 512 - newer_slot(directory)
    (directory / "head").write_bytes(content[older : older + 512] * 2)


def cut(count: int) -> Attack:
    return lambda directory: rewrite(directory, events_of(directory)[:count])


def forge(tamper: Callable[[list[StoredEvent]], list[StoredEvent]]) -> Attack:
    return lambda directory: rewrite(directory, relink(tamper(events_of(directory))))


def forge_last(events: list[StoredEvent]) -> list[StoredEvent]:
    payload = bytes(events[-1].payload).replace(b"name", b"eman")
    return [*events[:-1], msgspec.structs.replace(events[-1], payload=msgspec.Raw(payload))]


def append_one(events: list[StoredEvent]) -> list[StoredEvent]:
    return renumber([*events, events[-1]])


def contents(directory: Path) -> dict[str, Any]:
    """Return what is in a folder: of a journal its records, since opening writes the mark at its end once more."""
    found: dict[str, Any] = {path.name: path.read_bytes() for path in directory.iterdir() if path.suffix != ".lock"}
    for name in found:
        if name.endswith(".journal"):
            found[name] = [record for batch in read_journal(directory) for record in batch.records()]
    return found


HEADS: dict[str, Attack] = {
    "kept": lambda directory: None,
    "the newer one zeroed": zero_newer_head,
    "the older one twice": repeat_older_head,
    "gone": lambda directory: (directory / "head").unlink(),
    "emptied": lambda directory: (directory / "head").write_bytes(b""),
}
LOGS: dict[str, Attack] = {
    "removed": lambda directory: [path.unlink() for path in directory.glob("*.journal")] and None,
    **{f"cut to {count}": cut(count) for count in (0, 1, COUNT - 1)},
    **{tamper.__name__: forge(tamper) for tamper in (change, remove, reorder, append_one)},
    "forged at the end": forge(forge_last),
    "of another chain": lambda directory: rewrite(
        directory, [msgspec.structs.replace(event, link=None) for event in events_of(directory)]
    ),
}


# Where nothing is left that knows of the stream, or of a chain, it is another log, or none at all.
UNKNOWN = [("cut to 0", "gone"), ("removed", "gone"), ("of another chain", "gone")]


@pytest.mark.parametrize(("log", "heads"), sorted({*product(LOGS, HEADS)} - {*UNKNOWN}))
async def test_with_a_key_no_shorter_and_no_forged_log_is_taken(tmp_path: Path, log: str, heads: str) -> None:
    directory = await fill(tmp_path)
    LOGS[log](directory)
    HEADS[heads](directory)
    before = contents(directory)
    with pytest.raises(dgents.StateCorruptionError) as found:
        await check(tmp_path)
    assert found.value.path == str(directory)
    assert found.value.hint
    assert contents(directory) == before


@pytest.mark.parametrize("heads", ["kept", "emptied"])
@pytest.mark.parametrize("log", [name for name in LOGS if name != "append_one"])
async def test_without_a_key_a_log_that_does_not_fit_its_head_is_found(tmp_path: Path, log: str, heads: str) -> None:
    directory = await fill(tmp_path, signed=False)
    LOGS[log](directory)
    HEADS[heads](directory)
    with pytest.raises(dgents.StateCorruptionError):
        await check(tmp_path, signed=False)


async def test_a_damaged_head_is_no_reason_to_refuse_a_log_that_goes_beyond_the_other(tmp_path: Path) -> None:
    """That is what a power cut leaves which tore the head; what a key signed in the log tells that it is genuine."""
    directory = await fill(tmp_path)
    zero_newer_head(directory)
    for count in (COUNT, COUNT + 1):
        async with Runtime() as rt:
            stream = await rt.spawn("users", agent_maker("journal", tmp_path)(**options(True)))
            assert await stream.verify() == count
            await stream.append(UserCreated(f"more {count}", "x"))


async def test_events_that_nobody_signed_are_not_taken_for_those_that_a_crash_left_without_a_head(
    tmp_path: Path,
) -> None:
    directory = await fill(tmp_path)
    journal = Journal(directory)
    journal.open()
    events = events_of(directory)
    forged = relink([*events, msgspec.structs.replace(events[-1], version=COUNT + 1, signature=None)])[-1]
    journal.append([msgspec.msgpack.encode(forged)])
    journal.close()
    with pytest.raises(dgents.StateCorruptionError, match="it is not signed"):
        await check(tmp_path)


async def test_events_and_heads_are_not_signed_for_one_another(tmp_path: Path) -> None:
    seal = Seal("users", "users", KEY)
    signature = seal.sign_event(3, bytes(32))
    forged = [seal.make(3, bytes(32), 0, GENESIS)]
    outer = msgspec.msgpack.decode(forged[0])
    with pytest.raises(dgents.StateCorruptionError):
        seal.read(msgspec.msgpack.encode([outer[0], signature]))
    event = StoredEvent(3, 1, 0.0, 1, "x", msgspec.Raw(b"\xc0"), bytes(32), None, outer[1])
    with pytest.raises(dgents.StateCorruptionError):
        seal.check_event(event)
    seal.check_event(msgspec.structs.replace(event, signature=signature))


async def test_the_heads_of_another_stream_of_the_same_key_are_refused(tmp_path: Path) -> None:
    directory = await fill(tmp_path)
    other = await fill(tmp_path, name="other")
    shutil.copy(other / "head", directory / "head")
    with pytest.raises(dgents.StateCorruptionError, match="head of another stream"):
        await check(tmp_path)


async def test_the_log_of_another_stream_of_the_same_key_is_refused(tmp_path: Path) -> None:
    directory = await fill(tmp_path)
    other = await fill(tmp_path, name="other")
    for path in directory.glob("*.journal"):
        path.unlink()
    for path in other.glob("*.journal"):
        shutil.copy(path, directory / path.name)
    with pytest.raises(dgents.StateCorruptionError):
        await check(tmp_path)


async def test_an_older_copy_of_the_whole_is_what_nobody_can_tell(tmp_path: Path) -> None:
    await fill(tmp_path)
    shutil.copytree(tmp_path / "log", tmp_path / "copy")
    await fill(tmp_path)
    shutil.rmtree(tmp_path / "log")
    (tmp_path / "copy").rename(tmp_path / "log")
    assert (await check(tmp_path)).changes == COUNT


async def test_an_older_copy_of_the_log_alone_is_found(tmp_path: Path) -> None:
    directory = await fill(tmp_path)
    shutil.copytree(directory, tmp_path / "copy")
    await fill(tmp_path)
    for path in directory.glob("*.journal"):
        shutil.copy(tmp_path / "copy" / path.name, path)
    with pytest.raises(dgents.StateCorruptionError, match="events 7 to 12 were cut off"):
        await check(tmp_path)


# Snapshots


def tamper_with_snapshot(directory: Path, name: str, **changes: Any) -> None:
    snapshot = read_snapshot(directory / name, "users")
    assert snapshot is not None
    write_snapshot(directory / name, msgspec.msgpack.encode(msgspec.structs.replace(snapshot, **changes)))


def richer(directory: Path, name: str = "latest.snapshot") -> bytes:
    """Return the state of a snapshot with something in it that no event has put there."""
    snapshot = read_snapshot(directory / name, "users")
    assert isinstance(snapshot, StateSnapshot)
    state = msgspec.msgpack.decode(snapshot.state, type=UserState)
    state.users["mallory"] = "admin"
    return msgspec.msgpack.encode(state)


async def test_a_forged_snapshot_is_refused_by_who_has_a_key(tmp_path: Path) -> None:
    directory = await fill(tmp_path, snapshot_every=4)
    tamper_with_snapshot(directory, "latest.snapshot", state=richer(directory))
    with pytest.raises(dgents.StateCorruptionError, match="snapshot after event 4"):
        await check(tmp_path, snapshot_every=4)


async def test_a_forged_floor_is_refused_by_who_has_a_key(tmp_path: Path) -> None:
    directory = await fill(tmp_path)
    async with Runtime() as rt:
        stream = await rt.spawn("users", agent_maker("journal", tmp_path)(**options(True)))
        await stream.compact(before=4)
    assert (await check(tmp_path)).changes == COUNT
    tamper_with_snapshot(directory, "floor.snapshot", state=richer(directory, "floor.snapshot"))
    with pytest.raises(dgents.StateCorruptionError, match="snapshot after event 3"):
        await check(tmp_path)


@pytest.mark.parametrize("chain", [True, False])
async def test_without_a_key_a_forged_snapshot_is_found_by_verify(tmp_path: Path, chain: bool) -> None:
    directory = await fill(tmp_path, signed=False, snapshot_every=4, chain=chain)
    assert (await check(tmp_path, signed=False, snapshot_every=4, chain=chain)).changes == COUNT
    tamper_with_snapshot(directory, "latest.snapshot", state=richer(directory))
    with pytest.raises(dgents.StateCorruptionError, match=r"is not what its events make: \$\.users"):
        await check(tmp_path, signed=False, snapshot_every=4, chain=chain)


@pytest.mark.parametrize("changes", [{"link": bytes(32)}, {"saved_at": 1.0}, {"link": None}, {"version": 3}])
async def test_a_snapshot_that_is_of_no_event_of_its_log_is_found(tmp_path: Path, changes: dict[str, Any]) -> None:
    directory = await fill(tmp_path, signed=False, snapshot_every=4)
    tamper_with_snapshot(directory, "latest.snapshot", **changes)
    with pytest.raises(dgents.StateCorruptionError, match="the newest snapshot was made after"):
        await check(tmp_path, signed=False, snapshot_every=4)


# In a database


@pytest.mark.parametrize("signed", [True, False])
@pytest.mark.parametrize("count", range(COUNT))
async def test_a_database_whose_newest_events_were_taken_out_is_found(tmp_path: Path, count: int, signed: bool) -> None:
    agent = agent_maker("sqlite", tmp_path)(**options(signed))
    async with Runtime() as rt:
        await (await rt.spawn("users", agent)).append_all([UserCreated(f"u{n}", "x") for n in range(COUNT)])
    with closing(sqlite3.connect(tmp_path / "events.db")) as stranger, stranger:
        stranger.execute("DELETE FROM events WHERE version > ?", (count,))
        stranger.execute("UPDATE events_heads SET version = ?", (count,))
    assert main(["verify", f"{tmp_path}/events.db"]) == 1
    async with Runtime() as rt:
        with pytest.raises(dgents.StateCorruptionError) as found:
            await rt.spawn("users", agent)
    assert found.value.event == count + 1
    assert found.value.path == str(tmp_path / "events.db")


async def test_events_put_behind_the_head_of_a_database_are_found(tmp_path: Path) -> None:
    """A head is stored with its events, so none may be behind it: it can't be that a crash came between."""
    agent = agent_maker("sqlite", tmp_path)(**options(True))
    with_head = tmp_path / "events.db"
    async with Runtime() as rt:
        await (await rt.spawn("users", agent)).append_all([UserCreated(f"u{n}", "x") for n in range(COUNT)])
    with closing(sqlite3.connect(with_head)) as stranger:
        (old,) = stranger.execute("SELECT content FROM events_snapshots WHERE kind = 'head'").fetchone()
        assert old
        row = stranger.execute("SELECT version, checksum, content FROM events_snapshots WHERE kind = 'head'").fetchone()
    async with Runtime() as rt:
        await (await rt.spawn("users", agent)).append(UserCreated("more", "x"))
    with closing(sqlite3.connect(with_head)) as stranger, stranger:
        stranger.execute("UPDATE events_snapshots SET version = ?, checksum = ?, content = ? WHERE kind = 'head'", row)
    async with Runtime() as rt:
        with pytest.raises(dgents.StateCorruptionError, match="the head names event 6 as the last one"):
            await rt.spawn("users", agent)


async def test_a_head_file_keeps_what_it_had_when_the_next_one_is_torn(tmp_path: Path) -> None:
    head = HeadFile(tmp_path / "head")
    assert head.open() is None
    head.replace(0, b"zero")
    for version in (1, 2, 3):
        before = head.stays
        head.write(version, b"head %d" % version, version != 2)
        assert head.stays == (before if version == 2 else version)
    head.close()
    assert sorted(head.open() or []) == [b"head 1", b"head 3"]
    head.write(4, b"head 4", True)
    head.close()
    assert sorted(head.open() or []) == [b"head 3", b"head 4"]
