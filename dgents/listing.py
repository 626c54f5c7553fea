"""What the command line prints of stored states: for people to read, and for grep and jq."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any

from dgents.changes import ABSENT, Change, changes
from dgents.runtime.contract import Record
from dgents.runtime.describe import describe
from dgents.stores import Store, Stored, Summary

_LONGEST_VALUE = 60  # characters of a value in a list of changes


def print_states(store: Store, place: str, *, alone: bool = True) -> bool:
    """Print a line a state; the key comes last, since it may be of any length. Say whether anything was printed.

    Args:
        alone: say so, if there is none.
    """
    rows = (one.summary() for one in store.entries())
    count = 0
    for row in rows:
        if not row.version:
            continue
        if not count:
            print(f"{_head(row)}  {'table':<12}  key" if row.table is not None else f"{_head(row)}  key")
        count += 1
        size = "deleted" if row.size is None else f"{row.size:,}"
        line = f"{row.version:>9,}  {row.versions:>6,}  {size:>12}  {_when(row.saved_at):<19}"
        table = f"  {escaped(row.table):<12}" if row.table is not None else ""
        print(f"{line}{table}  {escaped(row.key)}")
    others = ", ".join(other.what for other in store.others())
    if not count and (alone or others):
        print(f"there are no states in {place}" + (f", but {others}" if others else ""))
    elif others:
        print(f"beside these: {others}")
    return bool(count or alone or others)


def _head(row: Summary) -> str:
    number = "event" if row.is_stream else "version"
    return f"{number:>9}  {'kept':>6}  {'bytes':>12}  {'saved (UTC)':<19}"


def to_json(stored: Stored) -> str:
    """Return the current version of a state, or the newest event of a stream, and what is known about it, as JSON."""
    current = stored.records[-1]
    unit = "version" if stored.classes is None else "event"
    shown = {
        "key": stored.key,
        **({} if stored.table is None else {"table": stored.table}),
        unit if stored.classes is None else "number": current.version,
        **({} if stored.classes is None else {"class": stored.classes[-1]}),
        "epoch": current.epoch,
        "saved_at": datetime.fromtimestamp(current.saved_at, UTC).isoformat(),
        "schema": current.schema,
        f"{unit}s": len(stored.records),
        "bytes": None if current.data is None else len(current.data),
    }
    if current.data is None:
        return _dump({**shown, "deleted": True}, indent=2)
    return _dump({**shown, "state" if stored.classes is None else "event": describe(current.data)}, indent=2)


def print_history(stored: Stored, limit: int | None = None) -> None:
    """Print the newest versions, oldest first, each with what changed from the one before it; events as they are."""
    first = 0 if limit is None else max(0, len(stored.records) - limit)
    if stored.classes is not None:
        for record, name in list(zip(stored.records, stored.classes, strict=True))[first:]:
            print(f"event {record.version:,}  {_saved(record)}  {escaped(name)}")
            print(f"  {_value(describe(record.data or b''))}")
        return
    states = [ABSENT if record.data is None else describe(record.data) for record in stored.records]
    for number, record in enumerate(stored.records[first:], first):
        print(f"version {record.version:,}  {_saved(record)}")
        if record.data is None:
            continue
        if number == 0:
            print(f"  {_value(states[0])}")
        else:
            _print_changes(states[number - 1], states[number])


def _saved(record: Record) -> str:
    size = "deleted" if record.data is None else f"{len(record.data):,} bytes"
    return f"{_when(record.saved_at)} UTC  {size}"


def _print_changes(before: Any, after: Any) -> None:
    found = list(changes(before, after))
    for change in found:
        print(f"  {_line(change)}")
    if not found:
        print("  the same")


def _line(change: Change) -> str:
    path = f"{escaped(change.path)}: " if change.path else ""
    if change.before is ABSENT:
        return f"+ {path}{_value(change.after)}"
    if change.after is ABSENT:
        return f"- {path}{_value(change.before)}"
    return f"~ {path}{_value(change.before)} -> {_value(change.after)}"


def escaped(text: str) -> str:
    """Return ``text`` without what could steer a terminal or break a line."""
    return "".join(letter if letter.isprintable() else repr(letter)[1:-1] for letter in text)


@contextmanager
def progress(what: str) -> Iterator[Callable[[int, int], None]]:
    """Show a bar on stderr while the block runs; nothing if that is no terminal."""
    if not sys.stderr.isatty():
        yield lambda done, total: None
        return
    from rich.console import Console
    from rich.progress import Progress

    with Progress(console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(what, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)


def _value(value: Any) -> str:
    text = _dump(value)
    return text if len(text) <= _LONGEST_VALUE else f"{text[: _LONGEST_VALUE - 1]}…"


def _dump(value: Any, indent: int | None = None) -> str:
    text = json.dumps(value, ensure_ascii=False, indent=indent)
    # JSON escapes what is below the space; a terminal obeys what is above the tilde, too.
    return "".join(letter if letter.isprintable() or letter == "\n" else _unicode_escape(letter) for letter in text)


def _unicode_escape(letter: str) -> str:
    return json.dumps(letter)[1:-1]


def _when(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M:%S")
