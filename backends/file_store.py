"""The store that commits the states of one directory, for all actors of one runtime.

A batch is one call in one worker thread. Its files are written and synced by a few threads at once, so that
the file system's journal commits many of them together; then all are renamed, and one fsync of the directory
makes every rename durable.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, TypeVar

import anyio
import anyio.to_thread

from dgents.backends import files
from dgents.backends.file_commit import Prepared
from dgents.backends.file_state import StateFile
from dgents.runtime.contract import Write
from dgents.runtime.errors import DgentError

if TYPE_CHECKING:
    from dgents.backends.file import FileBackend

T = TypeVar("T")

_THREADS = 8  # more of them share no more of the journal's commits
_CALLS = 8  # at once: one commit, and reads
_SHOWN_AFTER = 0.05  # seconds, from a commit by the log to a main file that shows it


class _Item(NamedTuple):
    """One write of a batch, and where its answer goes."""

    number: int
    state: StateFile
    prepared: Prepared


class FileStore:
    """Commits what many actors write to files in one directory.

    A commit that failed leaves nothing to mend here: each `StateFile` that took part refuses further writes until
    it was opened again.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        # Not the limiter that users' own threads share: those may wait for this very store.
        self._limiter = anyio.CapacityLimiter(_CALLS)
        self._threads = ThreadPoolExecutor(_THREADS, thread_name_prefix="dgents-files")
        self._unshown: set[StateFile] = set()
        self._showing = False
        self._closing = threading.Event()
        self._lock = threading.Lock()  # over the two above

    async def run(self, fn: Callable[[], T]) -> T:
        """Return ``fn()``, called in a worker thread; a cancelled caller waits for its end."""
        return await anyio.to_thread.run_sync(fn, limiter=self._limiter)

    async def commit(self, writes: Sequence[Write]) -> Sequence[DgentError | None]:
        """Make the writes durable with one fsync of the directory; see `contract.Store.commit`."""
        return await self.run(lambda: self._commit(writes))

    async def close(self) -> None:
        """End the threads; the last one of the runtime's actors has let go of the directory."""
        await anyio.to_thread.run_sync(self.shutdown)

    def shutdown(self) -> None:
        """End the threads; blocking."""
        self._closing.set()
        self._threads.shutdown()

    def _commit(self, writes: Sequence[Write]) -> list[DgentError | None]:
        answers: list[DgentError | None] = [None] * len(writes)
        batch: list[_Item] = []
        try:
            for index, write in enumerate(writes):
                backend: FileBackend = write.backend  # type: ignore[assignment]  # a store gets its own only
                begun = backend.state.begin(write)
                if isinstance(begun, DgentError):
                    answers[index] = begun
                else:
                    batch.append(_Item(index, backend.state, begun))
            for item, refusal in zip(batch, self._prepare_all(batch), strict=True):
                answers[item.number] = refusal
            _put_in_place([item.prepared for item in batch if answers[item.number] is None])
        except BaseException as error:
            for item in batch:
                item.state.abandon(item.prepared, refused=answers[item.number] is not None)
            if isinstance(error, OSError):
                failure = files.storage_error(error, error.filename or self.directory, "save")
                in_doubt = any(item.prepared.in_place for item in batch)
                failure.outcome = "unknown" if in_doubt else "rolled_back"
                raise failure from error
            raise
        for item in batch:
            if answers[item.number] is None:
                if item.state.adopt(item.prepared):
                    self._show_later(item.state)
            else:
                item.state.abandon(item.prepared, refused=True)
        return answers

    def _show_later(self, state: StateFile) -> None:
        with self._lock:
            self._unshown.add(state)
            if not self._showing:
                self._showing = True
                self._threads.submit(self._show)

    def _show(self) -> None:
        """Refresh main files of JSON, each at most once in a while, until none is behind."""
        while True:
            self._closing.wait(_SHOWN_AFTER)
            with self._lock:
                states, self._unshown = self._unshown, set()
                self._showing = bool(states)
            if not states:
                return
            for state in states:
                state.show()

    def _prepare_all(self, batch: list[_Item]) -> list[DgentError | None]:
        """Write and sync what each write needs; return why some are refused."""
        if len(batch) == 1:
            return [_refusal(self._prepare_alone, batch[0].prepared)]
        refusals: list[DgentError | None] = [None] * len(batch)
        todo: Iterator[tuple[int, _Item]] = enumerate(batch)

        def work() -> None:
            for number, item in todo:  # taken one by one, by whichever thread is free
                refusals[number] = _refusal(_prepare, item.prepared)

        helpers = [self._threads.submit(work) for _ in range(min(_THREADS, len(batch)) - 1)]
        try:
            work()
        finally:
            # All of them end before anything is given up, whatever failed.
            failures = [helper.exception() for helper in helpers]
        for failure in failures:
            if failure is not None:
                raise failure
        return refusals

    def _prepare_alone(self, prepared: Prepared) -> None:
        """Sync both files of the only write at the same time: they share one commit of the journal."""
        prepared.prepare()
        if not prepared.syncs_both:
            _sync(prepared)
            return
        log = self._threads.submit(prepared.sync_log)
        try:
            prepared.sync_main()
        finally:
            failure = log.exception()
        if failure is not None:
            raise failure


def _prepare(prepared: Prepared) -> None:
    prepared.prepare()
    _sync(prepared)


def _sync(prepared: Prepared) -> None:
    prepared.sync_main()
    prepared.sync_log()


def _refusal(prepare: Callable[[Prepared], None], prepared: Prepared) -> DgentError | None:
    """Return the error of one write of which nothing was stored; what the system refuses fails all."""
    try:
        prepare(prepared)
    except DgentError as refusal:
        return refusal
    return None


def _put_in_place(batch: Sequence[Prepared]) -> None:
    """Rename what was prepared, and make that durable, in an order that no crash leaves a riddle."""
    mains = [prepared for prepared in batch if prepared.replaces_main]
    logs = [prepared for prepared in batch if prepared.makes_log]
    _rename([prepared for prepared in logs if not prepared.main_first], Prepared.replace_log)
    _rename(mains, Prepared.replace_main)
    _rename([prepared for prepared in logs if prepared.main_first], Prepared.replace_log)


def _rename(batch: Sequence[Prepared], rename: Callable[[Prepared], None]) -> None:
    if not batch:
        return
    try:
        for prepared in batch:
            rename(prepared)
        if any(prepared.place.settings.sync for prepared in batch):
            files.layer.fsync_directory(batch[0].place.path.parent)
            files.layer.step("directory-synced")
    except OSError:
        for prepared in batch:
            prepared.untrusted = True
        raise
