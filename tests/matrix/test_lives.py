"""Every composition of an agent and its wrappers goes through random lives without breaking a promise."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from dgents.testing.lives.kit import BrokenPromise, Lived, live
from tests.contract.conftest import Servers
from tests.matrix.compositions import LEAVES, Composition, names

pytestmark = pytest.mark.anyio

LONG = int(os.environ.get("DGENTS_OPERATIONS", "0")) or 9_200  # of one composition under one loop: a million of all
SHORT = 120
AT_A_TIME = 24  # scripts: while one waits, another runs
EMBEDDED, ON_SERVERS = names("embedded"), names("server")


def _ids(chosen: list[tuple[str, str]]) -> list[str]:
    return ["/".join(each) for each in chosen]


def _url(leaf: str, servers: Servers) -> str:
    server = LEAVES[{"stream-redis": "redis", "stream-postgres": "postgres"}.get(leaf, leaf)].server
    assert server is not None
    url: str = servers.get(server).url
    return url


def _seed(operations: int) -> int | None:
    """Return what repeats a run: the one that is asked for, none for a long one, the same one for each short one."""
    seed = os.environ.get("DGENTS_SEED")
    return int(seed) if seed else (None if operations == LONG else 1)


def _folders(folder: Path) -> list[str]:
    folders = [folder / str(number) for number in range(AT_A_TIME)]
    for each in folders:
        each.mkdir()
    return [str(each) for each in folders]


async def _live(leaf: str, wrapping: str, operations: int, folder: Path, url: str = "") -> Lived:
    compositions = [Composition(leaf, wrapping, each, url) for each in _folders(folder)]
    try:
        lived = await live(compositions, compositions[0].can, operations, _seed(operations))
    except BrokenPromise as broken:
        print(f"{compositions[0].name}: {broken}")  # at once: the other compositions may take an hour
        raise
    print(f"{compositions[0].name}: {lived}")
    return lived


short_and_long = pytest.mark.parametrize(
    "operations", [pytest.param(SHORT, id="short"), pytest.param(LONG, id="long", marks=pytest.mark.torture)]
)


@short_and_long
@pytest.mark.parametrize(("leaf", "wrapping"), EMBEDDED, ids=_ids(EMBEDDED))
async def test_no_promise_is_broken_on_an_embedded_store(
    leaf: str, wrapping: str, operations: int, tmp_path: Path
) -> None:
    assert (await _live(leaf, wrapping, operations, tmp_path)).undecided == 0


@short_and_long
@pytest.mark.parametrize(("leaf", "wrapping"), ON_SERVERS, ids=_ids(ON_SERVERS))
async def test_no_promise_is_broken_on_a_server(
    leaf: str, wrapping: str, operations: int, tmp_path: Path, servers: Servers
) -> None:
    assert (await _live(leaf, wrapping, operations, tmp_path, _url(leaf, servers))).undecided == 0
