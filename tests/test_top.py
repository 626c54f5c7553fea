"""`dgents top` and the socket behind it."""

from __future__ import annotations

import io
import stat
from pathlib import Path

import anyio
import pytest
from rich.console import Console

import dgents
from dgents.top import look, render, top

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


@pytest.mark.parametrize("width", [80, 120])
async def test_no_line_is_torn_at_the_width_of_the_terminal(width: int, tmp_path: Path) -> None:
    name = "user/" + "long" * 20
    async with dgents.Runtime(inspect=tmp_path / "socket") as rt:
        await (await rt.spawn(name, dgents.SQLAgent(str(tmp_path / "s.db")))).save({"n": 1})
        now = await anyio.to_thread.run_sync(look, tmp_path / "socket")
    now["actors"][name] |= {"mailbox": 1_024, "turns": 1_234_567, "version": 1_234_567, "at_risk": 16_000, "busy": True}
    before = {"actors": {name: now["actors"][name] | {"turns": 0}}}
    shown = io.StringIO()
    Console(file=shown, width=width).print(render(now, before, 1.0, width))
    *_, tree, _, head, row = shown.getvalue().splitlines()
    assert "user/long" in tree
    assert {"actor", "state", "mailbox", "turns/s", "p50", "p99", "risk"} <= set(head.split())
    assert {"running", "*", "1,024", "1,234,567", "16,000"} <= set(row.split())


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
