"""`dgents top` and the socket behind it."""

from __future__ import annotations

import io
import stat
from pathlib import Path

import anyio
import pytest
from rich.console import Console

import dgents
from dgents.top import look, top

pytestmark = pytest.mark.anyio


async def test_top_shows_the_tree_and_the_figures_of_a_running_runtime(tmp_path: Path) -> None:
    async with dgents.Runtime(inspect=tmp_path / "socket") as rt:
        team = await rt.supervisor("team", strategy="one_for_all")
        await (await team.spawn("worker", dgents.VolatileAgent(0))).update(lambda n: n + 1)
        shown = io.StringIO()
        console = Console(file=shown, width=120)
        await anyio.to_thread.run_sync(lambda: top(tmp_path / "socket", rounds=1, console=console))
    assert "team (one_for_all)" in shown.getvalue()
    assert "worker" in shown.getvalue()


async def test_only_its_owner_may_look_in(tmp_path: Path) -> None:
    async with dgents.Runtime(inspect=tmp_path / "socket"):
        assert stat.S_IMODE((tmp_path / "socket").stat().st_mode) == 0o600


async def test_the_socket_goes_with_its_runtime(tmp_path: Path) -> None:
    async with dgents.Runtime(inspect=tmp_path / "socket"):
        pass
    assert not (tmp_path / "socket").exists()
    with pytest.raises(dgents.StorageError, match="no runtime answers"):
        look(tmp_path / "socket")


async def test_the_socket_of_a_dead_process_is_replaced(tmp_path: Path) -> None:
    listener = await anyio.create_unix_listener(tmp_path / "socket")
    await listener.aclose()
    async with dgents.Runtime(inspect=tmp_path / "socket"):
        told = await anyio.to_thread.run_sync(look, tmp_path / "socket")
    assert told["actors"] == {}


async def test_another_file_in_its_place_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "socket").write_text("precious")
    with pytest.raises(dgents.StorageError):
        async with dgents.Runtime(inspect=tmp_path / "socket"):
            pass
    assert (tmp_path / "socket").read_text() == "precious"


@pytest.mark.anyio
async def test_a_second_runtime_does_not_take_the_socket_of_the_first(anyio_backend: str, tmp_path: Path) -> None:
    async with dgents.Runtime(inspect=tmp_path / "s"):
        with pytest.raises(dgents.StorageError, match="another runtime"):
            async with dgents.Runtime(inspect=tmp_path / "s"):
                pass
        assert (tmp_path / "s").is_socket()
