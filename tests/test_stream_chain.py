"""A chain finds what was changed, removed, reordered or cut off, and says where."""

from __future__ import annotations

import os
import shutil
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import msgspec
import pytest

import dgents
from dgents import Runtime
from dgents.backends.chain import GENESIS, link_of
from dgents.backends.event_codec import StoredEvent, to_data
from dgents.backends.head_file import HeadFile
from dgents.backends.journal import Journal
from dgents.backends.seal import Seal
from dgents.backends.sqlite_inspect import SqliteInspector
from dgents.backends.sqlite_tables import to_record, to_row
from tests.stream_kit import UserCreated, agent_maker

pytestmark = pytest.mark.anyio

KEY = bytes(range(32))
EVENTS = [UserCreated(f"u{n}", f"name {n}") for n in range(6)]
Tamper = Callable[[list[StoredEvent]], list[StoredEvent]]


async def fill(folder: Path, log: str = "journal", **options: Any) -> None:
    async with Runtime() as rt:
        stream = await rt.spawn("users", agent_maker(log, folder)(chain=True, **options))
        for event in EVENTS:
            await stream.append(event)


async def read(folder: Path, log: str = "journal", **options: Any) -> list[Any]:
    """Open the stream, verify it, and return its events."""
    async with Runtime() as rt:
        stream = await rt.spawn("users", agent_maker(log, folder)(chain=True, **options))
        assert await stream.verify() == (await stream.snapshot()).version
        return [event async for event in stream.events()]


def replace(stored: StoredEvent, **changes: Any) -> StoredEvent:
    return msgspec.structs.replace(stored, **changes)


def renumber(events: list[StoredEvent]) -> list[StoredEvent]:
    return [replace(stored, version=number) for number, stored in enumerate(events, 1)]


def relink(events: list[StoredEvent]) -> list[StoredEvent]:
    """Do what somebody does who knows how the chain is made."""
    link, linked = GENESIS, []
    for stored in events:
        head, payload = msgspec.msgpack.encode(stored.tag), bytes(stored.payload)
        link = link_of(link, stored.version, stored.saved_at, stored.schema, head, payload)
        linked.append(replace(stored, link=link))
    return linked


def change(events: list[StoredEvent]) -> list[StoredEvent]:
    payload = bytes(events[2].payload).replace(b"name 2", b"name X")
    return [*events[:2], replace(events[2], payload=msgspec.Raw(payload)), *events[3:]]


def postdate(events: list[StoredEvent]) -> list[StoredEvent]:
    return [*events[:2], replace(events[2], saved_at=events[2].saved_at + 1e-6), *events[3:]]


def remove(events: list[StoredEvent]) -> list[StoredEvent]:
    return renumber(events[:2] + events[3:])


def reorder(events: list[StoredEvent]) -> list[StoredEvent]:
    return renumber([*events[:2], events[3], events[2], *events[4:]])


def truncate(events: list[StoredEvent]) -> list[StoredEvent]:
    return events[:3]


def tamper_with_journal(folder: Path, tamper: Tamper) -> None:
    """Rewrite the events of the journal, with checksums that fit."""
    (directory,) = [path for path in (folder / "log").iterdir() if path.is_dir()]
    journal = Journal(directory)
    journal.open()
    events = [msgspec.msgpack.decode(data, type=StoredEvent) for _, data in journal.read()]
    journal.close()
    for path in directory.glob("*.journal"):
        path.unlink()
    journal = Journal(directory)  # another one: this one would know that its records are gone
    journal.open()
    journal.append([msgspec.msgpack.encode(stored) for stored in tamper(events)])
    journal.close()


def tamper_with_sqlite(folder: Path, tamper: Tamper) -> None:
    """Rewrite the rows of the events, with checksums that fit, and what counts them."""
    path = str(folder / "events.db")
    connection = sqlite3.connect(path)
    events = []
    for row in connection.execute("SELECT * FROM events ORDER BY version").fetchall():
        record = to_record(row, path)
        tag, payload, link = msgspec.msgpack.decode(record.data, type=tuple[str, msgspec.Raw, bytes])
        events.append(StoredEvent(record.version, record.epoch, record.saved_at, record.schema, tag, payload, link))
    connection.execute("DELETE FROM events")
    for stored in tamper(events):
        data = to_data(msgspec.msgpack.encode(stored.tag), bytes(stored.payload), stored.link)
        record = dgents.runtime.contract.Record(stored.version, stored.epoch, stored.saved_at, data, stored.schema)
        connection.execute("INSERT INTO events VALUES (?, ?, ?, ?, ?, ?, ?)", to_row("users", record))
    connection.execute("UPDATE events_heads SET version = (SELECT max(version) FROM events)")
    connection.commit()
    connection.close()


TAMPER = {"journal": tamper_with_journal, "sqlite": tamper_with_sqlite}


@pytest.mark.parametrize("log", TAMPER)
@pytest.mark.parametrize(
    ("tamper", "event"),
    [(change, 3), (postdate, 3), (remove, 3), (reorder, 3), (truncate, 4)],
    ids=["changed", "postdated", "removed", "reordered", "truncated"],
)
async def test_what_was_tampered_with_is_found_and_located(
    tmp_path: Path, log: str, tamper: Tamper, event: int
) -> None:
    await fill(tmp_path, log)
    assert await read(tmp_path, log) == EVENTS
    TAMPER[log](tmp_path, lambda events: events)
    assert await read(tmp_path, log) == EVENTS
    TAMPER[log](tmp_path, tamper)
    with pytest.raises(dgents.StateCorruptionError) as found:
        await read(tmp_path, log)
    assert found.value.event == event


@pytest.mark.parametrize("log", TAMPER)
@pytest.mark.parametrize("tamper", [change, remove, reorder, truncate])
async def test_a_chain_made_anew_does_not_fit_its_head(tmp_path: Path, log: str, tamper: Tamper) -> None:
    await fill(tmp_path, log)
    TAMPER[log](tmp_path, lambda events: relink(tamper(events)))
    with pytest.raises(dgents.StateCorruptionError):
        await read(tmp_path, log)


@pytest.mark.parametrize("signed", [True, False])
async def test_a_head_made_anew_is_found_by_its_signature(tmp_path: Path, signed: bool) -> None:
    options = {"signing_key": KEY} if signed else {}
    await fill(tmp_path, **options)
    links: list[bytes] = []

    def forge(events: list[StoredEvent]) -> list[StoredEvent]:
        forged = relink(change(events))
        links.append(forged[-1].link or b"")
        return forged

    tamper_with_journal(tmp_path, forge)
    head = HeadFile(next((tmp_path / "log").rglob("head")))
    head.replace(len(EVENTS), Seal("users", "users", bytes(32)).make(len(EVENTS), links[0], 0, GENESIS))
    if signed:
        with pytest.raises(dgents.StateCorruptionError, match="its signature is not of this key"):
            await read(tmp_path, **options)
    else:
        assert (await read(tmp_path))[2].name == "name X"  # nobody can tell: that is what signing_key is for


@pytest.mark.parametrize("log", TAMPER)
async def test_a_signed_chain_goes_on_and_is_verified(tmp_path: Path, log: str) -> None:
    for n in range(1, 3):
        await fill(tmp_path, log, signing_key=KEY)
        assert await read(tmp_path, log, signing_key=KEY) == n * EVENTS


async def test_an_unsigned_head_is_refused_by_who_has_a_key(tmp_path: Path) -> None:
    await fill(tmp_path)
    with pytest.raises(dgents.StateCorruptionError, match="not signed"):
        await read(tmp_path, signing_key=KEY)


async def test_a_head_that_is_gone_is_missed(tmp_path: Path) -> None:
    await fill(tmp_path)
    next((tmp_path / "log").rglob("head")).unlink()
    with pytest.raises(dgents.StateCorruptionError, match="head of the stream 'users' is missing"):
        await read(tmp_path)


async def test_another_streams_log_is_not_taken_for_its_own(tmp_path: Path) -> None:
    await fill(tmp_path)
    (directory,) = (tmp_path / "log").iterdir()
    directory.rename(directory.with_name("other"))
    async with Runtime() as rt:
        with pytest.raises(dgents.StateCorruptionError, match="head of another stream"):
            await rt.spawn("other", agent_maker("journal", tmp_path)(chain=True))


async def test_a_chain_goes_on_when_a_program_forgets_to_ask_for_it(tmp_path: Path) -> None:
    await fill(tmp_path)
    async with Runtime() as rt:
        await (await rt.spawn("users", agent_maker("journal", tmp_path)())).append(EVENTS[0])
    assert await read(tmp_path) == [*EVENTS, EVENTS[0]]


async def test_a_chain_can_not_begin_in_the_middle(tmp_path: Path) -> None:
    async with Runtime() as rt:
        await (await rt.spawn("users", agent_maker("journal", tmp_path)())).append(EVENTS[0])
    with pytest.raises(dgents.UnsupportedOperationError, match="not in a chain"):
        await read(tmp_path)


async def test_a_chain_in_memory_is_verified() -> None:
    async with Runtime() as rt:
        stream: Any = await rt.spawn("users", agent_maker("memory", Path())(chain=True))
        await stream.append_all(EVENTS)
        assert await stream.verify() == len(EVENTS)
        log = stream._cell.stream.inner
        log._events = change(log._events)
        with pytest.raises(dgents.StateCorruptionError) as found:
            await stream.verify()
        assert found.value.event == 3


def flipped_bytes(folder: Path, stride: int) -> Iterator[tuple[Path, int]]:
    for path in sorted(folder.rglob("*")):
        if path.is_file() and path.suffix != ".lock":
            yield from ((path, offset) for offset in range(0, path.stat().st_size, stride))


async def check_every_byte(folder: Path, stride: int) -> None:
    """Flip a byte here and there: it is found, or it was one that matters to nobody."""
    await fill(folder / "good", snapshot_every=4)
    found = 0
    for path, offset in flipped_bytes(folder / "good", stride):
        shutil.copytree(folder / "good", folder / "bad")
        target = folder / "bad" / path.relative_to(folder / "good")
        content = bytearray(target.read_bytes())
        content[offset] ^= 0x20
        target.write_bytes(content)
        try:
            assert await read(folder / "bad", snapshot_every=4) == EVENTS, (path, offset)
        except (dgents.StateCorruptionError, dgents.StorageError):
            found += 1
        shutil.rmtree(folder / "bad")
    assert found > 20


async def test_a_flipped_byte_is_found_or_changes_nothing(tmp_path: Path) -> None:
    await check_every_byte(tmp_path, 11)


@pytest.mark.torture
async def test_every_flipped_byte_is_found_or_changes_nothing(tmp_path: Path) -> None:
    await check_every_byte(tmp_path, 1)


async def test_a_log_cut_anywhere_is_found(tmp_path: Path) -> None:
    await fill(tmp_path / "good")
    path = next((tmp_path / "good").rglob("*.journal"))
    for size in range(0, path.stat().st_size - 32, 37):  # the last 32 bytes say only that all before is durable
        shutil.copytree(tmp_path / "good", tmp_path / "bad")
        os.truncate(tmp_path / "bad" / path.relative_to(tmp_path / "good"), size)
        with pytest.raises(dgents.StateCorruptionError):
            await read(tmp_path / "bad")
        shutil.rmtree(tmp_path / "bad")


@pytest.mark.anyio
async def test_a_database_of_events_is_checked_from_outside(anyio_backend: str, tmp_path: Path) -> None:
    path = tmp_path / "events.db"
    async with dgents.Runtime() as rt:
        agent = dgents.StreamAgent(lambda total, event: total + event, 0, event_log=f"sqlite:///{path}", chain=True)
        await (await rt.spawn("s", agent)).append_all([1, 2, 3, 4])
    with SqliteInspector(str(path)) as database:
        assert list(database.verify()) == []
    with closing(sqlite3.connect(path)) as stranger, stranger:
        stranger.execute("DELETE FROM events WHERE version = 4")
        stranger.execute("UPDATE events_heads SET version = 3")
    with SqliteInspector(str(path)) as database:
        (found,) = database.verify()
    assert found.event == 4
