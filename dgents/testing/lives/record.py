"""What became of each call: the evidence."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import msgspec

import dgents
from dgents.testing.lives.operations import AFTER, Injected

# must: acknowledged; may: it is not known; never: refused; seen: nothing was to be written, or nothing can have been.
Fate = Literal["must", "may", "never", "seen"]


class Violation(AssertionError):
    """A promise was broken."""


class Record(msgspec.Struct):
    """One call: what it was to write, when it began and was answered, and what the answer shows.

    ``start`` and ``end`` are moments of the script, counted; ``end`` is None while there is no answer. ``saw`` is what
    the answer shows: of a read the state as it was, of a write the state that it made.
    """

    do: str
    n: int
    start: int
    end: int | None = None
    fate: Fate = "may"
    saw: tuple[str, Any] | None = None
    request: bool = False
    why: str = ""

    @property
    def writes(self) -> bool:
        """Whether it may have made a version."""
        return self.do in AFTER and self.fate in ("must", "may")

    def __str__(self) -> str:
        end = "no answer" if self.end is None else self.end
        saw = f" saw {self.saw[0]} {self.saw[1]!r}" if self.saw is not None else ""
        return f"{self.do} #{self.n} [{self.start}-{end}] {self.fate}{saw} {self.why}".rstrip()


class Recorder:
    """Writes down what happens, and counts the moments."""

    def __init__(self, moment: int = 0, tell: Callable[[Record], object] | None = None) -> None:
        self.records: list[Record] = []
        self.moment = moment
        self.known = 0  # the newest version that any answer showed
        self._tell = tell

    def begin(self, do: str, n: int, request: bool) -> Record:
        """Take down that a call begins."""
        record = Record(do, n, self._next(), request=request)
        self.records.append(record)
        self._publish(record)
        return record

    def answered(self, record: Record, saw: tuple[str, Any] | None) -> None:
        """Take down an answer."""
        record.fate = "must" if record.do in AFTER else "seen"
        if record.do in ("tell", "remind"):
            record.fate = "may"  # it is on its way
        record.saw = saw
        if saw is not None and saw[0] in ("version", "snapshot"):
            self.known = max(self.known, saw[1] if saw[0] == "version" else saw[1][0])
        self._end(record)

    def left(self, record: Record) -> None:
        """Take down that the caller left."""
        record.why = "left"
        self._end(record)
        record.end = None  # what it began may still happen later

    def raised(self, record: Record, error: Exception) -> None:
        """Take down an error: the ones of ours say what became of the write.

        Raises:
            Violation: an error that is none of ours.
        """
        record.why = f"{type(error).__name__}: {error}"
        if isinstance(error, dgents.StateNotFoundError):
            record.fate, record.saw = "seen", _absence(record)
        elif type(error) is dgents.VersionConflictError:
            record.fate = "seen"
            record.saw = ("conflict", error.actual) if record.do == "cas" else None
        elif isinstance(error, dgents.DgentError):
            record.fate = "may" if error.outcome == "unknown" else "never"
        elif isinstance(error, Injected) and record.do in ("fails", "undone"):
            record.fate = "never"
        else:
            raise Violation(f"{record} raised what is no error of this library: {error!r}") from error
        self._end(record)

    def since(self, index: int) -> list[Record]:
        """Return the records from one on."""
        return self.records[index:]

    def _end(self, record: Record) -> None:
        record.end = self._next()
        self._publish(record)

    def _publish(self, record: Record) -> None:
        if self._tell is not None:
            self._tell(record)

    def _next(self) -> int:
        self.moment += 1
        return self.moment


def _absence(record: Record) -> tuple[str, Any] | None:
    return None if record.do == "version" else ("absent", None)
