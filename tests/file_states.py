"""A scripted owner of a state file, and what must be true of the file wherever the owner was stopped."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from dgents.backends.compression import Compression
from dgents.backends.file_format import Format, Shape
from dgents.backends.file_state import StateFile
from dgents.backends.file_store import FileStore
from dgents.backends.file_upkeep import Settings
from dgents.runtime.codec import Codec
from dgents.runtime.contract import Opened, Record, Request, Write
from dgents.runtime.errors import DgentError
from dgents.runtime.patch import encode_patch

CODEC: Codec[Any] = Codec()


def settings(
    format: Format = "json", compression: Compression | None = None, max_history: int = 3, *, sync: bool = True
) -> Settings:
    return Settings(Shape(format, compression), max_history, sync)


def state_of(version: int, pad: int = 0) -> dict[str, Any]:
    """Return the state that each version has in these tests."""
    return {"version": version, "bytes": b"\xff", "pad": "x" * pad}


def record_of(version: int, epoch: int, pad: int = 0) -> Record:
    return Record(version, epoch, 1_700_000_000.25 + version, CODEC.encode(state_of(version, pad)))


def delta_of(version: int, epoch: int) -> Record:
    return Record(version, epoch, 1_700_000_000.25 + version, None, delta=encode_patch({"version": version}))


class Owner:
    """Writes one state without an event loop."""

    def __init__(self, path: Path, chosen: Settings, pad: int = 0) -> None:
        self.state = StateFile(path, "an actor", chosen)
        self.store = FileStore(path.parent)
        self.deltas = chosen.deltas
        self.pad = pad
        self.version = self.epoch = 0

    def open(self) -> Opened:
        opened = self.state.open()
        self.version = opened.record.version if opened.record else 0
        self.epoch = opened.epoch
        return opened

    def write(self, size: int = 1) -> Write:
        """Return the next ``size`` versions; where deltas can be stored, the even ones are deltas."""
        base = self.version
        records = []
        for version in range(base + 1, base + size + 1):
            is_delta = self.deltas and version % 2 == 0
            records.append(delta_of(version, self.epoch) if is_delta else record_of(version, self.epoch, self.pad))
        request = Request(f"request {base + size}", base + size, b"\x01")
        backend: Any = SimpleNamespace(state=self.state)
        return Write(backend, base, records, [request])

    def commit(self, size: int = 1) -> DgentError | None:
        write = self.write(size)
        (answer,) = self.store._commit([write])
        if answer is None:
            self.version = write.records[-1].version
            if self.version % 3:
                self.state.show()
        return answer

    def states(self) -> list[Any]:
        return [CODEC.decode(record.data or b"") for record in self.state.history(None)]

    def close(self) -> None:
        self.state.close()
        self.store.shutdown()


def live(path: Path, chosen: Settings, sizes: Sequence[int], acknowledge: Callable[[int], None], pad: int = 0) -> None:
    """Commit one batch for each of ``sizes``, and say after each which version is acknowledged."""
    owner = Owner(path, chosen, pad)
    owner.open()
    try:
        for size in sizes:
            assert owner.commit(size) is None
            acknowledge(owner.version)
    finally:
        owner.close()


def check(path: Path, chosen: Settings, acknowledged: int, sizes: Sequence[int], pad: int = 0) -> None:
    """Check that a state holds what was acknowledged, whole, with its history, and can be written again."""
    owner = Owner(path, chosen, pad)
    try:
        opened = owner.open()
        version = owner.version
        assert acknowledged <= version <= sum(sizes), f"at {version}, acknowledged was {acknowledged}"
        if opened.record is not None:
            assert CODEC.decode(opened.record.data or b"") == state_of(version, pad)
            kept = min(version, max(1, chosen.max_history))
            expected = [state_of(v, pad) for v in range(version - kept + 1, version + 1)]
            assert owner.states() == expected
        ends = [sum(sizes[: n + 1]) for n in range(len(sizes))]
        remembered = [request.version for request in owner.state.requests()]
        assert remembered[: len([end for end in ends if end <= acknowledged])] == [
            end for end in ends if end <= acknowledged
        ]
        assert all(version >= number for number in remembered)
        assert owner.commit() is None
    finally:
        owner.close()
    again = Owner(path, chosen, pad)
    again.open()
    again.close()
    assert again.version == version + 1
