"""`dgents top`: the live supervision tree of a running runtime."""

from __future__ import annotations

import json
import socket
import time
from pathlib import Path
from typing import Any

from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from dgents.runtime.errors import StorageError

_INTERVAL = 1.0  # seconds between two looks
_MOST_ROWS = 40


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
            live.update(render(now, before, at - before_at))
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


def render(now: dict[str, Any], before: dict[str, Any] | None, seconds: float) -> Group:
    """Return the tree and the busiest actors, with the turns a second since the look before."""
    table = Table("actor", "state", "mailbox", "turns/s", "restarts", "version", "commit p50", "p99", "at risk")
    for column in table.columns[2:]:
        column.justify = "right"
    earlier = before["actors"] if before is not None else {}
    rows = []
    for name, figures in now["actors"].items():
        turns = figures["turns"] - earlier.get(name, figures)["turns"]
        rows.append((turns / seconds if before is not None else 0.0, name, figures))
    rows.sort(key=lambda row: (-row[0], row[1]))
    for rate, name, figures in rows[:_MOST_ROWS]:
        table.add_row(
            Text(name),
            figures["phase"] + (" *" if figures["busy"] else ""),
            str(figures["mailbox"]),
            f"{rate:,.0f}",
            str(figures["restarts"]),
            str(figures["version"]),
            _milliseconds(figures["commit_p50"]),
            _milliseconds(figures["commit_p99"]),
            str(figures["at_risk"]),
        )
    lines = now["tree"].splitlines()
    tree = "\n".join(
        lines[:_MOST_ROWS] + ([f"... and {len(lines) - _MOST_ROWS} more"] if len(lines) > _MOST_ROWS else [])
    )
    return Group(Text(f"process {now['pid']}, {len(now['actors'])} actors"), Text(tree), table)


def _milliseconds(seconds: float | None) -> str:
    return "" if seconds is None else f"{seconds * 1000:.2f} ms"
