"""What the backends of a runtime share is open once at a time, and closed when nobody has it any more."""

from __future__ import annotations

import anyio
import anyio.lowlevel
import pytest

from dgents.runtime.loops import running_loop
from dgents.runtime.resources import SharedResources

pytestmark = pytest.mark.anyio


class Value:
    """Something that may be open once at a time, as a locked directory may."""

    open_now = 0

    @classmethod
    async def opened(cls) -> Value:
        await anyio.lowlevel.checkpoint()
        assert cls.open_now == 0
        cls.open_now += 1
        await anyio.lowlevel.checkpoint()
        return cls()

    async def close(self) -> None:
        await anyio.lowlevel.checkpoint()
        Value.open_now -= 1


@pytest.fixture
async def resources(anyio_backend: str) -> SharedResources:
    Value.open_now = 0
    return SharedResources(running_loop(), lambda *args, **details: None)


async def use(resources: SharedResources, times: int = 1, pause: int = 0) -> None:
    for _ in range(times):
        await resources.acquire("key", Value.opened)
        for _ in range(pause):
            await anyio.lowlevel.checkpoint()
        await resources.release("key")


async def test_a_value_is_open_once_at_a_time_however_its_users_come_and_go(resources: SharedResources) -> None:
    async with anyio.create_task_group() as tasks:
        for pause in range(5):
            tasks.start_soon(use, resources, 50, pause)
    assert Value.open_now == 0
    assert not resources._locks, "nothing is left of the key"


async def test_who_is_cancelled_while_giving_it_back_has_given_it_back(resources: SharedResources) -> None:
    await resources.acquire("key", Value.opened)
    with anyio.CancelScope() as scope:
        scope.cancel()
        await resources.release("key")
    assert Value.open_now == 0
    await use(resources)
