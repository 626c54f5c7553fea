"""The rounds that contenders run: load, save or increment, in one task or in many, and the proof of it.

What is durable is proved by closing everything, opening it again, and reading.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from pathlib import Path
from time import perf_counter
from typing import Any, TypeAlias

from dgents.benchmarks.loops import run_tasks
from dgents.benchmarks.measure import Sample
from dgents.benchmarks.ours import Dgent
from dgents.benchmarks.peers import Operation, Peer
from dgents.benchmarks.states import profile

MakePeer: TypeAlias = Callable[[], Peer]
Round: TypeAlias = Callable[[Path], Awaitable[Sample]]

_READERS = 100


def loads(make: MakePeer, count: int, state: Any) -> Round:
    """Load ``count`` times; the last copy must equal what was saved."""

    async def round(directory: Path) -> Sample:
        peer = make()
        await peer.setup(directory, state)
        try:
            operation, found = peer.load, None
            started = perf_counter()
            for _ in range(count):
                found = await operation()
            seconds = perf_counter() - started
        finally:
            await peer.close()
        return Sample(operations=count, seconds=seconds, expected=state, found=found)

    return round


def saves(make: MakePeer, count: int, *, tasks: int = 1, reopens: bool = True) -> Round:
    """Save ``count`` times, from each of ``tasks`` tasks its share, to a key of its own.

    The last state of each key must be there, with ``reopens`` when everything was closed and is opened again.
    """
    each = count // tasks

    async def round(directory: Path) -> Sample:
        peer = make()
        await peer.setup(directory, profile(), tasks)
        latencies: list[float] = []
        try:
            started = perf_counter()
            await run_tasks(_saving(peer.save, each, tasks, latencies), tasks)
            seconds = perf_counter() - started
            details = _commits(peer)
            found = None if reopens else await _visits(peer, tasks)
        finally:
            await peer.close()
        return Sample(
            operations=each * tasks,
            seconds=seconds,
            latencies=latencies,
            expected=[each] * tasks,
            found=await _reopened(make(), directory, tasks) if reopens else found,
            details=details,
        )

    return round


def timed_loads(make: MakePeer, tasks: int, each: int) -> Round:
    """Load ``each`` times from each of ``tasks`` tasks, and record latencies; the last copy must be what was saved."""

    async def round(directory: Path) -> Sample:
        peer, state = make(), profile()
        await peer.setup(directory, state)
        latencies: list[float] = []
        try:
            started = perf_counter()
            await run_tasks(_timed(peer.load, each, tasks, 1, latencies), tasks)
            seconds = perf_counter() - started
            found = await peer.load()
        finally:
            await peer.close()
        return Sample(operations=tasks * each, seconds=seconds, latencies=latencies, expected=state, found=found)

    return round


def increments(
    make: MakePeer,
    tasks: int,
    each: int,
    *,
    keys: int = 1,
    initial: Any = None,
    timed: bool = False,
    reopens: bool = False,
) -> Round:
    """Increment ``each`` times from each of ``tasks`` tasks, the keys in turn; every one of them must be in the sums.

    Args:
        timed: record latencies, which distorts what takes less than a microsecond.
        reopens: count after everything was closed and opened again.
    """

    async def round(directory: Path) -> Sample:
        peer = make()
        await peer.setup(directory, profile() if initial is None else initial, keys)
        latencies: list[float] = []
        try:
            plain = _plain(peer.increment, each, tasks, keys)
            work = _timed(peer.increment, each, tasks, keys, latencies) if timed else plain
            started = perf_counter()
            await run_tasks(work, tasks)
            seconds = perf_counter() - started
            found = None if reopens else await _visits(peer, keys)
        finally:
            await peer.close()
        return Sample(
            operations=tasks * each,
            seconds=seconds,
            latencies=latencies,
            expected=_shares(tasks * each, keys),
            found=await _reopened(make(), directory, keys) if reopens else found,
        )

    return round


def durable_increments(
    make: Callable[[], Dgent], tasks: int, each: int, *, keys: int = 1, max_history: int = 100
) -> Round:
    """Do the same with actors that are stored, and record latencies.

    Every increment must be there when everything was closed and is opened again, and so must as many versions as
    ``max_history`` says.
    """

    async def round(directory: Path) -> Sample:
        dgent = make()
        await dgent.setup(directory, profile(), keys)
        latencies: list[float] = []
        try:
            work = _timed(dgent.increment, each, tasks, keys, latencies)
            started = perf_counter()
            await run_tasks(work, tasks)
            seconds = perf_counter() - started
            details = _commits(dgent)
        finally:
            await dgent.close()
        written = 1 + tasks * each // keys  # the initial state is a version too
        return Sample(
            operations=tasks * each,
            seconds=seconds,
            latencies=latencies,
            expected=([written - 1] * keys, min(written, max(max_history, 1))),
            found=await _stored(make(), directory, keys),
            details=details,
        )

    return round


def _saving(operation: Operation, each: int, keys: int, latencies: list[float]) -> Callable[[int], Awaitable[None]]:
    async def work(number: int) -> None:
        key = () if keys == 1 else (number,)
        state = profile()
        for visits in range(1, each + 1):
            state["visits"] = visits
            started = perf_counter()
            await operation(state, *key)
            latencies.append(perf_counter() - started)

    return work


def _plain(operation: Operation, each: int, tasks: int, keys: int) -> Callable[[int], Awaitable[None]]:
    async def work(number: int) -> None:
        if keys == 1:
            for _ in range(each):
                await operation()
        else:
            for turn in range(number, tasks * each, tasks):
                await operation(turn % keys)

    return work


def _timed(
    operation: Operation, each: int, tasks: int, keys: int, latencies: list[float]
) -> Callable[[int], Awaitable[None]]:
    async def work(number: int) -> None:
        for turn in range(number, tasks * each, tasks):
            key = () if keys == 1 else (turn % keys,)
            started = perf_counter()
            await operation(*key)
            latencies.append(perf_counter() - started)

    return work


def _shares(operations: int, keys: int) -> list[int]:
    """Return how many of the operations, which take the keys in turn, each key gets."""
    return [operations // keys + (key < operations % keys) for key in range(keys)]


async def _visits(peer: Peer, keys: int) -> list[int]:
    """Read how often each key was incremented."""
    found = [0] * keys
    readers = min(keys, _READERS)

    async def read(number: int) -> None:
        for key in range(number, keys, readers):
            state = await (peer.load() if keys == 1 else peer.load(key))
            found[key] = state if isinstance(state, int) else state["visits"]

    await run_tasks(read, readers)
    return found


async def _reopened(peer: Peer, directory: Path, keys: int) -> list[int]:
    """Read the same from what ``directory`` holds."""
    await peer.setup(directory, None, keys)
    try:
        return await _visits(peer, keys)
    finally:
        await peer.close()


async def _stored(dgent: Dgent, directory: Path, keys: int) -> tuple[list[int], int]:
    """Read the same from what ``directory`` holds, and how many versions of the first key there are."""
    await dgent.setup(directory, None, keys)
    try:
        return await _visits(dgent, keys), len(await dgent.refs[0].history())
    finally:
        await dgent.close()


def _commits(peer: Peer) -> dict[str, float]:
    """Return how long the store's commits took, if the peer is one of ours and has a store."""
    if not isinstance(peer, Dgent):
        return {}
    first = next(iter(peer.runtime.stats().values()))
    if first.commit_p50 is None or first.commit_p99 is None:
        return {}
    return {"commit p50 ms": first.commit_p50 * 1e3, "commit p99 ms": first.commit_p99 * 1e3}
