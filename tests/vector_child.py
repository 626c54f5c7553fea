"""A process that writes into a vector store until it is killed, and what must be there afterwards.

Run: python -m tests.vector_child DIRECTORY EVENT_LOOP INDEX [STEP AT]; it prints the number of each operation that was
acknowledged, and dies at the ``AT``-th time that the step is reached.
"""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import anyio
import numpy as np

import dgents
from dgents.backends import files, vector_ann, vector_upkeep
from dgents.backends.vector_index import VectorIndex
from tests.disk import KillingLayer

D = 8
OPERATIONS = 400
_SNAPSHOT_EVERY = 40  # changes
_INDEXED_FROM = 50  # vectors
_ROUNDING = 1e-5

Entries = dict[Any, tuple[int, Any]]


def vector(n: int) -> Any:
    return np.random.default_rng(n).standard_normal(D).astype(np.float32)


def plan(n: int) -> tuple[list[Any], bool]:
    """Return the ids that operation ``n`` is about, and whether it deletes them."""
    chance = random.Random(n)
    count = chance.choice([1, 1, 1, 3, 90])
    ids: list[Any] = [chance.choice([k, str(k)]) for k in chance.sample(range(120), count)]
    return (ids[:1], True) if chance.random() < 0.2 else (ids, False)


def model(operations: int) -> Entries:
    """Return what is in the store after so many operations."""
    found: Entries = {}
    for n in range(operations):
        ids, deletes = plan(n)
        if deletes:
            found.pop(ids[0], None)
        else:
            found.update({id: (n, vector(n + at)) for at, id in enumerate(ids)})
    return found


async def operate(ref: dgents.VectorRef[Any], n: int) -> None:
    ids, deletes = plan(n)
    if deletes:
        await ref.delete(ids[0])
    elif len(ids) == 1:
        await ref.save({"n": n}, id=ids[0], embedding=vector(n))
    else:
        await ref.save_many([{"n": n}] * len(ids), ids=ids, embeddings=[vector(n + at) for at in range(len(ids))])


async def matches(ref: dgents.VectorRef[Any], expected: Entries) -> bool:
    """Tell whether exactly these entries are in a store, each with its state and its vector."""
    if await ref.count() != len(expected):
        return False
    if not expected:
        return True
    truth = VectorIndex(D)
    truth.upsert(list(expected), np.stack([kept for _, kept in expected.values()]))
    for query in (vector(0), vector(1)):
        hits = await ref.search(query, len(expected))
        if {hit.id: hit.state for hit in hits} != {id: {"n": n} for id, (n, _) in expected.items()}:
            return False
        scores = dict(truth.search(query[None], len(expected))[0])
        if any(abs(hit.score - scores[hit.id]) > _ROUNDING for hit in hits):
            return False
    return True


async def survives(directory: Path, acknowledged: int, index: str = "flat") -> bool:
    """Tell whether a store holds what so many acknowledged operations left, and at most one more, whole."""
    async with dgents.Runtime() as rt:
        ref: dgents.VectorRef[Any] = await rt.spawn("vectors", dgents.VectorAgent(D, path=directory, index=index))
        at_last = [await matches(ref, model(count)) for count in (acknowledged, acknowledged + 1)]
        await ref.save({"n": 0}, id="after", embedding=vector(0))
        return any(at_last)


def killed(directory: Path, event_loop: str, *step: str, after: int | None = None, index: str = "flat") -> int:
    """Run a child until it dies, killed once it acknowledged ``after`` operations; return how many it did."""
    command = [sys.executable, "-m", "tests.vector_child", str(directory), event_loop, index, *step]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as child:
        assert child.stdout is not None
        acknowledged = 0
        for line in child.stdout:
            acknowledged = int(line)
            if acknowledged == after:
                child.kill()
        _, errors = child.communicate()
    assert child.returncode == -signal.SIGKILL, errors
    return acknowledged


async def _work(directory: Path, index: str) -> None:
    async with dgents.Runtime() as rt:
        ref: dgents.VectorRef[Any] = await rt.spawn("vectors", dgents.VectorAgent(D, path=directory, index=index))
        for n in range(OPERATIONS):
            await operate(ref, n)
            print(n + 1, flush=True)
    os.kill(os.getpid(), signal.SIGKILL)


def _main() -> None:
    directory, event_loop, index, *step = sys.argv[1:]
    vector_upkeep.LEAST_CHANGES = _SNAPSHOT_EVERY
    vector_ann.SMALLEST = _INDEXED_FROM
    if step:
        with files.use(KillingLayer(step[0], at=int(step[1]))):
            anyio.run(_work, Path(directory), index, backend=event_loop)
    anyio.run(_work, Path(directory), index, backend=event_loop)


if __name__ == "__main__":
    _main()
