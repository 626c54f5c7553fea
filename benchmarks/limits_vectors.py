"""The rows of ``limits`` for vectors, against FAISS by itself."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from time import perf_counter
from typing import Any

import dgents
from dgents.benchmarks.bench import Bench
from dgents.benchmarks.loops import run_tasks
from dgents.benchmarks.measure import Contender, Sample
from dgents.benchmarks.rounds import Round
from dgents.benchmarks.servers import missing

DIMENSION = 384
VECTORS = 100_000
CALLERS = 100
WRITERS = 1_000
CONTENDERS = 12


def run(bench: Bench) -> None:
    """Measure every row, if FAISS is there."""
    try:
        from dgents.benchmarks.peers import raw_faiss
    except ImportError as error:
        bench.absent("vectors", "/s", missing(error))
        return
    vectors = raw_faiss.unit_vectors(bench.some(VECTORS), DIMENSION)
    one = Contender("FAISS, one query, one thread", raw_searches(vectors, bench.some(200)))
    for row, callers, each, target in (
        ("one caller", 1, bench.some(200), 0.9),
        (f"{CALLERS} callers", CALLERS, bench.some(20), 1.9),
    ):
        ours = Contender("dgents", searches(vectors, callers, each))
        bench.compare(f"vectors, search, {row}, {len(vectors):,} x {DIMENSION}", ours, one, target=target)
    count = bench.some(100, quick=20)
    removals = Contender("FAISS, remove_ids", raw_removals(vectors, count))
    for row, change in (("delete", _delete), ("update", _update)):
        bench.compare(
            f"vectors, {row}, one of {len(vectors):,}",
            Contender("dgents", changes(vectors, bench.some(5_000), change)),
            removals,
            target=50,
        )
    for index, count in (("flat", bench.some(20_000)), ("hnsw", bench.some(4_000))):
        bench.compare(
            f"vectors, durable upsert, {WRITERS:,} callers, {index}",
            Contender("dgents", upserts(vectors[:count], index)),
            Contender(f"FAISS, add, {index}", raw_adds(vectors[:count], index)),
            target=0.5,
        )


def searches(vectors: Any, callers: int, each: int) -> Round:
    """Search for vectors that are there: each must be its own nearest."""

    async def round(directory: Path) -> Sample:
        async with dgents.Runtime() as runtime:
            ref = await _filled(runtime, vectors)
            found = [0] * callers

            async def work(number: int) -> None:
                for turn in range(number, callers * each, callers):
                    hits = await ref.search(vectors[turn], 5)
                    found[number] += hits[0].id == turn

            started = perf_counter()
            await run_tasks(work, callers)
            seconds = perf_counter() - started
        total = callers * each
        return Sample(operations=total, seconds=seconds, expected=total, found=sum(found))

    return round


def raw_searches(vectors: Any, count: int) -> Round:
    """Do the same with FAISS, one query a call."""
    from dgents.benchmarks.peers.raw_faiss import flat, one_thread

    async def round(directory: Path) -> Sample:
        index = flat(vectors)
        found = 0
        with one_thread():
            started = perf_counter()
            for turn in range(count):
                _, ids = index.search(vectors[turn : turn + 1], 5)
                found += int(ids[0, 0]) == turn
            seconds = perf_counter() - started
        return Sample(operations=count, seconds=seconds, expected=count, found=found)

    return round


def changes(vectors: Any, count: int, change: Callable[[Any, int, Any], Any]) -> Round:
    """Delete or update entries, one after another."""

    async def round(directory: Path) -> Sample:
        async with dgents.Runtime() as runtime:
            ref = await _filled(runtime, vectors)
            started = perf_counter()
            for number in range(count):
                await change(ref, number, vectors)
            seconds = perf_counter() - started
            hits = await ref.search(vectors[0], 1)
            found = (await ref.count(), hits[0].id == 0)
        left = len(vectors) - (count if change is _delete else 0)
        return Sample(operations=count, seconds=seconds, expected=(left, False), found=found)

    return round


def raw_removals(vectors: Any, count: int) -> Round:
    """Remove from an index of FAISS, one after another."""
    import numpy

    from dgents.benchmarks.peers.raw_faiss import mapped

    async def round(directory: Path) -> Sample:
        index = mapped(vectors)
        started = perf_counter()
        for number in range(count):
            index.remove_ids(numpy.array([number]))
        seconds = perf_counter() - started
        return Sample(operations=count, seconds=seconds, expected=len(vectors) - count, found=index.ntotal)

    return round


def upserts(vectors: Any, index: str) -> Round:
    """Save entries from many callers, each of which waits for the disk; all must be there when it is opened again."""

    async def round(directory: Path) -> Sample:
        agent: Any = dgents.VectorAgent(DIMENSION, path=directory / "vectors", index=index)
        async with dgents.Runtime() as runtime:
            ref = await runtime.spawn("vectors", agent)

            async def work(number: int) -> None:
                for turn in range(number, len(vectors), WRITERS):
                    await ref.save(turn, id=turn, embedding=vectors[turn])

            started = perf_counter()
            await run_tasks(work, WRITERS)
            seconds = perf_counter() - started
        async with dgents.Runtime() as runtime:
            found = await (await runtime.spawn("vectors", agent)).count()
        return Sample(operations=len(vectors), seconds=seconds, expected=len(vectors), found=found)

    return round


def raw_adds(vectors: Any, kind: str) -> Round:
    """Add to an index of FAISS, one after another; nothing is stored."""
    from dgents.benchmarks.peers.raw_faiss import flat, hnsw, one_thread

    async def round(directory: Path) -> Sample:
        index = flat(vectors[:0]) if kind == "flat" else hnsw(vectors[:0])
        with one_thread():
            started = perf_counter()
            for number in range(len(vectors)):
                index.add(vectors[number : number + 1])
            seconds = perf_counter() - started
        return Sample(operations=len(vectors), seconds=seconds, expected=len(vectors), found=index.ntotal)

    return round


async def _filled(runtime: dgents.Runtime, vectors: Any) -> Any:
    agent: Any = dgents.VectorAgent(DIMENSION)
    ref: Any = await runtime.spawn("vectors", agent)
    count = len(vectors)
    await ref.save_many(list(range(count)), ids=list(range(count)), embeddings=vectors)
    await ref.search(vectors[0], 1)  # what is prepared for the first search is no part of the others
    return ref


async def _delete(ref: Any, number: int, vectors: Any) -> None:
    await ref.delete(number)


async def _update(ref: Any, number: int, vectors: Any) -> None:
    await ref.save(number, id=number, embedding=-vectors[number])
