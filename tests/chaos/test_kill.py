"""SIGKILL at any moment: what was acknowledged is there, once, in order; what was not is there whole or not at all."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from itertools import pairwise
from pathlib import Path

import anyio
import pytest

import dgents
from tests.chaos.killed_writer import KINDS, make_agent

SEED = int(os.environ.get("DGENTS_SEED") or random.randrange(2**32))
SHORT, LONG = 2, 60  # rounds for each agent and loop
LONGEST = 0.25  # seconds that a writer lives after its first acknowledgement


def kill_a_writer(kind: str, folder: Path, loop: str, seconds: float) -> list[str]:
    """Let a writer live for a time, kill it, and return the ids that it was told are stored."""
    command = [sys.executable, "-m", "tests.chaos.killed_writer", kind, str(folder), loop]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as writer:
        assert writer.stdout is not None
        assert writer.stdout.readline() == "ready\n"
        first = writer.stdout.readline()
        time.sleep(seconds)
        writer.send_signal(signal.SIGKILL)
        told = (first + writer.stdout.read()).splitlines()
    return [line for line in told if len(line) == 32]  # the last one may have been cut in the middle


async def stored(kind: str, folder: Path) -> tuple[list[str], list[list[str]]]:
    async with dgents.Runtime() as rt:
        ref = await rt.spawn("state", make_agent(kind, folder))
        return await ref.load(default=[]), await ref.history()


def check(kind: str, folder: Path, acknowledged: list[str], before: list[str]) -> list[str]:
    ids, history = anyio.run(stored, kind, folder)
    assert len(ids) == len(set(ids)), "an update was applied twice"
    assert ids[: len(before)] == before, "an earlier state was changed"
    missing = set(acknowledged) - set(ids)
    assert not missing, f"{len(missing)} of {len(acknowledged)} acknowledged updates are lost"
    for earlier, later in pairwise(history):
        assert later[: len(earlier)] == earlier, "a version in the history is no prefix of the next"
        assert len(later) == len(earlier) + 1, "a version is missing in the history"
    return ids


def rounds(kind: str, loop: str, folder: Path, count: int) -> int:
    chance = random.Random(f"{SEED} {kind} {loop}")
    ids: list[str] = []
    told = 0
    for number in range(count):
        if number % 10 == 0:  # a state that grows without end would soon be all that is measured
            ids, place = [], folder / str(number)
            place.mkdir()
        acknowledged = kill_a_writer(kind, place, loop, chance.uniform(0, LONGEST))
        ids = check(kind, place, acknowledged, ids)
        told += len(acknowledged)
    return told


@pytest.mark.parametrize("loop", ["asyncio", "trio"])
@pytest.mark.parametrize("kind", KINDS)
def test_what_was_acknowledged_survives_a_kill(kind: str, loop: str, tmp_path: Path) -> None:
    assert rounds(kind, loop, tmp_path, SHORT) > 0


@pytest.mark.torture
@pytest.mark.parametrize("loop", ["asyncio", "trio"])
@pytest.mark.parametrize("kind", KINDS)
def test_what_was_acknowledged_survives_many_kills(kind: str, loop: str, tmp_path: Path) -> None:
    told = rounds(kind, loop, tmp_path, LONG)
    print(f"\n{kind} on {loop}: {LONG} kills, {told} acknowledged updates, none lost, none twice (SEED={SEED})")
