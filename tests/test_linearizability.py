"""Recorded concurrent histories are linearizable, also when two runtimes share one state."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from contextlib import AsyncExitStack
from itertools import count
from pathlib import Path
from random import Random
from typing import Any

import anyio
import pytest

import dgents
from tests.linearizability import FOREVER, Operation, linearizable
from tests.seeds import seeded

AGENTS: dict[str, tuple[int, Callable[[Path], Any]]] = {
    "volatile": (1, lambda folder: dgents.VolatileAgent(0)),
    "sqlite": (1, lambda folder: dgents.SQLAgent(str(folder / "s.db"), key="k")),
    "sqlite-shared": (2, lambda folder: dgents.SQLAgent(str(folder / "s.db"), key="k", ownership="shared")),
}


def register(state: Hashable, operation: Operation) -> tuple[bool, Hashable]:
    """A state that is read, added to, and compared and set."""
    kind, *values = operation.asked
    number, version = state  # type: ignore[misc]
    unknown = operation.end == FOREVER
    if kind == "read":
        return unknown or operation.answer == number, state
    if kind == "add":
        return unknown or operation.answer == number + values[0], (number + values[0], version + 1)
    expected, new = values
    if expected != version:
        return unknown or operation.answer is False, state
    return unknown or operation.answer is True, (new, version + 1)


def _at(begin: float, end: float, *asked: Any, answer: Any = None) -> Operation:
    return Operation(begin, end, asked, answer)


@pytest.mark.parametrize(
    ("history", "verdict"),
    [
        ([_at(0, 1, "add", 5, answer=5), _at(2, 3, "read", answer=5)], True),
        ([_at(0, 1, "add", 5, answer=5), _at(2, 3, "read", answer=0)], False),
        ([_at(0, 3, "add", 5, answer=5), _at(1, 2, "read", answer=0)], True),
        ([_at(0, 3, "add", 1, answer=1), _at(0, 3, "add", 1, answer=1)], False),
        ([_at(0, FOREVER, "add", 5), _at(1, 2, "read", answer=5)], True),
        ([_at(0, 3, "cas", 0, 7, answer=True), _at(0, 3, "cas", 0, 8, answer=True)], False),
        ([_at(0, 1, "read", answer=5), _at(2, 3, "add", 5, answer=5)], False),
    ],
)
def test_the_checker_tells_a_lost_update_and_a_stale_read(history: list[Operation], verdict: bool) -> None:
    assert linearizable(history, register, (0, 0)) is verdict


async def record(refs: list[dgents.Ref[int]], random: Random, clients: int, steps: int) -> list[Operation]:
    """Let clients do random operations at once; return what each asked and was answered, and when."""
    clock = count()
    history: list[Operation] = []

    async def client(ref: dgents.Ref[int]) -> None:
        for _ in range(steps):
            await anyio.lowlevel.checkpoint()
            asked: tuple[Any, ...] = random.choice([("read",), ("add", random.randrange(1, 9)), ("cas",)])
            if asked == ("cas",):
                asked = ("cas", (await ref.snapshot()).version, random.randrange(100))
            operation = Operation(next(clock), FOREVER, asked)
            history.append(operation)
            operation.answer = await _do(ref, asked)
            operation.end = next(clock)

    async with anyio.create_task_group() as tasks:
        for n in range(clients):
            tasks.start_soon(client, refs[n % len(refs)])
    return history


async def _do(ref: dgents.Ref[int], asked: tuple[Any, ...]) -> Any:
    if asked[0] == "read":
        return await ref.load()
    if asked[0] == "add":
        return await ref.update(lambda number: number + asked[1])
    try:
        await ref.save(asked[2], if_version=asked[1])
    except dgents.VersionConflictError:
        return False
    return True


async def _check(folder: Path, kind: str, random: Random, clients: int, steps: int) -> None:
    runtimes, make = AGENTS[kind]
    async with AsyncExitStack() as stack:
        opened = [await stack.enter_async_context(dgents.Runtime()) for _ in range(runtimes)]
        refs = [await rt.spawn("a", make(folder)) for rt in opened]
        if kind != "volatile":
            await refs[0].save(0)
        first = (await refs[0].snapshot()).version
        history = await record(refs, random, clients, steps)
    assert linearizable(history, register, (0, first)), history


@pytest.mark.anyio
@pytest.mark.parametrize("kind", AGENTS)
async def test_what_concurrent_clients_saw_has_a_serial_order(anyio_backend: str, tmp_path: Path, kind: str) -> None:
    await _check(tmp_path, kind, seeded(), clients=5, steps=12)


@pytest.mark.torture
@pytest.mark.anyio
@pytest.mark.parametrize("kind", AGENTS)
async def test_what_many_clients_saw_for_long_has_a_serial_order(anyio_backend: str, tmp_path: Path, kind: str) -> None:
    random = seeded()
    for number in range(50):
        folder = tmp_path / str(number)
        folder.mkdir()
        await _check(folder, kind, random, clients=5, steps=100)


@pytest.mark.anyio
async def test_shared_writers_lose_no_update_when_their_clocks_stand_still(
    anyio_backend: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two writers' versions may carry the same number and the same time: only what the store confirmed counts."""
    monkeypatch.setattr("dgents.runtime.turns.time", lambda: 1_700_000_000.0)
    _, make = AGENTS["sqlite-shared"]
    async with dgents.Runtime() as one, dgents.Runtime() as two:
        refs = [await rt.spawn("a", make(tmp_path)) for rt in (one, two)]
        await refs[0].save(0)
        async with anyio.create_task_group() as tasks:
            for n in range(40):
                tasks.start_soon(refs[n % 2].update, lambda number, step: number + step, (1, 1000)[n % 2])
        assert [await ref.load() for ref in refs] == [20_020, 20_020]
