"""How a program ends: by a signal, by an exception, with its memory as it was, with nothing left open."""

from __future__ import annotations

import gc
import os
import resource
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import anyio
import pytest

import dgents

PROGRAM = """
import signal, sys
import anyio
import dgents

async def main():
    async with dgents.Runtime() as rt:
        flush = dgents.Flush(max_delay=60)
        store = dgents.SQLAgent("behind.db")
        behind = dgents.CachedAgent(dgents.VolatileAgent(), store, policy="write-behind", flush=flush)
        refs = [
            await rt.spawn("file", dgents.PersistentAgent("file.json")),
            await rt.spawn("sql", dgents.SQLAgent("sql.db")),
            await rt.spawn("behind", behind),
        ]
        for number in range(20):
            for ref in refs:
                await ref.save(number)
        {ending}

try:
    anyio.run(main, backend=sys.argv[1])
except (KeyboardInterrupt, RuntimeError) as error:
    sys.exit(7)
"""

ENDINGS = {
    "an exception": """
        print("saved", flush=True)
        raise RuntimeError("the program failed")
    """,
    "control-c": """
        print("saved", flush=True)
        await anyio.sleep(30)
    """,
    "sigterm": """
        with anyio.open_signal_receiver(signal.SIGTERM) as signals:
            print("saved", flush=True)
            async for _ in signals:
                raise KeyboardInterrupt
    """,
}


@pytest.mark.parametrize("loop", ["asyncio", "trio"])
@pytest.mark.parametrize("ending", ENDINGS)
def test_what_was_acknowledged_is_stored_however_the_program_ends(ending: str, loop: str, tmp_path: Path) -> None:
    program = PROGRAM.replace("{ending}", ENDINGS[ending].strip())
    with subprocess.Popen(
        [sys.executable, "-c", program, loop], cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == "saved\n"
        if ending != "an exception":
            child.send_signal(signal.SIGINT if ending == "control-c" else signal.SIGTERM)
        _, stderr = child.communicate(timeout=30)
    assert child.returncode in (7, 1), stderr

    async def stored() -> list[int]:
        async with dgents.Runtime() as rt:
            agents = [
                dgents.PersistentAgent(tmp_path / "file.json"),
                dgents.SQLAgent(str(tmp_path / "sql.db"), key="sql"),
                dgents.SQLAgent(str(tmp_path / "behind.db"), key="behind"),
            ]
            return [await (await rt.spawn(str(n), agent)).load() for n, agent in enumerate(agents)]

    assert anyio.run(stored) == [19, 19, 19]


def open_files() -> int:
    return len(os.listdir("/proc/self/fd"))


def rss() -> int:
    """Return the bytes of memory that this process has in use."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


def agent(kind: str, folder: Path, number: int) -> Any:
    if kind == "volatile":
        return dgents.VolatileAgent(0)
    if kind == "file":
        return dgents.PersistentAgent(folder / f"{number % 10}.json")
    if kind == "stream":
        return dgents.StreamAgent(max, 0, event_log=folder / f"log-{number % 10}")
    database = dgents.SQLAgent(str(folder / "a.db"), key=str(number % 10))
    if kind == "sqlite":
        return database
    flush = dgents.Flush(journal=folder / "journal")
    return dgents.CachedAgent(dgents.VolatileAgent(), database, policy="write-behind", flush=flush)


@pytest.mark.anyio
@pytest.mark.parametrize("kind", ["volatile", "file", "sqlite", "stream", "behind"])
async def test_nothing_stays_open_after_many_actors_came_and_went(
    kind: str, tmp_path: Path, anyio_backend: str
) -> None:
    async def come_and_go(times: int) -> None:
        async with dgents.Runtime() as rt:
            for number in range(times):
                ref = await rt.spawn(f"a{number}", agent(kind, tmp_path, number))
                await (ref.append(number) if kind == "stream" else ref.save(number))
                await rt.stop(ref)

    await come_and_go(10)
    gc.collect()
    files, threads = open_files(), threading.active_count()
    await come_and_go(100)
    gc.collect()
    assert open_files() <= files
    assert threading.active_count() <= threads + 2  # idle workers of the event loop


async def grows_by(updates: int, make: Any) -> int:
    """Return by how many bytes the memory grew in the second half of many updates."""
    async with dgents.Runtime() as rt:
        ref = await rt.spawn("a", make)
        await ref.save({"n": 0})

        async def update(times: int) -> None:
            for _ in range(times):
                await ref.update(lambda state: {"n": state["n"] + 1})

        sizes = []
        for _ in range(2):
            async with anyio.create_task_group() as tasks:
                for _ in range(100):
                    tasks.start_soon(update, updates // 200)
            gc.collect()
            sizes.append(rss())
        assert (await ref.load())["n"] == updates // 200 * 200
        return sizes[1] - sizes[0]


@pytest.mark.anyio
@pytest.mark.parametrize("kind", ["volatile", "file", "sqlite", "behind"])
async def test_memory_is_flat_over_many_updates(kind: str, tmp_path: Path, anyio_backend: str) -> None:
    assert await grows_by(20_000, agent(kind, tmp_path, 0)) < 4 * 2**20


@pytest.mark.anyio
@pytest.mark.torture
@pytest.mark.parametrize(("kind", "updates"), [("volatile", 10_000_000), ("file", 1_000_000), ("sqlite", 2_000_000)])
async def test_memory_is_flat_over_millions_of_updates(
    kind: str, updates: int, tmp_path: Path, anyio_backend: str
) -> None:
    grown = await grows_by(updates, agent(kind, tmp_path, 0))
    print(f"\n{kind} on {anyio_backend}: {grown / 1024:.0f} KiB more after the second {updates // 2:,} updates")
    assert grown < 8 * 2**20
