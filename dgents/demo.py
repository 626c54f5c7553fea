"""``dgents demo``: the main job in a minute, on embedded backends, in a temporary folder.

Nothing in it is staged: each number is counted in this run.
"""

from __future__ import annotations

import copy
import subprocess
import sys
import tempfile
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import Any, Protocol

import anyio
import anyio.lowlevel
from rich import box
from rich.console import Console
from rich.table import Table

import dgents
from dgents import victim

AGENTS = 50
EACH = 20
ACKNOWLEDGED = 300  # saves after which the victim is killed

_FIRST_STEPS = """\
    ada = await rt.spawn("profile/ada", dgents.PersistentAgent("ada.json"))
    await ada.save({"name": "Ada", "visits": 0})
    await ada.update(lambda ada: ada | {"visits": ada["visits"] + 1})
"""
_KINDS = {"sqlite": "SQLite database", "file": "JSON file"}


def run(console: Console | None = None) -> int:
    """Run the demo and return the exit status: 1 if anything was lost that must not be."""
    console = console or Console(highlight=False)
    started = perf_counter()
    with tempfile.TemporaryDirectory(prefix="dgents-demo-") as name:
        folder = Path(name)
        console.print("\n[bold]dgents[/bold]: state for many agents, and one owner for each state.")
        anyio.run(_actors, console, folder)
        lost = anyio.run(_lost_updates, console, folder)
        lost += _crashes(console, folder)
    seconds = perf_counter() - started
    if lost:
        console.print(f"\n[bold red]{lost:,} updates were lost.[/bold red] This is a bug; please report it.\n")
        return 1
    console.print(f"\n[bold green]dgents lost nothing.[/bold green] That took {seconds:.1f} seconds.")
    console.print("Next: examples/, docs/semantics.md, and `dgents bench` for figures.\n")
    return 0


async def _actors(console: Console, folder: Path) -> None:
    _heading(console, 1, "An actor owns a state")
    path = folder / "ada.json"
    console.print(_FIRST_STEPS, markup=False, style="dim")
    async with dgents.Runtime() as rt:
        ada = await rt.spawn("profile/ada", dgents.PersistentAgent(path))
        await ada.save({"name": "Ada", "visits": 0})
        await ada.update(lambda ada: ada | {"visits": ada["visits"] + 1})
    async with dgents.Runtime() as rt:
        again = await rt.spawn("profile/ada", dgents.PersistentAgent(path))
        profile, versions = await again.load(), await again.history()
    console.print(f"The next runtime that opens {path.name} finds {profile},")
    console.print(f"and {len(versions)} versions of it.")


@dataclass
class Outcome:
    """What became of the increments of one pattern."""

    pattern: str
    acknowledged: int
    refused: int
    found: int
    seconds: float

    @property
    def lost(self) -> int:
        """How many were acknowledged, and are not in the state."""
        return self.acknowledged - self.found


class Holder(Protocol):
    """What the agents of the demo load from and save to."""

    async def load(self) -> Any: ...
    async def save(self, state: Any) -> Any: ...


class _Plain:
    """A state that any task may load and save at any time."""

    def __init__(self, state: Any) -> None:
        self._state = state

    async def load(self) -> Any:
        return copy.deepcopy(self._state)

    async def save(self, state: Any) -> None:
        self._state = copy.deepcopy(state)


async def _lost_updates(console: Console, folder: Path) -> int:
    _heading(console, 2, f"{AGENTS} agents update one state, {EACH} times each")
    console.print("Each loads it, waits (for a model, for a tool), and saves it with one more.")
    outcomes = [await _measure("plain object: load, save", _Plain({"count": 0}), careless)]
    async with dgents.Runtime() as rt:
        for name, increment in (("load, save", careless), ("update", careful)):
            ref = await rt.spawn(name, dgents.SQLAgent(str(folder / "count.db")))
            await ref.save({"count": 0})
            outcomes.append(await _measure(f"dgents: {name}", ref, increment))
    console.print(_table(outcomes))
    plain, naive, updates = outcomes
    console.print(f"The plain object lost {plain.lost:,} updates, and nobody was told.")
    console.print(f"dgents refused {naive.refused:,} of the same careless saves: each would have overwritten")
    console.print("what its task had not seen. `await ref.update(fn)` needs no second try: the")
    console.print("owner runs one at a time, and answers when SQLite has it on the disk.")
    console.print(f"That is {updates.acknowledged:,} durable updates in {updates.seconds:.2f} seconds.")
    return abs(naive.lost) + abs(updates.lost)


async def careless(state: Holder) -> None:
    """Count one more, as everybody writes it first."""
    mine = await state.load()
    await anyio.lowlevel.checkpoint()  # a model that answers, a tool that runs
    mine["count"] += 1
    await state.save(mine)


async def careful(state: Any) -> None:
    """Count one more in one turn of the owner."""

    async def increment(mine: dict[str, int]) -> dict[str, int]:
        await anyio.lowlevel.checkpoint()
        mine["count"] += 1
        return mine

    await state.update(increment)


async def _measure(pattern: str, state: Holder, increment: Any) -> Outcome:
    tally = Counter[str]()

    async def agent() -> None:
        for _ in range(EACH):
            try:
                await increment(state)
            except dgents.StaleStateError:
                tally["refused"] += 1
            else:
                tally["acknowledged"] += 1

    started = perf_counter()
    async with anyio.create_task_group() as agents:
        for _ in range(AGENTS):
            agents.start_soon(agent)
    seconds = perf_counter() - started
    return Outcome(pattern, tally["acknowledged"], tally["refused"], (await state.load())["count"], seconds)


def _table(outcomes: list[Outcome]) -> Table:
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1), pad_edge=False)
    table.add_column("", no_wrap=True)
    for heading in ("acknowledged", "refused", "in the state", "lost"):
        table.add_column(heading, justify="right")
    for one in outcomes:
        lost = f"[bold red]{one.lost:,}[/bold red]" if one.lost else "[bold green]0[/bold green]"
        table.add_row(one.pattern, f"{one.acknowledged:,}", f"{one.refused:,}", f"{one.found:,}", lost)
    return table


def _crashes(console: Console, folder: Path) -> int:
    _heading(console, 3, "A process is killed in the middle of its writes")
    console.print(f"{victim.WRITERS} tasks of another process update one state and report each acknowledgement.")
    console.print("SIGKILL ends it while they do. Then the state is opened again.\n")
    return sum(_crash(console, folder, kind) for kind in _KINDS)


def _crash(console: Console, folder: Path, kind: str) -> int:
    acknowledged = kill_while_writing(kind, folder)
    stored = anyio.run(_reopen, kind, folder)
    told, found = sum(acknowledged.values()), sum(stored.values())
    lost = sum(max(0, count - stored.get(writer, 0)) for writer, count in acknowledged.items())
    verdict = f"[bold red]{lost} lost[/bold red]" if lost else "[bold green]none lost[/bold green]"
    console.print(f"{_KINDS[kind]}: {told:,} acknowledged, killed, {found:,} found again: {verdict}")
    if found > told:
        console.print(f"  ({found - told} had reached the disk, and nobody was told any more)")
    return lost


def kill_while_writing(kind: str, folder: Path) -> dict[str, int]:
    """Run the victim, kill it, and return the last count that each of its writers reported.

    Raises:
        RuntimeError: it ended by itself; the message says why.
    """
    command = [sys.executable, "-m", "dgents.victim", kind, str(folder)]
    counts: dict[str, int] = {}
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        try:
            for line in process.stdout:
                writer, count = line.split()
                counts[writer] = int(count)
                if sum(counts.values()) == ACKNOWLEDGED:
                    process.kill()  # what was written to the pipe before it died is still read
        finally:
            process.kill()
        if sum(counts.values()) < ACKNOWLEDGED:
            raise RuntimeError(f"the process that was to be killed failed: {process.stderr.read().strip()[-500:]}")
    return counts


async def _reopen(kind: str, folder: Path) -> dict[str, int]:
    async with dgents.Runtime() as rt:
        ref = await rt.spawn("victim", victim.agent(kind, folder))
        state: dict[str, int] = await ref.load()
        return state


def _heading(console: Console, number: int, text: str) -> None:
    console.print(f"\n[bold cyan]{number}. {text}[/bold cyan]")
