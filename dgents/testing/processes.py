"""The workload of two processes, which share nothing but what the client leads to."""

from __future__ import annotations

import sys
import tempfile
import time
from contextlib import AsyncExitStack
from functools import partial
from pathlib import Path

import anyio
import anyio.to_process

from dgents.testing.client import Add, MakeClient
from dgents.testing.report import Outcome, judge
from dgents.testing.tasks import Writers, together

KEY = "shared"
_MEETING_SECONDS = 30.0


async def processes(make_client: MakeClient, writers: int, each: int) -> Outcome:
    """Append from two processes that begin together."""
    async with make_client() as client:
        await client.write(KEY, [])
    acknowledged: list[str] = []
    refused: list[str] = []
    with tempfile.TemporaryDirectory() as meeting:

        async def work(number: int) -> None:
            call = partial(_child, make_client, number, max(writers // 2, 1), each, Path(meeting), running_loop())
            done, failed = await anyio.to_process.run_sync(call, cancellable=True)
            acknowledged.extend(done)
            refused.extend(failed)

        await together(work, 2)
    async with make_client() as client:
        return judge("processes", acknowledged, refused, await client.read(KEY))


def _child(
    make_client: MakeClient, number: int, writers: int, each: int, meeting: Path, loop: str
) -> tuple[list[str], list[str]]:
    """Run one process's writers; return the names of what was acknowledged and of what was refused."""
    names = [[f"{number}/{writer}/{turn}" for turn in range(each)] for writer in range(writers)]
    return anyio.run(_append_all, make_client, names, meeting, str(number), backend=loop)


async def _append_all(
    make_client: MakeClient, names: list[list[str]], meeting: Path, me: str
) -> tuple[list[str], list[str]]:
    async with AsyncExitStack() as closing:
        try:
            client = await closing.enter_async_context(make_client())
        except Exception:  # an owner that lets nobody else in refuses all of it
            client = None
        _meet(meeting, me)
        if client is None:
            return [], [name for mine in names for name in mine]
        tally = Writers(client)

        async def work(writer: int) -> None:
            for name in names[writer]:
                await tally.change(KEY, Add([name]), name)

        await together(work, len(names))
        return tally.acknowledged, tally.refused


def _meet(meeting: Path, me: str) -> None:
    """Return when both processes are here; nothing else runs in this one yet, so it may block."""
    (meeting / me).touch()
    deadline = time.monotonic() + _MEETING_SECONDS
    while len(list(meeting.iterdir())) < 2:
        if time.monotonic() > deadline:
            raise TimeoutError("the other process never came")
        time.sleep(0.001)


def running_loop() -> str:
    trio = sys.modules.get("trio")
    return "trio" if trio is not None and trio.lowlevel.in_trio_run() else "asyncio"
