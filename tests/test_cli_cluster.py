"""The command line looks into a cluster as into one server."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import anyio
import pytest

from dgents import RedisAgent, Runtime
from dgents.cli import main
from tests.redis_server import cluster_url, redis_cluster
from tests.stream_kit import UserCreated, agent_maker


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Return the URL of a cluster that holds a stream and a state."""
    with redis_cluster(tmp_path_factory.mktemp("cluster")) as server:

        async def fill() -> None:
            async with Runtime() as rt:
                stream = await rt.spawn("users", agent_maker("memory", Path())(event_log=cluster_url(server)))
                await stream.append_all([UserCreated(f"u{n}", "x") for n in range(3)])
                await (await rt.spawn("state", RedisAgent(cluster_url(server), max_history=2))).save({"n": 1})

        anyio.run(fill)
        yield cluster_url(server)


@pytest.mark.parametrize("command", ["inspect", "verify", "history", "show"])
def test_a_command_reads_a_cluster(url: str, command: str, capsys: pytest.CaptureFixture[str]) -> None:
    key = {"history": ["state"], "show": ["state"]}.get(command, [])
    assert main(["inspect" if command == "show" else command, url, *key]) == 0
    found = capsys.readouterr().out
    assert {"inspect": "state", "verify": "all whole", "history": "version 1", "show": '"n": 1'}[command] in found


def test_states_are_copied_out_of_a_cluster(url: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["copy", url, f"{tmp_path}/copy.db"]) == 0
    assert main(["inspect", f"{tmp_path}/copy.db", "state"]) == 0
    assert '"n": 1' in capsys.readouterr().out
