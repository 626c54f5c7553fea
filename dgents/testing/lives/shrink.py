"""The shortest script that still fails, as far as it is found within a number of tries (Zeller's delta debugging)."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator
from time import monotonic

from msgspec.structs import replace

from dgents.testing.lives.script import Life, Script


async def shrink(
    script: Script, fails: Callable[[Script], Awaitable[bool]], tries: int = 200, seconds: float = 60.0
) -> Script:
    """Return a script that fails and can't be made shorter by a step, a life or a detail.

    Args:
        script: one that fails.
        fails: plays a script, and tells whether it fails too.
        tries: how often that is done at most.
        seconds: how long that may take.
    """
    shorter, until = True, monotonic() + seconds
    while shorter and tries > 0:
        shorter = False
        for candidate in _simpler(script):
            tries -= 1
            if await fails(candidate):
                script, shorter = candidate, True
                break
            if tries <= 0 or monotonic() > until:
                return script
    return script


def _simpler(script: Script) -> Iterator[Script]:
    """Yield scripts that are a little simpler, the boldest first."""
    lives = script.lives
    for index in range(len(lives)):
        if len(lives) > 1:
            yield replace(script, lives=(*lives[:index], *lives[index + 1 :]))
    for index, life in enumerate(lives):
        for simpler in _simpler_lives(life):
            yield replace(script, lives=(*lives[:index], simpler, *lives[index + 1 :]))


def _simpler_lives(life: Life) -> Iterator[Life]:
    steps = life.steps
    size = len(steps)
    while size:
        for start in range(0, len(steps), size):
            rest = (*steps[:start], *steps[start + size :])
            at = min(life.kill_at - size if start < life.kill_at else life.kill_at, len(rest) - 1)
            yield replace(life, steps=rest, kill_at=max(at, 0))
        size //= 2
    if life.ends == "kill":
        yield replace(life, ends="close")
    for index, step in enumerate(steps):
        for simpler in (replace(step, leaves=0), replace(step, together=False)):
            if simpler != step:
                yield replace(life, steps=(*steps[:index], simpler, *steps[index + 1 :]))
        if step.amount > 1:
            for amount in (1, step.amount // 2, step.amount - 1):
                if amount < step.amount:
                    fewer = replace(step, amount=amount)
                    yield replace(life, steps=(*steps[:index], fewer, *steps[index + 1 :]))
