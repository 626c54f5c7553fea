"""What the command line says of vector stores and streams, which it reads without owning them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import anyio
import pytest

import dgents
from dgents.backends import vector_upkeep
from dgents.backends.journal import Journal
from dgents.cli import main


def write(*steps: Callable[[dgents.Runtime], Any]) -> None:
    """Run steps, each in a runtime of its own."""

    async def run() -> None:
        for step in steps:
            async with dgents.Runtime() as rt:
                await step(rt)

    anyio.run(run)


@pytest.fixture
def vectors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A vector store of which half is in its snapshot."""
    monkeypatch.setattr(vector_upkeep, "LEAST_CHANGES", 20)

    async def fill(rt: dgents.Runtime) -> None:
        ref: dgents.VectorRef[Any] = await rt.spawn("v", dgents.VectorAgent(2, path=tmp_path / "v"))
        for n in range(20):
            await ref.save({"n": n}, id=n, embedding=[1, n])
        cell: Any = ref._cell
        while cell.upkeep._running:  # noqa: ASYNC110 (nothing tells the end of an upkeep)
            await anyio.sleep(0.001)
        await ref.save({"n": "new"}, id="sky", embedding=[0, 1])
        await ref.delete(3)

    write(fill)
    return tmp_path / "v"


@pytest.fixture
def ledger(tmp_path: Path) -> Path:
    """A stream with a chain."""

    async def fill(rt: dgents.Runtime) -> None:
        stream = await rt.spawn("account/7", agent(tmp_path))
        for n in range(5):
            await stream.append({"paid": n})

    write(fill)
    return tmp_path / "ledger"


def agent(folder: Path) -> dgents.StreamAgent[Any, int]:
    return dgents.StreamAgent(lambda total, it: total + it["paid"], 0, event_log=folder / "ledger", chain=True)


def flip(path: Path, offset: int) -> None:
    content = bytearray(path.read_bytes())
    content[offset] ^= 1
    path.write_bytes(content)


def test_the_entries_of_a_vector_store_are_listed_and_shown(vectors: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect", str(vectors)]) == 0
    lines = capsys.readouterr().out.splitlines()[1:]
    assert {line.split()[-1] for line in lines} == {"sky", *map(str, range(20))} - {"3"}
    assert main(["inspect", str(vectors), "sky"]) == 0
    assert json.loads(capsys.readouterr().out)["state"] == {"n": "new"}
    assert main(["inspect", str(vectors), "7"]) == 0
    assert json.loads(capsys.readouterr().out)["state"] == {"n": 7}


def test_a_whole_vector_store_is_verified(vectors: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["verify", str(vectors)]) == 0
    assert "20 states" in capsys.readouterr().out


@pytest.mark.parametrize("name", ["vectors.snapshot", "*.journal"])
def test_a_changed_byte_of_a_vector_store_is_found(
    vectors: Path, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (path,) = vectors.glob(name)
    for offset in (9, path.stat().st_size // 2, path.stat().st_size - 40):
        flip(path, offset)
        assert main(["verify", str(vectors)]) == 1
        assert str(vectors) in capsys.readouterr().out
        flip(path, offset)
    assert main(["verify", str(vectors)]) == 0


def test_logs_are_read_while_their_owner_has_them(vectors: Path, ledger: Path) -> None:
    async def look(rt: dgents.Runtime) -> None:
        await rt.spawn("v", dgents.VectorAgent(2, path=vectors))
        await rt.spawn("account/7", agent(ledger.parent))
        assert main(["verify", str(vectors)]) == main(["verify", str(ledger)]) == 0

    write(look)


def test_a_stream_is_listed_and_its_events_are_its_versions(ledger: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect", str(ledger)]) == 0
    assert capsys.readouterr().out.splitlines()[1].split()[:2] == ["5", "5"]
    assert main(["inspect", str(ledger), "account/7"]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert (shown["event"], shown["number"], shown["events"], shown["class"]) == ({"paid": 4}, 5, 5, "dict")
    assert main(["history", str(ledger), "account/7"]) == 0
    assert capsys.readouterr().out.splitlines()[1::2] == [f'  {{"paid": {n}}}' for n in range(5)]


def test_a_stream_is_verified_also_after_it_was_compacted(ledger: Path, capsys: pytest.CaptureFixture[str]) -> None:
    async def compact(rt: dgents.Runtime) -> None:
        stream = await rt.spawn("account/7", agent(ledger.parent))
        await stream.compact(before=4)
        await stream.append({"paid": 9})

    for steps, kept in (((), 5), ((compact,), 3)):
        write(*steps)
        assert main(["verify", str(ledger)]) == 0
        assert f"1 stream with {kept} events" in capsys.readouterr().out


def rewrite(folder: Path, change: Callable[[list[bytes]], list[bytes]]) -> None:
    """Put another journal, whose checksums are right, in the place of a stream's."""
    journal = Journal(folder)
    journal.open()
    records = change([record for _, record in journal.read()])
    journal.close()
    for path in folder.glob("*.journal"):
        path.unlink()
    journal = Journal(folder)  # another one: this one would know that its records are gone
    journal.open()
    journal.append(records)
    journal.close()


@pytest.mark.parametrize(
    ("change", "event"),
    [
        (lambda records: [*records[:2], records[2].replace(b"\x02", b"\x63"), *records[3:]], "event 3"),
        (lambda records: [*records[:1], *records[2:]], "event 2"),
        (lambda records: records[:-1], "event 5"),
    ],
    ids=["changed", "removed", "cut off"],
)
def test_an_event_that_was_tampered_with_is_named(
    ledger: Path, change: Any, event: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder,) = (path for path in ledger.iterdir() if path.is_dir())
    rewrite(folder, change)
    assert main(["verify", str(ledger)]) == 1
    assert event in capsys.readouterr().out


def test_logs_are_not_copied_as_if_they_were_states(vectors: Path, ledger: Path, tmp_path: Path) -> None:
    for source in (vectors, ledger):
        assert main(["copy", str(source), str(tmp_path / "copy.db")]) == 2
    assert not (tmp_path / "copy.db").exists()
