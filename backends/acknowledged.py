"""What an owner knows to be stored, to find out that its store has lost it when it is opened again."""

from __future__ import annotations

from msgspec.structs import replace

from dgents.runtime.contract import Record
from dgents.runtime.errors import StateCorruptionError

_SAME_TIME = 1e-3  # seconds; what is read back may have been rounded


class Acknowledged:
    """The newest version of one state that was read from its store, or stored there: it only ever grows."""

    __slots__ = ("_last",)

    def __init__(self) -> None:
        self._last: Record | None = None

    def note(self, record: Record | None) -> None:
        """Take note that this version is stored."""
        if record is not None:
            self._last = record if record.data is record.delta is None else replace(record, data=None, delta=None)

    def check(self, found: Record | None, place: str, *, actor: str, key: str | None = None) -> None:
        """Compare with what is stored now; nothing is built on an older version, or on another state.

        Raises:
            StateCorruptionError: it is not what was stored, nor what may have followed.
        """
        last = self._last
        if last is None or (found is not None and _may_follow(last, found)):
            return
        holds = "holds nothing now" if found is None else f"holds version {found.version} now"
        if found is not None and found.version >= last.version:
            holds = f"holds another version {found.version} now"
        raise StateCorruptionError(
            f"{place} {holds}, and version {last.version} of {actor!r} was stored there",
            path=place,
            actor=actor,
            key=key,
            hint="it was removed, replaced or restored while it was in use, and was left as it is; put the newer one "
            "back, or start the actor anew to go on with what is there",
        )

    @property
    def any(self) -> bool:
        """Whether anything is known to be stored."""
        return self._last is not None


def _may_follow(last: Record, found: Record) -> bool:
    if found.version == last.version:
        return found.epoch == last.epoch and abs(found.saved_at - last.saved_at) < _SAME_TIME
    return found.version > last.version and found.epoch >= last.epoch
