"""A projection applies each event of a stream to another state, once, whatever stops in between."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest

import dgents
from dgents import PersistentAgent, Runtime, SQLAgent, VolatileAgent
from tests.stream_kit import add, agent_maker

pytestmark = pytest.mark.anyio


def numbers(folder: Path, log: str = "journal") -> Any:
    return agent_maker(log, folder)(fold=add, initial=0, events=[int], schema=int)


def note(seen: list[int], event: int) -> list[int]:
    return [*seen, event]


@pytest.fixture(params=["file", "sql"])
def target(request: pytest.FixtureRequest, tmp_path: Path) -> Any:
    if request.param == "file":
        return PersistentAgent(tmp_path / "target.json", schema=list[int])
    return SQLAgent(str(tmp_path / "target.db"), schema=list[int])


async def test_a_projection_follows_its_stream() -> None:
    async with Runtime() as rt:
        stream: Any = await rt.spawn("numbers", numbers(Path(), "memory"))
        seen = await rt.spawn("seen", VolatileAgent([]))
        await stream.append_all([1, 2, 3])
        projection = await rt.project(stream, note, into=seen)
        assert await seen.load() == [1, 2, 3]
        await stream.append(4)
        await projection.caught_up()
        assert await seen.load() == [1, 2, 3, 4]
        assert projection.position == 4


async def test_a_projection_goes_on_after_a_restart_with_what_it_has_not_applied(tmp_path: Path, target: Any) -> None:
    for session in range(4):
        async with Runtime() as rt:
            stream: Any = await rt.spawn("numbers", numbers(tmp_path))
            await stream.append_all(range(300 * session, 300 * (session + 1)))
            seen = await rt.spawn("seen", target)
            await rt.project(stream, note, into=seen, default=[])
            await stream.append(-session)  # perhaps projected before the runtime closes, perhaps not
    async with Runtime() as rt:
        stream = await rt.spawn("numbers", numbers(tmp_path))
        seen = await rt.spawn("seen", target)
        await rt.project(stream, note, into=seen, default=[])
        assert await seen.load() == [event async for event in stream.events()]


async def test_each_event_is_applied_once_whenever_it_is_stopped(tmp_path: Path, target: Any) -> None:
    chance = random.Random(5)
    async with Runtime() as rt:
        stream: Any = await rt.spawn("numbers", numbers(tmp_path))
        seen = await rt.spawn("seen", target)
        for _ in range(10):
            projection = rt.project(stream, note, into=seen, default=[])
            await stream.append_all(range(chance.randrange(1, 600)))
            await projection.stop()
        await rt.project(stream, note, into=seen, default=[])
        assert await seen.load() == [event async for event in stream.events()]


async def test_others_may_write_the_target_meanwhile() -> None:
    async with Runtime() as rt:
        stream: Any = await rt.spawn("numbers", numbers(Path(), "memory"))
        total = await rt.spawn("total", VolatileAgent(0))
        projection = await rt.project(stream, add, into=total)
        for n in range(20):
            await stream.append(n)
            await total.update(lambda state: state + 1000, request_id=f"mine {n}")
        await projection
        assert await total.load() == sum(range(20)) + 20_000


async def test_an_event_that_can_not_be_projected_stops_it_there() -> None:
    def picky(seen: list[int], event: int) -> list[int]:
        if event == 3:
            raise ValueError("not that one")
        return [*seen, event]

    async with Runtime() as rt:
        stream: Any = await rt.spawn("numbers", numbers(Path(), "memory"))
        seen = await rt.spawn("seen", VolatileAgent([]))
        await stream.append_all([1, 2, 3, 4])
        with pytest.raises(ValueError, match="not that one") as refused:
            await rt.project(stream, picky, into=seen)
        assert "event 3 of 'numbers' could not be projected" in refused.value.__notes__
        assert await seen.load() == [1, 2]
        await rt.project(stream, note, into=seen)
        assert await seen.load() == [1, 2, 3, 4]


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit])
async def test_an_interrupt_in_its_function_ends_the_projection_alone(error: type[BaseException]) -> None:
    def interrupted(seen: list[int], event: int) -> list[int]:
        raise error

    async with Runtime() as rt:
        stream: Any = await rt.spawn("numbers", numbers(Path(), "memory"))
        seen = await rt.spawn("seen", VolatileAgent([]))
        await stream.append(1)
        with pytest.raises(error):
            await rt.project(stream, interrupted, into=seen)
        await rt.project(stream, note, into=seen)
        assert await seen.load() == [1]


async def test_a_position_that_is_not_known_any_more_is_not_guessed() -> None:
    async with Runtime() as rt:
        stream: Any = await rt.spawn("numbers", numbers(Path(), "memory"))
        total = await rt.spawn("total", VolatileAgent(0))
        await stream.append(1)
        await (await rt.project(stream, add, into=total)).stop()
        for n in range(1000):
            await total.update(lambda state: state, request_id=f"mine {n}")
        with pytest.raises(dgents.UnsupportedOperationError, match="is not known any more"):
            await rt.project(stream, add, into=total)
        assert await total.load() == 1


async def test_a_projection_needs_a_stream_and_a_target_of_its_own() -> None:
    async with Runtime() as rt:
        stream: Any = await rt.spawn("numbers", numbers(Path(), "memory"))
        total = await rt.spawn("total", VolatileAgent(0))
        for source, into in ((total, total), (stream, stream)):
            with pytest.raises(dgents.UnsupportedOperationError):
                rt.project(source, add, into=into)
        rt.project(stream, add, into=total)
        with pytest.raises(dgents.NameTakenError):
            rt.project(stream, add, into=total)


async def test_a_projection_ends_with_its_stream() -> None:
    async with Runtime() as rt:
        stream: Any = await rt.spawn("numbers", numbers(Path(), "memory"))
        total = await rt.spawn("total", VolatileAgent(0))
        projection = await rt.project(stream, add, into=total)
        await rt.stop(stream)
        await projection.stop()
        with pytest.raises(dgents.ActorStoppedError):
            await projection.caught_up()
