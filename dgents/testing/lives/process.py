"""A life that ends with SIGKILL: it is played in a child, which says what it does as it does it."""

from __future__ import annotations

import multiprocessing
import sys
from multiprocessing.connection import Connection
from typing import Any

import anyio
import anyio.to_thread

from dgents.testing.lives.record import Record, Recorder, Violation
from dgents.testing.lives.script import Life, Options
from dgents.testing.lives.stage import Make, Stage
from dgents.testing.processes import running_loop

_START = 30.0  # seconds that a child may take to be there

_context = multiprocessing.get_context("forkserver")


async def play_and_kill(
    make: Make, name: str, options: Options, life: Life, moment: int, known: int, deadline: float
) -> tuple[Recorder, bool]:
    """Play a life in a child and kill it; return what it said, and whether it may lose what it did not flush.

    Raises:
        Violation: a promise was broken before it was killed.
    """
    return await anyio.to_thread.run_sync(_drive, make, name, options, life, moment, known, deadline, running_loop())


def _drive(
    make: Make, name: str, options: Options, life: Life, moment: int, known: int, deadline: float, loop: str
) -> tuple[Recorder, bool]:
    _context.set_forkserver_preload(["dgents.testing.lives.process"])
    ours, theirs = _context.Pipe(duplex=False)
    child = _context.Process(
        target=_child, args=(theirs, make, name, options, life, moment, known, deadline, loop), daemon=True
    )
    child.start()
    theirs.close()
    recorder = Recorder(moment)
    recorder.known = known
    records: dict[int, Record] = {}
    is_lossy, is_dying = True, False
    try:
        while ours.poll(_START + deadline):
            kind, value = ours.recv()
            if kind == "record":
                records[value.start] = value
                recorder.moment = max(recorder.moment, value.start, value.end or 0)
            elif kind == "lossy":
                is_lossy = value
            elif kind == "violation":
                raise Violation(value)
            elif kind == "played" or (kind == "step" and value >= life.kill_at):
                if not is_dying:
                    child.kill()
                is_dying = True
        raise Violation("a child neither played its steps nor ended")
    except EOFError:
        if not is_dying:
            raise Violation(f"a child ended by itself, with exit code {child.exitcode}") from None
    finally:
        child.kill()
        child.join()
        ours.close()
    recorder.records = [records[start] for start in sorted(records)]
    return recorder, is_lossy


def _child(
    pipe: Connection, make: Make, name: str, options: Options, life: Life, moment: int, known: int, deadline: float,
    loop: str,
) -> None:  # fmt: skip
    anyio.run(_live, pipe, make, name, options, life, moment, known, deadline, backend=loop)


async def _live(
    pipe: Connection, make: Make, name: str, options: Options, life: Life, moment: int, known: int, deadline: float
) -> None:
    def tell(kind: str, value: Any) -> None:
        pipe.send((kind, value))

    recorder = Recorder(moment, lambda record: tell("record", record))
    recorder.known = known
    stage = Stage(make, name, options, recorder, deadline)
    try:
        await stage.open()
        await stage.look()
        tell("lossy", stage.is_lossy)
        await stage.play(life.steps, lambda index: tell("step", index))
    except Exception as error:
        tell("violation", str(error) if isinstance(error, Violation) else f"a child met {error!r}")
        sys.exit(1)
    tell("played", None)
    await anyio.sleep_forever()
