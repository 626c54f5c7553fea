"""Random operations on a stream agree with a plain list."""

from __future__ import annotations

import os
import random
from pathlib import Path
from typing import Any

import pytest

import dgents
from dgents import Runtime
from tests.stream_kit import (
    EVENTS,
    LOGS,
    UserCreated,
    UserDeleted,
    UserRenamed,
    UserState,
    agent_maker,
    apply_event,
)

pytestmark = pytest.mark.anyio


class Model:
    """A stream as the list of its events."""

    def __init__(self) -> None:
        self.events: list[Any] = []
        self.floor = 0

    def state(self, version: int | None = None) -> UserState:
        state = UserState()
        for event in self.events[:version]:
            state = apply_event(state, event)
        return state

    def accepts(self, events: list[Any]) -> bool:
        state = self.state()
        try:
            for event in events:
                state = apply_event(state, event)
        except (KeyError, ValueError):
            return False
        return True


def random_event(chance: random.Random) -> Any:
    user, name = f"u{chance.randrange(6)}", chance.choice(["x", "y", "forbidden"])
    kind = chance.choice([UserCreated, UserCreated, UserRenamed, UserDeleted])
    return kind(user) if kind is UserDeleted else kind(user, name)


async def append(stream: Any, model: Model, chance: random.Random) -> None:
    events = [random_event(chance) for _ in range(chance.choice([1, 1, 1, 3]))]
    request_id = chance.choice([None, f"r{chance.random()}"])
    guess = chance.choice([None, None, len(model.events), 0])
    fits = guess in (None, len(model.events))
    call = stream.append_all(events, if_version=guess, request_id=request_id)
    if not fits or not model.accepts(events):
        with pytest.raises((KeyError, ValueError) if fits else dgents.VersionConflictError):
            await call
        return
    model.events += events
    assert await call == len(model.events)
    if request_id is not None:
        assert await stream.append(UserDeleted("nobody"), request_id=request_id) == len(model.events)


async def look(stream: Any, model: Model, chance: random.Random) -> None:
    newest = len(model.events)
    assert await stream.load() == model.state()
    version = chance.randrange(model.floor, newest + 1)
    assert await stream.load(version=version) == model.state(version)
    limit = chance.randrange(5)
    history = [model.state(n) for n in range(max(newest - limit, model.floor) + 1, newest + 1)]
    assert await stream.history(limit) == history
    assert [event async for event in stream.events(since=version)] == model.events[version:]
    assert await stream.verify() == newest - model.floor


async def compact(stream: Any, model: Model, chance: random.Random) -> None:
    before = chance.randrange(1, len(model.events) + 2)
    model.floor = max(model.floor, before - 1)
    assert await stream.compact(before=before) == len(model.events) - model.floor


async def run(log: str, folder: Path, steps: int, seed: int) -> None:
    print("seed", seed)
    chance = random.Random(seed)
    make, model = agent_maker(log, folder), Model()
    while steps > 0:
        async with Runtime() as rt:
            stream = await rt.spawn("users", make(snapshot_every=chance.choice([1, 3, 1000]), chain=True))
            assert await stream.load() == model.state()
            for _ in range(steps if log == "memory" else chance.randrange(1, 40)):
                operation = chance.choices([append, look, compact], [12, 4, 0.4 if log != "list" else 0])[0]
                await operation(stream, model, chance)
                steps -= 1


@pytest.mark.parametrize("log", LOGS)
async def test_a_stream_agrees_with_a_plain_list(tmp_path: Path, log: str) -> None:
    await run(log, tmp_path, 150, seed=2)


@pytest.mark.torture
@pytest.mark.parametrize("log", LOGS)
async def test_a_stream_agrees_with_a_plain_list_for_long(tmp_path: Path, log: str) -> None:
    await run(log, tmp_path, 5000, int(os.environ.get("DGENTS_SEED") or random.randrange(2**32)))


def test_the_model_bites() -> None:
    model = Model()
    assert model.accepts([UserCreated("u", "x")])
    assert not model.accepts([UserDeleted("u")])
    assert len(EVENTS) == 3
