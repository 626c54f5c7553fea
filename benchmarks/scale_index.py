"""What an index of many vectors costs: ``python -m dgents.benchmarks.scale_index COUNT``, in a process of its own."""

from __future__ import annotations

import gc
import sys
from collections.abc import Awaitable, Callable
from time import perf_counter
from typing import Any

import dgents
from dgents.benchmarks.idle import resident_bytes
from dgents.benchmarks.measure import Sample
from dgents.benchmarks.scale_place import answer

SEARCH, UPSERT, DELETE = "search, one query, flat index", "upsert", "delete"
RESIDENT = "resident, each vector"
CURVES = {SEARCH: "µs", UPSERT: "µs", DELETE: "µs", RESIDENT: "bytes"}
WEIGHABLE = 10_000  # what an index takes at first is small beside so many
DIMENSION = 64
BATCH = 10_000
PROBES = 100  # vectors that are searched, replaced and deleted


async def index(count: int) -> Sample:
    """Save ``count`` vectors; then some are searched for, moved to another place, found there, and deleted."""
    import numpy  # an optional dependency

    random = numpy.random.default_rng(count)
    async with dgents.Runtime() as runtime:
        warm = await runtime.spawn("warm", dgents.VectorAgent(DIMENSION))
        await _fill(warm, PROBES, random)
        await warm.search(random.standard_normal(DIMENSION), 1)
        ref: Any = await runtime.spawn("vectors", dgents.VectorAgent(DIMENSION))
        gc.collect()
        before = resident_bytes()
        probes = await _fill(ref, count, random)
        gc.collect()
        details = {RESIDENT: (resident_bytes() - before) / count} if count >= WEIGHABLE else {}
        moved = random.standard_normal((len(probes), DIMENSION), dtype="float32")
        hits: list[list[Any]] = []

        async def search(number: int) -> None:
            hits.append(await ref.search(probes[number], 1))

        details[SEARCH] = await _each(search, len(probes))
        details[UPSERT] = await _each(lambda number: ref.save(number, id=number, embedding=moved[number]), len(probes))
        there = await ref.search_many(moved, 1)
        details[DELETE] = await _each(ref.delete, len(probes))
        gone = await ref.search_many(moved, 1)
        left = await ref.count()
    ids = list(range(len(probes)))
    found = {"searched": _ids(hits), "moved": _ids(there), "gone": not set(_ids(gone)) & set(ids), "left": left}
    return Sample(
        operations=len(probes),
        seconds=details[SEARCH] * len(probes) / 1e6,
        expected={"searched": ids, "moved": ids, "gone": True, "left": count - len(probes)},
        found=found,
        details=details,
    )


async def _fill(ref: Any, count: int, random: Any) -> Any:
    """Save ``count`` vectors under their numbers, and return the first of them."""
    probes = None
    for first in range(0, count, BATCH):
        ids = list(range(first, min(first + BATCH, count)))
        vectors = random.standard_normal((len(ids), DIMENSION), dtype="float32")
        await ref.save_many(ids, ids=ids, embeddings=vectors)
        probes = vectors[:PROBES].copy() if probes is None else probes
    return probes


async def _each(operation: Callable[[int], Awaitable[Any]], count: int) -> float:
    """Return the microseconds that one of ``count`` operations takes."""
    started = perf_counter()
    for number in range(count):
        await operation(number)
    return (perf_counter() - started) / count * 1e6


def _ids(found: list[list[Any]]) -> list[Any]:
    """Return the id of the nearest of each search."""
    return [hits[0].id if hits else None for hits in found]


if __name__ == "__main__":
    answer(lambda: index(int(sys.argv[1])))
