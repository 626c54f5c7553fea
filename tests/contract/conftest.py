"""Runs each contract test on every agent that has the capabilities it asks for, under asyncio and under trio."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack
from itertools import count
from pathlib import Path
from typing import Any

import pytest

from tests.contract.agents import SUBJECTS, Server, Subject
from tests.contract.world import World

_numbers = count()


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "needs(*capabilities): run on the agents that have these capabilities")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "subject" in metafunc.fixturenames:
        needed = {need for marker in metafunc.definition.iter_markers("needs") for need in marker.args}
        subjects = [subject for subject in SUBJECTS if needed <= subject.can]
        metafunc.parametrize("subject", subjects, ids=[subject.name for subject in subjects])


class Servers:
    """The servers of this session, each started when it is first needed."""

    def __init__(self, folders: pytest.TempPathFactory) -> None:
        self._folders = folders
        self._running: dict[Server, Any] = {}
        self._stack = ExitStack()

    def get(self, server: Server) -> Any:
        if server not in self._running:
            self._running[server] = self._stack.enter_context(server(self._folders.mktemp("server")))
        return self._running[server]

    def stop(self) -> None:
        self._stack.close()


@pytest.fixture(scope="session")
def servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Servers]:
    running = Servers(tmp_path_factory)
    yield running
    running.stop()


@pytest.fixture
def place(subject: Subject, servers: Servers, tmp_path: Path) -> Any:
    """Where the states of a test are kept."""
    return tmp_path if subject.server is None else servers.get(subject.server)


@pytest.fixture
async def world(subject: Subject, place: Any, anyio_backend: str) -> AsyncIterator[World]:
    """A runtime; after the test it is reopened, and what is durable compared."""
    world = World(subject, place, f"t{next(_numbers)}-")
    await world.open()
    try:
        yield world
        if world.is_durable and not world.rt.closed:
            await world.check_reopened()
    finally:
        if not world.rt.closed:
            await world.close()
