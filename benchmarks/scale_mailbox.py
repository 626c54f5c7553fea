"""The panel of ``scale`` on mailboxes: what a message costs of which many wait for one busy actor."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from time import perf_counter

import anyio

import dgents
from dgents.benchmarks.bench import Bench
from dgents.benchmarks.measure import Sample
from dgents.benchmarks.scale_place import Place, rounds_for

PANEL = "messages in a mailbox"
COUNTS, QUICK_COUNTS = (1, 10, 100, 1_000, 10_000, 100_000), (1, 1_000)
TELL, TURN = "tell, each message", "until all are done, each message"
CURVES = dict.fromkeys((TELL, TURN), "µs")
ENOUGH = 10_000  # messages altogether, at least


def places(bench: Bench) -> Iterator[Place]:
    """Give the places of the panel."""
    for count in QUICK_COUNTS if bench.quick else COUNTS:
        yield Place(panel=PANEL, x=count, round=partial(round, count), curves=CURVES, rounds=rounds_for(count))


async def round(count: int, directory: Path) -> Sample:
    """Tell a busy actor ``count`` messages, let it go on, and wait until it has done them, in their order."""
    repeats = max(1, ENOUGH // count)
    telling = working = 0.0
    async with dgents.Runtime(mailbox_size=count + 1) as runtime:
        ref = await runtime.spawn("counter", dgents.VolatileAgent(0))
        for repeat in range(repeats):
            messages = [dgents.Update(_follow, (number,)) for number in range(repeat * count, (repeat + 1) * count)]
            busy, done = anyio.Event(), anyio.Event()

            async def wait(state: int, busy: anyio.Event = busy, done: anyio.Event = done) -> int:
                busy.set()
                await done.wait()
                return state

            async with anyio.create_task_group() as tasks:
                tasks.start_soon(ref.update, wait)
                await busy.wait()
                started = perf_counter()
                for message in messages:
                    ref.tell(message)
                told = perf_counter()
                done.set()
                found = await ref.load()  # it waits its turn behind the messages
                working += perf_counter() - told
                telling += told - started
    total = repeats * count
    return Sample(
        operations=total,
        seconds=telling + working,
        expected=total,
        found=found,
        details={TELL: telling / total * 1e6, TURN: working / total * 1e6},
    )


def _follow(state: int, number: int) -> int:
    """Return the next state, if this message is the next one."""
    if state != number:
        raise ValueError(f"message {number} came after {state} others")
    return state + 1
