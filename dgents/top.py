"""`dgents top`: the live supervision tree of a running runtime."""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from dgents.runtime.errors import StorageError

_INTERVAL = 1.0  # seconds between two looks
_MOST_ROWS = 40
_WIDE = 100  # columns, from which on a table has room for everything


def top(path: Path, *, rounds: int | None = None, console: Console | None = None) -> None:
    """Show what the runtime behind a socket is doing, until interrupted.

    Args:
        path: the socket: what the program gave as ``Runtime(inspect=PATH)``.
        rounds: how many looks; None: until interrupted, or until the runtime has ended.

    Raises:
        StorageError: no runtime answers there.
    """
    console = console or Console()
    before, before_at = None, 0.0
    with Live(console=console, refresh_per_second=4) as live:
        while rounds is None or rounds > 0:
            try:
                now = look(path)
            except StorageError:
                if before is None:
                    raise
                return  # the runtime has ended
            at = time.monotonic()
            live.update(render(now, before, at - before_at, console.width))
            before, before_at = now, at
            rounds = None if rounds is None else rounds - 1
            if rounds != 0:
                time.sleep(_INTERVAL)


def look(path: Path) -> dict[str, Any]:
    """Return what a runtime tells of itself."""
    try:
        with socket.socket(socket.AF_UNIX) as connection:
            connection.settimeout(5.0)
            connection.connect(str(path))
            with connection.makefile("rb") as stream:
                told: dict[str, Any] = json.loads(stream.readline())
    except (OSError, ValueError) as error:
        raise StorageError(
            f"no runtime answers at {path}: {error}", hint="start it as dgents.Runtime(inspect=PATH)"
        ) from error
    return told


def render(now: dict[str, Any], before: dict[str, Any] | None, seconds: float, width: int = _WIDE) -> Group:
    """Return the tree and the busiest actors, with the turns a second since the look before.

    Args:
        width: columns of the terminal; where it is narrow, the table leaves out what the tree tells too.
    """
    left_out = () if width >= _WIDE else ("restarts", "version")
    shown = {title: figure for title, figure in _FIGURES.items() if title not in left_out}
    earlier = before["actors"] if before is not None else {}
    rows = []
    for name, figures in now["actors"].items():
        turns = figures["turns"] - earlier.get(name, figures)["turns"]
        rows.append((turns / seconds if before is not None else 0.0, name, figures))
    rows.sort(key=lambda row: (-row[0], row[1]))
    table = Table(box=None, pad_edge=False)
    room = width - _STATE - sum(columns + _GAP for columns, _ in shown.values()) - _GAP
    table.add_column("actor", no_wrap=True, max_width=max(room, _SHORTEST))
    table.add_column("state", no_wrap=True)
    for title in shown:
        table.add_column(title, justify="right", no_wrap=True)
    for rate, name, figures in rows[:_MOST_ROWS]:
        cells = [make(figures, rate) for _, make in shown.values()]
        table.add_row(Text(name), figures["phase"] + (" *" if figures["busy"] else ""), *cells)
    lines = now["tree"].splitlines()
    tree = "\n".join(
        lines[:_MOST_ROWS] + ([f"... and {len(lines) - _MOST_ROWS} more"] if len(lines) > _MOST_ROWS else [])
    )
    head = Text(f"process {now['pid']}, {len(now['actors'])} actors")
    return Group(head, Text(tree, no_wrap=True, overflow="ellipsis"), Text(), table)


def _milliseconds(seconds: float | None) -> str:
    return "" if seconds is None else f"{seconds * 1000:,.2f}"


# The columns of figures: how wide each may get, and what it shows of an actor's figures and its turns a second.
_FIGURES: dict[str, tuple[int, Callable[[dict[str, Any], float], str]]] = {
    "mailbox": (7, lambda figures, rate: f"{figures['mailbox']:,}"),
    "turns/s": (9, lambda figures, rate: f"{rate:,.0f}"),
    "restarts": (8, lambda figures, rate: f"{figures['restarts']:,}"),
    "version": (11, lambda figures, rate: f"{figures['version']:,}"),
    "p50 ms": (8, lambda figures, rate: _milliseconds(figures["commit_p50"])),
    "p99 ms": (8, lambda figures, rate: _milliseconds(figures["commit_p99"])),
    "at risk": (7, lambda figures, rate: f"{figures['at_risk']:,}"),
}
_STATE = len("restarting *")
_GAP = 2
_SHORTEST = 8
