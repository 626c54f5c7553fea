"""What patches make of a state can always be opened again, whatever is between the actor and its file."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import dgents
from dgents.runtime.codec import Codec

pytestmark = pytest.mark.anyio

BOUND = 2**16
WRAPPERS: dict[str, Callable[[Any, Path], Any]] = {
    "alone": lambda file, _: file,
    "write-through": lambda file, _: dgents.CachedAgent(dgents.VolatileAgent(), file),
    "write-behind": lambda file, _: dgents.CachedAgent(
        dgents.VolatileAgent(), file, policy="write-behind", flush=dgents.Flush(max_delay=0.01)
    ),
    "journal": lambda file, folder: dgents.CachedAgent(
        dgents.VolatileAgent(), file, policy="write-behind", flush=dgents.Flush(max_delay=0.01, journal=folder / "j")
    ),
    "budget": lambda file, _: dgents.EntropyConstrainedAgent(file, 1, max_size_bytes=BOUND),
}


@pytest.mark.parametrize("wrapper", WRAPPERS)
@pytest.mark.parametrize("max_history", [0, 100])
async def test_patches_up_to_the_bound_can_be_opened_and_those_beyond_are_refused(
    wrapper: str, max_history: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if wrapper != "budget":
        monkeypatch.setitem(Codec.__init__.__kwdefaults__, "max_bytes", BOUND)
    file: Any = dgents.PersistentAgent(tmp_path / "s", format="msgpack", max_history=max_history)
    agent = WRAPPERS[wrapper](file, tmp_path)
    refused = 0
    async with dgents.Runtime() as rt:
        ref = await rt.spawn("a", agent)
        await ref.save({})
        for number in range(150):  # more than a log is let grow before the file of the state is written anew
            try:
                await ref.patch({f"part {number}": b"x" * 900})
            except dgents.StateTooLargeError:
                refused += 1
        state = await ref.load()
        assert len(state) + refused == 150
        assert BOUND - 1000 < len(Codec().encode(state)) <= BOUND
    async with dgents.Runtime() as rt:
        ref = await rt.spawn("a", agent)
        assert await ref.load() == state
        with pytest.raises(dgents.StateTooLargeError):
            await ref.patch({"more": b"x" * 1000})
        await ref.patch({"part 0": b""})
